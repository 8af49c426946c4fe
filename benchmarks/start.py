"""What a start costs: ``batchramp --help``, ``import batchramp``, and a report of 500 runs."""

import math
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from batchramp import experiments, store
from batchramp.experiments import Run, tasks
from batchramp.optim import QHM
from benchmarks.timing import Aim, Case, Size, Turn

TITLE = "Start, and a report"
NOTE = """Fresh processes that take turns. "Every public name" loads torch, which is what takes the
time. The report is of figure 1's runs at quick scale, 24 of each of 21 seeds, as far as 500, with
rows made up for the purpose: 30 a run."""

RUNS = 500
REPORT = f"batchramp report of {RUNS} runs"
EVERYTHING = "import batchramp; [getattr(batchramp, name) for name in batchramp.__all__]"
COMMANDS = {
    "python -c pass": ("-c", "pass"),
    "import torch": ("-c", "import torch"),
    "batchramp: import": ("-c", "import batchramp"),
    "batchramp: import and every public name": ("-c", EVERYTHING),
    "batchramp --help": ("-m", "batchramp.cli", "--help"),
}


def cases(size: Size) -> Iterator[Case]:
    rounds, count = {"tiny": (1, 4), "quick": (3, RUNS), "full": (11, RUNS)}[size]
    yield Case(
        name="fresh processes",
        per="start",
        base="import torch",
        sides={name: _turn(command) for name, command in COMMANDS.items()},
        rounds=rounds,
    )
    with tempfile.TemporaryDirectory() as folder:
        write_runs(Path(folder), count)
        report = ("-m", "batchramp.cli", "report", folder)
        name = REPORT if count == RUNS else f"batchramp report of {count} runs"
        yield Case(
            name=name,
            per="report",
            base=name,
            sides={name: _turn(report)},
            rounds=min(rounds, 3),
            warm_up=False,
            aims=[Aim(name, most=20.0)],
        )


def write_runs(folder: Path, count: int) -> None:
    """Folders of finished runs, with rows that no training has made."""
    seeds = range(math.ceil(count / len(experiments.figure1("quick", [0]))))
    for run in experiments.figure1("quick", seeds)[:count]:
        write_run(folder / run.folder, run)


def write_run(folder: Path, run: Run) -> None:
    n = tasks.training_samples(run.task)
    names = {name: getattr(run, name) for name in ("label", "panel", "experiment", "note")}
    identity = store.identity(
        task=run.task, model=run.model, optimizer=QHM, plan=run.plan, seed=run.seed, **names
    )
    draws = random.Random(f"{run.label} {run.panel} {run.seed}")
    initial = _measured(1.0)
    store.create(folder, identity, initial, n=n)
    rows: list[Mapping[str, Any]] = [initial]
    steps = 0
    for epoch in range(run.plan.length):
        steps += math.ceil(n / run.plan.at(epoch).batch_size)
        values = run.plan.at(epoch)
        measured = _measured(0.9 ** (epoch + 1) * math.exp(0.05 * draws.gauss(0, 1)))
        least = min([*rows, measured], key=lambda row: row["full_gradient_norm"])
        row = {
            "epoch": epoch,
            "steps": steps,
            "samples": n * (epoch + 1),
            "seconds": 0.001 * steps,
            **{name: getattr(values, name) for name in ("batch_size", "lr", "beta", "gamma")},
            **measured,
            "min_full_gradient_norm": least["full_gradient_norm"],
            "loss_at_min_norm": least["train_loss"],
        }
        store.append_row(folder, row)
        rows.append(row)
    store.finish(folder, "finished")


def _measured(share: float) -> dict[str, Any]:
    """What could be measured where so much of the loss is left."""
    return {
        **{f"{part}_loss": 2.3 * share for part in ("train", "validation", "test")},
        **{f"{part}_accuracy": 90 - 80 * share for part in ("train", "validation", "test")},
        "at_chance": False,
        "full_gradient_norm": share,
    }


def _turn(arguments: tuple[str, ...]) -> Turn:
    return partial(_seconds, [sys.executable, *arguments])


def _seconds(command: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin
