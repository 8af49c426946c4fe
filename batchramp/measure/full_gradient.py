"""The full gradient ∇f(x), and its norm, the quantity that the theorems bound."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

__all__ = ["FullGradient", "full_gradient", "full_gradient_norm"]


class FullGradient(NamedTuple):
    """The norm of the full gradient, and the loss it is the gradient of."""

    norm: float
    loss: float


def full_gradient_norm(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    batches: Iterable[tuple[Any, Any]],
    *,
    mode: Literal["eval", "train"] = "eval",
) -> FullGradient:
    """||∇f|| and f over all of ``batches``, f = (1/n) Σ f_i, batches weighted by true counts.

    The model is left as found: parameters, their ``.grad``, buffers, the mode of every module and
    torch's random state. Hooks that were registered on parameters (`Tensor.register_hook`) do run.

    Args:
        model: any module with at least one parameter that requires a gradient.
        loss_fn: ``loss_fn(model(inputs), targets)``, the *mean* loss over a batch.
        batches: yields ``(inputs, targets)``; a batch's count is ``len(targets)``. Which samples,
            clean or augmented, is the caller's choice and part of what the number means.
        mode: the network's mode. "train" uses batch statistics and dropout: the number then
            depends on how the set is cut into batches.

    Returns:
        ``(norm, loss)``: the Euclidean norm over all parameters that require a gradient, and the
        mean loss; not finite if the loss is not.

    Raises:
        ValueError: no sample, batches of anything but pairs of one length, no trainable parameter,
            an unknown mode, or a loss that is not one number or depends on no parameter.

    >>> import torch
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.constant_(model.weight, 3.0)
    >>> x, y = torch.tensor([[1.0], [2.0], [3.0]]), torch.zeros(3, 1)
    >>> batches = [(x[:2], y[:2]), (x[2:], y[2:])]  # a mean of batch means would say 34.5
    >>> full_gradient_norm(model, torch.nn.functional.mse_loss, batches)
    FullGradient(norm=28.0, loss=42.0)
    """
    return norm_seen(model, loss_fn, batches, mode, lambda *_: None)


def norm_seen(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    batches: Iterable[tuple[Any, Any]],
    mode: str,
    seen: Callable[[Any, Any, float], None],
) -> FullGradient:
    """`full_gradient_norm`, with ``seen(outputs, targets, loss)`` called for every batch."""
    total, loss_sum, count = _sums(model, loss_fn, batches, mode, None, seen)
    # In float64: a sum of millions of squares in float32 loses digits.
    norms = [float(torch.linalg.vector_norm(sum_.to(_double(sum_.dtype)))) for sum_ in total]
    return FullGradient(math.hypot(*norms) / count, loss_sum / count)


def full_gradient(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    batches: Iterable[tuple[Any, Any]],
    *,
    mode: Literal["eval", "train"] = "eval",
    at: Mapping[str, Tensor] | None = None,
) -> list[Tensor]:
    """∇f over all of ``batches``, the vector whose norm `full_gradient_norm` gives.

    Args:
        model, loss_fn, batches, mode: as for `full_gradient_norm`; the model is left as found.
        at: another point than the model's own: parameters by name, as in a state dict. Buffers stay
            the model's own, so that f is the same function at both points.

    Returns:
        One tensor for each parameter that requires a gradient, in the order of
        ``model.parameters()``; bfloat16 and float16 come as float32.

    Raises:
        ValueError: as `full_gradient_norm`, or ``at`` lacks a parameter or has another shape.

    >>> import torch
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.constant_(model.weight, 3.0)
    >>> x, y = torch.tensor([[1.0], [2.0], [3.0]]), torch.zeros(3, 1)
    >>> batches = [(x[:2], y[:2]), (x[2:], y[2:])]
    >>> full_gradient(model, torch.nn.functional.mse_loss, batches)
    [tensor([[28.]])]
    >>> at = {"weight": torch.tensor([[-1.5]])}
    >>> full_gradient(model, torch.nn.functional.mse_loss, batches, at=at)
    [tensor([[-14.]])]
    """
    total, _, count = _sums(model, loss_fn, batches, mode, at)
    return [sum_ / count for sum_ in total]


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient: x, by name.

    Raises:
        ValueError: there is none.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not named:
        raise ValueError("model must have a parameter that requires a gradient, got none")
    return named


def point(model: nn.Module, given: Mapping[str, Tensor], field: str) -> dict[str, Tensor]:
    """What ``given`` has for each parameter that requires a gradient, detached.

    Raises:
        ValueError: a parameter is missing or of another shape; the message names ``field``.
    """
    found = {}
    for name, p in trainable(model).items():
        if name not in given:
            raise ValueError(f"{field} must hold every trainable parameter, got none for {name!r}")
        if given[name].shape != p.shape:
            raise ValueError(
                f"{field} must have parameters of the model's shapes, {tuple(p.shape)} for "
                f"{name!r}, got {tuple(given[name].shape)}"
            )
        found[name] = given[name].detach().to(p)
    return found


def call_at(model: nn.Module, x: Mapping[str, Tensor], inputs: Any) -> Any:
    """``model(inputs)`` with its trainable parameters at x, which names each of them once."""
    # torch's own tying would leave a module that is used under two names with the parameters that
    # it was lent; so every place of a shared parameter is named here, and each module once.
    names = {id(p): name for name, p in trainable(model).items()}
    places = {
        f"{prefix}.{key}" if prefix else key: x[names[id(p)]]
        for prefix, module in model.named_modules()
        for key, p in module._parameters.items()
        if id(p) in names
    }
    return functional_call(model, places, (inputs,), tie_weights=False)


def _sums(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    batches: Iterable[tuple[Any, Any]],
    mode: str,
    at: Mapping[str, Tensor] | None,
    seen: Callable[[Any, Any, float], None] = lambda *_: None,
) -> tuple[list[Tensor], float, int]:
    """The sums over samples of gradients and losses, and the count of samples."""
    if mode not in ("eval", "train"):
        raise ValueError(f"mode must be 'eval' or 'train', got {mode!r}")
    own = trainable(model)
    loss_sum = 0.0
    count = 0
    # A caller, such as a validation hook, may have switched gradients off in either way.
    with torch.inference_mode(False), torch.enable_grad(), left_as_found(model):
        parameters: list[Tensor] = list(own.values())
        there = None if at is None else point(model, at, "at")
        if there is not None:
            parameters = [p.requires_grad_() for p in there.values()]
        total = [torch.zeros_like(p, dtype=wide(p.dtype), requires_grad=False) for p in parameters]
        model.train(mode == "train")
        for inputs, targets in nonempty(batches):
            outputs = model(inputs) if there is None else call_at(model, there, inputs)
            loss = dependent(mean_loss(loss_fn(outputs, targets)))
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            for sum_, gradient in zip(total, gradients, strict=True):
                if gradient is not None:
                    sum_.add_(gradient.detach(), alpha=len(targets))
            value = float(loss.detach())
            seen(outputs, targets, value)
            loss_sum += value * len(targets)
            count += len(targets)
    return total, loss_sum, count


def nonempty(batches: Iterable[Any], *, tensors: bool = False) -> Iterator[tuple[Any, Any]]:
    """The pairs ``(inputs, targets)`` that hold a sample: the mean over none is not a number.

    Raises:
        ValueError: a batch is no pair, or one of tensors of unlike lengths, or of anything else
            where only ``tensors`` will do; no batch holds a sample.
    """
    none = True
    for batch in batches:
        _check_batch(batch, tensors)
        inputs, targets = batch
        if len(targets) > 0:
            none = False
            yield inputs, targets
    if none:
        raise ValueError("batches must hold at least 1 sample, got none")


def _check_batch(batch: Any, tensors: bool) -> None:
    wanted = "pairs of tensors with the samples first, of one length"
    if not tensors:
        wanted = "pairs (inputs, targets), of one length if both are tensors"
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        many = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
        raise ValueError(f"batches must yield {wanted}, got {type(batch).__name__}{many}")
    if all(isinstance(part, Tensor) and part.ndim > 0 for part in batch):
        if len(batch[0]) != len(batch[1]):
            found = f"{len(batch[0])} and {len(batch[1])} samples"
            raise ValueError(f"batches must yield {wanted}, got {found}")
    elif tensors or not hasattr(batch[1], "__len__") or getattr(batch[1], "ndim", 1) == 0:
        found = [type(part).__name__ for part in batch]
        raise ValueError(f"batches must yield {wanted}, got {found}")


def mean_loss(loss: Any) -> Tensor:
    """``loss`` itself, if it is one number for a batch."""
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return loss
    shown = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
    raise ValueError(f"loss_fn must return the mean loss of a batch, one number, got {shown}")


def dependent(loss: Tensor) -> Tensor:
    """``loss`` itself, if it depends on a parameter."""
    if not loss.requires_grad:
        raise ValueError(
            "loss_fn must return a loss that depends on the model's parameters, got one without a "
            "gradient"
        )
    return loss


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """Restores the mode of every module, the buffers and torch's random state."""
    was_training = model.training
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    values = [(b, b.detach().clone()) for _, _, b in buffers if b is not None]
    cuda = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(cuda, key=str)):
        try:
            yield
        finally:
            model.train(was_training)  # undoes what a module's own train() or eval() did
            for module, training in modes:
                module.training = training
            with torch.no_grad():
                for module, name, buffer in buffers:
                    module._buffers[name] = buffer
                for buffer, value in values:
                    # Written to only if it changed: a graph may have saved it for its backward.
                    if not torch.equal(buffer, value):
                        buffer.copy_(value)


def wide(dtype: torch.dtype) -> torch.dtype:
    """Sums of bfloat16 or float16 gradients are kept in float32."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def _double(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype.is_complex else torch.float64
