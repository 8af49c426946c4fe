"""The Plan: how long to train, and the schedules of batch size, lr, beta and gamma.

The optimizer, the loader, the theorem and the report all read the same Plan, so that what is
proved is what is run and what is drawn is what was run. The only rounding rule for batch sizes and
the only count of steps stand here.
"""

import math
import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from batchramp.schedules import Constant, Piecewise, Schedule, as_schedule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Description", "Plan", "Stage", "Values", "round_batch_size"]

UNITS = ("epochs", "steps", "samples")
HYPERPARAMETERS = ("lr", "beta", "gamma")

# A Plan of more distinct ticks is checked at this many, evenly spread, and at its ends.
_CHECKED_TICKS = 1_000_000
# Batches that a Plan counted in steps or samples is walked through, one by one, to lay them out.
_WALKED_BATCHES = 10_000_000


def round_batch_size(value: float) -> int:
    """The one rounding rule: up, but 1000 * 1.1**3 = 1331.0000000000002 is 1331.

    >>> round_batch_size(1000 * 1.1**3), round_batch_size(8 * 1.1)
    (1331, 9)
    """
    return int(value) if value == math.floor(value) else math.ceil(value * (1 - 1e-12))


@final
@dataclass(frozen=True)
class Values:
    """What a Plan says at one tick. None: left to the optimizer."""

    batch_size: int
    lr: float | None
    beta: float | None
    gamma: float | None

    @property
    def hyperparameters(self) -> dict[str, float]:
        """lr, beta and gamma by name, as far as the Plan schedules them."""
        given = {name: getattr(self, name) for name in HYPERPARAMETERS}
        return {name: value for name, value in given.items() if value is not None}


@final
@dataclass(frozen=True)
class Stage:
    """A run of ticks of one batch size.

    Attributes:
        start: the first tick.
        stop: the tick after the last.
        batch_size: b, as scheduled; the last batch of an epoch may be shorter.
        steps: batches in the stage.
        samples: single-sample gradients taken in the stage, by true counts.
    """

    start: int
    stop: int
    batch_size: int
    steps: int
    samples: int


