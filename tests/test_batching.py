"""Which samples form batch k: against slow references, through workers, across a resume."""

import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from batchramp import Plan, ScheduledBatchSampler, TensorLoader
from batchramp import schedules as s

GROWING = Plan(epochs=4, batch_size=s.Exponential(3, factor=2, every=1))
quick = settings(max_examples=60, deadline=None, derandomize=True)

sizes = st.one_of(
    st.integers(1, 40),
    st.builds(
        s.Exponential,
        st.floats(1, 9),
        factor=st.floats(1.05, 3),
        every=st.integers(1, 9),
        maximum=st.just(50),
    ),
    st.builds(s.Linear, st.integers(1, 9), increment=st.integers(1, 7), every=st.integers(1, 4)),
    st.builds(
        lambda first, rest: s.Piecewise({0: first} | rest),
        st.integers(1, 30),
        st.dictionaries(st.integers(1, 60), st.integers(1, 30), max_size=4),
    ),
)


@st.composite
def samplers(draw):
    """Keyword arguments of a sampler that some Plan and data set allow."""
    n = draw(st.integers(1, 60))
    unit = draw(st.sampled_from(["epochs", "steps", "samples"]))
    length = draw(st.integers(1, {"epochs": 5, "steps": 60, "samples": 200}[unit]))
    plan = Plan(**{unit: length}, batch_size=draw(sizes))
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
    return plan, n, options


def epochs_of(sampler):
    for epoch in range(sampler.epochs):
        sampler.set_epoch(epoch)
        yield epoch


def counted(plan, n, drop_last, epochs):
    """Sizes by a slow walk, batch by batch, that looks at the Plan for each."""
    step = samples = 0
    for epoch in range(epochs):
        left, found = n, []
        while left:
            tick = plan.tick(epoch=epoch, step=step, samples=samples)
            if tick >= plan.length:
                break
            scheduled = plan.at(tick).batch_size
            if drop_last and scheduled > left:
                break
            room = plan.samples - samples if plan.samples else left
            size = min(scheduled, left, room)
            found.append(size)
            left, step, samples = left - size, step + 1, samples + size
        yield found


# What forms a batch


@quick
@given(samplers())
def test_sizes_are_the_plans_and_each_sample_comes_once(drawn):
    plan, n, options = drawn
    sampler = ScheduledBatchSampler(plan, n, **options)
    expected = counted(plan, n, options["drop_last"], sampler.epochs)
    for (epoch, walked), left in zip(
        enumerate(expected), reversed(range(sampler.epochs)), strict=True
    ):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        sizes = [len(batch) for batch in batches]
        assert len(batches) == len(sampler)
        assert sizes == sampler.sizes() == plan.batch_sizes(epoch, n, options["drop_last"])
        assert sizes == walked
        seen = [index for batch in batches for index in batch]
        assert all(type(index) is int and 0 <= index < n for index in seen)
        if not options["replacement"]:
            assert len(set(seen)) == len(seen)
            if not options["drop_last"] and (left or plan.unit == "epochs"):
                assert sorted(seen) == list(range(n))
        if not options["shuffle"]:
            assert seen == list(range(len(seen)))


@quick
@given(samplers(), st.data())
def test_batches_are_a_pure_function_of_seed_epoch_and_position(drawn, data):
    plan, n, options = drawn
    sampler, other = (ScheduledBatchSampler(plan, n, **options) for _ in range(2))
    all_batches = {}
    for epoch in epochs_of(sampler):
        all_batches[epoch] = list(sampler)
    for epoch in data.draw(st.permutations(range(sampler.epochs))):
        np.random.default_rng().random()
        other.set_epoch(epoch)
        assert list(other) == all_batches[epoch]


@quick
@given(samplers())
def test_resume_at_every_position_yields_the_rest_once_and_the_next_epoch_whole(drawn):
    plan, n, options = drawn
    whole = ScheduledBatchSampler(plan, n, **options)
    batches = [list(whole) for _ in epochs_of(whole)]
    epoch = len(batches) // 2
    whole.set_epoch(epoch)
    for done in range(len(batches[epoch]) + 1):
        state = whole.state_dict(batches_done=done)
        assert (state["epoch"], state["sample"]) == (epoch, sum(map(len, batches[epoch][:done])))
        resumed = ScheduledBatchSampler(plan, n, **options)
        resumed.load_state_dict(pickle.loads(pickle.dumps(state)))
        assert resumed.first_batch == done
        assert len(resumed) == len(batches[epoch]) - done
        assert list(resumed) == batches[epoch][done:]
        if epoch + 1 < len(batches):
            resumed.set_epoch(epoch + 1)
            assert list(resumed) == batches[epoch + 1]


