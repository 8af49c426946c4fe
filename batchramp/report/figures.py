"""The figures of the page: one small drawing a panel, a line a label, mean and range over seeds.

matplotlib Figures without pyplot, so that nothing global is drawn on. No text of a file goes into
a drawing: titles and legends stand beside it, in the page.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator

from batchramp.report.cells import Cell, setting, state
from batchramp.store import Record

__all__ = [
    "AXES",
    "METRICS",
    "Metric",
    "Style",
    "draw",
    "draw_bounds",
    "draw_thresholds",
    "styles",
    "svg",
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


@final
@dataclass(frozen=True)
class Style:
    """How a line is drawn, everywhere on the page."""

    colour: str
    dash: str  # in widths of the line: "4 2"; "" is solid
    width: float = 1.6

    @property
    def pattern(self) -> Any:
        """The dash as matplotlib takes it."""
        return (0, tuple(float(part) for part in self.dash.split())) if self.dash else "solid"

    @property
    def svg_dash(self) -> str:
        """The dash as SVG takes it, in pixels."""
        return " ".join(f"{2 * float(part):g}" for part in self.dash.split())


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
_MOST_POINTS = 160

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


def draw(cells: Sequence[Cell], metric: Metric, axis: str, style: Mapping[str, Style]) -> Figure:
    """One panel: a line a cell, the mean over its finished runs, with a band from min to max.

    Runs that did not finish are drawn one by one, thin and dotted, and enter no mean. A vertical
    mark stands where a growing batch grows.

    Args:
        cells: of one panel.
        metric: one of `METRICS`.
        axis: a key of `AXES`.
        style: by line, as `styles` gives it.
    """
    figure, axes = _empty()
    extent, heights = [0.0], [math.inf, -math.inf]
    for cell in cells:
        x, y = _draw_mean(axes, cell, metric, axis, style[cell.line])
        extent.extend(x)
        heights = [min(heights[0], *y), max(heights[1], *y)] if len(y) else heights
    # A collapsed run's norm is decades below; it ends at the edge, and the others stay legible.
    room = (heights[1] - heights[0]) / 10
    edges = (heights[0] / 2, heights[1] * 2) if metric.log else (heights[0] - room, math.inf)
    if not metric.log and room > 0:
        axes.set_ylim(heights[0] - room, heights[1] + room)
    for cell in cells:
        for record in cell.records:
            if record.rows and state(record) != "finished":
                x = _draw_single(axes, record, metric, axis, style[cell.line], edges)
                extent.extend(x)
    positive = [x for x in extent if x > 0]
    if axis in ("steps", "seconds") and positive and _spans_decades(cells, axis):
        axes.set_xscale("log")
        axes.set_xlim(min(positive) * 0.9, max(positive) * 1.15)
        _log_ticks(axes.xaxis)
    elif positive:
        axes.set_xlim(0, max(extent) * 1.02)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=axis != "seconds"))
        axes.xaxis.set_major_formatter(FuncFormatter(_short))
    for cell in cells:
        _mark_growth(axes, cell, axis, style[cell.line])
    _finish(axes, metric.log, metric.axis, AXES[axis])
    return figure


def draw_thresholds(
    curves: Sequence[tuple[Cell, Sequence[float], Sequence[float]]],
    title: str,
    log: bool,
    style: Mapping[str, Style],
) -> Figure:
    """Samples to a threshold, over the whole range of thresholds.

    Args:
        curves: cell, thresholds, and the samples until each is reached (nan: not reached).
        title: of the threshold.
        log: whether the thresholds' axis is logarithmic; it then falls from left to right.
        style: by line.
    """
    figure, axes = _empty()
    for cell, thresholds, samples in curves:
        look = style[cell.line]
        axes.plot(
            list(thresholds),
            list(samples),
            color=look.colour,
            ls=look.pattern,
            lw=look.width,
            drawstyle="steps-mid",
        )
    if log:
        axes.set_xscale("log")
        _log_ticks(axes.xaxis)
        axes.invert_xaxis()
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(_short))
    _finish(axes, False, "samples", title)
    axes.set_ylim(bottom=0)
    return figure


def draw_bounds(
    compared: Sequence[tuple[Cell, Points, Points]], axis: str, style: Mapping[str, Style]
) -> Figure:
    """What was measured, and the bound above it, in the same colour, dotted.

    Args:
        compared: cell, measured and bound, each as x and y.
        axis: a key of `AXES`, of the x.
        style: by line.
    """
    figure, axes = _empty()
    for cell, (x, measured), (at, bound) in compared:
        look = style[cell.line]
        axes.plot(x, measured, color=look.colour, ls=look.pattern, lw=look.width)
        axes.plot(at, bound, color=look.colour, ls=(0, (1, 1.2)), lw=1.4)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(_short))
    _finish(axes, True, "min E||∇f||² and its bound", AXES[axis])
    return figure


def svg(figure: Figure) -> bytes:
    """The figure as an SVG file: text as text, the same bytes for the same figure."""
    out = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "batchramp"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    # Hundredths of a point are finer than any screen, and halve the page.
    return re.sub(rb' d="[^"]*"', _rounded, out.getvalue())


def _rounded(path: re.Match[bytes]) -> bytes:
    return re.sub(rb"(\d\.\d\d)\d+", rb"\1", path[0])


# ------------------------------------------------------------------------------------------- parts


def _empty() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.3, 3.1))
    return figure, figure.add_axes((0.155, 0.16, 0.825, 0.815))


def _finish(axes: Axes, log: bool, ylabel: str, xlabel: str) -> None:
    if log:
        axes.set_yscale("log")
        _log_ticks(axes.yaxis)
    elif not isinstance(axes.yaxis.get_major_formatter(), FuncFormatter):
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.set_xlabel(xlabel, fontsize=10, color="#333")
    axes.set_ylabel(ylabel, fontsize=10, color="#333")
    axes.tick_params(which="both", labelsize=9.5, color="#999", labelcolor="#333", length=3)
    axes.grid(color="#e4e4e4", lw=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#999")


def _draw_mean(axes: Axes, cell: Cell, metric: Metric, axis: str, look: Style) -> Points:
    """Draws the mean of a cell's finished runs and their band; x, and heights to be seen."""
    curves = [_curve(record, metric, axis) for record in cell.finished]
    if not curves:
        return np.empty(0), np.empty(0)
    # Where the initial point was measured in some seeds alone, all start after it.
    length = min(len(x) for x, _ in curves)
    xs = np.array([x[len(x) - length :] for x, _ in curves])
    ys = np.array([y[len(y) - length :] for _, y in curves])
    keep = np.isfinite(ys).all(axis=0)
    x, y = _thin(xs.mean(axis=0)[keep]), _thin(ys[:, keep])
    if not len(x):
        return x, x
    low, mean, high = y.min(axis=0), y.mean(axis=0), y.max(axis=0)
    axes.plot(x, mean, color=look.colour, ls=look.pattern, lw=look.width, zorder=3)
    if len(x) == 1:
        axes.plot(x, mean, color=look.colour, marker="o", ms=4)
    if len(y) > 1:
        axes.fill_between(x, low, high, color=look.colour, alpha=0.18, lw=0)
    # The steep first tenth would press an accuracy's differences into a line.
    late = np.full(len(x), True) if metric.log else x >= 0.1 * x[-1]
    return x, np.concatenate([low[late], high[late]])


