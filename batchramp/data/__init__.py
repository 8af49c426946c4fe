"""Data: readers of files, the bundled set, and a synthetic problem with known constants."""

from batchramp.data.fashion_mnist import ImageSet, fashion_mini, fashion_mnist
from batchramp.data.idx import read_idx
from batchramp.data.synthetic import quadratic

__all__ = ["ImageSet", "fashion_mini", "fashion_mnist", "quadratic", "read_idx"]
