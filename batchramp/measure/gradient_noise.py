"""The noise of single-sample gradients: what condition (C2) calls σ², measured at one point."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from batchramp.measure.full_gradient import (
    call_at,
    dependent,
    full_gradient,
    left_as_found,
    mean_loss,
    nonempty,
    trainable,
    wide,
)
from batchramp.schedules import as_count

__all__ = ["GradientNoise", "gradient_noise"]

Gradients = dict[str, Tensor]


@final
@dataclass(frozen=True)
class GradientNoise:
    """What the gradients of single samples are like at one point x.

    These are local: (C2) and Assumption 1 want bounds over every x that is visited, and a number
    at one x is none.

    Attributes:
        n: samples in the set.
        samples: m, samples drawn from it; None if all were taken.
        variance: σ² = (1/n) Σ ||∇f_i − ∇f||² at x, exact over the set, or estimated from m.
        standard_error: of ``variance`` as an estimate; None if it is exact.
        gradient_bound: max ||∇f_i|| over the samples taken; if they were drawn, only a lower bound
            of the maximum over the set.
        full_gradient_norm: ||∇f||, always over the whole set.
    """

    n: int
    samples: int | None
    variance: float
    standard_error: float | None
    gradient_bound: float
    full_gradient_norm: float

    @property
    def noise_scale(self) -> float:
        """B_simple = tr(Σ)/||∇f||² (McCandlish et al. 2018, (2.9)); inf where ∇f = 0."""
        norm = self.full_gradient_norm
        return math.inf if norm == 0 else self.variance / norm / norm

    def __str__(self) -> str:
        if self.samples is None:
            title, error, least = f"all {self.n:,} samples", "", ""
        else:
            title = f"{self.samples:,} samples drawn out of {self.n:,}"
            error, least = f" +- {self.standard_error:.2g} (standard error)", "at least "
        return "\n".join(
            [
                f"gradient noise over {title}, network in eval mode",
                f"  variance of a sample's gradient   {self.variance:.6g}{error}",
                f"  largest gradient norm of a sample {least}{self.gradient_bound:.6g}",
                f"  full gradient norm                {self.full_gradient_norm:.6g}",
                f"  simple noise scale                {self.noise_scale:.6g}",
                "Local estimates, true at this point only: not the bounds over all points that",
                "the theorems assume (variance of (C2), G of Assumption 1).",
            ]
        )


def gradient_noise(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    chunk: int = 32,
    samples: int | None = None,
    seed: int = 0,
) -> GradientNoise:
    """σ² = (1/n) Σ ||∇f_i − ∇f||² at the model's parameters, with max ||∇f_i|| and ||∇f||.

    The variance of the population, divided by n and not n − 1: (C3) draws from these n samples. The
    model is left as found; it is measured in eval mode (batch statistics would make f_i depend on
    other samples), so that BatchNorm uses its running statistics.

    With ``samples=m``, m of the n are drawn without replacement. ∇f is still taken over the whole
    set, by batches, which is cheap; so σ² is the mean over the set of y_i = ||∇f_i − ∇f||², the
    mean of y over the drawn is unbiased, its variance is (1 − m/n) S²/m with S² = Σ (y_i − σ²)² /
    (n − 1), and S² is estimated without bias by that of the drawn (Cochran 1977, theorems 2.1, 2.2
    and 2.4). Where few samples hold most of σ², as after long training, a draw that misses them
    also understates its error.

    Args:
        model: any module that `torch.func.vmap` can map: no control flow that depends on values.
        loss_fn: ``loss_fn(model(inputs), targets)``, the *mean* loss over a batch; f_i is that of a
            batch of one.
        batches: yields pairs of tensors ``(inputs, targets)``, samples first; read once. How the
            set is cut does not matter.
        chunk: samples whose gradients are held at a time: about ``chunk`` times the memory of the
            parameters and of a sample's activations, three times. Small chunks that fit the
            processor's cache are the fastest.
        samples: m >= 2, how many are drawn; None for all. Where m >= n all are taken, and the
            result is exact and says so (its ``samples`` is None). The drawn are held in memory.
        seed: of the drawing, in [0, 2^63); torch's random state is left alone.

    Returns:
        The numbers, not finite if a gradient is not; they print themselves.

    Raises:
        ValueError: no sample, batches of anything but tensors, no trainable parameter, a loss that
            is not one number or depends on no parameter, or an argument out of its range.

    >>> import torch
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.zeros_(model.weight)
    >>> x, y = torch.ones(4, 1), torch.tensor([[1.0], [2.0], [3.0], [6.0]])
    >>> noise = gradient_noise(model, torch.nn.functional.mse_loss, [(x, y)])  # gradients -2 y
    >>> noise.variance, noise.gradient_bound, noise.full_gradient_norm
    (14.0, 12.0, 6.0)
    """
    chunk, seed = as_count(chunk, "chunk"), as_seed(seed)
    if samples is None:
        return _over_all(model, loss_fn, batches, chunk)
    return _from_drawn(model, loss_fn, batches, chunk, as_count(samples, "samples", 2), seed)


def _over_all(model: Any, loss_fn: Any, batches: Any, chunk: int) -> GradientNoise:
    """In one pass, chunk by chunk, by the update of Chan, Golub and LeVeque (1983)."""
    n, squares, most = 0, 0.0, torch.zeros((), dtype=torch.float64)
    with per_sample(model, loss_fn) as gradients_of:
        x = detached(model)
        mean = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in x.items()}
        for inputs, targets in chunks(batches, chunk):
            gradients, _ = gradients_of(x, inputs, targets)
            count = len(targets)
            most = torch.maximum(most, squared_norms(gradients).max().cpu())
            shift = 0.0
            for name, gradient in gradients.items():
                centre = gradient.mean(0)
                squares += float((gradient - centre).square_().sum())
                ahead = centre.double() - mean[name]
                shift += float(ahead.square().sum())
                mean[name] += ahead * (count / (n + count))
            squares += shift * n * count / (n + count)
            n += count
    return GradientNoise(n, None, squares / n, None, math.sqrt(most), norm(mean.values()))


def _from_drawn(
    model: Any, loss_fn: Any, batches: Any, chunk: int, samples: int, seed: int
) -> GradientNoise:
    drawing = _Drawing(samples, seed)
    full = [g.double() for g in full_gradient(model, loss_fn, drawing.watch(batches))]
    deviations, most = [], torch.zeros((), dtype=torch.float64)
    with per_sample(model, loss_fn) as gradients_of:
        x = detached(model)
        for inputs, targets in chunks(filter(None, [drawing.drawn]), chunk):
            gradients, _ = gradients_of(x, inputs, targets)
            most = torch.maximum(most, squared_norms(gradients).max().cpu())
            for (name, gradient), mean in zip(gradients.items(), full, strict=True):
                gradients[name] = gradient - mean.to(gradient)
            deviations.append(squared_norms(gradients).cpu())
    variance, error = estimated_mean(torch.cat(deviations), drawing.n)
    all_taken = samples >= drawing.n
    return GradientNoise(
        drawing.n,
        None if all_taken else samples,
        variance,
        None if all_taken else error,
        math.sqrt(most),
        norm(full),
    )


def estimated_mean(drawn: Tensor, n: int) -> tuple[float, float]:
    """Mean of a population of n and its standard error, from some drawn without replacement."""
    m = len(drawn)
    spread = float(drawn.var()) if m > 1 else 0.0
    return float(drawn.mean()), math.sqrt((1 - m / n) * spread / m)


class _Drawing:
    """Draws m of the samples that pass: those with the m smallest of n random keys."""

    def __init__(self, m: int, seed: int) -> None:
        self.m, self.n = m, 0
        self.generator = torch.Generator().manual_seed(seed)
        self.keys = torch.empty(0, dtype=torch.float64)
        self.drawn: tuple[Tensor, Tensor] | None = None

    def watch(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in nonempty(batches, tensors=True):
            inputs, targets = batch
            new = torch.rand(len(targets), dtype=torch.float64, generator=self.generator)
            keys = torch.cat([self.keys, new])
            kept = keys.topk(min(self.m, len(keys)), largest=False).indices
            if self.drawn is not None:
                inputs, targets = (torch.cat(both) for both in zip(self.drawn, batch, strict=True))
            self.drawn = inputs[kept.to(inputs.device)], targets[kept.to(targets.device)]
            self.keys = keys[kept]
            self.n += len(new)
            yield batch


# ------------------------------------------------------------------- gradients of single samples


@contextmanager
def per_sample(
    model: nn.Module, loss_fn: Callable[[Any, Any], Tensor]
) -> Iterator[Callable[[Mapping[str, Tensor], Tensor, Tensor], tuple[Gradients, Tensor]]]:
    """Gives ``(x, inputs, targets) -> (∇f_i(x), f_i(x))``, both with the samples first.

    In eval mode; the model is left as found.
    """
    trainable(model)

    def loss_of_one(x: Mapping[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        outputs = call_at(model, x, inputs[None])
        return dependent(mean_loss(loss_fn(outputs, targets[None]))).reshape(())

    mapped = vmap(grad_and_value(loss_of_one), in_dims=(None, 0, 0), randomness="different")

    def gradients_of(
        x: Mapping[str, Tensor], inputs: Tensor, targets: Tensor
    ) -> tuple[Gradients, Tensor]:
        gradients, losses = mapped(x, inputs, targets)
        return {name: g.to(wide(g.dtype)) for name, g in gradients.items()}, losses

    # Fused attention has no rule for vmap.
    attention = sdpa_kernel(SDPBackend.MATH)
    with torch.inference_mode(False), torch.enable_grad(), attention, left_as_found(model):
        model.eval()
        yield gradients_of


def chunks(batches: Iterable[tuple[Tensor, Tensor]], chunk: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches cut into pieces of at most ``chunk`` samples, none of them empty."""
    for inputs, targets in nonempty(batches, tensors=True):
        yield from zip(inputs.split(chunk), targets.split(chunk), strict=True)


def detached(model: nn.Module) -> dict[str, Tensor]:
    """x, the model's own parameters that require a gradient."""
    return {name: p.detach() for name, p in trainable(model).items()}


def squared_norms(gradients: Mapping[str, Tensor]) -> Tensor:
    """||g_i||² of every sample, in float64 across parameters."""
    # Within a parameter in its own dtype: torch sums pairwise, and float64 would take twice as
    # long (measured), most of the time of a measurement.
    parts = [g.reshape(len(g), -1).square().sum(1).double() for g in gradients.values()]
    return torch.stack(parts).sum(0)


def norm(vector: Iterable[Tensor]) -> float:
    """The Euclidean norm of a vector that is kept in pieces."""
    return math.hypot(*(float(torch.linalg.vector_norm(piece.double())) for piece in vector))


def as_seed(value: Any) -> int:
    """``value`` as a Python int that a generator takes.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, Integral) and not isinstance(value, bool) and 0 <= int(value) < 2**63:
        return int(value)
    raise ValueError(f"seed must be an integer >= 0 and below 2**63, got {value!r}")
