"""What is trained on what."""

import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from batchramp.batching import ScheduledBatchSampler, TensorLoader
from batchramp.measure import evaluate, evaluate_with_gradient, gradient_bound
from batchramp.theory import Problem

__all__ = ["Task"]

Data = tuple[Tensor, Tensor] | Dataset[Any]

# Samples at a time where nothing depends on it but speed and memory; fewer of those of more than
# 1000 numbers, for the full gradient keeps every activation: of an image of 3 * 32 * 32 in a
# ResNet-18 about 5 MB.
_MEASURED_AT_ONCE = 1000
_BIG_AT_ONCE = 128
_AT_ONCE = 4096
# What changes a run's numbers without changing what is trained on what.
_OPTIONS = ("channels_last", "autocast", "compiled")


@final
@dataclass(frozen=True)
class Task:
    """What is trained on what.

    Args:
        model: makes a new model, ``() -> nn.Module``; called under the run's seed.
        train: a pair of tensors ``(inputs, targets)`` of the same length, or a map-style Dataset of
            such pairs.
        test: likewise, or None.
        loss_fn: ``loss_fn(model(inputs), targets)``, the mean loss over a batch.
        validation: as test. What is tuned is tuned on it.
        augment: ``augment(inputs, generator)`` on whole training batches (pairs of tensors only).
        prepare: ``prepare(inputs)``, what a batch of inputs goes through on the device before the
            model, after ``augment``, in training and in measuring: bytes to normalised floats.
        channels_last: model and batches of images in that memory format.
        autocast: bfloat16 where `torch.autocast` allows it, in the forward pass and the loss of
            training steps; weights, gradients and what is measured stay as they are.
        compiled: training steps through `torch.compile`. A new batch size compiles nothing, save 1
            and, for convolutions on a CPU, the first from 16 on. What is measured is not compiled.
        name, model_name: what files call the task and the model.
        device: where to train, "cpu" or "cuda:0".
        problem: the constants of the training loss from the model's start, where they are known
            exactly: reports then draw the bound beside what was measured.

    Raises:
        ValueError: data of another kind, empty or of unequal lengths, or ``augment`` with a
            Dataset, which would ignore it.

    ``channels_last``, ``autocast`` and ``compiled`` change numbers in their last digits (autocast:
    in the third): a run begun with others is not resumed.

    >>> import torch
    >>> from batchramp import Plan, Task, fit
    >>> x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    >>> task = Task(
    ...     model=lambda: torch.nn.Linear(3, 1),
    ...     train=(x, x.sum(1, keepdim=True)),
    ...     test=None,
    ...     loss_fn=torch.nn.functional.mse_loss,
    ... )
    >>> plan = Plan(epochs=20, batch_size=8, lr=0.1, beta=0.9, gamma=0.7)
    >>> fit(task, plan, seed=0).rows[-1]["train_loss"] < 0.01
    True
    """

    model: Callable[[], nn.Module]
    train: Data
    test: Data | None
    loss_fn: Callable[[Any, Any], Tensor]
    validation: Data | None = None
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None
    name: str = "custom"
    model_name: str = "custom"
    device: str = "cpu"
    problem: Problem | None = None
    prepare: Callable[[Any], Tensor] | None = None
    channels_last: bool = False
    autocast: bool = False
    compiled: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.model, nn.Module):
            raise ValueError(
                "model must make a new model, as in lambda: Net(), for every run has its own, got "
                f"a {type(self.model).__name__}"
            )
        for name in ("model", "loss_fn"):
            if not callable(getattr(self, name)):
                raise ValueError(
                    f"{name} must be callable, got {type(getattr(self, name)).__name__}"
                )
        for name in ("train", "validation", "test"):
            data = getattr(self, name)
            if name == "train" or data is not None:
                _check_data(name, data)
        if self.augment is not None and not isinstance(self.train, tuple):
            raise ValueError(
                "augment goes with a pair of tensors, got a Dataset: augment in its __getitem__"
            )
        if not isinstance(self.device, str):
            raise ValueError(f"device must be a string such as 'cuda:0', got {self.device!r}")
        if self.prepare is not None and not callable(self.prepare):
            raise ValueError(f"prepare must be callable, got {type(self.prepare).__name__}")
        for name in _OPTIONS:
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")

    @property
    def n(self) -> int:
        """Training samples."""
        return len(self.train[0]) if isinstance(self.train, tuple) else len(self.train)  # type: ignore[arg-type]

    @property
    def options(self) -> dict[str, bool]:
        """Those of channels_last, autocast and compiled that are on; see `batchramp.store`."""
        return {name: True for name in _OPTIONS if getattr(self, name)}

    def fingerprint(self) -> dict[str, int | None]:
        """A CRC-32 of the data of each part, by which a run that goes on knows them again.

        None for a part that the task has not, and for a Dataset, whose samples may be drawn at
        random. About a second for three gigabytes.

        >>> import torch
        >>> from dataclasses import replace
        >>> x = torch.zeros(2, 3)
        >>> task = Task(model=lambda: torch.nn.Linear(3, 1), train=(x, x), test=None, loss_fn=max)
        >>> task.fingerprint()["train"] != replace(task, train=(x, x + 1)).fingerprint()["train"]
        True
        """
        parts = {name: getattr(self, name) for name in ("train", "validation", "test")}
        return {
            name: _crc32(*data) if isinstance(data, tuple) else None for name, data in parts.items()
        }

    def make(self) -> nn.Module:
        """A new model, on its device and in its memory format."""
        model = self.model().to(self.device)
        if self.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model

    def for_training(self, model: nn.Module) -> nn.Module:
        """What to call, and to put in train mode, in training steps; the parameters are shared."""
        return torch.compile(model) if self.compiled else model  # type: ignore[return-value]

    def loss(self, model: nn.Module, inputs: Any, targets: Any) -> Tensor:
        """The loss that a training step lowers.

        Args:
            model: from `for_training`.
            inputs, targets: as `batches` yields them.
        """
        inputs, targets = self.prepared(inputs), targets.to(self.device)
        if self.compiled and len(inputs) > 1:  # torch compiles for 1 apart, whatever it is told
            torch._dynamo.mark_dynamic(inputs, 0)
        kind = torch.device(self.device).type
        with torch.autocast(kind, torch.bfloat16) if self.autocast else nullcontext():
            return self.loss_fn(model(inputs), targets)

    def prepared(self, inputs: Any) -> Any:
        """A batch of inputs as the model takes them: on the device, prepared, in its format."""
        inputs = inputs.to(self.device)
        if self.prepare is not None:
            inputs = self.prepare(inputs)
        if self.channels_last and inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return inputs

    def batches(self, sampler: ScheduledBatchSampler) -> Iterable[Any]:
        """The training batches that ``sampler`` decides."""
        if isinstance(self.train, tuple):
            return TensorLoader(self.train, sampler, augment=self.augment, device=self.device)
        return DataLoader(self.train, batch_sampler=sampler)

    def in_order(self, part: str) -> Iterable[tuple[Tensor, Tensor]] | None:
        """All of "train", "validation" or "test", clean, unshuffled and prepared; None if none."""
        if part not in ("train", "validation", "test"):
            raise ValueError(f"part must be train, validation or test, got {part!r}")
        data: Data | None = getattr(self, part)
        if data is None:
            return None
        if isinstance(data, tuple):
            at_once = _BIG_AT_ONCE if data[0][0].numel() > 1000 else _MEASURED_AT_ONCE
            batches = zip(*(tensor.split(at_once) for tensor in data), strict=True)
        else:
            # With its own generator: a loader else draws from torch's, and measuring must not.
            own = torch.Generator()
            batches = iter(DataLoader(data, batch_size=_MEASURED_AT_ONCE, generator=own))
        return ((self.prepared(inputs), targets.to(self.device)) for inputs, targets in batches)

    def measure(
        self,
        model: nn.Module,
        *,
        constants: bool = False,
        previous: Mapping[str, Tensor] | None = None,
    ) -> dict[str, float | None]:
        """What a run records of ``model``: clean data, network in eval mode, left as found.

        Args:
            model: on the task's device.
            constants: also the extremes over single training samples (`measure.gradient_bound`),
                which take about as long as an epoch.
            previous: the parameters by name of an earlier point, for the secants among those.

        Returns:
            Losses, accuracies and the full-gradient norm, by the columns of `batchramp.store`; None
            where the task has no such set. Numbers need not be finite.
        """
        train, full = evaluate_with_gradient(model, self.loss_fn, self.in_order("train") or ())
        measured: dict[str, float | None] = {
            "train_loss": train.loss,
            "train_accuracy": train.accuracy,
            "at_chance": train.at_chance,
        }
        for part in ("validation", "test"):
            data = self.in_order(part)
            result = None if data is None else evaluate(model, self.loss_fn, data)
            measured[f"{part}_loss"] = None if result is None else result.loss
            measured[f"{part}_accuracy"] = None if result is None else result.accuracy
        measured["full_gradient_norm"] = full.norm
        if constants:
            train = self.in_order("train") or ()
            found = gradient_bound(model, self.loss_fn, train, previous=previous)
            measured["max_loss"] = found.max_loss
            measured["max_gradient_norm"] = found.max_gradient_norm
            measured["max_secant"] = found.max_smoothness
            measured["proposition9"] = found.proposition9
        return measured


