"""Schedules: their printed formulas, their promises, and what they refuse."""

import math
import pickle
from dataclasses import FrozenInstanceError, dataclass, field
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchramp import schedules as s

HORIZONS = (1, 2, 5, 300)
START, END, E, RATE = 0.3, 0.01, 3, 1.7

# Each schedule beside its formula as printed, of the tick m in a horizon M.
FORMULAS = {
    "(1)": (s.Constant(START), lambda m, M: START),
    "(2)": (s.Exponential(8, factor=RATE, every=E), lambda m, M: 8 * RATE ** math.floor(m / E)),
    "A.11": (s.Linear(8, 1.5), lambda m, M: 8 + m * 1.5),
    "A.11, E": (s.Linear(8, 1.5, every=E), lambda m, M: 8 + math.floor(m / E) * 1.5),
    "(4)": (s.InverseSqrt(START), lambda m, M: START / math.sqrt(m + 1)),
    "(5)": (s.Inverse(START), lambda m, M: START / (m + 1)),
    "(6)": (
        s.Cosine(START, end=END),
        lambda m, M: (
            START if M == 1 else END + (START - END) / 2 * (1 + math.cos(m * math.pi / (M - 1)))
        ),
    ),
    "(7)": (
        s.Polynomial(START, power=RATE, end=END),
        lambda m, M: END + (START - END) * (1 - m / M) ** RATE,
    ),
    "(9)": (s.StepDecay(0.9, factor=0.6, every=E), lambda m, M: 0.9 * 0.6 ** math.floor(m / E)),
    "(10)": (s.IncreasingBeta(0.1), lambda m, M: 1 - (1 - 0.1) / (m + 1) ** (3 / 4)),
    "(10), E": (
        s.IncreasingBeta(0.1, every=E),
        lambda m, M: 1 - (1 - 0.1) / (math.floor(m / E) + 1) ** (3 / 4),
    ),
    "product": (
        s.Product(s.Inverse(START), s.Linear(8, 1.5)),
        lambda m, M: START / (m + 1) * (8 + m * 1.5),
    ),
    "delayed": (
        s.Delayed(s.Cosine(START, span=400), by=2),
        lambda m, M: START / 2 * (1 + math.cos(max(m - 2, 0) * math.pi / 400)),
    ),
}


