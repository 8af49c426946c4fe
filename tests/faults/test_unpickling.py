"""Nothing is unpickled: by the package's own text, and by files that would act if it were."""

import ast
import gzip
import os
import pickle
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from injected import counted, one_line, train
from test_files import sealed
from test_training import Bomb, Stop, snapshot, stop_after

import batchramp
from batchramp import Plan, data, report, store
from batchramp.experiments import from_file, plan_from_file
from batchramp.theory import Problem

PACKAGE = Path(batchramp.__file__).parent

# Modules whose loading of bytes can call what the bytes name.
UNSAFE_MODULES = {
    "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml",
}  # fmt: skip
# Calls that run or unpickle what they are given: a module's own, and Python's.
UNSAFE_CALLS = {
    "read_pickle", "Unpickler", "broadcast_object_list", "all_gather_object", "gather_object",
    "scatter_object_list", "send_object_list", "recv_object_list", "recv",
}  # fmt: skip
BUILT_IN = {"eval", "exec", "compile", "__import__"}

# (file, what) -> why it is no way in: nothing of it reads a file.
EXCEPTIONS = {
    ("processes.py", "import pickle"): "whether an error can be sent: its own bytes",
    ("processes.py", "pickle.loads"): "whether an error can be sent: its own bytes",
    ("processes.py", "broadcast_object_list"): "between the processes of one user's group",
    ("processes.py", "all_gather_object"): "between the processes of one user's group",
    ("testing.py", "import pickle"): "whether a schedule can be sent: its own bytes",
    ("testing.py", "pickle.loads"): "whether a schedule can be sent: its own bytes",
    ("experiments/runner.py", "recv"): "a pipe between this process and its own child",
}


def unsafe(source: str) -> list[str]:
    """What in a source unpickles or runs what it is given."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            named = [node.module or ""]
        else:
            named = []
        found += [f"import {name}" for name in named if name.split(".")[0] in UNSAFE_MODULES]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        owner, _, name = called.rpartition(".")
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if (
            name in UNSAFE_CALLS
            or called in BUILT_IN
            or (owner in UNSAFE_MODULES and name in ("load", "loads"))
        ):
            found.append(called if owner in UNSAFE_MODULES else name)
        elif called == "torch.load" and given.get("weights_only") != "True":
            found.append("torch.load")
        elif given.get("allow_pickle", "False") != "False" or (
            "weights_only" in given and (given["weights_only"] != "True")
        ):
            found.append(called)
    return found


def test_the_package_unpickles_nothing_but_what_is_named_here() -> None:
    found = {
        (path.relative_to(PACKAGE).as_posix(), what)
        for path in sorted(PACKAGE.rglob("*.py"))
        for what in unsafe(path.read_text(encoding="utf-8"))
    }
    assert found == set(EXCEPTIONS)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "def f():\n    import dill",
        "torch.load(p)", "torch.load(p, weights_only=False)", "torch.load(p, weights_only=given)",
        "numpy.load(p, allow_pickle=True)", "pickle.load(file)", "eval(text)", "exec(text)",
        "distributed.broadcast_object_list(said)", "pandas.read_pickle(p)", "connection.recv()",
    ],
)  # fmt: skip
def test_what_unpickles_is_seen(source: str) -> None:
    assert len(unsafe(source)) == 1
    assert unsafe("torch.load(p, weights_only=True); numpy.load(p); json.loads(t)") == []


# --------------------------------------------------------------------------- files that would act


def bombs(path: Path, folder: Path) -> dict[str, bytes]:
    """Pickles, each of which makes a folder where it is unpickled."""
    bomb = Bomb(path)
    written = {}
    torch.save(bomb, folder / "zip")
    written["torch's zip"] = (folder / "zip").read_bytes()
    torch.save(bomb, folder / "old", _use_new_zipfile_serialization=False)
    written["torch's old format"] = (folder / "old").read_bytes()
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        written[f"pickle {protocol}"] = pickle.dumps(bomb, protocol)
    written["with its checksum"] = sealed({"format": 2, "model": bomb}, folder / "sealed")
    return written


def test_a_malicious_checkpoint_is_refused_unexecuted(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        train(tmp_path / "run", on_epoch=stop_after(1))
    for content in bombs(tmp_path / "exploded", tmp_path).values():
        for name in store.CHECKPOINTS:
            (tmp_path / "run" / name).write_bytes(content)
        before = snapshot(tmp_path / "run")
        with pytest.raises(ValueError, match="checkpoint") as raised:
            train(tmp_path / "run")
        one_line(raised.value)
        assert snapshot(tmp_path / "run") == before
        assert not (tmp_path / "exploded").exists()
        counted["malicious pickle"] += 1


def _run_file(path: Path) -> Any:
    folder = path.parent / "runs" / "a"
    folder.mkdir(parents=True)
    store.create(folder, _identity(), {})
    os.replace(path, folder / "run.json")
    return report.write(folder.parent)


def _rows(path: Path) -> Any:
    folder = path.parent / "runs" / "a"
    folder.mkdir(parents=True)
    store.create(folder, _identity(), {})
    content = path.read_bytes()
    (folder / "epochs.jsonl").write_bytes(content + b"\n" + content + b"\n")
    return store.read(folder)


def _identity() -> Any:
    plan = Plan(epochs=1, batch_size=8)
    named = dict.fromkeys(("task", "model", "label", "panel", "experiment"), "x")
    return store.identity(optimizer=dict, plan=plan, seed=0, **named)


def _gzipped(path: Path) -> Any:
    path.write_bytes(gzip.compress(path.read_bytes()))
    return data.read_idx(path)


READERS: dict[str, Callable[[Path], Any]] = {
    "run file": _run_file,
    "rows": _rows,
    "IDX": data.read_idx,
    "IDX, gzip": _gzipped,
    "CIFAR-10": lambda path: data.read_cifar(path, 10),
    "CIFAR-100": lambda path: data.read_cifar(path, 100, 1),
    "CIFAR-10 folder": lambda path: data.cifar10(_as_folder(path)),
    "experiment file": from_file,
    "plan file": plan_from_file,
    "problem file": Problem.from_toml,
}


def _as_folder(path: Path) -> Path:
    """CIFAR-10 as its Python release has it: pickles, of the binary release's names."""
    folder = path.parent / "cifar"
    folder.mkdir()
    for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
        (folder / name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("reader", READERS.values(), ids=[*READERS])
def test_a_pickle_in_place_of_another_file_is_refused_unexecuted(
    reader: Callable[[Path], Any], tmp_path: Path
) -> None:
    (tmp_path / "made").mkdir()
    for number, content in enumerate(bombs(tmp_path / "exploded", tmp_path / "made").values()):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "file").write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ValueError) as raised:  # noqa: PT011
                reader(folder / "file")
        one_line(raised.value)
        assert not (tmp_path / "exploded").exists()
        counted["malicious pickle"] += 1


def test_the_bombs_would_act(tmp_path: Path) -> None:
    found: Counter[str] = Counter()
    for name, content in bombs(tmp_path / "exploded", tmp_path).items():
        path = tmp_path / "bomb"
        path.write_bytes(content)
        if name.startswith("pickle"):
            pickle.loads(content)
        else:
            torch.load(path, weights_only=False)
        (tmp_path / "exploded").rmdir()
        found[name] += 1
    assert len(found) == 9