def _crc32(*tensors: Tensor) -> int:
    """Of shapes, dtypes and numbers; part by part, so that nothing large is copied."""
    found = 0
    for tensor in tensors:
        found = zlib.crc32(f"{tensor.dtype}{tuple(tensor.shape)}".encode(), found)
        for part in tensor.detach().split(_AT_ONCE):
            own = part.cpu().resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8)
            found = zlib.crc32(own.numpy().data, found)
    return found


def _check_data(name: str, data: Any) -> None:
    if isinstance(data, tuple):
        shapes = [tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in data]
        tensors = len(data) == 2 and all(isinstance(x, Tensor) and x.ndim > 0 for x in data)
        if not tensors or len(data[0]) != len(data[1]) or len(data[0]) == 0:
            raise ValueError(
                f"{name} must be two tensors of the same length >= 1 or a Dataset, got {shapes}"
            )
        return
    # A list of two tensors would pass for a Dataset of two samples.
    map_style = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if not map_style or isinstance(data, Tensor | dict | str) or len(data) == 0:
        kind = type(data).__name__
        raise ValueError(
            f"{name} must be two tensors of the same length >= 1 or a map-style Dataset of at "
            f"least 1 sample, got {kind}"
        )
    if isinstance(data, list) and isinstance(data[0], Tensor):
        raise ValueError(f"{name} must be a tuple of two tensors or a Dataset, got a list")
