"""Growth in place of a decay of lr: against loops, what is kept, what is saved, what is refused."""

import copy
import math
import pickle
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchramp import schedules as s
from batchramp.plan import Plan, round_batch_size, scale_lr
from batchramp.testing import check_schedule

RULES = ("smith", "seesaw")
UNITS = ("epochs", "steps", "samples")


@dataclass(frozen=True)
class Restarts(s.Schedule):
    """A user's schedule, which turns around and says nothing of it."""

    start: float
    every: int

    def __call__(self, tick, horizon, /):
        return self.start / (1 + tick % self.every)


positive = st.floats(1e-3, 10)
counts = st.integers(1, 40)
decays = st.one_of(
    st.builds(s.Cosine, positive, end=st.floats(1e-4, 1e-3)),
    st.builds(s.Polynomial, positive, power=st.floats(0.5, 2)),
    st.builds(s.StepDecay, positive, factor=st.floats(0.3, 0.9), every=st.integers(10, 40)),
    st.builds(s.InverseSqrt, positive),
    st.builds(s.Inverse, positive),
    st.builds(s.Constant, positive),
    st.builds(s.IncreasingBeta, st.floats(0.01, 0.9)),
    st.builds(Restarts, positive, st.integers(2, 30)),
    st.builds(lambda a, b, c: s.Piecewise({0: a, 9: b, 17: c}), positive, positive, positive),
)
schedules = st.one_of(
    decays,
    st.builds(s.Warmup, decays, st.integers(0, 15), start=st.floats(0, 0.01)),
    st.builds(s.Delayed, decays, st.integers(0, 9)),
    st.builds(s.Product, decays, st.builds(s.InverseSqrt, positive)),
)


def traded(lr, size, rule, maximum):
    """(batch size, lr) at every tick of a list of lr, by the definition, one by one."""
    start = next(t for t, value in enumerate(lr) if value == max(lr))
    found = []
    for tick, value in enumerate(lr):
        growth = 1.0 if tick < start else max(lr) / value
        if maximum is not None:
            growth = min(growth, maximum / size)
        found.append((size * growth, value * (growth if rule == "smith" else math.sqrt(growth))))
    return found


def walked(sizes, unit, n, samples):
    """True sizes, epoch by epoch, of what has ``sizes[epoch]`` or ``sizes[sample]`` scheduled."""
    epochs, taken = [], 0
    while len(epochs) < len(sizes) if unit == "epochs" else taken < samples:
        left, epoch = n, []
        while left and taken < samples:
            size = min(sizes[len(epochs) if unit == "epochs" else taken], left, samples - taken)
            epoch.append(size)
            left, taken = left - size, taken + size
        epochs.append(epoch)
    return epochs


@given(
    schedules,
    st.sampled_from(UNITS),
    st.integers(20, 60),
    st.integers(1, 12),
    st.sampled_from(RULES),
    st.none() | st.integers(0, 60),
    st.integers(1, 9),
)
def test_a_traded_plan_is_that_of_a_loop(lr, unit, length, size, rule, more, times):
    n = size * times
    maximum = None if more is None else min(size + more, n)
    plan = Plan.trade_decay(lr, size, rule, **{unit: length}, maximum=maximum, n=n)
    maximum = n if maximum is None else maximum  # no batch is larger than the data
    expected = traded([lr(t, length) for t in range(length)], size, rule, maximum)
    if unit == "steps":
        assert plan.samples == length * size
        expected = [pair for pair in expected for _ in range(size)]
    for tick, (grown, left) in enumerate(expected):
        value = plan.at(tick)
        assert value.lr == pytest.approx(left, rel=1e-12)
        assert plan.batch_size(tick, plan.length) == pytest.approx(grown, rel=1e-12)
        assert value.batch_size == round_batch_size(plan.batch_size(tick, plan.length))

    sizes = [round_batch_size(plan.batch_size(t, plan.length)) for t in range(plan.length)]
    samples = n * length if unit == "epochs" else plan.length
    epochs = walked(sizes, plan.unit, n, samples)
    assert [plan.batch_sizes(e, n) for e in range(plan.total_epochs(n))] == epochs
    saving = plan.saved(n)
    assert saving.steps_after == plan.total_steps(n) == sum(map(len, epochs))
    assert saving.samples == sum(map(sum, epochs)) == samples
    before = Plan(**{unit: length}, batch_size=size, lr=lr)
    assert saving.steps_before == before.total_steps(n)
    assert saving.samples == before.total_samples(n)
    assert (saving.batch_size_before, saving.batch_size_after) == (size, max(sizes))


