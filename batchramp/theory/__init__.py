"""The theory: whether a Plan converges, how fast, and what limits it."""

from batchramp.theory.bound import MEANINGS, Bound, Condition
from batchramp.theory.bounds import (
    Curve,
    auxiliary,
    best_bound,
    bound_curve,
    theorem2,
    theorem4,
)
from batchramp.theory.problem import Problem
from batchramp.theory.layout import Segments, segments

__all__ = [
    "MEANINGS",
    "Bound",
    "Condition",
    "Curve",
    "Problem",
    "Segments",
    "auxiliary",
    "best_bound",
    "bound_curve",
    "segments",
    "theorem2",
    "theorem4",
]
