"""Tasks by name: data, model and loss."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchramp.task import Task

__all__ = ["MODELS", "TASKS", "load", "training_samples"]

# Task -> training samples, known without reading the data.
TASKS = {"fashion-mini": 6_500, "fashion-mnist": 55_000, "quadratic": 256}

# Task -> the models it can be trained with, the usual one first.
MODELS = {
    "fashion-mini": ("mlp", "cnn"),
    "fashion-mnist": ("mlp", "cnn"),
    "quadratic": ("point",),
}


def training_samples(name: str) -> int:
    """n of a task.

    Raises:
        ValueError: no such task.
    """
    _check(name, "")
    return TASKS[name]


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
    import torch

    from batchramp import data, models
    from batchramp.task import Task

    images = data.fashion_mini() if name == "fashion-mini" else data.fashion_mnist()
    make: dict[str, Callable[[], torch.nn.Module]] = {"mlp": models.MLP, "cnn": models.SmallCNN}
    return Task(
        model=make[model],
        train=images.train,
        test=images.test,
        loss_fn=torch.nn.functional.cross_entropy,
        validation=images.validation,
        name=name,
        model_name=model,
    )


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
