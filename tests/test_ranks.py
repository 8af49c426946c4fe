"""A global batch dealt to processes: shares and weights against slow references, on any number."""

import sys
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from batchramp import Plan, ScheduledBatchSampler, TensorLoader
from batchramp import schedules as s
from batchramp.batching import Augmentation, ranks

quick = settings(max_examples=60, deadline=None, derandomize=True)
# On 23 samples: 3 x 7 + 2, 6 x 3 + 5, 12 + 11, 23 of 24.
GROWING = Plan(epochs=4, batch_size=s.Exponential(3, factor=2, every=1))


def every_rank(plan, n, world_size, **options):
    return [
        ScheduledBatchSampler(plan, n, rank=rank, world_size=world_size, **options)
        for rank in range(world_size)
    ]


@st.composite
def dealt(draw):
    """(plan, n, world size, options) that a sampler accepts."""
    world_size = draw(st.integers(1, 5))
    n = draw(st.integers(1, 60))
    unit = draw(st.sampled_from(["epochs", "steps", "samples"]))
    length = draw(st.integers(1, {"epochs": 4, "steps": 40, "samples": 150}[unit]))
    least = draw(st.integers(world_size, world_size + 8))
    schedule = draw(
        st.sampled_from(
            [
                least,
                s.Exponential(least, factor=1.7, every=2, maximum=60),
                s.Linear(least, increment=3, every=1),
                s.Piecewise({0: least + 7, 2: least, 5: least + 1}),
            ]
        )
    )
    plan = Plan(**{unit: length}, batch_size=schedule)
    shuffle = draw(st.booleans())
    options = {
        "seed": draw(st.integers(0, 2**32 - 1)),
        "shuffle": shuffle,
        "replacement": shuffle and draw(st.booleans()),
        "drop_last": draw(st.booleans()),
    }
    try:
        plan.total_epochs(n, options["drop_last"])
    except ValueError:  # drop_last would leave no batch
        options["drop_last"] = False
    return plan, n, world_size, options


# ------------------------------------------------------------------------------------ arithmetic


@quick
@given(st.integers(1, 200), st.integers(1, 40))
def test_shares_are_numpys_sections_and_weights_make_ddps_mean_the_mean(size, world_size):
    batch = np.arange(size)
    mean = Fraction(0)
    for rank, section in enumerate(np.array_split(batch, world_size)):
        ours = batch[ranks.share(size, rank, world_size)]
        weight = ranks.weight(size, rank, world_size)
        if len(section):
            assert ours.tolist() == section.tolist()
        else:
            assert ours.tolist() == [0]
            assert weight == 0
        exact = Fraction(world_size * len(section), size)
        assert weight == float(exact)
        mean += exact * Fraction(int(ours.sum()), len(ours)) / world_size
    assert mean == Fraction(size - 1, 2)  # of 0..size-1


@quick
@given(dealt())
def test_the_shares_of_all_ranks_are_the_batches_of_one_process(drawn):
    plan, n, world_size, options = drawn
    one = ScheduledBatchSampler(plan, n, **options, rank=0, world_size=1)
    shared = every_rank(plan, n, world_size, **options)
    for epoch in range(one.epochs):
        for sampler in (one, *shared):
            sampler.set_epoch(epoch)
        batches, parts = list(one), [list(sampler) for sampler in shared]
        for sampler in shared:
            assert len(sampler) == len(batches)
            assert sampler.sizes() == one.sizes()
        for k, batch in enumerate(batches):
            weights = [sampler.weight(k) for sampler in shared]
            assert one.weight(k) == 1
            together = [i for part, w in zip(parts, weights, strict=True) if w > 0 for i in part[k]]
            assert together == batch
            assert sum(weights) == pytest.approx(world_size, rel=1e-15)
            lengths = [len(part[k]) for part in parts]
            assert all(lengths)  # each has something to compute a gradient of
            assert max(lengths) - min(lengths) <= 1


