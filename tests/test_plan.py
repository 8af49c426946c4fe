"""The Plan: domains, rounding, layouts against a slow reference, text and back, refusals."""

import copy
import math
import pickle
import subprocess
import sys
import time
from dataclasses import FrozenInstanceError, dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchramp import schedules as s
from batchramp.plan import Plan, Values, round_batch_size


@dataclass(frozen=True)
class Spike(s.Schedule):
    """A user's schedule: one value, but for one tick, and a third one in between."""

    usual: float
    rare: float
    at: int = 7

    def __call__(self, tick, horizon, /):
        return self.rare if tick == self.at else self.usual


@dataclass(frozen=True)
class ToAndFro(s.Schedule):
    """Turns around at each tick."""

    low: float
    high: float

    def __call__(self, tick, horizon, /):
        return self.high if tick % 2 else self.low


def paper(**other):
    halving = {"factor": 0.5, "every": 30}
    given = {
        "batch_size": s.Exponential(8, factor=2, every=30),
        "lr": s.Cosine(0.1),
        "beta": s.StepDecay(0.9, **halving),
        "gamma": s.StepDecay(0.7, **halving),
    }
    return Plan(epochs=300, **{**given, **other})


# ------------------------------------------------------------------------------------ the paper


def test_the_papers_plan_has_the_papers_steps():
    assert paper().total_steps(50_000) == 374_760
    assert [stage.batch_size for stage in paper().stages(50_000)] == [2**i for i in range(3, 13)]
    assert [Plan(epochs=300, batch_size=b).total_steps(50_000) for b in (8, 256, 4096)] == [
        1_875_000,
        58_800,
        3_900,
    ]


def test_the_released_codes_plan_is_one_epoch_late():
    late = paper(batch_size=s.Delayed(s.Exponential(8, factor=2, every=30), by=1))
    assert late.total_steps(50_000) == 380_997
    assert [stage.start for stage in late.stages(50_000)][:3] == [0, 31, 61]
    assert late.total_samples(50_000) == paper().total_samples(50_000) == 15_000_000


def test_values_at_a_tick():
    assert paper().at(30) == Values(16, paper().at(30).lr, 0.45, 0.35)
    assert Plan(epochs=3, batch_size=8).at(2) == Values(8, None, None, None)
    assert Plan(epochs=3, batch_size=8, lr=1, gamma=0).at(2).hyperparameters == {
        "lr": 1.0,
        "gamma": 0.0,
    }


# ---------------------------------------------------------------------------------- rounding


@pytest.mark.parametrize(
    ("value", "rounded"),
    [
        (1000 * 1.1**3, 1331),
        (8 * 1.1**7, 16),
        (8.0, 8),
        (8.001, 9),
        (0.3, 1),
        (1e-300, 1),
        (2e12, 2 * 10**12),
        (2**60, 2**60),
    ],
)
def test_the_rounding_rule(value, rounded):
    assert round_batch_size(value) == rounded


@given(st.floats(1e-9, 1e15))
def test_rounding_is_up_but_for_noise(value):
    rounded = round_batch_size(value)
    assert rounded >= value * (1 - 2e-12)
    assert rounded - value < 1


@given(st.floats(1, 1e15), st.floats(1, 1e15))
def test_rounding_keeps_order(one, other):
    assert round_batch_size(min(one, other)) <= round_batch_size(max(one, other))


