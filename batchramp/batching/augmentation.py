"""Crop, flip and rotation of whole batches of images, without a Python call per image."""

from dataclasses import dataclass
from numbers import Integral, Real
from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor

__all__ = ["Augmentation", "Draws", "augment_one_by_one"]

# Positions are fixed-point numbers of so many fractional bits, as in Pillow's affine transform.
_BITS = 16

# Height, width and padding together: positions beyond would overflow int32.
_LARGEST = 8192

# Index maps are made for about so many pixels at a time, so that they stay in the cache.
_PIXELS = 1 << 16


@final
class Draws(NamedTuple):
    """What chance decides, for each image of a batch; CPU tensors of shape ``[b]``.

    Attributes:
        top, left: where the crop begins in the padded image, int64 in 0..2·padding.
        flip: whether left and right change places, bool.
        angle: of the rotation, counterclockwise, degrees, float64.
    """

    top: Tensor
    left: Tensor
    flip: Tensor
    angle: Tensor


@final
@dataclass(frozen=True)
class Augmentation:
    """Random crop of the padded image, horizontal flip, rotation about the centre, in this order.

    What falls in from outside is 0. The rotation takes the nearest pixel. The distribution is that
    of torchvision's RandomCrop(size, padding), RandomHorizontalFlip() and RandomRotation(degrees)
    on Pillow's images, one after the other; with the same draws so is every pixel, since positions
    are computed in Pillow's fixed-point numbers (`augment_one_by_one` is that twin).

    Args:
        padding: pixels of 0 on each side, an integer >= 0; offsets are uniform on 0..2·padding.
        flip: flip every image with probability 1/2.
        degrees: angles are uniform on ±degrees, in 0..180.

    Raises:
        ValueError: an argument out of range; when called, inputs that are not a uint8 batch of
            images, or images not larger than the padding.

    >>> images = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3)
    >>> generator = torch.Generator().manual_seed(1)
    >>> Augmentation(padding=1, degrees=0.0)(images, generator)[0, 0]
    tensor([[2, 3, 0],
            [5, 6, 0],
            [8, 9, 0]], dtype=torch.uint8)
    """

    padding: int = 4
    flip: bool = True
    degrees: float = 15.0

    def __post_init__(self) -> None:
        padding, degrees = self.padding, self.degrees
        if not isinstance(padding, Integral) or isinstance(padding, bool) or padding < 0:
            raise ValueError(f"padding must be an integer >= 0, got {padding!r}")
        if not isinstance(self.flip, bool):
            raise ValueError(f"flip must be True or False, got {self.flip!r}")
        number = isinstance(degrees, Real) and not isinstance(degrees, bool)
        if not number or not 0 <= degrees <= 180:
            raise ValueError(f"degrees must be a number in 0..180, got {degrees!r}")

    def __call__(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Images of ``inputs``, uint8 ``[b, c, h, w]``, changed by draws from the CPU generator."""
        self._check(inputs)
        return self.apply(inputs, self.draw(len(inputs), generator))

    def draw(self, b: int, generator: torch.Generator) -> Draws:
        """The draws for b images, from the CPU generator."""
        offsets = torch.randint(0, 2 * self.padding + 1, (2, b), generator=generator)
        if self.flip:
            flip = torch.randint(0, 2, (b,), generator=generator).bool()
        else:
            flip = torch.zeros(b, dtype=torch.bool)
        angle = torch.zeros(b, dtype=torch.float64)
        if self.degrees:
            angle.uniform_(-self.degrees, self.degrees, generator=generator)
        return Draws(offsets[0], offsets[1], flip, angle)

    def apply(self, inputs: Tensor, draws: Draws) -> Tensor:
        """Images of ``inputs``, uint8 ``[b, c, h, w]``, changed as drawn: one gather."""
        self._check(inputs)
        if not len(inputs):
            return inputs.clone()
        _, _, h, w = inputs.shape
        ramps = _ramps(draws, h, w, self.padding).to(inputs.device)
        # A GPU would wait for the launches of small pieces.
        piece = max(1, _PIXELS // (h * w)) if inputs.device.type == "cpu" else len(inputs)
        done = torch.empty_like(inputs, memory_format=torch.contiguous_format)
        sources = inputs.split(piece), done.split(piece), ramps.split(piece, dim=2)
        for some in zip(*sources, strict=True):
            _gather(*some)
        return done

    def _check(self, inputs: Tensor) -> None:
        if not isinstance(inputs, Tensor) or inputs.dtype != torch.uint8 or inputs.dim() != 4:
            found = (
                f"{inputs.dtype} of shape {tuple(inputs.shape)}"
                if isinstance(inputs, Tensor)
                else type(inputs).__name__
            )
            raise ValueError(f"inputs must be uint8 of shape [b, c, h, w], got {found}")
        h, w = inputs.shape[2:]
        if not self.padding < min(h, w) or h + w + self.padding > _LARGEST:
            raise ValueError(
                f"inputs must be images larger than the padding of {self.padding}, of h + w + "
                f"padding at most {_LARGEST}, got {h} x {w}"
            )


def _ramps(draws: Draws, h: int, w: int, padding: int) -> Tensor:
    """Where each output pixel comes from: int32 ``[2, 5, b]``, of rows and of columns.

    The source of output pixel (y, x) is least + (z >> 16) with z = start + down·y + right·x, and it
    lies inside both the crop and the image if 0 <= z <= last. The rotation gives the place u in the
    crop, rounded as Pillow does. A flip makes it w - 1 - u, and as -1 - (z >> 16) = (-1 - z) >> 16,
    that is a change of the three numbers; so is the crop, u + left - padding.
    """
    top, left, flip, angle = (each.numpy() for each in draws)
    radians = -np.deg2rad(angle % 360.0)
    cos, sin = np.cos(radians).round(15), np.sin(radians).round(15)
    y = h / 2 + sin * (w / 2) - cos * (h / 2) + (cos - sin) / 2
    x = w / 2 - cos * (w / 2) - sin * (h / 2) + (cos + sin) / 2
    steps = np.array([[y, cos, -sin], [x, sin, cos]])
    steps = np.floor(steps * (1 << _BITS) + 0.5).astype(np.int64)
    steps[1] *= 1 - 2 * flip
    steps[1, 0] += ((w << _BITS) - 1) * flip
    offset = np.array([top, left]) - padding
    least = np.maximum(offset, 0)
    steps[:, 0] += (offset - least) << _BITS
    last = (np.array([[h], [w]]) - abs(offset)) * (1 << _BITS) - 1
    return torch.from_numpy(np.stack([*steps.swapaxes(0, 1), last, least], 1).astype(np.int32))


def _gather(inputs: Tensor, out: Tensor, ramps: Tensor) -> None:
    b, c, h, w = inputs.shape
    index, inside = _sources(ramps, h, w)
    index = index.long().view(b, 1, h * w).expand(b, c, h * w)
    torch.gather(inputs.reshape(b, c, h * w), 2, index, out=out.view(b, c, h * w))
    out.bitwise_and_(inside.unsqueeze(1))


def _sources(ramps: Tensor, h: int, w: int) -> tuple[Tensor, Tensor]:
    """Of output pixels ``[b, h, w]``: the source's index, or 0; and all bits, or 0 if outside.

    In place where it can be: fresh memory costs more than the sums.
    """
    start, down, right, last, least = ramps.view(2, 5, ramps.shape[2], 1, 1).unbind(1)
    down = start + down * torch.arange(h, dtype=torch.int32, device=ramps.device).view(h, 1)
    right = right * torch.arange(w, dtype=torch.int32, device=ramps.device)
    rows, columns = (down[axis] + right[axis] for axis in (0, 1))
    # The sign bit, of all bits, says "outside": cheaper than comparisons and a where.
    outside = (last[0] - rows).bitwise_or_(rows)
    outside.bitwise_or_((last[1] - columns).bitwise_or_(columns))
    inside = outside.bitwise_right_shift_(31).bitwise_not_()
    index = columns.bitwise_right_shift_(_BITS)
    index.add_(rows.bitwise_right_shift_(_BITS), alpha=w).add_(least[1] + least[0] * w)
    return index.bitwise_and_(inside), inside.to(torch.uint8)


def augment_one_by_one(inputs: Tensor, draws: Draws, padding: int) -> Tensor:
    """`Augmentation.apply` image by image with Pillow, as torchvision does it: slow and obvious.

    Args:
        inputs: uint8 ``[b, c, h, w]`` with c = 1 or 3, on the CPU.
        draws: of `Augmentation.draw`.
        padding: of the crop.
    """
    from PIL import Image, ImageOps

    _, c, h, w = inputs.shape
    done = []
    for pixels, *drawn in zip(inputs, *(each.tolist() for each in draws), strict=True):
        top, left, flip, angle = drawn
        image = Image.fromarray((pixels[0] if c == 1 else pixels.permute(1, 2, 0)).numpy())
        image = ImageOps.expand(image, border=padding, fill=0)
        image = image.crop((left, top, left + w, top + h))
        if flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image = image.rotate(angle, Image.Resampling.NEAREST, expand=False, fillcolor=0)
        done.append(torch.from_numpy(np.array(image)).view(h, w, c).permute(2, 0, 1))
    return torch.stack(done)
