"""Which figures a study has: the paper's, by their numbers, where it is one of its experiments.

Any other study is drawn metric by metric, a panel each. A norm stands never alone: wherever one is
drawn, so is the train loss.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import final

from batchramp.report.bounds import compared
from batchramp.report.cells import Cell, Study, last, listed, number, percent, setting, spread
from batchramp.report.curves import (
    AXES,
    METRICS,
    Metric,
    draw,
    draw_bounds,
    draw_thresholds,
    first_past,
    mean_curve,
    styles,
)
from batchramp.report.drawing import HeatMap, Style, heat_svg, svg
from batchramp.report.published import best_over_epochs
from batchramp.report.thresholds import mean_samples_to, threshold_grid
from batchramp.store import Record

__all__ = ["Drawing", "Figure", "figures", "threshold_figures"]

ACCURACY, NORM, LOSS = METRICS[:3]


_EARLY = 0.1  # of the run


@final
@dataclass(frozen=True)
class Drawing:
    """One drawing of a figure.

    Attributes:
        panel: its caption.
        axis: the key of `AXES` under whose tab it is seen; "" for every tab.
        svg: itself, as an SVG element.
    """

    panel: str
    axis: str
    svg: str


@final
@dataclass(frozen=True)
class Figure:
    """A figure with its number, its caption, its lines and its drawings."""

    title: str
    note: str
    legend: tuple[tuple[str, Style], ...]
    drawings: tuple[Drawing, ...]


@final
@dataclass(frozen=True)
class _Numbers:
    """The numbers that the paper gives its figures of one set of runs; "" where it has none."""

    accuracy: str
    norm: str
    by_lr: str
    accuracy_by_samples: str = ""
    norm_by_samples: str = ""


_NUMBERS = {
    "figure1": _Numbers("Figure 1", "Figure 2", "Figure 3", "Figure 6", "Figure 7"),
    "figure10": _Numbers("Figure 10", "Figure 11", "Figure 12"),
}


def figures(study: Study) -> Iterator[Figure]:
    """All figures of a study, the thresholds' left out."""
    style = styles([cell.line for cell in study.cells])
    if study.experiment in _NUMBERS:
        yield from _main(study, style, _NUMBERS[study.experiment])
    elif study.experiment == "figure4":
        yield from _by_lr(study, study.cells, "Figure 4", "NSHB (gamma = 1), a line an lr schedule")
        yield from _by_metric(study, style, METRICS[3:])
    elif study.experiment == "figure5":
        yield from _losses(study, style)
    elif study.experiment == "figure8" and (grid := _grid(study)):
        yield from _heat_maps(grid)
        yield from _by_metric(study, style, METRICS[3:])
    elif study.experiment == "a11":
        titles = {m.column: f"Appendix A.11, {_lower(m.title)}" for m in METRICS[:3]}
        yield from _by_metric(study, style, METRICS, titles,
                              "Exponential against linear growth of the batch. ")  # fmt: skip
    else:
        yield from _by_metric(study, style, METRICS)
    yield from _bounds(study, style)


def _lower(title: str) -> str:
    return title[:1].lower() + title[1:]


def _legend(cells: Sequence[Cell], style: dict[str, Style]) -> tuple[tuple[str, Style], ...]:
    """Every line with the batch sizes it has, over all panels."""
    sizes: dict[str, list[str]] = {}
    for cell in cells:
        sizes.setdefault(cell.line, []).append(cell.batch_sizes)
    texts = {line: listed(list(dict.fromkeys(found))) for line, found in sizes.items()}
    return tuple((f"{line} ({t})" if line else t, style[line]) for line, t in texts.items())


# ------------------------------------------------------------------------------- metric by metric


def _by_metric(
    study: Study,
    style: dict[str, Style],
    metrics: Iterable[Metric],
    titles: dict[str, str] | None = None,
    lead: str = "",
    start: bool = False,
) -> Iterator[Figure]:
    """A figure a metric, a drawing a panel and axis."""
    for metric in metrics:
        drawings = []
        for panel in study.panels:
            cells = study.panel(panel)
            if not _has(cells, metric.column):
                continue
            ends = _ends(cells, metric)
            for axis, words in AXES.items():
                plot = draw(cells, metric, axis, style, start=start)
                alt = f"{metric.title} by {words}: {ends}"
                drawings.append(Drawing(panel, axis, svg(plot, alt)))
        if drawings:
            title = (titles or {}).get(metric.column, metric.title)
            yield Figure(title, lead + _note(metric), _legend(study.cells, style), tuple(drawings))


def _has(cells: Sequence[Cell], column: str) -> bool:
    return any(row.get(column) is not None for c in cells for r in c.records for row in r.rows)


