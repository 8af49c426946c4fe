"""The page: what was run, what came out, and what that says of the paper's claims.

One HTML file that loads nothing: drawings are embedded, tabs are radio buttons and CSS. Every text
that comes from a file is escaped by the template.
"""

import base64
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from statistics import fmean
from typing import Any, final

from jinja2 import Environment, StrictUndefined

from batchramp import store
from batchramp.report.bounds import compared
from batchramp.report.cells import (
    Cell,
    Study,
    count,
    last,
    listed,
    number,
    percent,
    setting,
    spread,
    state,
    studies,
)
from batchramp.report.claims import (
    SILENT,
    judge,
    steps_sentence,
)
from batchramp.report.figures import (
    AXES,
    METRICS,
    Style,
    draw,
    draw_bounds,
    draw_thresholds,
    styles,
    svg,
)
from batchramp.report.thresholds import mean_samples_to, threshold_grid
from batchramp.store import Record, read_all

__all__ = ["render", "write"]


def write(folder: str | Path, out: str | Path | None = None) -> Path:
    """Writes the report of all runs in ``folder`` and below: one self-contained HTML page.

    Runs that are still going, failed or have no row yet are listed with their state and enter no
    mean, so that a folder can be looked at while it fills.

    Args:
        folder: where the runs lie, each in a folder of its own.
        out: the page; ``folder/report.html`` if None. It appears whole or not at all.

    Returns:
        The page's path.

    Raises:
        ValueError: the folder does not exist, holds no run or is damaged, or ``out`` cannot be
            written; one line.

    >>> write("no such folder")
    Traceback (most recent call last):
        ...
    ValueError: folder no such folder does not exist
    """
    folder = Path(folder)
    records = read_all(folder)
    path = folder / "report.html" if out is None else Path(out)
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"out must be a file in a folder that exists, got {path}")
    page = render(records)
    store.write(path, page.encode())
    return path


def render(records: Sequence[Record]) -> str:
    """The page as text.

    >>> render([]).startswith("<!doctype html>")
    True
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["tidy"] = _tidy
    template = resources.files("batchramp.report").joinpath("page.html.j2").read_text("utf-8")
    found = studies(records)
    judgement = judge(records)
    return environment.from_string(template).render(
        title=listed(list(dict.fromkeys(s.experiment or s.task for s in found))) or "no runs",
        facts=_facts(records),
        noted=any(record.note for record in records),
        sections=[_section(study) for study in found],
        judgement=judgement,
        spoken=[c for c in judgement.claims if c.verdict != SILENT],
        silent=[c for c in judgement.claims if c.verdict == SILENT],
        axes=AXES,
        unfinished=_unfinished(found),
        runs=len(records),
        several=len(found) > 1,
    )


def _tidy(text: str) -> str:
    """Keeps a number and its sign or unit on one line, by no-break spaces."""
    return re.sub(r"(?<=\bb) = | → |(?<=\d) (?=%|seeds?\b|steps\b)", _unbroken, text)


def _unbroken(match: re.Match[str]) -> str:
    return match[0].replace(" ", "\u00a0")


# -------------------------------------------------------------------------------------- the pieces


@final
@dataclass(frozen=True)
class Section:
    """A study as the page shows it."""

    study: Study
    headline: tuple[tuple[str, tuple[str, ...]], ...]  # panel, lines
    legend: tuple[tuple[str, Style], ...]
    figures: tuple[tuple[str, str, tuple["Drawing", ...]], ...]  # title, note, drawings
    thresholds: tuple[tuple[str, tuple["Drawing", ...]], ...]
    columns: tuple[str, ...]
    table: tuple[tuple[str, tuple["TableRow", ...]], ...]  # panel, rows
    notes: tuple[str, ...]


@final
@dataclass(frozen=True)
class Drawing:
    """An embedded figure: the panel it shows, its axis, its description and its data."""

    panel: str
    axis: str
    alt: str
    data: str


@final
@dataclass(frozen=True)
class TableRow:
    """A cell's line in the table: means with their ranges, and in which columns it is best."""

    colour: str
    name: str
    values: tuple[tuple[str, str], ...]
    best: frozenset[int]
    remark: str


