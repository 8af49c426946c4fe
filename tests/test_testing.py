"""check_schedule passes what keeps its promises, and names the promise that is broken."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from batchramp import schedules as s
from batchramp.testing import check_schedule

BUILT_IN = [
    s.Constant(8),
    s.Exponential(8, factor=1.1, every=7),
    s.Exponential(8, factor=2, every=7, maximum=50),
    s.Linear(8, 2.5, every=3, maximum=40),
    s.Linear(8, -1),
    s.InverseSqrt(0.1),
    s.Inverse(1),
    s.Cosine(0.1, end=0.01),
    s.Cosine(0.1, span=20),
    s.Polynomial(0.1, power=0.5, end=0.01),
    s.Polynomial(0.1, power=2, span=20),
    s.StepDecay(0.9, factor=0.5, every=30),
    s.IncreasingBeta(0.9, every=4),
    s.Piecewise({0: 8, 30: 16, 500: 4}),
    s.Warmup(s.Piecewise({0: 1, 3: 0.5}), 7, start=2),
    s.Warmup(s.Cosine(0.1), 0),
    s.Delayed(s.Warmup(s.Inverse(0.1), 3), by=5),
    s.Product(s.Cosine(0.1), s.StepDecay(1, factor=0.5, every=3)),
    s.Product(s.Cosine(0.1), s.Exponential(1, factor=2, every=3)),
    s.Stretched(s.Cosine(0.1), by=7),
    s.TradedBatchSize(s.Warmup(s.Cosine(0.1), 7), 8, maximum=50),
    s.TradedLR(s.Warmup(s.Cosine(0.1), 7), 8, "seesaw", maximum=50),
]


@pytest.mark.parametrize("schedule", BUILT_IN, ids=repr)
def test_every_schedule_of_ours_passes(schedule):
    check_schedule(schedule)
    check_schedule(schedule, horizon=31)


def test_every_kind_is_among_them():
    names = set(s.__all__) - {"Schedule"}
    assert {type(schedule).__name__ for schedule in BUILT_IN} == names


@dataclass(frozen=True)
class Good(s.Schedule):
    """A base for what is broken below, itself in order."""

    value: float = 0.5

    def __call__(self, tick, horizon, /):
        return self.value + tick % 2


@dataclass(frozen=True)
class Turning(Good):
    """Knows its extremes, and says that it never turns around."""

    def next_turn(self, tick, horizon, /):
        return horizon - 1

    def extremes(self, horizon, /):
        return (0, 1)


@dataclass(frozen=True)
class Still(Good):
    def next_turn(self, tick, horizon, /):
        return tick

    def extremes(self, horizon, /):
        return (0, 1)


class Forgotten(Good):
    pass


@dataclass
class Thawed(s.Schedule):
    value: float = 0.5

    def __call__(self, tick, horizon, /):
        return self.value


@dataclass(frozen=True)
class Listed(Good):
    items: list[int] = field(default_factory=lambda: [1, 2])


@dataclass(frozen=True)
class Identity(Good):
    """Equal to nothing but itself, for want of fields that compare."""

    mark: object = field(default_factory=object)


@dataclass(frozen=True, eq=True)
class Address(Good):
    def __repr__(self):
        return f"<Address at {id(self):#x}>"


@dataclass(frozen=True)
class HashOfPlace(Good):
    def __hash__(self):
        return id(self)


@dataclass(frozen=True)
class ByName(Good):
    def __call__(self, *, tick, horizon):  # type: ignore[override]
        return self.value


@dataclass(frozen=True)
class Numpy(Good):
    def __call__(self, tick, horizon, /):
        return np.float64(self.value)


@dataclass(frozen=True)
class Truth(Good):
    def __call__(self, tick, horizon, /):
        return tick < 3


@dataclass(frozen=True)
class Overflowing(Good):
    def __call__(self, tick, horizon, /):
        return math.inf if tick == 50 else 1.0


@dataclass(frozen=True)
class Loner(Good):
    def __call__(self, tick, horizon, /):
        return tick / (horizon - 1)


@dataclass(frozen=True)
class NotANumberAlone(Good):
    def __call__(self, tick, horizon, /):
        return math.nan if horizon == 1 else 1.0


@dataclass(frozen=True)
class Dice(Good):
    def __call__(self, tick, horizon, /):
        return random.random()


@dataclass(frozen=True)
class Counter(Good):
    """Counts its own calls, as many a scheduler does."""

    calls: list[int] = field(default_factory=list, hash=False, compare=False, repr=False)

    def __call__(self, tick, horizon, /):
        self.calls.append(tick)
        return float(len(self.calls))


@dataclass(frozen=True)
class TooFar(Good):
    def next_change(self, tick, horizon, /):
        return tick + 2


@dataclass(frozen=True)
class Standing(Good):
    def next_change(self, tick, horizon, /):
        return tick


@dataclass(frozen=True)
class HalfTick(Good):
    def next_change(self, tick, horizon, /):
        return tick + 0.5


@dataclass(frozen=True)
class NotMonotone(Good):
    monotone = True

    def __call__(self, tick, horizon, /):
        return float(-((tick - 40) ** 2))


@dataclass(frozen=True)
class Dipping(Good):
    monotone = True

    def __call__(self, tick, horizon, /):
        return float((tick - 40) ** 2)


@dataclass(frozen=True)
class Beyond(Good):
    def extremes(self, horizon, /):
        return (0, horizon)


@dataclass(frozen=True)
class Nowhere(Good):
    def extremes(self, horizon, /):
        return ()


@dataclass(frozen=True)
class Functional(Good):
    shape: Callable[[float], float] = lambda x: x  # a closure does not pickle


@dataclass(frozen=True)
class Symbolic(Good):
    shape: Callable[[float], float] = math.sin  # pickles, but is no text

    def __call__(self, tick, horizon, /):
        return self.shape(tick)


@dataclass(frozen=True)
class Absent(Good):
    limit: float | None = 1.0


@dataclass(frozen=True)
class Doubling(Good):
    def __post_init__(self):
        object.__setattr__(self, "value", 2 * self.value)


@dataclass(frozen=True)
class Secret(Good):
    """Has state that no field holds, so a file does not bring it back."""

    def __post_init__(self):
        object.__setattr__(self, "hidden", 0.5)

    def with_hidden(self, hidden):
        object.__setattr__(self, "hidden", hidden)
        return self

    def __call__(self, tick, horizon, /):
        return self.hidden  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Changing(Good):
    def to_dict(self):
        raise KeyError("no such thing")


BROKEN = [
    (0.1, r"0\.1: is not a batchramp Schedule"),
    (lambda tick, horizon: 0.1, "is not a batchramp Schedule"),
    (Forgotten(), "must be a frozen dataclass"),
    (Thawed(), "must be a frozen dataclass"),
    (Listed(), "must be hashable, .* unhashable type: 'list'"),
    (Identity(), "is not equal to its deep copy"),
    (Address(), "prints otherwise than its deep copy"),
    (HashOfPlace(), "has not the hash of its deep copy"),
    (ByName(), r"schedule\(0, 100\) fails: TypeError: .* positional"),
    (Numpy(), r"schedule\(0, 100\) gives .*, a float64, not a Python number"),
    (Truth(), r"schedule\(0, 100\) gives True, a bool, not a Python number"),
    (Overflowing(), r"schedule\(50, 100\) gives inf, which is not finite"),
    (Loner(), "fails in a Plan of 1 tick: ZeroDivisionError"),
    (NotANumberAlone(), "fails in a Plan of 1 tick: ArithmeticError: gives nan"),
    (Dice(), r"is not pure: schedule\(99, 100\) gives 0\.\d+, and later, in another order, 0\.\d+"),
    (Counter(), r"is not pure: schedule\(99, 100\) gives 100\.0, and later"),
    (TooFar(), r"next_change\(98, 100\) gives 100, but the value changes at 99"),
    (Standing(), r"next_change\(99, 100\) must be an integer > 99, got 99"),
    (HalfTick(), r"next_change\(99, 100\) must be an integer > 99, got 99\.5"),
    (NotMonotone(), r"extremes\(100\) miss the greatest value, .*0\.0, at tick 40: is it monotone"),
    (Dipping(), r"extremes\(100\) miss the least value, 0\.0, at tick 40: is it monotone"),
    (Beyond(), r"extremes\(100\) must be ticks in 0\.\.99, got \[0, 100\]"),
    (Nowhere(), r"extremes\(100\) must be ticks in 0\.\.99, got \[\]"),
    (Turning(), r"next_turn\(0, 100\) gives 99, but the value turns around before"),
    (Still(), r"next_turn\(0, 100\) must be an integer > 0, got 0"),
    (Functional(shape=lambda x: x), "does not come back from pickle: .*Error"),
    (Symbolic(shape=math.cos), "does not come back from JSON: TypeError"),
    (Absent(limit=None), "does not come back from TOML: TypeError"),
    (Doubling(), "is not equal to what comes back from a dict"),
    (Secret().with_hidden(0.7), "has not the values of what comes back from a dict"),
    (Changing(), "to_dict fails: KeyError"),
    (s.Warmup(0.1, 200), r"schedule\(0, 100\) fails: ValueError: length of the warm-up"),
    (s.Exponential(8, factor=1e10, every=1), r"schedule\(31, 100\) gives inf, which is not finite"),
]


@pytest.mark.parametrize(("schedule", "message"), BROKEN, ids=lambda v: type(v).__name__)
def test_a_broken_promise_is_named(schedule, message):
    with pytest.raises(AssertionError, match=message) as excinfo:
        check_schedule(schedule)
    assert "\n" not in str(excinfo.value)


def test_what_the_broken_ones_build_on_is_in_order():
    check_schedule(Good())
    check_schedule(Good(0.25), horizon=1)


def test_a_schedule_of_one_process_does_not_pickle():
    @dataclass(frozen=True)
    class Local(Good):
        pass

    with pytest.raises(AssertionError, match=r"does not come back from pickle: .*Local"):
        check_schedule(Local())


@pytest.mark.parametrize("horizon", [0, -1, 2.5, True])
def test_a_wrong_horizon_is_refused(horizon):
    with pytest.raises(ValueError, match=f"horizon must be an integer >= 1, got {horizon!r}"):
        check_schedule(s.Constant(1), horizon)
