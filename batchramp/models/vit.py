"""A vision transformer for small data sets of small images."""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from batchramp.models.classifiers import check_widths

__all__ = ["ViT", "vit_micro", "vit_tiny"]


@final
class ViT(nn.Module):
    """A vision transformer with shifted patch tokenisation and locality self-attention.

    Lee, Lee and Song, "Vision Transformer for Small-Size Datasets" (2021), sections 3.1 and 3.2. An
    image is laid over its four diagonal shifts by half a patch, cut into patches, and each patch
    becomes a token by LayerNorm and a linear map. Blocks are x + attention(norm(x)), then
    x + mlp(norm(x)), in training each left out for some samples (stochastic depth; Huang et al.,
    ECCV 2016). The class token's output gives the logits.

    Starts as in the authors' code: linear maps normal as Glorot and Bengio have it, biases 0, class
    token and positions standard normal. Theirs has a temperature for each head and the same rate of
    stochastic depth in all blocks; here a layer has one, as in the paper, and the rate grows
    linearly from 0 in the first block to ``rate`` in the last.

    Args:
        channels: of an image.
        classes: outputs.
        image: height and width of an image, a multiple of ``patch``.
        patch: height and width of a patch, >= 2.
        width: of a token, a multiple of ``heads``.
        depth: blocks.
        heads: of attention.
        ratio: hidden width of the mlp over ``width``.
        rate: of stochastic depth in the last block, 0 <= rate < 1.

    Raises:
        ValueError: a number outside its range; at the call, images of another shape.

    Maps ``[b, channels, image, image]`` to logits ``[b, classes]``.

    >>> model = ViT(channels=1, classes=10, image=8, patch=4, width=6, depth=2, heads=3)
    >>> model(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 10])
    """

    def __init__(
        self,
        channels: int = 3,
        classes: int = 100,
        *,
        image: int = 32,
        patch: int = 4,
        width: int = 192,
        depth: int = 9,
        heads: int = 12,
        ratio: int = 2,
        rate: float = 0.1,
    ) -> None:
        super().__init__()
        check_widths(channels=channels, classes=classes, image=image, patch=patch, width=width)
        check_widths(depth=depth, heads=heads, ratio=ratio)
        if patch < 2 or image % patch != 0:
            raise ValueError(
                f"image must be a multiple of patch >= 2, got image {image}, patch {patch}"
            )
        if width % heads != 0:
            raise ValueError(f"width must be a multiple of heads, got width {width}, heads {heads}")
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
            raise ValueError(f"rate must be a number >= 0 and below 1, got {rate!r}")
        self.images = (channels, image, image)
        self.patch = patch
        features = 5 * channels * patch**2
        tokens = (image // patch) ** 2 + 1
        self.embedding = nn.Sequential(nn.LayerNorm(features), nn.Linear(features, width))
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, tokens, width))
        rates = [rate * block / max(1, depth - 1) for block in range(depth)]
        self.blocks = nn.Sequential(*(_Block(tokens, width, heads, ratio, r) for r in rates))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        if tuple(images.shape[1:]) != self.images:
            expected = ", ".join(map(str, self.images))
            raise ValueError(f"images must be [b, {expected}], got {list(images.shape)}")
        x = self.embedding(_patches(_shifted(images, self.patch // 2), self.patch))
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.positions
        return self.head(self.norm(self.blocks(x)[:, 0]))


class _Block(nn.Module):
    def __init__(self, tokens: int, width: int, heads: int, ratio: int, rate: float) -> None:
        super().__init__()
        attention = LocalityAttention(tokens, width, heads)
        self.attention = nn.Sequential(nn.LayerNorm(width), attention, StochasticDepth(rate))
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, ratio * width),
            nn.GELU(),
            nn.Linear(ratio * width, width),
            StochasticDepth(rate),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.mlp(x)


@final
class LocalityAttention(nn.Module):
    """Self-attention in which no token attends to itself, with a learned temperature.

    softmax(mask(q k^T) * scale) v for each head, the mask -inf on the diagonal and ``scale``, the
    inverse temperature, a parameter that starts at head_dim**-0.5. Lee, Lee and Song (2021),
    section 3.2. Maps ``[b, tokens, width]`` to the same shape.
    """

    def __init__(self, tokens: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = nn.Parameter(torch.tensor((width // heads) ** -0.5))
        self.queries_keys_values = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width)
        self.diagonal: Tensor
        self.register_buffer("diagonal", torch.eye(tokens, dtype=torch.bool), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.queries_keys_values(x).unflatten(2, (3, self.heads, -1))
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind()  # each [b, heads, tokens, head_dim]
        scores = (q * self.scale) @ k.transpose(2, 3)
        weights = scores.masked_fill(self.diagonal, -torch.inf).softmax(dim=3)
        return self.output((weights @ v).transpose(1, 2).flatten(2))


@final
class StochasticDepth(nn.Module):
    """Zero for a sample with probability ``rate``, else x / (1 - rate); x itself in eval mode."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        drawn = torch.rand(len(x), *[1] * (x.ndim - 1), dtype=x.dtype, device=x.device)
        return x * (drawn >= self.rate) / (1 - self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


def _shifted(images: Tensor, by: int) -> Tensor:
    """The images and their four diagonal shifts, zeros moving in: [b, 5 channels, h, w]."""
    h, w = images.shape[2:]
    padded = F.pad(images, (by, by, by, by))
    shifts = [padded[:, :, i : i + h, j : j + w] for i in (0, 2 * by) for j in (0, 2 * by)]
    return torch.cat([images, *shifts], dim=1)


def _patches(images: Tensor, size: int) -> Tensor:
    """Square patches row by row, each flattened: [b, patches, size * size * channels]."""
    cut = images.unflatten(3, (-1, size)).unflatten(2, (-1, size))
    return cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def vit_tiny(channels: int = 3, classes: int = 100, image: int = 32) -> ViT:
    """ViT-Tiny for images of 32x32: patches of 4, width 192, 9 blocks of 12 heads.

    Has 2,747,149 parameters with 3 channels and 100 classes.

    >>> sum(p.numel() for p in vit_tiny().parameters())
    2747149
    """
    return ViT(channels, classes, image=image)


def vit_micro(channels: int = 1, classes: int = 10, image: int = 28) -> ViT:
    """Patches of 7, width 32, 3 blocks of 4 heads, 34,679 parameters, to train on a CPU.

    >>> sum(p.numel() for p in vit_micro().parameters())
    34679
    """
    return ViT(channels, classes, image=image, patch=7, width=32, depth=3, heads=4)