def _draw_single(
    axes: Axes,
    record: Record,
    metric: Metric,
    axis: str,
    look: Style,
    edges: tuple[float, float],
) -> np.ndarray:
    """Draws a run that did not finish, kept within the edges if they are any; its x."""
    x, y = (_thin(np.array(values)) for values in _curve(record, metric, axis))
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    if edges[0] <= edges[1]:
        y = np.clip(y, *edges)
    if len(x):
        axes.plot(x, y, color=look.colour, ls=(0, (1, 1.6)), lw=1.0, zorder=2)
        axes.plot(x[-1], y[-1], color=look.colour, marker="x", ms=6, mew=1.4, clip_on=False)
    return x


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
    n = values.shape[-1]
    if n <= _MOST_POINTS:
        return values
    return values[..., np.unique(np.linspace(0, n - 1, _MOST_POINTS).round().astype(int))]


def _spans_decades(cells: Sequence[Cell], axis: str) -> bool:
    """Whether runs end so far apart that a linear axis would hide the shorter ones."""
    ends = [_number(r.rows[-1].get(axis)) for c in cells for r in c.finished]
    ends = [end for end in ends if end > 0]
    return bool(ends) and max(ends) > 8 * min(ends)


def _mark_growth(axes: Axes, cell: Cell, axis: str, look: Style) -> None:
    growths = cell.growths
    rows = max((r.rows for r in cell.records), key=len)
    # A batch that grows every epoch has marks at the foot alone; full lines would be a wall.
    top = 1.0 if len(growths) <= 15 else 0.04
    left, right = axes.get_xlim()
    for epoch in growths:
        x = float(epoch) if axis == "epochs" else _position(rows[epoch - 1], axis)
        if left <= x <= right:
            axes.axvline(x, 0, top, color=look.colour, lw=0.7, ls=(0, (2, 3)), alpha=0.55, zorder=1)


def _log_ticks(which: Any) -> None:
    """Powers of ten, and between them as many more as there is room for."""
    low, high = sorted(which.get_view_interval())
    decades = math.log10(high / low) if low > 0 else 9
    subs = (2, 3, 5, 7) if decades < 1.3 else (2, 5)
    which.set_major_locator(LogLocator(numticks=7))
    which.set_minor_locator(LogLocator(subs=subs, numticks=7))
    which.set_major_formatter(FuncFormatter(_short))
    which.set_minor_formatter(FuncFormatter(_short if decades < 3.4 else lambda *_: ""))


def _short(value: float, position: int | None = None) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    if 0 < abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    return setting(value)