@given(schedules, st.integers(20, 60), st.integers(1, 1000), st.sampled_from(RULES))
def test_the_lr_a_sample_is_kept_but_for_rounding(lr, length, size, rule):
    """lr/b for SGD, lr/√b for steps that divide by the gradients' root mean square."""
    plan = Plan.trade_decay(lr, size, rule, epochs=length)
    power = 1 if rule == "smith" else 0.5
    for tick in range(length):
        exact = plan.batch_size(tick, length)
        kept = lr(tick, length) / size**power
        assert plan.at(tick).lr / exact**power == pytest.approx(kept, rel=1e-12)
        ratio = plan.at(tick).lr / plan.at(tick).batch_size ** power / kept
        assert 1 - 1 / exact < ratio < 1 + 2e-12


@pytest.mark.parametrize("rule", RULES)
def test_beyond_the_maximum_the_rest_of_the_decay_stays_in_lr(rule):
    lr = s.Cosine(0.1)
    plan = Plan.trade_decay(lr, 32, rule, epochs=50, maximum=256)
    capped = [m for m in range(50) if plan.at(m).batch_size == 256]
    assert capped == [m for m in range(50) if lr(m, 50) <= 0.1 * 32 / 256]
    for m in capped:
        factor = 8 if rule == "smith" else math.sqrt(8)
        assert plan.at(m).lr == pytest.approx(factor * lr(m, 50), rel=1e-15)
    assert plan.at(49).lr == 0
    lrs = [plan.at(m).lr for m in range(50)]
    assert lrs == sorted(lrs, reverse=True)
    if rule == "smith":
        assert set(lrs[: capped[0]]) == {0.1}


def test_a_step_decay_becomes_doublings():
    lr = s.StepDecay(0.1, factor=0.5, every=30)
    smith, seesaw = (Plan.trade_decay(lr, 8, rule, epochs=300) for rule in RULES)
    doubling = Plan(epochs=300, batch_size=s.Exponential(8, factor=2, every=30))
    assert smith.stages(50_000) == seesaw.stages(50_000) == doubling.stages(50_000)
    assert smith.total_steps(50_000) == 374_760
    assert {smith.at(m).lr for m in range(300)} == {0.1}
    assert [seesaw.at(m).lr for m in (29, 30, 60, 299)] == pytest.approx(
        [0.1, 0.1 / math.sqrt(2), 0.05, 0.1 / math.sqrt(2) ** 9], rel=1e-15
    )


@pytest.mark.parametrize("rule", RULES)
def test_a_cosine_halves_the_steps(rule):
    """The mean of half a cosine is a half; what the rounding of b adds is below one in b0."""
    plan = Plan.trade_decay(s.Cosine(0.1), 4096, rule, steps=10_000, maximum=10**9)
    saving = plan.saved(10**9)
    mean = sum(s.Cosine(0.1)(k, 10_000) for k in range(10_000)) / 10_000 / 0.1
    assert mean == pytest.approx(0.5, rel=1e-12)
    # A batch has the lr of its first sample, not of its mean one: a few steps less.
    assert saving.ratio == pytest.approx(mean, rel=2e-3)
    assert saving.steps_before == 10_000
    assert saving.samples == 40_960_000


def test_a_warm_up_is_kept_and_growth_begins_at_the_maximum():
    lr = s.Warmup(s.Polynomial(1.0, power=1), 10)
    plan = Plan.trade_decay(lr, 64, "smith", epochs=110)
    for m in range(11):
        assert (plan.at(m).batch_size, plan.at(m).lr) == (64, lr(m, 110))
    assert {plan.at(m).lr for m in range(10, 110)} == {1.0}
    sizes = [plan.at(m).batch_size for m in range(110)]
    assert sizes == sorted(sizes)
    assert (sizes[60], sizes[109]) == (128, 6400)