def test_growth_by_a_fraction_does_not_drift():
    plan = Plan(epochs=40, batch_size=s.Exponential(8, factor=1.1, every=1))
    exact = [-(-8 * 11**m // 10**m) for m in range(40)]
    assert [plan.at(m).batch_size for m in range(40)] == exact


# -------------------------------------------------------------- layouts, against the obvious way


def obvious(plan, n, drop_last):
    """Every batch as (tick at its first sample, true size), epoch by epoch, one by one."""
    epochs, step, samples = [], 0, 0
    while {"epochs": len(epochs), "steps": step, "samples": samples}[plan.unit] < plan.length:
        batches, data = [], n
        while data > 0:
            tick = {"epochs": len(epochs), "steps": step, "samples": samples}[plan.unit]
            if tick >= plan.length:
                break
            size = plan.at(tick).batch_size
            if drop_last and size > data:
                break
            size = min(size, data)
            if plan.unit == "samples":
                size = min(size, plan.samples - samples)
            batches.append((tick, size))
            data, step, samples = data - size, step + 1, samples + size
        if not batches:
            return None  # dropping the last batch leaves nothing
        epochs.append(batches)
    return epochs


sizes = st.one_of(
    st.builds(s.Constant, st.integers(1, 30)),
    st.dictionaries(st.integers(1, 150), st.integers(1, 40), max_size=6).flatmap(
        lambda later: st.integers(1, 20).map(lambda first: s.Piecewise({**later, 0: first}))
    ),
    st.builds(s.Exponential, st.integers(1, 9), factor=st.floats(1.05, 2), every=st.just(40)),
    st.builds(s.Linear, st.integers(1, 9), st.floats(0.1, 2), every=st.integers(1, 20)),
    st.builds(
        s.Polynomial,
        st.integers(2, 30),
        power=st.floats(0.5, 3),
        end=st.just(1),
        span=st.integers(1, 90),
    ),
    st.builds(s.Cosine, st.integers(1, 30), end=st.integers(1, 30)),
    st.builds(Spike, st.integers(1, 20), st.integers(1, 20), at=st.integers(0, 30)),
    st.builds(s.Warmup, st.builds(s.Cosine, st.integers(1, 30), end=st.just(1)), st.just(0)),
    st.builds(s.Stretched, st.builds(s.Linear, st.integers(1, 9), st.just(1.7)), st.integers(1, 9)),
    st.builds(
        lambda start, by, most: s.TradedBatchSize(s.InverseSqrt(by), start, maximum=start + most),
        st.integers(1, 9),
        st.integers(1, 9),
        st.integers(0, 60),
    ),
)
delayed = sizes.flatmap(lambda size: st.integers(0, 9).map(lambda by: s.Delayed(size, by)))
plans = st.builds(
    lambda unit, length, size: Plan(**{unit: length}, batch_size=size),
    st.sampled_from(["epochs", "steps", "samples"]),
    st.integers(1, 200),
    sizes | delayed,
)


@given(plans, st.integers(1, 60), st.booleans())
def test_a_layout_is_that_of_batch_after_batch(plan, n, drop_last):
    expected = obvious(plan, n, drop_last)
    too_large = max(plan.at(t).batch_size for t in range(plan.length)) > n
    if expected is None:
        with pytest.raises(ValueError, match="drop_last would leave no batch"):
            plan.stages(n, drop_last)
        return
    assert plan.total_epochs(n, drop_last) == len(expected)
    found = [plan.batch_sizes(epoch, n, drop_last) for epoch in range(len(expected))]
    assert found == [[size for _, size in batches] for batches in expected]
    if not drop_last:
        assert found == [
            [size for size, count in lap for _ in range(count)]
            for times, lap in plan.laps(n)
            for _ in range(times)
        ]
        total = f"total: {sum(map(len, found)):,} steps, {sum(map(sum, found)):,} samples"
        assert plan.describe(n).total == total

    every = [batch for batches in expected for batch in batches]
    assert plan.total_steps(n, drop_last) == len(every)
    assert plan.total_samples(n, drop_last) == sum(size for _, size in every)
    stages = plan.stages(n, drop_last)
    for stage in stages:
        own = [size for tick, size in every if stage.start <= tick < stage.stop]
        assert (stage.steps, stage.samples) == (len(own), sum(own))
    if not drop_last and plan.unit == "epochs":
        assert plan.total_samples(n) == n * plan.epochs
    if plan.unit == "steps":
        assert plan.total_steps(n, drop_last) == plan.steps
    if plan.unit == "samples":
        assert plan.total_samples(n, drop_last) == plan.samples
    if drop_last and not too_large and plan.unit != "samples":
        assert {size for _, size in every} <= {stage.batch_size for stage in stages}


@given(plans, st.integers(1, 60))
def test_stages_are_the_maximal_runs_of_one_batch_size(plan, n):
    stages = plan.stages(n)
    assert [(g.start, g.stop) for g in stages] == list(
        zip(
            [0, *(g.stop for g in stages[:-1])],
            [*(g.start for g in stages[1:]), plan.length],
            strict=True,
        )
    )
    for stage in stages:
        ticks = range(stage.start, stage.stop)
        assert {plan.at(tick).batch_size for tick in ticks} == {stage.batch_size}
    assert all(a.batch_size != b.batch_size for a, b in pairwise(stages))


@given(
    st.dictionaries(st.integers(1, 9), st.integers(1, 2500), max_size=4),
    st.integers(1, 12_000),
    st.integers(500, 5000),
    st.booleans(),
)
def test_a_size_changes_with_the_first_batch_that_starts_at_or_after_the_threshold(
    later, length, n, drop_last
):
    """By hand: no Plan, no schedule, and epochs that end in between."""
    pieces = {"0": 300, **{f"{k}k": size for k, size in later.items()}}
    plan = Plan(samples=length, batch_size=s.Piecewise(pieces))
    if drop_last and max(pieces.values()) > n:
        return
    taken, epochs = 0, []
    while taken < length:
        epoch, left = [], n
        while left > 0 and taken < length:
            size = 300
            for thousands in sorted(later):
                if taken >= 1000 * thousands:
                    size = later[thousands]
            if drop_last and size > left:
                break
            size = min(size, left, length - taken)
            epoch.append(size)
            taken, left = taken + size, left - size
        epochs.append(epoch)
    assert [plan.batch_sizes(e, n, drop_last) for e in range(len(epochs))] == epochs
    assert plan.total_epochs(n, drop_last) == len(epochs)
    assert plan.total_steps(n, drop_last) == sum(map(len, epochs))


def test_dropping_everything_is_refused():
    plan = Plan(epochs=9, batch_size=s.Exponential(8, factor=2, every=3))
    with pytest.raises(ValueError, match="batch_size 32 at tick 6 is larger than the 20 samples"):
        plan.total_steps(20, drop_last=True)
    assert plan.batch_sizes(8, 20) == [20]


def test_a_batch_larger_than_the_rest_of_an_epoch_does_not_reach_into_the_next():
    plan = Plan(steps=5, batch_size=s.Piecewise({0: 4, 2: 7}))
    assert [plan.batch_sizes(e, 10) for e in range(2)] == [[4, 4, 2], [7, 3]]
    plan = Plan(samples=25, batch_size=s.Piecewise({0: 4, 11: 7}))
    assert [plan.batch_sizes(e, 10) for e in range(3)] == [[4, 4, 2], [4, 6], [5]]


def test_a_smaller_size_may_fit_where_the_larger_would_have_been_dropped():
    """The size changes just where an epoch of the old size would have dropped its rest."""
    plan = Plan(steps=6, batch_size=s.Piecewise({0: 4, 2: 1}))
    assert plan.batch_sizes(0, 10, drop_last=True) == [4, 4, 1, 1]
    assert plan.total_epochs(10, drop_last=True) == 2


# ---------------------------------------------------------------------------------- endless plans


@pytest.mark.parametrize("unit", ["epochs", "steps", "samples"])
@pytest.mark.parametrize(
    "lr", [s.Cosine(0.1), s.Warmup(s.Inverse(0.1), 10**6), s.Delayed(s.IncreasingBeta(0.1), by=1)]
)
def test_a_plan_of_any_length_is_made_and_laid_out_at_once(unit, lr):
    began = time.perf_counter()
    pieces = s.Piecewise({0: 8, 10**9: 16, 10**12 - 1: 24})
    plan = Plan(**{unit: 10**12}, batch_size=pieces, lr=lr)
    stages = plan.stages(50_001)
    plan.describe(50_001)
    plan.plot(50_001)
    last = plan.batch_sizes(plan.total_epochs(50_001) - 1, 50_001)
    assert time.perf_counter() - began < 5
    assert [g.batch_size for g in stages] == [8, 16, 24]
    assert sum(last) == 50_001 or unit != "epochs"
    total = {"epochs": 50_001 * 10**12, "samples": 10**12}
    assert plan.total_samples(50_001) == total.get(unit, sum(g.samples for g in stages))


@pytest.mark.parametrize("unit", ["epochs", "steps", "samples"])
def test_a_size_that_never_turns_around_is_laid_out_without_looking_at_each_tick(unit):
    """Twelve sizes in 10**9 ticks: each change is where the formula says, on both of its sides."""
    plan = Plan(**{unit: 10**9}, batch_size=s.Warmup(s.Polynomial(20, power=2, end=9), 10**8))
    stages = plan.stages(50_000)
    assert [stage.batch_size for stage in stages] == [*range(1, 21), *range(19, 8, -1)]
    for before, after in pairwise(stages):
        assert before.stop == after.start
        assert plan.at(after.start - 1).batch_size == before.batch_size
        assert plan.at(after.start).batch_size == after.batch_size
    assert sum(stage.steps for stage in stages) == plan.total_steps(50_000)


def test_what_changes_too_often_is_refused_and_not_walked(monkeypatch):
    monkeypatch.setattr("batchramp.plan._MOST_LOOKS", 10_000)
    monkeypatch.setattr("batchramp.plan._MOST_CHECKS", 10_000)
    began = time.perf_counter()
    for size in (ToAndFro(8, 16), s.Cosine(8, end=10**9)):
        plan = Plan(steps=10**12, batch_size=size)
        for read in (plan.total_steps, plan.stages, plan.laps):
            with pytest.raises(ValueError, match=r"batch_size must be found by at most 10,000 loo"):
                read(100)
    assert Plan(steps=9_999, batch_size=ToAndFro(8, 16)).total_steps(100) == 9_999
    with pytest.raises(ValueError, match="n must leave an epoch at most 100,000,000 batches"):
        Plan(epochs=1, batch_size=1).batch_sizes(0, 10**12)
    assert Plan(epochs=1, batch_size=1).total_steps(10**12) == 10**12
    assert time.perf_counter() - began < 10


def test_what_a_file_can_say_is_not_looked_at_for_minutes(monkeypatch):
    """Turns at every tick, of the kinds that files have; somebody else's are looked at for long."""
    looks = []
    real = Plan._value
    monkeypatch.setattr(Plan, "_value", lambda *given: looks.append(given[1]) or real(*given))
    falling = s.StepDecay(0.1, factor=0.999999, every=1)
    wavy = s.Product(falling, s.Linear(1, 1e-9, every=3))
    pieces = s.Piecewise({i: 0.1 + i / 10**6 for i in range(15_000)})
    Plan(steps=10**9, batch_size=8, lr=wavy, gamma=pieces)
    assert looks.count("lr") < 25_000
    assert looks.count("gamma") == 15_001  # every piece, and the last tick
    with pytest.raises(ValueError, match="lr must turn at most 50,000 times"):
        Plan(steps=10**9, batch_size=s.TradedBatchSize(wavy, 8, maximum=64))
    with pytest.raises(ValueError, match="at tick 77777"):
        Plan(steps=10**5, batch_size=8, lr=DipAt(77_777))


@dataclass(frozen=True)
class DipAt(s.Schedule):
    where: int

    def __call__(self, tick, horizon, /):
        return -1.0 if tick == self.where else 0.1


def test_more_stages_than_can_be_listed_have_totals_and_a_description(monkeypatch):
    plan = Plan(steps=500, batch_size=ToAndFro(8, 16))
    described = plan.describe(100)
    expected = obvious(plan, 100, False)
    monkeypatch.setattr("batchramp.plan._MOST_LISTED", 499)
    other = Plan(steps=500, batch_size=ToAndFro(8, 16.0))  # equal, and counted already
    assert plan.total_steps(100) == 500
    assert plan.batch_sizes(30, 101) == [size for _, size in obvious(plan, 101, False)[30]]
    assert str(other.describe(100)) == str(described)
    assert plan.total_samples(100) == sum(size for batches in expected for _, size in batches)
    for n in (102, 103):
        with pytest.raises(ValueError, match="batch_size must change at most 499 times for its st"):
            plan.stages(n)
        with pytest.raises(ValueError, match="batch_size must change at most 499 times for its ep"):
            plan.laps(n)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("unit", "n"), [("epochs", 500), ("steps", 500), ("steps", 10**12)])
def test_ten_million_changes_are_counted_in_little_memory(unit, n):
    plan = Plan(**{unit: 9_999_999}, batch_size=ToAndFro(8, 16))
    began = time.process_time()
    steps, samples = plan.total_steps(n), plan.total_samples(n)
    assert time.process_time() - began < 60
    if unit == "epochs":
        assert (steps, samples) == (5_000_000 * 63 + 4_999_999 * 32, 500 * 9_999_999)
    elif n == 500:  # an epoch of 42 batches: (8 + 16) 20 + 8 + 12, and so on from a 8 again
        assert steps == 9_999_999
        assert samples == 9_999_999 // 42 * 500 + 9_999_999 % 42 // 2 * 24 + 8
    else:
        assert (steps, samples) == (9_999_999, 4_999_999 * 24 + 8)


def test_the_papers_plan_is_made_in_less_than_5_ms_and_read_in_microseconds():
    began = time.perf_counter()
    plan = min((paper() for _ in range(10)), key=lambda p: p.length)
    assert (time.perf_counter() - began) / 10 < 5e-3
    fastest = math.inf
    for _ in range(5):
        began = time.perf_counter()
        for tick in range(300):
            plan.at(tick)
        fastest = min(fastest, (time.perf_counter() - began) / 300)
    assert fastest < 30e-6  # 3 on a quiet machine


def test_a_plan_imports_no_heavy_library():
    loaded = "import sys, batchramp.plan as p; p.Plan(epochs=3, batch_size=8, lr=.1).describe(9); "
    loaded += "print({'torch', 'numpy', 'matplotlib'} & set(sys.modules))"
    root = Path(__file__).parents[1]
    ran = subprocess.run(
        [sys.executable, "-c", loaded], cwd=root, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "set()"


# ---------------------------------------------------------------------------------------- a value

rates = st.floats(0, 1) | st.just(1)
schedules = st.one_of(
    rates,
    st.builds(s.Constant, rates),
    st.builds(s.Cosine, rates, end=rates),
    st.builds(s.Warmup, st.builds(s.Cosine, rates), st.integers(0, 9), start=rates),
    st.builds(s.Delayed, st.builds(s.Warmup, st.builds(s.Inverse, rates), st.just(2)), st.just(3)),
    st.builds(s.Product, st.builds(s.InverseSqrt, rates), st.builds(s.Constant, rates)),
    st.builds(lambda a, b: s.Piecewise({4: a, 0: b}), rates, rates),
    st.builds(Spike, rates, rates),
)


@given(
    st.sampled_from(["epochs", "steps", "samples"]),
    st.integers(10, 99),
    sizes,
    st.none() | schedules,
    st.none() | schedules,
)
def test_a_plan_is_a_value(unit, length, size, lr, gamma):
    plan = Plan(**{unit: length}, batch_size=size, lr=lr, gamma=gamma)
    names = {**vars(s), "Plan": Plan, "Spike": Spike}
    for twin in (
        eval(repr(plan), names),
        pickle.loads(pickle.dumps(plan)),
        copy.deepcopy(plan),
        Plan.from_dict(plan.to_dict()),
        Plan.from_toml(plan.to_toml()),
        replace(plan),
    ):
        assert twin == plan
        assert hash(twin) == hash(plan)
        assert repr(twin) == repr(plan)  # 8 stays 8 and 1.0 stays 1.0
        assert [twin.at(t) for t in range(length)] == [plan.at(t) for t in range(length)]


def test_plans_that_differ_are_not_equal():
    some = [paper(), paper(beta=0.9), paper(beta=None), paper(batch_size=8), paper(lr=0.1)]
    some += [
        Plan(epochs=3, batch_size=8),
        Plan(steps=3, batch_size=8),
        Plan(epochs=4, batch_size=8),
    ]
    assert len(set(some)) == len(some)


def test_a_plan_is_frozen_and_keeps_numbers_as_constants():
    plan = Plan(epochs=np.int64(3), batch_size=np.int64(8), lr=1)
    assert repr(plan) == "Plan(epochs=3, batch_size=Constant(8), lr=Constant(1))"
    with pytest.raises(FrozenInstanceError):
        plan.lr = 0.1  # type: ignore[misc]


def test_toml_of_a_nested_plan_and_from_a_file(tmp_path):
    plan = Plan(
        steps=90,
        batch_size=s.Piecewise({0: 8, 30: 16}),
        lr=s.Warmup(s.Cosine(0.1), 5),
        beta=Spike(0.9, 0.5),
    )
    text = plan.to_toml()
    assert "pieces = [\n" in text
    assert "[lr.schedule]" in text
    assert 'kind = "Spike"' in text
    (tmp_path / "plan.toml").write_text(text)
    assert Plan.from_toml(tmp_path / "plan.toml") == plan
    table = 'steps = 90\n[batch_size]\nkind = "Piecewise"\npieces = {0 = 8, 30 = 16}\n'
    assert Plan.from_toml(table).batch_size == plan.batch_size
    table = 'samples = 300_000_000\n[batch_size]\nkind = "Piecewise"\npieces = {0 = 768, 250M = 8}'
    assert Plan.from_toml(table).batch_size == s.Piecewise({0: 768, 250_000_000: 8})
    table = 'samples = 9000\n[batch_size]\nkind = "Piecewise"\npieces = [[0, 8], ["1.5k", 9]]'
    assert Plan.from_toml(table).batch_size.pieces == ((0, 8), (1500, 9))


# -------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "exactly one of epochs, steps, samples must be given, got none"),
        ({"epochs": 3, "steps": 3}, "exactly one of .* must be given, got epochs, steps"),
        *(
            ({unit: length}, rf"{unit} must be an integer >= 1, got {length!r}")
            for unit in ("epochs", "steps", "samples")
            for length in (0, -1, 2.5, 3.0, math.nan, math.inf, True, "3")
        ),
        ({"steps": 10**400}, r"steps must be an integer <= 2\*\*53, got 1000"),
        *(
            (
                {"epochs": 3, "batch_size": b},
                r"batch_size must be an integer >= 1 .* got " + repr(b),
            )
            for b in (0, -8, 8.5, 0.3)
        ),
        *(
            ({"epochs": 3, name: v}, rf"{name} must be a finite number or a Schedule, got ")
            for name in ("batch_size", "lr", "beta", "gamma")
            for v in (math.nan, math.inf, -math.inf, True, "8", [8], {"a": 1}, 10**400, s.Cosine)
        ),
        ({"epochs": 3, "batch_size": None}, "batch_size must be a finite number .*, got None"),
        (
            {"epochs": 9, "batch_size": s.Piecewise({0: 8, 3: 8.5})},
            "batch_size must be an integer >= 1 where constant, got 8.5",
        ),
        (
            {"epochs": 9, "batch_size": s.Delayed(s.Warmup(7.5, 2), by=1)},
            "batch_size must be an integer >= 1 where constant, got 7.5",
        ),
        (
            {"epochs": 9, "batch_size": s.Linear(8, -2)},
            r"batch_size must be finite and at least 1 after rounding up, got -8.0 at tick 8 \(ep",
        ),
        (
            {"epochs": 2000, "batch_size": s.Exponential(8, factor=2, every=1)},
            "batch_size must be finite and at least 1 .*, got inf at tick 1999",
        ),
        ({"epochs": 3, "lr": -0.1}, "lr must be finite and >= 0, got -0.1 at tick 0"),
        ({"epochs": 3, "lr": s.Cosine(0.1, end=-0.1)}, "lr must be .* >= 0, got -0.1 at tick 2"),
        ({"epochs": 3, "beta": 1}, r"beta must be in \[0, 1\), got 1 at tick 0 \(epochs\)"),
        ({"epochs": 3, "beta": -0.5}, r"beta must be in \[0, 1\), got -0.5"),
        (
            {"steps": 9, "beta": s.Linear(0.5, 0.1)},
            r"beta must be in \[0, 1\), got 1.3 at tick 8 \(s",
        ),
        ({"epochs": 3, "gamma": 1.2}, r"gamma must be in \[0, 1\], got 1.2"),
        ({"epochs": 9, "gamma": Spike(0.5, 1.01)}, r"gamma must be in .* got 1.01 at tick 7"),
        (
            {"epochs": 9, "lr": Spike(0.5, math.nan)},
            r"lr must be finite and >= 0, got nan at tick 7",
        ),
        ({"epochs": 9, "lr": Spike(0.5, "x")}, r"lr must be .*, got 'x' at tick 7"),  # type: ignore
        ({"epochs": 9, "lr": Spike(0.5, 10**400)}, r"lr must be finite and >= 0, got 1000"),
        (
            {"epochs": 9, "lr": s.Product(s.Linear(0.5, 0.1), s.Constant(-1))},
            r"lr must be finite and >= 0, got -0.5 at tick 0",
        ),
        (
            {"epochs": 9, "lr": s.Warmup(0.1, 9)},
            "lr: length of the warm-up must be below the Plan's 9 ticks, got 9",
        ),
    ],
)
def test_a_wrong_plan_is_refused_in_one_line(given, message):
    with pytest.raises(ValueError, match=message) as excinfo:
        Plan(**{"batch_size": 8, **given})
    assert "\n" not in str(excinfo.value)