@quick
@given(dealt(), st.integers(1, 5), st.data())
def test_a_state_of_one_world_size_goes_on_in_another(drawn, other, data):
    plan, n, world_size, options = drawn
    shared = every_rank(plan, n, world_size, **options)
    epoch = data.draw(st.integers(0, shared[0].epochs - 1))
    for sampler in shared:
        sampler.set_epoch(epoch)
    done = data.draw(st.integers(0, len(shared[0])))
    states = [sampler.state_dict(batches_done=done) for sampler in shared]
    assert all(state == states[0] for state in states)
    one = ScheduledBatchSampler(plan, n, **options, rank=0, world_size=1)
    one.load_state_dict(states[0])
    rest = list(one)
    if other > min(stage.batch_size for stage in plan.stages(n)):
        with pytest.raises(ValueError, match="batch_size must be >= the"):
            every_rank(plan, n, other, **options)
        return
    resumed = every_rank(plan, n, other, **options)
    for sampler in resumed:
        sampler.load_state_dict(states[0])
    parts = [list(sampler) for sampler in resumed]
    first = resumed[0].first_batch
    assert first == done
    together = [
        [i for r, part in enumerate(parts) if resumed[r].weight(first + k) for i in part[k]]
        for k in range(len(rest))
    ]
    assert together == rest


def test_weights_count_from_the_start_of_the_epoch_also_in_a_resumed_pass():
    sampler = ScheduledBatchSampler(GROWING, 23, rank=1, world_size=2)
    whole = [sampler.weight(k) for k in range(8)]
    assert whole == [2 / 3] * 7 + [1.0]
    sampler.load_state_dict(sampler.state_dict(batches_done=6))
    assert [sampler.weight(k) for k, _ in enumerate(sampler, sampler.first_batch)] == whole[6:]


# ---------------------------------------------------------------------------------------- loaders


def test_a_data_loader_with_workers_yields_the_share():
    shared = every_rank(GROWING, 23, 2, seed=5)
    one = ScheduledBatchSampler(GROWING, 23, seed=5)
    loaders = [DataLoader(range(23), batch_sampler=shared[0], num_workers=2), shared[1]]
    for epoch in range(4):
        for sampler in (one, *shared):
            sampler.set_epoch(epoch)
        first, second = ([list(map(int, part)) for part in loader] for loader in loaders)
        assert [a + b for a, b in zip(first, second, strict=True)] == list(one)


def noise(inputs, generator):
    return inputs + torch.randn(inputs.shape, generator=generator)


def blend(inputs, generator):
    """Each image with its neighbour in the global batch: no share can be had without the rest."""
    return inputs + inputs.roll(1, 0) * torch.rand(len(inputs), 1, 1, 1, generator=generator)


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize(
    ("augment", "dtype"),
    [(None, torch.uint8), (noise, torch.float32), (blend, torch.float32),
     (Augmentation(padding=2), torch.uint8)],
    ids=["none", "noise", "blend", "Augmentation"],
)  # fmt: skip
def test_what_is_augmented_does_not_depend_on_the_world_size(augment, dtype, world_size):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (23, 3, 8, 8), generator=generator).to(dtype)
    data = (images, torch.arange(23))

    def batches(rank, world_size):
        sampler = ScheduledBatchSampler(GROWING, 23, seed=3, rank=rank, world_size=world_size)
        for epoch in range(4):
            sampler.set_epoch(epoch)
            for k, batch in enumerate(TensorLoader(data, sampler, augment=augment)):
                yield sampler.weight(k), batch

    whole = [batch for _, batch in batches(0, 1)]
    parts = zip(*(batches(rank, world_size) for rank in range(world_size)), strict=True)
    for (inputs, targets), shares in zip(whole, parts, strict=True):
        for weight, (x, y) in shares:
            assert len(x) == len(y) >= 1
            assert weight > 0 or torch.equal(x, inputs[:1])
        counted = [batch for weight, batch in shares if weight]
        assert torch.equal(torch.cat([x for x, _ in counted]), inputs)
        assert torch.equal(torch.cat([y for _, y in counted]), targets)


