"""Imports go one way: every room may import from the rooms named here and from no other."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "batchramp"

# Room -> rooms it may import from, at module level or inside functions. No cycle is possible:
# each room names only rooms above it here.
ALLOWED: dict[str, set[str]] = {
    "schedules": set(),
    "plan": {"schedules"},
    "measure": {"schedules"},
    "models": set(),
    "memory": set(),
    "optim/conversions": {"schedules", "plan"},
    "optim": {"optim/conversions"},
    "scheduler": {"plan"},
    "batching": {"plan"},
    "processes": {"batching"},
    "theory": {"schedules", "plan"},
    "store": {"plan"},
    "progress": {"plan"},
    "testing": {"schedules", "plan"},
    "data": {"theory"},
    "task": {"batching", "measure", "theory"},
    "report": {"schedules", "plan", "theory", "store"},
    "training": {
        "plan", "optim", "scheduler", "batching", "processes", "store", "progress", "task",
    },
    "experiments": {
        "schedules", "plan", "measure", "models", "optim", "scheduler", "batching", "theory",
        "processes", "store", "progress", "data", "task", "training", "memory",
    },
    "integrations": {"plan", "scheduler", "batching"},
    "cli": {"plan", "measure", "theory", "store", "report", "experiments", "memory"},
    "__main__": {"cli"},
}  # fmt: skip


def room_of(module: str) -> str:
    """``batchramp.optim.qhm`` -> ``optim``."""
    parts = module.split(".")[1:]
    path = "/".join(parts)
    return path if path in ALLOWED else (parts[0] if parts else "")


def imported(source: str) -> Iterator[str]:
    """The modules of this package that a source imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("batchramp"))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module == "batchramp":
                names = (alias.name for alias in node.names if alias.name != "__version__")
                yield from (f"batchramp.{name}" for name in names)
            elif node.module and node.module.startswith("batchramp."):
                yield node.module


def wrong_arrows(module: str, source: str) -> list[str]:
    here = room_of(module)
    found = []
    for target in imported(source):
        there = room_of(target)
        if there not in ALLOWED:
            if target != "batchramp":
                found.append(f"{module} -> {target}: no such room")
        elif there != here and there not in ALLOWED[here]:
            found.append(f"{module} -> {target}")
    return found


def modules() -> list[tuple[str, Path]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found.append((".".join(part for part in parts if part != "__init__"), path))
    return found


@pytest.mark.parametrize(("module", "path"), modules(), ids=str)
def test_imports_go_one_way(module: str, path: Path) -> None:
    if module == "batchramp":  # the face: names every room, imports each when first asked for
        return
    assert room_of(module) in ALLOWED, f"{module} is a new room: say here what it may import"
    assert wrong_arrows(module, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("batchramp.plan", "from batchramp.training import fit"),
        ("batchramp.optim.qhm", "def f():\n    from batchramp import plan"),
        ("batchramp.measure.x", "import batchramp.store"),
        ("batchramp.report.page", "from batchramp.training import fit"),
        ("batchramp.plan", "from batchramp.helpers import f"),
    ],
)
def test_a_wrong_arrow_is_seen(module: str, source: str) -> None:
    assert len(wrong_arrows(module, source)) == 1


def test_the_rooms_have_an_order() -> None:
    above: set[str] = set()
    for room, allowed in ALLOWED.items():
        assert allowed <= above, room
        above.add(room)


def test_no_room_is_called_a_drawer() -> None:
    drawers = {"utils", "helpers", "base", "manager", "common", "misc"}
    assert not {path.stem for _, path in modules()} & drawers


def test_the_face_is_lazy() -> None:
    import subprocess
    import sys

    code = (
        "import sys, batchramp; assert 'torch' not in sys.modules; batchramp.Plan; "
        "batchramp.schedules; assert 'torch' not in sys.modules; batchramp.QHM; "
        "assert 'torch' in sys.modules; "
        "assert all(hasattr(batchramp, name) for name in batchramp.__all__)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