def _section(study: Study) -> Section:
    style = styles([cell.line for cell in study.cells])
    columns, table = _table(study, style)
    return Section(
        study=study,
        headline=tuple(_headline(study)),
        legend=tuple(_legend(study, style)),
        figures=tuple(_figures(study, style)),
        thresholds=tuple(_thresholds(study, style)),
        columns=columns,
        table=table,
        notes=tuple(_notes(study)),
    )


def _facts(records: Sequence[Record]) -> list[tuple[str, str]]:
    """What was run, and where; each fact with all the values that it has among the runs."""

    def several(values: Iterable[Any]) -> str:
        return listed([str(v) for v in dict.fromkeys(values) if v not in (None, "")])

    seeds = sorted({r.seed for r in records})
    states = [state(r) for r in records]
    machines = [r.environment.get("machine") or {} for r in records]
    versions = [r.environment.get("versions") or {} for r in records]
    facts = [
        ("experiment", several(r.experiment for r in records)),
        ("task", several(r.task for r in records)),
        ("model", several(r.model for r in records)),
        ("optimizer", several(r.optimizer for r in records)),
        ("length", several(f"{r.plan.length:,} {r.plan.unit}" for r in records)),
        ("seeds", f"{len(seeds)}: {_ranges(seeds)}" if seeds else ""),
        ("runs", ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(sorted(states)))),
        ("threads", several(r.environment.get("threads") for r in records)),
        ("machine", several(_pairs(m) for m in machines)),
        ("versions", several(_pairs(v) for v in versions)),
        ("note", several(r.note for r in records)),
    ]
    return [(name, text) for name, text in facts if text]


def _pairs(values: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in values.items()) if isinstance(values, dict) else ""


def _ranges(seeds: Sequence[int]) -> str:
    if len(seeds) > 3 and seeds[-1] - seeds[0] == len(seeds) - 1:
        return f"{seeds[0]} to {seeds[-1]}"
    return listed([str(seed) for seed in seeds])


# ---------------------------------------------------------------------------------------- headline

ACCURACY, NORM = "test_accuracy", "min_full_gradient_norm"


def _headline(study: Study) -> Iterable[tuple[str, tuple[str, ...]]]:
    """Panel by panel: which policy got where with how many steps; then the lr-decay twin."""
    for panel in study.panels:
        cells = study.panel(panel)
        whole = [cell for cell in cells if cell.finished and not cell.lost]
        if not whole:
            yield panel, ("No policy has finished without a collapsed or diverged run.",)
            continue
        lines = [
            _leader(whole, ACCURACY, True, "test accuracy", percent),
            _leader(whole, NORM, False, "minimum norm", number),
        ]
        if not any(lines):
            lines = [_leader(whole, "train_loss", False, "train loss", number)]
        ours, twin = study.cell(panel, "increasing"), study.cell(panel, "lr-decay-twin")
        if ours and twin and ours in whole and twin in whole:
            lines.append(_capital(steps_sentence(ours, twin).removeprefix(f"{panel}: ")))
        yield panel, tuple(line for line in lines if line)


def _leader(
    cells: Sequence[Cell], column: str, high: bool, name: str, text: Callable[[float], str]
) -> str:
    """The best mean in a column with its steps, and the next best beside it."""
    measure = last(column)
    ranked = sorted(
        ((fmean(values), cell) for cell in cells if (values := cell.values(measure))),
        key=lambda pair: -pair[0] if high else pair[0],
    )
    if not ranked:
        return ""
    parts = []
    for mean, cell in ranked[:2]:
        beside = cell.values(last("loss_at_min_norm")) if column == NORM else []
        loss = f" (train loss {number(fmean(beside))})" if beside else ""
        steps = count(fmean(cell.values(last("steps"))))
        parts.append(f"{cell.name} with {text(mean)}{loss} in {steps} steps")
    if len(parts) == 1:
        return f"{_capital(name)}: {parts[0]}."
    return f"{'Highest' if high else 'Lowest'} {name}: {parts[0]}; next {parts[1]}."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


# ----------------------------------------------------------------------------------------- figures


def _legend(study: Study, style: dict[str, Style]) -> Iterable[tuple[str, Style]]:
    """Every line with the batch sizes it has, over all panels."""
    sizes: dict[str, list[str]] = {}
    for cell in study.cells:
        sizes.setdefault(cell.line, []).append(cell.batch_sizes)
    for line, found in sizes.items():
        sizes_text = listed(list(dict.fromkeys(found)))
        yield (f"{line} ({sizes_text})" if line else sizes_text), style[line]


