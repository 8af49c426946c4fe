"""What is measured on a model, one quantity a file."""

from batchramp.measure.evaluation import Evaluation, evaluate
from batchramp.measure.full_gradient import FullGradient, full_gradient_norm

__all__ = ["Evaluation", "FullGradient", "evaluate", "full_gradient_norm"]
