"""Batches of scheduled sizes: which samples form them, and in-memory data cut along them."""

from batchramp.batching.sampler import ScheduledBatchSampler
from batchramp.batching.tensors import TensorLoader

__all__ = ["ScheduledBatchSampler", "TensorLoader"]