def test_an_augmentation_is_applied_to_no_more_than_the_share(monkeypatch):
    seen = []
    apply = Augmentation.apply
    monkeypatch.setattr(
        Augmentation, "apply", lambda self, x, draws: seen.append(len(x)) or apply(self, x, draws)
    )
    images = torch.zeros(23, 1, 8, 8, dtype=torch.uint8)
    sampler = ScheduledBatchSampler(GROWING, 23, rank=1, world_size=2)
    list(TensorLoader((images,), sampler, augment=Augmentation()))
    assert seen == [1] * 8


def test_the_gradient_of_weighted_shares_is_that_of_the_batch():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(23, 4, dtype=torch.float64, generator=generator)
    y = torch.randn(23, 1, dtype=torch.float64, generator=generator)
    model = torch.nn.Linear(4, 1, dtype=torch.float64)

    def gradient(inputs, targets, weight=1.0):
        loss = torch.nn.functional.mse_loss(model(inputs), targets) * weight
        return torch.autograd.grad(loss, model.weight)[0]

    def loader(rank, world_size):
        sampler = ScheduledBatchSampler(GROWING, 23, rank=rank, world_size=world_size)
        shares = DataLoader(TensorDataset(x, y), batch_sampler=sampler)
        return [gradient(*batch, sampler.weight(k)) for k, batch in enumerate(shares)]

    for world_size in (2, 3):
        means = (
            sum(gradients) / world_size
            for gradients in zip(*(loader(r, world_size) for r in range(world_size)), strict=True)
        )
        for mean, whole in zip(means, loader(0, 1), strict=True):
            torch.testing.assert_close(mean, whole, rtol=1e-12, atol=1e-14)


# --------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("rank", "world_size", "match"),
    [
        (2, 2, r"rank must be in 0\.\.1, got 2"),
        (-1, 2, r"rank must be in 0\.\.1, got -1"),
        (1.0, 2, r"rank must be in 0\.\.1, got 1\.0"),
        (True, 2, r"rank must be in 0\.\.1, got True"),
        (0, 0, "world_size must be an integer >= 1, got 0"),
        (0, 2.0, r"world_size must be an integer >= 1, got 2\.0"),
        (0, None, "rank and world_size go together, got rank=0 and world_size=None"),
        (None, 2, "rank and world_size go together, got rank=None and world_size=2"),
        (0, 4, r"batch_size must be >= the 4 processes, .* got 3 at tick 0 \(epochs\)"),
    ],
)
def test_refusals(rank, world_size, match):
    with pytest.raises(ValueError, match=match) as refused:
        ScheduledBatchSampler(GROWING, 23, rank=rank, world_size=world_size)
    assert "\n" not in str(refused.value)


def test_a_batch_size_that_falls_below_the_world_size_is_refused_at_construction():
    plan = Plan(steps=100, batch_size=s.Piecewise({0: 8, 90: 2}))
    ScheduledBatchSampler(plan, 23, rank=0, world_size=2)
    with pytest.raises(ValueError, match=r"the 3 processes, .* got 2 at tick 90 \(steps\)"):
        ScheduledBatchSampler(plan, 23, rank=0, world_size=3)


@pytest.mark.parametrize("k", [-1, 8, 1.0, True, None])
def test_there_is_no_weight_of_a_batch_that_is_not(k):
    sampler = ScheduledBatchSampler(GROWING, 23, rank=1, world_size=2)
    with pytest.raises(ValueError, match="k must be a batch of epoch 0, which has 8, got"):
        sampler.weight(k)


def test_fewer_samples_than_processes():
    shared = every_rank(Plan(epochs=1, batch_size=4), 2, 4)
    assert [sampler.weight(0) for sampler in shared] == [2.0, 2.0, 0.0, 0.0]
    assert [len(next(iter(sampler))) for sampler in shared] == [1, 1, 1, 1]


def test_without_torch_distributed_there_is_one_process():
    sampler = ScheduledBatchSampler(GROWING, 23)
    assert (sampler.rank, sampler.world_size) == (0, 1)


# ------------------------------------------------------------------- whatever is interrupted when


def rows(n):
    return TensorDataset(torch.arange(n))


