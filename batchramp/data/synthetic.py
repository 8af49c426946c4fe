"""A nonconvex finite sum whose every constant is known, to hold measurements against."""

import math
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from batchramp.theory import Problem

__all__ = ["quadratic"]


def quadratic(
    n: int = 256, dimension: int = 10, radius: float = 1.0, *, seed: int = 0
) -> tuple[Tensor, Tensor, Problem]:
    """The problem f_i(x) = Σ_j x_j²/(1 + x_j²) + <z_i, x>, |z_i| = r, Σ z_i = 0.

    Quadratic near its minimum, nonconvex away from it; f is bounded, each f_i is not. With φ(t) =
    t²/(1 + t²): f = Σ φ(x_j), f* = 0, L = φ''(0) = 2 exactly, σ² = r² exactly (at every x), and
    max|φ'| = 9/(8√3) gives G = √d · 9/(8√3) + r.

    Args:
        n: number of f_i, even: the z_i come in pairs ±z.
        dimension: d >= 1.
        radius: r > 0.
        seed: an integer >= 0, of the directions of the z_i.

    Returns:
        ``(z, x0, problem)``: z of shape ``[n, d]`` and the start x0 = (1, ..., 1), float64, and the
        constants, with D0 = f(x0) = d/2.

    Raises:
        ValueError: an odd or non-positive n, or a dimension, radius or seed out of range.

    >>> z, x0, problem = quadratic()
    >>> z.shape, problem.smoothness, problem.variance, problem.initial_gap
    (torch.Size([256, 10]), 2.0, 1.0, 5.0)
    """
    if not _is(Integral, n) or n < 2 or n % 2:
        raise ValueError(f"n must be an even integer >= 2, got {n!r}")
    if not _is(Integral, dimension) or dimension < 1:
        raise ValueError(f"dimension must be an integer >= 1, got {dimension!r}")
    if not _is(Real, radius) or not 0 < radius < math.inf:
        raise ValueError(f"radius must be a finite number > 0, got {radius!r}")
    if not _is(Integral, seed) or seed < 0:
        raise ValueError(f"seed must be an integer >= 0, got {seed!r}")
    half = np.random.default_rng(seed).standard_normal((n // 2, dimension))
    half *= radius / np.linalg.norm(half, axis=1, keepdims=True)
    z = torch.tensor(np.concatenate([half, -half]))
    x0 = torch.ones(dimension, dtype=torch.float64)
    problem = Problem(
        initial_gap=dimension / 2,
        smoothness=2.0,
        variance=radius**2,
        gradient_bound=math.sqrt(dimension) * 9 / (8 * math.sqrt(3)) + radius,
        initial_gradient_norm=math.sqrt(dimension) / 2,
    )
    return z, x0, problem


def _is(kind: type, value: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
