"""The examples in other people's loops: two processes print what one does."""

import re
import socket
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from batchramp import Plan
from batchramp.integrations import lightning, transformers

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = {
    "adamw_lightning.py": ("lightning", ["{file}", "2"]),
    "adamw_transformers.py": (
        "transformers",
        ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port={port}", "{file}"],
    ),
    "adamw_accelerate.py": (
        "accelerate",
        ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port={port}", "{file}"],
    ),
}  # fmt: skip


def printed(arguments: list[str], file: Path, processes: int) -> list[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = [each.format(file=file, port=port) for each in arguments]
    done = subprocess.run(
        [sys.executable, *given],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"processes: {processes}\n" in done.stdout
    return [line for line in done.stdout.splitlines() if line.startswith("epoch ")]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SCRIPTS)
def test_two_processes_print_what_one_does(name: str) -> None:
    framework, two = SCRIPTS[name]
    pytest.importorskip(framework)
    alone = printed(["{file}"], EXAMPLES / name, 1)
    assert len(alone) in {4, 5}
    sizes = [int(re.findall(r"batch size (\d+)", line)[0]) for line in alone]
    assert all(2 * a == b for a, b in pairwise(sizes))
    # Sums in another order may change the last digit of a loss, or one image of the 1,500.
    near = 0.0011 if "loss" in alone[0] else 0.11  # printed to 0.1 %
    for one, other in zip(alone, printed(two, EXAMPLES / name, 2), strict=True):
        *ones, last = (float(each) for each in re.findall(r"\d+\.?\d*", one))
        *others, final = (float(each) for each in re.findall(r"\d+\.?\d*", other))
        assert ones == others
        assert last == pytest.approx(final, abs=near)


def test_the_package_does_not_import_frameworks() -> None:
    code = (
        "import sys, batchramp, batchramp.batching, batchramp.integrations, batchramp.training; "
        "assert not {'lightning', 'transformers', 'accelerate', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(lightning.Callback is not None, reason="Lightning is there")
def test_what_to_install_for_lightning() -> None:
    with pytest.raises(ImportError, match=r"pip install 'batchramp\[lightning\]'"):
        lightning.PlanCallback(Plan(epochs=1, batch_size=1))


@pytest.mark.skipif(transformers.Trainer is not None, reason="transformers is there")
def test_what_to_install_for_transformers() -> None:
    with pytest.raises(ImportError, match=r"pip install\s+'batchramp\[transformers\]'"):
        transformers.PlanTrainer(plan=Plan(epochs=1, batch_size=1))
