"""What the page's drawings show: a line a label, the mean and the range over its seeds.

Values alone are put together here; `batchramp.report.drawing` writes them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from batchramp.report.cells import Cell, number, percent, state
from batchramp.report.drawing import Axis, Dot, Level, Line, Mark, Plot, Style
from batchramp.store import Record

__all__ = [
    "AXES",
    "METRICS",
    "Metric",
    "draw",
    "draw_bounds",
    "draw_thresholds",
    "first_past",
    "mean_curve",
    "styles",
]


@final
@dataclass(frozen=True)
class Metric:
    """A column that is drawn.

    Attributes:
        column: in a row.
        initial: the key of its value before the first step, in ``Record.initial``.
        title: for people.
        axis: the words at its axis.
        log: whether its axis is logarithmic.
    """

    column: str
    initial: str
    title: str
    axis: str
    log: bool

    def text(self, value: float) -> str:
        """A value in words."""
        return number(value) if self.log else percent(value)


METRICS = (
    Metric("test_accuracy", "test_accuracy", "Test accuracy", "test accuracy (%)", False),
    Metric(
        "min_full_gradient_norm",
        "full_gradient_norm",
        "Running minimum of the full-gradient norm",
        "min full-gradient norm",
        True,
    ),
    Metric("train_loss", "train_loss", "Train loss", "train loss", True),
    Metric("max_loss", "max_loss", "Largest loss of a single sample", "largest loss", True),
    Metric(
        "max_gradient_norm",
        "max_gradient_norm",
        "Largest gradient norm of a single sample",
        "largest gradient norm",
        True,
    ),
    Metric(
        "proposition9",
        "proposition9",
        "Proposition 9 with secants of the run",
        "√(2 L max f_i)",
        True,
    ),
)

# What the curves run over: the words for the axis, by the name of the column.
AXES = {
    "epochs": "epochs",
    "steps": "steps (batches)",
    "samples": "samples (single-sample gradients)",
    "seconds": "seconds of training, measured",
}

# Colours that the colour-blind tell apart (Okabe and Ito 2008); dashes, for print in grey.
_ROLE_STYLES = {
    "increasing": Style("#d55e00", "", 2.2),
    "small": Style("#0072b2", ""),
    "equal-steps": Style("#cc79a7", "5 1.5"),
    "best-constant": Style("#009e73", "3 1 1 1"),
    "large": Style("#56b4e9", ""),
    "lr-decay-twin": Style("#222222", "1.5 1"),
}
_COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#222222", "#e69f00")
_DASHES = ("", "5 1.5", "1.5 1", "3 1 1 1", "7 2 1 2")
_MOST_POINTS = 120
_MOST_MARKS = 15  # where a batch grows every epoch they would be a wall

Points = tuple[np.ndarray, np.ndarray]


def styles(lines: Sequence[str]) -> dict[str, Style]:
    """A style for every line: the roles' own, and for others the next that is free.

    >>> styles(["increasing", "mine"])["mine"] != styles(["increasing"])["increasing"]
    True
    """
    chosen = {line: _ROLE_STYLES[line] for line in lines if line in _ROLE_STYLES}
    taken = {style.colour for style in chosen.values()}
    pairs = [(colour, dash) for dash in _DASHES for colour in _COLOURS]
    used = {(style.colour, style.dash) for style in chosen.values()}
    # New colours first, then those of the roles in another dash.
    free = sorted(
        (p for p in pairs if p not in used), key=lambda p: (_DASHES.index(p[1]), p[0] in taken)
    )
    others = [line for line in dict.fromkeys(lines) if line not in chosen]
    for i, line in enumerate(others):
        chosen[line] = Style(*free[i % len(free)])
    return chosen


def draw(
    cells: Sequence[Cell],
    metric: Metric,
    axis: str,
    style: Mapping[str, Style],
    *,
    key: Callable[[Cell], str] = lambda cell: cell.line,
    threshold: float | None = None,
    start: bool = False,
) -> Plot:
    """One panel: a line a cell, the mean over its finished runs, with a band from min to max.

    Runs that did not finish are drawn one by one, thin and dotted, and enter no mean. A vertical
    mark stands where a growing batch grows.

    Args:
        cells: of one panel, or of several that are lines of one drawing.
        metric: one of `METRICS`.
        axis: a key of `AXES`.
        style: by ``key``, as `styles` gives it.
        key: what a line stands for.
        threshold: a dot stands where each mean first reaches it; None for no dots.
        start: whether the mean value before the first step is drawn as a level.
    """
    lines, heights = [], [math.inf, -math.inf]
    for cell in cells:
        name = cell.name if key(cell) == cell.line else key(cell)
        line, late = _mean_line(cell, metric, axis, style[key(cell)], name)
        if line is not None:
            lines.append(line)
            heights = [min([heights[0], *late]), max([heights[1], *late])]
    levels = _start(cells, metric) if start else ()
    for level in levels:
        heights = [min(heights[0], level.y), max(heights[1], level.y)]
    # A collapsed run's norm is decades below; it ends at the edge, and the others stay legible.
    room = (heights[1] - heights[0]) / 10 if heights[0] < heights[1] else 0.0
    edges = (heights[0] / 2, heights[1] * 2) if metric.log else (heights[0] - 0.8 * room, math.inf)
    for cell in cells:
        for record in cell.records:
            if record.rows and state(record) != "finished":
                name = cell.name if key(cell) == cell.line else key(cell)
                line = _single(record, metric, axis, style[key(cell)], name, edges)
                lines.append(line)
                if metric.log or heights[0] > heights[1]:
                    seen = line.y[np.isfinite(line.y)]
                    heights = [min([heights[0], *seen]), max([heights[1], *seen])]
    x = _x_axis(cells, lines, axis)
    y = _y_axis(metric, heights, room if any(not line.lost for line in lines) else 0.0)
    return Plot(
        x,
        y,
        tuple(lines),
        marks=tuple(_growths(cells, axis, style, key, x)),
        levels=levels,
        dots=() if threshold is None else tuple(_first(cells, metric, axis, threshold, style, key)),
    )


def mean_curve(
    cell: Cell, metric: Metric, axis: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x, mean, least and greatest over a cell's finished runs; empty where there are none.

    Where the initial point was measured in some seeds alone, all start after it.
    """
    curves = [_curve(record, metric, axis) for record in cell.finished]
    if not curves:
        none = np.empty(0)
        return none, none, none, none
    length = min(len(x) for x, _ in curves)
    xs = np.array([x[len(x) - length :] for x, _ in curves])
    ys = np.array([y[len(y) - length :] for _, y in curves])
    keep = np.isfinite(ys).all(axis=0)
    ys = ys[:, keep]
    return xs.mean(axis=0)[keep], ys.mean(axis=0), ys.min(axis=0), ys.max(axis=0)


