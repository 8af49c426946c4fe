"""Residual networks for small images."""

from collections.abc import Sequence
from typing import final

from torch import Tensor, nn
from torch.nn import functional as F

from batchramp.models.classifiers import check_widths

__all__ = ["ResNet", "resnet18", "small_resnet"]


@final
class ResNet(nn.Module):
    """A residual network with a 3x3 stem and no pooling before its blocks, for images of 32x32.

    A block is y = ReLU(BN(conv(ReLU(BN(conv(x))))) + x), both convolutions 3x3; where it halves the
    image or doubles the channels, x goes through a 1x1 convolution with BatchNorm first. Each stage
    after the first halves the image and doubles the channels. He, Zhang, Ren and Sun, "Deep
    residual learning for image recognition" (CVPR 2016), section 4.2, with projections.

    Convolutions start as in He et al. (ICCV 2015): normal with variance 2/fan_out. BatchNorm starts
    at 1 and 0, the last linear map as torch has it.

    Args:
        channels: of an image.
        classes: outputs.
        width: channels of the first stage.
        blocks: the number of blocks in each stage.

    Raises:
        ValueError: a width or number of blocks that is not an integer >= 1; at the call, images of
            another shape or too small to be halved in each stage after the first.

    Maps ``[b, channels, h, w]`` to logits ``[b, classes]``.

    >>> import torch
    >>> ResNet(channels=1, classes=10, width=4, blocks=(1, 2))(torch.zeros(3, 1, 9, 8)).shape
    torch.Size([3, 10])
    """

    def __init__(
        self,
        channels: int = 3,
        classes: int = 100,
        width: int = 64,
        blocks: Sequence[int] = (2, 2, 2, 2),
    ) -> None:
        super().__init__()
        check_widths(channels=channels, classes=classes, width=width)
        if not isinstance(blocks, tuple | list) or len(blocks) == 0:
            raise ValueError(f"blocks must be a tuple of 1 or more numbers, got {blocks!r}")
        check_widths(**{f"blocks[{stage}]": count for stage, count in enumerate(blocks)})
        self.channels = channels
        self.smallest = 2 ** (len(blocks) - 1)
        self.stem = _convolution(channels, width, 3)
        self.norm = nn.BatchNorm2d(width)
        stages: list[nn.Module] = []
        inputs = width
        for stage, count in enumerate(blocks):
            outputs = width * 2**stage
            for number in range(count):
                stride = 2 if stage > 0 and number == 0 else 1
                stages.append(_Block(inputs, outputs, stride))
                inputs = outputs
        self.blocks = nn.Sequential(*stages)
        self.head = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        shape = tuple(images.shape)
        if len(shape) != 4 or shape[1] != self.channels or min(shape[2:]) < self.smallest:
            raise ValueError(
                f"images must be [b, {self.channels}, h, w] with h, w >= {self.smallest}, got "
                f"{list(shape)}"
            )
        x = F.relu(self.norm(self.stem(images)), inplace=True)
        return self.head(self.blocks(x).mean((2, 3)))


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = _convolution(inputs, outputs, 3, stride)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = _convolution(outputs, outputs, 3)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = _convolution(inputs, outputs, 1, stride)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        # In place, for what BatchNorm and addition return is not needed by their gradients: half
        # the memory of an activation.
        y = F.relu(self.first_norm(self.first(x)), inplace=True)
        return F.relu(self.second_norm(self.second(y)) + self.shortcut(x), inplace=True)


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    # BatchNorm subtracts the mean, so a bias before it would do nothing.
    return nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False)


def resnet18(channels: int = 3, classes: int = 100) -> ResNet:
    """ResNet-18 for images of 32x32: 11,220,132 parameters with 100 classes, 11,173,962 with 10.

    >>> sum(p.numel() for p in resnet18().parameters())
    11220132
    """
    return ResNet(channels, classes)


def small_resnet(channels: int = 1, classes: int = 10) -> ResNet:
    """One block each of 4, 8, 16 and 32 channels, 19,830 parameters, to train on a CPU.

    >>> sum(p.numel() for p in small_resnet().parameters())
    19830
    """
    return ResNet(channels, classes, width=4, blocks=(1, 1, 1, 1))
