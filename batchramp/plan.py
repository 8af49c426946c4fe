"""The Plan: how long to train, and the schedules of batch size, lr, beta and gamma.

The optimizer, the loader, the theorem and the report all read the same Plan, so that what is
proved is what is run and what is drawn is what was run. The only rounding rule for batch sizes and
the only count of steps stand here.
"""

import math
import os
import sys
import tomllib
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from itertools import islice, repeat, tee
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

from batchramp.schedules import (
    Constant,
    Delayed,
    Piecewise,
    Schedule,
    Stretched,
    TradedBatchSize,
    TradedLR,
    Warmup,
    as_count,
    as_number,
    as_schedule,
    most_turns,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Description", "Plan", "Saving", "Stage", "Values", "round_batch_size", "scale_lr"]

UNITS = ("epochs", "steps", "samples")
HYPERPARAMETERS = ("lr", "beta", "gamma")

# Of each: what is allowed, the least and the greatest.
_DOMAINS = {
    "batch_size": ("finite and at least 1 after rounding up", math.ulp(0), sys.float_info.max),
    "lr": ("finite and >= 0", 0, sys.float_info.max),
    "beta": ("in [0, 1)", 0, math.nextafter(1, 0)),
    "gamma": ("in [0, 1]", 0, 1),
}
# A schedule with more turns is checked at this many and at a sample of the others.
_MOST_CHECKS = 1_000_000
# Of the kinds that files have.
_MOST_OWN_CHECKS = 10_000
# Ticks that are looked at, at most, to find where a batch size changes.
_MOST_LOOKS = 10_000_000
# Stages, and epochs in which the size changes, that are listed; of more, there are totals.
_MOST_LISTED = 1_000_000
# Where to begin is kept for one in so many laps.
_LAPS_A_MARK = 64
# Stages that a description shows, the first half and the last.
_MOST_ROWS = 40
# Batches of one epoch that are listed.
_MOST_BATCHES = 100_000_000


def round_batch_size(value: float) -> int:
    """The one rounding rule: up, but 1000 * 1.1**3 = 1331.0000000000002 is 1331.

    >>> round_batch_size(1000 * 1.1**3), round_batch_size(8 * 1.1)
    (1331, 9)
    """
    return max(math.floor(value), math.ceil(value * (1 - 1e-12)))


def scale_lr(
    lr: float, batch_size: int, to: int, rule: Literal["linear", "sqrt"] = "linear"
) -> float:
    """The lr for another batch size, from one that was tuned.

    - "linear": lr · to/batch_size, for SGD: Goyal et al., "Accurate, large minibatch SGD: training
      ImageNet in 1 hour" (2017). It holds while the batch size is far below n, and with a warm-up.
    - "sqrt": lr · √(to/batch_size), for Adam and its like: Malladi et al., "On the SDEs and scaling
      rules for adaptive gradient algorithms" (2022), who with κ = to/batch_size also multiply 1 -
      β1 and 1 - β2 by κ, and ε by 1/√κ.

    Args:
        lr: a finite number >= 0.
        batch_size: at which it was tuned, an integer >= 1.
        to: the batch size that it is wanted for, an integer >= 1.
        rule: "linear" or "sqrt".

    Raises:
        ValueError: an argument out of its range.

    >>> scale_lr(0.1, 256, 1024), scale_lr(0.001, 256, 1024, "sqrt")
    (0.4, 0.002)
    """
    lr = as_number(lr, "lr", "a finite number >= 0", lambda x: x >= 0)
    factor = as_count(to, "to") / as_count(batch_size, "batch_size")
    if rule not in ("linear", "sqrt"):
        raise ValueError(f"rule must be 'linear' or 'sqrt', got {rule!r}")
    scaled = lr * (factor if rule == "linear" else math.sqrt(factor))
    return as_number(scaled, f"lr for to={to}", "a finite number")


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


_VALID = {
    "smith": (
        "for SGD, with momentum too, while the batch size is far below n; for Adam by experience\n"
        "at each sample the noise scale lr/(b (1 - beta)) is that of the decay of lr"
    ),
    "seesaw": (
        "for Adam and its like, while noise dominates the gradients; not for SGD\n"
        "at each sample lr/sqrt(b) is that of the decay of lr; AdamW's weight decay falls"
    ),
}


@final
@dataclass(frozen=True)
class Saving:
    """What `Plan.trade_decay` saves over ``n`` samples; ``str`` of it says so in words.

    Attributes:
        rule: "smith" or "seesaw".
        n: samples in the data set.
        samples: single-sample gradients taken, before and after alike.
        steps_before: of the decay of lr at constant batch size.
        steps_after: of the growth that took its place.
        batch_size_before: b0.
        batch_size_after: the greatest that is scheduled. An epoch's batches have at most n samples.
    """

    rule: str
    n: int
    samples: int
    steps_before: int
    steps_after: int
    batch_size_before: int
    batch_size_after: int

    @property
    def ratio(self) -> float:
        """Steps after by steps before: the mean of lr by its maximum, if nothing is cut short."""
        return self.steps_after / self.steps_before

    @property
    def validity(self) -> str:
        """For which optimizers the two trainings are alike, and what that rests on."""
        return _VALID[self.rule]

    def __str__(self) -> str:
        beyond = f"\nnot where the batch size is above n = {self.n:,}: set maximum, or give n"
        return (
            f"{self.rule}: {self.steps_before:,} steps become {self.steps_after:,} "
            f"({self.ratio:.3g} of them), {self.samples:,} samples as before\n"
            f"batch size {self.batch_size_before:,} to {self.batch_size_after:,} "
            f"({self.batch_size_after / self.n:.2g} n)\n{self.validity}"
            f"{beyond * (self.batch_size_after > self.n)}"
        )


@final
@dataclass(frozen=True, kw_only=True, repr=False)
class Plan:
    """How long to train, and what batch size, lr, beta and gamma have at every tick.

    Exactly one of ``epochs``, ``steps`` and ``samples`` gives the length and so the unit of the
    tick that the schedules are called with. Ticks count from 0.

    Args:
        epochs: M, passes over the data.
        steps: K, batches.
        samples: N, samples taken. Tokens are samples of a known length: with 1024 tokens a sample,
            10^9 tokens are 976,562 samples.
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
        object.__setattr__(self, given[0], as_count(getattr(self, given[0]), given[0]))
        for name in _DOMAINS:
            value = getattr(self, name)
            if name == "batch_size" or value is not None:
                object.__setattr__(self, name, as_schedule(value, name))
                self._check(name)

    # ------------------------------------------------------------------------------ reading it

    @cached_property
    def unit(self) -> str:
        """What a tick is: "epochs", "steps" or "samples"."""
        return next(unit for unit in UNITS if getattr(self, unit) is not None)

    @cached_property
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
        return Values(
            self._batch_size(tick),
            None if self.lr is None else self._value("lr", self.lr, tick),
            None if self.beta is None else self._value("beta", self.beta, tick),
            None if self.gamma is None else self._value("gamma", self.gamma, tick),
        )

    def tick(self, *, epoch: int, step: int, samples: int) -> int:
        """Which tick a batch belongs to that starts at this position; each counts from 0."""
        return {"epochs": epoch, "steps": step, "samples": samples}[self.unit]

    def batch_sizes(self, epoch: int, n: int, drop_last: bool = False) -> list[int]:
        """The true sizes of all batches of one pass over ``n`` samples, in order.

        The last may be shorter than scheduled, or is left out with ``drop_last``; but not the last
        of a Plan in samples, which ends there.

        >>> Plan(epochs=2, batch_size=4).batch_sizes(0, 10)
        [4, 4, 2]
        """
        n = as_count(n, "n")
        epochs = self.total_epochs(n, drop_last)
        if not isinstance(epoch, Integral) or not 0 <= epoch < epochs:
            raise ValueError(f"epoch must be in 0..{epochs - 1}, got {epoch!r}")
        found = _count(self, n, drop_last)
        mark = bisect_right(found.epochs_before, epoch) - 1
        epoch, tick = epoch - found.epochs_before[mark], found.ticks_before[mark]
        sizes: list[int] = []
        for _, size, count, times, begins in _pieces(self, n, drop_last, tick):
            if begins and sizes:
                break
            if begins and epoch >= times:
                epoch -= times
                inside = False
            elif begins:
                inside = True
            if inside:
                if len(sizes) + count > _MOST_BATCHES:
                    raise ValueError(
                        f"n must leave an epoch at most {_MOST_BATCHES:,} batches, got {n}"
                    )
                sizes += repeat(size, count)
        return sizes

    def total_epochs(self, n: int, drop_last: bool = False) -> int:
        """Passes over ``n`` samples, the last perhaps incomplete."""
        return _count(self, as_count(n, "n"), drop_last).epochs

    def total_steps(self, n: int, drop_last: bool = False) -> int:
        """K = Σ ⌈n/b_m⌉, all batches over ``n`` samples (⌊n/b_m⌋ with ``drop_last``).

        Exact, and known beforehand: up to 10^7 ticks of any schedule, and of any length where its
        changes are found by looking at 10^7 ticks, as of one that stays for stages.

        Raises:
            ValueError: it would take more.
        """
        return _count(self, as_count(n, "n"), drop_last).steps

    def total_samples(self, n: int, drop_last: bool = False) -> int:
        """Single-sample gradients taken, by true counts: exactly n an epoch unless some drop."""
        return _count(self, as_count(n, "n"), drop_last).samples

    def stages(self, n: int, drop_last: bool = False) -> tuple[Stage, ...]:
        """The runs of ticks of one batch size, with their steps and samples over ``n`` samples."""
        return _list_stages(self, as_count(n, "n"), drop_last)

    def laps(self, n: int) -> tuple["Lap", ...]:
        """Runs of like epochs over ``n`` samples: how many, and the batches of one of them.

        The batches are pairs of a true size and how many have it, in order.

        >>> Plan(epochs=3, batch_size=4).laps(10)
        ((3, ((4, 2), (2, 1))),)
        """
        return _list_laps(self, as_count(n, "n"))

    # ------------------------------------------------------------- growth in place of a decay

    @classmethod
    def trade_decay(
        cls,
        lr_schedule: Schedule | float,
        batch_size: int,
        rule: Literal["smith", "seesaw"] = "smith",
        *,
        epochs: int | None = None,
        steps: int | None = None,
        samples: int | None = None,
        maximum: int | None = None,
        beta: Schedule | float | None = None,
        gamma: Schedule | float | None = None,
        n: int | None = None,
    ) -> "Plan":
        """The Plan that grows the batch size where one at constant batch size lets lr decay.

        From the maximum of lr on (a warm-up stays as it is), b_t = b0 max α/α_t, and lr is

        - "smith": max α, for SGD, with momentum too, while b is far below n. Smith, Kindermans,
          Ying and Le, "Don't decay the learning rate, increase the batch size" (ICLR 2018), who
          report that it also does for Adam, which their argument does not cover.
        - "seesaw": √(α_t max α), for Adam and its like. Meterez et al., "Seesaw: accelerating
          training by balancing learning rate and batch size scheduling" (2025). AdamW's decay of
          weights, α λ a step, becomes less a sample, by √(α_t/max α).

        Where b is at ``maximum``, what remains of the decay stays in lr: α_t b/b0 and α_t √(b/b0).
        As many samples are taken, and steps fall to the mean of α_t/max α; `saved` counts them. At
        each tick α_t/b0, or α_t/√b0, is kept, but for the rounding of b: lr/b is below it by less
        than one part in b. A batch has the lr of the tick that it starts at; so has the last one of
        an epoch, which is shorter: over an epoch the sum of lr is ⌈n/b⌉ b/n times the decay's,
        which is near 1 where b is far below n, and 1 where it divides n.

        Args:
            lr_schedule: α, the decay as it was planned, over the length given below.
            batch_size: b0, at which it was meant, an integer >= 1.
            rule: "smith" or "seesaw".
            epochs: M as it was planned, or
            steps: K as it was planned. As there are fewer steps now, the Plan is in K b0 samples,
                and what was to come at step k comes at sample k b0. That is exact where each batch
                of the decay was full. Or
            samples: N as it was planned.
            maximum: an integer >= b0, where growth ends; needed where lr falls to 0.
            beta: β, in the ticks of ``lr_schedule``.
            gamma: γ, likewise.
            n: samples in the data set. No batch grows beyond: ``maximum`` is then n if not given,
                and at most n. And ``steps`` that are not exact are refused: those that go through
                the data more than once where n is no multiple of b0.

        Returns:
            A Plan in epochs or samples, with a `TradedBatchSize` and a `TradedLR`.

        Raises:
            ValueError: a value out of its range, an lr of 0 and no ``maximum``, or steps that are
                no fixed number of samples.

        >>> from batchramp.schedules import Cosine
        >>> plan = Plan.trade_decay(Cosine(0.1), 128, epochs=90, maximum=4096)
        >>> [(plan.at(m).batch_size, round(plan.at(m).lr, 6)) for m in (0, 45, 80, 89)]
        [(128, 0.1), (261, 0.1), (4096, 0.080064), (4096, 0.0)]
        >>> print(plan.saved(50_000))
        smith: 35,190 steps become 17,658 (0.502 of them), 4,500,000 samples as before
        batch size 128 to 4,096 (0.082 n)
        for SGD, with momentum too, while the batch size is far below n; for Adam by experience
        at each sample the noise scale lr/(b (1 - beta)) is that of the decay of lr
        """
        before = cls(
            epochs=epochs,
            steps=steps,
            samples=samples,
            batch_size=as_count(batch_size, "batch_size"),
            lr=lr_schedule,
            beta=beta,
            gamma=gamma,
        )
        if before.lr is None:
            raise ValueError("lr_schedule must be a Schedule or a number, got None")
        by = int(batch_size) if before.unit == "steps" else 1
        if before.steps is not None and before.steps * by > 2**53:
            raise ValueError(
                f"steps must take at most 2**53 samples, got {before.steps} of batch_size {by}"
            )
        if n is not None:
            n = as_count(n, "n")
            _refuse_short_batches(before, n, by)
            maximum = n if maximum is None else as_count(maximum, "maximum")
            if not int(batch_size) <= maximum <= n:
                raise ValueError(
                    f"maximum must be at least batch_size {batch_size} and at most n={n}, got "
                    f"{maximum}: the data have no larger batch"
                )

        def slow(schedule: Schedule) -> Schedule:
            varies = by > 1 and not isinstance(schedule, Constant)
            return Stretched(schedule, by) if varies else schedule

        lr = slow(before.lr)
        return cls(
            epochs=before.epochs,
            samples=before.steps * by if before.steps is not None else before.samples,
            batch_size=TradedBatchSize(lr, int(batch_size), maximum=maximum),
            lr=TradedLR(lr, int(batch_size), rule, maximum=maximum),
            beta=None if before.beta is None else slow(before.beta),
            gamma=None if before.gamma is None else slow(before.gamma),
        )

    def saved(self, n: int) -> "Saving":
        """What a Plan of `trade_decay` saves over ``n`` samples, a value that prints itself.

        Raises:
            ValueError: another Plan, or traded ``steps`` that are not exact over ``n`` samples.
        """
        n, growth = as_count(n, "n"), self.batch_size
        if not isinstance(growth, TradedBatchSize) or not isinstance(self.lr, TradedLR):
            raise ValueError(
                f"batch_size and lr must be those of Plan.trade_decay, got {growth!r} and "
                f"{self.lr!r}"
            )
        size = growth.batch_size
        before = Plan(**{self.unit: self.length}, batch_size=size)
        if self.unit == "samples" and isinstance(growth.lr, Stretched) and growth.lr.by == size:
            _refuse_short_batches(before, n, size)
        return Saving(
            rule=self.lr.rule,
            n=n,
            samples=self.total_samples(n),
            steps_before=before.total_steps(n),
            steps_after=self.total_steps(n),
            batch_size_before=size,
            batch_size_after=max(map(self._batch_size, growth.extremes(self.length))),
        )

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
        ticks = self.unit if self.unit == "epochs" else f"at {self.unit}"
        columns = (ticks, "batch size", "steps", "samples", *names)

        def row(stage: Stage) -> tuple[str, ...]:
            first, last = self.at(stage.start), self.at(stage.stop - 1)
            one = stage.stop - stage.start == 1
            return (
                str(stage.start) if one else f"{stage.start}-{stage.stop - 1}",
                f"{stage.batch_size:,}",
                f"{stage.steps:,}",
                f"{stage.samples:,}",
                *(_from_to(getattr(first, name), getattr(last, name)) for name in names),
            )

        n = as_count(n, "n")
        stages = _stages(self, n, False)
        rows = [row(stage) for stage in islice(stages, _MOST_ROWS)]
        half = _MOST_ROWS // 2
        last = deque(enumerate(stages, 1), maxlen=half)
        if last:
            tail = [*rows[half:], *(row(stage) for _, stage in last)][-half:]
            hidden = f"({len(rows) + last[-1][0] - 2 * half:,} more)"
            rows = [*rows[:half], ("...", hidden, *[""] * (len(columns) - 2)), *tail]
        steps, samples = self.total_steps(n), self.total_samples(n)
        return Description(
            title=f"{self.length:,} {self.unit} over {n:,} samples",
            columns=columns,
            rows=tuple(rows),
            total=f"total: {steps:,} steps, {samples:,} samples",
        )

    def plot(self, n: int) -> "Figure":
        """The schedules against the tick, one panel each, as a matplotlib Figure.

        Args:
            n: samples in the data set, for the counts in the title.
        """
        from matplotlib.figure import Figure

        names = [name for name in _DOMAINS if getattr(self, name) is not None]
        even = {i * (self.length - 1) // 1999 for i in range(2000)}
        changes = {start for start, _, _ in islice(self._runs(), 2000)}
        ticks = sorted(even | changes)
        values = [self.at(tick) for tick in ticks]
        figure = Figure(figsize=(7, 1.2 + 1.4 * len(names)), layout="constrained")
        panels = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
        for panel, name in zip(panels, names, strict=True):
            heights = [getattr(value, name) for value in values]
            # The last tick is as wide as the others.
            panel.step([*ticks, self.length], [*heights, heights[-1]], where="post")
            panel.set_ylabel(name.replace("_", " "))
            panel.grid(alpha=0.3)
        panels[0].set_yscale("log", base=2)
        panels[0].yaxis.set_major_formatter(lambda size, _: f"{size:,.0f}" if size >= 1 else "")
        panels[-1].set_xlabel({"epochs": "epoch", "steps": "step"}.get(self.unit, "samples"))
        figure.align_ylabels()
        said = self.describe(n)
        figure.suptitle(f"{said.title}, {said.total}", fontsize="medium")
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
        for name in _DOMAINS:
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
        if not isinstance(plain, Mapping):
            raise ValueError(f"a plan must be a table, got {plain!r}")
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

        try:
            return tomli_w.dumps(self.to_dict())
        except TypeError as error:
            raise ValueError(f"{self!r} must hold what TOML knows: {error}") from None

    @classmethod
    def from_toml(cls, source: str | os.PathLike[str]) -> "Plan":
        """The inverse of `to_toml`: from TOML text, or from a file if ``source`` is a Path.

        Raises:
            ValueError: not TOML, or not a Plan.

        >>> Plan.from_toml("epochs = 3\\nbatch_size = 8")
        Plan(epochs=3, batch_size=Constant(8))
        """
        try:
            is_text = isinstance(source, str)
            plain = tomllib.loads(source if is_text else Path(source).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:  # not TOML, or not UTF-8
            shown = repr(str(source))
            shown = shown if len(shown) < 80 else f"{shown[:75]}...'"
            raise ValueError(
                f"source must be TOML text, or a Path to a file of it, got {shown}: {error}"
            ) from None
        return cls.from_dict(plain)

    # ------------------------------------------------------------------------------- checking

    def _batch_size(self, tick: int) -> int:
        return round_batch_size(self._value("batch_size", self.batch_size, tick))

    def _value(self, name: str, schedule: Schedule, tick: int) -> float:
        value = schedule(tick, self.length)
        allowed, least, most = _DOMAINS[name]
        if isinstance(value, (float, int, Real)) and least <= value <= most:
            return float(value)
        raise ValueError(f"{name} must be {allowed}, got {value!r} at tick {tick} ({self.unit})")

    def _check(self, name: str) -> None:
        schedule = getattr(self, name)
        if name == "batch_size":
            _refuse_fractions(schedule)
        try:
            ticks = iter(schedule.extremes(self.length))
            first = next(ticks)
            schedule(first, self.length)
        except ValueError as error:  # a warm-up as long as the Plan
            raise ValueError(f"{name}: {error}") from None
        self._value(name, schedule, first)
        for tick in islice(ticks, most_turns(schedule, _MOST_OWN_CHECKS, _MOST_CHECKS)):
            self._value(name, schedule, tick)
        if next(ticks, None) is not None:
            for tick in range(self.length - 1, 0, -max(1, self.length // 10_000)):
                self._value(name, schedule, tick)

    def _runs(self, tick: int = 0) -> Iterator["_Run"]:
        """(start, stop, batch size) of the maximal runs of one rounded batch size, from a tick on.

        Between its turns a size only rises or only falls: where it has one size at two ticks it has
        it between them, and the end of a run is found by looking at ever wider gaps.
        """
        schedule, end = self.batch_size, self.length - 1
        looks = 0

        def look(at: int) -> int:
            nonlocal looks
            looks += 1
            if looks > _MOST_LOOKS < self.length:
                raise ValueError(
                    f"batch_size must be found by at most {_MOST_LOOKS:,} looks to be laid out, "
                    f"got {schedule!r} over {self.length:,} {self.unit}: let it change by stages"
                )
            return self._batch_size(at)

        start, size = tick, look(tick)
        while tick < end:
            turn = min(max(schedule.next_turn(tick, self.length), tick + 1), end)
            last = look(turn)
            while size != last:
                high = min(max(schedule.next_change(tick, self.length), tick + 1), turn)
                new, gap = last if high == turn else look(high), 1
                while new == size:
                    tick, high, gap = high, min(high + gap, turn), 2 * gap
                    new = last if high == turn else look(high)
                while high - tick > 1:
                    middle = (tick + high) // 2
                    seen = look(middle)
                    if seen == size:
                        tick = middle
                    else:
                        high, new = middle, seen
                yield start, high, size
                start, tick, size = high, high, new
            tick = turn
        yield start, self.length, size


def _refuse_short_batches(plan: Plan, n: int, by: int) -> None:
    """Steps are so many samples where no epoch ends with a shorter batch."""
    samples = plan.length * (by if plan.unit == "steps" else 1)
    if n % by and samples > n:
        raise ValueError(
            f"n must be a multiple of the batch size {by} where steps take each sample more than "
            f"once, got {n}: each epoch would end with a shorter step; give epochs or samples"
        )


def _refuse_fractions(schedule: Schedule) -> None:
    """A batch size that somebody typed is meant as it stands; only formulas are rounded."""
    while isinstance(schedule, Delayed | Warmup):
        schedule = schedule.schedule
    typed: tuple[float, ...] = ()
    if isinstance(schedule, Constant):
        typed = (schedule.value,)
    elif isinstance(schedule, Piecewise):
        typed = tuple(value for _, value in schedule.pieces)
    for value in typed:
        if value < 1 or value != math.floor(value):
            raise ValueError(f"batch_size must be an integer >= 1 where constant, got {value!r}")


# Epochs alike in a row: how many, and the (true batch size, count) of their batches in order.
Lap = tuple[int, tuple[tuple[int, int], ...]]
# First tick, the tick after the last, and the batch size as scheduled.
_Run = tuple[int, int, int]
# Batches of one true size in a row in an epoch: the run that they belong to, the size, how many, in
# how many epochs that are alike, and whether such an epoch begins with them.
_Piece = tuple[_Run, int, int, int, bool]


def _pieces(
    plan: Plan, n: int, drop_last: bool, tick: int = 0, runs: Iterator[_Run] | None = None
) -> Iterator[_Piece]:
    """The layout of a Plan over ``n`` samples from an epoch's first tick on.

    It does not visit each batch. An epoch ends with the data, whatever the unit: its last batch is
    shorter (or dropped). The tick at its first sample decides a batch's size. A Plan of N samples
    ends with exactly N, so its last batch may be shorter too.
    """
    runs = plan._runs(tick) if runs is None else runs
    length, unit = plan.length, plan.unit
    run = next(runs)
    while tick < length:
        while run[1] <= tick:
            run = next(runs)
        start, stop, size = run
        if drop_last and size > n:
            raise ValueError(
                f"batch_size {size} at tick {max(start, tick)} is larger than the {n} samples, and "
                "drop_last would leave no batch: keep the last batch, or limit the batch size"
            )
        full, rest = divmod(n, size)
        whole = [(size, full), (rest, 1)] if rest and not drop_last else [(size, full)]
        whole = [(size, count) for size, count in whole if count]
        ticks = plan.tick(
            epoch=1, step=sum(c for _, c in whole), samples=sum(s * c for s, c in whole)
        )
        # After a dropped rest the next tick must still be of this size: a smaller one might fit.
        ahead = stop - tick - (drop_last and rest > 0 and unit != "epochs")
        if times := ahead // ticks:
            for i, (size, count) in enumerate(whole):
                yield run, size, count, times, i == 0
            tick += times * ticks
            continue
        left = n  # in an epoch in which the size changes, or the last
        while left and tick < length:
            while run[1] <= tick:
                run = next(runs)
            _, stop, size = run
            if drop_last and size > left:
                break
            room = left if unit == "steps" else min(left, length - tick)
            true = min(size, room)
            begun = -(-(stop - tick) // (1 if unit == "steps" else size))
            count = min(begun, room // true)
            yield run, true, count, 1, left == n
            left -= true * count
            tick += count * (1 if unit == "steps" else true)


@final
@dataclass(frozen=True)
class _Count:
    """The totals of a layout, and the epoch and the tick at which some of its laps begin."""

    epochs: int
    steps: int
    samples: int
    epochs_before: array
    ticks_before: array


@lru_cache(maxsize=64)
def _count(plan: Plan, n: int, drop_last: bool) -> _Count:
    epochs = steps = samples = laps = 0
    epochs_before, ticks_before = array("q"), array("q")
    for _, size, count, times, begins in _pieces(plan, n, drop_last):
        if begins:
            if laps % _LAPS_A_MARK == 0:
                epochs_before.append(epochs)
                ticks_before.append(plan.tick(epoch=epochs, step=steps, samples=samples))
            laps += 1
            epochs += times
        steps += times * count
        samples += times * count * size
    return _Count(epochs, steps, samples, epochs_before, ticks_before)


def _stages(plan: Plan, n: int, drop_last: bool) -> Iterator[Stage]:
    runs, own = tee(plan._runs())
    run = next(runs)
    steps = samples = 0
    for (start, _, _), size, count, times, _ in _pieces(plan, n, drop_last, 0, own):
        while run[0] != start:  # no batch begins in a run shorter than one
            yield Stage(*run, steps, samples)
            run, steps, samples = next(runs), 0, 0
        steps += times * count
        samples += times * count * size
    yield Stage(*run, steps, samples)
    yield from (Stage(*run, 0, 0) for run in runs)


@lru_cache(maxsize=16)
def _list_stages(plan: Plan, n: int, drop_last: bool) -> tuple[Stage, ...]:
    listed = tuple(islice(_stages(plan, n, drop_last), _MOST_LISTED + 1))
    if len(listed) > _MOST_LISTED:
        raise ValueError(
            f"batch_size must change at most {_MOST_LISTED:,} times for its stages to be listed, "
            f"got {plan.batch_size!r} over {plan.length:,} {plan.unit}: see describe and the totals"
        )
    return listed


@lru_cache(maxsize=16)
def _list_laps(plan: Plan, n: int) -> tuple[Lap, ...]:
    laps: list[tuple[int, list[tuple[int, int]]]] = []
    runs, last = 0, None
    for run, size, count, times, begins in _pieces(plan, n, False):
        runs += run is not last
        last = run
        if runs > _MOST_LISTED:
            raise ValueError(
                f"batch_size must change at most {_MOST_LISTED:,} times for its epochs to be "
                f"listed, got {plan.batch_size!r} over {plan.length:,} {plan.unit}"
            )
        if begins:
            laps.append((times, []))
        laps[-1][1].append((size, count))
    return tuple((times, tuple(lap)) for times, lap in laps)


def _from_to(first: float, last: float) -> str:
    return f"{first:.4g}" if first == last else f"{first:.4g} → {last:.4g}"