def _figures(
    study: Study, style: dict[str, Style]
) -> Iterable[tuple[str, str, tuple[Drawing, ...]]]:
    for metric in METRICS:
        if not study.measures(metric.column):
            continue
        drawings = []
        for panel in study.panels:
            cells = study.panel(panel)
            if not any(row.get(metric.column) is not None
                       for c in cells for r in c.records for row in r.rows):  # fmt: skip
                continue
            for axis, words in AXES.items():
                figure = draw(cells, metric, axis, style)
                alt = f"{metric.title} by {words}: {_ends(cells, metric.column)}"
                drawings.append(Drawing(panel, axis, alt, _embedded(svg(figure))))
        if drawings:
            yield metric.title, _figure_note(metric.column), tuple(drawings)
    yield from _bounds(study, style)


def _bounds(
    study: Study, style: dict[str, Style]
) -> Iterable[tuple[str, str, tuple[Drawing, ...]]]:
    """The theory's bound above what was measured, where the constants are known."""
    drawings, said = [], []
    for panel in study.panels:
        held = compared(study.panel(panel))
        if not held:
            continue
        said += [f"{panel}: {each.sentence}" if panel else each.sentence for each in held]
        for axis in ("epochs", "steps", "samples"):
            figure = draw_bounds([(each.cell, *each.points(axis)) for each in held], axis, style)
            alt = f"Bound and measured by {AXES[axis]}: {'; '.join(e.sentence for e in held)}"
            drawings.append(Drawing(panel, axis, alt, _embedded(svg(figure))))
    if drawings:
        note = (
            "Solid: the least so far of the seeds' mean of ||∇f||², at the start and at the ends "
            "of epochs; the theorems speak of the least over all steps, which is not above it. "
            "Dotted: the least of the bounds that hold, for batches drawn with replacement, while "
            f"a run shuffles. {'. '.join(said)}."
        )
        yield "Measured, and the bound on it", note, tuple(drawings)


def _figure_note(column: str) -> str:
    if column == "test_accuracy":
        return (
            "Drawn along the way, but nothing was chosen by it: the table and the claims read the "
            "last epoch alone. The axis leaves out the steep first tenth of the runs."
        )
    if column in ("max_loss", "max_gradient_norm"):
        return (
            "The largest over the clean training set at the end of each epoch. Assumption 1 wants "
            "it bounded over all points; this shows the points that the run came to."
        )
    if column == "proposition9":
        return (
            "√(2 L F) of Proposition 9, with F the largest loss of a sample and L the largest "
            "secant of a sample's gradient over the epoch. Secants are below the true L, so this "
            "is an estimate of the paper's bound, and need not be above the largest norm."
        )
    if column == "min_full_gradient_norm":
        return (
            "The least norm so far, the initial point included. It stands never alone: a small "
            "norm at a high loss is no success, so see the train loss below."
        )
    return "Over the whole clean training set, network in eval mode."


def _ends(cells: Sequence[Cell], column: str) -> str:
    ends = [
        f"{cell.name} {spread(values)}" for cell in cells if (values := cell.values(last(column)))
    ]
    return "at the end " + ", ".join(ends) if ends else "no run has finished"


def _thresholds(study: Study, style: dict[str, Style]) -> Iterable[tuple[str, tuple[Drawing, ...]]]:
    """Samples to a threshold over the whole range of thresholds; never by the test set."""
    accuracy = next(
        (c for c in ("validation_accuracy", "train_accuracy") if study.measures(c)), None
    )
    for column, rising in ((accuracy, True), (NORM, False)):
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
            figure = draw_thresholds(curves, f"{name} (%)" if rising else name, not rising, style)
            alt = f"Mean samples until the {name} is first reached, by threshold"
            drawings.append(Drawing(panel, "", alt, _embedded(svg(figure))))
        if drawings:
            yield f"Samples to a {name}", tuple(drawings)


