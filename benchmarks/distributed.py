"""What several processes cost, and what a change of batch size costs a loader with workers.

First: this package's pieces on two gloo processes (shares, weights, QHM under a scheduler, DDP)
against a hand-written DDP loop of the same steps (slices of one permutation, torch's SGD with
Nesterov's momentum, fused). Both train MLP 784-128-128-10 on 5000 random images at a global batch
of 32 and take turns in the same processes; the figure is the median of the ratios.

Second: with two workers that make 0.2 ms a sample, and a step that takes longer, how long the loop
waits for the first batch of a new size, against the median of the others of that size. Sizes are
decided in the sampler, ahead of the workers: nothing is rebuilt and nothing is drawn twice.

    python benchmarks/distributed.py [--quick] [--json FILE]
"""

import argparse
import json
import os
import platform
import socket
import statistics
import time
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch import distributed
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from batchramp import QHM, ParamScheduler, Plan, ScheduledBatchSampler, TensorLoader
from batchramp import schedules as s
from batchramp.models import MLP
from batchramp.processes import join

SAMPLES, BATCH_SIZE = 5000, 32


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(SAMPLES, 1, 28, 28, generator=generator)
    return inputs, torch.randint(0, 10, (SAMPLES,), generator=generator)


def planned(epochs: int) -> float:
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


def process(rank: int, port: int, epochs: int, pairs: int, found: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    join()
    planned(1), by_hand(1)
    times = [(planned(epochs), by_hand(epochs)) for _ in range(pairs)]
    if rank == 0:
        found.put(times)


def steps(epochs: int, pairs: int) -> list[tuple[float, float]]:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    found = context.SimpleQueue()
    children = [
        context.Process(target=process, args=(rank, port, epochs, pairs, found), daemon=True)
        for rank in range(2)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
        if child.exitcode:
            raise SystemExit(f"a process ended with {child.exitcode}")
    return found.get()


class Decoded(Dataset[torch.Tensor]):
    """A data set whose samples take about 0.2 ms each, as decoding a small image does."""

    def __len__(self) -> int:
        return 4000

    def __getitem__(self, index: int) -> torch.Tensor:
        until = time.perf_counter() + 2e-4
        while time.perf_counter() < until:
            pass
        return torch.full((3, 32, 32), float(index))


def changes(pairs: int) -> list[tuple[float, float]]:
    """Seconds waited for the first batch of a new size, and the median of the others of it."""
    batches = {30 * i: 16 << i % 2 for i in range(2 * pairs)}
    plan = Plan(steps=60 * pairs, batch_size=s.Piecewise(batches))
    data = Decoded()
    sampler = ScheduledBatchSampler(plan, len(data))
    loader = DataLoader(data, batch_sampler=sampler, num_workers=2, persistent_workers=True)
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
    for stage in plan.stages(len(data))[1:]:
        if stage.start not in starts:  # there, a loader starts anew whatever the size
            (_, first), *others = waits[stage.start : stage.stop]
            found.append(
                (first, statistics.median(w for size, w in others if size == stage.batch_size))
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="1 epoch instead of 5")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    times = steps(1 if arguments.quick else 5, arguments.pairs)
    ratios = [ours / theirs for ours, theirs in times]
    torch.set_num_threads(1)
    firsts = changes(8 * arguments.pairs)
    result = {
        "batch_size": BATCH_SIZE,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "ours_seconds": round(statistics.median(ours for ours, _ in times), 3),
        "by_hand_seconds": round(statistics.median(theirs for _, theirs in times), 3),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "first_batch_ms": round(1e3 * statistics.median(first for first, _ in firsts), 3),
        "usual_batch_ms": round(1e3 * statistics.median(usual for _, usual in firsts), 3),
        "first_ratio": round(statistics.median(first / usual for first, usual in firsts), 3),
    }
    for key, value in result.items():
        print(f"{key:>16}  {value}")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
