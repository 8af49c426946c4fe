"""The constants of an optimisation problem that the convergence theorems speak of."""

import math
from dataclasses import dataclass, fields
from numbers import Real
from typing import final

__all__ = ["Problem"]


@final
@dataclass(frozen=True)
class Problem:
    """The constants of conditions (C1)-(C3) and Assumption 1 of Imaizumi and Iiduka (ACML 2025).

    Args:
        initial_gap: D0 = f(x_0) - f*, > 0.
        smoothness: L > 0, a Lipschitz constant of ∇f.
        variance: σ² >= 0, a bound on E||∇f_i - ∇f||² of a single sample's gradient.
        gradient_bound: G > 0, a bound on ||∇f_i||.
        initial_gradient_norm: ||∇f(x_0)||, where it is known.

    Raises:
        ValueError: a constant out of its range.

    >>> Problem(initial_gap=5.0, smoothness=2.0, variance=1.0, gradient_bound=3.0).smoothness
    2.0
    """

    initial_gap: float
    smoothness: float
    variance: float
    gradient_bound: float
    initial_gradient_norm: float | None = None

    def __post_init__(self) -> None:
        may_be_zero = ("variance", "initial_gradient_norm")
        for name in (f.name for f in fields(self)):
            value = getattr(self, name)
            if value is None and name == "initial_gradient_norm":
                continue
            number = float(value) if isinstance(value, Real) else math.nan
            in_range = number >= 0 if name in may_be_zero else number > 0
            if isinstance(value, bool) or not (in_range and math.isfinite(number)):
                allowed = ">= 0" if name in may_be_zero else "> 0"
                raise ValueError(f"{name} must be a finite number {allowed}, got {value!r}")
