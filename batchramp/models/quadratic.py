"""The point x of the synthetic problem, as a module."""

from typing import final

from torch import Tensor, nn

__all__ = ["Quadratic"]


@final
class Quadratic(nn.Module):
    """Maps z of shape ``[b, d]`` to the b values f_i(x) = Σ_j x_j²/(1 + x_j²) + <z_i, x>.

    Args:
        start: the first x, a floating-point tensor of shape ``[d]``.

    Raises:
        ValueError: any other start.
    """

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        tensor = isinstance(start, Tensor)
        if not tensor or not start.is_floating_point() or start.ndim != 1:
            found = f"{start.dtype} of shape {tuple(start.shape)}" if tensor else start
            raise ValueError(f"start must be a floating-point tensor of shape [d], got {found}")
        self.x = nn.Parameter(start.clone())

    def forward(self, z: Tensor) -> Tensor:
        squares = self.x.square()
        return (squares / (1 + squares)).sum() + z @ self.x
