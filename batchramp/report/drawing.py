"""Drawings as SVG text, for a page that loads nothing: lines with bands, marks, and heat maps.

A page of five hundred runs has hundreds of drawings, so that they are written here and not by a
plotting library. A drawing's unit is a tenth of a pixel, its paths are whole numbers, and it says
in ``data-axes`` what its units mean, so that the page's script can read values back from them.
Every text is escaped.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import final

import numpy as np

__all__ = ["Axis", "Dot", "HeatMap", "Level", "Line", "Mark", "Plot", "Style", "heat_svg", "svg"]

# The drawing and the box that is drawn in, in tenths of a pixel.
_WIDTH, _HEIGHT = 4300, 3100
_LEFT, _RIGHT, _TOP, _BOTTOM = 640, 4150, 70, 2620


@final
@dataclass(frozen=True)
class Style:
    """How a line is drawn, everywhere on the page."""

    colour: str
    dash: str  # in widths of the line: "4 2"; "" is solid
    width: float = 1.6

    def stroke(self, scale: float = 10) -> str:
        """The attributes of an SVG line; ``scale`` is the drawing's units in a pixel."""
        text = f'stroke="{self.colour}" stroke-width="{1.35 * scale * self.width:g}"'
        if self.dash:
            parts = " ".join(f"{2 * scale * float(part):g}" for part in self.dash.split())
            text += f' stroke-dasharray="{parts}"'
        return text


@final
@dataclass(frozen=True)
class Axis:
    """An axis and what it spans.

    Attributes:
        words: at the axis.
        low, high: its ends; a logarithmic axis has both above 0.
        log: whether it is logarithmic.
        falling: whether it falls from left to right.
        whole: whether ticks stand at whole numbers alone.
    """

    words: str
    low: float
    high: float
    log: bool = False
    falling: bool = False
    whole: bool = False

    def share(self, values: np.ndarray) -> np.ndarray:
        """Where values lie between the ends, from 0 to 1."""
        low, high = self.low, self.high
        if self.log:
            values, low, high = np.log(values), math.log(low), math.log(high)
        part = (values - low) / (high - low)
        return 1 - part if self.falling else part

    def ticks(self) -> list[float]:
        """Round numbers between the ends, at most about seven."""
        if self.log and math.log10(self.high) - math.log10(self.low) > 0.25:
            found = _log_ticks(self.low, self.high)
            if len(found) > 1:
                return found
        return _linear_ticks(self.low, self.high, self.whole)