@pytest.mark.parametrize("horizon", HORIZONS)
@pytest.mark.parametrize("equation", FORMULAS)
def test_values_are_those_of_the_printed_formula(equation, horizon):
    schedule, formula = FORMULAS[equation]
    values = [schedule(m, horizon) for m in range(horizon)]
    expected = [formula(m, horizon) for m in range(horizon)]
    np.testing.assert_allclose(values, expected, rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize(
    ("schedule", "before", "after"),
    [
        (s.Exponential(8, factor=2, every=30), 8, 16),
        (s.Linear(8, 16, every=30), 8, 24),
        (s.StepDecay(0.9, factor=0.5, every=30), 0.9, 0.45),
        (s.IncreasingBeta(0.5, every=30), 0.5, 1 - 0.5 / 2**0.75),
        (s.Piecewise({30: 16, 0: 8}), 8, 16),
        (s.Delayed(s.Piecewise({0: 8, 20: 16}), by=10), 8, 16),
    ],
)
def test_a_change_comes_at_tick_E_neither_before_nor_after(schedule, before, after):
    values = [schedule(m, 300) for m in (0, 29, 30, 31)]
    assert values == pytest.approx([before, before, after, after], rel=1e-15)
    assert schedule.next_change(0, 300) == schedule.next_change(29, 300) == 30


@pytest.mark.parametrize("start", [0.1, 0.3, 0.7, 1 / 3])
@pytest.mark.parametrize("horizon", HORIZONS)
def test_the_first_tick_has_the_start_itself(start, horizon):
    """Not 0.09999999999999998: a report prints it."""
    for schedule in (
        s.Cosine(start, end=0.017),
        s.Polynomial(start, power=2, end=0.017),
        s.StepDecay(start, factor=0.5, every=3),
        s.IncreasingBeta(start),
        s.InverseSqrt(start),
        s.Inverse(start),
        s.Exponential(start, factor=2, every=3),
    ):
        assert schedule(0, horizon) == start


def test_a_cosine_ends_at_its_end_and_alone_has_its_start():
    assert [s.Cosine(0.1, end=0.02)(m, M) for m, M in ((0, 1), (1, 2), (299, 300))] == [
        0.1,
        0.02,
        0.02,
    ]
    assert s.Cosine(0.1, end=0.02, span=10)(10, 300) == s.Cosine(0.1, end=0.02, span=10)(99, 300)


def test_a_cosine_may_grow():
    assert [s.Cosine(1, end=3)(m, 3) for m in range(3)] == pytest.approx([1, 2, 3], rel=1e-15)


@pytest.mark.parametrize("horizon", [2, 5, 300])
def test_a_polynomial_reaches_its_end_one_tick_after_the_last(horizon):
    printed = s.Polynomial(0.1, power=2, end=0.02)
    assert all(printed(m, horizon) > 0.02 for m in range(horizon))
    assert printed(horizon, horizon) == 0.02
    released = s.Polynomial(0.1, power=2, end=0.02, span=horizon - 1)
    assert released(horizon - 1, horizon) == 0.02
    assert released(max(0, horizon - 2), horizon) > 0.02
    assert released(horizon + 5, horizon + 9) == 0.02


def test_torch_has_the_cosine_of_span_M():
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=300, eta_min=0.003)
    ours = s.Cosine(0.1, end=0.003, span=300)
    for epoch in range(300):
        assert ours(epoch, 300) == pytest.approx(theirs.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        theirs.step()


def test_a_maximum_holds_the_value():
    for growing in (
        s.Exponential(8, factor=2, every=3, maximum=20),
        s.Linear(8, 6, every=3, maximum=20),
    ):
        assert [growing(m, 99) for m in (0, 5, 6, 98)] == [8, growing(3, 99), 20, 20]
        assert growing(3, 99) < 20
        assert growing.next_change(6, 99) == 99
    falling = s.Linear(8, -1, maximum=8)
    assert [falling(m, 9) for m in range(3)] == [8, 7, 6]
    assert falling.next_change(0, 9) == 1


def test_growth_beyond_floats_is_infinite_and_not_an_exception():
    assert s.Exponential(8, factor=2, every=1)(10_000, 10_001) == math.inf
    assert s.Exponential(8, factor=2, every=1, maximum=64)(10_000, 10_001) == 64
    assert s.Linear(8, 10**300)(2**50, 2**53) == math.inf


def test_a_warm_up_rises_strictly_between_its_start_and_the_first_value():
    inner = s.Cosine(1.0)
    warm = s.Warmup(inner, 3, start=0.2)
    assert [warm(t, 10) for t in range(3)] == pytest.approx([0.4, 0.6, 0.8])
    assert [warm(t, 10) for t in range(3, 10)] == [inner(t, 7) for t in range(7)]
    assert s.Warmup(inner, 0)(0, 10) == 1.0


def test_a_delay_holds_the_first_value_and_keeps_the_horizon():
    inner = s.Polynomial(1.0, power=1)
    late = s.Delayed(inner, by=2)
    assert [late(t, 4) for t in range(4)] == [inner(t, 4) for t in (0, 0, 0, 1)]


def test_wrappers_take_numbers():
    assert s.Warmup(0.1, 3) == s.Warmup(s.Constant(0.1), 3)
    assert s.Delayed(8, 1) == s.Delayed(s.Constant(8), by=1)
    assert s.Product(2, s.Inverse(1)) == s.Product(s.Constant(2), s.Inverse(1))


def test_pieces_are_kept_sorted_and_may_have_been_text():
    schedule = s.Piecewise({30: 16, 0: 8})
    assert schedule.pieces == ((0, 8), (30, 16))
    assert schedule == s.Piecewise([(0, 8), (30, 16)]) == s.Piecewise({"30": 16, "0": 8})


@pytest.mark.parametrize(
    ("text", "tick"),
    [
        ("7", 7),
        ("250M", 250_000_000),
        ("1.5M", 1_500_000),
        ("1.5 k", 1_500),
        ("0.5K", 500),
        ("2G", 2 * 10**9),
        ("2B", 2 * 10**9),
        ("0.000000000003T", 3),
        ("1.1T", 11 * 10**11),
    ],
)
def test_a_tick_may_be_a_text_with_a_power_of_1000(text, tick):
    assert s.Piecewise({0: 8, text: 16}) == s.Piecewise({0: 8, tick: 16})
    assert s.Piecewise({0: 8, text: 16})(tick - 1, 9) == 8
    with pytest.raises(ValueError, match="to one value, got "):
        s.Piecewise({0: 8, text: 16, tick: 16})


@pytest.mark.parametrize(
    "text", ["1.5", "1.0001k", "-3k", "3m", "3 MB", "k", "1e3", "", "1,5M", "3kk", "nan", " 3k"]
)
def test_what_is_no_whole_tick_is_refused(text):
    with pytest.raises(ValueError, match="a tick of pieces must be an integer >= 0 or") as excinfo:
        s.Piecewise({0: 8, text: 16})
    one_line(excinfo, "'1.5M' (k, M, G or B, T)", f"got {text!r}")


def test_a_tick_beyond_the_floats_is_refused():
    with pytest.raises(ValueError, match=r"a tick of pieces must be an integer <= 2\*\*53, got "):
        s.Piecewise({0: 8, "9008T": 16})


def test_a_stretched_schedule_is_slow():
    inner = s.Cosine(1.0, end=0.2)
    slow = s.Stretched(inner, by=3)
    assert [slow(t, 14) for t in range(14)] == [inner(t // 3, 5) for t in range(14)]
    assert slow.next_change(4, 14) == 6
    assert s.Stretched(inner, 1)(3, 5) == inner(3, 5)


def test_repr_is_the_constructor_without_defaults():
    assert repr(s.Cosine(0.1)) == "Cosine(0.1)"
    assert repr(s.Exponential(8, factor=2, every=30)) == "Exponential(8, factor=2, every=30)"
    assert repr(s.Piecewise({0: 8, 3: 16})) == "Piecewise({0: 8, 3: 16})"
    assert repr(s.Delayed(s.Constant(8), by=1)) == "Delayed(Constant(8), 1)"


# -------------------------------------------------------------------------------- any schedule

positive = st.floats(1e-3, 1e3) | st.integers(1, 1000)
counts = st.integers(1, 40)
units = st.floats(0, 0.99)
maybe_span = st.none() | counts
growing = st.one_of(
    st.builds(s.Exponential, positive, factor=st.floats(1.01, 3), every=counts),
    st.builds(
        lambda start, factor, every, more: s.Exponential(
            start, factor=factor, every=every, maximum=start + more
        ),
        positive,
        st.floats(1.01, 3),
        counts,
        st.integers(0, 3000),
    ),
    st.builds(s.Linear, positive, positive, every=counts),
    st.builds(s.IncreasingBeta, units, every=counts),
)
falling = st.one_of(
    st.builds(s.InverseSqrt, positive),
    st.builds(s.Inverse, positive),
    st.builds(s.Cosine, positive, end=st.just(0.0), span=maybe_span),
    st.builds(s.Polynomial, positive, power=positive, span=maybe_span),
    st.builds(s.StepDecay, positive, factor=st.floats(0.01, 0.99), every=counts),
    st.builds(s.Linear, positive, st.floats(-9, 0), every=counts),
)
pieces = st.dictionaries(st.integers(1, 60), positive, max_size=5).flatmap(
    lambda later: positive.map(lambda first: s.Piecewise({**later, 0: first}))
)
simple = st.one_of(growing, falling, pieces, st.builds(s.Constant, positive))
any_schedule = st.recursive(
    simple,
    lambda inner: st.one_of(
        st.builds(s.Warmup, inner, st.integers(0, 5), start=st.floats(0, 1)),
        st.builds(s.Delayed, inner, st.integers(0, 20)),
        st.builds(s.Product, inner, inner),
        st.builds(s.Stretched, simple, st.integers(1, 20)),
    ),
    max_leaves=4,
)
horizons = st.integers(30, 60)


@given(any_schedule)
def test_a_schedule_is_a_value(schedule):
    for twin in (
        eval(repr(schedule), vars(s)),
        pickle.loads(pickle.dumps(schedule)),
        s.Schedule.from_dict(schedule.to_dict()),
    ):
        assert twin == schedule
        assert hash(twin) == hash(schedule)
        assert repr(twin) == repr(schedule)  # equality alone would let 8 become 8.0


@given(any_schedule, horizons)
def test_next_change_and_extremes_tell_the_truth(schedule, horizon):
    values = [schedule(t, horizon) for t in range(horizon)]
    for tick in range(horizon):
        change = schedule.next_change(tick, horizon)
        assert change > tick
        assert set(values[tick:change]) == {values[tick]}
    ends = [values[tick] for tick in schedule.extremes(horizon)]
    # A product of floats is monotone but for its last bit.
    assert min(ends) == pytest.approx(min(values), rel=1e-12)
    assert max(ends) == pytest.approx(max(values), rel=1e-12)


@given(any_schedule, horizons)
def test_up_to_the_next_turn_a_value_only_rises_or_only_falls(schedule, horizon):
    values = [schedule(t, horizon) for t in range(horizon)]
    for tick in range(horizon):
        turn = schedule.next_turn(tick, horizon)
        assert turn > tick
        reach = values[tick : turn + 1]
        assert reach in (sorted(reach), sorted(reach, reverse=True))


@given(simple, horizons)
def test_piecewise_schedules_name_their_changes_and_no_more(schedule, horizon):
    """The default next_change is right everywhere, and useless for a Plan of 10**12 steps."""
    if isinstance(schedule, s.Exponential | s.Linear | s.StepDecay | s.IncreasingBeta):
        assert schedule.next_change(0, horizon) % schedule.every == 0 or (
            schedule.next_change(0, horizon) == horizon
        )
    if isinstance(schedule, s.Piecewise | s.Constant):
        at = [p for p, _ in getattr(schedule, "pieces", ())]
        assert schedule.next_change(0, horizon) == min([p for p in at if p > 0] or [horizon])


@given(growing, horizons)
def test_growth_never_falls(schedule, horizon):
    values = [schedule(t, horizon) for t in range(horizon)]
    assert values == sorted(values)


@given(falling, horizons)
def test_decay_never_rises(schedule, horizon):
    values = [schedule(t, horizon) for t in range(horizon)]
    assert values == sorted(values, reverse=True)


def test_a_schedule_is_frozen():
    with pytest.raises(FrozenInstanceError):
        s.Cosine(0.1).start = 0.2  # type: ignore[misc]


# ------------------------------------------------------------------------------- what is refused

NUMBERS = [math.nan, math.inf, -math.inf, "0.1", True, None, 10**400, [1], 1j, Fraction(10**400)]
COUNTS = [0, -1, 1.5, 2.0, math.nan, "3.0", True, 2**53 + 1, None]


def one_line(excinfo, *parts):
    message = str(excinfo.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize("value", NUMBERS, ids=lambda v: repr(v)[:12])
@pytest.mark.parametrize(
    ("field_name", "make"),
    [
        ("value", s.Constant),
        ("start", lambda v: s.Exponential(v, factor=2, every=3)),
        ("factor", lambda v: s.Exponential(8, factor=v, every=3)),
        ("start", lambda v: s.Linear(v, 1)),
        ("increment", lambda v: s.Linear(8, v)),
        ("start", s.InverseSqrt),
        ("start", s.Inverse),
        ("start", s.Cosine),
        ("end", lambda v: s.Cosine(0.1, end=v)),
        ("start", lambda v: s.Polynomial(v, power=2)),
        ("power", lambda v: s.Polynomial(0.1, power=v)),
        ("end", lambda v: s.Polynomial(0.1, power=2, end=v)),
        ("start", lambda v: s.StepDecay(v, factor=0.5, every=3)),
        ("factor", lambda v: s.StepDecay(0.9, factor=v, every=3)),
        ("start", s.IncreasingBeta),
        ("pieces[0]", lambda v: s.Piecewise({0: v})),
        ("start", lambda v: s.Warmup(0.1, 3, start=v)),
        ("schedule", lambda v: s.Warmup(v, 3)),
        ("schedule", lambda v: s.Delayed(v, 3)),
        ("right", lambda v: s.Product(1, v)),
    ],
)
def test_what_is_no_finite_number_is_refused(field_name, make, value):
    with pytest.raises(ValueError, match=r" must be ") as excinfo:
        make(value)
    one_line(excinfo, field_name, f"got {value!r}")


@pytest.mark.parametrize("value", COUNTS, ids=repr)
@pytest.mark.parametrize(
    ("field_name", "make", "least"),
    [
        ("every", lambda v: s.Exponential(8, factor=2, every=v), 1),
        ("every", lambda v: s.Linear(8, 2, every=v), 1),
        ("every", lambda v: s.StepDecay(8, factor=0.5, every=v), 1),
        ("every", lambda v: s.IncreasingBeta(0.5, every=v), 1),
        ("span", lambda v: s.Cosine(0.1, span=v), 1),
        ("span", lambda v: s.Polynomial(0.1, power=2, span=v), 1),
        ("length", lambda v: s.Warmup(0.1, v), 0),
        ("by", lambda v: s.Delayed(0.1, v), 0),
        ("by", lambda v: s.Stretched(0.1, v), 1),
        ("tick", lambda v: s.Piecewise({0: 1, v: 2}), 0),
    ],
)
def test_what_is_no_count_is_refused(field_name, make, least, value):
    if (value is None and field_name == "span") or (value == 0 and least == 0):
        return
    with pytest.raises(ValueError, match=r" must be an integer [<>]= ") as excinfo:
        make(value)
    one_line(
        excinfo, field_name, f"got {value!r}", "2**53" if value == 2**53 + 1 else f">= {least}"
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: s.Exponential(0, factor=2, every=3), "start must be a finite number > 0, got 0"),
        (lambda: s.Exponential(8, factor=1, every=3), "factor must be a finite number > 1, got 1"),
        (lambda: s.Exponential(8, factor=0.5, every=3), "factor must be .* > 1, got 0.5"),
        (
            lambda: s.Exponential(1234567, factor=2, every=3, maximum=7),
            r"maximum must be a finite number >= start \(1234567\), got 7",
        ),
        (lambda: s.Linear(8, 1, maximum=7), r"maximum must be .* >= start \(8\), got 7"),
        (lambda: s.StepDecay(1, factor=2, every=3), r"factor must be in \(0, 1\) to decay, got 2"),
        (lambda: s.StepDecay(1, factor=1, every=3), r"factor must be in \(0, 1\) to decay, got 1"),
        (lambda: s.StepDecay(1, factor=0, every=3), r"factor must be in \(0, 1\) to decay, got 0"),
        (lambda: s.Polynomial(1, power=0), "power must be a finite number > 0, got 0"),
        (lambda: s.IncreasingBeta(1), r"start must be in \[0, 1\), got 1"),
        (lambda: s.IncreasingBeta(-0.1), r"start must be in \[0, 1\), got -0.1"),
        (lambda: s.Piecewise({}), "pieces must map each tick, 0 among them, .* got {}"),
        (lambda: s.Piecewise({3: 8}), "pieces must map each tick, 0 among them, .* got {3: 8}"),
        (lambda: s.Piecewise([(0, 1), (0, 2)]), r"to one value, got \[\(0, 1\), \(0, 2\)\]"),
        (lambda: s.Piecewise({0: 1, "0": 2}), "to one value, got "),
        (lambda: s.Piecewise(8), "pieces must map each tick, .* got 8"),  # type: ignore
        (lambda: s.Piecewise("ab"), "pieces must map each tick, .* got 'ab'"),  # type: ignore
        (lambda: s.Piecewise([[[1], 2]]), "pieces must map each tick, .* got "),  # type: ignore
        (lambda: s.Piecewise({0: 1, "x": 2}), "a tick of pieces must be .* got 'x'"),  # type: ignore
        (lambda: s.Warmup(0.1, 9)(0, 9), "length .* must be below the Plan's 9 ticks, got 9"),
        (lambda: s.Warmup(0.1, 9).next_change(9, 5), "must be below the Plan's 5 ticks, got 9"),
        (lambda: s.Product(s.Cosine, 1), "left must be a finite number or a Schedule, got <class"),
    ],
)
def test_what_is_out_of_range_is_refused(make, message):
    with pytest.raises(ValueError, match=message) as excinfo:
        make()
    one_line(excinfo)


def test_numbers_of_numpy_become_those_of_python():
    schedule = s.Exponential(np.int64(8), factor=np.float32(2), every=np.int32(3))
    assert [type(v) for v in (schedule.start, schedule.factor, schedule.every)] == [int, float, int]
    assert repr(schedule) == "Exponential(8, factor=2.0, every=3)"


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"kind": "Sine", "start": 1}, "schedule.kind must be one of Constant, .*, got 'Sine'"),
        ({"start": 1}, "schedule.kind must be one of .*, got None"),
        ({"kind": ["Cosine"]}, r"schedule.kind must be one of .*, got \['Cosine'\]"),
        ({"kind": "Schedule"}, "schedule.kind must be one of .*, got 'Schedule'"),
        ([1, 2], r"schedule must be a table with a kind, got \[1, 2\]"),
        (
            {"kind": "Cosine", "start": 1, "stop": 2},
            "schedule.stop is not a field of Cosine: allowed are start, end, span",
        ),
        ({"kind": "Cosine"}, "schedule.start is missing: Cosine needs it"),
        ({"kind": "Cosine", "start": "x"}, "schedule: start must be a finite number, got 'x'"),
        (
            {"kind": "Warmup", "length": 3, "schedule": {"kind": "Cosine", "start": math.nan}},
            "schedule.schedule: start must be a finite number, got nan",
        ),
        (
            {"kind": "Warmup", "length": 3, "schedule": {"start": 1}},
            "schedule: schedule must be a finite number or a Schedule, got {'start': 1}",
        ),
    ],
)
def test_a_wrong_table_is_refused(plain, message):
    with pytest.raises(ValueError, match=message) as excinfo:
        s.Schedule.from_dict(plain)
    one_line(excinfo)


