"""Schedules: pure functions of a tick, as frozen values.

A schedule is called ``schedule(tick, horizon)``. The tick is whatever the Plan counts (epochs,
steps or samples), from 0; the horizon is the Plan's length, handed in by the Plan. A schedule
knows no torch and holds no counter. It prints as its own constructor, compares, hashes, pickles
and reads from TOML. Every schedule serves every hyperparameter; the Plan checks the domain.

Equation numbers are those of Imaizumi and Iiduka, "Both Asymptotic and Non-Asymptotic Convergence
of Quasi-Hyperbolic Momentum using Increasing Batch Size" (ACML 2025).

    >>> growth = Exponential(8, factor=2, every=30)
    >>> growth
    Exponential(8, factor=2, every=30)
    >>> [growth(epoch, 300) for epoch in (0, 29, 30, 299)]
    [8.0, 8.0, 16.0, 4096.0]
"""

import math
import re
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, MISSING, Field, dataclass, fields
from fractions import Fraction
from functools import lru_cache
from itertools import islice
from numbers import Integral, Real
from typing import Any, ClassVar, final

# A schedule with more is not searched for its maximum.
_MOST_TURNS = 10_000_000
# Nor is one that is made of the kinds below alone, as files have them, with so many more turns than
# pieces: no file may ask for minutes.
_MOST_OWN_TURNS = 50_000
_POWERS = {"k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}

__all__ = [
    "Constant",
    "Cosine",
    "Delayed",
    "Exponential",
    "IncreasingBeta",
    "Inverse",
    "InverseSqrt",
    "Linear",
    "Piecewise",
    "Polynomial",
    "Product",
    "Schedule",
    "StepDecay",
    "Stretched",
    "TradedBatchSize",
    "TradedLR",
    "Warmup",
]


class Schedule(ABC):
    """What every schedule is: a frozen dataclass that maps ``(tick, horizon)`` to a number.

    A schedule of your own is a frozen dataclass that defines ``__call__``. It then works in Plans,
    in TOML (``kind`` is the name of the class) and under the drivers;
    `batchramp.testing.check_schedule` tests it.

        >>> @dataclass(frozen=True)
        ... class Sawtooth(Schedule):
        ...     low: float
        ...     high: float
        ...     def __call__(self, tick, horizon, /):
        ...         return self.high if tick % 2 else self.low
        >>> Sawtooth(0.1, 0.2)(3, 10)
        0.2
    """

    monotone: ClassVar[bool] = False
    """Whether the value never turns around, up or down; a promise that saves looking."""

    _kinds: ClassVar[dict[str, type["Schedule"]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        known = Schedule._kinds.get(cls.__name__)
        if known is not None and known.__module__ != cls.__module__:
            raise TypeError(
                f"a schedule of the name {cls.__name__!r} exists already, in {known.__module__}: "
                "files name schedules by their class, so the name must be its own"
            )
        Schedule._kinds[cls.__name__] = cls

    @abstractmethod
    def __call__(self, tick: int, horizon: int, /) -> float:
        """The value at ``tick`` (0 <= tick < horizon) of a Plan ``horizon`` ticks long."""

    def next_change(self, tick: int, horizon: int, /) -> int:
        """A tick after ``tick`` up to which (exclusive) the value is that at ``tick``.

        Lets a Plan of 10^12 steps be described by its few changes. The default, ``tick + 1``,
        is always right.
        """
        return tick + 1

    def next_turn(self, tick: int, horizon: int, /) -> int:
        """A tick after ``tick`` up to which (inclusive) the value only rises or only falls.

        Lets a Plan find the few changes of a batch size, which is rounded, between very many
        ticks. The default, the last tick of a monotone schedule and else the next change, is always
        right.
        """
        return _last(tick, horizon) if self.monotone else self.next_change(tick, horizon)

    def extremes(self, horizon: int, /) -> Iterable[int]:
        """Ticks of which one has the least of all values, and one the greatest.

        Lets a Plan check every value's range without looking at each. The default, every turn, is
        always right.
        """
        tick = 0
        yield tick
        while tick < horizon - 1:
            tick = min(max(self.next_turn(tick, horizon), tick + 1), horizon - 1)
            yield tick

    def _said(self) -> Iterable[tuple[Field[Any], Any]]:
        """The constructor's arguments, those left at their defaults left out."""
        for field in _arguments(type(self)):
            value = getattr(self, field.name)
            if field.default is MISSING or value != field.default:
                yield field, value

    def __repr__(self) -> str:
        """The constructor call that makes this value, defaults left out."""
        said = (f"{f.name}={v!r}" if f.kw_only else repr(v) for f, v in self._said())
        return f"{type(self).__name__}({', '.join(said)})"

    def to_dict(self) -> dict[str, Any]:
        """As plain numbers, strings, lists and dicts: what goes into TOML and JSON.

        >>> Cosine(0.1).to_dict()
        {'kind': 'Cosine', 'start': 0.1}
        """
        return {"kind": type(self).__name__} | {f.name: _plain(v) for f, v in self._said()}

    @staticmethod
    def from_dict(plain: Mapping[str, Any], field: str = "schedule") -> "Schedule":
        """The inverse of `to_dict`; ``field`` names the place in messages.

        Args:
            plain: has a ``kind``, the name of a schedule's class, and the class's own fields.
            field: what error messages call it.

        Raises:
            ValueError: an unknown kind or key, a missing key or a value out of range.

        >>> Schedule.from_dict({"kind": "Cosine", "start": 0.1})
        Cosine(0.1)
        """
        if not isinstance(plain, Mapping):
            raise ValueError(f"{field} must be a table with a kind, got {plain!r}")
        given = dict(plain)
        kind = given.pop("kind", None)
        cls = Schedule._kinds.get(kind) if isinstance(kind, str) else None
        if cls is None:
            raise ValueError(
                f"{field}.kind must be one of {', '.join(Schedule._kinds)}, got {kind!r}"
            )
        _check_is_value(cls)
        allowed = {f.name: f for f in _arguments(cls)}
        for key in given:
            if key not in allowed:
                raise ValueError(
                    f"{field}.{key} is not a field of {kind}: allowed are {', '.join(allowed)}"
                )
        for name, f in allowed.items():
            if f.default is MISSING and f.default_factory is MISSING and name not in given:
                raise ValueError(f"{field}.{name} is missing: {kind} needs it")
        values = {key: _from_plain(value, f"{field}.{key}") for key, value in given.items()}
        try:
            return cls(**values)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{field}: {error}") from None


def _arguments(cls: type) -> list[Field[Any]]:
    return [field for field in fields(cls) if field.init]


def _plain(value: Any) -> Any:
    if isinstance(value, Schedule):
        return value.to_dict()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _from_plain(value: Any, field: str) -> Any:
    if isinstance(value, Mapping) and "kind" in value:
        return Schedule.from_dict(value, field)
    if isinstance(value, list | tuple):
        return tuple(_from_plain(item, f"{field}[{i}]") for i, item in enumerate(value))
    return value


# ---------------------------------------------------------------------------- checks of arguments


def as_schedule(value: Schedule | float, field: str) -> Schedule:
    """``value`` itself if it is a schedule, a `Constant` if it is a number.

    Raises:
        ValueError: it is neither; the message names ``field``.
    """
    if not isinstance(value, Schedule):
        return Constant(as_number(value, field, "a finite number or a Schedule"))
    _check_is_value(type(value))
    try:
        hash(value)
    except TypeError as error:
        raise ValueError(f"{field} must be hashable, got {value!r}: {error}") from None
    return value


def as_number(
    value: Any,
    field: str,
    allowed: str = "a finite number",
    ok: Callable[[float], bool] = lambda number: True,
) -> float:
    """``value`` as a Python number, finite and in range; ints stay ints.

    Raises:
        ValueError: it is none; the message names ``field`` and what is ``allowed``.
    """
    with suppress(OverflowError):  # an integer beyond the range of floats
        if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value):
            number = int(value) if isinstance(value, Integral) else float(value)
            if ok(number):
                return number
    raise ValueError(f"{field} must be {allowed}, got {value!r}")


def as_count(value: Any, field: str, least: int = 1) -> int:
    """``value`` as a Python int, at least ``least``; at most 2**53, so that floats hold it.

    Raises:
        ValueError: it is none; the message names ``field``.
    """
    limit = f">= {least}"
    if isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least:
        if int(value) <= 2**53:
            return int(value)
        limit = "<= 2**53"
    raise ValueError(f"{field} must be an integer {limit}, got {value!r}")


def _check_is_value(cls: type) -> None:
    params = cls.__dict__.get("__dataclass_params__")
    if params is None or not params.frozen or not params.eq:
        raise ValueError(
            f"schedule {cls.__name__} must be a frozen dataclass: put @dataclass(frozen=True) on it"
        )
    if any(field.name == "kind" for field in fields(cls)):
        raise ValueError(
            f"schedule {cls.__name__} must not have a field 'kind': files use the word"
        )


# ------------------------------------------------------------------------------------ the schedules


@final
@dataclass(frozen=True, repr=False)
class Constant(Schedule):
    """The same value at every tick: (1), (3), (8) and (11).

    Args:
        value: any finite number. As a batch size it must be an integer.

    >>> Constant(0.1)(7, 10)
    0.1
    """

    monotone = True

    value: float

    def __post_init__(self) -> None:
        _set(self, value=as_number(self.value, "value"))

    def __call__(self, tick: int, horizon: int, /) -> float:
        return self.value

    def next_change(self, tick: int, horizon: int, /) -> int:
        return _never(tick, horizon)


@final
@dataclass(frozen=True, repr=False)
class Exponential(Schedule):
    """Growth by a factor every so many ticks: b0 δ^⌊m/E⌋, (2).

    Args:
        start: b0 > 0.
        factor: δ > 1. It need not be an integer: the Plan rounds the batch size up, from this
            closed form, so nothing drifts.
        every: E >= 1, in ticks.
        maximum: the value is held there once it is reached; None for no limit.

    >>> plan_batch_size = Exponential(8, factor=2, every=3, maximum=20)
    >>> [plan_batch_size(m, 12) for m in (0, 2, 3, 6, 11)]
    [8.0, 8.0, 16.0, 20.0, 20.0]
    """

    monotone = True

    start: float
    _: KW_ONLY
    factor: float
    every: int
    maximum: float | None = None

    def __post_init__(self) -> None:
        _set(
            self,
            start=as_number(self.start, "start", "a finite number > 0", lambda x: x > 0),
            factor=as_number(self.factor, "factor", "a finite number > 1", lambda x: x > 1),
            every=as_count(self.every, "every"),
            maximum=_maximum(self.maximum, self.start),
        )

    def __call__(self, tick: int, horizon: int, /) -> float:
        return _limited(self.start * _power(self.factor, tick // self.every), self.maximum)

    def next_change(self, tick: int, horizon: int, /) -> int:
        if self(tick, horizon) == self.maximum:
            return _never(tick, horizon)
        return _next_multiple(tick, self.every)


@final
@dataclass(frozen=True, repr=False)
class Linear(Schedule):
    """Growth by a fixed amount every so many ticks: b0 + δ ⌊m/E⌋, appendix A.11 (E = 1 there).

    Args:
        start: b0.
        increment: δ, what is added at each change; negative to fall.
        every: E >= 1, in ticks.
        maximum: the value is held there once it is reached; None for no limit.

    >>> [Linear(8, 16)(m, 10) for m in (0, 1, 9)]
    [8.0, 24.0, 152.0]
    """

    monotone = True

    start: float
    increment: float
    _: KW_ONLY
    every: int = 1
    maximum: float | None = None

    def __post_init__(self) -> None:
        _set(
            self,
            start=as_number(self.start, "start"),
            increment=as_number(self.increment, "increment"),
            every=as_count(self.every, "every"),
            maximum=_maximum(self.maximum, self.start),
        )

    def __call__(self, tick: int, horizon: int, /) -> float:
        return _limited(self.start + float(self.increment) * (tick // self.every), self.maximum)

    def next_change(self, tick: int, horizon: int, /) -> int:
        if self.increment >= 0 and self(tick, horizon) == self.maximum:
            return _never(tick, horizon)
        return _next_multiple(tick, self.every)


@final
@dataclass(frozen=True, repr=False)
class InverseSqrt(Schedule):
    """Sqrt-decaying: α / √(m + 1), (4).

    Args:
        start: α, the value at tick 0.

    >>> InverseSqrt(0.1)(3, 10)
    0.05
    """

    monotone = True

    start: float

    def __post_init__(self) -> None:
        _set(self, start=as_number(self.start, "start"))

    def __call__(self, tick: int, horizon: int, /) -> float:
        return self.start / math.sqrt(tick + 1)


@final
@dataclass(frozen=True, repr=False)
class Inverse(Schedule):
    """Decaying: α / (m + 1), (5).

    Args:
        start: α, the value at tick 0.

    >>> Inverse(0.1)(4, 10)
    0.02
    """

    monotone = True

    start: float

    def __post_init__(self) -> None:
        _set(self, start=as_number(self.start, "start"))

    def __call__(self, tick: int, horizon: int, /) -> float:
        return self.start / (tick + 1)


@final
@dataclass(frozen=True, repr=False)
class Cosine(Schedule):
    """Half a cosine from start to end: c + (a - c)/2 (1 + cos(mπ/(M - 1))), (6).

    The last tick has the value ``end``; a Plan one tick long has ``start``.

    Args:
        start: a, the value at tick 0.
        end: c. It may lie above start: a cosine then grows.
        span: ticks from start to end, at least 1; None for horizon - 1, as in the paper. After it
            the value stays at ``end``. ``span=M`` gives torch's CosineAnnealingLR with T_max=M,
            which the paper's released code used and which ends before it reaches ``end``.

    >>> [round(Cosine(0.1)(m, 5), 6) for m in range(5)]
    [0.1, 0.085355, 0.05, 0.014645, 0.0]
    """

    monotone = True

    start: float
    _: KW_ONLY
    end: float = 0.0
    span: int | None = None

    def __post_init__(self) -> None:
        _set(
            self,
            start=as_number(self.start, "start"),
            end=as_number(self.end, "end"),
            span=_optional_span(self.span),
        )

    def __call__(self, tick: int, horizon: int, /) -> float:
        if tick <= 0:
            return self.start
        span = horizon - 1 if self.span is None else self.span
        if tick >= span:
            return self.end
        return self.end + (self.start - self.end) / 2 * (1 + math.cos(math.pi * tick / span))

    def next_change(self, tick: int, horizon: int, /) -> int:
        return _next_until(tick, horizon, self.span)


@final
@dataclass(frozen=True, repr=False)
class Polynomial(Schedule):
    """Polynomial decay: c + (a - c)(1 - m/M)^p, (7).

    Args:
        start: a, the value at tick 0.
        power: p > 0.
        end: c, which is reached at tick M, one after the last.
        span: the denominator, at least 1; None for the horizon M, as in the paper. After it the
            value stays at ``end``. ``span=M - 1`` gives the paper's released code, whose last
            epoch has exactly ``end``.

    >>> [Polynomial(0.1, power=2)(m, 4) for m in (0, 2)]
    [0.1, 0.025]
    """

    monotone = True

    start: float
    _: KW_ONLY
    power: float
    end: float = 0.0
    span: int | None = None

    def __post_init__(self) -> None:
        _set(
            self,
            start=as_number(self.start, "start"),
            power=as_number(self.power, "power", "a finite number > 0", lambda x: x > 0),
            end=as_number(self.end, "end"),
            span=_optional_span(self.span),
        )

    def __call__(self, tick: int, horizon: int, /) -> float:
        if tick <= 0:
            return self.start
        span = horizon if self.span is None else self.span
        left = max(0.0, 1 - tick / span)
        return self.end + (self.start - self.end) * left**self.power

    def next_change(self, tick: int, horizon: int, /) -> int:
        return _next_until(tick, horizon, self.span)


@final
@dataclass(frozen=True, repr=False)
class StepDecay(Schedule):
    """Decay by a factor every so many ticks: β ζ^⌊m/E⌋, (9) and (12).

    Args:
        start: the value at tick 0.
        factor: ζ (λ for gamma), in (0, 1). The paper's section 4 says 2 and divides by it: 0.5.
        every: E >= 1, in ticks.

    >>> [StepDecay(0.9, factor=0.5, every=30)(m, 300) for m in (29, 30, 60)]
    [0.9, 0.45, 0.225]
    """

    monotone = True

    start: float
    _: KW_ONLY
    factor: float
    every: int

    def __post_init__(self) -> None:
        _set(
            self,
            start=as_number(self.start, "start"),
            factor=as_number(self.factor, "factor", "in (0, 1) to decay", lambda x: 0 < x < 1),
            every=as_count(self.every, "every"),
        )

    def __call__(self, tick: int, horizon: int, /) -> float:
        return self.start * _power(self.factor, tick // self.every)

    def next_change(self, tick: int, horizon: int, /) -> int:
        return _next_multiple(tick, self.every)


@final
@dataclass(frozen=True, repr=False)
class IncreasingBeta(Schedule):
    """Growth towards 1: 1 - (1 - β) / (m + 1)^(3/4), (10).

    Args:
        start: β, the value at tick 0, in [0, 1).
        every: ticks between changes; 1, each epoch, in the paper, 30 in its released code.

    >>> IncreasingBeta(0.5)(15, 300)
    0.9375
    """

    monotone = True

    start: float
    _: KW_ONLY
    every: int = 1

    def __post_init__(self) -> None:
        _set(
            self,
            start=as_number(self.start, "start", "in [0, 1)", lambda x: 0 <= x < 1),
            every=as_count(self.every, "every"),
        )

    def __call__(self, tick: int, horizon: int, /) -> float:
        # The formula turned round, so that tick 0 has β itself, and not 1 - (1 - β) in floats.
        return self.start + (1 - self.start) * (1 - (tick // self.every + 1) ** -0.75)

    def next_change(self, tick: int, horizon: int, /) -> int:
        return _next_multiple(tick, self.every)


@final
@dataclass(frozen=True, repr=False, init=False)
class Piecewise(Schedule):
    """Given values from given ticks on.

    Args:
        pieces: a mapping from the first tick of a piece to its value, with a piece at 0; kept as
            sorted pairs. A tick may be a text, with k, M, G or B, T for powers of 1000.

    >>> milestones = Piecewise({0: 8, 30: 16})
    >>> milestones(29, 100), milestones(30, 100), milestones.pieces
    (8, 16, ((0, 8), (30, 16)))
    >>> Piecewise({0: 768, "1.5M": 1536})
    Piecewise({0: 768, 1500000: 1536})
    """

    pieces: tuple[tuple[int, float], ...]

    def __init__(self, pieces: Mapping[Any, float] | Sequence[tuple[int | str, float]]) -> None:
        wrong = f"pieces must map each tick, 0 among them, to one value, got {pieces!r}"
        try:
            pairs = dict(pieces).items()
        except (TypeError, ValueError):
            raise ValueError(wrong) from None
        kept = {
            as_count(_from_text(tick), "a tick of pieces", 0): as_number(value, f"pieces[{tick}]")
            for tick, value in pairs
        }
        if 0 not in kept or len(kept) < len(pieces):
            raise ValueError(wrong)
        _set(self, pieces=tuple(sorted(kept.items())))

    def __repr__(self) -> str:
        return f"Piecewise({dict(self.pieces)})"

    def __call__(self, tick: int, horizon: int, /) -> float:
        return self.pieces[self._index(tick)][1]

    def next_change(self, tick: int, horizon: int, /) -> int:
        after = self._index(tick) + 1
        return self.pieces[after][0] if after < len(self.pieces) else _never(tick, horizon)

    def _index(self, tick: int) -> int:
        return bisect_right(self.pieces, tick, key=lambda piece: piece[0]) - 1


@final
@dataclass(frozen=True, repr=False)
class Warmup(Schedule):
    """A linear rise before another schedule.

    With s0 the schedule's first value, tick t < length has start + (s0 - start)(t + 1)/(length +
    1): strictly between ``start`` and s0, so that no tick is spent at ``start`` itself. From tick
    ``length`` on it is ``schedule(t - length, horizon - length)``.

    Args:
        schedule: what follows the rise; a number is a Constant.
        length: ticks of the rise, below the Plan's length.
        start: where the rise comes from.

    >>> [Warmup(Constant(1.0), 3)(t, 10) for t in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """

    schedule: Schedule
    length: int
    _: KW_ONLY
    start: float = 0.0

    def __post_init__(self) -> None:
        _set(
            self,
            schedule=as_schedule(self.schedule, "schedule"),
            length=as_count(self.length, "length", 0),
            start=as_number(self.start, "start"),
        )

    def __call__(self, tick: int, horizon: int, /) -> float:
        rest = self._rest(horizon)
        if tick >= self.length:
            return self.schedule(tick - self.length, rest)
        peak = self.schedule(0, rest)
        return self.start + (peak - self.start) * (tick + 1) / (self.length + 1)

    def next_change(self, tick: int, horizon: int, /) -> int:
        if tick < self.length:
            return tick + 1
        return self.length + self.schedule.next_change(tick - self.length, self._rest(horizon))

    def next_turn(self, tick: int, horizon: int, /) -> int:
        if tick < self.length:
            return max(self.length - 1, tick + 1)
        return self.length + self.schedule.next_turn(tick - self.length, self._rest(horizon))

    def _rest(self, horizon: int) -> int:
        if self.length >= horizon:
            raise ValueError(
                f"length of the warm-up must be below the Plan's {horizon} ticks, got {self.length}"
            )
        return horizon - self.length


@final
@dataclass(frozen=True, repr=False)
class Delayed(Schedule):
    """Another schedule, late: s(max(t - by, 0), horizon).

    ``by=1`` is what the paper's released code does to batch size, beta and gamma.

    Args:
        schedule: what is delayed; a number is a Constant.
        by: ticks, at least 0.

    >>> late = Delayed(Exponential(8, factor=2, every=30), by=1)
    >>> late(30, 300), late(31, 300)
    (8.0, 16.0)
    """

    schedule: Schedule
    by: int

    def __post_init__(self) -> None:
        _set(self, schedule=as_schedule(self.schedule, "schedule"), by=as_count(self.by, "by", 0))

    def __call__(self, tick: int, horizon: int, /) -> float:
        return self.schedule(max(tick - self.by, 0), horizon)

    def next_change(self, tick: int, horizon: int, /) -> int:
        return self.by + self.schedule.next_change(max(tick - self.by, 0), horizon)

    def next_turn(self, tick: int, horizon: int, /) -> int:
        return self.by + self.schedule.next_turn(max(tick - self.by, 0), horizon)


@final
@dataclass(frozen=True, repr=False)
class Product(Schedule):
    """Two schedules multiplied, tick by tick.

    A batch size that doubles has a learning-rate twin: the same lr schedule, halved whenever the
    batch would double (Smith et al., 2018).

    Args:
        left: a schedule; a number is a Constant.
        right: likewise.

    >>> twin = Product(Cosine(0.1), StepDecay(1, factor=0.5, every=3))
    >>> twin(0, 30), twin(29, 30)
    (0.1, 0.0)
    """

    left: Schedule
    right: Schedule

    def __post_init__(self) -> None:
        _set(self, left=as_schedule(self.left, "left"), right=as_schedule(self.right, "right"))

    def __call__(self, tick: int, horizon: int, /) -> float:
        return self.left(tick, horizon) * self.right(tick, horizon)

    def next_change(self, tick: int, horizon: int, /) -> int:
        return min(self.left.next_change(tick, horizon), self.right.next_change(tick, horizon))

    def next_turn(self, tick: int, horizon: int, /) -> int:
        both = (self.left, self.right)
        turn = min(_last(tick, horizon), *(s.next_turn(tick, horizon) for s in both))
        ends = [(s(tick, horizon), s(turn, horizon)) for s in both] if turn < horizon else []
        if all(a >= b >= 0 for a, b in ends) or all(0 <= a <= b for a, b in ends):
            return turn
        return self.next_change(tick, horizon)


@final
@dataclass(frozen=True, repr=False)
class Stretched(Schedule):
    """Another schedule, slow: s(⌊t/by⌋, ⌈M/by⌉).

    What is given in steps of ``by`` samples, as a schedule in samples.

    Args:
        schedule: what is slowed down; a number is a Constant.
        by: ticks that take the place of one, at least 1.

    >>> slow = Stretched(StepDecay(0.1, factor=0.5, every=3), by=32)
    >>> slow(95, 320), slow(96, 320)
    (0.1, 0.05)
    """

    schedule: Schedule
    by: int

    def __post_init__(self) -> None:
        _set(self, schedule=as_schedule(self.schedule, "schedule"), by=as_count(self.by, "by"))

    def __call__(self, tick: int, horizon: int, /) -> float:
        return self.schedule(tick // self.by, -(-horizon // self.by))

    def next_change(self, tick: int, horizon: int, /) -> int:
        return self.by * self.schedule.next_change(tick // self.by, -(-horizon // self.by))

    def next_turn(self, tick: int, horizon: int, /) -> int:
        return self.by * self.schedule.next_turn(tick // self.by, -(-horizon // self.by))


@final
@dataclass(frozen=True, repr=False)
class TradedBatchSize(Schedule):
    """Growth in place of a decay of lr: b0 max α / α_t, at most ``maximum``.

    From the first tick at which the lr α_t has its maximum on; before, as in a warm-up, it is b0.
    So α_t/b0, which a decay at constant batch size lowers, is lowered by b alone: Smith,
    Kindermans, Ying and Le, "Don't decay the learning rate, increase the batch size" (ICLR 2018).
    `TradedLR` is the lr that belongs to it, and `batchramp.Plan.trade_decay` makes both.

    Args:
        lr: α, whose decay is traded; never negative.
        batch_size: b0, at which it was meant, an integer >= 1.
        maximum: an integer >= b0, where growth ends; needed where lr falls to 0.

    >>> [TradedBatchSize(StepDecay(0.1, factor=0.5, every=3), 32)(m, 9) for m in (2, 3, 6)]
    [32.0, 64.0, 128.0]
    """

    lr: Schedule
    batch_size: int
    _: KW_ONLY
    maximum: int | None = None

    def __post_init__(self) -> None:
        _set_traded(self)

    def __call__(self, tick: int, horizon: int, /) -> float:
        return _traded(self, tick, horizon)[0]

    def next_change(self, tick: int, horizon: int, /) -> int:
        return self.lr.next_change(max(tick, _peak(self.lr, horizon)[0]), horizon)

    def next_turn(self, tick: int, horizon: int, /) -> int:
        return self.lr.next_turn(max(tick, _peak(self.lr, horizon)[0]), horizon)


@final
@dataclass(frozen=True, repr=False)
class TradedLR(Schedule):
    """What is left of an lr when its decay was traded for growth of the batch size.

    With b of `TradedBatchSize`, and from the maximum of lr on,

    - "smith": α_t b/b0, which is max α until b is at its ``maximum``. Then α_t/b0, the lr a sample,
      is at every tick as it was (Smith et al., ICLR 2018).
    - "seesaw": α_t √(b/b0), which is √(α_t max α) until b is at its ``maximum``: where lr was cut
      by a factor, it is cut by the square root. α_t/√b0, the lr a sample of a step that divides by
      the gradients' root mean square, is as it was (Meterez et al., "Seesaw: accelerating training
      by balancing learning rate and batch size scheduling", 2025).

    Args:
        lr, batch_size, maximum: as of the `TradedBatchSize`.
        rule: "smith" or "seesaw".

    >>> decay = StepDecay(0.8, factor=0.25, every=3)
    >>> [TradedLR(decay, 32, "smith")(m, 9) for m in (2, 3, 6)]
    [0.8, 0.8, 0.8]
    >>> [TradedLR(decay, 32, "seesaw")(m, 9) for m in (2, 3, 6)]
    [0.8, 0.4, 0.2]
    >>> [TradedLR(decay, 32, "smith", maximum=128)(m, 9) for m in (2, 3, 6)]
    [0.8, 0.8, 0.2]
    """

    lr: Schedule
    batch_size: int
    rule: str
    _: KW_ONLY
    maximum: int | None = None

    def __post_init__(self) -> None:
        _set_traded(self)
        if self.rule not in ("smith", "seesaw"):
            raise ValueError(f"rule must be 'smith' or 'seesaw', got {self.rule!r}")

    def __call__(self, tick: int, horizon: int, /) -> float:
        return _traded(self, tick, horizon)[1 if self.rule == "smith" else 2]

    def next_change(self, tick: int, horizon: int, /) -> int:
        constant = self.rule == "smith" and self.maximum is None
        if constant and tick >= _peak(self.lr, horizon)[0]:
            return _never(tick, horizon)
        return self.lr.next_change(tick, horizon)

    def next_turn(self, tick: int, horizon: int, /) -> int:
        turn, peak = self.lr.next_turn(tick, horizon), _peak(self.lr, horizon)[0]
        return min(turn, peak) if tick < peak else turn


def _set_traded(schedule: TradedBatchSize | TradedLR) -> None:
    size, maximum = as_count(schedule.batch_size, "batch_size"), schedule.maximum
    if maximum is not None:
        maximum = as_count(maximum, "maximum", size)
    _set(schedule, lr=as_schedule(schedule.lr, "lr"), batch_size=size, maximum=maximum)


def _traded(
    schedule: TradedBatchSize | TradedLR, tick: int, horizon: int
) -> tuple[float, float, float]:
    """The batch size that is not rounded yet, and the lr of "smith" and of "seesaw"."""
    lr, size, maximum = schedule.lr(tick, horizon), schedule.batch_size, schedule.maximum
    start, peak = _peak(schedule.lr, horizon)
    if tick < start or lr == peak:
        return float(size), lr, lr
    if maximum is not None and lr * maximum <= peak * size:
        smith = min(lr * (maximum / size), peak)
        return float(maximum), smith, lr * math.sqrt(maximum / size)
    if lr <= 0:
        raise ValueError(
            f"maximum must be given where lr falls to 0, got none and lr {lr!r} at tick {tick}: "
            "no batch size is large enough, and from maximum on lr decays as it did"
        )
    grown = size * (peak / lr)
    # Not √(lr peak), whose product may leave the floats.
    return _limited(grown, maximum), peak, peak * math.sqrt(lr / peak)


@lru_cache(maxsize=128)
def _peak(lr: Schedule, horizon: int) -> tuple[int, float]:
    """The first of the ticks at which lr has its maximum, and the maximum."""
    ticks = iter(lr.extremes(horizon))
    tick, peak = 0, -math.inf
    most = most_turns(lr, _MOST_OWN_TURNS, _MOST_TURNS)
    for seen in islice(ticks, most):
        value = lr(seen, horizon)
        if value > peak or (value == peak and seen < tick):
            tick, peak = seen, value
    if next(ticks, None) is not None:
        raise ValueError(f"lr must turn at most {most:,} times to find its maximum")
    return tick, peak


def most_turns(schedule: Schedule, own: int, foreign: int) -> int:
    """How many of a schedule's turns are looked at.

    Args:
        schedule: the schedule.
        own: so many, and all pieces, if it is made of the kinds of this module alone, whose
            formulas say what lies between.
        foreign: so many, if there is a kind of somebody else's in it.

    >>> most_turns(Product(Cosine(0.1), Piecewise({0: 1, 9: 2})), 10, 1000)
    12
    """
    if type(schedule).__module__ != __name__:
        return foreign
    found = own
    for field in fields(schedule):  # type: ignore[arg-type]
        value = getattr(schedule, field.name)
        if isinstance(value, Schedule):
            found += most_turns(value, 0, foreign)
        elif field.name == "pieces":
            found += len(value)
    return min(found, foreign)


def _set(schedule: Schedule, /, **values: Any) -> None:
    for name, value in values.items():
        object.__setattr__(schedule, name, value)


def _maximum(value: Any, start: float) -> float | None:
    if value is None:
        return None
    return as_number(value, "maximum", f"a finite number >= start ({start})", lambda x: x >= start)


def _optional_span(value: Any) -> int | None:
    return None if value is None else as_count(value, "span")


def _limited(value: float, maximum: float | None) -> float:
    return value if maximum is None else min(value, float(maximum))


def _power(base: float, exponent: int) -> float:
    try:
        return float(base) ** exponent
    except OverflowError:
        return math.inf


def _last(tick: int, horizon: int) -> int:
    return max(horizon - 1, tick + 1)


def _never(tick: int, horizon: int) -> int:
    return max(horizon, tick + 1)


def _next_multiple(tick: int, every: int) -> int:
    return (tick // every + 1) * every


def _next_until(tick: int, horizon: int, span: int | None) -> int:
    return tick + 1 if span is None or tick < span else _never(tick, horizon)


def _from_text(tick: Any) -> Any:
    """Keys of a TOML or JSON table are strings; "1.5M" is 1,500,000."""
    if not isinstance(tick, str):
        return tick
    found = re.fullmatch(r"([0-9]+)|([0-9]+(?:\.[0-9]+)?) ?([kKMGBT])", tick)
    value = None
    if found:
        whole, number, power = found.groups()
        value = Fraction(int(whole)) if whole else Fraction(number) * _POWERS[power]
    if value is None or value.denominator != 1:
        raise ValueError(
            "a tick of pieces must be an integer >= 0 or the text of one, such as '250000' or "
            f"'1.5M' (k, M, G or B, T), got {tick!r}"
        )
    return int(value)