@final
@dataclass(frozen=True)
class Line:
    """A line: the mean of several runs with their range, or one run that did not finish.

    Attributes:
        name: for the reader.
        x, y: its points; a nan interrupts it.
        style: of the line.
        low, high: the band around it; None for none.
        lost: whether it is a single run that did not finish: thin, dotted, with a cross at the end.
        end: the value at its end, in words.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    style: Style
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    lost: bool = False
    end: str = ""


@final
@dataclass(frozen=True)
class Mark:
    """A vertical mark at x."""

    x: float
    colour: str


@final
@dataclass(frozen=True)
class Level:
    """A horizontal line at y across the drawing, with its words."""

    y: float
    words: str


@final
@dataclass(frozen=True)
class Dot:
    """A point that is marked, with its words."""

    x: float
    y: float
    colour: str
    words: str


@final
@dataclass(frozen=True)
class Plot:
    """A drawing as a value."""

    x: Axis
    y: Axis
    lines: tuple[Line, ...]
    marks: tuple[Mark, ...] = ()
    levels: tuple[Level, ...] = ()
    dots: tuple[Dot, ...] = ()


def svg(plot: Plot, words: str = "") -> str:
    """The drawing as an SVG element: the same text for the same drawing.

    Args:
        plot: the drawing.
        words: what it shows, for who cannot see it.
    """
    axes = ",".join(
        f"{a.low:.6g},{a.high:.6g},{int(a.log)},{int(a.falling)}" for a in (plot.x, plot.y)
    )
    parts = [
        f'<svg class="plot" role="img" viewBox="0 0 {_WIDTH} {_HEIGHT}" data-axes="{axes}" '
        f'aria-label="{escape(words)}">'
    ]
    parts += _frame(plot)
    parts += [_vertical(plot, mark) for mark in plot.marks]
    parts += [_horizontal(plot, level) for level in plot.levels]
    # What leaves the box is cut there, as an SVG within an SVG is.
    width, height = _RIGHT - _LEFT, _BOTTOM - _TOP
    parts.append(
        f'<svg x="{_LEFT}" y="{_TOP}" width="{width}" height="{height}" '
        f'viewBox="{_LEFT} {_TOP} {width} {height}">'
    )
    # The first is the last to be drawn: on top.
    parts += [_band(plot, line) for line in reversed(plot.lines)]
    parts += [_curve(plot, line) for line in reversed(plot.lines)]
    parts.append("</svg>")
    parts += [_cross(plot, line) for line in plot.lines if line.lost]
    parts += [_point(plot, dot) for dot in reversed(plot.dots)]
    return "".join([*parts, "</svg>"])


def _frame(plot: Plot) -> list[str]:
    lines, texts = [], []
    for value in plot.x.ticks():
        at = _x(plot, np.array([value]))[0]
        lines.append(f"M{at} {_TOP}V{_BOTTOM}")
        texts.append(
            f'<text x="{at}" y="{_BOTTOM + 160}" text-anchor="middle">{short(value)}</text>'
        )
    for value in plot.y.ticks():
        at = _y(plot, np.array([value]))[0]
        lines.append(f"M{_LEFT} {at}H{_RIGHT}")
        texts.append(
            f'<text x="{_LEFT - 50}" y="{at + 45}" text-anchor="end">{short(value)}</text>'
        )
    centre = _text((_LEFT + _RIGHT) // 2, _HEIGHT - 110, "middle", plot.x.words)
    texts.append(centre.replace("<text", '<text class="x"', 1))
    texts.append(_upright((_TOP + _BOTTOM) // 2, plot.y.words))
    return [
        f'<path class="grid" d="{"".join(lines)}"/>',
        f'<path class="axes" d="M{_LEFT} {_TOP}V{_BOTTOM}H{_RIGHT}"/>',
        *texts,
    ]


def _text(x: float, y: float, anchor: str, words: str, fill: str = "") -> str:
    colour = f' fill="{fill}"' if fill else ""
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}"{colour}>{escape(words)}</text>'


def _upright(y: int, words: str) -> str:
    """The words at the left side, read from below."""
    turned = f'transform="translate(130 {y}) rotate(-90)"'
    return f'<text {turned} text-anchor="middle">{escape(words)}</text>'


def _x(plot: Plot, values: np.ndarray) -> np.ndarray:
    return np.rint(_LEFT + (_RIGHT - _LEFT) * plot.x.share(values)).astype(int)


def _y(plot: Plot, values: np.ndarray) -> np.ndarray:
    share = np.clip(plot.y.share(values), -9, 9)
    return np.rint(_BOTTOM + (_TOP - _BOTTOM) * share).astype(int)


def _path(x: np.ndarray, y: np.ndarray, close: bool = False) -> str:
    """Whole numbers, each after the first as a step from the one before: half as long."""
    steps = " ".join(f"{dx} {dy}" for dx, dy in zip(np.diff(x), np.diff(y), strict=True))
    return f"M{x[0]} {y[0]}" + (f"l{steps}" if steps else "") + ("z" if close else "")


def _drawable(plot: Plot, line: Line) -> np.ndarray:
    """Which points have a place: not a nan, nor the start on a logarithmic axis."""
    whole = np.isfinite(line.y) & np.isfinite(line.x)
    return whole & (line.x > 0) if plot.x.log else whole


def _pieces(plot: Plot, line: Line) -> list[slice]:
    """The stretches without a gap."""
    whole = _drawable(plot, line)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], whole, [False]]).astype(int)))
    return [slice(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _curve(plot: Plot, line: Line) -> str:
    pieces = _pieces(plot, line)
    if not pieces:
        return ""
    paths = [(_x(plot, line.x[piece]), _y(plot, line.y[piece])) for piece in pieces]
    end = f": {line.end}" if line.end else ""
    title = f"<title>{escape(line.name)}{escape(end)}</title>"
    d = "".join(_path(x, y) for x, y in paths)
    if line.lost:
        return f'<path class="lost" d="{d}" stroke="{line.style.colour}">{title}</path>'
    text = f'<path class="m" d="{d}" {line.style.stroke()}>{title}</path>'
    if len(paths) == 1 and len(paths[0][0]) == 1:
        x, y = paths[0]
        text += f'<circle cx="{x[0]}" cy="{y[0]}" r="40" fill="{line.style.colour}"/>'
    return text


def _cross(plot: Plot, line: Line) -> str:
    """Where a run that did not finish ends."""
    whole = np.flatnonzero(_drawable(plot, line))
    if not len(whole):
        return ""
    x, y = _x(plot, line.x[whole[-1:]])[0], _y(plot, line.y[whole[-1:]])[0]
    c = 35
    d = f"M{x - c} {y - c}l{2 * c} {2 * c}m0 {-2 * c}l{-2 * c} {2 * c}"
    return f'<path class="cross" d="{d}" stroke="{line.style.colour}"/>'


def _band(plot: Plot, line: Line) -> str:
    if line.low is None or line.high is None:
        return ""
    paths = []
    for piece in _pieces(plot, line):
        x = _x(plot, line.x[piece])
        low, high = _y(plot, line.low[piece]), _y(plot, line.high[piece])
        paths.append(_path(np.append(x, x[::-1]), np.append(high, low[::-1]), close=True))
    return f'<path class="band" d="{"".join(paths)}" fill="{line.style.colour}"/>'


def _vertical(plot: Plot, mark: Mark) -> str:
    at = _x(plot, np.array([mark.x]))[0]
    return f'<path class="mark" d="M{at} {_BOTTOM}V{_TOP}" stroke="{mark.colour}"/>'


def _horizontal(plot: Plot, level: Level) -> str:
    at = _y(plot, np.array([level.y]))[0]
    return f'<path class="level" d="M{_LEFT} {at}H{_RIGHT}"/>' + _text(
        _RIGHT, at - 30, "end", level.words
    )


def _point(plot: Plot, dot: Dot) -> str:
    x, y = _x(plot, np.array([dot.x]))[0], _y(plot, np.array([dot.y]))[0]
    return (
        f'<circle class="dot" cx="{x}" cy="{y}" r="52" fill="{dot.colour}">'
        f"<title>{escape(dot.words)}</title></circle>"
    )


# ------------------------------------------------------------------------------------------- ticks


def _linear_ticks(low: float, high: float, whole: bool) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten.

    >>> _linear_ticks(0, 30.6, True), _linear_ticks(0.2, 0.45, False)
    ([0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0], [0.2, 0.25, 0.3, 0.35, 0.4, 0.45])
    """
    rough = (high - low) / 6.5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough)
    if whole:
        step = max(step, 1.0)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, -math.floor(math.log10(step)))
    return [round(i * step, digits) for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, and between them as many more as there is room for."""
    decades = math.log10(high) - math.log10(low)
    within = (1, 2, 3, 5, 7) if decades < 1.3 else (1, 2, 5) if decades < 2.4 else (1,)
    every = max(1, math.ceil(decades / 7))
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{s}e{p}") for p in powers if p % every == 0 for s in within]
    if decades < 3.4 and within == (1,):
        ticks = [float(f"{s}e{p}") for p in powers for s in (1, 2, 5)]
    return [t for t in ticks if low * (1 - 1e-9) <= t <= high * (1 + 1e-9)]


def short(value: float) -> str:
    """A number at an axis.

    >>> short(2000.0), short(0.02), short(0.0001), short(1500000)
    ('2k', '0.02', '1e-4', '1.5M')
    """
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    if 0 < abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:.4g}"


# --------------------------------------------------------------------------------------- heat maps

# Dark blue to yellow, even in lightness and for the colour-blind (Nuñez et al. 2018, "cividis").
_HEAT = ((0, 32, 81), (59, 73, 108), (112, 113, 115), (166, 156, 117), (253, 234, 69))
_CELL_WIDTH, _CELL_HEIGHT = 900, 520


@final
@dataclass(frozen=True)
class HeatMap:
    """A table of numbers in colours.

    Attributes:
        rows, columns: the words at its sides, top to bottom and left to right.
        row_name, column_name: of what they are values.
        values: one a row and column; nan where there is none.
        words: for every value, what is said when it is pointed at.
        low, high: the ends of the colours, the same in all maps that are compared.
        log: whether colours go by the logarithm.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    row_name: str
    column_name: str
    values: tuple[tuple[float, ...], ...]
    words: tuple[tuple[str, ...], ...]
    low: float
    high: float
    log: bool = False

    def colour(self, value: float) -> tuple[int, int, int]:
        """Red, green and blue."""
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        at = 4 * min(1.0, max(0.0, (value - low) / (high - low))) if high > low else 2.0
        i = min(3, int(at))
        r, g, b = (
            round(p + (q - p) * (at - i)) for p, q in zip(_HEAT[i], _HEAT[i + 1], strict=True)
        )
        return r, g, b


def heat_svg(heat: HeatMap, text: Callable[[float], str], words: str = "") -> str:
    """The heat map as an SVG element, with its numbers in the cells.

    Args:
        heat: the table.
        text: how a value is written.
        words: what it shows, for who cannot see it.
    """
    left, top = 640, 60
    width, height = len(heat.columns) * _CELL_WIDTH, len(heat.rows) * _CELL_HEIGHT
    parts = [
        f'<svg class="heat" role="img" viewBox="0 0 {left + width + 60} {top + height + 420}" '
        f'aria-label="{escape(words)}">'
    ]
    for i, row in enumerate(heat.rows):
        y = top + i * _CELL_HEIGHT
        parts.append(_text(left - 50, y + 305, "end", row))
        for j in range(len(heat.columns)):
            parts.append(_cell(heat, i, j, left + j * _CELL_WIDTH, y, text))
    for j, column in enumerate(heat.columns):
        x = left + j * _CELL_WIDTH + _CELL_WIDTH // 2
        parts.append(_text(x, top + height + 160, "middle", column))
    parts.append(_text(left + width // 2, top + height + 360, "middle", heat.column_name))
    parts.append(_upright(top + height // 2, heat.row_name))
    return "".join([*parts, "</svg>"])


def _cell(heat: HeatMap, i: int, j: int, x: int, y: int, text: Callable[[float], str]) -> str:
    value = heat.values[i][j]
    title = f"<title>{escape(heat.words[i][j])}</title>"
    box = f'x="{x}" y="{y}" width="{_CELL_WIDTH}" height="{_CELL_HEIGHT}"'
    if not math.isfinite(value):
        fill, ink, said = "#eeeeee", "#59626c", "–"
    else:
        r, g, b = heat.colour(value)
        fill, said = f"#{r:02x}{g:02x}{b:02x}", text(value)
        ink = "#111111" if 0.299 * r + 0.587 * g + 0.114 * b > 125 else "#ffffff"
    number = _text(x + _CELL_WIDTH // 2, y + 305, "middle", said, ink)
    return f'<g><rect {box} fill="{fill}"/>{number}{title}</g>'