def test_the_order_of_an_epoch_stays_what_it_was():
    sampler = ScheduledBatchSampler(Plan(epochs=2, batch_size=4), 8, seed=1)
    drawing = ScheduledBatchSampler(Plan(epochs=2, batch_size=4), 8, seed=1, replacement=True)
    sampler.set_epoch(1)
    drawing.set_epoch(1)
    # Where this fails, old states would go on with other batches: `ALGORITHM` must be renamed.
    assert sampler.order().tolist() == [6, 1, 4, 0, 3, 2, 5, 7]
    assert drawing.order().tolist() == [4, 2, 2, 4, 4, 4, 4, 1]


def test_orders_differ_between_epochs_and_seeds():
    def order(seed, epoch):
        sampler = ScheduledBatchSampler(Plan(epochs=5, batch_size=8), 50, seed=seed)
        sampler.set_epoch(epoch)
        return tuple(sampler.order())

    assert len({order(seed, epoch) for seed in range(5) for epoch in range(5)}) == 25


# Statistics, at fixed seeds. Bounds are about the quantiles 1e-4 of chi-square, at either side.


def chi_square(counts):
    expected = counts.sum() / counts.size
    return ((counts - expected) ** 2 / expected).sum()


def orders(n, epochs, **options):
    sampler = ScheduledBatchSampler(Plan(epochs=epochs, batch_size=n), n, seed=11, **options)
    return np.stack([sampler.order() for _ in epochs_of(sampler)])


def test_draws_with_replacement_are_uniform_and_independent():
    draws = orders(10, 2000, replacement=True)
    singles = np.bincount(draws.ravel(), minlength=10)
    pairs = np.bincount((draws[:, :-1] * 10 + draws[:, 1:]).ravel(), minlength=100)
    across = np.bincount((draws[:-1] * 10 + draws[1:]).ravel(), minlength=100)
    assert 0.5 < chi_square(singles) < 33.7  # 9 degrees of freedom
    assert 54.0 < chi_square(pairs) < 161.4  # 99
    assert 54.0 < chi_square(across) < 161.4
    assert any(len(set(epoch)) < 10 for epoch in draws)


def test_permutations_put_every_sample_everywhere():
    places = orders(6, 3000)
    for place in range(6):
        counts = np.bincount(places[:, place], minlength=6)
        assert 0.08 < chi_square(counts) < 25.8  # 5 degrees of freedom
    codes = places @ 6 ** np.arange(6)
    assert len(set(codes)) > 690  # of 720, each missed with probability e^-4.2
    repeats = (places[1:] == places[:-1]).mean()
    assert abs(repeats - 1 / 6) < 0.012


# Driving it


def test_a_sampler_iterated_at_the_end_raises():
    sampler = ScheduledBatchSampler(GROWING, 20)
    sampler.set_epoch(4)
    assert len(sampler) == 0
    assert sampler.sizes() == []
    with pytest.raises(ValueError, match="ends after 4 epochs"):
        iter(sampler)
    state = sampler.state_dict()
    resumed = ScheduledBatchSampler(GROWING, 20)
    resumed.load_state_dict(state)
    assert resumed.epoch == 4


def test_one_epoch_iterated_twice_warns():
    sampler = ScheduledBatchSampler(GROWING, 20)
    batches = list(sampler)
    with pytest.warns(
        UserWarning, match=r"epoch 0 is iterated once more.*scheduler\.step\(\)"
    ) as told:
        assert list(sampler) == batches
    assert [warning.filename for warning in told] == [__file__]  # the caller's line
    sampler.set_epoch(1)
    list(sampler)
    loader = DataLoader(range(20), batch_sampler=sampler)
    with pytest.warns(UserWarning, match="epoch 1 is iterated once more"):
        list(loader)


def test_the_warning_comes_though_the_loop_ends_at_the_last_batch():
    sampler = ScheduledBatchSampler(GROWING, 20)
    for _, _ in zip(range(len(sampler)), sampler, strict=False):
        pass
    with pytest.warns(UserWarning, match="once more"):
        list(sampler)


