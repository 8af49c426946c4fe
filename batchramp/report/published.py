"""What the paper's figures show, read off by eye, and the same of our runs beside it.

Curves were read to about half a point of accuracy and a tenth of a norm; the heat maps of appendix
A.10 have their numbers printed. Sizes are compared only with runs of the paper's own setting; of
others, the order of policies alone.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from statistics import fmean
from typing import final

from batchramp.report.cells import Cell, Study, last, listed, number, percent, setting, spread
from batchramp.store import Record

__all__ = ["GRID", "PUBLISHED", "Beside", "Reading", "beside", "best_over_epochs"]

ACCURACY, NORM = "test_accuracy", "min_full_gradient_norm"
_POINTS, _SHARE = 0.5, 0.1  # by how much a curve may be misread


@final
@dataclass(frozen=True)
class Reading:
    """The end of a curve as read off a figure.

    Attributes:
        figure: it stands in.
        panel, label: of our runs, to which it belongs.
        column: "test_accuracy" in percent, or "min_full_gradient_norm".
        low, high: the value; two where only a range over panels was read.
    """

    figure: str
    panel: str
    label: str
    column: str
    low: float
    high: float

    @property
    def ends(self) -> tuple[float, float]:
        """The range with the reading error added."""
        if self.column == ACCURACY:
            return self.low - _POINTS, self.high + _POINTS
        return self.low * (1 - _SHARE), self.high * (1 + _SHARE)

    def __str__(self) -> str:
        if self.column == ACCURACY:
            value = f"{self.low:g}" if self.low == self.high else f"{self.low:g} to {self.high:g}"
            return f"{value} ± {_POINTS:g} %"
        value = f"{self.low:g}" if self.low == self.high else f"{self.low:g} to {self.high:g}"
        return f"{value} ± {100 * _SHARE:g} %"


_PANELS = ("constant", "inverse-sqrt", "cosine", "polynomial")


def _row(
    figure: str, label: str, column: str, *values: float | tuple[float, float]
) -> list[Reading]:
    """One policy's values under the four lr schedules."""
    found = []
    for panel, value in zip(_PANELS, values, strict=True):
        low, high = value if isinstance(value, tuple) else (value, value)
        found.append(Reading(figure, panel, label, column, low, high))
    return found


# Figure 4's runs are told apart by their panels.
_NSHB = {
    "constant": 0.012,
    "cosine": 0.015,
    "polynomial": 0.02,
    "inverse-sqrt": 0.04,
    "inverse-sqrt, constant beta": 0.075,
    "inverse, increasing beta": 0.3,
}

PUBLISHED: dict[str, tuple[Reading, ...]] = {
    "figure1": (
        *_row("1", "increasing", ACCURACY, 73, 71, 73, 73),
        *_row("1", "small", ACCURACY, 71.5, 71.5, 69, 73),
        *_row("1", "large", ACCURACY, 64, 54, 65, 64),
        *_row("2", "increasing", NORM, *[(0.01, 0.04)] * 4),
        *_row("2", "large", NORM, *[(0.3, 2.0)] * 4),
        *_row("3", "increasing", NORM, 0.012, 0.04, 0.015, 0.02),
    ),
    "figure4": (
        *(Reading("4", panel, "increasing", NORM, norm, norm) for panel, norm in _NSHB.items()),
        Reading("4", "inverse, increasing beta", "increasing", ACCURACY, 70, 70),
    ),
    "figure10": (
        *_row("10", "increasing", ACCURACY, 57, 57, 57, 57),
        *_row("10", "small", ACCURACY, *[(56.0, 58.0)] * 4),
        *_row("10", "large", ACCURACY, *[(34.0, 47.0)] * 4),
        *_row("12", "increasing", NORM, 0.010, 0.045, 0.013, 0.018),
    ),
}

