"""A run by `batchramp.fit` against the tightest plain PyTorch loop of the same steps.

Both train MLP 784-128-128-10 on fashion-mini at batch size 8 for 30 epochs and, after every epoch,
measure loss and accuracy on all three parts and the full-gradient norm. The plain loop uses
torch's SGD(momentum, nesterov, fused); `fit` uses QHM with lr, beta and gamma scheduled. They take
turns in one process; the figure is the median of the ratios.

    python benchmarks/training_run.py [--quick] [--json FILE]
"""

import argparse
import json
import os
import platform
import statistics
import time

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch.nn.functional import cross_entropy

from batchramp import Plan, fit
from batchramp import schedules as s
from batchramp.data import ImageSet
from batchramp.experiments import tasks
from batchramp.models import MLP

BATCH_SIZE = 8


def planned(epochs: int) -> float:
    every = max(1, epochs // 10)
    plan = Plan(
        epochs=epochs,
        batch_size=BATCH_SIZE,
        lr=s.Cosine(0.1),
        beta=s.StepDecay(0.9, factor=0.5, every=every),
        gamma=s.StepDecay(0.7, factor=0.5, every=every),
    )
    started = time.perf_counter()
    fit(TASK, plan, seed=0)
    return time.perf_counter() - started


def plain(epochs: int) -> float:
    data = DATA
    started = time.perf_counter()
    torch.manual_seed(0)
    model = MLP()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.01, momentum=0.9, nesterov=True, fused=True
    )
    inputs, targets = data.train
    measure(model, data)
    for _ in range(epochs):
        model.train()
        order = torch.randperm(len(inputs))
        for i in range(0, len(inputs), BATCH_SIZE):
            batch = order[i : i + BATCH_SIZE]
            loss = cross_entropy(model(inputs[batch]), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        measure(model, data)
    return time.perf_counter() - started


def measure(model: torch.nn.Module, data: ImageSet) -> list[float]:
    model.eval()
    found = []
    with torch.inference_mode():
        for inputs, targets in data:
            loss = right = 0.0
            for x, y in zip(inputs.split(1000), targets.split(1000), strict=True):
                outputs = model(x)
                loss += cross_entropy(outputs, y, reduction="sum").item()
                right += (outputs.argmax(1) == y).sum().item()
            found += [loss / len(targets), right / len(targets)]
    model.zero_grad()
    inputs, targets = data.train
    for x, y in zip(inputs.split(1000), targets.split(1000), strict=True):
        (cross_entropy(model(x), y, reduction="sum") / len(targets)).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    found.append(torch.nn.utils.get_total_norm(gradients).item())
    model.zero_grad()
    return found


TASK = tasks.load("fashion-mini")
DATA = ImageSet(TASK.train, TASK.validation, TASK.test)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="3 epochs instead of 30")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    epochs = 3 if arguments.quick else 30
    planned(1), plain(1)
    times = [(planned(epochs), plain(epochs)) for _ in range(arguments.pairs)]
    ratios = [ours / theirs for ours, theirs in times]
    result = {
        "epochs": epochs,
        "batch_size": BATCH_SIZE,
        "threads": arguments.threads,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "fit_seconds": round(statistics.median(ours for ours, _ in times), 3),
        "plain_seconds": round(statistics.median(theirs for _, theirs in times), 3),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }
    for key, value in result.items():
        print(f"{key:>14}  {value}")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