@final
@dataclass(frozen=True)
class Description:
    """A Plan over ``n`` samples as a table; ``str`` of it is the table."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    total: str

    def __str__(self) -> str:
        lines = [self.columns, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        table = [
            "  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in lines
        ]
        return "\n".join([self.title, *table, self.total])

    __repr__ = __str__


@final
@dataclass(frozen=True, kw_only=True, repr=False)
class Plan:
    """How long to train, and what batch size, lr, beta and gamma have at every tick.

    Exactly one of ``epochs``, ``steps`` and ``samples`` gives the length and so the unit of the
    tick that the schedules are called with. Ticks count from 0.

    Args:
        epochs: M, passes over the data.
        steps: K, batches.
        samples: N, samples taken.
        batch_size: a Schedule or an integer; rounded up at every tick (`round_batch_size`).
        lr: α, a Schedule or a number >= 0. None, here and below: the optimizer's own business.
        beta: β, the decay of the momentum buffer, in [0, 1).
        gamma: γ, the weight of the momentum buffer, in [0, 1].

    Raises:
        ValueError: no length or several, or a value out of its domain at some tick; the message
            names the field, the tick and the value.

    >>> from batchramp import schedules as s
    >>> plan = Plan(
    ...     epochs=300,
    ...     batch_size=s.Exponential(8, factor=2, every=30),
    ...     lr=s.Cosine(0.1),
    ...     beta=s.StepDecay(0.9, factor=0.5, every=30),
    ...     gamma=s.StepDecay(0.7, factor=0.5, every=30),
    ... )
    >>> plan.at(30).batch_size, plan.at(30).beta
    (16, 0.45)
    >>> plan.total_steps(50_000), plan.total_samples(50_000)
    (374760, 15000000)
    """

    epochs: int | None = None
    steps: int | None = None
    samples: int | None = None
    batch_size: Schedule
    lr: Schedule | None = None
    beta: Schedule | None = None
    gamma: Schedule | None = None

    # The fields may be given as numbers; they are kept as schedules.
    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            epochs: int | None = None,
            steps: int | None = None,
            samples: int | None = None,
            batch_size: Schedule | int,
            lr: Schedule | float | None = None,
            beta: Schedule | float | None = None,
            gamma: Schedule | float | None = None,
        ) -> None: ...

    def __post_init__(self) -> None:
        given = [unit for unit in UNITS if getattr(self, unit) is not None]
        if len(given) != 1:
            named = ", ".join(given) or "none"
            raise ValueError(f"exactly one of epochs, steps, samples must be given, got {named}")
        object.__setattr__(self, self.unit, _count(self.unit, self.length))
        for name in ("batch_size", *HYPERPARAMETERS):
            value = getattr(self, name)
            if name == "batch_size" or value is not None:
                object.__setattr__(self, name, as_schedule(value, name))
        self._refuse_fractions()
        for tick in self._ticks_to_check():
            self.at(tick)

    # ------------------------------------------------------------------------------ reading it

    @property
    def unit(self) -> str:
        """What a tick is: "epochs", "steps" or "samples"."""
        return next(unit for unit in UNITS if getattr(self, unit) is not None)

    @property
    def length(self) -> int:
        """The number of ticks: the horizon that the schedules are called with."""
        return getattr(self, self.unit)

    def at(self, tick: int) -> Values:
        """The values at one tick.

        Args:
            tick: 0 <= tick < length.

        Raises:
            ValueError: the tick is outside the Plan.
        """
        if not isinstance(tick, Integral) or not 0 <= tick < self.length:
            raise ValueError(f"tick must be in 0..{self.length - 1} ({self.unit}), got {tick!r}")
        size = self._value("batch_size", tick, 1, math.inf, "a batch size must be >= 1")
        return Values(
            batch_size=round_batch_size(size),
            lr=self._optional("lr", tick, 0, math.inf, "lr must be >= 0"),
            beta=self._optional("beta", tick, 0, 1, "beta must be in [0, 1)"),
            gamma=self._optional("gamma", tick, 0, 1, "gamma must be in [0, 1]"),
        )

    def tick(self, *, epoch: int, step: int, samples: int) -> int:
        """Which tick a batch belongs to that starts at this position; each counts from 0."""
        return {"epochs": epoch, "steps": step, "samples": samples}[self.unit]

    def batch_sizes(self, epoch: int, n: int, drop_last: bool = False) -> list[int]:
        """The true sizes of all batches of one pass over ``n`` samples, in order.

        The last may be shorter than scheduled, or is left out with ``drop_last``.

        >>> Plan(epochs=2, batch_size=4).batch_sizes(0, 10)
        [4, 4, 2]
        """
        if self.unit == "epochs":
            size = self.at(epoch).batch_size
            full, rest = divmod(_count("n", n), size)
            self._refuse_empty_epoch(epoch, size, n, drop_last)
            return [size] * full + ([rest] if rest and not drop_last else [])
        passes = _walk(self, _count("n", n), drop_last)
        if not 0 <= epoch < len(passes):
            raise ValueError(f"epoch must be in 0..{len(passes) - 1}, got {epoch!r}")
        return [size for _, size in passes[epoch]]

    def total_epochs(self, n: int, drop_last: bool = False) -> int:
        """Passes over ``n`` samples, the last perhaps incomplete."""
        if self.epochs is not None:
            return self.epochs
        return len(_walk(self, _count("n", n), drop_last))

    def total_steps(self, n: int, drop_last: bool = False) -> int:
        """K = Σ ⌈n/b_m⌉, all batches over ``n`` samples (⌊n/b_m⌋ with ``drop_last``)."""
        return sum(stage.steps for stage in self.stages(n, drop_last))

    def total_samples(self, n: int, drop_last: bool = False) -> int:
        """Single-sample gradients taken, by true counts: exactly n an epoch unless some drop."""
        return sum(stage.samples for stage in self.stages(n, drop_last))

    def stages(self, n: int, drop_last: bool = False) -> tuple[Stage, ...]:
        """The runs of ticks of one batch size, with their steps and samples over ``n`` samples."""
        n = _count("n", n)
        runs = list(self._runs())
        if self.unit == "epochs":
            stages = []
            for start, stop, size in runs:
                self._refuse_empty_epoch(start, size, n, drop_last)
                steps = n // size if drop_last else -(-n // size)
                samples = steps * size if drop_last else n
                count = stop - start
                stages.append(Stage(start, stop, size, count * steps, count * samples))
            return tuple(stages)
        batches = iter([batch for one in _walk(self, n, drop_last) for batch in one])
        batch = next(batches, None)
        stages = []
        for start, stop, size in runs:
            steps = samples = 0
            while batch is not None and batch[0] < stop:
                steps, samples = steps + 1, samples + batch[1]
                batch = next(batches, None)
            stages.append(Stage(start, stop, size, steps, samples))
        return tuple(stages)

    # ----------------------------------------------------------------------------- showing it

    def describe(self, n: int) -> Description:
        """A table, stage by stage, over ``n`` samples, that prints itself.

        >>> print(Plan(epochs=4, batch_size=Piecewise({0: 8, 3: 16}), lr=0.1).describe(100))
        4 epochs over 100 samples
        epochs  batch size  steps  samples   lr
           0-2           8     39      300  0.1
             3          16      7      100  0.1
        total: 46 steps, 400 samples
        """
        names = [name for name in HYPERPARAMETERS if getattr(self, name) is not None]
        stages = self.stages(n)
        rows = []
        for stage in stages:
            first, last = self.at(stage.start), self.at(stage.stop - 1)
            ticks = f"{stage.start}-{stage.stop - 1}"
            rows.append(
                (
                    ticks if stage.stop - stage.start > 1 else str(stage.start),
                    f"{stage.batch_size:,}",
                    f"{stage.steps:,}",
                    f"{stage.samples:,}",
                    *(_from_to(getattr(first, name), getattr(last, name)) for name in names),
                )
            )
        steps, samples = sum(s.steps for s in stages), sum(s.samples for s in stages)
        return Description(
            title=f"{self.length:,} {self.unit} over {n:,} samples",
            columns=(self.unit, "batch size", "steps", "samples", *names),
            rows=tuple(rows),
            total=f"total: {steps:,} steps, {samples:,} samples",
        )

    def plot(self, n: int) -> "Figure":
        """The schedules against the tick, one panel each, as a matplotlib Figure.

        Args:
            n: samples in the data set, for the counts in the title.
        """
        from matplotlib.figure import Figure

        names = [
            name for name in ("batch_size", *HYPERPARAMETERS) if getattr(self, name) is not None
        ]
        ticks = sorted({i * (self.length - 1) // 1999 for i in range(2000)})
        values = [self.at(tick) for tick in ticks]
        figure = Figure(figsize=(7, 1.2 + 1.4 * len(names)), layout="constrained")
        panels = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
        for panel, name in zip(panels, names, strict=True):
            panel.step(ticks, [getattr(v, name) for v in values], where="post")
            panel.set_ylabel(name.replace("_", " "))
            panel.grid(alpha=0.3)
        panels[0].set_yscale("log", base=2)
        panels[-1].set_xlabel(self.unit.removesuffix("s") if self.unit != "samples" else "samples")
        figure.suptitle(str(self.describe(n).total))
        return figure

    def __repr__(self) -> str:
        given = ((f.name, getattr(self, f.name)) for f in fields(self))
        return f"Plan({', '.join(f'{name}={v!r}' for name, v in given if v is not None)})"

    # --------------------------------------------------------------------- as text and back

    def to_dict(self) -> dict[str, Any]:
        """As plain numbers, strings and dicts; a Constant is a number.

        >>> Plan(epochs=3, batch_size=8, lr=0.1).to_dict()
        {'epochs': 3, 'batch_size': 8, 'lr': 0.1}
        """
        plain: dict[str, Any] = {self.unit: self.length}
        for name in ("batch_size", *HYPERPARAMETERS):
            schedule = getattr(self, name)
            if isinstance(schedule, Constant):
                plain[name] = schedule.value
            elif schedule is not None:
                plain[name] = schedule.to_dict()
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Plan":
        """The inverse of `to_dict`.

        Raises:
            ValueError: an unknown key or kind, or a value that the Plan refuses.
        """
        allowed = [f.name for f in fields(cls)]
        given: dict[str, Any] = {}
        for key, value in plain.items():
            if key not in allowed:
                raise ValueError(
                    f"{key} is not a field of a plan: allowed are {', '.join(allowed)}"
                )
            given[key] = Schedule.from_dict(value, key) if isinstance(value, Mapping) else value
        if "batch_size" not in given:
            raise ValueError("batch_size is missing: every plan needs one")
        return cls(**given)

    def to_toml(self) -> str:
        """As TOML text.

        >>> from batchramp.schedules import InverseSqrt
        >>> print(Plan(epochs=3, batch_size=8, lr=InverseSqrt(0.1)).to_toml())
        epochs = 3
        batch_size = 8
        <BLANKLINE>
        [lr]
        kind = "InverseSqrt"
        start = 0.1
        <BLANKLINE>
        """
        import tomli_w

        return tomli_w.dumps(self.to_dict())

    @classmethod
    def from_toml(cls, source: str | os.PathLike[str]) -> "Plan":
        """The inverse of `to_toml`: from TOML text, or from a file if ``source`` is a Path.

        Raises:
            ValueError: not TOML, or not a Plan.

        >>> Plan.from_toml("epochs = 3\\nbatch_size = 8")
        Plan(epochs=3, batch_size=Constant(8))
        """
        text = source if isinstance(source, str) else Path(source).read_text(encoding="utf-8")
        return cls.from_dict(tomllib.loads(text))

    # ------------------------------------------------------------------------------- checking

    def _value(self, name: str, tick: int, least: float, most: float, allowed: str) -> float:
        value = getattr(self, name)(tick, self.length)
        # A batch size of 0.3 is 1 after rounding; a beta of 1 is none.
        ok = isinstance(value, Real) and math.isfinite(value)
        if ok and name == "batch_size":
            ok = round_batch_size(value) >= least
        elif ok:
            ok = least <= value <= most and not (name == "beta" and value >= 1)
        if not ok:
            raise ValueError(f"{name}: {allowed}, got {value!r} at tick {tick} ({self.unit})")
        return float(value)

    def _optional(
        self, name: str, tick: int, least: float, most: float, allowed: str
    ) -> float | None:
        if getattr(self, name) is None:
            return None
        return self._value(name, tick, least, most, allowed)

    def _refuse_fractions(self) -> None:
        schedule = self.batch_size
        typed = [schedule.value] if isinstance(schedule, Constant) else []
        if isinstance(schedule, Piecewise):
            typed = [value for _, value in schedule.pieces]
        for value in typed:
            if value != math.floor(value):
                raise ValueError(f"batch_size: a constant must be an integer >= 1, got {value!r}")

    def _refuse_empty_epoch(self, epoch: int, size: int, n: int, drop_last: bool) -> None:
        if drop_last and size > n:
            raise ValueError(
                f"batch_size {size} at tick {epoch} is larger than the {n} samples, and drop_last "
                "would leave no batch: keep the last batch, or set a maximum on the batch size"
            )

    def _next_change(self, tick: int) -> int:
        planned = (getattr(self, name) for name in ("batch_size", *HYPERPARAMETERS))
        nearest = min(s.next_change(tick, self.length) for s in planned if s is not None)
        return max(nearest, tick + 1)

    def _ticks_to_check(self) -> Iterator[int]:
        tick = 0
        for _ in range(_CHECKED_TICKS):
            yield tick
            tick = self._next_change(tick)
            if tick >= self.length:
                yield self.length - 1
                return
        yield from range(tick, self.length, max(1, self.length // _CHECKED_TICKS))
        yield self.length - 1

    def _runs(self) -> Iterator[tuple[int, int, int]]:
        """(start, stop, batch size) of the maximal runs of one rounded batch size."""
        start, size = 0, self.at(0).batch_size
        tick = self.batch_size.next_change(0, self.length)
        while tick < self.length:
            new = self.at(tick).batch_size
            if new != size:
                yield start, tick, size
                start, size = tick, new
            tick = max(self.batch_size.next_change(tick, self.length), tick + 1)
        yield start, self.length, size


@lru_cache(maxsize=16)
def _walk(plan: Plan, n: int, drop_last: bool) -> tuple[tuple[tuple[int, int], ...], ...]:
    """(tick, size) of every batch of every pass of a Plan counted in steps or samples.

    An epoch ends with the data, whatever the unit: its last batch is shorter (or dropped). A Plan
    of N samples ends with exactly N, so its last batch may be shorter too.
    """
    passes: list[tuple[tuple[int, int], ...]] = []
    step = samples = 0
    size = start = stop = 0
    while plan.tick(epoch=0, step=step, samples=samples) < plan.length:
        batches: list[tuple[int, int]] = []
        left = n
        while left and (tick := plan.tick(epoch=0, step=step, samples=samples)) < plan.length:
            if not start <= tick < stop:
                size = plan.at(tick).batch_size
                start, stop = tick, plan.batch_size.next_change(tick, plan.length)
            if drop_last and size > left:
                break
            true = min(size, left)
            if plan.unit == "samples":
                true = min(true, plan.length - samples)
            batches.append((tick, true))
            step, samples, left = step + 1, samples + true, left - true
        if not batches:
            plan._refuse_empty_epoch(step, size, n, drop_last)
        passes.append(tuple(batches))
        if step > _WALKED_BATCHES:
            raise ValueError(
                f"{plan.unit} {plan.length}: a plan of more than {_WALKED_BATCHES:,} batches can "
                "only be laid out when it counts epochs"
            )
    return tuple(passes)


def _count(field: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{field} must be an integer >= 1, got {value!r}")
    return value


def _from_to(first: float, last: float) -> str:
    return f"{first:.4g}" if first == last else f"{first:.4g} → {last:.4g}"
