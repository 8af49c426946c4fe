"""Tasks by name: data, model and loss."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from batchramp.task import Task

__all__ = ["MODELS", "TASKS", "fetch", "load", "training_samples"]

# Task -> training samples, known without reading the data. CIFAR has no validation part of its own:
# what is tuned is tuned on the last 5,000 training images, and trained on the others.
TASKS = {
    "fashion-mini": 6_500,
    "fashion-mnist": 55_000,
    "cifar10": 50_000,
    "cifar10-tuning": 45_000,
    "cifar100": 50_000,
    "cifar100-tuning": 45_000,
    "quadratic": 256,
}

_GREY = ("mlp", "cnn", "small_resnet", "vit_micro")
_COLOUR = ("resnet18", "vit_tiny", "small_resnet")

# Task -> the models it can be trained with, the usual one first.
MODELS = {
    "fashion-mini": _GREY,
    "fashion-mnist": _GREY,
    "cifar10": _COLOUR,
    "cifar10-tuning": _COLOUR,
    "cifar100": _COLOUR,
    "cifar100-tuning": _COLOUR,
    "quadratic": ("point",),
}

_VALIDATION = 5_000


def training_samples(name: str) -> int:
    """n of a task.

    Raises:
        ValueError: no such task.
    """
    _check(name, "")
    return TASKS[name]


def fetch(name: str) -> None:
    """Has the files of a task's data set on this machine: downloads what is missing.

    Raises:
        ValueError: no such task, or files that are missing and cannot be fetched.
    """
    from batchramp import data

    _check(name, "")
    if name.startswith("cifar"):
        data.fetch_cifar(100 if name.startswith("cifar100") else 10)
    elif name == "fashion-mnist":
        data.fetch_fashion_mnist()


def load(name: str, model: str = "") -> "Task":
    """The task of that name.

    Args:
        name: a key of `TASKS`.
        model: one of `MODELS` for it; "" for the usual one.

    Raises:
        ValueError: no such task or model, or its data are missing or damaged.

    >>> load("quadratic").n
    256
    """
    model = _check(name, model)
    if name == "quadratic":
        return _quadratic()
    return _cifar(name, model) if name.startswith("cifar") else _fashion(name, model)


def _fashion(name: str, model: str) -> "Task":
    import torch

    from batchramp import data
    from batchramp.task import Task

    images = data.fashion_mini() if name == "fashion-mini" else data.fashion_mnist()
    return Task(
        model=_maker(model, channels=1, classes=10),
        train=images.train,
        test=images.test,
        loss_fn=torch.nn.functional.cross_entropy,
        validation=images.validation,
        name=name,
        model_name=model,
    )


def _cifar(name: str, model: str) -> "Task":
    """As the paper trains: crop, flip and, on CIFAR-100, rotation by at most 15 degrees."""
    import torch

    from batchramp import data
    from batchramp.batching import Augmentation
    from batchramp.task import Task

    hundred = name.startswith("cifar100")
    validation = _VALIDATION if name.endswith("-tuning") else 0
    images = (data.cifar100 if hundred else data.cifar10)(validation=validation)
    return Task(
        model=_maker(model, channels=3, classes=100 if hundred else 10),
        train=images.train,
        test=images.test,
        loss_fn=torch.nn.functional.cross_entropy,
        validation=images.validation if validation else None,
        augment=Augmentation(degrees=15.0 if hundred else 0.0),
        prepare=data.CIFAR100_NORMALISE if hundred else data.CIFAR10_NORMALISE,
        name=name,
        model_name=model,
    )


def _maker(model: str, *, channels: int, classes: int) -> "Callable[[], nn.Module]":
    from batchramp import models

    if model == "mlp":
        return models.MLP
    make = getattr(models, "SmallCNN" if model == "cnn" else model)
    return functools.partial(make, channels=channels, classes=classes)


def _quadratic() -> "Task":
    from batchramp.data import quadratic
    from batchramp.models import Quadratic
    from batchramp.task import Task

    z, x0, problem = quadratic()
    return Task(
        model=lambda: Quadratic(x0),
        train=(z, z.new_zeros(len(z))),
        test=None,
        loss_fn=lambda values, _: values.mean(),
        name="quadratic",
        model_name="point",
        problem=problem,
    )


def _check(name: str, model: str) -> str:
    if name not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {name!r}")
    allowed = MODELS[name]
    if model and model not in allowed:
        raise ValueError(f"model of task {name} must be one of {', '.join(allowed)}, got {model!r}")
    return model or allowed[0]
