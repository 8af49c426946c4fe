"""How many samples it takes to reach a threshold, over the whole range of thresholds (claim 8).

A single threshold can show either order; the paper's appendix A.9 says so itself.
"""

import math
from collections.abc import Callable, Sequence

from batchramp.report.cells import Cell, listed, spread
from batchramp.report.comparisons import (
    Comparison,
    mean,
    opponents,
    other_lr,
    ratio,
    unpaired,
    why_untested,
)
from batchramp.store import Record

__all__ = ["compare_thresholds", "mean_samples_to", "samples_to", "threshold_grid"]


def samples_to(
    record: Record, column: str, thresholds: Sequence[float], rising: bool
) -> list[float]:
    """Samples taken when ``column`` is first at or past each threshold; nan where it never is.

    Counted at the ends of epochs, where the column is measured.

    Args:
        record: a run.
        column: as in a row.
        thresholds: any numbers.
        rising: whether past a threshold is above it.
    """
    found = []
    for threshold in thresholds:
        reached = math.nan
        for row in record.rows:
            value = row.get(column)
            if value is not None and (value >= threshold if rising else value <= threshold):
                reached = float(row["samples"])
                break
        found.append(reached)
    return found


def threshold_grid(
    cells: Sequence[Cell], column: str, rising: bool, points: int = 25
) -> list[float]:
    """Thresholds over all that the finished runs of these cells passed through.

    From the least advanced first epoch to the best value reached; geometric for what falls.
    """
    rows = [r.rows for c in cells for r in c.finished]
    values = [[row[column] for row in run if row.get(column) is not None] for run in rows]
    values = [run for run in values if run]
    if not rising:
        values = [run for run in ([v for v in run if v > 0] for run in values) if run]
    if not values:
        return []
    start = min(run[0] for run in values) if rising else max(run[0] for run in values)
    best = max(map(max, values)) if rising else min(map(min, values))
    if start == best:
        return []
    steps = [i / (points - 1) for i in range(points)]
    if rising:
        return [start + (best - start) * t for t in steps]
    return [start * (best / start) ** t for t in steps]


def mean_samples_to(
    cell: Cell, column: str, thresholds: Sequence[float], rising: bool
) -> list[float]:
    """Mean over the finished seeds; nan where a seed never gets there."""
    runs = [samples_to(r, column, thresholds, rising) for r in cell.finished]
    return [mean(list(at)) for at in zip(*runs, strict=True)] if runs else []


def compare_thresholds(
    panel: str,
    ours: Cell,
    theirs: Cell,
    column: str,
    rising: bool,
    name: str,
    text: Callable[[float], str],
    grid: Sequence[float],
) -> Comparison:
    """Samples to every threshold, paired by seed; positive where ours needs fewer."""
    mine = {r.seed: samples_to(r, column, grid, rising) for r in ours.finished}
    other = {r.seed: samples_to(r, column, grid, rising) for r in theirs.finished}
    d = []
    for seed in sorted(mine.keys() & other.keys()):
        pairs = zip(mine[seed], other[seed], strict=True)
        logs = [math.log(y / x) for x, y in pairs if math.isfinite(x + y)]
        if logs:
            d.append(mean(logs))
    a = mean_samples_to(ours, column, grid, rising)
    b = mean_samples_to(theirs, column, grid, rising)
    # nan, where a seed never gets there, compares as neither.
    fewer = [i for i in range(len(grid)) if a[i] < b[i]]
    more = [i for i in range(len(grid)) if a[i] > b[i]]
    same = sum(x == y for x, y in zip(a, b, strict=True))
    alone = sum(math.isnan(y) and not math.isnan(x) for x, y in zip(a, b, strict=True))
    without = sum(math.isnan(x) and not math.isnan(y) for x, y in zip(a, b, strict=True))
    parts = [f"equally many at {same}"] if same else []
    for where, words in ((more, "more"), (fewer, "fewer")):
        if where:
            parts.insert(0, f"{words} at {len(where)} ({_range(where, grid, text)})")
    sentence = (
        f"{ours.name} needs {listed(parts)} of {len(grid)} thresholds than {theirs.name}"
        if parts
        else f"none of {len(grid)} thresholds is reached by every seed of both "
        f"{ours.name} and {theirs.name}"
    )
    if alone:
        sentence += f"; it alone gets there with every seed at {alone}"
    if without:
        sentence += f"; {theirs.name} alone gets there with every seed at {without}"
    if neither := len(grid) - len(fewer) - len(more) - same - alone - without:
        sentence += f"; at {neither}, neither gets there with every seed"
    if d:
        sentence += f"; samples needed: {spread([-x for x in d], ratio)} times as many"
    untested = why_untested(ours, theirs, []) or unpaired(ours, theirs, len(d))
    if not untested and (fewer or alone) and (more or without):
        untested = "which of them is first depends on the threshold"
    return Comparison(f"{panel}, samples to a {name}", "above", tuple(d), sentence + ".",
                      obstacle=untested, of=opponents(ours, theirs),
                      other_lr=other_lr(ours, theirs))  # fmt: skip


def _range(where: Sequence[int], grid: Sequence[float], text: Callable[[float], str]) -> str:
    """Which thresholds: "between" two if no other lies there, else "among those from"."""
    low, high = text(grid[where[0]]), text(grid[where[-1]])
    if low == high:
        return low
    if where[-1] - where[0] == len(where) - 1:
        return f"between {low} and {high}"
    return f"among those from {low} to {high}"
