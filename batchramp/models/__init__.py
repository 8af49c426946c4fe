"""Models: plain modules."""

from batchramp.models.classifiers import MLP, SmallCNN
from batchramp.models.quadratic import Quadratic

__all__ = ["MLP", "Quadratic", "SmallCNN"]