# Figures 8 and 9 by lr: nine printed accuracies, best over epochs on test, in the order printed;
# and the least and the greatest of the nine minimum norms.
GRID: dict[float, tuple[tuple[float, ...], tuple[float, float]]] = {
    0.05: ((72.9, 72.8, 72.9, 72.9, 73.2, 73.1, 72.8, 73.2, 72.9), (0.0570, 0.0595)),
    0.1: ((72.5, 72.5, 72.9, 72.7, 73.0, 72.6, 72.1, 73.0, 72.2), (0.0306, 0.0333)),
    0.25: ((69.6, 70.2, 70.4, 71.3, 71.0, 72.8, 70.1, 71.1, 72.2), (0.0144, 0.0161)),
    0.5: ((67.6, 67.4, 69.1, 68.9, 68.9, 70.0, 68.4, 70.5, 71.3), (0.0094, 0.0113)),
}

# What makes runs comparable in size: model, epochs, and the batch sizes at both ends.
_SETTINGS = {
    "figure1": ("resnet18", 300),
    "figure4": ("resnet18", 300),
    "figure8": ("resnet18", 150),
    "figure10": ("vittiny", 300),
}
# In these figures the lr schedules are the lines; in the others, the policies.
_BY_LR = ("3", "4", "12")
_BATCH_SIZES = {"increasing": (8, 4096), "small": (8, 8), "large": (4096, 4096)}
_GRID_SIZES = (32, 512)


@final
@dataclass(frozen=True)
class Beside:
    """The paper's values beside ours.

    Attributes:
        title: what the table is.
        note: under what conditions it may be read.
        columns: of the table.
        rows: as texts.
    """

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def beside(study: Study) -> Beside | None:
    """The paper's values beside a study's; only their order where the setting is another.

    None where the paper has no figure of this experiment, or nothing here is finished.
    """
    if study.experiment not in _SETTINGS:
        return None
    why = _differs(study)
    if study.experiment == "figure8":
        rows = () if why else tuple(_grid(study))
        return _sizes("8 and 9", rows) if rows else None
    readings = PUBLISHED[study.experiment]
    if not why:
        rows = tuple(row for r in readings if (row := _beside(r, study)))
        return (
            _sizes(listed(list(dict.fromkeys(r.figure for r in readings))), rows) if rows else None
        )
    orders = tuple(_orders(readings, study))
    if not orders:
        return None
    return Beside(
        "The order of policies in the paper and here",
        f"Not comparable in size: another setting than the paper’s ({why}). Best first; “≈” where "
        "the reading error leaves the order open. An order here is one of means and no decision.",
        ("figure", "of", "in the paper", "here", "pairs ordered as there"),
        orders,
    )


def _sizes(figures: str, rows: tuple[tuple[str, ...], ...]) -> Beside:
    return Beside(
        "Beside the paper",
        f"Values read off figures {figures} of the paper with the error of reading them, beside "
        "the mean [least, greatest] over our seeds. The released code measures its norm on "
        "augmented images, here it is that of the clean training set; how far the paper’s three "
        "seeds lie apart was not read.",
        ("figure", "policy", "quantity", "paper", "here", "here against the paper"),
        rows,
    )


def _differs(study: Study) -> str:
    """In what a study differs from the paper's setting; "" if in nothing."""
    model, epochs = _SETTINGS[study.experiment]
    found = []
    if study.task != "cifar100":
        found.append(f"task {study.task}")
    if not "".join(c for c in study.model.lower() if c.isalnum()).startswith(model):
        found.append(f"model {study.model}")
    plans = [cell.records[0].plan for cell in study.cells]
    if others := [p for p in plans if (p.unit, p.length) != ("epochs", epochs)]:
        found.append(f"{others[0].length} {others[0].unit}")
    return ", ".join(found)


def _batch_sizes(cell: Cell) -> tuple[int, int]:
    plan = cell.records[0].plan
    return plan.at(0).batch_size, plan.at(plan.length - 1).batch_size