def test_steps_become_the_samples_that_they_took():
    beta = s.StepDecay(0.9, factor=0.5, every=40)
    lr = s.Warmup(s.Cosine(0.1, end=0.01), 5)
    plan = Plan.trade_decay(lr, 16, "seesaw", steps=100, beta=beta, gamma=0.7, n=800)
    old = Plan(steps=100, batch_size=16, lr=lr, beta=beta, gamma=0.7)
    assert (plan.samples, plan.steps) == (1600, None)
    for k in range(100):
        peak = 0.1 if k >= 5 else lr(k, 100)
        for sample in (16 * k, 16 * k + 15):
            assert plan.at(sample).lr == pytest.approx(math.sqrt(old.at(k).lr * peak), rel=1e-12)
            assert (plan.at(sample).beta, plan.at(sample).gamma) == (old.at(k).beta, 0.7)


def test_of_many_ticks_a_plan_is_made_and_counted_at_once():
    lr = s.Warmup(s.Cosine(3e-4, end=3e-5), 10**8)
    plan = Plan.trade_decay(lr, 512, "seesaw", samples=10**12, maximum=4096)
    saving = plan.saved(10**11)
    mean = np.mean([max(0.55 + 0.45 * math.cos(x), 1 / 8) for x in np.linspace(0, math.pi, 10**4)])
    assert mean * (1 - 1 / 512) < saving.ratio < mean  # b is rounded up, from 512 on
    assert saving.batch_size_after == 4096
    assert saving.samples == 10**12


# ---------------------------------------------------------------- the two trainings are alike


def _end(values, noise, normalised):
    """E x² at the end of x' = x - lr (x + ξ/√b) from x = 1, with E ξ² = ``noise``.

    ``normalised``: of steps that divide by the gradient's root mean square, in the limit in which
    noise dominates it, √(noise/b).
    """
    square = 1.0
    for size, lr in values:
        rate = lr / math.sqrt(noise / size) if normalised else lr
        square = (1 - rate) ** 2 * square + rate**2 * noise / size
    return square


