"""Which runs are seeds of the same thing, and how they and their numbers are called.

A cell is one line of a figure: the runs of one panel and label that differ in the seed alone. A
study is what may be compared: cells of one experiment, task and model.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, final

from batchramp.store import Record

__all__ = ["Cell", "Study", "studies"]

# In the order in which they are shown; what is not named here follows by its name.
ROLES = ("increasing", "small", "equal-steps", "best-constant", "large", "lr-decay-twin")
EXPERIMENTS = (
    "figure1", "figure4", "figure5", "figure8", "a11", "figure10", "baselines", "decide",
)  # fmt: skip
PANELS = ("constant", "inverse-sqrt", "inverse", "cosine", "polynomial")

# Ended, but not where the method leads: shown, marked, and never compared as a result.
LOST = ("collapsed", "diverged", "at chance at the end")


def state(record: Record) -> str:
    """How the run stands: its status, but a finished run is told by its last row.

    One that ends no better than a constant answer is "at chance at the end".
    """
    if record.status != "finished":
        return record.status
    if not record.rows:
        return "without rows"
    return LOST[2] if record.rows[-1].get("at_chance") else "finished"


@final
@dataclass(frozen=True)
class Cell:
    """The runs of one panel and label, one a seed.

    Attributes:
        panel, label: as in the runs.
        variant: what tells it from another cell of the same panel and label; mostly "".
        records: sorted by seed, each seed once.
    """

    panel: str
    label: str
    variant: str
    records: tuple[Record, ...]

    @property
    def line(self) -> str:
        """What a colour stands for: the label, and the variant where there is one."""
        return ", ".join(part for part in (self.label, self.variant) if part)

    @property
    def batch_sizes(self) -> str:
        """As planned: "b = 8", or "8 → 4096"."""
        plan = self.records[0].plan
        first, last = plan.at(0).batch_size, plan.at(plan.length - 1).batch_size
        return f"b = {first}" if first == last else f"{first} → {last}"

    @property
    def name(self) -> str:
        """The line with its batch sizes: "small (b = 8)"."""
        return f"{self.line} ({self.batch_sizes})" if self.line else self.batch_sizes

    @property
    def finished(self) -> tuple[Record, ...]:
        """The runs that count."""
        return tuple(r for r in self.records if state(r) == "finished")

    @property
    def lost(self) -> tuple[Record, ...]:
        """The runs that collapsed, diverged or ended at chance."""
        return tuple(r for r in self.records if state(r) in LOST)

    @property
    def remark(self) -> str:
        """How many runs did not finish, and how; "" if all did.

        "2 of 3 collapsed, 1 of 3 running".
        """
        left = [state(r) for r in self.records if state(r) != "finished"]
        return ", ".join(
            f"{left.count(what)} of {len(self.records)} {what}" for what in dict.fromkeys(left)
        )

    @property
    def growths(self) -> tuple[int, ...]:
        """The epochs at whose start the batch had grown, from the longest run's rows.

        Of a plan in epochs alone: under another a row has the batch size of the epoch's end.
        """
        if self.records[0].plan.unit != "epochs":
            return ()
        rows = max((r.rows for r in self.records), key=len)
        sizes = [row["batch_size"] for row in rows]
        return tuple(
            m for m in range(1, len(sizes)) if sizes[m] and sizes[m - 1] and sizes[m] > sizes[m - 1]
        )

    def values(self, measure: Callable[[Record], float]) -> list[float]:
        """``measure`` of the finished runs, where it is a finite number."""
        return [x for x in map(measure, self.finished) if math.isfinite(x)]


@final
@dataclass(frozen=True)
class Study:
    """What may be compared: the cells of one experiment, task and model.

    Attributes:
        experiment, task, model: as in the runs.
        cells: ordered by panel, then label.
        repeated: runs left out, because an earlier folder has the same cell and seed.
    """

    experiment: str
    task: str
    model: str
    cells: tuple[Cell, ...]
    repeated: tuple[Record, ...] = ()

    @property
    def name(self) -> str:
        """The experiment, task and model in words."""
        return ", ".join(part for part in (self.experiment, self.task, self.model) if part)

    @property
    def panels(self) -> tuple[str, ...]:
        """In the order shown."""
        return tuple(dict.fromkeys(cell.panel for cell in self.cells))

    @property
    def records(self) -> list[Record]:
        """All runs of all cells."""
        return [record for cell in self.cells for record in cell.records]

    def panel(self, panel: str) -> tuple[Cell, ...]:
        """The cells of one panel."""
        return tuple(cell for cell in self.cells if cell.panel == panel)

    def cell(self, panel: str, label: str) -> Cell | None:
        """The one cell of this panel and label; None if there is none or there are several."""
        found = [cell for cell in self.panel(panel) if cell.label == label]
        return found[0] if len(found) == 1 else None

    def measures(self, column: str) -> bool:
        """Whether any run has a number in this column."""
        return any(row.get(column) is not None for r in self.records for row in r.rows)


def studies(records: Iterable[Record]) -> list[Study]:
    """Sorts runs into studies and cells.

    >>> studies([])
    []
    """
    found: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        found.setdefault((record.experiment, record.task, record.model), []).append(record)
    keys = sorted(found, key=lambda key: (_order(key[0], EXPERIMENTS), *key))
    return [_study(*key, found[key]) for key in keys]


def _study(experiment: str, task: str, model: str, records: list[Record]) -> Study:
    grouped: dict[tuple[str, str], dict[str, list[Record]]] = {}
    for record in records:
        plan = json.dumps([record.optimizer, record.plan.to_dict()], sort_keys=True)
        variants = grouped.setdefault((record.panel, record.label), {})
        variants.setdefault(plan, []).append(record)
    cells, repeated = [], []
    for (panel, label), variants in grouped.items():
        names = _variant_names([group[0] for group in variants.values()])
        for name, group in zip(names, variants.values(), strict=True):
            seeds: dict[int, Record] = {}
            for record in group:
                if record.seed in seeds:
                    repeated.append(record)
                else:
                    seeds[record.seed] = record
            members = tuple(seeds[seed] for seed in sorted(seeds))
            cells.append(Cell(panel, label, name, members))
    cells.sort(key=lambda c: (_order(c.panel, PANELS), _order(c.label, ROLES), _natural(c.variant)))
    return Study(experiment, task, model, tuple(cells), tuple(repeated))


def _order(name: str, known: Sequence[str]) -> tuple[Any, ...]:
    return (known.index(name) if name in known else len(known), _natural(name))


def _natural(name: str) -> list[tuple[bool, float, str]]:
    """Numbers in a name count as numbers: "constant 8" before "constant 16"."""
    parts = re.split(r"(\d+(?:\.\d+)?)", name)
    return [(i % 2 == 1, float(p) if i % 2 else 0.0, p) for i, p in enumerate(parts)]


def _variant_names(records: Sequence[Record]) -> list[str]:
    """What differs between runs of the same panel and label, in words; "" for a single one."""
    if len(records) == 1:
        return [""]
    columns: list[list[str]] = []
    for name in ("optimizer", "length", "batch_size", "lr", "beta", "gamma"):
        texts = [_setting(record, name) for record in records]
        if len(set(texts)) > 1:
            columns.append(texts)
    return [", ".join(column[i] for column in columns) for i in range(len(records))]


def _setting(record: Record, name: str) -> str:
    if name == "optimizer":
        return record.optimizer
    if name == "length":
        return f"{record.plan.length} {record.plan.unit}"
    schedule: Any = getattr(record.plan, name)
    value = getattr(schedule, "value", None)
    return f"{name} {schedule!r}" if value is None else f"{name} {value:g}"


# ------------------------------------------------------------------------ numbers and their words


def last(column: str) -> Callable[[Record], float]:
    """A measure: the column's value at a run's last epoch; nan where there is none."""

    def measure(record: Record) -> float:
        value = record.rows[-1].get(column) if record.rows else None
        return math.nan if value is None else float(value)

    return measure


def number(value: float) -> str:
    """A measured number: three significant digits, no exponent where it can be helped.

    >>> number(0.012345), number(0.1), number(1234.5), number(0.00000123)
    ('0.0123', '0.100', '1,234', '1.23e-06')
    """
    if not math.isfinite(value):
        return "–"
    if value == 0 or abs(value) < 1e-4:
        return f"{value:.3g}"
    if abs(value) >= 999.5:
        return f"{value:,.0f}"
    rounded = float(f"{value:.3g}")
    return f"{rounded:.{2 - math.floor(math.log10(abs(rounded)))}f}"


def setting(value: float) -> str:
    """A number that was chosen, as short as it is.

    >>> setting(0.1), setting(0.0)
    ('0.1', '0')
    """
    return f"{value:.4g}" if math.isfinite(value) else "–"


def percent(value: float) -> str:
    """An accuracy in percent, to a tenth.

    >>> percent(73.149)
    '73.1 %'
    """
    return f"{value:.1f} %" if math.isfinite(value) else "–"


def count(value: float) -> str:
    """A whole number with separators.

    >>> count(374760.0)
    '374,760'
    """
    return f"{value:,.0f}" if math.isfinite(value) else "–"


def spread(values: Sequence[float], text: Callable[[float], str] = number) -> str:
    """The mean with its range; the value alone if all are the same; "–" if none.

    >>> spread([1.0, 3.0, 2.0]), spread([2.0]), spread([])
    ('2.00 [1.00, 3.00]', '2.00', '–')
    """
    if not values:
        return "–"
    mean, low, high = text(fmean(values)), text(min(values)), text(max(values))
    return mean if low == high else f"{mean} [{low.removesuffix(' %')}, {high.removesuffix(' %')}]"


def listed(words: Sequence[str]) -> str:
    """As a list in a sentence.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"