def test_set_epoch_means_it():
    sampler = ScheduledBatchSampler(GROWING, 20)
    batches = list(sampler)
    sampler.set_epoch(0)
    assert list(sampler) == batches


def test_a_pass_goes_on_as_it_began_whatever_is_set_meanwhile():
    sampler = ScheduledBatchSampler(GROWING, 20)
    expected = list(sampler)
    sampler.set_epoch(0)
    running = iter(sampler)
    found = [next(running)]
    sampler.set_epoch(1)
    found += running
    assert found == expected
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [len(batch) for batch in sampler] == [6, 6, 6, 2]


def test_a_resumed_pass_keeps_its_place_until_the_epoch_is_set():
    sampler = ScheduledBatchSampler(GROWING, 20)
    batches = list(sampler)
    resumed = ScheduledBatchSampler(GROWING, 20)
    resumed.load_state_dict(sampler.state_dict(batches_done=3))
    assert next(iter(resumed)) == batches[3]  # a peek
    lengths = [(len(resumed), batch) for batch in resumed]
    assert lengths == [(4, batch) for batch in batches[3:]]
    saved = [
        resumed.state_dict(batches_done=done)["sample"]
        for done, _ in enumerate(batches[3:], resumed.first_batch + 1)
    ]
    assert saved == [12, 15, 18, 20]
    with pytest.raises(ValueError, match="batches_done must be given once a pass has begun"):
        resumed.state_dict()
    resumed.set_epoch(1)
    assert (resumed.first_batch, len(resumed)) == (0, 4)
    assert resumed.state_dict()["sample"] == 0


def test_a_resumed_loop_that_sets_each_epoch_goes_on_where_it_was():
    sampler = ScheduledBatchSampler(GROWING, 20)
    batches = list(sampler)
    resumed = ScheduledBatchSampler(GROWING, 20)
    resumed.load_state_dict(sampler.state_dict(batches_done=3))
    found = []
    for epoch in range(resumed.epoch, 2):
        resumed.set_epoch(epoch)
        found.append(list(resumed))
    assert found[0] == batches[3:]
    assert sorted(i for batch in found[1] for i in batch) == list(range(20))
    resumed.set_epoch(1)  # a pass has begun: from its start
    assert resumed.first_batch == 0


def test_accelerates_second_deal_is_refused():
    shard = {"__name__": "accelerate.data_loader", "sampler": ScheduledBatchSampler(GROWING, 20)}
    with pytest.raises(ValueError, match="leave the loader out of acc"):
        exec("next(iter(sampler))", shard)


def test_no_host_can_copy_a_batch_size_and_sizes_are_a_copy():
    sampler = ScheduledBatchSampler(GROWING, 20)
    assert not hasattr(sampler, "batch_size")
    sampler.sizes().clear()
    assert len(sampler) == 7


def test_a_batch_larger_than_the_data_is_the_data():
    plan = Plan(epochs=3, batch_size=s.Exponential(4, factor=10, every=1))
    sampler = ScheduledBatchSampler(plan, 10)
    for epoch, expected in enumerate([[4, 4, 2], [10], [10]]):
        sampler.set_epoch(epoch)
        assert [len(batch) for batch in sampler] == expected
    with pytest.raises(ValueError, match="batch_size 40 at tick 1 is larger than the 10 samples"):
        ScheduledBatchSampler(plan, 10, drop_last=True)


def test_sizes_change_inside_an_epoch_where_the_plan_counts_steps_or_samples():
    by_steps = Plan(steps=9, batch_size=s.Piecewise({0: 2, 3: 5}))
    by_samples = Plan(samples=25, batch_size=s.Piecewise({0: 2, 6: 4}))
    for plan, expected in ((by_steps, [2, 2, 2, 5, 1]), (by_samples, [2, 2, 2, 4, 2])):
        for drop_last in (False, True):
            sampler = ScheduledBatchSampler(plan, 12, drop_last=drop_last)
            sizes = [len(batch) for batch in sampler]
            assert len(sampler) == len(sizes)
            assert sizes == (expected[:-1] if drop_last else expected)


# Refusals


@pytest.mark.parametrize("n", [0, -1, 2.5, True, None, [], "", iter([1]), float("nan")])
def test_what_has_no_samples_is_refused(n):
    with pytest.raises(ValueError, match=r"dataset_or_n must be .* >= 1.*, got"):
        ScheduledBatchSampler(GROWING, n)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, None, True, "1"])
