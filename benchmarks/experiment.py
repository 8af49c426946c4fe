"""A whole experiment: figure 1's three policies, by this package and by the released loop."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from batchramp import experiments
from batchramp.data import fashion_mini
from batchramp.experiments import Run, run_all
from benchmarks import released
from benchmarks.machine import cores
from benchmarks.timing import Aim, Case, Size, Turn

TITLE = "Whole experiment"
NOTE = """The paper's three batch policies (increasing, small, large) under four lr schedules, MLP
on the 6,500 bundled images, everything measured after every epoch and written: 12 runs a round, a
round a seed. batchramp has as many processes of one thread as there are cores, as `batchramp
reproduce` has with --jobs, or trains together what it can (--vectorise). The released loop is
benchmarks/released.py, one run after the other with two loader workers, torch's threads as they
come."""

POLICIES = ("increasing", "small", "large")
LOOP = "the released loop"
OURS = "batchramp, a process a core"
TOGETHER = "batchramp --vectorise, a process a core"
ALONE = "batchramp, one process"


def runs_of(seed: int, epochs: int | None = None, panels: int = 4) -> list[Run]:
    """The runs of one seed, of all their epochs or of the first few."""
    runs = [run for run in experiments.figure1("quick", [seed]) if run.label in POLICIES]
    kept = list(dict.fromkeys(run.panel for run in runs))[:panels]
    runs = [run for run in runs if run.panel in kept]
    if epochs is None:
        return runs
    return [replace(run, plan=replace(run.plan, epochs=epochs)) for run in runs]


def by_us(runs: Sequence[Run], *, jobs: int, vectorise: bool = False) -> None:
    with tempfile.TemporaryDirectory() as folder:
        outcome = run_all(runs, Path(folder), jobs=jobs, vectorise=vectorise)
    # A run that ended early would have cost less than the other side's.
    assert set(outcome.statuses) == {"finished"}, outcome


def by_the_released_loop(runs: Sequence[Run]) -> None:
    torch.set_num_threads(cores())
    train, _, test = fashion_mini()
    for run in runs:
        rows = released.train(run.plan, train, test, seed=run.seed)
        assert len(rows) == run.plan.epochs


def cases(size: Size) -> Iterator[Case]:
    rounds, epochs, panels = {"tiny": (1, 1, 1), "quick": (1, 4, 2), "full": (3, None, 4)}[size]
    seeds = range(rounds)
    works: dict[str, Callable[[Sequence[Run]], None]] = {
        OURS: lambda runs: by_us(runs, jobs=cores()),
        TOGETHER: lambda runs: by_us(runs, jobs=cores(), vectorise=True),
        ALONE: lambda runs: by_us(runs, jobs=1),
        LOOP: by_the_released_loop,
    }
    if size == "tiny":
        del works[ALONE]
    count = len(runs_of(0, epochs, panels))
    length = "30 epochs" if epochs is None else f"{epochs} epochs"
    yield Case(
        name=f"{count * rounds} runs of {length}, {count} a round",
        per="run",
        base=OURS,
        sides={
            name: _turn(work, [runs_of(seed, epochs, panels) for seed in seeds])
            for name, work in works.items()
        },
        rounds=rounds,
        warm_up=False,
        aims=[Aim(LOOP, OURS, least=3.0), Aim(LOOP, TOGETHER, least=3.0)],
    )


def _turn(work: Callable[[Sequence[Run]], None], runs_by_round: Sequence[Sequence[Run]]) -> Turn:
    rounds = cycle(runs_by_round)

    def turn() -> float:
        runs = next(rounds)
        begin = time.perf_counter()
        work(runs)
        return (time.perf_counter() - begin) / len(runs)

    return turn
