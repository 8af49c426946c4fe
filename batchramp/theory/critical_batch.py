"""What Theorem 2 says of a constant batch size, and each bound of a constant lr, in closed form."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from batchramp.schedules import Constant, Schedule, StepDecay, as_count, as_number
from batchramp.theory.bound import trivial
from batchramp.theory.problem import Problem

__all__ = ["CriticalBatch", "MaxLR", "best_constant_batch", "critical_batch_size", "max_lr"]

# Integer batch sizes that are tried.
_MOST_TRIED = 2_000_000
# 10.000000000000002 steps are 10.
_ROUNDING = 1e-12


# ---------------------------------------------------------------------------------- which batch


@final
@dataclass(frozen=True)
class CriticalBatch:
    """A constant batch size, chosen by Theorem 2 at a constant lr.

    Attributes:
        question: what it was chosen for.
        batch_size: b, an integer.
        steps: K.
        samples: b K.
        bound: what Theorem 2 says after these steps.
        real_batch_size: what the formula gives for real b and K.
        because: the formula with its numbers, and what was approximated.
    """

    question: str
    batch_size: int
    steps: int
    samples: int
    bound: float
    real_batch_size: float
    because: tuple[str, ...] = ()

    def __str__(self) -> str:
        chosen = f"batch size {self.batch_size:,}, {self.steps:,} steps, {self.samples:,} samples"
        head = f"{self.question}: {chosen} (bound {self.bound:.4g})"
        return "\n".join([head, *(f"  {b}" for b in self.because)])


@final
@dataclass(frozen=True)
class _Constants:
    """Theorem 2 at constant lr and batch size: X/K + Y/b + Z ⌈n/b⌉/K + floor.

    Of the printed form at α_k = a: Σα = aK and Σα²/b = a²K/b, so X = 2 D0/(N a) and
    Y = L σ² a/N with N = (1 − q̄)(2 − aL). The momentum term is 2a(1 + aL)G²/(N a) Σq/K. A constant
    q makes it the floor 2(1 + aL) q G²/N. Step-decayed momentum has Σq <= ⌈n/b⌉ E q_0/(1 − ρ), for
    each level lasts E epochs of ⌈n/b⌉ steps (Corollary 3, T_0 = ⌈n/b⌉).
    """

    x: float
    y: float
    z: float  # per step of an epoch
    floor: float
    n: int

    @property
    def z_n(self) -> float:
        """Z of X/K + Y/b + Z/(bK)."""
        return self.z * self.n

    def __str__(self) -> str:
        said = f"Theorem 2 is {self.x:.4g}/K + {self.y:.4g}/b"
        said += f" + {self.z:.4g} ceil(n/b)/K" if self.z else ""
        return said + (f" + {self.floor:.4g}" if self.floor else "")

    def over(self, batch_size: NDArray[np.float64]) -> NDArray[np.float64]:
        """X + Z ⌈n/b⌉, what is divided by K."""
        return self.x + self.z * np.ceil(self.n / batch_size) if self.z else self.x + 0 * batch_size

    def bound(self, batch_size: int, steps: int) -> float:
        over = float(self.over(np.array(float(batch_size))))
        return over / steps + self.y / batch_size + self.floor


def _constants(
    problem: Problem,
    lr: float | Schedule,
    beta: float | Schedule,
    gamma: float | Schedule,
    n: int | None,
) -> _Constants:
    most = 2 / problem.smoothness
    a = _number(
        lr,
        "lr",
        f"a number > 0 and < 2/L = {most:.6g}",
        lambda x: 0 < x < most and x * problem.smoothness < 2,
    )
    b_max, b_decay = _start(beta, "beta", "in [0, 1)", lambda x: 0 <= x < 1)
    g_max, g_decay = _start(gamma, "gamma", "in [0, 1]", lambda x: 0 <= x <= 1)
    q = b_max * g_max
    al = a * problem.smoothness
    scale = (1 - q) * (2 - al)
    x = 2 * problem.initial_gap / scale / a
    y = al * problem.variance / scale
    if not (0 < x < math.inf and y < math.inf):
        raise ValueError(
            f"lr must keep X = 2 D0/(N lr) and Y = L σ² lr/N within floats, and X > 0, got {lr!r}"
        )
    decays = [decay for decay in (b_decay, g_decay) if decay]
    if q == 0:
        return _Constants(x, y, 0.0, 0.0, 1)
    momentum = 2 * (1 + al) * q / scale * problem.gradient_bound * problem.gradient_bound
    if not momentum < math.inf:
        raise ValueError(
            "gradient_bound must keep the momentum term of Theorem 2 within floats, got "
            f"{problem.gradient_bound!r}"
        )
    if not decays:
        return _Constants(x, y, 0.0, momentum, 1)
    if n is None:
        raise ValueError("n must be given where beta or gamma decays by epoch, got None")
    every = {decay.every for decay in decays}
    if len(every) > 1:
        raise ValueError(
            "beta and gamma must decay at the same epochs, got every="
            f"{decays[0].every} and {decays[1].every}"
        )
    rho = math.prod(decay.factor for decay in decays)
    return _Constants(x, y, momentum * every.pop() / (1 - rho), 0.0, n)


def _number(
    value: float | Schedule, field: str, allowed: str, ok: Callable[[float], bool]
) -> float:
    given = value.value if isinstance(value, Constant) else value
    return float(as_number(given, field, allowed, ok))


def _start(
    value: float | Schedule, field: str, allowed: str, ok: Callable[[float], bool]
) -> tuple[float, StepDecay | None]:
    decay = value if isinstance(value, StepDecay) else None
    given = decay.start if decay else value
    return _number(given, field, f"a number or a StepDecay, {allowed}", ok), decay


def critical_batch_size(
    problem: Problem,
    *,
    lr: float | Schedule,
    epsilon: float,
    beta: float | Schedule = 0.0,
    gamma: float | Schedule = 0.0,
    n: int | None = None,
) -> CriticalBatch:
    """The constant batch size with which Theorem 2 gets to ε by the fewest samples.

    At constant lr, X/K + Y/b <= ε takes K = X/(ε − Y/b) steps, and the samples bK are least at
    b* = 2Y/ε, K* = 2X/ε: 4XY/ε². A constant q = βγ leaves a floor, and ε less the floor to steps
    and batch size. Momentum that decays by steps adds Z/(bK), and
    b* = (Y + √(Y² + ε Y Z/X))/ε.

    Integers are not rounded: with K = ⌈(X + Z' ⌈n/b⌉)/(ε − Y/b)⌉ every b is tried whose bK could be
    the least, since the real formula bounds it from below.

    Args:
        problem: D0, L, σ², G.
        lr: a number, or Constant, in (0, 2/L).
        epsilon: ε > 0, above the floor.
        beta, gamma: numbers, or StepDecay over epochs (of both, with the same ``every``).
        n: samples of the data set; needed where beta or gamma decays.

    Returns:
        A `CriticalBatch`; of several with the same samples that with the fewest steps.

    Raises:
        ValueError: an argument is out of range; ε at or below the floor; more than 2^53 samples.

    >>> problem = Problem(initial_gap=1.0, smoothness=2.0, variance=1.0, gradient_bound=3.0)
    >>> print(critical_batch_size(problem, lr=0.1, epsilon=0.002))
    epsilon 0.002 at lr 0.1: batch size 111, 11,123 steps, 1,234,653 samples (bound 0.002)
      Theorem 2 is 11.11/K + 0.1111/b; for real b and K it takes b = 111.1
    """
    target = float(as_number(epsilon, "epsilon", "a finite number > 0", lambda x: x > 0))
    n = None if n is None else as_count(n, "n")
    known = _constants(problem, lr, beta, gamma, n)
    if target <= known.floor:
        raise ValueError(
            f"epsilon must be > {known.floor:.6g}, the floor that constant momentum leaves in "
            f"Theorem 2, got {epsilon!r}"
        )
    room, x, y, z = target - known.floor, known.x, known.y, known.z_n
    real = (y + math.sqrt(y * y + room * y * z / x)) / room

    def samples(batch_size: NDArray[np.float64]) -> NDArray[np.float64]:
        left = room - y / batch_size
        with np.errstate(divide="ignore", over="ignore"):
            steps = np.where(left > 0, known.over(batch_size) / left, np.inf)
        return batch_size * np.maximum(np.ceil(steps * (1 - _ROUNDING)), 1)

    start, least = 1.0, math.inf
    if max(real, real * (x / room)) <= 2**53:  # what the samples exceed in any case
        start = max(1.0, math.floor(y / room) + 1.0, math.floor(real))
        least = float(samples(np.array([start, start + 1])).min())
    if not least <= 2**53:
        raise ValueError(f"epsilon must be reached within 2**53 samples, got {epsilon!r}")
    # x b² + (z − least room) b + least y <= 0 wherever bK could be less; and b <= bK.
    most = least * (1 + 1e-9)  # as steps are rounded
    low, high = _roots((most * room - z) / x / 2, math.sqrt(most) * math.sqrt(y) / math.sqrt(x))
    tried, all_tried = _around(start, low, min(high, least))
    counts = samples(tried)
    b = int(tried[np.flatnonzero(counts == counts.min())[-1]])
    steps = round(float(counts.min()) / b)
    because = [f"{known}; for real b and K it takes b = {real:.4g}"]
    if y == 0:
        because.append("without gradient noise a larger batch only costs samples")
    if not all_tried:
        because.append(f"of the integers near it {_MOST_TRIED:,} were tried")
    if n is not None and b > n:
        because.append(f"that is more than the {n:,} samples there are: with replacement only")
    if z:
        because.append("momentum's share is that of Corollary 3, with T_0 = ceil(n/b)")
    if known.floor:
        because.append(f"constant momentum keeps {known.floor:.4g} of epsilon from the batch size")
    if known.floor or z:
        plain = critical_batch_size(problem, lr=lr, epsilon=target)
        because.append(f"momentum does not improve this bound: gamma=0 takes {plain.samples:,}")
    if target >= (known_before := trivial(problem)):
        because.append(f"VACUOUS: ||∇f(x_0)||² <= {known_before:.4g} before any step")
    asked = f"epsilon {target:.6g} at lr {_said(lr)}"
    return CriticalBatch(asked, b, steps, b * steps, known.bound(b, steps), real, tuple(because))


def best_constant_batch(
    problem: Problem,
    *,
    lr: float | Schedule,
    samples: int,
    beta: float | Schedule = 0.0,
    gamma: float | Schedule = 0.0,
) -> CriticalBatch:
    """The constant batch size with the least bound of Theorem 2 for so many samples.

    At constant lr and K = N/b steps, X b/N + Y/b is least at b = √(N Y/X): 2 √(XY/N). With
    K = ⌊N/b⌋ every integer b is tried that could be the best.

    Args:
        problem, lr: as in `critical_batch_size`.
        samples: N >= 1.
        beta, gamma: numbers; constant momentum adds a floor and does not move b.

    Returns:
        A `CriticalBatch`.

    Raises:
        ValueError: an argument is out of range.

    >>> problem = Problem(initial_gap=1.0, smoothness=2.0, variance=1.0, gradient_bound=3.0)
    >>> best = best_constant_batch(problem, lr=0.1, samples=1_000_000)
    >>> best.batch_size, best.steps, round(best.bound, 6), round(best.real_batch_size, 6)
    (100, 10000, 0.002222, 100.0)
    """
    budget = as_count(samples, "samples")
    for name, value in (("beta", beta), ("gamma", gamma)):
        if isinstance(value, StepDecay):
            raise ValueError(f"{name} must be a number, got {value!r}")
    known = _constants(problem, lr, beta, gamma, None)
    x, y = known.x, known.y
    real = math.sqrt(budget) * math.sqrt(y) / math.sqrt(x)

    def bound(batch_size: NDArray[np.float64]) -> NDArray[np.float64]:
        return x / np.floor(budget / batch_size) + y / batch_size

    start = float(max(1, math.floor(min(real, budget))))
    least = float(bound(np.array([start, min(start + 1, budget)])).min())
    # x b² − least N b + N y <= 0 wherever the bound could be less.
    low, high = _roots(least * budget / x / 2, real)
    tried, all_tried = _around(start, low, min(high, budget))
    tried = tried[tried <= budget]
    b = int(tried[np.argmin(bound(tried))])
    steps = budget // b
    because = [f"{known}; for real b and K it takes b = {real:.4g}"]
    if not all_tried:
        because.append(f"of the integers near it {_MOST_TRIED:,} were tried")
    value = known.bound(b, steps)
    if value >= (known_before := trivial(problem)):
        because.append(f"VACUOUS: ||∇f(x_0)||² <= {known_before:.4g} before any step")
    asked = f"{budget:,} samples at lr {_said(lr)}"
    return CriticalBatch(asked, b, steps, b * steps, value, real, tuple(because))


def _roots(half: float, mean: float) -> tuple[float, float]:
    """Those of b² − 2 half b + mean², or 0 and inf where floats do not hold them."""
    high = half + math.sqrt(max(half - mean, 0)) * math.sqrt(half + mean)
    if not 0 < high < math.inf:
        return 0.0, math.inf
    return mean / high * mean, high


def _around(center: float, low: float, high: float) -> tuple[NDArray[np.float64], bool]:
    """The integers from low to high, or as many around the center as are tried; whether all."""
    first, last = max(1, math.floor(low) - 1), math.ceil(high) + 1
    every = last - first < _MOST_TRIED
    if not every:
        first = max(first, int(center) - _MOST_TRIED // 2)
        last = min(last, first + _MOST_TRIED)
    return np.arange(first, last + 1, dtype=np.float64), every


def _said(lr: float | Schedule) -> str:
    return f"{_number(lr, 'lr', 'a number', lambda x: True):.6g}"


# ------------------------------------------------------------------------------------- which lr


@final
@dataclass(frozen=True)
class MaxLR:
    """The greatest constant lr of which each bound speaks, for constant beta and gamma.

    Attributes:
        beta, gamma: the momentum.
        theorem2: of the printed form: lr < 2/L.
        theorem2_per_step: lr < 2/(L (1 − βγ)).
        theorem4: lr <= 2 (1 − β)/β; inf for β = 0.
        auxiliary: lr < 2/(L (1 + 2βγ/(1 − β))), with the best split, at every K.
    """

    beta: float
    gamma: float
    theorem2: float
    theorem2_per_step: float
    theorem4: float
    auxiliary: float

    def __str__(self) -> str:
        return "\n".join(
            [
                f"greatest lr at beta {self.beta:.6g}, gamma {self.gamma:.6g}",
                f"  Theorem 2, printed   lr <  {self.theorem2:.6g}",
                f"  Theorem 2, per step  lr <  {self.theorem2_per_step:.6g}",
                f"  Theorem 4            lr <= {self.theorem4:.6g}",
                f"  auxiliary            lr <  {self.auxiliary:.6g}",
            ]
        )


def max_lr(problem: Problem, *, beta: float = 0.0, gamma: float = 0.0) -> MaxLR:
    """The greatest constant lr of which each bound speaks.

    Args:
        problem: of which L is read.
        beta: in [0, 1).
        gamma: in [0, 1].

    Raises:
        ValueError: beta or gamma is out of range.

    >>> problem = Problem(initial_gap=1.0, smoothness=2.0, variance=1.0, gradient_bound=3.0)
    >>> print(max_lr(problem, beta=0.9, gamma=1.0))
    greatest lr at beta 0.9, gamma 1
      Theorem 2, printed   lr <  1
      Theorem 2, per step  lr <  10
      Theorem 4            lr <= 0.222222
      auxiliary            lr <  0.0526316
    """
    b = _number(beta, "beta", "in [0, 1)", lambda x: 0 <= x < 1)
    g = _number(gamma, "gamma", "in [0, 1]", lambda x: 0 <= x <= 1)
    most, q = 2 / problem.smoothness, b * g
    fourth = 2 * (1 - b) / b if b else math.inf
    return MaxLR(b, g, most, most / (1 - q), fourth, most / (1 + 2 * q / (1 - b)))
