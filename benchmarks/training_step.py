"""A run by `batchramp.fit` against the tightest plain PyTorch loop of the same steps."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch.nn.functional import cross_entropy

from batchramp import Plan, fit
from batchramp import schedules as s
from batchramp.data import ImageSet, fashion_mini
from batchramp.experiments import tasks
from batchramp.models import MLP
from benchmarks.timing import Aim, Case, Size, Turn

TITLE = "Training step at batch size 8"
NOTE = """Both train MLP 784-128-128-10 on the 6,500 bundled images at batch size 8 and, after
every epoch, measure loss and accuracy on all three parts and the full-gradient norm. The plain loop
has torch's SGD(momentum, nesterov, fused); fit has QHM with lr, beta and gamma scheduled, its rows,
and its checks. One thread."""

BATCH_SIZE = 8
FIT, PLAIN = "fit", "plain loop, torch SGD fused"
CHUNK = 1000


def planned(epochs: int) -> Plan:
    every = max(1, epochs // 10)
    return Plan(
        epochs=epochs,
        batch_size=BATCH_SIZE,
        lr=s.Cosine(0.1),
        beta=s.StepDecay(0.9, factor=0.5, every=every),
        gamma=s.StepDecay(0.7, factor=0.5, every=every),
    )


def plain(data: ImageSet, epochs: int) -> list[list[float]]:
    """The loop without any of this package's pieces but the model; returns what it measured."""
    torch.manual_seed(0)
    model = MLP()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.01, momentum=0.9, nesterov=True, fused=True
    )
    inputs, targets = data.train
    found = [measured(model, data)]
    for _ in range(epochs):
        model.train()
        order = torch.randperm(len(inputs))
        for i in range(0, len(inputs), BATCH_SIZE):
            batch = order[i : i + BATCH_SIZE]
            loss = cross_entropy(model(inputs[batch]), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found.append(measured(model, data))
    return found


def measured(model: torch.nn.Module, data: ImageSet) -> list[float]:
    """Loss and accuracy (percent) of each part, then the full-gradient norm."""
    model.eval()
    found = []
    with torch.inference_mode():
        for inputs, targets in data:
            loss = right = 0.0
            for x, y in zip(inputs.split(CHUNK), targets.split(CHUNK), strict=True):
                outputs = model(x)
                loss += cross_entropy(outputs, y, reduction="sum").item()
                right += (outputs.argmax(1) == y).sum().item()
            found += [loss / len(targets), 100 * right / len(targets)]
    model.zero_grad()
    inputs, targets = data.train
    for x, y in zip(inputs.split(CHUNK), targets.split(CHUNK), strict=True):
        (cross_entropy(model(x), y, reduction="sum") / len(targets)).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    found.append(torch.nn.utils.get_total_norm(gradients).item())
    model.zero_grad()
    return found


def cases(size: Size) -> Iterator[Case]:
    torch.set_num_threads(1)
    rounds, epochs = {"tiny": (1, 1), "quick": (5, 3), "full": (9, 15)}[size]
    task = tasks.load("fashion-mini", "mlp")
    data = fashion_mini()
    if size == "tiny":
        data = ImageSet(*((x[:40], y[:40]) for x, y in data))
    train, validation, test = data
    task = replace(task, train=train, validation=validation, test=test)
    steps = epochs * -(-len(train[0]) // BATCH_SIZE)
    plan = planned(epochs)

    def ours() -> None:
        assert len(fit(task, plan, seed=0).rows) == epochs

    yield Case(
        name=f"{epochs} epochs, all that is measured after each included",
        per="step",
        base=PLAIN,
        sides={FIT: _turn(ours, steps), PLAIN: _turn(lambda: plain(data, epochs), steps)},
        rounds=rounds,
        aims=[Aim(FIT, PLAIN, most=1.05)],
    )


def _turn(work: Callable[[], object], steps: int) -> Turn:
    def turn() -> float:
        begin = time.perf_counter()
        work()
        return (time.perf_counter() - begin) / steps

    return turn