def _ends(cells: Sequence[Cell], metric: Metric) -> str:
    ends = [
        f"{cell.name} {spread(values, metric.text)}"
        for cell in cells
        if (values := cell.values(last(metric.column)))
    ]
    return "at the end " + ", ".join(ends) if ends else "no run has finished"


def _note(metric: Metric) -> str:
    if metric == ACCURACY:
        return (
            "Drawn along the way, but nothing was chosen by it: the table and the claims read the "
            "last epoch alone. The axis leaves out the steep first tenth of the runs."
        )
    if metric.column in ("max_loss", "max_gradient_norm"):
        return (
            "The largest over the clean training set at the end of each epoch. Assumption 1 wants "
            "it bounded over all points; this shows the points that the run came to."
        )
    if metric.column == "proposition9":
        return (
            "√(2 L F) of Proposition 9, with F the largest loss of a sample and L the largest "
            "secant of a sample's gradient over the epoch. Secants are below the true L, so this "
            "is an estimate of the paper's bound, and need not be above the largest norm."
        )
    if metric == NORM:
        return (
            "The least norm so far, the initial point included. It stands never alone: a small "
            "norm at a high loss is no success, so see the train loss below."
        )
    return "Over the whole clean training set, network in eval mode."


# -------------------------------------------------------------------------- the paper's main runs


def _main(study: Study, style: dict[str, Style], numbers: _Numbers) -> Iterator[Figure]:
    """Accuracy and norm by epoch, the growing batch by lr schedule, and both by samples."""
    beside = numbers.norm[:1].lower() + numbers.norm[1:]
    titles = {
        "test_accuracy": f"{numbers.accuracy}. Test accuracy",
        "min_full_gradient_norm": f"{numbers.norm}. Running minimum of the full-gradient norm",
        "train_loss": f"Train loss, beside {beside}",
    }
    yield from _by_metric(study, style, METRICS[:3], titles)
    grown = [cell for cell in study.cells if cell.label == "increasing"]
    yield from _by_lr(study, grown, numbers.by_lr, "the increasing batch, a line an lr schedule")
    for metric, title, aim in (
        (ACCURACY, numbers.accuracy_by_samples, 70.0),
        (NORM, numbers.norm_by_samples, 0.5),
    ):
        if title and study.measures(metric.column):
            yield from _by_samples(study, style, metric, title, aim)
    yield from _by_metric(study, style, METRICS[3:])


def _by_lr(study: Study, cells: Sequence[Cell], title: str, what: str) -> Iterator[Figure]:
    """Norm, accuracy and train loss beside each other, one line a panel."""

    def key(cell: Cell) -> str:
        return ", ".join(part for part in (cell.panel, cell.variant) if part)

    if len({key(cell) for cell in cells}) < 2:
        return
    style = styles([key(cell) for cell in cells])
    drawings = []
    for letter, metric in (("(a) ", NORM), ("(b) ", ACCURACY), ("", LOSS)):
        if not _has(cells, metric.column):
            continue
        for axis, words in AXES.items():
            plot = draw(cells, metric, axis, style, key=key)
            alt = f"{metric.title} by {words}, {what}: {_ends(cells, metric)}"
            drawings.append(Drawing(f"{letter}{metric.title}", axis, svg(plot, alt)))
    if drawings:
        legend = tuple(style.items())
        note = "Train loss is beside the norm because a small norm at a high loss is no success."
        yield Figure(f"{title}. {what[:1].upper()}{what[1:]}", note, legend, tuple(drawings))


def _by_samples(
    study: Study, style: dict[str, Style], metric: Metric, title: str, aim: float
) -> Iterator[Figure]:
    """By samples, with a dot where each mean is first past a threshold; seen under every tab."""
    threshold, why = _threshold(study, metric, aim)
    drawings = []
    for panel in study.panels:
        cells = study.panel(panel)
        if not _has(cells, metric.column):
            continue
        plot = draw(cells, metric, "samples", style, threshold=threshold)
        firsts = "; ".join(dot.words for dot in plot.dots) or "no mean reaches the threshold"
        drawings.append(Drawing(panel, "", svg(plot, f"{metric.title} by samples: {firsts}")))
    yield Figure(
        f"{title}. {metric.title} by samples",
        f"{why} Another threshold can show another order (the paper’s appendix A.9 says so "
        "itself): see the samples to every threshold below.",
        _legend(study.cells, style),
        tuple(drawings),
    )


