"""How long one optimizer step takes: QHM's three implementations against torch.optim.SGD's.

All candidates run in one process, in rounds whose order is shuffled; a candidate's figure is the
median over the rounds of its time divided by the fused SGD's time in the same round, so that what
else the machine does hits all of them alike. beta, gamma and lr of QHM (and lr of SGD) change
before every step, and the change is timed with it. One thread and all are measured: with several,
OMP_WAIT_POLICY=passive costs the fused kernels some microseconds a tensor.

    python benchmarks/optimizer_step.py [--quick] [--json FILE]
"""

import argparse
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable

import torch

from batchramp.optim import QHM

Shape = tuple[int, ...]
BASELINE = "torch SGD fused"
WARM_UP = 5


def resnet18_shapes(classes: int = 100) -> list[Shape]:
    """The 62 parameters of the CIFAR ResNet-18: convolutions without bias, batch norms, a head."""
    shapes: list[Shape] = [(64, 3, 3, 3), (64,), (64,)]
    width = 64
    for out in (64, 128, 256, 512):
        for block in range(2):
            shapes += [(out, width, 3, 3), (out,), (out,), (out, out, 3, 3), (out,), (out,)]
            if block == 0 and width != out:
                shapes += [(out, width, 1, 1), (out,), (out,)]
            width = out
    return [*shapes, (classes, width), (classes,)]


def vit_tiny_shapes(classes: int = 100) -> list[Shape]:
    """A small vision transformer for 32 x 32 pictures: 118 parameters, 2.7 million numbers."""
    width, patch, depth, hidden = 192, 4, 9, 384
    shapes: list[Shape] = [(1, 1, width), (1, 65, width), (width, 3, patch, patch), (width,)]
    shapes += [(width,), (width,)]
    for _ in range(depth):
        shapes += [(width,), (width,), (3 * width, width), (3 * width,)]
        shapes += [(width, width), (width,), (width,), (width,)]
        shapes += [(hidden, width), (hidden,), (width, hidden), (width,)]
    return [*shapes, (width,), (width,), (classes, width), (classes,)]


MODELS: dict[str, Callable[[], list[Shape]]] = {
    "ResNet-18": resnet18_shapes,
    "ViT-Tiny": vit_tiny_shapes,
    "1000 x 1000": lambda: [(1000,)] * 1000,
}


class Candidate:
    """An optimizer over parameters of its own, with gradients that stay."""

    def __init__(self, shapes: list[Shape], make: Callable[[list], torch.optim.Optimizer]):
        generator = torch.Generator().manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in shapes]
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        self.optimizer = make(params)
        self.is_qhm = isinstance(self.optimizer, QHM)

    def time(self, steps: int) -> float:
        """Seconds a step, changes of the hyperparameters included."""
        (group,) = self.optimizer.param_groups
        begin = time.perf_counter()
        for k in range(steps):
            group["lr"] = 1e-4 / (k + 1)
            if self.is_qhm:
                group["beta"] = 0.9 - 0.1 / (k + 2)
                group["gamma"] = 0.7 + 0.1 / (k + 2)
            self.optimizer.step()
        return (time.perf_counter() - begin) / steps


def candidates(shapes: list[Shape]) -> dict[str, Candidate]:
    kinds = {
        "loop": {"foreach": False, "fused": False},
        "foreach": {"foreach": True},
        "fused": {"fused": True},
    }
    made = {}
    for kind, options in kinds.items():
        made[f"torch SGD {kind}"] = Candidate(
            shapes,
            lambda p, o=options: torch.optim.SGD(p, lr=1e-4, momentum=0.9, nesterov=True, **o),
        )
        made[f"QHM {kind}"] = Candidate(shapes, lambda p, o=options: QHM(p, lr=1e-4, **o))
    return made


def measure(shapes: list[Shape], rounds: int, seconds_a_turn: float) -> dict[str, dict]:
    made = candidates(shapes)
    turn = {}
    for name, candidate in made.items():
        candidate.time(WARM_UP)
        turn[name] = max(2, round(seconds_a_turn / candidate.time(WARM_UP)))
    times: dict[str, list[float]] = {name: [] for name in made}
    order = list(made)
    shuffle = random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            times[name].append(made[name].time(turn[name]))
    return {
        name: {
            "milliseconds": 1e3 * statistics.median(own),
            "ratio": statistics.median(
                t / base for t, base in zip(own, times[BASELINE], strict=True)
            ),
        }
        for name, own in times.items()
    }


def machine() -> dict[str, str | int]:
    return {
        "processor": platform.processor() or platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count() or 0,
        "wait policy": os.environ.get("OMP_WAIT_POLICY", "the default"),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds: noisier, in seconds")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to FILE")
    arguments = parser.parse_args()
    rounds, seconds_a_turn = (11, 0.02) if arguments.quick else (51, 0.05)

    results: dict[str, dict[str, dict[str, dict]]] = {}
    about = machine()
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    for model, make_shapes in MODELS.items():
        shapes = make_shapes()
        numbers = sum(torch.Size(s).numel() for s in shapes)
        print(f"\n{model}: {len(shapes)} tensors, {numbers / 1e6:.1f} M numbers")
        by_threads = results[model] = {}
        for threads in sorted({1, torch.get_num_threads()}):
            torch.set_num_threads(threads)
            print(f"  threads: {threads}")
            rows = by_threads[f"threads {threads}"] = measure(shapes, rounds, seconds_a_turn)
            for name, row in sorted(rows.items(), key=lambda item: item[1]["ratio"]):
                times = f"{row['milliseconds']:9.2f} ms{row['ratio']:8.2f} x"
                print(f"  {name:18}{times}")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"machine": about, "baseline": BASELINE, "results": results}, file, indent=2)


if __name__ == "__main__":
    main()