def _embedded(data: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(data).decode()


# ------------------------------------------------------------------------------------------- table


@final
@dataclass(frozen=True)
class _Column:
    title: str
    of: Callable[[Record], float]
    text: Callable[[float], str]
    best: int = 0  # 1: the highest is marked, -1: the lowest, 0: none


def _norm_over_loss(record: Record) -> float:
    norm, loss = last(NORM)(record), last("loss_at_min_norm")(record)
    return norm / loss if loss else float("nan")


def _first_lr(record: Record) -> float:
    lr = record.plan.at(0).lr
    return float("nan") if lr is None else lr


_COLUMNS = (
    _Column("lr", _first_lr, setting),
    _Column("steps", last("steps"), count),
    _Column("samples", last("samples"), count),
    _Column("seconds", last("seconds"), number),
    _Column("test accuracy, last epoch", last(ACCURACY), percent, 1),
    _Column("min full-gradient norm", last(NORM), number, -1),
    _Column("train loss at that minimum", last("loss_at_min_norm"), number),
    _Column("norm / loss there", _norm_over_loss, number),
    _Column("train loss, last epoch", last("train_loss"), number, -1),
)


def _table(
    study: Study, style: dict[str, Style]
) -> tuple[tuple[str, ...], tuple[tuple[str, tuple[TableRow, ...]], ...]]:
    shown = [c for c in _COLUMNS if any(cell.values(c.of) for cell in study.cells)]
    groups = []
    for panel in study.panels:
        cells = study.panel(panel)
        best = [_best(column, cells) for column in shown]
        rows = []
        for cell in cells:
            finished = f"{len(cell.finished)} of {len(cell.records)}"
            values = [(finished, ""), *(_split(spread(cell.values(c.of), c.text)) for c in shown)]
            marks = frozenset(i for i, winner in enumerate(best, start=1) if winner is cell)
            rows.append(
                TableRow(style[cell.line].colour, cell.name, tuple(values), marks, _remark(cell))
            )
        groups.append((panel, tuple(rows)))
    return ("seeds finished", *(column.title for column in shown)), tuple(groups)


def _split(text: str) -> tuple[str, str]:
    """The mean and its range, which stand one below the other."""
    mean, _, within = text.partition(" [")
    return mean, f"[{within}" if within else ""


def _best(column: _Column, cells: Sequence[Cell]) -> Cell | None:
    """The cell of the best mean; one with a lost run is never it, nor the only cell there is."""
    ranked = [
        (column.best * fmean(values), cell)
        for cell in cells
        if column.best and not cell.lost and (values := cell.values(column.of))
    ]
    return max(ranked, key=lambda pair: pair[0])[1] if len(ranked) > 1 else None


def _remark(cell: Cell) -> str:
    """What befell the runs that did not finish, and where the lost ones ended."""
    if not cell.remark:
        return ""
    text = cell.remark
    ended = [r for r in cell.lost if r.rows]
    parts = []
    for column, words, form in (
        (ACCURACY, "test accuracy", percent),
        (NORM, "norm", number),
        ("train_loss", "train loss", number),
    ):
        values = [x for x in map(last(column), ended) if x == x]  # noqa: PLR0124
        if values:
            parts.append(f"{words} {spread(values, form)}")
    if parts:
        text += f" (ended at {', '.join(parts)})"
    if cell.finished:
        text += f"; the numbers are those of the {len(cell.finished)} that finished"
    return text


# ------------------------------------------------------------------------------------------- notes


def _notes(study: Study) -> list[str]:
    notes = []
    if study.repeated:
        folders = [r.folder.name for r in study.repeated]
        shown = listed(folders if len(folders) < 6 else [*folders[:5], f"{len(folders) - 5} more"])
        notes.append(
            "Left out, because an earlier folder has the same plan, panel, label and seed: "
            f"{shown}."
        )
    ends = {round(x) for c in study.cells for x in c.values(last("samples"))}
    if len(ends) > 1:
        notes.append(
            f"The runs differ in samples taken, from {count(min(ends))} to {count(max(ends))}: "
            "not all of them are at equal epochs."
        )
    return notes


def _unfinished(found: Sequence[Study]) -> list[tuple[str, str, str, str]]:
    """Every run that did not finish: name, seed, state, what is known."""
    listing = []
    for study in found:
        for cell in study.cells:
            for record in cell.records:
                if state(record) == "finished":
                    continue
                planned = record.plan.epochs
                rows = f"{len(record.rows)}{f' of {planned}' if planned else ''} epochs"
                detail = f"{rows}; {record.error}" if record.error else rows
                name = " · ".join(part for part in (cell.panel, cell.name) if part)
                listing.append((name, str(record.seed), state(record), detail))
    return listing
