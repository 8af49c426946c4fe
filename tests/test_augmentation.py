"""Whole-batch augmentation against Pillow image by image, and its distribution."""

import math

import pytest
import torch

from batchramp import Plan, ScheduledBatchSampler
from batchramp.batching import Augmentation, TensorLoader
from batchramp.batching.augmentation import Draws, augment_one_by_one

pytestmark = pytest.mark.usefixtures("one_thread")

PAPER = Augmentation()
SHAPES = [(3, 32, 32), (1, 28, 28), (3, 31, 20), (1, 7, 33), (1, 5, 5)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(b, c=3, h=32, w=32, seed=0):
    """Without 0, the colour that is filled in."""
    return torch.randint(1, 256, (b, c, h, w), dtype=torch.uint8, generator=generator(seed))


@pytest.mark.parametrize("degrees", [0.0, 15.0, 180.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_pixel_is_that_of_pillow_with_the_same_draws(shape, degrees):
    images = noise(300, *shape)
    augmentation = Augmentation(padding=min(4, *shape), degrees=degrees)
    draws = augmentation.draw(300, generator(1))
    found = augmentation.apply(images, draws)
    assert found.dtype == torch.uint8
    assert torch.equal(found, augment_one_by_one(images, draws, augmentation.padding))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_pixel_is_that_of_pillow_at_angles_of_ties_and_corners(shape):
    angles = [0.0, 90.0, -90.0, 180.0, -180.0, 45.0, 15.0, -15.0, 1e-17, 1e-9, -1e-5, 0.5]
    cases = [
        (top, left, flip, angle)
        for top in (0, 4, 8)
        for left in (0, 4, 8)
        for flip in (False, True)
        for angle in angles
    ]
    top, left, flip, angle = zip(*cases, strict=True)
    draws = Draws(
        torch.tensor(top),
        torch.tensor(left),
        torch.tensor(flip),
        torch.tensor(angle, dtype=torch.float64),
    )
    images = noise(len(cases), *shape)
    assert torch.equal(PAPER.apply(images, draws), augment_one_by_one(images, draws, 4))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pieces_of_a_batch_and_layouts_change_nothing(layout):
    images = noise(150, 2, 33, 31)  # more than one piece, the last one shorter
    draws = PAPER.draw(150, generator())
    whole = PAPER.apply(images.contiguous(memory_format=layout), draws)
    planes = images.view(300, 1, 33, 31)
    twice = Draws(*(each.repeat_interleave(2) for each in draws))
    assert torch.equal(whole.view(300, 1, 33, 31), augment_one_by_one(planes, twice, 4))


def test_an_image_depends_on_its_own_draws_only():
    images, draws = noise(100), PAPER.draw(100, generator())
    whole = PAPER.apply(images, draws)
    some = torch.tensor([99, 3, 3, 50])
    assert torch.equal(PAPER.apply(images[some], Draws(*(d[some] for d in draws))), whole[some])
    others = images.clone()
    others[:3] = 7
    assert torch.equal(PAPER.apply(others, draws)[3:], whole[3:])


def test_it_is_a_function_of_the_inputs_and_the_generator():
    images = noise(40)
    before = images.clone()
    first, again, other = (PAPER(images, generator(seed)) for seed in (5, 5, 6))
    assert torch.equal(images, before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    one = generator(5)
    assert torch.equal(PAPER(images, one), first)
    assert not torch.equal(PAPER(images, one), first)  # the generator has gone on


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_with_nothing_to_do_it_is_the_identity(shape):
    images = noise(20, *shape)
    found = Augmentation(padding=0, flip=False, degrees=0.0)(images, generator())
    assert torch.equal(found, images)
    assert found.data_ptr() != images.data_ptr()
    flipped = Augmentation(padding=0, flip=True, degrees=0.0)(images, generator())
    same = (flipped == images).flatten(1).all(1)
    assert 0 < same.sum() < 20
    assert torch.equal(flipped[~same], images[~same].flip(3))


def test_an_empty_batch_stays_empty():
    assert PAPER(noise(0), generator()).shape == (0, 3, 32, 32)


def test_a_loader_augments_by_seed_epoch_and_position():
    images, classes = noise(50), torch.arange(50)

    def batches(seed):
        sampler = ScheduledBatchSampler(Plan(epochs=1, batch_size=16), 50, seed=seed)
        return list(TensorLoader((images, classes), sampler, augment=PAPER))

    for (a, i), (b, j), (c, _) in zip(batches(1), batches(1), batches(2), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(i, j)
        assert not torch.equal(a, c)
        assert not torch.equal(a, images[i])


# The distribution


def test_offsets_flips_and_angles_are_uniform():
    n = 90_000
    top, left, flip, angle = PAPER.draw(n, generator(11))
    for offsets in (top, left):
        counts = torch.bincount(offsets, minlength=9).double()
        assert len(counts) == 9
        # Chi-square of 8 degrees of freedom: above 26.1 with probability 0.001.
        assert float((counts - n / 9).square().sum() / (n / 9)) < 26.1
    joint = torch.bincount(top * 9 + left, minlength=81).double()
    assert float((joint - n / 81).square().sum() / (n / 81)) < 124.8  # 80 degrees, 0.001
    assert abs(float(flip.double().mean()) - 0.5) < 3.3 * 0.5 / math.sqrt(n)  # 0.001
    assert float(angle.abs().max()) <= 15
    # Kolmogorov and Smirnov's distance: above 1.95/√n with probability 0.001.
    uniform = (angle.sort().values + 15) / 30
    steps = torch.arange(n, dtype=torch.float64)
    distance = torch.maximum((steps + 1) / n - uniform, uniform - steps / n).max()
    assert float(distance) < 1.95 / math.sqrt(n)
    together = torch.stack([top.double(), left.double(), flip.double(), angle])
    off_diagonal = torch.corrcoef(together) - torch.eye(4)
    assert float(off_diagonal.abs().max()) < 4.5 / math.sqrt(n)


def from_another_random_generator(image, n):
    """The three transforms with draws of their own, from NumPy's generator."""
    import numpy as np

    chance = np.random.default_rng(3)
    draws = Draws(
        torch.from_numpy(chance.integers(0, 9, n)),
        torch.from_numpy(chance.integers(0, 9, n)),
        torch.from_numpy(chance.random(n) < 0.5),
        torch.from_numpy(chance.uniform(-15, 15, n)),
    )
    return augment_one_by_one(image.expand(n, -1, -1, -1), draws, 4)


def scores(ours, theirs):
    """For every pixel, the two means' and the two variances' difference in standard errors."""
    x, y = ours.double().flatten(1), theirs.double().flatten(1)
    n = len(x)
    moments = []
    for sample in (x, y):
        centred = sample - sample.mean(0)
        squares = centred.square()
        variance = squares.mean(0)
        moments.append((sample.mean(0), variance, squares.square().mean(0) - variance.square()))
    (m1, v1, k1), (m2, v2, k2) = moments
    return (m1 - m2) / ((v1 + v2) / n).sqrt(), (v1 - v2) / ((k1 + k2) / n).sqrt()


def test_mean_and_variance_of_every_pixel_are_those_of_the_three_transforms():
    n = 3000
    image = noise(1, c=1, seed=4)
    theirs = from_another_random_generator(image, n)
    ours = PAPER(image.expand(n, -1, -1, -1), generator(8))
    for score in scores(ours, theirs):
        # 1024 dependent normal scores: one above 5 has a probability below 0.001.
        assert float(score.abs().max()) < 5
        assert 0.8 < float(score.square().mean()) < 1.2
    for wrong in (
        Augmentation(padding=3),
        Augmentation(flip=False),
        Augmentation(degrees=13.0),
        Augmentation(padding=0),
    ):
        far = scores(wrong(image.expand(n, -1, -1, -1), generator(8)), theirs)
        assert max(float(score.abs().max()) for score in far) > 5, wrong


# Refusals


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("padding", (-1, 1.0, True, None, "4")),
        ("flip", (1, None, "yes")),
        ("degrees", (-1, 180.5, math.nan, math.inf, True, None, "15")),
    ],
)
def test_an_augmentation_refuses(field, values):
    for value in values:
        with pytest.raises(ValueError, match=rf"^{field} must be .*, got {value!r}$"):
            Augmentation(**{field: value})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.zeros(2, 3, 32, 32), "inputs must be uint8 .* got torch.float32"),
        (noise(1)[0], r"inputs must be uint8 of shape \[b, c, h, w\], got .*\(3, 32, 32\)"),
        ([1], "inputs must be uint8 .*, got list"),
        (noise(1, 1, 4, 9), "inputs must be images larger than the padding of 4.*got 4 x 9"),
        (noise(1, 1, 5, 8190), "of h . w . padding at most 8192, got 5 x 8190"),
    ],
)
def test_inputs_that_are_no_such_images_are_refused(inputs, message):
    with pytest.raises(ValueError, match=message) as error:
        PAPER(inputs, generator())
    assert "\n" not in str(error.value)
