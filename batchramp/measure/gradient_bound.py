"""The gradient bound G of Assumption 1: measured, and by Proposition 9 from losses and L_i."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from batchramp.measure.full_gradient import point
from batchramp.measure.gradient_noise import (
    chunks,
    detached,
    norm,
    per_sample,
    squared_norms,
)
from batchramp.schedules import as_count

__all__ = ["GradientBound", "gradient_bound"]


@final
@dataclass(frozen=True)
class GradientBound:
    """The extremes over single samples at one point x: losses, gradients, secants.

    All are local: at x, or between x and one earlier point. G of Assumption 1 bounds ||∇f_i||
    wherever the optimiser goes.

    Attributes:
        n: samples.
        max_loss: max f_i.
        min_loss: min f_i.
        max_gradient_norm: max ||∇f_i||.
        max_smoothness: max ||∇f_i(x) − ∇f_i(x')|| / ||x − x'||, x' the previous point: a lower
            estimate of max L_i. None without one, or if x' = x.
    """

    n: int
    max_loss: float
    min_loss: float
    max_gradient_norm: float
    max_smoothness: float | None

    @property
    def proposition9(self) -> float | None:
        """√(2 max L_i · max f_i), the paper's bound of ||∇f_i|| with the constants measured here.

        Proposition 9: ||∇f_i||² <= 2 L_i (sup f_i − inf f_i), where f_i >= 0. With L_i estimated
        from below and f_i at one point it can lie below max ||∇f_i||: it did by three times between
        a fresh network and a random point beside it. None if a loss is negative, or there is no
        ``max_smoothness``.
        """
        if self.max_smoothness is None or not self.min_loss >= 0:
            return None
        return math.sqrt(2 * self.max_smoothness * self.max_loss)

    def __str__(self) -> str:
        lines = [
            f"gradient bound over {self.n:,} samples, network in eval mode",
            f"  loss of a sample                  {self.min_loss:.6g} to {self.max_loss:.6g}",
            f"  largest gradient norm of a sample {self.max_gradient_norm:.6g}",
        ]
        if self.max_smoothness is not None:
            lines.append(f"  largest secant smoothness         {self.max_smoothness:.6g}")
        if self.proposition9 is not None:
            short = " (no bound here: the secants are too small)"
            note = short if self.proposition9 < self.max_gradient_norm else ""
            lines.append(f"  Proposition 9 with these          {self.proposition9:.6g}{note}")
        lines += [
            "Local estimates, true at this point only: G of Assumption 1 is a bound over all",
            "points, and a smoothness between two points is one from below.",
        ]
        return "\n".join(lines)


def gradient_bound(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    previous: Mapping[str, Tensor] | Sequence[Tensor] | None = None,
    chunk: int = 32,
) -> GradientBound:
    """max f_i, max ||∇f_i|| and, from an earlier point, max L_i at the model's parameters.

    Appendix A.8 and Proposition 9 of Imaizumi and Iiduka (ACML 2025): ||∇f_i||² <= 2 L_i (sup f_i −
    inf f_i), so that bounded losses bound the gradients. The model is measured in eval mode and
    left as found.

    Args:
        model, loss_fn, batches, chunk: as for `gradient_noise`; with ``previous`` a chunk takes
            twice the memory.
        previous: parameters of an earlier point, by name as in a copy of a state dict, or all in
            the order of ``model.parameters()``. Buffers are the model's own at both points.
            Rounding adds about ε ||∇f_i||/||x − x'|| to the secants, ε that of the model's dtype.

    Returns:
        The extremes over the set, not finite if a loss or gradient is not; they print themselves.

    Raises:
        ValueError: as `gradient_noise`, or ``previous`` lacks a parameter or has another shape.

    >>> import torch
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.ones_(model.weight)
    >>> x, y = torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1)  # f_i = x_i² w²
    >>> found = gradient_bound(
    ...     model, torch.nn.functional.mse_loss, [(x, y)], previous=[torch.tensor([[0.5]])]
    ... )
    >>> found.max_loss, found.max_gradient_norm, found.max_smoothness, found.proposition9
    (9.0, 18.0, 18.0, 18.0)
    """
    chunk = as_count(chunk, "chunk")
    there, distance = None, 0.0
    x = detached(model)
    if previous is not None:
        there = point(model, _by_name(model, previous), "previous")
        distance = norm(p.double() - there[name].double() for name, p in x.items())
    n = 0
    # Of losses from below and above, of ||∇f_i||² and ||∇f_i(x) − ∇f_i(x')||²: maxima that a nan
    # passes through.
    found: Tensor | None = None
    with per_sample(model, loss_fn) as gradients_of:
        for inputs, targets in chunks(batches, chunk):
            gradients, losses = gradients_of(x, inputs, targets)
            extremes = [-losses.double(), losses.double(), squared_norms(gradients)]
            if there is not None and distance > 0:
                earlier, _ = gradients_of(there, inputs, targets)
                steps = {name: g - earlier.pop(name) for name, g in gradients.items()}
                extremes.append(squared_norms(steps))
            largest = torch.stack(extremes).amax(1)
            found = largest if found is None else torch.maximum(found, largest)
            n += len(targets)
    assert found is not None  # chunks() holds a sample or raises
    lowest, highest, square, *secant = found.tolist()
    return GradientBound(
        n,
        highest,
        -lowest,
        math.sqrt(square),
        math.sqrt(secant[0]) / distance if secant else None,
    )


def _by_name(
    model: nn.Module, given: Mapping[str, Tensor] | Sequence[Tensor]
) -> Mapping[str, Tensor]:
    if isinstance(given, Mapping):
        return given
    names = [name for name, _ in model.named_parameters()]
    given = list(given)
    if len(given) != len(names):
        raise ValueError(f"previous must hold {len(names)} parameters, got {len(given)}")
    return dict(zip(names, given, strict=True))
