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
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import KW_ONLY, MISSING, dataclass, fields
from numbers import Integral, Real
from typing import Any, ClassVar, final

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

    def __repr__(self) -> str:
        """The constructor call that makes this value, defaults left out."""
        parts = []
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if field.default is not MISSING and value == field.default:
                continue
            parts.append(f"{field.name}={value!r}" if field.kw_only else repr(value))
        return f"{type(self).__name__}({', '.join(parts)})"

    def to_dict(self) -> dict[str, Any]:
        """As plain numbers, strings, lists and dicts: what goes into TOML and JSON.

        >>> Cosine(0.1).to_dict()
        {'kind': 'Cosine', 'start': 0.1}
        """
        plain: dict[str, Any] = {"kind": type(self).__name__}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if field.default is MISSING or value != field.default:
                plain[field.name] = _plain(value)
        return plain

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
        rest = dict(plain)
        kind = rest.pop("kind", None)
        cls = Schedule._kinds.get(kind) if isinstance(kind, str) else None
        if cls is None:
            raise ValueError(
                f"{field}.kind must be one of {', '.join(Schedule._kinds)}, got {kind!r}"
            )
        _check_is_value(cls)
        allowed = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
        for key, value in rest.items():
            if key not in allowed:
                raise ValueError(
                    f"{field}.{key} is not a field of {kind}: allowed are {', '.join(allowed)}"
                )
            if isinstance(value, Mapping) and "kind" in value:
                rest[key] = Schedule.from_dict(value, f"{field}.{key}")
        for name, f in allowed.items():
            if f.default is MISSING and f.default_factory is MISSING and name not in rest:
                raise ValueError(f"{field}.{name} is missing: {kind} needs it")
        try:
            return cls(**rest)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{field}: {error}") from None


def as_schedule(value: "Schedule | float", field: str) -> Schedule:
    """``value`` itself if it is a schedule, a `Constant` if it is a number.

    Raises:
        ValueError: it is neither; the message names ``field``.
    """
    if isinstance(value, Schedule):
        _check_is_value(type(value))
        return value
    if isinstance(value, Real) and not isinstance(value, bool):
        return Constant(_number(field, value))
    raise ValueError(f"{field} must be a number or a Schedule, got {value!r}")


def _check_is_value(cls: type) -> None:
    params = cls.__dict__.get("__dataclass_params__")
    if params is None or not params.frozen or not params.eq:
        raise ValueError(
            f"schedule {cls.__name__} must be a frozen dataclass: put @dataclass(frozen=True) on it"
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Schedule):
        return value.to_dict()
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


# ---------------------------------------------------------------- checks of constructor arguments


def _number(
    field: str, value: Any, *, least: float = -math.inf, above: float = -math.inf, allowed: str = ""
) -> float:
    """``value`` as a Python number, finite and in range; ints stay ints."""
    real = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if not math.isfinite(real) or not real >= least or (above != -math.inf and not real > above):
        if not allowed:
            limit = f" > {above:g}" if above != -math.inf else f" >= {least:g}"
            allowed = "a finite number" + ("" if limit == " >= -inf" else limit)
        raise ValueError(f"{field} must be {allowed}, got {value!r}")
    return int(value) if isinstance(value, Integral) else float(value)


def _count(field: str, value: Any, least: int) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{field} must be an integer >= {least}, got {value!r}")
    return int(value)


def _set(schedule: Schedule, /, **values: Any) -> None:
    for name, value in values.items():
        object.__setattr__(schedule, name, value)


