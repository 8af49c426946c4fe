"""Batches of images that lie in memory: TensorLoader against torch's DataLoader and others."""

import threading
from collections.abc import Callable, Iterable, Iterator
from queue import Queue
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from batchramp import QHM, Plan, ScheduledBatchSampler, TensorLoader
from batchramp import schedules as s
from batchramp.batching import Augmentation
from batchramp.models import MLP, SmallCNN
from benchmarks.timing import Aim, Case, Size, Turn, repeated

TITLE = "Input"
NOTE = """Shuffled epochs of float32 images of 28 x 28, one torch thread; an epoch's start is part
of it, the start of persistent workers is not. In the growing case every epoch has its own batch
size; the released way makes the loader and its two workers anew at each."""

OURS = "TensorLoader"
DATALOADER = "DataLoader, default collate, no workers"
BARE = "index_select alone, into the same memory"
NO_FASTER = """copying the images is what is left: index_select alone, into memory that is there
already, cannot reach it either, and torch's own collate has become faster than it was where the
limit was set"""
_SIZES = (8, 16, 32, 64)


def images(n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(n, 1, 28, 28, generator=generator)
    return inputs, torch.randint(0, 10, (n,), generator=generator)


class Gathered(TensorDataset):
    """A data set that a DataLoader can ask for a whole batch; its `collate` has nothing to do."""

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        return [tensor[indices] for tensor in self.tensors]


def drain(loader: Iterable[Any]) -> int:
    """The images that a loader yields, counted."""
    return sum(len(targets) for _, targets in loader)


def loaders(data: tuple[Tensor, Tensor], b: int, workers: int = 2) -> dict[str, Iterable[Any]]:
    dataset: TensorDataset = TensorDataset(*data)
    # Many epochs: drained at its epoch 0 again and again, a sampler would warn.
    plan = Plan(epochs=10**6, batch_size=b)
    n = len(dataset)
    persistent = {"num_workers": workers, "persistent_workers": True} if workers else {}
    return {
        OURS: _Epochs(lambda sampler: TensorLoader(data, sampler), plan, n),
        DATALOADER: DataLoader(dataset, batch_size=b, shuffle=True),
        "DataLoader with ScheduledBatchSampler, no workers": _Epochs(
            lambda sampler: DataLoader(dataset, batch_sampler=sampler), plan, n
        ),
        "DataLoader, a data set with __getitems__, no workers": DataLoader(
            Gathered(*data), batch_size=b, shuffle=True, collate_fn=lambda batch: batch
        ),
        "DataLoader, default collate, 2 persistent workers": DataLoader(
            dataset, batch_size=b, shuffle=True, **persistent
        ),
    }


class _Epochs:
    """A loader over a scheduled sampler that goes to its next epoch by itself."""

    def __init__(
        self, make: Callable[[ScheduledBatchSampler], Iterable[Any]], plan: Plan, n: int
    ) -> None:
        self._sampler = ScheduledBatchSampler(plan, n)
        self._loader = make(self._sampler)
        self._next = 0

    def __iter__(self) -> Iterator[Any]:
        self._sampler.set_epoch(self._next)
        self._next += 1
        return iter(self._loader)


def _stateful(data: tuple[Tensor, Tensor], b: int) -> Iterable[Any]:
    from torchdata.stateful_dataloader import StatefulDataLoader

    return StatefulDataLoader(TensorDataset(*data), batch_size=b, shuffle=True)


def growing(data: tuple[Tensor, Tensor], workers: int = 2) -> dict[str, Callable[[], int]]:
    """Passes over epochs of growing batches; each returns the images it has seen."""
    dataset: TensorDataset = TensorDataset(*data)
    plan = Plan(epochs=len(_SIZES), batch_size=s.Exponential(_SIZES[0], factor=2, every=1))

    def scheduled(make: Callable[[ScheduledBatchSampler], Iterable[Any]]) -> int:
        sampler = ScheduledBatchSampler(plan, len(dataset))
        loader, seen = make(sampler), 0
        for epoch in range(len(_SIZES)):
            sampler.set_epoch(epoch)
            seen += drain(loader)
        return seen

    def anew() -> int:
        return sum(
            drain(DataLoader(dataset, batch_size=b, shuffle=True, num_workers=workers))
            for b in _SIZES
        )

    persistent = {"num_workers": workers, "persistent_workers": True} if workers else {}
    return {
        OURS: lambda: scheduled(lambda sampler: TensorLoader(data, sampler)),
        "ScheduledBatchSampler in a DataLoader, no workers": lambda: scheduled(
            lambda sampler: DataLoader(dataset, batch_sampler=sampler)
        ),
        "ScheduledBatchSampler in a DataLoader, 2 persistent workers": lambda: scheduled(
            lambda sampler: DataLoader(dataset, batch_sampler=sampler, **persistent)
        ),
        "the released way: a DataLoader with 2 workers made anew": anew,
    }


def bs_scheduler(data: tuple[Tensor, Tensor]) -> int:
    """The same epochs under bs-scheduler; it returns the images it has seen."""
    from bs_scheduler import StepBS

    loader = DataLoader(TensorDataset(*data), batch_size=_SIZES[0], shuffle=True)
    scheduler, seen = StepBS(loader, step_size=1, gamma=2.0), 0
    for _ in _SIZES:
        seen += drain(loader)
        scheduler.step()
    return seen


def cases(size: Size) -> Iterator[Case]:
    torch.set_num_threads(1)
    yield from _static(size)
    rounds, n = {"tiny": (1, 64), "quick": (3, 2000), "full": (9, 8000)}[size]
    data = images(n)
    workers = 0 if size == "tiny" else 2
    peers = {
        "bs-scheduler, no workers": lambda: repeated(
            lambda: bs_scheduler(data), 0.0, count=n * len(_SIZES)
        )
    }
    yield Case(
        name=f"batches growing from {_SIZES[0]} to {_SIZES[-1]} in {len(_SIZES)} epochs of {n}",
        per="image",
        base=OURS,
        sides={
            name: repeated(work, 0.0, count=n * len(_SIZES))
            for name, work in growing(data, workers).items()
        },
        peers=peers,
        rounds=rounds,
    )
    yield from _shuffling(size)
    yield from _ahead(size)


def _static(size: Size) -> Iterator[Case]:
    rounds, n = {"tiny": (1, 64), "quick": (5, 4096), "full": (21, 16384)}[size]
    data = images(n)
    aims = {8: 4.0, 256: 15.0}
    for b in (8, 256, 4096):
        some = loaders(data, b, 0 if size == "tiny" else 2)
        yield Case(
            name=f"batch size {b}",
            per="image",
            base=OURS,
            sides={
                **{name: _pass(loader, n) for name, loader in some.items()},
                BARE: repeated(_bare(data, b), 0.0, count=n),
            },
            peers={
                "torchdata's StatefulDataLoader, no workers": lambda b=b: _pass(
                    _stateful(data, b), n
                )
            },
            rounds=rounds,
            aims=[Aim(DATALOADER, OURS, least=aims[b], cause=NO_FASTER)] if b in aims else [],
        )


def _bare(data: tuple[Tensor, Tensor], b: int) -> Callable[[], None]:
    """The least that makes shuffled batches: no sampler, no loader, no new memory."""
    batches = torch.randperm(len(data[0])).split(b)
    rooms = [tensor[:b].clone() for tensor in data]

    def work() -> None:
        for indices in batches:
            for tensor, room in zip(data, rooms, strict=True):
                torch.index_select(tensor, 0, indices, out=room[: len(indices)])

    return work


def _pass(loader: Iterable[Any], n: int) -> Turn:
    def work() -> None:
        assert drain(loader) == n

    return repeated(work, 0.0, count=n)


def _shuffling(size: Size) -> Iterator[Case]:
    """What an epoch's order and its cutting into batches cost, of an epoch of training."""
    rounds, n = {"tiny": (1, 64), "quick": (1, 60_000), "full": (5, 60_000)}[size]
    data = images(n)
    for b in (8, 4096):
        sampler = ScheduledBatchSampler(Plan(epochs=10**6, batch_size=b), n)
        epochs = iter(range(10**6))
        model = MLP()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)
        loader = _Epochs(lambda own: TensorLoader(data, own), sampler.plan, n)

        def shuffle(sampler: ScheduledBatchSampler = sampler, epochs: Any = epochs) -> None:
            sampler.set_epoch(next(epochs))
            assert sum(len(batch) for batch in sampler.shares()) == n

        def train(
            loader: Any = loader, model: nn.Module = model, optimizer: Any = optimizer
        ) -> None:
            for inputs, targets in loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(inputs), targets).backward()
                optimizer.step()

        sides = {"shuffling and cutting": repeated(shuffle, 0.0),
                 "training": repeated(train, 0.0)}  # fmt: skip
        yield Case(
            name=f"{n:,} indices in batches of {b}, and an epoch of the MLP",
            per="epoch",
            base="training",
            sides=sides,
            rounds=rounds,
            aims=[Aim("shuffling and cutting", "training", most=0.01)],
        )


