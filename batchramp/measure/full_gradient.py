"""The norm of the full gradient ||∇f(x)||, the quantity that the theorems bound."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["FullGradient", "full_gradient_norm"]


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
    torch's random state.

    Args:
        model: any module with at least one parameter that requires a gradient.
        loss_fn: ``loss_fn(model(inputs), targets)``, the *mean* loss over a batch.
        batches: yields ``(inputs, targets)``; a batch's count is ``len(targets)``. Which samples,
            clean or augmented, is the caller's choice and part of what the number means.
        mode: the network's mode. "train" uses batch statistics and dropout: the number then
            depends on how the set is cut into batches.

    Returns:
        ``(norm, loss)``: the Euclidean norm over all parameters and the mean loss; not finite if
        the loss is not.

    Raises:
        ValueError: no sample, no trainable parameter, or an unknown mode.

    >>> import torch
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.constant_(model.weight, 3.0)
    >>> x, y = torch.tensor([[1.0], [2.0], [3.0]]), torch.zeros(3, 1)
    >>> batches = [(x[:2], y[:2]), (x[2:], y[2:])]  # a mean of batch means would say 34.5
    >>> full_gradient_norm(model, torch.nn.functional.mse_loss, batches)
    FullGradient(norm=28.0, loss=42.0)
    """
    if mode not in ("eval", "train"):
        raise ValueError(f"mode must be 'eval' or 'train', got {mode!r}")
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("model must have a parameter that requires a gradient, got none")
    total: list[Tensor] | None = None
    loss_sum = 0.0
    count = 0
    with _left_as_found(model, parameters[0].device), torch.enable_grad():
        model.train(mode == "train")
        for inputs, targets in batches:
            loss = loss_fn(model(inputs), targets) * len(targets)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            gradients = [
                torch.zeros_like(p) if g is None else g
                for g, p in zip(gradients, parameters, strict=True)
            ]
            if total is None:
                # autograd.grad may hand out one tensor twice, so the sum is kept in copies
                total = [g.detach().to(_wide(g.dtype), copy=True) for g in gradients]
            else:
                for sum_, g in zip(total, gradients, strict=True):
                    sum_.add_(g.detach())
            loss_sum += float(loss.detach())
            count += len(targets)
    if total is None or count == 0:
        raise ValueError("batches must hold at least 1 sample, got none")
    # In float64: a sum of millions of squares in float32 loses digits.
    squares = sum(float(torch.linalg.vector_norm(g.to(_double(g.dtype)))) ** 2 for g in total)
    return FullGradient(math.sqrt(squares) / count, loss_sum / count)


@contextmanager
def _left_as_found(model: nn.Module, device: torch.device) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Sums of bfloat16 or float16 gradients are kept in float32."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def _double(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype.is_complex else torch.float64