def interrupted(plan, n, options, segments, workers):
    """{(epoch, position): indices} of a run that goes on in each segment with another world size.

    Args:
        segments: pairs of a world size and how many global batches it lasts; the last goes on.
    """
    found, state = [], None
    for segment, (world_size, batches) in enumerate(segments):
        last = segment == len(segments) - 1
        shared = every_rank(plan, n, world_size, **options)
        if state is not None:
            for sampler in shared:
                sampler.load_state_dict(state)
        loaders = [
            DataLoader(
                rows(n), batch_sampler=x, num_workers=workers, persistent_workers=workers > 0
            )
            for x in shared
        ]
        left = batches
        while shared[0].epoch < shared[0].epochs:
            first = shared[0].first_batch
            done = first
            for k, parts in enumerate(zip(*loaders, strict=True), first):
                if not last and left == 0:  # workers have drawn further
                    break
                weighed = zip(shared, parts, strict=True)
                together = [i for x, (part,) in weighed if x.weight(k) for i in part.tolist()]
                found.append((shared[0].epoch, together))
                done, left = k + 1, left - 1
            if not last and left == 0:
                break
            for sampler in shared:
                sampler.set_epoch(sampler.epoch + 1)
            done = 0
        state = shared[0].state_dict(batches_done=done)
    return found


def check_interrupted(drawn, data, workers):
    plan, n, world_size, options = drawn
    one = ScheduledBatchSampler(plan, n, **options)
    expected = []
    for epoch in range(one.epochs):
        one.set_epoch(epoch)
        expected += [(epoch, batch) for batch in one]
    others = st.integers(1, min(stage.batch_size for stage in plan.stages(n)))
    segments = [(world_size, data.draw(st.integers(0, len(expected))))]
    segments += data.draw(
        st.lists(st.tuples(others.map(lambda w: min(w, 4)), st.integers(0, 9)), max_size=2)
    )
    segments.append((data.draw(others.map(lambda w: min(w, 4))), 0))
    assert interrupted(plan, n, options, segments, workers) == expected
    if not options["replacement"] and not options["drop_last"] and plan.unit == "epochs":
        for epoch in range(one.epochs):
            seen = [i for at, batch in expected if at == epoch for i in batch]
            assert sorted(seen) == list(range(n))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(dealt(), st.data())
def test_a_run_is_one_sequence_of_batches_however_it_is_interrupted(drawn, data):
    check_interrupted(drawn, data, workers=0)


@pytest.mark.slow
@pytest.mark.timeout(600)
@settings(max_examples=4, deadline=None, derandomize=True)
@given(dealt(), st.data())
def test_a_run_is_one_sequence_of_batches_with_workers_too(drawn, data):
    check_interrupted(drawn, data, workers=2)


def test_a_plan_of_more_stages_than_are_listed_is_dealt_too(monkeypatch):
    monkeypatch.setattr("batchramp.plan._MOST_LISTED", 10)
    plan = Plan(steps=100, batch_size=s.Linear(8, 1))
    sampler = ScheduledBatchSampler(plan, 1000, rank=1, world_size=2)
    assert [len(batch) for batch in sampler][:3] == [4, 4, 5]
    with pytest.raises(ValueError, match=r"batch_size must be >= the 9 processes.*got 8 at tick 0"):
        ScheduledBatchSampler(plan, 1000, rank=0, world_size=9)


@pytest.mark.parametrize(("counted", "match"), [(1, "cpu=True"), (2, None), (None, None)])
def test_accelerate_must_count_the_same_processes(counted, match, monkeypatch):
    shared = {} if counted is None else {"num_processes": counted}
    there = SimpleNamespace(PartialState=SimpleNamespace(_shared_state=shared))
    monkeypatch.setitem(sys.modules, "accelerate", there)
    assert ranks.this_process() == (0, 1)  # no group: nothing to compare
    for name, value in {"is_initialized": True, "get_rank": 1, "get_world_size": 2}.items():
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    if match is None:
        assert ranks.this_process() == (1, 2)
        return
    with pytest.raises(ValueError, match=match):
        ScheduledBatchSampler(Plan(epochs=1, batch_size=4), 8)
