"""Where the time of a step at batch size 8, and of an epoch at 4096, goes: docs/profile.md.

    python -m benchmarks.profile

Parts of the loop of `batchramp.fit`, timed one after the other on one thread, MLP on the bundled
images; beside them what the machine could not do without: the matrix products alone, the kernel of
the optimizer alone. Processor time; medians over the steps, then the least of several epochs.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy

from batchramp import QHM, ParamScheduler, Plan, ScheduledBatchSampler, TensorLoader
from batchramp import schedules as s
from batchramp.experiments import tasks
from batchramp.measure import evaluate, full_gradient_norm

_LAYERS = ((784, 128), (128, 128), (128, 10))


def step_parts(b: int, epochs: int) -> dict[str, float]:
    """Microseconds of each part of a step."""
    task = tasks.load("fashion-mini", "mlp")
    plan = Plan(
        epochs=epochs,
        batch_size=b,
        lr=s.Cosine(0.1),
        beta=s.StepDecay(0.9, factor=0.5, every=1),
        gamma=s.StepDecay(0.7, factor=0.5, every=1),
    )
    torch.manual_seed(0)
    model = task.make()
    sampler = ScheduledBatchSampler(plan, task.n)
    loader = TensorLoader(task.train, sampler)
    optimizer = QHM(model.parameters(), **plan.at(0).hyperparameters)
    scheduler = ParamScheduler(optimizer, plan)
    found: dict[str, list[float]] = defaultdict(list)
    clock = time.thread_time
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        model.train()
        times: dict[str, list[float]] = defaultdict(list)
        start = clock()
        for inputs, targets in loader:
            times["input"].append(clock() - start)
            start = clock()
            tick = plan.tick(epoch=epoch, step=0, samples=0)
            if tick != scheduler.last_epoch:
                scheduler.set_epoch(tick)
            times["the Plan's tick"].append(clock() - start)
            start = clock()
            loss = task.loss(model, inputs, targets)
            times["forward and loss"].append(clock() - start)
            start = clock()
            optimizer.zero_grad()
            times["zero_grad"].append(clock() - start)
            start = clock()
            loss.backward()
            times["backward"].append(clock() - start)
            start = clock()
            optimizer.step()
            times["optimizer.step"].append(clock() - start)
            start = clock()
        for name, own in times.items():
            # Input comes in bursts, of one gather for many batches: the mean is its cost.
            middle = statistics.fmean if name == "input" else statistics.median
            found[name].append(1e6 * middle(own))
    return {name: min(own) for name, own in found.items()}


def epoch_parts(b: int) -> dict[str, float]:
    """Milliseconds of the parts of an epoch."""
    task = tasks.load("fashion-mini", "mlp")
    steps = -(-task.n // b)
    parts = {f"{name}, {steps} steps": 1e-3 * steps * us for name, us in step_parts(b, 7).items()}
    model = task.make()
    loss_fn = task.loss_fn
    for part in ("train", "validation", "test"):
        parts[f"loss and accuracy, {part}"] = 1e3 * least(
            lambda part=part: evaluate(model, loss_fn, task.in_order(part) or ()), 7
        )
    parts["full gradient"] = 1e3 * least(
        lambda: full_gradient_norm(model, loss_fn, task.in_order("train") or ()), 7
    )
    return parts


def products(b: int) -> float:
    """Seconds of the matrix products of a step alone, forward and backward."""
    work = []
    for number, (inputs, outputs) in enumerate(_LAYERS):
        x, w, g = torch.randn(b, inputs), torch.randn(outputs, inputs), torch.randn(b, outputs)
        work += [(x, w.t(), torch.empty(b, outputs)), (g.t(), x, torch.empty(outputs, inputs))]
        if number:  # nobody wants the gradient by the images
            work.append((g, w, torch.empty(b, inputs)))

    def multiply() -> None:
        for left, right, out in work:
            torch.mm(left, right, out=out)

    return least(multiply, 50)


def kernel() -> float:
    """Seconds of the optimizer's kernel alone, on the MLP's parameters."""
    shapes = [shape for i, o in _LAYERS for shape in ((o, i), (o,))]
    params, grads, buffers = ([torch.randn(shape) for shape in shapes] for _ in range(3))

    def call() -> None:
        torch._fused_sgd_(
            params, grads, buffers, weight_decay=0.0, momentum=0.9, lr=1e-4, dampening=0.5,
            nesterov=True, maximize=False, is_first_step=False,
        )  # fmt: skip

    return least(call, 200)


def dispatch() -> float:
    """Seconds of forward and backward of the same network on a single image of one pixel."""
    layers = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(1, 1), torch.nn.ReLU(), torch.nn.Linear(1, 1),
        torch.nn.ReLU(), torch.nn.Linear(1, 2),
    )  # fmt: skip
    x, y = torch.zeros(1, 1), torch.zeros(1, dtype=torch.int64)

    def both() -> None:
        layers.zero_grad()
        cross_entropy(layers(x), y).backward()

    return least(both, 200)


def least(work: Callable[[], object], times: int) -> float:
    """The least processor time of so many calls."""
    found = []
    for _ in range(times):
        start = time.thread_time()
        work()
        found.append(time.thread_time() - start)
    return min(found)


def main() -> None:
    torch.set_num_threads(1)
    parts = step_parts(8, 5)
    whole = sum(parts.values())
    print(f"one step at batch size 8: {whole:.0f} us")
    for name, us in parts.items():
        print(f"  {us:7.1f} us {100 * us / whole:5.1f} %  {name}")
    print(f"  {1e6 * products(8):7.1f} us          the matrix products alone")
    print(f"  {1e6 * dispatch():7.1f} us          forward and backward of numbers in their place")
    print(f"  {1e6 * kernel():7.1f} us          the optimizer's kernel alone")
    parts = epoch_parts(4096)
    whole = sum(parts.values())
    print(f"one epoch at batch size 4096: {whole:.1f} ms")
    for name, ms in parts.items():
        print(f"  {ms:7.2f} ms {100 * ms / whole:5.1f} %  {name}")
    for size in (3250, 1000):
        print(f"  {1e3 * products(size) * 6500 / size:7.2f} ms          the matrix products of "
              f"forward and backward of all images, {size} at a time")  # fmt: skip


if __name__ == "__main__":
    main()
