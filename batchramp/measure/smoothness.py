"""The smoothness constant L of condition (C1), measured at a point and along a path."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from batchramp.measure.full_gradient import (
    dependent,
    full_gradient,
    left_as_found,
    mean_loss,
    nonempty,
    point,
    trainable,
)
from batchramp.measure.gradient_noise import as_seed, norm
from batchramp.schedules import as_count

__all__ = ["SecantTrajectory", "Smoothness", "secant", "smoothness"]


@final
@dataclass(frozen=True)
class Smoothness:
    """The ends of the Hessian's spectrum at one point x, as Lanczos found them.

    A Ritz value lies inside the spectrum, so ``value`` is a lower estimate of ||∇²f(x)||, and that
    is a local constant: L of (C1) is its supremum over all x, which no measurement gives.

    Attributes:
        largest: the largest Ritz value θ.
        smallest: the smallest, negative where f curves down.
        residual: ||∇²f y − θ y|| of the end of larger |θ|: an eigenvalue lies within it of θ.
        iterations: Hessian-vector products taken.
        converged: whether both |θ| + residual, of either end, are at most (1 + tolerance) value.
        n: samples.
    """

    largest: float
    smallest: float
    residual: float
    iterations: int
    converged: bool
    n: int

    @property
    def value(self) -> float:
        """max |θ|, the local Lipschitz constant of ∇f."""
        return max(abs(self.largest), abs(self.smallest))

    def __str__(self) -> str:
        state = "converged" if self.converged else "NOT converged"
        return "\n".join(
            [
                f"smoothness over {self.n:,} samples, network in eval mode",
                f"  largest |eigenvalue| of the Hessian {self.value:.6g}"
                f" (residual {self.residual:.2g}; {state} after {self.iterations})",
                f"  from {self.smallest:.6g} to {self.largest:.6g}",
                "A local estimate from below, true at this point only: L of (C1) is a bound over",
                "all points.",
            ]
        )


def smoothness(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    tolerance: float = 1e-3,
    max_iterations: int = 100,
    seed: int = 0,
) -> Smoothness:
    """The largest |eigenvalue| of ∇²f at the model's parameters, by Lanczos.

    T_j = Q_jᵀ ∇²f Q_j is tridiagonal, with Q_j an orthonormal basis of the Krylov space of a random
    start; for an eigenpair (θ, s) of T_j the residual of y = Q_j s is |β_j s_j|, and an eigenvalue
    of ∇²f lies within it (Parlett 1998, chapter 13). Both ends are watched. Q is orthogonalised in
    full, in float64; the products are in the model's dtype, so that a tolerance below its rounding
    says nothing.

    A small residual proves that *an* eigenvalue is near, not that it is the outermost; a random
    start makes another one unlikely.

    Args:
        model: any module that `full_gradient_norm` can measure, of operators that can be
            differentiated twice; measured in eval mode and left as found.
        loss_fn: ``loss_fn(model(inputs), targets)``, the *mean* loss over a batch.
        batches: yields pairs of tensors ``(inputs, targets)``, samples first; all are held in
            memory, for every product passes over them. A batch's graph is held twice over; batches
            of about 100 are the fastest for convolutions.
        tolerance: in (0, 1), relative.
        max_iterations: >= 1; the basis takes 8 bytes for each and for every parameter.
        seed: of the start, in [0, 2^63); torch's random state is left alone.

    Returns:
        The ends of the spectrum, nan if a product is not finite; they print themselves.

    Raises:
        ValueError: no sample, batches of anything but tensors, no trainable parameter or a complex
            one, a loss that is not one number or depends on no parameter, or an argument out of its
            range.

    >>> import torch
    >>> model = torch.nn.Linear(2, 1, bias=False).double()
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    >>> found = smoothness(model, torch.nn.functional.mse_loss, [(x, torch.zeros(2, 1).double())])
    >>> round(found.largest, 9), round(found.smallest, 9), found.iterations  # (2/n) xᵀx
    (9.0, 1.0, 2)
    """
    if not isinstance(tolerance, Real) or not 0 < tolerance < 1:
        raise ValueError(f"tolerance must be a number in (0, 1), got {tolerance!r}")
    max_iterations, seed = as_count(max_iterations, "max_iterations"), as_seed(seed)
    parameters = list(trainable(model).values())
    if any(p.is_complex() for p in parameters):
        raise ValueError("model must have real parameters, got a complex one")
    held = list(nonempty(batches, tensors=True))
    n = sum(len(targets) for _, targets in held)

    # Fused attention has no second derivative.
    attention = sdpa_kernel(SDPBackend.MATH)
    with torch.inference_mode(False), torch.enable_grad(), attention, left_as_found(model):
        model.eval()

        def product(v: Tensor) -> Tensor:
            total = torch.zeros_like(v)
            for inputs, targets in held:
                loss = dependent(mean_loss(loss_fn(model(inputs), targets)))
                total.add_(_hessian_product(loss, parameters, v), alpha=len(targets))
            return total / n

        dimension = sum(p.numel() for p in parameters)
        start = torch.randn(
            dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
        ).to(parameters[0].device)
        return Smoothness(*_lanczos(product, start, tolerance, max_iterations), n)


def _hessian_product(loss: Tensor, parameters: list[nn.Parameter], v: Tensor) -> Tensor:
    """∇²f v as the gradient of <∇f, v>.

    Reverse over reverse: forward over reverse took as long or longer (measured on both
    classifiers), and fewer operators have it.
    """
    gradients = torch.autograd.grad(
        loss, parameters, create_graph=True, allow_unused=True, materialize_grads=True
    )
    pieces = v.split([p.numel() for p in parameters])
    along = [
        (gradient * piece.view_as(gradient).to(gradient)).sum()
        for gradient, piece in zip(gradients, pieces, strict=True)
        if gradient.requires_grad  # not where f is linear
    ]
    if not along:
        return torch.zeros_like(v)
    second = torch.autograd.grad(
        torch.stack(along).sum(), parameters, allow_unused=True, materialize_grads=True
    )
    return torch.cat([piece.detach().flatten().to(v) for piece in second])


def _lanczos(
    product: Callable[[Tensor], Tensor], start: Tensor, tolerance: float, max_iterations: int
) -> tuple[float, float, float, int, bool]:
    """``(largest, smallest, residual, iterations, converged)`` of a symmetric operator."""
    basis = [start / torch.linalg.vector_norm(start)]
    diagonal: list[float] = []
    beside: list[float] = []
    while True:
        w = product(basis[-1])
        diagonal.append(float(basis[-1] @ w))
        for _ in range(2):  # twice is enough (Parlett 1998, section 6.9)
            for q in basis:
                w -= (q @ w) * q
        beta = float(torch.linalg.vector_norm(w))
        j = len(basis)
        if not math.isfinite(diagonal[-1] + beta):
            return math.nan, math.nan, math.nan, j, False
        # The space is invariant, or the whole space: what is left of w is rounding.
        scale = max(map(abs, [*diagonal, *beside]))
        if j == len(start) or beta <= 10 * torch.finfo(w.dtype).eps * math.sqrt(len(w)) * scale:
            beta = 0.0
        matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
        for i, b in enumerate(beside):
            matrix[i, i + 1] = matrix[i + 1, i] = b
        ritz, vectors = torch.linalg.eigh(matrix)
        ends = [
            (abs(float(ritz[i])), beta * abs(float(vectors[-1, i])), float(ritz[i]))
            for i in (0, -1)
        ]
        value, residual, _ = max(ends)
        converged = max(theta + error for theta, error, _ in ends) <= (1 + tolerance) * value
        if converged or j == max_iterations:
            return ends[1][2], ends[0][2], residual, j, converged
        beside.append(beta)
        basis.append(w / beta)


def secant(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    batches: Iterable[tuple[Any, Any]],
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
) -> float:
    """||∇f(x') − ∇f(x)|| / ||x' − x||, a lower estimate of L on the way from x to x'.

    Exact along an eigenvector of a quadratic. The model's own parameters play no part; its buffers
    do, and are the same at both points, so that f is one function. Eval mode; left as found.

    Args:
        model, loss_fn: as for `full_gradient_norm`.
        batches: yields ``(inputs, targets)``; read once.
        before, after: x and x': parameters by name, as in copies of a state dict.

    Raises:
        ValueError: as `full_gradient_norm`, or the two are the same point, or one lacks a parameter
            or has another shape.

    >>> import torch
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.zeros(2, 1)
    >>> at = {"weight": torch.zeros(1, 2)}, {"weight": torch.tensor([[0.0, 0.5]])}
    >>> secant(model, torch.nn.functional.mse_loss, [(x, y)], *at)
    9.0
    """
    x, y = point(model, before, "before"), point(model, after, "after")
    distance = norm(y[name].double() - x[name].double() for name in x)
    if distance == 0:
        raise ValueError(
            "before and after must be different points, got equal ones (a state dict changes with "
            "its model: copy it)"
        )
    total: list[Tensor] = []
    n = 0
    for batch in nonempty(batches):
        count = len(batch[1])
        gradients = [full_gradient(model, loss_fn, [batch], at=at) for at in (x, y)]
        differences = [(b.double() - a.double()) * count for a, b in zip(*gradients, strict=True)]
        total = [a + b for a, b in zip(total, differences, strict=True)] if total else differences
        n += count
    return norm(total) / n / distance


@final
@dataclass
class SecantTrajectory:
    """The largest `secant` between points that a training visits, say once an epoch.

    A lower estimate of L along the path, and of L no bound.

    Args:
        value: the largest so far; 0 before the second point.
        previous: the parameters when last asked, by name.

    Both are all of its state: an equal one goes on where this one stands.

    >>> import torch
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> batches = [(torch.tensor([[3.0]]), torch.zeros(1, 1))]
    >>> path = SecantTrajectory()
    >>> for weight in (0.0, 1.0, 1.5):
    ...     _ = torch.nn.init.constant_(model.weight, weight)
    ...     print(path.update(model, torch.nn.functional.mse_loss, batches), path.value)
    None 0.0
    18.0 18.0
    18.0 18.0
    """

    value: float = 0.0
    previous: Mapping[str, Tensor] | None = field(default=None, repr=False)

    def update(
        self,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor],
        batches: Iterable[tuple[Any, Any]],
    ) -> float | None:
        """The secant from the previous point to the model's, which becomes the previous.

        Costs two full gradients: buffers may have changed since, and f with them.

        Returns:
            The secant, or None at the first point and where nothing has moved. One that is not
            finite does not count for ``value``.
        """
        here = {name: p.detach().clone() for name, p in trainable(model).items()}
        previous, self.previous = self.previous, here
        if previous is None:
            return None
        before = point(model, previous, "previous")
        if all(torch.equal(before[name], here[name]) for name in here):
            return None
        found = secant(model, loss_fn, batches, before, here)
        if math.isfinite(found):
            self.value = max(self.value, found)
        return found
