"""Measured norms held against the theory's bound, where a task's constants are known."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import final

import numpy as np

from batchramp.plan import HYPERPARAMETERS, Plan
from batchramp.report.cells import Cell, number
from batchramp.theory import Bound, Curve, Problem, best_bound, bound_curve

__all__ = ["Compared", "compared"]

Points = tuple[np.ndarray, np.ndarray]


@final
@dataclass(frozen=True)
class Compared:
    """A cell's measurement and its bound.

    Attributes:
        cell: its finished runs are the seeds.
        measured: after every epoch, the least so far of the seeds' mean of ||∇f||².
        curve: the best bound after every epoch.
        bound: that of the whole Plan.
    """

    cell: Cell
    measured: np.ndarray
    curve: Curve
    bound: Bound

    def points(self, axis: str) -> tuple[Points, Points]:
        """x and y of the measurement and of the bound; ``axis``: epochs, steps or samples."""
        x = np.asarray({name: getattr(self.curve, name) for name in _AXES}[axis], dtype=np.float64)
        finite = np.isfinite(self.curve.values)
        return (
            (np.append(0, x), self.measured),
            (x[finite], self.curve.values[finite]),
        )

    @property
    def sentence(self) -> str:
        """The end in numbers."""
        least = float(self.measured[-1])
        vacuous = f"; {self.bound.news}" if self.bound.news else ""
        return (
            f"{self.cell.name}: measured {number(least)}, bound {number(self.bound.value)} "
            f"({self.bound.source}), {number(self.bound.value / least)} times as much{vacuous}"
        )


_AXES = ("epochs", "steps", "samples")


def compared(cells: Sequence[Cell]) -> list[Compared]:
    """The cells whose task has known constants and whose Plan and optimizer the theory reads."""
    found = []
    for cell in cells:
        if not cell.finished:
            continue
        first = cell.finished[0]
        plan = first.plan
        readable = all(getattr(plan, name) is not None for name in HYPERPARAMETERS)
        if first.problem is None or first.n is None or first.optimizer != "QHM" or not readable:
            continue
        squares = [
            [first.initial.get("full_gradient_norm"), *(r["full_gradient_norm"] for r in run.rows)]
            for run in cell.finished
        ]
        if any(value is None for run in squares for value in run):
            continue
        problem = Problem.from_dict(first.problem)
        curve, bound = _bound(plan, problem, first.n)
        means = np.mean(np.square(np.array(squares, dtype=np.float64)), axis=0)
        if len(curve.steps) + 1 != len(means):
            continue  # so many epochs that the curve shows some of them
        found.append(Compared(cell, np.minimum.accumulate(means), curve, bound))
    return found


@lru_cache(maxsize=64)
def _bound(plan: Plan, problem: Problem, n: int) -> tuple[Curve, Bound]:
    return bound_curve(plan, problem, n), best_bound(plan, problem, n)
