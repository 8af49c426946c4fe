"""The same runs leave the same files, to the last bit, but for the times they took."""

from pathlib import Path
from typing import Any

import pytest
import torch
from injected import train
from test_training import same, without_seconds

from batchramp import Plan, store
from batchramp import schedules as s
from batchramp.experiments import Run, run_all

PLAN = Plan(epochs=3, batch_size=s.Exponential(64, factor=2, every=1), lr=0.05, beta=0.9, gamma=0.7)


def timeless(folder: Path) -> dict[str, Any]:
    """All that a folder of runs holds, times and the page that shows them aside."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.name == "epochs.jsonl":
            found[name] = without_seconds(store.read(path.parent).rows)
        elif path.suffix == ".pt":
            found[name] = torch.load(path, weights_only=True)
            found[name]["progress"].pop("seconds")
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


def test_two_trainings_leave_the_same_files(tmp_path: Path) -> None:
    for others, name in enumerate(("a", "b")):
        torch.manual_seed(others)  # what torch would draw otherwise is not what a run draws
        train(tmp_path / name)
    found = timeless(tmp_path / "a")
    assert set(found) == {
        "checkpoint.pt", "checkpoint.previous.pt", "epochs.jsonl", "lock", "run.json",
    }  # fmt: skip
    assert same(found, timeless(tmp_path / "b"))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("task", ["quadratic", "fashion-mini"])
def test_the_number_of_jobs_changes_no_file(task: str, tmp_path: Path) -> None:
    runs = [
        Run(label, plan, task, seed, optimizer=optimizer)
        for label, plan, optimizer in (
            ("qhm", PLAN, "QHM"),
            ("adamw", Plan(epochs=2, batch_size=64, lr=0.01), "AdamW"),
        )
        for seed in (0, 1)
    ]
    for jobs in (1, 2, 3):
        # Handed out in another order as well.
        given = runs[::-1] if jobs == 2 else runs
        assert run_all(given, tmp_path / str(jobs), jobs=jobs).statuses == ("finished",) * 4
    one = timeless(tmp_path / "1")
    assert len(one) == 4 * 5
    for jobs in (2, 3):
        assert same(one, timeless(tmp_path / str(jobs))), jobs