def draw_thresholds(
    curves: Sequence[tuple[Cell, Sequence[float], Sequence[float]]],
    title: str,
    log: bool,
    style: Mapping[str, Style],
) -> Plot:
    """Samples to a threshold, over the whole range of thresholds.

    Args:
        curves: cell, thresholds, and the samples until each is reached (nan: not reached).
        title: of the threshold.
        log: whether the thresholds' axis is logarithmic; it then falls from left to right.
        style: by line.
    """
    lines = [
        Line(cell.name, np.array(at), np.array(samples), style[cell.line])
        for cell, at, samples in curves
    ]
    x = np.concatenate([line.x for line in lines])
    most = max([1.0, *(v for line in lines for v in line.y[np.isfinite(line.y)])])
    across = Axis(title, float(x.min()), float(x.max()), log=log, falling=log)
    return Plot(across, Axis("samples", 0.0, 1.04 * most), tuple(lines))


def draw_bounds(
    compared: Sequence[tuple[Cell, Points, Points]], axis: str, style: Mapping[str, Style]
) -> Plot:
    """What was measured, and the bound above it, in the same colour, dotted.

    Args:
        compared: cell, measured and bound, each as x and y.
        axis: a key of `AXES`, of the x.
        style: by line.
    """
    lines = []
    for cell, (x, measured), (at, bound) in compared:
        look = style[cell.line]
        for name, xs, ys, line in (
            (cell.name, x, measured, look),
            (f"{cell.name}, bound", at, bound, Style(look.colour, "0.5 0.6", 1.4)),
        ):
            positive = np.where(ys > 0, ys, math.nan)
            end = number(float(ys[-1])) if len(ys) else ""
            lines.append(Line(name, _thin(xs), _thin(positive), line, end=end))
    ys = np.concatenate([line.y[np.isfinite(line.y)] for line in lines])
    across = Axis(AXES[axis], 0.0, 1.02 * max(max(line.x) for line in lines if len(line.x)),
                  whole=True)  # fmt: skip
    heights = [float(ys.min()), float(ys.max())] if len(ys) else [0.1, 1.0]
    return Plot(across, _log_axis("min E||∇f||² and its bound", heights), tuple(lines))


# ------------------------------------------------------------------------------------------- parts


def _mean_line(
    cell: Cell, metric: Metric, axis: str, look: Style, name: str
) -> tuple[Line | None, np.ndarray]:
    """The mean of a cell's finished runs with their band, and the heights to be seen."""
    x, mean, low, high = (_thin(values) for values in mean_curve(cell, metric, axis))
    if not len(x):
        return None, x
    several = len(cell.finished) > 1
    # The steep first tenth would press an accuracy's differences into a line.
    late = np.full(len(x), True) if metric.log else x >= 0.1 * x[-1]
    line = Line(
        name,
        x,
        mean,
        look,
        low if several else None,
        high if several else None,
        end=f"{metric.text(float(mean[-1]))} at the end",
    )
    return line, np.concatenate([low[late], high[late]])