def _beside(reading: Reading, study: Study) -> tuple[str, ...] | None:
    """One row, of a cell whose batch sizes are the paper's."""
    cell = study.cell(reading.panel, reading.label)
    if cell is None or _batch_sizes(cell) != _BATCH_SIZES[reading.label]:
        return None
    values = cell.values(last(reading.column))
    if not values:
        return None
    percents = reading.column == ACCURACY
    here = spread(values, percent if percents else number)
    name = ", ".join((reading.panel, cell.name))
    quantity = "test accuracy, last epoch" if percents else "minimum norm"
    # What is left where runs were lost would flatter.
    apart = f"not compared: {cell.remark}" if cell.lost else _apart(reading, values)
    return (reading.figure, name, quantity, str(reading), here, apart)


def _apart(reading: Reading, values: Sequence[float]) -> str:
    mean = fmean(values)
    low, high = reading.ends
    if low <= mean <= high:
        return "within the error of reading"
    nearest = reading.low if mean < low else reading.high
    if reading.column == ACCURACY:
        return f"{mean - nearest:+.1f} points".replace("-", "−")
    return f"{number(mean / nearest)} times"


def _grid(study: Study) -> Iterator[tuple[str, ...]]:
    """The nine cells of each lr: their mean and range, because which is which was not printed."""
    for lr, (accuracies, norms) in GRID.items():
        cells = [c for c in study.cells if _starts_at(c, lr) and _batch_sizes(c) == _GRID_SIZES]
        if len(cells) != len(accuracies) or any(c.lost or not c.finished for c in cells):
            continue
        name = f"lr {setting(lr)}, nine cells"
        best = [fmean(c.values(best_over_epochs)) for c in cells]
        low, high = min(accuracies) - 0.05, max(accuracies) + 0.05
        inside = f"{sum(low <= v <= high for v in best)} of 9 in the paper’s range"
        paper = spread(accuracies, percent)
        yield "8", name, "test accuracy, best over epochs", paper, spread(best, percent), inside
        ours = [fmean(c.values(last(NORM))) for c in cells]
        inside = f"{sum(norms[0] <= v <= norms[1] for v in ours)} of 9 in the paper’s range"
        yield "9", name, "minimum norm", f"{norms[0]:g} to {norms[1]:g}", spread(ours), inside


def _starts_at(cell: Cell, lr: float) -> bool:
    start = cell.records[0].plan.at(0).lr
    return start is not None and math.isclose(start, lr)


def best_over_epochs(record: Record) -> float:
    """The greatest test accuracy of any epoch: chosen on the test set, as the paper's grid does."""
    return max((v for row in record.rows if (v := row.get(ACCURACY)) is not None), default=math.nan)


def _orders(readings: Sequence[Reading], study: Study) -> Iterator[tuple[str, ...]]:
    groups: dict[tuple[str, str, str], list[Reading]] = {}
    for reading in readings:
        place = "increasing batch, by lr" if reading.figure in _BY_LR else reading.panel
        groups.setdefault((reading.figure, place, reading.column), []).append(reading)
    for (figure, place, column), members in groups.items():
        found = []
        for reading in members:
            cell = study.cell(reading.panel, reading.label)
            if cell and not cell.lost and (values := cell.values(last(column))):
                name = reading.panel if figure in _BY_LR else reading.label
                found.append((reading, name, fmean(values)))
        if len(found) < 2:
            continue
        sign = -1 if column == ACCURACY else 1
        theirs = sorted(found, key=lambda f: sign * (f[0].low + f[0].high))
        ours = sorted(found, key=lambda f: sign * f[2])
        clear = [(a, b) for a, b in combinations(theirs, 2) if _clear(a[0], b[0])]
        alike = sum(ours.index(a) < ours.index(b) for a, b in clear)
        paper = theirs[0][1]
        for before, after in pairwise(theirs):
            paper += f" {'›' if _clear(before[0], after[0]) else '≈'} {after[1]}"
        name = "test accuracy" if column == ACCURACY else "minimum norm"
        here = " › ".join(each[1] for each in ours)
        pairs = f"{alike} of {len(clear)}" if clear else "–"
        yield figure, f"{name}, {place}", paper, here, pairs


def _clear(a: Reading, b: Reading) -> bool:
    """Whether the error of reading leaves the order of two values in no doubt."""
    return a.ends[1] < b.ends[0] or b.ends[1] < a.ends[0]