def _threshold(study: Study, metric: Metric, aim: float) -> tuple[float | None, str]:
    """The paper's threshold if it tells these runs apart; else a round one that they reach.

    A threshold tells them apart where most means reach it, and most of those after the first tenth
    of the run. Another is the hardest round number that all means reach and that does so; or else
    that most reach.
    """
    means = []
    for cell in study.cells:
        x, mean, _, _ = mean_curve(cell, metric, "samples")
        if len(mean) and x[-1] > 0 and not cell.lost:
            means.append((x, mean))
    falling = metric.log

    def text(threshold: float) -> str:
        return setting(threshold) + ("" if falling else " %")

    def reached(threshold: float) -> list[float]:
        firsts = ((x, first_past(mean, threshold, falling)) for x, mean in means)
        return [float(x[i] / x[-1]) for x, i in firsts if i is not None]

    def said(threshold: float, reason: str) -> str:
        return (
            f"Dots: where a mean is first {'at most' if falling else 'at least'} "
            f"{text(threshold)}, at the end of an epoch{reason}."
        )

    def tells(threshold: float, needed: int) -> bool:
        shares = reached(threshold)
        return len(shares) >= needed and 2 * sum(s > _EARLY for s in shares) > len(shares)

    if not means:
        return None, "No policy has finished."
    most = len(means) // 2 + 1
    if tells(aim, most):
        return aim, said(aim, ", the paper’s threshold")
    shares = reached(aim)
    early = sum(s <= _EARLY for s in shares)
    reason = f" (the paper’s {text(aim)} is reached by {len(shares)} of {len(means)} means"
    reason += f", {early} of them in the first tenth of the run)" if early else ")"
    for needed in (len(means), most):
        found = next((t for t in _round_thresholds(falling) if tells(t, needed)), None)
        if found is not None:
            return found, said(found, reason)
    return None, f"No round threshold tells these runs apart{reason}."


def _round_thresholds(falling: bool) -> list[float]:
    """The hardest first: 99, 98, ... percent; 1, 2, 5 times powers of ten upwards."""
    if falling:
        return [float(f"{s}e{p}") for p in range(-6, 2) for s in (1, 2, 5)]
    return [float(p) for p in range(99, 0, -1)]


def _losses(study: Study, style: dict[str, Style]) -> Iterator[Figure]:
    """Appendix A.8: is the loss bounded along the run?"""
    title = f"Figure 5. Train loss, {study.model}" if study.model else "Figure 5. Train loss"
    lead = "Appendix A.8: the loss stays bounded. The level is the loss before the first step. "
    yield from _by_metric(study, style, [LOSS], {"train_loss": title}, lead, start=True)
    yield from _by_metric(study, style, [m for m in METRICS if m != LOSS])


# --------------------------------------------------------------------------------- the A.10 grid

_Grid = dict[float, dict[tuple[float, float], Cell]]


def _grid(study: Study) -> _Grid:
    """Cells by lr, then by beta and gamma, all at their start; {} if the study is no grid."""
    found: _Grid = {}
    for cell in study.cells:
        first = cell.records[0].plan.at(0)
        if first.lr is None or first.beta is None or first.gamma is None:
            return {}
        cells = found.setdefault(first.lr, {})
        if (first.beta, first.gamma) in cells:
            return {}
        cells[first.beta, first.gamma] = cell
    whole = any(len(cells) > 1 for cells in found.values())
    return dict(sorted(found.items())) if whole else {}


def _heat_maps(grid: _Grid) -> Iterator[Figure]:
    """Figures 8 and 9, and what stands beside each."""
    maps: tuple[tuple[str, str, Callable[[Record], float], Callable[[float], str], bool], ...] = (
        (
            "Figure 8. Test accuracy, best over epochs",
            "Best over epochs on test, as the paper does: the epoch is chosen by the test set, so "
            "that this flatters.",
            best_over_epochs,
            percent,
            False,
        ),
        (
            "Test accuracy of the last epoch, beside figure 8",
            "Nothing is chosen by the test set here.",
            last("test_accuracy"),
            percent,
            False,
        ),
        (
            "Figure 9. Minimum of the full-gradient norm",
            "The least norm of the run, the initial point included; the train loss there follows.",
            last("min_full_gradient_norm"),
            number,
            True,
        ),
        (
            "Train loss at the minimum norm, beside figure 9",
            "Over the whole clean training set, network in eval mode.",
            last("loss_at_min_norm"),
            number,
            True,
        ),
    )
    for title, note, measure, text, log in maps:
        whole = [c for cells in grid.values() for c in cells.values() if not c.lost]
        means = [_mean(cell, measure) for cell in whole]
        values = [v for v in means if math.isfinite(v) and (v > 0 or not log)]
        if not values:
            continue
        low, high = min(values), max(values)
        drawings = [
            Drawing(
                f"lr {setting(lr)}", "", _heat_map(cells, measure, text, (low, high), log, title)
            )
            for lr, cells in grid.items()
        ]
        colours = (
            f"Means over seeds, in the cells; one scale of colours over all, from {text(low)} "
            f"(dark) to {text(high)} (yellow){', logarithmic' if log else ''}."
        )
        yield Figure(title, f"{note} {colours}", (), tuple(drawings))