@pytest.mark.parametrize("rule", RULES)
def test_the_two_trainings_approach_each_other_as_steps_get_small(rule):
    """On a quadratic, whose second moment has a closed recursion: nothing is sampled.

    Steps get shorter, more and noisier, as where training is a diffusion (Malladi et al., 2022).
    To first order both then have the same moments at the same samples, so what is between them
    falls in proportion to the steps. The other rule's training stays away. Doublings: no size is
    rounded, and no stage ends within a batch.
    """
    off, wrong = [], []
    for scale in (32, 64, 128):
        noise, rate, steps = 160.0 * scale, 0.05 / scale, 200 * scale
        start = rate if rule == "smith" else rate * math.sqrt(noise / 16)
        decay = s.StepDecay(start, factor=0.5, every=40 * scale)
        expected = _end([(16, decay(k, steps)) for k in range(steps)], noise, rule == "seesaw")
        for other, found in ((rule, off), ("seesaw" if rule == "smith" else "smith", wrong)):
            plan = Plan.trade_decay(decay, 16, other, steps=steps)
            taken, values = 0, []
            while taken < plan.samples:
                at = plan.at(taken)
                values.append((at.batch_size, at.lr))
                taken += at.batch_size
            assert (taken, len(values)) == (plan.samples, steps * 31 // 80)
            found.append(abs(_end(values, noise, rule == "seesaw") / expected - 1))
    assert [a / b for a, b in pairwise(off)] == pytest.approx([2, 2], rel=0.1)
    assert off[-1] < 1e-4
    assert min(wrong) > 0.1


# ------------------------------------------------------------------------------------- a value

SCHEDULES = [
    s.Stretched(s.Cosine(0.1, end=0.01), by=7),
    s.Stretched(s.Warmup(s.Piecewise({0: 1, 2: 3}), 2), by=5),
    s.TradedBatchSize(s.Cosine(0.1, end=0.001), 8),
    s.TradedBatchSize(s.Warmup(s.Cosine(0.1), 7), 8, maximum=50),
    s.TradedBatchSize(s.Stretched(s.Warmup(s.StepDecay(1, factor=0.5, every=4), 3), by=3), 8),
    s.TradedBatchSize(Restarts(0.1, 9), 8, maximum=30),
    *(
        s.TradedLR(lr, 8, rule, maximum=maximum)
        for rule in RULES
        for lr, maximum in (
            (s.Cosine(0.1, end=0.001), None),
            (s.Warmup(s.Cosine(0.1), 7), 50),
            (s.Delayed(s.Polynomial(0.1, power=2), 4), 50),
            (Restarts(0.1, 9), 30),
            (s.IncreasingBeta(0.5), None),
        )
    ),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_schedules_keep_their_promises(schedule):
    for horizon in (100, 31):
        check_schedule(schedule, horizon)
        values = [schedule(t, horizon) for t in range(horizon)]
        for tick in range(horizon):
            reach = values[tick : schedule.next_turn(tick, horizon) + 1]
            assert reach in (sorted(reach), sorted(reach, reverse=True))


@given(schedules, st.integers(20, 60), st.integers(0, 200), st.sampled_from(RULES))
def test_traded_schedules_turn_where_they_say(lr, horizon, more, rule):
    for schedule in (
        s.TradedBatchSize(lr, 8, maximum=8 + more),
        s.TradedLR(lr, 8, rule, maximum=8 + more),
    ):
        values = [schedule(t, horizon) for t in range(horizon)]
        for tick in range(horizon):
            assert set(values[tick : schedule.next_change(tick, horizon)]) == {values[tick]}
            reach = values[tick : schedule.next_turn(tick, horizon) + 1]
            ends = sorted(reach) if reach[-1] >= reach[0] else sorted(reach, reverse=True)
            assert reach == pytest.approx(ends, rel=1e-14)  # a root rounds twice


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("rule", RULES)
def test_a_traded_plan_is_a_value(unit, rule):
    lr = s.Warmup(s.Cosine(0.1), 5)
    plan = Plan.trade_decay(lr, 8, rule, **{unit: 40}, maximum=64, beta=s.Cosine(0.9))
    for twin in (
        eval(repr(plan), {**vars(s), "Plan": Plan}),
        pickle.loads(pickle.dumps(plan)),
        copy.deepcopy(plan),
        Plan.from_toml(plan.to_toml()),
        replace(plan),
    ):
        assert twin == plan
        assert hash(twin) == hash(plan)
        assert repr(twin) == repr(plan)
        assert [twin.at(t) for t in range(plan.length)] == [plan.at(t) for t in range(plan.length)]
        assert twin.saved(64) == plan.saved(64)


def test_numbers_of_numpy_become_those_of_python():
    plan = Plan.trade_decay(s.Inverse(0.1), np.int64(8), epochs=9, maximum=np.int64(16))
    assert repr(plan.batch_size) == "TradedBatchSize(Inverse(0.1), 8, maximum=16)"


def test_a_longer_plan_of_the_same_schedules_has_its_own_maximum():
    plan = Plan.trade_decay(s.IncreasingBeta(0.5), 8, epochs=9)
    longer = replace(plan, epochs=30)
    assert {longer.at(m).batch_size for m in range(30)} == {8}
    assert longer.at(29).lr == s.IncreasingBeta(0.5)(29, 30)


def test_a_saving_says_what_it_rests_on():
    plan = Plan.trade_decay(s.StepDecay(0.1, factor=0.25, every=5), 100, "seesaw", epochs=10)
    assert str(plan.saved(10_000)).splitlines() == [
        "seesaw: 1,000 steps become 625 (0.625 of them), 100,000 samples as before",
        "batch size 100 to 400 (0.04 n)",
        "for Adam and its like, while noise dominates the gradients; not for SGD",
        "at each sample lr/sqrt(b) is that of the decay of lr; AdamW's weight decay falls",
    ]
    assert str(plan.saved(399)).endswith("above n = 399: set maximum, or give n")
    smith = Plan.trade_decay(s.StepDecay(0.1, factor=0.25, every=5), 100, epochs=10)
    assert smith.saved(10_000).ratio == 0.625
    assert smith.saved(10_000).validity.startswith("for SGD, with momentum too")


# ------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lr_schedule": s.Cosine(0.1)}, "maximum must be given where lr falls to 0, .* at tick 8"),
        (
            {"lr_schedule": s.Piecewise({0: 1, 4: 0, 6: 1})},
            "maximum must be given where lr falls to 0, got none and lr 0 at tick 4",
        ),
        (
            {"lr_schedule": s.Cosine(0.1, end=-0.1)},
            "lr must be finite and >= 0, got -0.1 at tick 8",
        ),
        ({"lr_schedule": math.nan}, "lr must be a finite number or a Schedule, got nan"),
        ({"lr_schedule": "0.1"}, "lr must be a finite number or a Schedule, got '0.1'"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        ({"batch_size": 8.0}, "batch_size must be an integer >= 1, got 8.0"),
        ({"batch_size": s.Constant(8)}, "batch_size must be an integer >= 1, got Constant"),
        ({"maximum": 7}, "maximum must be an integer >= 8, got 7"),
        ({"maximum": 9.5}, "maximum must be an integer >= 8, got 9.5"),
        ({"rule": "goyal"}, "rule must be 'smith' or 'seesaw', got 'goyal'"),
        ({"beta": 1}, r"beta must be in \[0, 1\), got 1"),
        ({"epochs": None}, "exactly one of epochs, steps, samples must be given, got none"),
        ({"steps": 9}, "exactly one of epochs, steps, samples must be given, got epochs, steps"),
        (
            {"epochs": None, "steps": 9, "n": 20},
            "n must be a multiple of the batch size 8 .* got 20",
        ),
        ({"epochs": None, "steps": 2**51}, r"steps must take at most 2\*\*53 samples, got 225"),
        ({"lr_schedule": None}, "lr_schedule must be a Schedule or a number, got None"),
        ({"n": 100, "maximum": 101}, "maximum must be at least batch_size 8 and at most n=100"),
        ({"n": 7}, "maximum must be at least batch_size 8 and at most n=7, got 7"),
        ({"n": 0}, "n must be an integer >= 1, got 0"),
    ],
)
def test_a_wrong_trade_is_refused_in_one_line(given, message):
    given = {"lr_schedule": s.Inverse(0.1), "batch_size": 8, "epochs": 9, **given}
    with pytest.raises(ValueError, match=message) as excinfo:
        Plan.trade_decay(**given)
    assert "\n" not in str(excinfo.value)


def test_a_lr_of_0_before_the_maximum_needs_no_maximum():
    plan = Plan.trade_decay(s.Linear(0, 0.1), 8, epochs=9)
    assert plan.at(0) == replace(plan.at(0), batch_size=8, lr=0)


def test_steps_are_refused_where_they_are_no_fixed_number_of_samples():
    """Over 20 samples in batches of 8 the third step has 4 samples, and step 3 is sample 20."""
    plan = Plan.trade_decay(s.Inverse(0.1), 8, steps=9)
    with pytest.raises(
        ValueError, match=r"n must be a multiple of the batch size 8 .* got 20: each"
    ):
        plan.saved(20)
    assert plan.saved(24).steps_before == plan.saved(1000).steps_before == 9
    assert plan.saved(73).steps_before == 9  # once through, and not to the end
    by_samples = Plan.trade_decay(s.Inverse(0.1), 8, samples=72)
    assert by_samples.saved(20).steps_before == Plan(samples=72, batch_size=8).total_steps(20) == 11


@pytest.mark.parametrize(
    "plan",
    [
        Plan(epochs=9, batch_size=8, lr=0.1),
        Plan(epochs=9, batch_size=s.TradedBatchSize(s.Inverse(0.1), 8), lr=0.1),
    ],
)
def test_what_was_not_traded_saves_nothing(plan):
    with pytest.raises(ValueError, match=r"batch_size and lr must be those of Plan\.trade_decay, "):
        plan.saved(100)


# ------------------------------------------------------------------------------------- scale_lr


def test_lr_for_another_batch_size():
    assert scale_lr(0.1, 256, 8192) == 3.2
    assert scale_lr(0.1, 8192, 256) == 0.1 / 32
    assert scale_lr(1e-3, 256, 4096, "sqrt") == 4e-3
    assert scale_lr(0.1, 256, 256) == scale_lr(0.1, 256, 256, "sqrt") == 0.1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((-0.1, 8, 16), "lr must be a finite number >= 0, got -0.1"),
        ((math.inf, 8, 16), "lr must be a finite number >= 0, got inf"),
        ((0.1, 0, 16), "batch_size must be an integer >= 1, got 0"),
        ((0.1, 8, 16.5), "to must be an integer >= 1, got 16.5"),
        ((0.1, 8, 16, "adam"), "rule must be 'linear' or 'sqrt', got 'adam'"),
    ],
)
def test_a_wrong_scaling_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        scale_lr(*given)