def _power(base: float, exponent: int) -> float:
    try:
        return float(base) ** exponent
    except OverflowError:
        return math.inf


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

    value: float

    def __post_init__(self) -> None:
        _set(self, value=_number("value", self.value))

    def __call__(self, tick: int, horizon: int, /) -> float:
        return self.value

    def next_change(self, tick: int, horizon: int, /) -> int:
        return max(horizon, tick + 1)


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

    start: float
    _: KW_ONLY
    factor: float
    every: int
    maximum: float | None = None

    def __post_init__(self) -> None:
        _set(
            self,
            start=_number("start", self.start, above=0),
            factor=_number("factor", self.factor, above=1),
            every=_count("every", self.every, 1),
            maximum=_maximum(self.maximum, self.start),
        )

    def __call__(self, tick: int, horizon: int, /) -> float:
        value = self.start * _power(self.factor, tick // self.every)
        return value if self.maximum is None else float(min(value, self.maximum))

    def next_change(self, tick: int, horizon: int, /) -> int:
        if self.maximum is not None and self(tick, horizon) >= self.maximum:
            return max(horizon, tick + 1)
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

    start: float
    increment: float
    _: KW_ONLY
    every: int = 1
    maximum: float | None = None

    def __post_init__(self) -> None:
        _set(
            self,
            start=_number("start", self.start),
            increment=_number("increment", self.increment),
            every=_count("every", self.every, 1),
            maximum=_maximum(self.maximum, self.start),
        )

    def __call__(self, tick: int, horizon: int, /) -> float:
        value = float(self.start + self.increment * (tick // self.every))
        return value if self.maximum is None else float(min(value, self.maximum))

    def next_change(self, tick: int, horizon: int, /) -> int:
        if self.maximum is not None and self.increment >= 0 and self(tick, horizon) >= self.maximum:
            return max(horizon, tick + 1)
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

    start: float

    def __post_init__(self) -> None:
        _set(self, start=_number("start", self.start))

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

    start: float

    def __post_init__(self) -> None:
        _set(self, start=_number("start", self.start))

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

    start: float
    _: KW_ONLY
    end: float = 0.0
    span: int | None = None

    def __post_init__(self) -> None:
        _set(self, start=_number("start", self.start), end=_number("end", self.end))
        _set(self, span=None if self.span is None else _count("span", self.span, 1))

    def __call__(self, tick: int, horizon: int, /) -> float:
        if tick <= 0:
            return self.start
        span = horizon - 1 if self.span is None else self.span
        if tick >= span:
            return self.end
        return self.end + (self.start - self.end) / 2 * (1 + math.cos(math.pi * tick / span))


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

    start: float
    _: KW_ONLY
    power: float
    end: float = 0.0
    span: int | None = None

    def __post_init__(self) -> None:
        _set(self, start=_number("start", self.start), end=_number("end", self.end))
        _set(self, power=_number("power", self.power, above=0))
        _set(self, span=None if self.span is None else _count("span", self.span, 1))

    def __call__(self, tick: int, horizon: int, /) -> float:
        span = horizon if self.span is None else self.span
        left = max(0.0, 1 - tick / span)
        return self.end + (self.start - self.end) * left**self.power


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

    start: float
    _: KW_ONLY
    factor: float
    every: int

    def __post_init__(self) -> None:
        _set(self, start=_number("start", self.start), every=_count("every", self.every, 1))
        _set(self, factor=_number("factor", self.factor))
        if not 0 < self.factor < 1:
            raise ValueError(f"factor must be in (0, 1) to decay, got {self.factor!r}")

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

    start: float
    _: KW_ONLY
    every: int = 1

    def __post_init__(self) -> None:
        _set(self, start=_number("start", self.start), every=_count("every", self.every, 1))
        if not 0 <= self.start < 1:
            raise ValueError(f"start must be in [0, 1), got {self.start!r}")

    def __call__(self, tick: int, horizon: int, /) -> float:
        return 1 - (1 - self.start) / (tick // self.every + 1) ** 0.75

    def next_change(self, tick: int, horizon: int, /) -> int:
        return _next_multiple(tick, self.every)


@final
@dataclass(frozen=True, repr=False)
class Piecewise(Schedule):
    """Given values from given ticks on.

    Args:
        pieces: a mapping from the first tick of a piece to its value, with a piece at 0; kept as
            sorted pairs.

    >>> milestones = Piecewise({0: 8, 30: 16})
    >>> milestones(29, 100), milestones(30, 100), milestones.pieces
    (8, 16, ((0, 8), (30, 16)))
    """

    pieces: tuple[tuple[int, float], ...]

    def __init__(self, pieces: Any) -> None:
        pairs = list(pieces.items()) if isinstance(pieces, Mapping) else pieces
        try:
            pairs = [(tick, value) for tick, value in pairs]
        except (TypeError, ValueError):
            raise ValueError(f"pieces must map ticks to values, got {pieces!r}") from None
        kept = sorted(
            (_count("pieces' tick", _from_text(tick), 0), _number(f"pieces[{tick}]", value))
            for tick, value in pairs
        )
        ticks = [tick for tick, _ in kept]
        if not ticks or ticks[0] != 0:
            raise ValueError(f"pieces must have a value at tick 0, got ticks {ticks}")
        if len(set(ticks)) < len(ticks):
            raise ValueError(f"pieces must name each tick once, got ticks {ticks}")
        _set(self, pieces=tuple(kept))

    def __repr__(self) -> str:
        return f"Piecewise({dict(self.pieces)})"

    def __call__(self, tick: int, horizon: int, /) -> float:
        return self.pieces[self._index(tick)][1]

    def next_change(self, tick: int, horizon: int, /) -> int:
        after = self._index(tick) + 1
        return self.pieces[after][0] if after < len(self.pieces) else max(horizon, tick + 1)

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
        _set(self, schedule=as_schedule(self.schedule, "schedule"))
        _set(self, length=_count("length", self.length, 0), start=_number("start", self.start))

    def __call__(self, tick: int, horizon: int, /) -> float:
        rest = horizon - self.length
        if rest < 1:
            raise ValueError(
                f"length of the warm-up must be below the Plan's {horizon} ticks, got {self.length}"
            )
        if tick >= self.length:
            return self.schedule(tick - self.length, rest)
        peak = self.schedule(0, rest)
        return self.start + (peak - self.start) * (tick + 1) / (self.length + 1)

    def next_change(self, tick: int, horizon: int, /) -> int:
        if tick < self.length:
            return tick + 1
        return self.length + self.schedule.next_change(tick - self.length, horizon - self.length)


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
        _set(self, schedule=as_schedule(self.schedule, "schedule"), by=_count("by", self.by, 0))

    def __call__(self, tick: int, horizon: int, /) -> float:
        return self.schedule(max(tick - self.by, 0), horizon)

    def next_change(self, tick: int, horizon: int, /) -> int:
        return self.by + self.schedule.next_change(max(tick - self.by, 0), horizon)


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


def _maximum(value: Any, start: float) -> float | None:
    return None if value is None else _number("maximum", value, least=start)


def _next_multiple(tick: int, every: int) -> int:
    return (tick // every + 1) * every


def _from_text(tick: Any) -> Any:
    """Keys of a TOML or JSON table are strings."""
    return int(tick) if isinstance(tick, str) and tick.isdecimal() else tick