def test_a_bad_seed_is_refused(seed):
    with pytest.raises(ValueError, match="seed must be an integer >= 0 and below"):
        ScheduledBatchSampler(GROWING, 5, seed=seed)


def test_other_refusals():
    with pytest.raises(ValueError, match="plan must be a Plan, got int"):
        ScheduledBatchSampler(8, 5)
    with pytest.raises(ValueError, match=r"replacement .* needs shuffle=True"):
        ScheduledBatchSampler(GROWING, 5, shuffle=False, replacement=True)
    sampler = ScheduledBatchSampler(GROWING, 20)
    for epoch in (-1, 5, 1.0, True, None):
        with pytest.raises(ValueError, match=r"epoch must be in 0\.\.4, got"):
            sampler.set_epoch(epoch)
    for done in (-1, 8, 1.0, True):
        with pytest.raises(ValueError, match=r"batches_done must be in 0\.\.7, got"):
            sampler.state_dict(batches_done=done)


def test_numpy_integers_are_integers():
    plain = ScheduledBatchSampler(GROWING, 20, seed=3)
    sampler = ScheduledBatchSampler(GROWING, np.int64(20), seed=np.uint32(3))
    for each in (plain, sampler):
        each.set_epoch(np.int32(1))
    assert sampler.state_dict(batches_done=np.int64(1)) == plain.state_dict(batches_done=1)
    assert list(sampler) == list(plain)


# State


def test_the_state_is_plain_and_small(tmp_path):
    sampler = ScheduledBatchSampler(GROWING, 100_000, seed=2)
    state = sampler.state_dict(batches_done=5)
    torch.save(state, tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == state
    assert len(pickle.dumps(state)) < 1000


@pytest.mark.parametrize(
    "change",
    [
        {"n": 21},
        {"seed": 1},
        {"shuffle": False},
        {"drop_last": True},
        {"replacement": True},
        {"algorithm": "another"},
        {"plan": Plan(epochs=5, batch_size=3).to_dict()},
        {"epoch": 5},
        {"epoch": -1},
        {"epoch": None},
        {"sample": 7},
        {"sample": -6},
        {"sample": 21},
    ],
    ids=str,
)
def test_a_state_that_does_not_fit_is_refused_and_nothing_moves(change):
    sampler = ScheduledBatchSampler(GROWING, 20)
    sampler.set_epoch(1)
    state = sampler.state_dict(batches_done=1)
    sampler.set_epoch(2)
    (name,) = change
    with pytest.raises(ValueError, match=name) as error:
        sampler.load_state_dict(state | change)
    assert "\n" not in str(error.value)
    assert (sampler.epoch, sampler.first_batch) == (2, 0)
    del state[name]
    with pytest.raises(ValueError, match=f"state_dict must have.*{name}"):
        sampler.load_state_dict(state)


def test_a_longer_plan_resumes_if_asked_to():
    longer = Plan(epochs=9, batch_size=GROWING.batch_size)
    state = ScheduledBatchSampler(GROWING, 20).state_dict(batches_done=2)
    sampler = ScheduledBatchSampler(longer, 20)
    with pytest.raises(ValueError, match=r"plan differs.*strict=False"):
        sampler.load_state_dict(state)
    sampler.load_state_dict(state, strict=False)
    assert list(sampler) == list(ScheduledBatchSampler(GROWING, 20))[2:]


def test_the_position_is_a_sample_index_not_a_count_of_batches():
    state = ScheduledBatchSampler(Plan(epochs=2, batch_size=2), 20).state_dict(batches_done=6)
    other = ScheduledBatchSampler(Plan(epochs=2, batch_size=4), 20)
    other.load_state_dict(state, strict=False)
    assert [index for batch in other for index in batch] == list(other.order()[12:])
    state = ScheduledBatchSampler(Plan(epochs=2, batch_size=2), 20).state_dict(batches_done=5)
    with pytest.raises(ValueError, match="sample must be where a batch of epoch 0 starts, got 10"):
        other.load_state_dict(state, strict=False)


# In loaders


def test_two_persistent_workers_give_the_same_batches_while_sizes_change():
    sampler = ScheduledBatchSampler(GROWING, 23, seed=5)
    loader = DataLoader(range(23), batch_sampler=sampler, num_workers=2, persistent_workers=True)
    expected = ScheduledBatchSampler(GROWING, 23, seed=5)
    for epoch in range(4):
        sampler.set_epoch(epoch)
        expected.set_epoch(epoch)
        assert len(loader) == len(expected)
        assert [batch.tolist() for batch in loader] == list(expected)
    # A resume in the same process, workers still up.
    expected.set_epoch(1)
    sampler.load_state_dict(expected.state_dict(batches_done=2))
    assert [batch.tolist() for batch in loader] == list(expected)[2:]


def data(n, dtype=torch.float32):
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, 2, 3, generator=generator).to(dtype), torch.arange(n)


