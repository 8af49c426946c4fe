"""The page: what was run, what came out, and what that says of the paper's claims.

One HTML file that loads nothing: drawings are embedded, tabs are radio buttons and CSS. A small
script of its own shows the values under the pointer; all else works without it. Every text that
comes from a file is escaped, by the template or by the drawing.
"""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from statistics import fmean
from typing import Any, final
from urllib.parse import quote

from jinja2 import Environment, StrictUndefined, Template

from batchramp import store
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
from batchramp.report.curves import AXES, styles
from batchramp.report.drawing import Style
from batchramp.report.figures import Figure, figures, threshold_figures
from batchramp.report.published import Beside, beside
from batchramp.report.table import csv_text
from batchramp.store import Record, read_all

__all__ = ["render", "write"]

CSV = "runs.csv"


def write(folder: str | Path, out: str | Path | None = None) -> Path:
    """Writes the report of all runs in ``folder`` and below: one self-contained HTML page.

    Beside it, ``runs.csv`` has every run and epoch as a line; see `write_csv`. The page links it,
    and every run's files by their place as seen from the page.

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
    if path.is_dir() or not path.parent.is_dir() or (path.parent / CSV).is_dir():
        raise ValueError(f"out must be a file in a folder that exists, got {path}")
    page = render(records, path.parent)
    store.write(path.parent / CSV, csv_text(records, folder).encode())
    store.write(path, page.encode())
    return path


def render(records: Sequence[Record], place: Path | None = None) -> str:
    """The page as text.

    Args:
        records: the runs.
        place: the folder of the page, from which it links the runs' files; None for no links.

    >>> render([]).startswith("<!doctype html>")
    True
    """
    found = studies(records)
    judgement = judge(records)
    return _template().render(
        title=listed(list(dict.fromkeys(s.experiment or s.task for s in found))) or "no runs",
        facts=_facts(records, found),
        noted=any(record.note for record in records),
        sections=[_section(study, place, alone=len(found) == 1) for study in found],
        csv=CSV if place else "",
        judgement=judgement,
        spoken=[c for c in judgement.claims if c.verdict != SILENT],
        silent=[c for c in judgement.claims if c.verdict == SILENT],
        axes=AXES,
        script=_part("page.js").strip(),
        unfinished=_unfinished(found),
        runs=len(records),
        several=len(found) > 1,
    )


@lru_cache(maxsize=1)
def _template() -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["tidy"] = _tidy
    return environment.from_string(_part("page.html.j2"))


def _part(name: str) -> str:
    return resources.files("batchramp.report").joinpath(name).read_text("utf-8")


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
    figures: tuple[Figure, ...]
    thresholds: tuple[Figure, ...]
    beside: Beside | None
    columns: tuple[str, ...]
    table: tuple[tuple[str, tuple["TableRow", ...]], ...]  # panel, rows
    notes: tuple[str, ...]


@final
@dataclass(frozen=True)
class TableRow:
    """A cell's line in the table: means with their ranges, and in which columns it is best."""

    colour: str
    name: str
    values: tuple[tuple[str, str], ...]
    best: frozenset[int]
    remark: str
    files: tuple[tuple[int, str, str], ...]  # seed, run.json, epochs.jsonl


def _section(study: Study, place: Path | None, *, alone: bool) -> Section:
    style = styles([cell.line for cell in study.cells])
    columns, table = _table(study, style, place)
    return Section(
        study=study,
        headline=tuple(_headline(study)),
        figures=tuple(figures(study)),
        thresholds=tuple(threshold_figures(study)),
        beside=beside(study),
        columns=columns,
        table=table,
        notes=(*([] if alone else _said(study)), *_notes(study)),
    )


def _facts(records: Sequence[Record], found: Sequence[Study]) -> list[tuple[str, str]]:
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
        ("note", listed(_said(found[0])) if len(found) == 1 else ""),
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
    study: Study, style: dict[str, Style], place: Path | None
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
            colour, files = style[cell.line].colour, _files(cell, place)
            rows.append(TableRow(colour, cell.name, tuple(values), marks, _remark(cell), files))
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


def _files(cell: Cell, place: Path | None) -> tuple[tuple[int, str, str], ...]:
    """Each seed's files, as seen from the page."""
    if place is None:
        return ()
    found = []
    for record in cell.records:
        folder = _address(record.folder, place)
        rows = f"{folder}/epochs.jsonl" if record.rows else ""
        found.append((record.seed, f"{folder}/run.json", rows))
    return tuple(found)


def _address(folder: Path, place: Path) -> str:
    """A folder as a link from a page in ``place``, percent-encoded.

    >>> _address(Path("runs/a b/50 %"), Path("runs"))
    'a%20b/50%20%25'
    """
    try:
        relative = Path(os.path.relpath(folder.absolute(), place.absolute()))
    except ValueError:  # another drive
        return folder.absolute().as_uri()
    return quote(relative.as_posix())


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


def _said(study: Study) -> list[str]:
    """What its runs say of themselves, such as how lr was chosen."""
    runs = (record for cell in study.cells for record in cell.records)
    return [note[:1].upper() + note[1:] for note in dict.fromkeys(r.note for r in runs) if note]


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
