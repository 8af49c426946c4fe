"""Batches of scheduled sizes: which samples form them, in-memory data cut along them, augmented."""

from batchramp.batching.accumulate import Accumulated, accumulate, split_batch
from batchramp.batching.augmentation import Augmentation
from batchramp.batching.sampler import ScheduledBatchSampler
from batchramp.batching.stream import ScheduledStream, stream
from batchramp.batching.tensors import TensorLoader

__all__ = [
    "Accumulated",
    "Augmentation",
    "ScheduledBatchSampler",
    "ScheduledStream",
    "TensorLoader",
    "accumulate",
    "split_batch",
    "stream",
]