def noise(inputs, generator):
    return inputs + torch.randn(inputs.shape, generator=generator)


def equal(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert len(a) == len(b)
        assert all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(a, b, strict=True))


@quick
@given(samplers())
def test_tensor_loader_equals_data_loader(drawn):
    plan, n, options = drawn
    tensors = data(n)
    sampler, other = (ScheduledBatchSampler(plan, n, **options) for _ in range(2))
    loader = TensorLoader(tensors, sampler)
    slow = DataLoader(TensorDataset(*tensors), batch_sampler=other)
    for epoch in epochs_of(sampler):
        other.set_epoch(epoch)
        assert len(loader) == len(slow)
        equal(list(loader), list(slow))
    middle = sampler.epochs // 2
    sampler.set_epoch(middle)
    state = sampler.state_dict(batches_done=len(sampler) // 2)
    sampler.load_state_dict(state)
    other.load_state_dict(state)
    equal(list(loader), list(slow))


@pytest.mark.parametrize("gather", [1, 100, 1000, 10**9])
def test_batches_do_not_depend_on_how_many_are_gathered_at_once(gather, monkeypatch):
    monkeypatch.setattr("batchramp.batching.tensors._GATHER", gather)
    plan = Plan(steps=30, batch_size=s.Linear(1, increment=1, every=3))
    tensors = data(50)
    for augment in (None, noise):
        for epoch in range(3):
            sampler = ScheduledBatchSampler(plan, 50, seed=4)
            sampler.set_epoch(epoch)
            batches = list(TensorLoader(tensors, sampler, augment=augment))
            sampler.set_epoch(epoch)
            for (x, y), indices in zip(batches, sampler, strict=True):
                assert y.tolist() == indices
                assert torch.equal(x, tensors[0][indices]) == (augment is None)


def test_augmentation_is_a_function_of_seed_epoch_and_position():
    tensors = data(20)

    def run(seed=0, epoch=1, done=0, disturb=False):
        sampler = ScheduledBatchSampler(GROWING, 20, seed=seed)
        sampler.set_epoch(epoch)
        sampler.load_state_dict(sampler.state_dict(batches_done=done))
        batches = []
        for batch in TensorLoader(tensors, sampler, augment=noise):
            batches.append(batch)
            if disturb:
                torch.rand(3)
        return batches

    whole = run()
    equal(whole, run(disturb=True))
    for done in range(len(whole) + 1):
        equal(run(done=done), whole[done:])

    def added(batches):
        return [x - tensors[0][y] for x, y in batches]

    first, second = added(whole)[:2]
    assert not torch.allclose(first, second)
    assert not torch.allclose(first, added(run(seed=1))[0])
    assert not torch.allclose(added(run(epoch=0))[0], first[:3])


def test_the_global_random_state_is_neither_read_nor_moved():
    before = torch.get_rng_state()
    list(TensorLoader(data(20), ScheduledBatchSampler(GROWING, 20), augment=noise))
    assert torch.equal(torch.get_rng_state(), before)


def test_augmentation_in_place_leaves_the_data_alone():
    tensors = data(20)
    kept = tensors[0].clone()
    sampler = ScheduledBatchSampler(GROWING, 20)
    loader = TensorLoader(tensors, sampler, augment=lambda x, generator: x.zero_())
    assert all(not x.any() for x, _ in loader)
    assert torch.equal(tensors[0], kept)


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.bool, torch.bfloat16, torch.complex64, torch.float64]
)
def test_any_dtype_layout_and_number_of_tensors(dtype):
    x, y = data(20, dtype)
    x = torch.stack([x, x], 1).to(memory_format=torch.channels_last)
    one = TensorLoader([x], ScheduledBatchSampler(GROWING, 20))
    three = TensorLoader((y, x, y), ScheduledBatchSampler(GROWING, 20), device="cpu")
    for (a,), (b, c, d) in zip(one, three, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(a, x[b])
        assert torch.equal(b, d)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ((), r"each of the sampler's 20 samples, got \[\]"),
        (data(19), r"20 samples, got \[\(19, 2, 3\), \(19,\)\]"),
        ((data(20)[0], data(19)[1]), "20 samples"),
        ((data(20)[0], torch.tensor(1)), "20 samples"),
        ((data(20)[0], list(range(20))), "20 samples.*'list'"),
        (torch.zeros(20, 20), r"must be a tuple of tensors, got one of shape \(20, 20\)"),
    ],
)
def test_tensors_of_another_length_are_refused(tensors, message):
    with pytest.raises(ValueError, match=message):
        TensorLoader(tensors, ScheduledBatchSampler(GROWING, 20))


