"""Every example does what its first line says."""

import runpy
from pathlib import Path

import pytest

from batchramp.experiments import from_file

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.name)
def test_a_file_gives_runs(path: Path) -> None:
    runs = from_file(path)
    assert runs
    assert {run.experiment for run in runs} == {path.stem}
    assert f"examples/{path.name}" in path.read_text(encoding="utf-8")


def test_there_are_three_files() -> None:
    assert len(list(EXAMPLES.glob("*.toml"))) == 3


def test_qhm_loop(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "qhm_loop.py"))
    lines = capsys.readouterr().out.splitlines()
    epochs = [line for line in lines if line.startswith("epoch ")]
    assert [int(line.split("batch size ")[1].split(",")[0]) for line in epochs] == [
        16, 16, 32, 32, 64, 64, 128, 128,
    ]  # fmt: skip
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in epochs]
    assert losses[-1] < losses[0] < 1.0


def test_adamw_loop(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "adamw_loop.py"))
    epochs = capsys.readouterr().out.splitlines()
    # 6,500 images: OneCycleLR raises when it is stepped more often than it was told
    assert [int(line.split(", ")[1].split()[0]) for line in epochs] == [204, 102, 51, 26, 13]
    assert float(epochs[-1].split("accuracy ")[1].split()[0]) > 70
