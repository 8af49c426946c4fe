"""Streams: the sampler's batches from data that come one sample after the other."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, get_worker_info

from batchramp import Plan, ScheduledBatchSampler
from batchramp import schedules as s
from batchramp.batching import stream


class Counting(IterableDataset):
    """0..n-1, each pass turned by its epoch; counts what it gives, and says where it stands."""

    def __init__(self, n: int) -> None:
        self.n, self.epoch, self.position, self.given = n, 0, 0, 0
        self._start = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        worker = get_worker_info()
        first, every = (0, 1) if worker is None else (worker.id, worker.num_workers)
        start, self._start = self._start, 0
        for i in range(start + first, self.n, every):
            self.position = i + 1
            self.given += 1
            yield (i + self.epoch) % self.n


class Stateful(Counting):
    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._start = state["position"]


@st.composite
def plans(draw: Any) -> Plan:
    unit, longest = draw(st.sampled_from([("epochs", 4), ("steps", 20), ("samples", 70)]))
    length = draw(st.integers(1, longest))
    sizes = st.integers(1, 7)
    changes = draw(st.dictionaries(st.integers(1, longest), sizes, max_size=3))
    return Plan(**{unit: length}, batch_size=s.Piecewise({0: draw(sizes), **changes}))


@given(plans(), st.integers(1, 30), st.booleans(), st.integers(1, 3), st.booleans())
def test_a_stream_gives_the_samplers_batches(
    plan: Plan, n: int, drop_last: bool, world_size: int, sized: bool
) -> None:
    for rank in range(world_size):
        rest = {"drop_last": drop_last, "rank": rank, "world_size": world_size}
        data = list(range(n)) if sized else lambda: iter(range(n))
        known = n if plan.unit == "epochs" else None
        try:
            sampler = ScheduledBatchSampler(plan, n, shuffle=False, **rest)
        except ValueError as refused:
            if not sized and "drop_last" in str(refused):  # seen when the pass ends
                continue
            with pytest.raises(ValueError, match="batch_size"):
                stream(data, plan, n=known, **rest)
            continue
        batches = stream(data, plan, n=known, collate_fn=list, **rest)
        for epoch in range(sampler.epochs):
            sampler.set_epoch(epoch)
            assert not batches.ended
            if batches.n is not None:
                assert len(batches) == len(sampler)
            assert list(batches) == list(sampler)
            assert batches.epoch == epoch
            weights = [batches.weight(k) for k in range(len(sampler))]
            assert weights == [sampler.weight(k) for k in range(len(sampler))]
        assert batches.ended


@given(plans(), st.booleans(), st.booleans(), st.data())
def test_resumed_is_uninterrupted(
    plan: Plan, state: bool, sized: bool, data: st.DataObject
) -> None:
    def made(rank: int = 0, world_size: int = 1) -> Any:
        dataset = Stateful(17) if state else Counting(17)
        n = 17 if sized or plan.unit == "epochs" else None
        rest = {"collate_fn": list, "rank": rank, "world_size": world_size}
        return stream(dataset, plan, n=n, **rest)

    def passes(batches: Any) -> list[list[int]]:
        found = []
        while not batches.ended:
            found += list(batches)
        return found

    whole = passes(made())
    first, saved = made(), []
    while not first.ended:
        for batch in first:
            saved.append((batch, first.state_dict()))
    assert [batch for batch, _ in saved] == whole
    done = data.draw(st.integers(1, len(whole)))
    position = torch.load(_written(saved[done - 1][1]), weights_only=True)
    second = made()
    second.load_state_dict(position)
    assert second.state_dict() == position
    assert passes(second) == whole[done:]
    sizes = [stage.batch_size for stage in plan.stages(17)]
    if min(sizes) >= 2:  # the same position, on two processes
        shares = []
        for rank in range(2):
            shares.append(made(rank, 2))
            shares[-1].load_state_dict(position)
        zeroth, other = map(passes, shares)
        again = [a + b for a, b in zip(zeroth, other, strict=True)]
        assert [b if len(b) > 1 else 2 * b for b in whole[done:]] == again


def _written(state: Any) -> Any:
    import io

    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


STEPS = Plan(steps=12, batch_size=s.Piecewise({0: 2, 3: 4}))


def test_the_data_sets_own_state_saves_reading_again() -> None:
    for dataset, read in ((Counting, 20), (Stateful, 10)):
        batches = stream(dataset(20), STEPS, collate_fn=list)
        for _ in zip(range(4), batches, strict=False):
            pass
        second = stream(dataset(20), STEPS, collate_fn=list)
        second.load_state_dict(batches.state_dict())
        assert list(second) == [[10, 11, 12, 13], [14, 15, 16, 17], [18, 19]]
        assert second.dataset.given == read
        # a pass that is broken off starts again where it started
        second.load_state_dict(batches.state_dict())
        assert next(iter(second)) == next(iter(second)) == [10, 11, 12, 13]


def test_a_host_that_reads_ahead_says_what_was_trained() -> None:
    for dataset in (Counting(20), Stateful(20)):
        batches = stream(dataset, STEPS, collate_fn=list)
        ahead = iter(batches)
        for _ in range(5):
            next(ahead)
        state = batches.state_dict(batches_done=4)
        assert "dataset" not in state  # which is ahead, too
        batches.load_state_dict(state)
        assert list(batches) == [[10, 11, 12, 13], [14, 15, 16, 17], [18, 19]]
        with pytest.raises(ValueError, match=r"batches_done must be in 0\.\.7, got 8"):
            batches.state_dict(batches_done=8)


def test_in_a_loader_without_workers() -> None:
    plan = Plan(epochs=2, batch_size=s.Exponential(2, factor=2, every=1))
    data = [(torch.tensor([float(i)]), i) for i in range(5)]
    batches = stream(data, plan)
    loader = DataLoader(batches, batch_size=None)
    found = [[targets.tolist() for _, targets in loader] for _ in range(2)]
    assert found == [[[0, 1], [2, 3], [4]], [[0, 1, 2, 3], [4]]]
    assert batches.ended


def test_workers_belong_under_the_stream() -> None:
    context = {"multiprocessing_context": "fork"}
    for workers in (1, 2):
        held = DataLoader(stream(range(8), STEPS), batch_size=None, num_workers=workers, **context)
        with pytest.raises(ValueError, match="num_workers must be 0"):
            next(iter(held))
    samples = DataLoader(Counting(9), batch_size=None, num_workers=2, **context)
    batches = stream(samples, STEPS, collate_fn=list)
    assert list(batches) == [[0, 1], [2, 3], [4, 5], [6, 7, 8]]
    assert list(batches) == [[1, 2, 3, 4], [5, 6, 7, 8], [0]]  # the next epoch reached them


def test_the_epoch_is_passed_on_and_kept() -> None:
    batches = stream(Counting(5), Plan(samples=12, batch_size=3), collate_fn=list)
    assert [list(batches), list(batches)] == [[[0, 1, 2], [3, 4]], [[1, 2, 3], [4, 0]]]
    assert batches.epoch == 1
    batches.set_epoch(2)
    position = batches.state_dict()
    batches.set_epoch(2)
    assert batches.state_dict() == position
    assert list(batches) == [[2, 3]]
    with pytest.raises(ValueError, match="the plan ends after 12 samples"):
        iter(batches)
    batches.set_epoch(2)
    assert list(batches) == [[2, 3]]
    with pytest.raises(ValueError, match="without a length nobody knows where it starts"):
        batches.set_epoch(1)
    batches.set_epoch(0)
    assert list(batches) == [[0, 1, 2], [3, 4]]


def test_an_epoch_of_data_with_a_length_is_found() -> None:
    plan = Plan(samples=40, batch_size=s.Piecewise({0: 2, 7: 3, 20: 5}))
    batches = stream(list(range(9)), plan, collate_fn=list)
    passes = []
    while not batches.ended:
        passes.append(list(batches))
    for epoch in (3, 1, 4, 2, 0):
        batches.set_epoch(epoch)
        assert len(batches) == len(passes[epoch])
        assert list(batches) == passes[epoch]
    batches.set_epoch(5)
    assert batches.ended
    assert len(batches) == 0
    with pytest.raises(ValueError, match=r"epoch must be in 0\.\.5, got 6"):
        batches.set_epoch(6)


@pytest.mark.parametrize(("n", "said"), [(7, 9), (9, 7), (9, 8), (9, 10)])
def test_a_pass_of_another_length_is_refused(n: int, said: int) -> None:
    batches = stream(lambda: iter(range(n)), Plan(epochs=1, batch_size=4), n=said)
    with pytest.raises(ValueError, match=rf"dataset gave .* n={said}"):
        list(batches)


def test_data_that_end_before_the_position_are_refused() -> None:
    batches = stream(lambda: iter(range(9)), STEPS)
    for _ in zip(range(3), batches, strict=False):
        pass
    shorter = stream(lambda: iter(range(5)), STEPS)
    shorter.load_state_dict(batches.state_dict())
    with pytest.raises(ValueError, match="ended after 5 samples, before the position 6"):
        iter(shorter)


@pytest.mark.parametrize("drop_last", [False, True])
def test_data_without_a_batch_are_refused(drop_last: bool) -> None:
    data = list(range(1)) if drop_last else []
    with pytest.raises(ValueError, match="gave no batch in epoch 0"):
        list(stream(lambda: iter(data), STEPS, drop_last=drop_last))


class ByIndex:
    def __getitem__(self, index: int) -> int:
        return index


def _persistent() -> DataLoader:
    return DataLoader(Counting(3), batch_size=None, num_workers=1, persistent_workers=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"plan": 3}, "plan must be a Plan, got int"),
        ({"plan": Plan(epochs=2, batch_size=2)}, "plan in steps or samples, or give n"),
        ({"dataset": iter([1])}, "dataset must start over at each pass, which a list_iterator"),
        ({"dataset": ByIndex()}, "got ByIndex; data that are read by index go with"),
        ({"dataset": DataLoader(TensorDataset(torch.ones(3)), batch_size=None)}, "read by index"),
        ({"dataset": DataLoader(Counting(3), batch_size=8)}, "batch_size=None, not 8"),
        ({"dataset": _persistent()}, "persistent_workers must be False"),
        ({"dataset": [1, 2], "n": 3}, "n must be the length of dataset, 2"),
        ({"n": 0}, "n must be an integer >= 1, got 0"),
        ({"n": 1, "drop_last": True}, "drop_last would leave no batch"),
        ({"drop_last": 1}, "drop_last must be True or False, got 1"),
        ({"collate_fn": 3}, "collate_fn must be a function of a list, got 3"),
        ({"rank": 2, "world_size": 2}, r"rank must be in 0\.\.1, got 2"),
        ({"rank": 0, "world_size": 3}, "batch_size must be >= the 3 processes"),
    ],
)
def test_what_is_refused(arguments: dict[str, Any], message: str) -> None:
    given = {"dataset": Counting(3), "plan": STEPS, **arguments}
    with pytest.raises(ValueError, match=message):
        stream(**given)


def test_a_state_of_something_else_is_refused() -> None:
    batches = stream(Counting(20), STEPS)
    state = batches.state_dict()
    for changed, message in (
        ({"n": 20}, "n differs: saved 20, here None"),
        ({"plan": Plan(steps=12, batch_size=2).to_dict()}, "plan differs"),
        ({"sample": 3}, "sample must be where a batch of epoch 0 starts, got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            batches.load_state_dict({**state, **changed})
    with pytest.raises(ValueError, match="state_dict must have before, drop_last"):
        batches.load_state_dict({})
    assert batches.state_dict() == state
    with pytest.raises(ValueError, match="k must be one of the 0 batches"):
        batches.weight(0)
    with pytest.raises(TypeError, match="without a length"):
        len(batches)


@pytest.mark.slow
@pytest.mark.parametrize("buffer", [0, 8])
def test_a_hugging_face_set_is_resumed(buffer: int) -> None:
    datasets = pytest.importorskip("datasets")

    def made() -> Any:
        data = datasets.Dataset.from_dict({"x": list(range(50))}).to_iterable_dataset(num_shards=3)
        if buffer:  # its order changes with the epoch
            data = data.shuffle(seed=1, buffer_size=buffer)
        return stream(data, Plan(steps=20, batch_size=s.Piecewise({0: 4, 5: 9})))

    first = made()
    saved, whole = [], []
    while not first.ended:
        for batch in first:
            whole.append(batch["x"].tolist())
            saved.append(first.state_dict())
    passes = [sorted(chain(*whole[:9])), sorted(chain(*whole[9:15]))]
    assert passes == 2 * [list(range(50))]
    assert (whole[9] != [*whole[0], *whole[1], *whole[2]][:9]) == bool(buffer)
    # Its own state, but where a pass has ended or it brings back not every sample: read again then.
    assert sum("dataset" in state for state in saved) == (0 if buffer else 17)
    for done in range(1, 20):
        second = made()
        second.load_state_dict(saved[done - 1])
        rest = []
        while not second.ended:
            rest += [batch["x"].tolist() for batch in second]
        assert rest == whole[done:]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch": 99}, "epoch must be in 0..2, got 99"),
        ({"epoch": -1}, "epoch of a state must be an integer >= 0, got -1"),
        ({"epoch": "x"}, "epoch of a state must be an integer >= 0, got 'x'"),
        ({"sample": 1000}, "sample must be in 0..10, got 1000"),
        ({"sample": -4}, "sample of a state must be an integer >= 0, got -4"),
        ({"sample": 3}, "sample must be where a batch of epoch 0 starts, got 3"),
        ({"before": None}, "steps before of a state must be an integer >= 0, got None"),
        (
            {"epoch": 1, "before": {"steps": 77, "samples": 5}},
            r"before must be the \(3, 10\) steps",
        ),
        ({"over": None}, "over of a state must be True or False, got None"),
    ],
)
def test_a_state_that_cannot_be_is_refused_and_moves_nothing(changes, message) -> None:
    given = stream(list(range(10)), Plan(epochs=2, batch_size=4), collate_fn=list)
    batches = iter(given)
    next(batches)
    state = given.state_dict()
    with pytest.raises(ValueError, match=message):
        given.load_state_dict({**state, **changes})
    assert given.state_dict() == state
    assert list(batches) == [[4, 5, 6, 7], [8, 9]]


def test_a_longer_plan_goes_on_with_what_is_left_of_the_epoch() -> None:
    first = stream(list(range(10)), Plan(steps=4, batch_size=4), collate_fn=list)
    assert [*first, *first] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9], [0, 1, 2, 3]]
    longer = stream(list(range(10)), Plan(steps=8, batch_size=4), collate_fn=list)
    longer.load_state_dict(first.state_dict(), strict=False)
    assert list(longer) == [[4, 5, 6, 7], [8, 9]]
    assert len(list(longer)) == 2  # steps 6 and 7 of 0..7