def _mean(cell: Cell, measure: Callable[[Record], float]) -> float:
    values = cell.values(measure)
    return fmean(values) if values else math.nan


def _heat_map(
    cells: dict[tuple[float, float], Cell],
    measure: Callable[[Record], float],
    text: Callable[[float], str],
    ends: tuple[float, float],
    log: bool,
    title: str,
) -> str:
    betas, gammas = (sorted({key[i] for key in cells}) for i in (0, 1))
    values, words = [], []
    for beta in betas:
        row, said = [], []
        for gamma in gammas:
            cell = cells.get((beta, gamma))
            name = f"beta {setting(beta)}, gamma {setting(gamma)}: "
            if cell is None:
                value, what = math.nan, "not run"
            else:
                # A policy that lost a run has no mean that could be compared.
                value = math.nan if cell.lost else _mean(cell, measure)
                what = "; ".join(p for p in (spread(cell.values(measure), text), cell.remark) if p)
            row.append(value if value > 0 or not log else math.nan)
            said.append(name + what)
        values.append(tuple(row))
        words.append(tuple(said))
    heat = HeatMap(
        rows=tuple(map(setting, betas)),
        columns=tuple(map(setting, gammas)),
        row_name="beta at the start",
        column_name="gamma at the start",
        values=tuple(values),
        words=tuple(words),
        low=ends[0],
        high=ends[1],
        log=log,
    )
    return heat_svg(heat, text, f"{title}: {'; '.join(w for row in words for w in row)}")


# --------------------------------------------------------------------------- bounds and thresholds


def _bounds(study: Study, style: dict[str, Style]) -> Iterator[Figure]:
    """The theory's bound above what was measured, where the constants are known."""
    drawings, said, cells = [], [], []
    for panel in study.panels:
        held = compared(study.panel(panel))
        if not held:
            continue
        cells += [each.cell for each in held]
        said += [f"{panel}: {each.sentence}" if panel else each.sentence for each in held]
        for axis in ("epochs", "steps", "samples"):
            plot = draw_bounds([(each.cell, *each.points(axis)) for each in held], axis, style)
            alt = f"Bound and measured by {AXES[axis]}: {'; '.join(e.sentence for e in held)}"
            drawings.append(Drawing(panel, axis, svg(plot, alt)))
    if drawings:
        note = (
            "Solid: the least so far of the seeds' mean of ||∇f||², at the start and at the ends "
            "of epochs; the theorems speak of the least over all steps, which is not above it. "
            "Dotted: the least of the bounds that hold, for batches drawn with replacement, while "
            f"a run shuffles. {'. '.join(said)}."
        )
        legend = _legend(cells, style)
        yield Figure("Measured, and the bound on it", note, legend, tuple(drawings))


def threshold_figures(study: Study) -> Iterator[Figure]:
    """Samples to a threshold over the whole range of thresholds; never by the test set.

    Not of a grid: as many lines as it has cells tell nothing.
    """
    if study.experiment == "figure8" and _grid(study):
        return
    style = styles([cell.line for cell in study.cells])
    accuracy = next(
        (c for c in ("validation_accuracy", "train_accuracy") if study.measures(c)), None
    )
    for column, rising in ((accuracy, True), (NORM.column, False)):
        drawings = []
        if column is None:
            continue
        name = column.replace("_", " ") if rising else "minimum norm"
        for panel in study.panels:
            cells = [c for c in study.panel(panel) if c.finished and not c.lost]
            grid = threshold_grid(cells, column, rising, 40)
            if len(cells) < 2 or not grid:
                continue
            curves = [(c, grid, mean_samples_to(c, column, grid, rising)) for c in cells]
            plot = draw_thresholds(curves, f"{name} (%)" if rising else name, not rising, style)
            alt = f"Mean samples until the {name} is first reached, by threshold"
            drawings.append(Drawing(panel, "", svg(plot, alt)))
        if drawings:
            note = (
                "Mean samples until every threshold is first reached, at the ends of epochs; a "
                "line ends where a seed no longer gets there."
            )
            legend = _legend(study.cells, style)
            yield Figure(f"Samples to a {name}", note, legend, tuple(drawings))
