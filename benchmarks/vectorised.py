"""Runs trained together against each alone: whole runs with all that they measure and write.

(a) Three seeds together against one seed by `fit`, MLP on fashion-mini at batch size 8.
(b) The grid of appendix A.10: cosine lr in {0.05, 0.1, 0.25, 0.5} x beta in {0.3, 0.5, 0.9} x gamma
in {0.2, 0.4, 0.7}, batch size 32 doubling to 512 every 3 epochs, 15 epochs: in the groups that
`together` makes against point by point, a process each as `run_all` starts them.

Each takes turns in one process, (b) with processes of its own; figures are medians of the ratios.
Processor time is that of this process alone, where what else the machine does weighs less.

Beside (b) stands its floor: the share of a lone point's time that its multiplications alone take,
at the best rate at which this machine multiplies matrices of such a model. Training together does
the same multiplications, so that no ratio can be below it.

    python benchmarks/vectorised.py [--quick] [--json FILE]
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch.utils.flop_counter import FlopCounterMode

from batchramp import Plan, fit
from batchramp import schedules as s
from batchramp.experiments import Run, run_all, tasks
from batchramp.experiments.vectorised import Member, together, train_together

SEEDS = (0, 1, 2)


def decayed(start: float, every: int) -> s.Schedule:
    return s.StepDecay(start, factor=0.5, every=every)


def plan_of_seeds(epochs: int) -> Plan:
    every = max(1, epochs // 10)
    return Plan(
        epochs=epochs,
        batch_size=8,
        lr=s.Cosine(0.1),
        beta=decayed(0.9, every),
        gamma=decayed(0.7, every),
    )


def grid() -> list[Run]:
    return [
        Run(
            label=f"lr {lr} beta {beta} gamma {gamma}",
            plan=Plan(
                epochs=15,
                batch_size=s.Exponential(32, factor=2, every=3),
                lr=s.Cosine(lr),
                beta=decayed(beta, 3),
                gamma=decayed(gamma, 3),
            ),
            task="fashion-mini",
            seed=0,
        )
        for lr, beta, gamma in product((0.05, 0.1, 0.25, 0.5), (0.3, 0.5, 0.9), (0.2, 0.4, 0.7))
    ]


def timed(work: Callable[[], Any]) -> dict[str, float]:
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}


def seeds_together(epochs: int, rounds: int) -> dict[str, float]:
    """Medians of the ratios of (a): the whole run, and its steps alone."""
    task, plan = tasks.load("fashion-mini", "mlp"), plan_of_seeds(epochs)
    found: dict[str, list[float]] = {"wall": [], "processor": [], "steps": []}
    for turn in range(rounds + 1):
        rows: list[dict[str, Any]] = []
        own = timed(lambda: fit(task, plan, seed=0, on_epoch=rows.append))  # noqa: B023
        lone = rows[-1]["seconds"]
        members = [Member(plan, seed) for seed in SEEDS]
        ours = timed(lambda: train_together(task, members, on_row=lambda _, row: rows.append(row)))  # noqa: B023
        if turn == 0:  # to warm up
            continue
        for name in ("wall", "processor"):
            found[name].append(ours[name] / own[name])
        found["steps"].append(len(SEEDS) * rows[-1]["seconds"] / lone)
    return {name: statistics.median(ratios) for name, ratios in found.items()}


def train_group(runs: Sequence[Run], out: Path) -> None:
    """What a process does with a group."""
    torch.set_num_threads(1)
    members = [Member(run.plan, run.seed, out / run.folder, run.label) for run in runs]
    statuses = train_together(tasks.load(runs[0].task, runs[0].model), members)
    assert set(statuses) <= {"finished", "diverged", "collapsed"}, statuses


def in_processes(groups: list[list[Run]], out: Path, jobs: int) -> None:
    context = get_context("forkserver")
    context.set_forkserver_preload(["batchramp.experiments.vectorised"])
    with context.Pool(jobs) as pool:
        pool.starmap(train_group, [(group, out) for group in groups], chunksize=1)


def grid_together(jobs: int, rounds: int) -> dict[str, float]:
    """Medians of (b): seconds of each, and their ratio."""
    runs = grid()
    found: dict[str, list[float]] = {"alone": [], "together": [], "ratio": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder)
            alone = timed(lambda: run_all(runs, out / "alone", jobs=jobs))["wall"]  # noqa: B023
            groups = together(runs)
            ours = timed(lambda: in_processes(groups, out / "together", jobs))["wall"]  # noqa: B023
        for name, value in (("alone", alone), ("together", ours), ("ratio", ours / alone)):
            found[name].append(value)
    return {name: statistics.median(values) for name, values in found.items()}


def machine() -> dict[str, Any]:
    return {
        "processor": platform.processor() or platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count() or 0,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def gemm(size: int) -> float:
    """GFLOP/s of one thread at the shapes of the MLP's first layer and ``size`` samples."""
    inputs, weights = torch.randn(size, 784), torch.randn(128, 784)
    times = []
    for _ in range(200):
        started = time.perf_counter()
        torch.mm(inputs, weights.t())
        times.append(time.perf_counter() - started)
    return 2 * size * 784 * 128 / statistics.median(times) / 1e9


def floor() -> dict[str, float]:
    """A lone point of (b): its seconds, the least for its multiplications, and their ratio."""
    point, task = grid()[0], tasks.load("fashion-mini", "mlp")
    with FlopCounterMode(display=False) as counter:
        fit(task, point.plan, seed=0)
    lone = statistics.median(timed(lambda: fit(task, point.plan, seed=0))["wall"] for _ in range(5))
    least = counter.get_total_flops() / max(gemm(size) for size in (128, 512, 2048)) / 1e9
    return {"GFLOP": counter.get_total_flops() / 1e9, "lone": lone, "least": least,
            "floor": least / lone}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round, fewer epochs: noisier")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to FILE")
    arguments = parser.parse_args()
    epochs, rounds = (3, 1) if arguments.quick else (6, 5)

    about = machine()
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    results: dict[str, Any] = {"machine": about}
    torch.set_num_threads(1)
    results["gemm"] = {size: gemm(size) for size in (8, 32, 128, 512)}
    print("gemm, GFLOP/s: " + ", ".join(f"b={b} {v:.0f}" for b, v in results["gemm"].items()))
    for threads in (1, 2):
        torch.set_num_threads(threads)
        ratios = results[f"seeds, {threads} threads"] = seeds_together(epochs, rounds)
        said = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
        print(f"3 seeds together over 1 alone, threads {threads}: {said}", flush=True)
    torch.set_num_threads(1)
    results["floor"] = floor()
    print(
        "a point: " + ", ".join(f"{name} {value:.3g}" for name, value in results["floor"].items())
    )
    print("A.10 grid in groups of " + ", ".join(str(len(group)) for group in together(grid())))
    for jobs in (1, 2):
        figures = results[f"grid, {jobs} jobs"] = grid_together(jobs, 1 if rounds == 1 else 3)
        said = ", ".join(f"{name} {value:.3g}" for name, value in figures.items())
        print(f"36 points, jobs {jobs}: {said}", flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
