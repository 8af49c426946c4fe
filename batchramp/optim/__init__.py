"""Optimizers."""

from batchramp.optim.qhm import QHM

__all__ = ["QHM"]
