"""Runs trained together against each alone: whole runs with all that they measure and write."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from batchramp import Plan, Task, fit
from batchramp import schedules as s
from batchramp.experiments import Run, run_all, tasks
from batchramp.experiments.vectorised import Member, together, train_together
from benchmarks.machine import cores
from benchmarks.timing import Aim, Case, Size, Turn

TITLE = "Runs trained together"
NOTE = """Three seeds together against one seed by fit, MLP on the bundled images at batch size 8,
each with its measuring. Then the grid of appendix A.10: cosine lr in {0.05, 0.1, 0.25, 0.5} x beta
in {0.3, 0.5, 0.9} x gamma in {0.2, 0.4, 0.7}, batch 32 doubling to 512 every 3 epochs, 15 epochs:
point by point and together, as `batchramp reproduce figure8` does either. Its floor is what the
multiplications of a lone point take at the best rate at which this machine multiplies matrices of
that model: training together does the same ones, so nothing can be below it."""

SEEDS = (0, 1, 2)
ONE, THREE = "fit, one seed", "batchramp, three seeds together"
ALONE, TOGETHER = "batchramp, point by point", "batchramp --vectorise"
FLOOR = "the multiplications alone"
# By torch.profiler, three seeds, one thread: 0.18 ms of a step's 0.31, 135 ms of a measuring's 160.
MOSTLY_PRODUCTS = """with one thread the multiplications of three seeds and their updates take 1.4
times a lone run, before any call is made"""
NOTHING_LESS = """training together does the multiplications of all points, and these alone take
more than half of a lone point: see its floor"""


def plan_of_seeds(epochs: int) -> Plan:
    every = max(1, epochs // 10)
    return Plan(
        epochs=epochs,
        batch_size=8,
        lr=s.Cosine(0.1),
        beta=_decayed(0.9, every),
        gamma=_decayed(0.7, every),
    )


def grid() -> list[Run]:
    return [
        Run(
            label=f"lr {lr} beta {beta} gamma {gamma}",
            plan=Plan(
                epochs=15,
                batch_size=s.Exponential(32, factor=2, every=3),
                lr=s.Cosine(lr),
                beta=_decayed(beta, 3),
                gamma=_decayed(gamma, 3),
            ),
            task="fashion-mini",
            seed=0,
        )
        for lr, beta, gamma in product((0.05, 0.1, 0.25, 0.5), (0.3, 0.5, 0.9), (0.2, 0.4, 0.7))
    ]


def _decayed(start: float, every: int) -> s.Schedule:
    return s.StepDecay(start, factor=0.5, every=every)


def cases(size: Size) -> Iterator[Case]:
    task = tasks.load("fashion-mini", "mlp")
    rounds, epochs = {"tiny": (1, 1), "quick": (3, 2), "full": (5, 6)}[size]
    plan = plan_of_seeds(epochs)
    for threads in sorted({1, cores()}):
        yield Case(
            name=f"{epochs} epochs of batch size 8, {threads} thread{'s' if threads > 1 else ''}",
            per="program",
            base=ONE,
            sides={
                ONE: _turn(lambda: fit(task, plan, seed=0), threads),
                THREE: _turn(
                    lambda: train_together(task, [Member(plan, seed) for seed in SEEDS]), threads
                ),
            },
            rounds=rounds,
            aims=[Aim(THREE, ONE, most=1.7, cause=MOSTLY_PRODUCTS)],
        )
    if size == "tiny":
        return
    jobs = cores()
    runs = grid() if size == "full" else grid()[:8]
    yield Case(
        name=f"{len(runs)} points of the grid, {jobs} processes, in groups of "
        + ", ".join(str(len(group)) for group in together(runs)),
        per="point",
        base=ALONE,
        sides={
            ALONE: _turn(lambda: _run_all(runs, jobs, False), 1, len(runs)),
            TOGETHER: _turn(lambda: _run_all(runs, jobs, True), 1, len(runs)),
        },
        rounds=1 if size == "quick" else 3,
        aims=[Aim(TOGETHER, ALONE, most=0.25, cause=NOTHING_LESS)],
        warm_up=False,
    )
    point = runs[0].plan
    yield Case(
        name="the floor of a point, one process of one thread",
        per="point",
        base="fit",
        sides={
            "fit": _turn(lambda: fit(task, point, seed=0), 1),
            FLOOR: lambda: least(task, point),
        },
        rounds=rounds,
    )


def _run_all(runs: Sequence[Run], jobs: int, vectorise: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        outcome = run_all(runs, Path(folder), jobs=jobs, vectorise=vectorise)
    assert set(outcome.statuses) <= {"finished", "diverged", "collapsed"}, outcome


def _turn(work: Callable[[], Any], threads: int, count: int = 1) -> Turn:
    def turn() -> float:
        torch.set_num_threads(threads)
        begin = time.perf_counter()
        work()
        return (time.perf_counter() - begin) / count

    return turn


def least(task: Task, plan: Plan) -> float:
    """Seconds that the multiplications of a run take at the best rate seen."""
    with FlopCounterMode(display=False) as counter:
        fit(task, plan, seed=0)
    return counter.get_total_flops() / max(rate(size) for size in (128, 512, 2048))


def rate(size: int) -> float:
    """Operations a second of one thread, at the shapes of the MLP's first layer."""
    torch.set_num_threads(1)
    inputs, weights = torch.randn(size, 784), torch.randn(128, 784)
    times = []
    for _ in range(200):
        started = time.perf_counter()
        torch.mm(inputs, weights.t())
        times.append(time.perf_counter() - started)
    return 2 * size * 784 * 128 / statistics.median(times)
