"""What is measured on a model, one quantity a file."""

from batchramp.measure.evaluation import Evaluation, evaluate, evaluate_with_gradient
from batchramp.measure.full_gradient import FullGradient, full_gradient, full_gradient_norm
from batchramp.measure.gradient_bound import GradientBound, gradient_bound
from batchramp.measure.gradient_noise import GradientNoise, gradient_noise
from batchramp.measure.smoothness import SecantTrajectory, Smoothness, secant, smoothness

__all__ = [
    "Evaluation",
    "FullGradient",
    "GradientBound",
    "GradientNoise",
    "SecantTrajectory",
    "Smoothness",
    "evaluate",
    "evaluate_with_gradient",
    "full_gradient",
    "full_gradient_norm",
    "gradient_bound",
    "gradient_noise",
    "secant",
    "smoothness",
]