def ahead(batches: Iterable[Any], count: int = 2) -> Iterator[Any]:
    """The same batches, made by a thread that is so many ahead."""
    made: Queue[Any] = Queue(count)

    def make() -> None:
        for batch in batches:
            made.put(batch)
        made.put(None)

    thread = threading.Thread(target=make)
    thread.start()
    while (batch := made.get()) is not None:
        yield batch
    thread.join()


def _ahead(size: Size) -> Iterator[Case]:
    """Whether a thread that makes batches ahead pays, where they take longest: augmented ones."""
    rounds, n, b = {"tiny": (1, 64, 32), "quick": (3, 2560, 256), "full": (9, 7680, 256)}[size]
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
    data = inputs, torch.randint(0, 10, (n,), generator=generator)
    plan = Plan(epochs=10**6, batch_size=b)
    models = {"MLP": MLP(inputs=3072), "SmallCNN": SmallCNN(channels=3)}
    for name, model in models.items():
        optimizer = QHM(model.parameters(), lr=0.01)
        augmented = lambda sampler: TensorLoader(data, sampler, augment=Augmentation())  # noqa: E731
        loader = _Epochs(augmented, plan, n)

        def train(
            batches: Iterable[Any], model: nn.Module = model, optimizer: Any = optimizer
        ) -> None:
            for x, y in batches:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x.float().div_(255)), y).backward()
                optimizer.step()

        yield Case(
            name=f"training the {name} on augmented images of 3 x 32 x 32, batch size {b}",
            per="image",
            base=OURS,
            sides={
                OURS: repeated(lambda t=train, own=loader: t(own), 0.0, count=n),
                "a thread that is two batches ahead": repeated(
                    lambda t=train, own=loader: t(ahead(own)), 0.0, count=n
                ),
            },
            rounds=rounds,
        )
