"""Data: readers of files, the bundled set, CIFAR, and a synthetic problem with known constants."""

from batchramp.data.cifar import (
    CIFAR10_NORMALISE,
    CIFAR100_NORMALISE,
    Normalise,
    cifar10,
    cifar100,
    fetch_cifar,
    read_cifar,
)
from batchramp.data.fashion_mnist import (
    ImageSet,
    fashion_mini,
    fashion_mnist,
    fetch_fashion_mnist,
)
from batchramp.data.idx import read_idx
from batchramp.data.synthetic import quadratic

__all__ = [
    "CIFAR10_NORMALISE",
    "CIFAR100_NORMALISE",
    "ImageSet",
    "Normalise",
    "cifar10",
    "cifar100",
    "fashion_mini",
    "fashion_mnist",
    "fetch_cifar",
    "fetch_fashion_mnist",
    "quadratic",
    "read_cifar",
    "read_idx",
]
