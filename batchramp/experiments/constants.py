"""The constants of the theorems, measured on a task's model where training starts."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from batchramp.theory import Problem

if TYPE_CHECKING:
    from batchramp.measure import GradientNoise, Smoothness
    from batchramp.task import Task

__all__ = ["Constants", "measure_constants"]


@final
@dataclass(frozen=True)
class Constants:
    """D0, L, σ² and G as measured at the point where training starts.

    Attributes:
        task, model: by name.
        seed: of the initial weights.
        n: training samples.
        loss: f(x_0).
        noise: variance and norms of single samples' gradients.
        curvature: the extreme eigenvalues of the Hessian.
        known: the constants that hold everywhere, for a task that has them.
    """

    task: str
    model: str
    seed: int
    n: int
    loss: float
    noise: "GradientNoise"
    curvature: "Smoothness"
    known: Problem | None

    @property
    def problem(self) -> Problem:
        """The known constants, or else the measured ones, with D0 = f(x_0) − 0.

        Raises:
            ValueError: the loss is not above 0, so that 0 is no bound below it, or a number is not
                finite or not positive.
        """
        if self.known is not None:
            return self.known
        if not self.loss > 0:
            raise ValueError(
                f"loss of {self.task} must be above 0 for a gap to its lower bound 0, got "
                f"{self.loss!r}"
            )
        return Problem(
            initial_gap=self.loss,
            smoothness=self.curvature.value,
            variance=self.noise.variance,
            gradient_bound=self.noise.gradient_bound,
            initial_gradient_norm=self.noise.full_gradient_norm,
        )

    @property
    def note(self) -> str:
        """Where `problem` comes from, on one line."""
        of = f"{self.task}, {self.model}, seed {self.seed}"
        if self.known is not None:
            return f"constants known to hold everywhere ({of})"
        parts = [f"local estimates at the start of training ({of})"]
        if self.noise.samples is not None:
            parts.append(
                f"sigma^2 and G from {self.noise.samples:,} of {self.n:,} samples, so G is at least"
            )
        if not self.curvature.converged:
            parts.append("L did not converge")
        return "; ".join(parts)

    def __str__(self) -> str:
        where = f"{self.task}, {self.model}, seed {self.seed}: at the start of training"
        lines = [where, f"loss f(x_0) = {self.loss:.6g}", str(self.noise), str(self.curvature)]
        if self.known is not None:
            lines += [self.note, self.known.to_toml().rstrip()]
        return "\n".join(lines)

    def to_toml(self) -> str:
        """The problem as ``batchramp plan --problem`` reads it."""
        return f'note = "{self.note}"\nn = {self.n}\n{self.problem.to_toml()}'


def measure_constants(task: "Task", *, seed: int = 0, samples: int | None = None) -> Constants:
    """Measures what the theorems' constants are at a fresh model of ``task``.

    Args:
        task: with a loss that is never below 0, such as cross-entropy.
        seed: of the initial weights, as in `fit`.
        samples: measure the noise on so many training samples; None for all of them.

    Raises:
        ValueError: a seed out of its range, a loss that is not finite, or see `batchramp.measure`.
    """
    import torch

    from batchramp.measure import full_gradient_norm, gradient_noise, smoothness

    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be an integer >= 0 and below 2**32, got {seed!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = task.model().to(task.device)

    def train():
        return task.in_order("train") or ()

    loss = full_gradient_norm(model, task.loss_fn, train()).loss
    if not math.isfinite(loss):
        raise ValueError(f"loss of {task.name} must be finite where training starts, got {loss!r}")
    return Constants(
        task=task.name,
        model=task.model_name,
        seed=seed,
        n=task.n,
        loss=loss,
        noise=gradient_noise(model, task.loss_fn, train(), samples=samples, seed=seed),
        curvature=smoothness(model, task.loss_fn, train(), seed=seed),
        known=task.problem,
    )
