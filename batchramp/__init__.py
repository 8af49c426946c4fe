"""Batch size, learning rate and momentum scheduled together in PyTorch.

The names below are imported when first used, so that ``batchramp --help`` and a Plan alone do
not pay for importing torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from batchramp import schedules
    from batchramp.batching import ScheduledBatchSampler, TensorLoader
    from batchramp.measure import full_gradient_norm
    from batchramp.optim import QHM
    from batchramp.plan import Plan, Saving, Stage, scale_lr
    from batchramp.scheduler import ParamScheduler
    from batchramp.training import Task, fit

# Public name -> the module that defines it.
_HOME = {
    "Plan": "batchramp.plan",
    "Saving": "batchramp.plan",
    "Stage": "batchramp.plan",
    "scale_lr": "batchramp.plan",
    "QHM": "batchramp.optim",
    "ParamScheduler": "batchramp.scheduler",
    "ScheduledBatchSampler": "batchramp.batching",
    "TensorLoader": "batchramp.batching",
    "full_gradient_norm": "batchramp.measure",
    "Task": "batchramp.training",
    "fit": "batchramp.training",
}

_ROOMS = (
    "batching", "data", "experiments", "integrations", "measure", "models", "optim", "plan",
    "report", "scheduler", "schedules", "store", "task", "testing", "theory", "training",
)  # fmt: skip

__all__ = [
    "QHM",
    "ParamScheduler",
    "Plan",
    "Saving",
    "ScheduledBatchSampler",
    "Stage",
    "Task",
    "TensorLoader",
    "fit",
    "full_gradient_norm",
    "scale_lr",
    "schedules",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    if name in _ROOMS:
        return importlib.import_module(f"batchramp.{name}")
    raise AttributeError(f"module 'batchramp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
