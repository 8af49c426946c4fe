"""What an image costs at large batches on a CPU: memory kept, memory given back, micro-batches."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch.nn.functional import cross_entropy

from batchramp import QHM
from batchramp.memory import keep_freed
from batchramp.models import MLP, SmallCNN
from benchmarks.timing import Aim, Case, Size, Turn

TITLE = "Large batches on a CPU"
NOTE = """Training steps with QHM on images of 28 x 28, one thread, each turn in a process of its
own, for what an allocator once was told cannot be taken back. "Memory kept" is
batchramp.memory.keep_freed, which the command line and its runs use; "given back" is what glibc
does by itself. Micro-batches of 256, in memory kept, sum up the same gradient, but BatchNorm sees
256 at a time, so that they are another method for the CNN."""

MODELS = {"MLP 784-128-128-10": MLP, "SmallCNN, 24 k parameters": SmallCNN}
BEST, LARGE = 256, 4096
OUT_OF_CACHE = """what a layer leaves for the next, of 4096 images, no longer lies in the caches,
and BatchNorm's statistics need all of them at once; in micro-batches it does lie there"""
WAYS = ("kept", "given back", "micro-batches")


def stepped(model_name: str, b: int, way: str) -> Callable[[], None]:
    """One training step at batch size b."""
    torch.manual_seed(0)
    model = MODELS[model_name]()
    optimizer = QHM(model.parameters(), lr=0.01)
    inputs, targets = torch.randn(b, 1, 28, 28), torch.randint(0, 10, (b,))
    piece = min(b, BEST) if way == "micro-batches" else b

    def step() -> None:
        optimizer.zero_grad()
        for x, y in zip(inputs.split(piece), targets.split(piece), strict=True):
            (cross_entropy(model(x), y, reduction="sum") / b).backward()
        optimizer.step()

    return step


def child(model_name: str, b: int, way: str, images: int) -> float:
    """Seconds an image, of about so many, in this process."""
    if way != "given back":
        keep_freed()
    torch.set_num_threads(1)
    step = stepped(model_name, b, way)
    for _ in range(2):
        step()
    steps = max(1, images // b)
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - begin) / (steps * b)


def cases(size: Size) -> Iterator[Case]:
    rounds = {"tiny": 1, "quick": 3, "full": 5}[size]
    best, large = (BEST, LARGE) if size != "tiny" else (8, 16)
    sides = {
        f"batch size {best}, memory kept": (best, "kept"),
        f"batch size {large}, memory kept": (large, "kept"),
        f"batch size {best}, memory given back": (best, "given back"),
        f"batch size {large}, memory given back": (large, "given back"),
        f"batch size {large}, micro-batches of {BEST}, memory kept": (large, "micro-batches"),
    }
    first, second, *_, pieces = sides
    for name in MODELS if size != "tiny" else list(MODELS)[:1]:
        images = {"tiny": 16, "quick": 8192, "full": 16384}[size] * (8 if "MLP" in name else 1)
        yield Case(
            name=name,
            per="image",
            base=first,
            sides={side: _turn(name, *of, images) for side, of in sides.items()},
            rounds=rounds,
            warm_up=False,
            aims=[
                Aim(second, first, most=1.0, cause=OUT_OF_CACHE),
                Aim(pieces, first, most=1.0),
            ],
        )


def _turn(model: str, b: int, way: str, images: int) -> Turn:
    command = [sys.executable, "-m", "benchmarks.large_batch", model, str(b), way, str(images)]

    def turn() -> float:
        folder = Path(__file__).parent.parent
        return float(subprocess.run(command, cwd=folder, check=True, capture_output=True).stdout)

    return turn


if __name__ == "__main__":
    print(child(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
