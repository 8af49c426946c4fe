"""What several processes cost, and what a change of batch size costs a loader with workers."""

import os
import socket
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch import distributed
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, Sampler

from batchramp import QHM, ParamScheduler, Plan, ScheduledBatchSampler, TensorLoader
from batchramp import schedules as s
from batchramp.models import MLP
from batchramp.processes import join
from benchmarks.timing import Aim, Case, Size, Turn

TITLE = "Several processes, and changes of batch size"
NOTE = """First this package's pieces on two gloo processes (shares, weights, QHM under a
scheduler, DDP) against a hand-written DDP loop of the same steps (slices of one permutation,
torch's SGD with Nesterov's momentum, fused), MLP 784-128-128-10 on 4,992 random images at a global
batch of 32; both take turns in the same processes. Then, with two workers that take 0.2 ms a sample
and a step that takes longer, how long the loop waits for the first batch of a new size, 16 or 32,
against the median of the others of that size: sizes are decided in the sampler, ahead of the
workers. Beside it the same batches out of a list."""

# A whole number of batches: with a rest the hand-written loop would wait for ever, one process
# having a step more than the other.
BATCH_SIZE = 32
SAMPLES = 156 * BATCH_SIZE
OURS, BY_HAND = "batchramp's pieces under DDP", "a hand-written DDP loop"
FIRST, ANOTHER, LISTED = "the first of a new size", "another of that size", ", from a list"
HANDED_OVER = """torch's loader waits as much longer for the same batches out of a list: it has a
worker's process hand them over, and what that takes depends on what worker and loop did before"""


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(SAMPLES, 1, 28, 28, generator=generator)
    return inputs, torch.randint(0, 10, (SAMPLES,), generator=generator)


def planned(epochs: int) -> float:
    """Seconds of the training alone."""
    tensors = data()
    plan = Plan(
        epochs=epochs, batch_size=BATCH_SIZE, lr=s.Cosine(0.1), beta=0.9, gamma=s.Constant(0.7)
    )
    torch.manual_seed(0)
    model = join().shared(MLP())
    sampler = ScheduledBatchSampler(plan, SAMPLES)
    loader = TensorLoader(tensors, sampler)
    optimizer = QHM(model.parameters(), **plan.at(0).hyperparameters)
    scheduler = ParamScheduler(optimizer, plan, sampler=sampler)
    distributed.barrier()
    started = time.perf_counter()
    for _ in range(epochs):
        for k, (inputs, targets) in enumerate(loader):
            loss = cross_entropy(model(inputs), targets) * sampler.weight(k)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step()
    return time.perf_counter() - started


def by_hand(epochs: int) -> float:
    """Seconds of the training alone."""
    inputs, targets = data()
    torch.manual_seed(0)
    model = DistributedDataParallel(MLP(), gradient_as_bucket_view=True)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.01, momentum=0.9, nesterov=True, fused=True
    )
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    share = BATCH_SIZE // world_size
    distributed.barrier()
    started = time.perf_counter()
    for epoch in range(epochs):
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(epoch))
        for start in range(rank * share, SAMPLES, BATCH_SIZE):
            batch = order[start : start + share]
            loss = cross_entropy(model(inputs[batch]), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return time.perf_counter() - started


def process(rank: int, port: int, epochs: int, rounds: int, found: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    join()
    times = [(planned(epochs), by_hand(epochs)) for _ in range(rounds)]
    if rank == 0:
        found.put(times)


def steps(epochs: int, rounds: int) -> list[tuple[float, float]]:
    """Seconds of both sides in each round, by two processes that are made for it."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    found = context.SimpleQueue()
    children = [
        context.Process(target=process, args=(rank, port, epochs, rounds, found), daemon=True)
        for rank in range(2)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
        if child.exitcode:
            raise SystemExit(f"a process ended with {child.exitcode}")
    return found.get()


@dataclass(frozen=True)
class Images(Dataset[torch.Tensor]):
    """Small images, each of which takes 0.2 ms: to compute or, as from a disk, to wait for."""

    computed: bool

    def __len__(self) -> int:
        return 4000

    def __getitem__(self, index: int) -> torch.Tensor:
        if not self.computed:
            time.sleep(2e-4)
        until = time.perf_counter() + 2e-4 * self.computed
        while time.perf_counter() < until:
            pass
        return torch.full((3, 32, 32), float(index))


class Listed(Sampler[list[int]]):
    """The batches of a sampler as a loader of torch's may have had them before: in a list."""

    def __init__(self, sampler: ScheduledBatchSampler) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[list[int]]:
        yield from list(self.sampler)


def changes(count: int, computed: bool, listed: bool) -> list[tuple[float, float]]:
    """Seconds waited for the first batch of a new size, and the median of the others of it."""
    batches = {30 * i: 16 << i % 2 for i in range(2 * count)}
    plan = Plan(steps=60 * count, batch_size=s.Piecewise(batches))
    dataset = Images(computed)
    sampler = ScheduledBatchSampler(plan, len(dataset))
    loader = DataLoader(
        dataset,
        batch_sampler=Listed(sampler) if listed else sampler,
        num_workers=2,
        persistent_workers=True,
    )
    waits: list[tuple[int, float]] = []
    starts = set()
    for epoch in range(sampler.epochs):
        sampler.set_epoch(epoch)
        starts.add(len(waits))
        started = time.perf_counter()
        for batch in loader:
            waits.append((len(batch), time.perf_counter() - started))
            time.sleep(3e-4 * len(batch))  # the step
            started = time.perf_counter()
    found = []
    for stage in plan.stages(len(dataset))[1:]:
        if stage.start not in starts:  # there, a loader starts anew whatever the size
            (_, first), *others = waits[stage.start : stage.stop]
            found.append(
                (first, statistics.median(w for size, w in others if size == stage.batch_size))
            )
    return found


def cases(size: Size) -> Iterator[Case]:
    torch.set_num_threads(1)
    rounds, epochs, switches = {"tiny": (1, 1, 1), "quick": (3, 1, 10), "full": (9, 5, 40)}[size]
    # Both sides were timed together; the first round warmed up.
    times = steps(epochs, rounds + 1)[1:]
    yield Case(
        name=f"two processes, {epochs} epochs",
        per="step",
        base=BY_HAND,
        sides=_told(times, (OURS, BY_HAND), epochs * -(-SAMPLES // BATCH_SIZE)),
        rounds=rounds,
        aims=[Aim(OURS, BY_HAND, most=1.15)],
        warm_up=False,
    )
    for computed in (False, True):
        waits: list[tuple[float, ...]] = []
        for _ in range(max(1, switches // 5)):
            ours, listed = (changes(min(5, switches), computed, way) for way in (False, True))
            waits += [first + second for first, second in zip(ours, listed, strict=True)]
        yield Case(
            name=f"two workers, samples {'computed' if computed else 'waited for'}",
            per="batch",
            base=ANOTHER,
            sides=_told(waits, (FIRST, ANOTHER, f"{FIRST}{LISTED}", f"{ANOTHER}{LISTED}"), 1),
            rounds=len(waits),
            aims=[Aim(FIRST, ANOTHER, most=1.2, cause=HANDED_OVER)],
            warm_up=False,
        )


def _told(pairs: Sequence[tuple[float, ...]], names: Sequence[str], count: int) -> dict[str, Turn]:
    """Sides that tell, turn by turn, what was timed before."""
    columns = [cycle([pair[i] / count for pair in pairs]) for i in range(len(names))]
    return {name: column.__next__ for name, column in zip(names, columns, strict=True)}