# ------------------------------------------------------------------------- schedules of users


@dataclass(frozen=True)
class Chain(s.Schedule):
    """Has a tuple of schedules, a default factory, and a field that is no argument."""

    links: tuple[s.Schedule, ...]
    names: tuple[str, ...] = field(default_factory=tuple)
    total: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "total", len(self.links))

    def __call__(self, tick, horizon, /):
        return self.links[tick % self.total](tick, horizon)


def test_schedules_in_a_tuple_of_a_users_schedule_come_back():
    chain = Chain((s.Cosine(0.1), s.Piecewise({0: 8, 3: 9})), names=("a", "b"))
    plain = chain.to_dict()
    assert plain["links"][0] == {"kind": "Cosine", "start": 0.1}
    assert "total" not in plain
    assert s.Schedule.from_dict(plain) == chain
    assert s.Schedule.from_dict(plain)(1, 10) == 8


class Undecorated(s.Schedule):
    def __call__(self, tick, horizon, /):
        return 1.0


class Undecorated2(Chain):
    pass


@dataclass
class Unfrozen(s.Schedule):
    start: float = 1.0

    def __call__(self, tick, horizon, /):
        return self.start


@pytest.mark.parametrize("schedule", [Undecorated(), Unfrozen(), Undecorated2((s.Constant(1),))])
def test_a_schedule_that_is_no_frozen_dataclass_is_refused(schedule):
    name = type(schedule).__name__
    message = rf"schedule {name} must be a frozen dataclass: put @dataclass\(frozen=True\) on it"
    with pytest.raises(ValueError, match=message):
        s.Delayed(schedule, 1)
    with pytest.raises(ValueError, match=message):
        s.Schedule.from_dict({"kind": name})