def test_one_bad_tick_in_half_a_million_is_found():
    with pytest.raises(ValueError, match="lr must be finite and >= 0, got -1 at tick 123457"):
        Plan(steps=500_000, batch_size=8, lr=Spike(1, -1, at=123_457))


@pytest.mark.parametrize("tick", [-1, 300, 0.5, "3", None])
def test_a_tick_outside_is_refused(tick):
    with pytest.raises(ValueError, match=rf"tick must be in 0..299 \(epochs\), got {tick!r}"):
        paper().at(tick)


@pytest.mark.parametrize("n", [0, -1, 2.5, True, "9", None, 2**53 + 1])
@pytest.mark.parametrize(
    "read",
    [
        Plan.stages,
        Plan.total_steps,
        Plan.total_samples,
        Plan.total_epochs,
        Plan.describe,
        Plan.plot,
        lambda plan, n: plan.batch_sizes(0, n),
    ],
)
@pytest.mark.parametrize("unit", ["epochs", "steps"])
def test_a_wrong_number_of_samples_is_refused(unit, read, n):
    with pytest.raises(ValueError, match=r"n must be an integer [<>]= .*, got ") as excinfo:
        read(Plan(**{unit: 3}, batch_size=8), n)
    assert repr(n) in str(excinfo.value)


