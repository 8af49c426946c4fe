"""The point x of the synthetic problem, as a module."""

from typing import final

from torch import Tensor, nn

__all__ = ["Quadratic"]


@final
class Quadratic(nn.Module):
    """Maps z of shape ``[b, d]`` to the b values f_i(x) = Σ_j x_j²/(1 + x_j²) + <z_i, x>."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.x = nn.Parameter(start.clone())

    def forward(self, z: Tensor) -> Tensor:
        squares = self.x.square()
        return (squares / (1 + squares)).sum() + z @ self.x