def test_an_unhashable_schedule_is_refused():
    with pytest.raises(ValueError, match=r"schedule must be hashable, got Chain\(.*unhashable"):
        s.Delayed(Chain([s.Constant(1)]), 1)  # type: ignore[arg-type]


def test_a_field_called_kind_is_refused():
    @dataclass(frozen=True)
    class HasKind(s.Schedule):
        kind: str

        def __call__(self, tick, horizon, /):
            return 1.0

    with pytest.raises(ValueError, match="HasKind must not have a field 'kind'"):
        s.Delayed(HasKind("x"), 1)


def test_a_schedule_without_a_formula_cannot_be_made():
    with pytest.raises(TypeError, match="abstract"):
        s.Schedule()  # type: ignore[abstract]


def test_a_name_means_one_schedule():
    with pytest.raises(TypeError, match=r"'Cosine' exists already, in batchramp\.schedules"):

        class Cosine(s.Schedule):
            pass

    assert s.Schedule.from_dict({"kind": "Cosine", "start": 1}) == s.Cosine(1)


def test_a_class_may_be_defined_again_where_it_was():
    """As in a notebook, whose cells are run twice; the later one counts."""

    def define(value):
        @dataclass(frozen=True)
        class Again(s.Schedule):
            def __call__(self, tick, horizon, /):
                return value

        return Again

    define(1.0)
    later = define(2.0)
    assert type(s.Schedule.from_dict({"kind": "Again"})) is later