def test_a_sampler_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="sampler must be a ScheduledBatchSampler, got range"):
        TensorLoader(data(20), range(20))


def test_the_tensor_loader_ends_with_the_plan():
    sampler = ScheduledBatchSampler(GROWING, 20)
    sampler.set_epoch(4)
    for augment in (None, noise):
        with pytest.raises(ValueError, match="ends after 4 epochs"):
            list(TensorLoader(data(20), sampler, augment=augment))


@pytest.mark.parametrize("through", ["DataLoader", "TensorLoader", "sampler"])
def test_the_warning_names_the_line_of_the_callers_loop(through):
    sampler = ScheduledBatchSampler(Plan(epochs=2, batch_size=4), 8)
    data = torch.arange(8)
    loader = {
        "DataLoader": lambda: DataLoader(TensorDataset(data), batch_sampler=sampler),
        "TensorLoader": lambda: TensorLoader((data,), sampler),
        "sampler": lambda: sampler,
    }[through]()
    list(loader)
    with pytest.warns(UserWarning, match="epoch 0 is iterated once more") as caught:
        list(loader)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("flag", ["shuffle", "drop_last", "replacement"])
def test_a_flag_is_true_or_false(flag):
    with pytest.raises(ValueError, match=f"{flag} must be True or False, got 'yes'"):
        ScheduledBatchSampler(GROWING, 5, **{flag: "yes"})


def test_a_loader_is_no_data_set():
    loader = DataLoader(TensorDataset(torch.arange(20)), batch_size=5)
    with pytest.raises(ValueError, match="must be a data set or its length, got a DataLoader"):
        ScheduledBatchSampler(GROWING, loader)


# The position in a loader that keeps its own state.


def stateful(sampler, workers):
    torchdata = pytest.importorskip("torchdata.stateful_dataloader")
    return torchdata.StatefulDataLoader(
        range(sampler.n), batch_sampler=sampler, num_workers=workers
    )


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_stateful_loader_resumes_at_every_batch_and_between_epochs(workers, rank):
    def fresh():
        sampler = ScheduledBatchSampler(GROWING, 13, seed=2, rank=rank, world_size=2)
        return sampler, stateful(sampler, workers)

    sampler, loader = fresh()
    whole, states = [], []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        for batch in loader:
            whole.append((epoch, batch.tolist()))
            states.append((epoch, len(whole), loader.state_dict()))
        states.append((epoch + 1, len(whole), loader.state_dict()))
    assert len(whole) == 5 + 3 + 2 + 1
    for begin, done, state in states[:: 3 if workers else 1]:
        sampler, loader = fresh()
        loader.load_state_dict(pickle.loads(pickle.dumps(state)))
        rest = []
        for epoch in range(begin, 4):
            sampler.set_epoch(epoch)
            rest += [(epoch, batch.tolist()) for batch in loader]
        assert rest == whole[done:]


def test_a_pass_has_a_state_that_another_goes_on_from():
    sampler = ScheduledBatchSampler(GROWING, 20, seed=2)
    sampler.set_epoch(1)
    running = iter(sampler)
    batches = [next(running) for _ in range(2)]
    state = running.state_dict()
    assert state == sampler.state_dict(batches_done=2)
    sampler.set_epoch(2)
    assert running.state_dict() == state  # of the pass, wherever the sampler has gone
    batches += running
    at_end = running.state_dict()
    other = ScheduledBatchSampler(GROWING, 20, seed=2)
    resumed = iter(other)
    resumed.load_state_dict(state)
    assert (other.epoch, other.first_batch) == (1, 2)
    assert list(resumed) == batches[2:]
    resumed.load_state_dict(at_end)
    assert list(resumed) == []
    assert other.epoch == 1
    assert len(list(other)) == 2  # 12 + 8: the next epoch
    assert other.epoch == 2