@pytest.mark.parametrize("unit", ["epochs", "steps"])
@pytest.mark.parametrize("epoch", [-1, 3, 0.5, "0"])
def test_an_epoch_outside_is_refused(unit, epoch):
    with pytest.raises(ValueError, match=rf"epoch must be in 0..2, got {epoch!r}"):
        Plan(**{unit: 3}, batch_size=8).batch_sizes(epoch, 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "epochs =",
            "source must be TOML text, or a Path to a file of it, got 'epochs =': Invalid",
        ),
        ("plan.toml", "source must be TOML text, or a Path .*, got 'plan.toml': Expected"),
        ("epochs = 1\n" * 99, "source must be TOML text, .*: Cannot overwrite a value"),
        ("epochs = 3", "batch_size is missing: every plan needs one"),
        ("batch_size = 8", "exactly one of epochs, steps, samples must be given, got none"),
        (
            "epochs = 3\nbatch_size = 8\nbatchsize = 8",
            "batchsize is not a field of a plan: allowed are epochs, steps, samples, batch_size",
        ),
        ("epochs = 3\nbatch_size = 8\nlr = nan", "lr must be a finite number .*, got nan"),
        ("epochs = 3\nbatch_size = 8\nlr = true", "lr must be a finite number .*, got True"),
        ("epochs = 3.0\nbatch_size = 8", "epochs must be an integer >= 1, got 3.0"),
        ("epochs = 3\nbatch_size = [8]", r"batch_size must be a finite number .*, got \[8\]"),
        ("epochs = 3\nbatch_size = 8\n[lr]\nstart = 1", "lr.kind must be one of .*, got None"),
        ("epochs = 3\nbatch_size = 8\n[lr]\nkind = 'Cos'", "lr.kind must be one of .* got 'Cos'"),
        (
            "epochs = 3\nbatch_size = 8\n[lr]\nkind = 'Cosine'\nstart = 1\nmin = 2",
            "lr.min is not a field of Cosine: allowed are start, end, span",
        ),
        (
            "epochs = 3\nbatch_size = 8\n[lr]\nkind = 'Inverse'\nstart = inf",
            "lr: start must be a finite number, got inf",
        ),
        (
            "epochs = 3\nbatch_size = 8\n[lr]\nkind = 'Inverse'\nstart = -1",
            "lr must be finite and >= 0, got -1.0 at tick 0",
        ),
    ],
)
def test_a_wrong_text_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match=message) as excinfo:
        Plan.from_toml(text)
    assert "\n" not in str(excinfo.value)


