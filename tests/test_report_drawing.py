"""Drawings hold the numbers that they show: paths are read back into what was given."""

import math
import re
from importlib import resources
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchramp.report.drawing import (
    Axis,
    Dot,
    HeatMap,
    Level,
    Line,
    Mark,
    Plot,
    Style,
    heat_svg,
    svg,
)

LOOK = Style("#d55e00", "5 1.5")
# The box that is drawn in, as page.js has it.
LEFT, RIGHT, TOP, BOTTOM = 640, 4150, 70, 2620


def points(d):
    """A path's points, piece by piece, as page.js reads them."""
    pieces = []
    for piece in d.split("M")[1:]:
        n = [int(part) for part in re.split(r"[ l]", piece.rstrip("z"))]
        steps = np.array([n[i : i + 2] for i in range(0, len(n), 2)])
        pieces.append(np.cumsum(steps, axis=0))
    return pieces


def read_back(axis, share):
    share = 1 - share if axis.falling else share
    if axis.log:
        return axis.low * (axis.high / axis.low) ** share
    return axis.low + (axis.high - axis.low) * share


def test_the_script_has_the_same_box():
    script = resources.files("batchramp.report").joinpath("page.js").read_text("utf-8")
    box = f"left: {LEFT}, right: {RIGHT}, top: {TOP}, bottom: {BOTTOM}"
    assert box in script


def elements(text, kind):
    return [e for e in ElementTree.fromstring(text).iter() if e.get("class") == kind]


@given(
    st.lists(st.floats(0.011, 0.99), min_size=2, max_size=150),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_values_are_read_back_from_the_path(shares, x_log, y_log, falling):
    """To half a unit of the drawing at each end, in however many steps."""
    x, y = Axis("x", 0.5, 300.0, x_log, falling), Axis("y", 1e-3, 2.0, y_log)
    xs = read_back(x, np.linspace(0, 1, len(shares)))
    ys = read_back(y, np.array(shares))
    text = svg(Plot(x, y, (Line("a", xs, ys, LOOK),)))
    (path,) = elements(text, "m")
    (found,) = points(path.get("d"))
    across, up = found[:, 0], found[:, 1]
    np.testing.assert_allclose(x.share(xs), (across - LEFT) / (RIGHT - LEFT), atol=0.5001 / 3510)
    np.testing.assert_allclose(y.share(ys), (BOTTOM - up) / (BOTTOM - TOP), atol=0.5001 / 2550)
    said = [float(v) for v in ElementTree.fromstring(text).get("data-axes", "").split(",")]
    assert said == [0.5, 300, x_log, falling, 1e-3, 2, y_log, 0]


def test_a_gap_interrupts_a_line_and_its_band():
    x = np.arange(5.0)
    y = np.array([1.0, 2.0, math.nan, 2.0, 3.0])
    text = svg(Plot(Axis("x", 0, 4), Axis("y", 0, 4), (Line("a", x, y, LOOK, y - 0.5, y + 0.5),)))
    (line,), (band,) = elements(text, "m"), elements(text, "band")
    assert [len(piece) for piece in points(line.get("d"))] == [2, 2]
    assert [len(piece) for piece in points(band.get("d"))] == [4, 4]
    assert band.get("d").count("z") == 2


def test_the_start_has_no_place_on_a_logarithmic_axis():
    line = Line("a", np.array([0.0, 1.0, 10.0]), np.ones(3), LOOK)
    (path,) = elements(svg(Plot(Axis("x", 0.9, 11, log=True), Axis("y", 0, 2), (line,))), "m")
    assert len(points(path.get("d"))[0]) == 2
    nothing = Line("a", np.array([0.0]), np.ones(1), LOOK)
    assert elements(svg(Plot(Axis("x", 1, 2, log=True), Axis("y", 0, 2), (nothing,))), "m") == []


def test_every_part_has_its_words_and_they_are_text():
    evil = "<b>&\"'"
    plot = Plot(
        Axis(evil, 0, 1),
        Axis(evil, 0, 1),
        (
            Line(evil, np.array([0.0, 1.0]), np.array([0.2, 0.7]), LOOK, end="0.7 at the end"),
            Line(evil, np.array([0.0, 1.0]), np.array([0.2, math.nan]), LOOK, lost=True),
        ),
        marks=(Mark(0.5, "#222222"), Mark(0.6, "#222222")),
        levels=(Level(0.3, evil),),
        dots=(Dot(0.5, 0.5, "#222222", evil),),
    )
    text = svg(plot, evil)
    root = ElementTree.fromstring(text)
    assert root.get("aria-label") == evil
    said = [e.text for e in root.iter() if e.tag in ("title", "text")]
    assert said.count(evil) == 5
    assert f"{evil}: 0.7 at the end" in said
    assert [len(elements(text, kind)) for kind in ("mark", "level", "dot", "lost", "cross")] == [
        2, 1, 1, 1, 1,
    ]  # fmt: skip


@given(st.floats(1e-6, 1e6), st.floats(1.0001, 1e9), st.booleans(), st.booleans())
def test_ticks_lie_within_the_axis_and_are_few(low, factor, log, whole):
    axis = Axis("", low, low * factor, log=log, whole=whole and factor * low - low > 2)
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 12
    assert ticks == sorted(set(ticks))
    assert all(low * (1 - 1e-6) <= tick <= low * factor * (1 + 1e-6) for tick in ticks)
    if axis.whole and not log:
        assert all(tick == int(tick) for tick in ticks)


def heat(values, log=False, low=1.0, high=10.0):
    rows = tuple(str(i) for i in range(len(values)))
    columns = tuple(str(i) for i in range(len(values[0])))
    words = tuple(tuple(f"{v}" for v in row) for row in values)
    return HeatMap(rows, columns, "r", "c", values, words, low, high, log)


def test_a_heat_map_has_a_number_in_every_cell_and_colours_by_one_scale():
    table = heat(((1.0, 10.0), (math.nan, 5.5)))
    root = ElementTree.fromstring(heat_svg(table, lambda v: f"{v:g}!"))
    cells = [(g[0].get("fill"), g[1].text, g[2].text) for g in root.iter("g")]
    assert [c[1] for c in cells] == ["1!", "10!", "–", "5.5!"]
    assert [c[0] for c in cells] == ["#002051", "#fdea45", "#eeeeee", "#707173"]
    assert [c[2] for c in cells] == ["1.0", "10.0", "nan", "5.5"]
    assert table.colour(1.0) == heat(((1.0, 2.0),)).colour(1.0)
    middle = heat(((1.0,),), log=True).colour(math.sqrt(10))
    assert middle == table.colour(5.5)


@pytest.mark.parametrize("value", [3.0, 0.0])
def test_a_heat_map_of_one_value_has_a_colour(value):
    assert heat(((value,),), low=value, high=value).colour(value) == (112, 113, 115)
