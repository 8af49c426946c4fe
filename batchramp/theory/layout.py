"""A Plan as the theorems read it: runs of steps with the same lr, beta, gamma and batch size."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, final

import numpy as np
from numpy.typing import NDArray

from batchramp.plan import HYPERPARAMETERS, Plan, round_batch_size
from batchramp.schedules import as_count

__all__ = ["Batches", "Segments", "epoch_ends", "segments"]

Batches = Literal["scheduled", "true"]

# More cannot be summed in reasonable time, as of an lr that is new at each of 10^12 steps.
_MOST_SEGMENTS = 2_000_000
_MOST_ENDS = 2_000

# (first tick, ticks a step, steps, lr, beta, gamma, batch size)
_Row = tuple[int, float, int, float, float, float, int]


@final
@dataclass(frozen=True, eq=False)
class Segments:
    """Runs of like steps, in order; all arrays have the shape ``[segments]``.

    Attributes:
        tick: the Plan's tick at the first step.
        pace: ticks a step.
        count: steps, as float64 (exact up to 2^53).
        lr, beta, gamma, batch_size: what they have, as float64.
    """

    tick: NDArray[np.int64]
    pace: NDArray[np.float64]
    count: NDArray[np.float64]
    lr: NDArray[np.float64]
    beta: NDArray[np.float64]
    gamma: NDArray[np.float64]
    batch_size: NDArray[np.float64]

    @property
    def total_steps(self) -> int:
        """K of the whole Plan."""
        return int(self.count.sum())

    def split(self, steps: Sequence[int] | NDArray[np.int64]) -> "Segments":
        """The first ``steps[-1]`` steps, with a segment's end at each of ``steps`` (ascending)."""
        last = np.cumsum(self.count)
        cuts = np.asarray(steps, dtype=np.float64)
        ends = np.union1d(last, cuts)
        ends = ends[ends <= cuts[-1]]
        count = np.diff(ends, prepend=0.0)
        of = np.searchsorted(last, ends)
        skipped = ends - count - (last - self.count)[of]
        return Segments(
            self.tick_at(of, skipped),
            self.pace[of],
            count,
            *(a[of] for a in (self.lr, self.beta, self.gamma, self.batch_size)),
        )

    def tick_at(
        self, of: NDArray[np.int64] | int, step: NDArray[np.float64] | float
    ) -> NDArray[np.int64]:
        """The tick at a step inside a segment, from 0."""
        return self.tick[of] + np.floor(step * self.pace[of] + 1e-9).astype(np.int64)


def segments(plan: Plan, n: int, batches: Batches = "scheduled") -> Segments:
    """The steps of ``plan`` over ``n`` samples.

    Args:
        plan: schedules lr, beta, gamma and batch size.
        n: samples, at least 1.
        batches: "scheduled", as the paper reads it: each of the ⌈n/b_m⌉ steps of epoch m has b_m
            samples. "true": what the loader yields, whose last batch of an epoch may be shorter,
            and no batch is larger than n.

    Raises:
        ValueError: the Plan leaves lr, beta or gamma to the optimizer, or has too many changes.
    """
    for name in HYPERPARAMETERS:
        if getattr(plan, name) is None:
            zero = "" if name == "lr" else f"; plain SGD has {name}=0"
            raise ValueError(
                f"{name} must be in the plan for the theory to read it, got None{zero}"
            )
    if batches not in ("scheduled", "true"):
        raise ValueError(f"batches must be 'scheduled' or 'true', got {batches!r}")
    found = _segments(plan, as_count(n, "n"), batches == "true")
    if isinstance(found, str):
        raise ValueError(found)
    return found


@lru_cache(maxsize=32)
def _segments(plan: Plan, n: int, true: bool) -> Segments | str:
    """The segments, or why there are none: it takes seconds to find that out too."""
    in_epochs = plan.unit == "epochs"
    rows: list[_Row] = []
    for row in _by_epoch(plan, n, true) if in_epochs else _by_batch(plan, n, true):
        if len(rows) == _MOST_SEGMENTS:
            return (
                f"plan must have at most {_MOST_SEGMENTS:,} runs of like steps to be summed, got "
                f"{plan!r}: let the schedules change by epoch"
            )
        rows.append(row)
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    tick, values = columns[0].astype(np.int64), [c.astype(np.float64) for c in columns[1:]]
    for column in (tick, *values):  # kept for the next call
        column.setflags(write=False)
    return Segments(tick, *values)