def test_a_file_that_is_no_text_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a long path is cut in the message
    Path("plan.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"source must be TOML text.*plan\.toml"):
        Plan.from_toml(Path("plan.toml"))


@dataclass(frozen=True)
class Optional(s.Schedule):
    limit: float | None

    def __call__(self, tick, horizon, /):
        return self.limit or 1.0


def test_what_toml_does_not_know_is_refused():
    plan = Plan(epochs=3, batch_size=8, lr=Optional(None))
    with pytest.raises(
        ValueError, match=r"Optional\(limit=None\).* must hold what TOML knows: .*No"
    ):
        plan.to_toml()


def test_a_table_must_be_a_table():
    with pytest.raises(ValueError, match=r"a plan must be a table, got \[3, 8\]"):
        Plan.from_dict([3, 8])  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------- showing it


def test_the_description_names_every_stage_and_the_totals():
    said = str(paper().describe(50_000)).splitlines()
    assert said[0] == "300 epochs over 50,000 samples"
    assert said[1].split() == ["epochs", "batch", "size", "steps", "samples", "lr", "beta", "gamma"]
    assert said[2].split()[:4] == ["0-29", "8", "187,500", "1,500,000"]
    assert said[-2].split()[:4] == ["270-299", "4,096", "390", "1,500,000"]
    assert said[-1] == "total: 374,760 steps, 15,000,000 samples"
    assert len({len(line) for line in said[1:-1]}) == 1
    assert repr(paper().describe(50_000)) == "\n".join(said)


def test_a_long_description_leaves_out_its_middle():
    plan = Plan(epochs=300, batch_size=s.Linear(8, 1))
    description = plan.describe(1000)
    said = str(description).splitlines()
    assert len(description.rows) == 41
    assert len(said) == 44
    assert said[2].split()[:2] == ["0", "8"]
    assert said[22].split() == ["...", "(260", "more)"]
    assert said[-2].split()[:2] == ["299", "307"]
    assert said[-1] == f"total: {plan.total_steps(1000):,} steps, 300,000 samples"


def test_the_plot_draws_what_the_plan_says(tmp_path):
    plan = paper()
    figure = plan.plot(50_000)
    figure.savefig(tmp_path / "plan.png")
    assert [axis.get_ylabel() for axis in figure.axes] == ["batch size", "lr", "beta", "gamma"]
    for axis, name in zip(figure.axes, ("batch_size", "lr", "beta", "gamma"), strict=True):
        ticks, values = axis.lines[0].get_data()
        assert list(ticks) == [*range(300), 300]
        assert list(values[:-1]) == [getattr(plan.at(m), name) for m in range(300)]
        assert values[-1] == values[-2]
    assert len(Plan(epochs=1, batch_size=8).plot(10).axes) == 1


def test_ten_million_ticks_of_any_schedule_are_counted(monkeypatch):
    monkeypatch.setattr("batchramp.plan._MOST_LOOKS", 10_000)
    plan = Plan(steps=10_000, batch_size=s.Linear(8, 0.4))  # changes at every other tick or third
    sizes = [plan.at(k).batch_size for k in range(10_000)]
    assert plan.total_samples(10**9) == sum(sizes)
    with pytest.raises(ValueError, match="batch_size must be found by at most 10,000 looks"):
        Plan(steps=10_001, batch_size=s.Linear(8, 1)).total_steps(10**9)
