"""How schedules, and sums over them, grow as a Plan gets longer.

The order of a schedule is value(m) ≍ e^(rate m) m^power at tick m. Orders multiply, add, invert and
sum; `batchramp.theory.verdict` compares them and knows no schedule by name. What each rule rests on
is proved in `docs/rates.md`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import final

import numpy as np
from numpy.typing import NDArray

from batchramp.schedules import (
    Constant,
    Cosine,
    Delayed,
    Exponential,
    IncreasingBeta,
    Inverse,
    InverseSqrt,
    Linear,
    Piecewise,
    Polynomial,
    Product,
    Schedule,
    StepDecay,
    Warmup,
)

__all__ = ["Order", "UnknownOrder", "complement", "constant", "order", "unlimited"]

Array = NDArray[np.float64]

# Fractions of the horizon at which a schedule that is re-scaled to each horizon is looked at.
GRID = np.linspace(0, 1, 2001)
# The horizon that stands for an endless one there.
_LONG = 10**12
# Rates of growth this close are the same: log 8 / 3 and log 2 differ by rounding.
_SAME = 1e-12


class UnknownOrder(Exception):
    """No order can be named; the message is a sentence that says why."""


@final
@dataclass(frozen=True, eq=False)
class Order:
    """size · e^(rate m) · m^power · log(m)^log, as m grows.

    Attributes:
        rate: growth per tick, in nepers; -inf for what is 0 from some tick on.
        power, log: as above.
        size: the constant, where there is a limit, else nan (stairs e^(rate m) have none). Shape
            ``[1]``, or ``[len(GRID)]`` for what is re-scaled to every horizon M: there the value
            at tick m has the size at m/M.
    """

    rate: float
    power: float
    log: float = 0.0
    size: Array = field(default_factory=lambda: np.array([math.nan]))

    def __post_init__(self) -> None:
        if abs(self.rate) < _SAME:
            object.__setattr__(self, "rate", 0.0)
        # A shape that is 0 where the sum of the rest is made would change the order.
        first, last = self.size[0], self.size[-1]
        early = self.rate < 0 or (self.rate == 0 and self.power < 0)
        if self.size.size > 1 and ((early and first == 0) or (self.rate > 0 and last == 0)):
            raise UnknownOrder("a product of schedules vanishes where its other factor is largest")

    @property
    def growth(self) -> tuple[float, float, float]:
        """What orders are compared by: (0, 0, 0) is bounded and does not vanish."""
        return self.rate, self.power, self.log

    @property
    def vanishes(self) -> bool:
        return self.growth < (0, 0, 0)

    @property
    def diverges(self) -> bool:
        return self.growth > (0, 0, 0)

    @property
    def rescaled(self) -> bool:
        """Whether it is another sequence at every horizon."""
        return self.size.size > 1

    @property
    def limit(self) -> Array:
        """The size of what is bounded; 0 of what vanishes, inf of what grows."""
        if self.vanishes:
            return np.zeros(1)
        return np.array([math.inf]) if self.diverges else self.size

    @property
    def is_zero(self) -> bool:
        return self.rate == -math.inf

    def __mul__(self, other: "Order | Array | float") -> "Order":
        if not isinstance(other, Order):
            return self * constant(other)
        if self.is_zero or other.is_zero:
            return ZERO
        with np.errstate(invalid="ignore"):  # a size may be unknown or infinite
            size = np.where((self.size == 0) | (other.size == 0), 0.0, self.size * other.size)
        return Order(self.rate + other.rate, self.power + other.power, self.log + other.log, size)

    def __pow__(self, exponent: int) -> "Order":
        if self.is_zero:
            if exponent < 0:
                raise UnknownOrder("a schedule that ends at 0 is divided by")
            return ZERO
        if exponent < 0 and (self.size == 0).any():
            raise UnknownOrder("a schedule that falls to 0 at the horizon is divided by")
        return Order(
            self.rate * exponent, self.power * exponent, self.log * exponent, self.size**exponent
        )

    def __truediv__(self, other: "Order") -> "Order":
        return self * other**-1

    def __add__(self, other: "Order") -> "Order":
        if self.growth == other.growth:
            return ZERO if self.is_zero else Order(*self.growth, self.size + other.size)
        return max(self, other, key=lambda each: each.growth)

    def sum(self) -> "Order":
        """Of the partial sums: geometric, a power, a logarithm, or 1 where the series converges."""
        if self.rate > 0:
            return Order(*self.growth)
        if self.rate < 0 or self.power < -1:
            return Order(0, 0)
        if self.power == -1:  # made near tick 0, on the scale of the horizon
            return Order(0, 0, self.log + 1, self.size[:1] / (self.log + 1))
        if self.size.size == 1:
            return Order(0, self.power + 1, self.log, self.size / (self.power + 1))
        mean = (self.size[1:] + self.size[:-1]).mean() / 2 if self.power == 0 else math.nan
        return Order(0, self.power + 1, self.log, np.array([mean]))

    def __str__(self) -> str:
        """As in "K^(1/4)/log K", "log K / sqrt K", "1".

        >>> print(Order(0, 0.25, -1), Order(0, -0.5, 1), Order(0, -1), sep=", ")
        K^(1/4)/log K, log K / sqrt K, 1/K
        """
        above: list[str] = []
        below: list[str] = []
        if self.rate:
            (above if self.rate > 0 else below).append("exp K")
        if self.power:
            (above if self.power > 0 else below).append(_power("K", abs(self.power)))
        if self.log:
            (above if self.log > 0 else below).append(_power("log K", abs(self.log)))
        top, bottom = " ".join(above) or "1", " ".join(below)
        if not bottom:
            return top
        bottom = f"({bottom})" if len(below) > 1 else bottom
        return f"{top} / {bottom}" if top.startswith("log") else f"{top}/{bottom}"


def _power(of: str, exponent: float) -> str:
    if exponent == 1:
        return of
    if exponent == 0.5:
        return f"sqrt {of}"
    of = of if of == "K" else f"({of})"
    exact = Fraction(exponent).limit_denominator(1000)
    return f"{of}^{exact}" if exact.denominator == 1 else f"{of}^({exact})"


ZERO = Order(-math.inf, 0, 0, np.zeros(1))


def constant(size: Array | Sequence[float] | float) -> Order:
    """The order of what is bounded, and 0 only if it is 0 throughout."""
    array = np.atleast_1d(np.asarray(size, dtype=np.float64))
    if (array == 0).all():
        return ZERO
    return Order(0, 0, 0, array[:1] if (array == array[0]).all() else array)


def order(schedule: Schedule, horizon: int) -> Order:
    """The order of a schedule.

    Args:
        schedule: one of `batchramp.schedules`.
        horizon: of the Plan, in ticks. A span as long as that is taken to grow with it; a shorter
            one ends.

    Raises:
        UnknownOrder: a schedule of another class, or one that leaves every range in the end.

    >>> from batchramp import schedules as s
    >>> order(s.Product(s.InverseSqrt(0.1), s.StepDecay(1, factor=0.5, every=9)), 90).rate < 0
    True
    """
    match schedule:
        case Constant():
            return constant(schedule.value)
        case Exponential() if schedule.maximum is None:
            return Order(math.log(schedule.factor) / schedule.every, 0)
        case Linear() if schedule.increment < 0:
            raise UnknownOrder(f"{schedule} falls below 0 in the end")
        case Linear() if schedule.increment == 0:
            return constant(schedule.start)
        case Linear() if schedule.maximum is None:
            return Order(0, 1, 0, np.array([schedule.increment / schedule.every]))
        case Exponential() | Linear():
            assert schedule.maximum is not None
            return constant(schedule.maximum)
        case InverseSqrt():
            return Order(0, -0.5, 0, np.ones(1)) * schedule.start
        case Inverse():
            return Order(0, -1, 0, np.ones(1)) * schedule.start
        case StepDecay():
            return Order(math.log(schedule.factor) / schedule.every, 0) * schedule.start
        case IncreasingBeta():
            return constant(1)
        case Piecewise():
            return constant(schedule.pieces[-1][1])
        case Cosine() | Polynomial():
            return _rescaled_order(schedule, horizon)
        case Warmup():
            return order(schedule.schedule, horizon - schedule.length)
        case Delayed():
            return order(schedule.schedule, horizon)
        case Product():
            return order(schedule.left, horizon) * order(schedule.right, horizon)
        case _:
            raise UnknownOrder(f"{schedule} is a schedule of your own, whose order is not known")


def _rescaled_order(schedule: Cosine | Polynomial, horizon: int) -> Order:
    full = max(horizon - 1 if isinstance(schedule, Cosine) else horizon, 1)
    span = schedule.span or full
    if span < horizon - 1:
        return constant(schedule.end)
    long = replace(schedule, span=None)
    return constant([long(int(u * _LONG * full / span), _LONG) for u in GRID])


def complement(schedule: Schedule, horizon: int) -> Order:
    """The order of 1 - value, for values in [0, 1].

    Args:
        schedule, horizon: as in `order`.

    Raises:
        UnknownOrder: as `order` does, or the values do not stay in [0, 1].

    >>> from batchramp import schedules as s
    >>> complement(s.IncreasingBeta(0.5), 90).power
    -0.75
    """
    match schedule:
        case IncreasingBeta():
            size = (1 - schedule.start) * schedule.every**0.75
            return Order(0, -0.75, 0, np.array([size]))
        case Warmup():
            return complement(schedule.schedule, horizon - schedule.length)
        case Delayed():
            return complement(schedule.schedule, horizon)
        case Product():  # 1 - xy = (1 - x) + x (1 - y)
            left, right = schedule.left, schedule.right
            return complement(left, horizon) + order(left, horizon) * complement(right, horizon)
    value = order(schedule, horizon)
    if value.diverges or (value.limit > 1).any() or (value.limit < 0).any():
        raise UnknownOrder(f"{schedule} does not stay in [0, 1] in the end")
    return constant(1 - value.limit)


def unlimited(schedule: Schedule) -> Schedule | None:
    """The growth that a schedule breaks off, continued for ever; None if it breaks off none.

    Equal ratios (or differences) of three or more evenly spaced pieces are the growth of a
    `Piecewise`; a rise to a constant is linear growth.

    >>> from batchramp import schedules as s
    >>> unlimited(s.Delayed(s.Exponential(8, factor=2, every=30, maximum=512), by=1))
    Delayed(Exponential(8, factor=2, every=30), 1)
    >>> unlimited(s.Piecewise({0: 8, 30: 16, 60: 32}))
    Exponential(8, factor=2.0, every=30)
    """
    match schedule:
        case Exponential() if schedule.maximum is not None:
            return replace(schedule, maximum=None)
        case Linear() if schedule.maximum is not None and schedule.increment > 0:
            return replace(schedule, maximum=None)
        case Warmup(Constant(peak), length) if length > 0 and schedule.start < peak:
            return Linear(schedule.start, (peak - schedule.start) / (length + 1))
        case Warmup() | Delayed() if inner := unlimited(schedule.schedule):
            return replace(schedule, schedule=inner)
        case Product():
            left, right = unlimited(schedule.left), unlimited(schedule.right)
            if left or right:
                return Product(left or schedule.left, right or schedule.right)
        case Piecewise():
            return _continued(
                [tick for tick, _ in schedule.pieces], [v for _, v in schedule.pieces]
            )
    return None


def _continued(ticks: list[int], values: list[float]) -> Schedule | None:
    if len(values) < 3 or len(set(np.diff(ticks))) > 1 or min(values) <= 0:
        return None
    steps, every = np.diff(values), ticks[1]
    ratios = np.divide(values[1:], values[:-1])
    if ratios[0] > 1 and np.allclose(ratios, ratios[0], rtol=1e-9):
        return Exponential(values[0], factor=float(ratios[0]), every=every)
    if steps[0] > 0 and np.allclose(steps, steps[0], rtol=1e-9):
        return Linear(values[0], float(steps[0]), every=every)
    return None