def _single(
    record: Record,
    metric: Metric,
    axis: str,
    look: Style,
    name: str,
    edges: tuple[float, float],
) -> Line:
    """A run that did not finish, kept within the edges if they are any."""
    x, y = (_thin(np.array(values)) for values in _curve(record, metric, axis))
    if edges[0] <= edges[1]:
        y = np.clip(y, *edges)
    return Line(f"{name}, seed {record.seed}, {state(record)}", x, y, look, lost=True)


def _curve(record: Record, metric: Metric, axis: str) -> tuple[list[float], list[float]]:
    """x and y of one run, the initial point first; nan where there is no number."""
    x = [_position(row, axis) for row in record.rows]
    y = [_number(row.get(metric.column)) for row in record.rows]
    initial = _number(record.initial.get(metric.initial))
    if math.isfinite(initial):
        x, y = [0.0, *x], [initial, *y]
    return x, [v if not metric.log or v > 0 else math.nan for v in y]


def _position(row: Mapping[str, Any], axis: str) -> float:
    return row["epoch"] + 1.0 if axis == "epochs" else _number(row.get(axis))


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _thin(values: np.ndarray) -> np.ndarray:
    """At most so many points, evenly spread, the first and last among them."""
    n = len(values)
    if n <= _MOST_POINTS:
        return values
    return values[np.unique(np.linspace(0, n - 1, _MOST_POINTS).round().astype(int))]


def _x_axis(cells: Sequence[Cell], lines: Sequence[Line], axis: str) -> Axis:
    positive = [float(x) for line in lines for x in line.x if x > 0]
    if not positive:
        return Axis(AXES[axis], 0.0, 1.0)
    if axis in ("steps", "seconds") and _spans_decades(cells, axis):
        return Axis(AXES[axis], min(positive) * 0.9, max(positive) * 1.15, log=True)
    return Axis(AXES[axis], 0.0, max(positive) * 1.02, whole=axis != "seconds")


def _y_axis(metric: Metric, heights: Sequence[float], room: float) -> Axis:
    low, high = heights
    if low > high:
        return Axis(metric.axis, *((0.1, 1.0) if metric.log else (0.0, 1.0)), log=metric.log)
    if metric.log:
        return _log_axis(metric.axis, heights)
    room = max(room or 0.5, (high - low) / 10, abs(high) / 1000)
    return Axis(metric.axis, low - room, high + room)


def _log_axis(words: str, heights: Sequence[float]) -> Axis:
    # Logarithms, because a run on its way to diverging can span more than floats divide.
    low, high = (math.log10(height) for height in heights)
    margin = max(0.05 * (high - low), 0.01)
    return Axis(words, 10 ** max(low - margin, -300), 10 ** min(high + margin, 300), log=True)


def _spans_decades(cells: Sequence[Cell], axis: str) -> bool:
    """Whether runs end so far apart that a linear axis would hide the shorter ones."""
    ends = [_number(r.rows[-1].get(axis)) for c in cells for r in c.finished]
    ends = [end for end in ends if end > 0]
    return bool(ends) and max(ends) > 8 * min(ends)


def _growths(
    cells: Sequence[Cell],
    axis: str,
    style: Mapping[str, Style],
    key: Callable[[Cell], str],
    across: Axis,
) -> list[Mark]:
    """Marks where batches grow, each place once."""
    found: dict[float, Mark] = {}
    for cell in cells:
        growths = cell.growths
        if len(growths) > _MOST_MARKS:
            continue
        rows = max((r.rows for r in cell.records), key=len)
        for epoch in growths:
            x = float(epoch) if axis == "epochs" else _position(rows[epoch - 1], axis)
            if across.low <= x <= across.high:
                found.setdefault(x, Mark(x, style[key(cell)].colour))
    return list(found.values())


def _start(cells: Sequence[Cell], metric: Metric) -> tuple[Level, ...]:
    values = [_number(r.initial.get(metric.initial)) for c in cells for r in c.records]
    values = [v for v in values if math.isfinite(v) and (v > 0 or not metric.log)]
    if not values:
        return ()
    mean = sum(values) / len(values)
    return (Level(mean, f"before the first step: {metric.text(mean)}"),)


def first_past(mean: np.ndarray, threshold: float, falling: bool) -> int | None:
    """The first point of a mean at or past a threshold; None if it never gets there."""
    past = mean <= threshold if falling else mean >= threshold
    return int(np.argmax(past)) if past.any() else None


def _first(
    cells: Sequence[Cell],
    metric: Metric,
    axis: str,
    threshold: float,
    style: Mapping[str, Style],
    key: Callable[[Cell], str],
) -> list[Dot]:
    """Where each mean is first at or past the threshold, at the ends of epochs."""
    dots = []
    for cell in cells:
        x, mean, _, _ = mean_curve(cell, metric, axis)
        i = first_past(mean, threshold, metric.log)
        if i is not None:
            at, value = float(x[i]), float(mean[i])
            words = f"{cell.name}: first {metric.text(value)} after {at:,.0f} {axis}"
            dots.append(Dot(at, value, style[key(cell)].colour, words))
    return dots