def _by_epoch(plan: Plan, n: int, true: bool) -> Iterator[_Row]:
    """Of a Plan in epochs: a row for each run of epochs in which nothing changes."""
    for start, stop, lr, beta, gamma, real in _runs(plan, plan.length):
        size = round_batch_size(real)
        full, rest = divmod(n, size)
        if not true or not rest:
            steps = full + bool(rest)
            yield start, 1 / steps, (stop - start) * steps, lr, beta, gamma, size
            continue
        for epoch in range(start, stop):
            if full:
                yield epoch, 0.0, full, lr, beta, gamma, size
            yield epoch, 0.0, 1, lr, beta, gamma, rest


def _by_batch(plan: Plan, n: int, true: bool) -> Iterator[_Row]:
    """Of a Plan in steps or samples, whose values may change inside an epoch."""
    values = _Cursor(plan)
    tick = 0
    for times, lap in plan.laps(n):
        length = sum(count * plan.tick(epoch=0, step=1, samples=size) for size, count in lap)
        steps = sum(count for _, count in lap)
        left = times
        while left:
            lr, beta, gamma, size, change = values.at(tick)
            # Epochs without any change are one run, unless their last batches count as short.
            whole = min(left, (change - tick) // length)
            if whole and (not true or len(lap) == 1):
                taken = lap[0][0] if true else size
                yield tick, length / steps, whole * steps, lr, beta, gamma, taken
                tick += whole * length
                left -= whole
                continue
            left -= 1
            for taken, count in lap:
                width = plan.tick(epoch=0, step=1, samples=taken)
                stop = tick + count * width
                while tick < stop:
                    lr, beta, gamma, size, change = values.at(tick)
                    # The batch that starts last before a change still has the old values.
                    here = -((tick - min(change, stop)) // width)
                    yield tick, width, here, lr, beta, gamma, taken if true else size
                    tick += here * width


class _Cursor:
    """The values at ascending ticks, each schedule called only where it may have changed."""

    def __init__(self, plan: Plan) -> None:
        self.runs = _runs(plan, plan.length)
        self.run = next(self.runs)

    def at(self, tick: int) -> tuple[float, float, float, int, int]:
        while self.run[1] <= tick:
            self.run = next(self.runs)
        _, stop, lr, beta, gamma, size = self.run
        return lr, beta, gamma, round_batch_size(size), stop


def _runs(plan: Plan, horizon: int) -> Iterator[tuple[int, int, float, float, float, float]]:
    """(start, stop, lr, beta, gamma, batch size) of the runs of ticks in which nothing changes."""
    schedules = [plan.lr, plan.beta, plan.gamma, plan.batch_size]
    values, changes = [0.0] * 4, [0] * 4
    tick = 0
    while tick < horizon:
        for i, schedule in enumerate(schedules):
            if changes[i] <= tick:
                assert schedule is not None
                values[i] = schedule(tick, horizon)
                changes[i] = max(schedule.next_change(tick, horizon), tick + 1)
        stop = min(*changes, horizon)
        yield tick, stop, values[0], values[1], values[2], values[3]
        tick = stop


def epoch_ends(plan: Plan, n: int) -> tuple[NDArray[np.int64], ...]:
    """Epochs 1, 2, ..., and steps and samples taken by the end of each, by the loader's count.

    Of very many epochs, some, evenly spaced, and the last.
    """
    laps = plan.laps(n)
    times = np.array([times for times, _ in laps])
    steps = np.array([sum(count for _, count in lap) for _, lap in laps])
    samples = np.array([sum(size * count for size, count in lap) for _, lap in laps])
    before = np.cumsum(times) - times
    epochs = int(times.sum())
    shown = np.unique(np.linspace(1, epochs, min(epochs, _MOST_ENDS)).astype(np.int64))
    of = np.searchsorted(before, shown - 1, side="right") - 1
    within = shown - before[of]

    def total(each: NDArray[np.int64]) -> NDArray[np.int64]:
        return (np.cumsum(times * each) - times * each)[of] + within * each[of]

    return shown, total(steps), total(samples)
