"""Crop, flip and rotation: a whole batch at once against Pillow, image by image."""

import time
from collections.abc import Iterator

import torch

from batchramp.batching import Augmentation
from batchramp.batching.augmentation import augment_one_by_one
from benchmarks.timing import Aim, Case, Size, repeated

TITLE = "Augmentation"
NOTE = """Images of 3 x 32 x 32. Pillow's side is what torchvision's three transforms run: from an
array to a picture, expand and crop, flip, rotate, and back to a tensor; their own Python overhead
and the change to floats are left out. Both do the same images with the same draws (drawing is
timed with the batch's side only) and must agree in every pixel. One thread, and its processor
time."""

BATCH, PILLOW = "batchramp, whole batches", "Pillow, image by image"


def cases(size: Size) -> Iterator[Case]:
    torch.set_num_threads(1)
    rounds, seconds = {"tiny": (1, 0.0), "quick": (9, 0.05), "full": (41, 0.2)}[size]
    for b in (8, 256, 4096) if size != "tiny" else (8,):
        generator = torch.Generator().manual_seed(b)
        inputs = torch.randint(0, 256, (b, 3, 32, 32), dtype=torch.uint8, generator=generator)
        augmentation = Augmentation()
        draws = augmentation.draw(b, generator)
        one_by_one = augment_one_by_one(inputs, draws, augmentation.padding)
        if not torch.equal(augmentation.apply(inputs, draws), one_by_one):
            raise SystemExit(f"the two sides disagree at b = {b}")

        def batch(inputs=inputs, generator=generator, augmentation=augmentation) -> None:
            augmentation(inputs, generator)

        def pillow(inputs=inputs, draws=draws, padding=augmentation.padding) -> None:
            augment_one_by_one(inputs, draws, padding)

        sides = {BATCH: batch, PILLOW: pillow}
        yield Case(
            name=f"batch size {b}",
            per="image",
            base=BATCH,
            sides={
                name: repeated(work, seconds, count=b, clock=time.thread_time)
                for name, work in sides.items()
            },
            rounds=rounds,
            aims=[Aim(PILLOW, BATCH, least=10.0)] if b == 256 else [],
        )
