"""Small classifiers of 28x28 grey images."""

from numbers import Integral
from typing import Any, final

from torch import Tensor, nn

__all__ = ["MLP", "SmallCNN"]


@final
class MLP(nn.Module):
    """784-128-128-10 with ReLU: 118,282 parameters at the default widths.

    Args:
        inputs: features of an image, flattened.
        hidden: width of both hidden layers.
        classes: outputs.

    Raises:
        ValueError: a width that is not an integer >= 1.

    Maps ``[b, ...]`` of ``inputs`` features to logits ``[b, classes]``.
    """

    def __init__(self, inputs: int = 784, hidden: int = 128, classes: int = 10) -> None:
        super().__init__()
        check_widths(inputs=inputs, hidden=hidden, classes=classes)
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(inputs, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


@final
class SmallCNN(nn.Module):
    """Three 3x3 convolutions with BatchNorm, two of them halving the image, then one linear map.

    Has 24,058 parameters at the default widths.

    Args:
        channels: of an image.
        width: channels after the first convolution; each of the two others doubles them.
        classes: outputs.

    Raises:
        ValueError: a width that is not an integer >= 1.

    Maps ``[b, channels, h, w]`` to logits ``[b, classes]``.
    """

    def __init__(self, channels: int = 1, width: int = 16, classes: int = 10) -> None:
        super().__init__()
        check_widths(channels=channels, width=width, classes=classes)
        self.features = nn.Sequential(
            _block(channels, width, stride=1),
            _block(width, 2 * width, stride=2),
            _block(2 * width, 4 * width, stride=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(4 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def _block(inputs: int, outputs: int, *, stride: int) -> nn.Sequential:
    # BatchNorm subtracts the mean, so a bias before it would do nothing.
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def check_widths(**widths: Any) -> None:
    """Refuses what is not an integer >= 1."""
    for name, value in widths.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be an integer >= 1, got {value!r}")
