"""How long crop, flip and rotation take: a whole batch at once against Pillow, image by image.

Pillow's side is what torchvision's three transforms run: from an array to a picture, expand and
crop, flip, rotate, and back to a tensor; their own Python overhead and the change to floats are
left out. Both do the same images with the same draws (drawing is timed with the batch's side only)
and must agree in every pixel. Rounds alternate in a shuffled order; a ratio is the median over the
rounds of Pillow's time divided by the batch's in the same round. One thread, and its processor
time, which others on the machine change less than the clock's.

    python benchmarks/augmentation.py [--quick] [--json FILE]
"""

import argparse
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable

import PIL
import torch

from batchramp.batching import Augmentation
from batchramp.batching.augmentation import augment_one_by_one

SIZES = (8, 256, 4096)


def seconds(call: Callable[[], object], times: int) -> float:
    begin = time.thread_time()
    for _ in range(times):
        call()
    return (time.thread_time() - begin) / times


def measure(b: int, rounds: int, images_a_turn: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(b)
    inputs = torch.randint(0, 256, (b, 3, 32, 32), dtype=torch.uint8, generator=generator)
    augmentation = Augmentation()
    draws = augmentation.draw(b, generator)
    one_by_one = augment_one_by_one(inputs, draws, augmentation.padding)
    if not torch.equal(augmentation.apply(inputs, draws), one_by_one):
        raise SystemExit(f"the two sides disagree at b = {b}")
    sides = {
        "batch": lambda: augmentation(inputs, generator),
        "one by one": lambda: augment_one_by_one(inputs, draws, augmentation.padding),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    order, shuffle = list(sides), random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            times[name].append(seconds(sides[name], max(1, images_a_turn // b)) / b)
    ratios = [slow / fast for slow, fast in zip(times["one by one"], times["batch"], strict=True)]
    return {
        "batch, us an image": 1e6 * statistics.median(times["batch"]),
        "one by one, us an image": 1e6 * statistics.median(times["one by one"]),
        "ratio": statistics.median(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds: noisier, in seconds")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to FILE")
    arguments = parser.parse_args()
    rounds, images = (9, 512) if arguments.quick else (41, 2048)
    torch.set_num_threads(1)
    about = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 0,
        "torch": torch.__version__,
        "pillow": PIL.__version__,
        "python": platform.python_version(),
    }
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    results = {b: measure(b, rounds, images) for b in SIZES}
    for b, figures in results.items():
        print(f"b = {b}: " + ", ".join(f"{name} {value:.1f}" for name, value in figures.items()))
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"about": about, "results": results}, file, indent=1)


if __name__ == "__main__":
    main()
