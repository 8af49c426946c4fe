"""Tests for few paired seeds: sign flips, paired t, Holm, equivalence.

They take the differences between two runs of the same seed, one number a seed. The null hypothesis
of the sign-flip test is that a difference is as likely to have the other sign; every assignment of
signs is counted, so that its p-value is exact and cannot fall below 2 / 2^n. That floor is too high
for Holm's correction over many tests; the paired t-test has none, at the price of assuming that the
differences are normal.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

__all__ = [
    "effect_size",
    "equivalence",
    "holm",
    "paired_t",
    "seeds_needed",
    "sign_flip",
    "wilson",
]

ALTERNATIVES = ("two-sided", "greater", "less")

# Up to here all 2^n assignments of signs are counted; beyond, this many are drawn.
_EXACT_UP_TO = 20
_DRAWS = 99_999


def sign_flip(differences: Sequence[float], alternative: str = "two-sided") -> float:
    """The p-value of the sign-flip test on the mean of paired differences.

    p = #{s in {-1, 1}^n : Σ s_i d_i at least as extreme as Σ d_i} / 2^n, exact up to n = 20; above
    that from 99,999 assignments drawn with a fixed seed, the observed one counted among them.

    Args:
        differences: one a seed, finite.
        alternative: "two-sided", "greater" (the mean is above 0) or "less".

    Returns:
        p in (0, 1]. At least 2 / 2^n two-sided, 1 / 2^n one-sided.

    Raises:
        ValueError: no difference, one that is not finite, or an unknown alternative.

    >>> sign_flip([0.4, 0.2, 0.3])
    0.25
    >>> sign_flip([0.4, 0.2, 0.3], "greater")
    0.125
    """
    _check_alternative(alternative)
    d = _differences(differences)
    observed = float(d.sum())
    if len(d) <= _EXACT_UP_TO:
        sums = np.zeros(1)
        for value in d:
            sums = np.concatenate([sums + value, sums - value])
        extra = 0
    else:
        signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(_DRAWS, len(d)))
        sums, extra = signs @ d, 1
    # Sums that are equal on paper differ in the last bits: an order of summation is not evidence.
    slack = 1e-9 * float(np.abs(d).sum())
    if alternative == "two-sided":
        extreme = np.abs(sums) >= abs(observed) - slack
    elif alternative == "greater":
        extreme = sums >= observed - slack
    else:
        extreme = sums <= observed + slack
    return (int(extreme.sum()) + extra) / (len(sums) + extra)


def paired_t(differences: Sequence[float], alternative: str = "two-sided") -> float:
    """The p-value of the paired t-test, t = mean / (sd / √n) with n - 1 degrees of freedom.

    Args:
        differences: one a seed, at least two, finite.
        alternative: as in `sign_flip`.

    Returns:
        p in [0, 1]; where all differences are equal, 0 if they point the alternative's way, else 1.

    Raises:
        ValueError: as `sign_flip`, or a single difference.

    >>> round(paired_t([1.0, 2.0, 3.0]), 4)
    0.0742
    """
    _check_alternative(alternative)
    d = _differences(differences)
    if len(d) < 2:
        raise ValueError("differences must be at least two: one has no spread")
    mean, error = float(d.mean()), float(d.std(ddof=1)) / math.sqrt(len(d))
    if alternative != "two-sided":
        mean = mean if alternative == "greater" else -mean
    # What is left of equal numbers after rounding is no spread.
    if error <= 1e-12 * abs(mean) or error == 0:
        return 0.0 if (mean > 0 or (mean < 0 and alternative == "two-sided")) else 1.0
    both = _t_beyond(abs(mean) / error, len(d) - 1)
    if alternative == "two-sided":
        return both
    return both / 2 if mean > 0 else 1 - both / 2


def equivalence(
    differences: Sequence[float],
    margin: float,
    test: Callable[[Sequence[float], str], float] = sign_flip,
) -> float:
    """The p-value of two one-sided tests: is the mean within ±margin?

    The greater of the p-values of "the mean is above -margin" and "the mean is below margin". A
    small p says alike; a large one says nothing.

    Args:
        differences: one a seed, finite.
        margin: what still counts as alike, > 0, stated before the numbers are seen.
        test: `sign_flip` or `paired_t`.

    Raises:
        ValueError: as the test, or a margin that is not above 0.

    >>> equivalence([0.1, -0.2, 0.0, 0.1, -0.1, 0.2, 0.1, -0.1], margin=0.5)
    0.00390625
    >>> equivalence([0.6] * 8, margin=0.5)
    1.0
    """
    if not margin > 0:
        raise ValueError(f"margin must be > 0, got {margin!r}")
    d = _differences(differences)
    return max(test([x + margin for x in d], "greater"), test([x - margin for x in d], "less"))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given.

    The i-th smallest of m is multiplied by m - i + 1, made monotone and cut at 1. Rejecting those
    at most α errs at all with probability at most α, however the tests depend on each other.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError(f"p_values must be in [0, 1], got {list(p_values)!r}")
    adjusted = [0.0] * len(p_values)
    least = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = least
    return adjusted


def effect_size(differences: Sequence[float]) -> float:
    """Cohen's d_z: the mean over the standard deviation of paired differences; nan if that is 0.

    >>> effect_size([1.0, 2.0, 3.0])
    2.0
    """
    d = _differences(differences)
    spread = float(d.std(ddof=1)) if len(d) > 1 else 0.0
    return float(d.mean()) / spread if spread > 0 else math.nan


def seeds_needed(tests: int, level: float = 0.05, sides: int = 2) -> int:
    """The least n at which the smallest sign-flip p, sides / 2^n, survives Holm over ``tests``.

    A test of equivalence is one-sided at each margin: its floor is 1 / 2^n.

    >>> seeds_needed(1), seeds_needed(6), seeds_needed(7), seeds_needed(7, sides=1)
    (6, 8, 9, 8)
    """
    return math.ceil(math.log2(sides * max(tests, 1) / level) - 1e-12)


def wilson(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval for a share: of 95 % at z = 1.96, for trials that are independent.

    (p + z²/2n ± z √(p (1 - p)/n + z²/4n²)) / (1 + z²/n), p = successes / n (Wilson, 1927).

    >>> low, high = wilson(45, 50)
    >>> round(low, 3), round(high, 3)
    (0.786, 0.957)
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"successes must be in 0..trials, got {successes} of {trials}")
    p, n = successes / trials, trials
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def _t_beyond(t: float, degrees: int) -> float:
    """P(|T| > t) for Student's t, by its finite sums (Abramowitz and Stegun 26.7.3, 26.7.4)."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine2 = math.cos(angle) ** 2
    odd = degrees % 2
    term, total = math.cos(angle) if odd else 1.0, 0.0
    for k in range(1 + odd, degrees, 2):
        total += term
        term *= cosine2 * k / (k + 1)
    inside = math.sin(angle) * total
    if odd:
        inside = 2 / math.pi * (angle + inside)
    return min(1.0, max(0.0, 1 - inside))


def _check_alternative(alternative: str) -> None:
    if alternative not in ALTERNATIVES:
        allowed = ", ".join(ALTERNATIVES)
        raise ValueError(f"alternative must be one of {allowed}, got {alternative!r}")


def _differences(differences: Sequence[float]) -> np.ndarray:
    d = np.asarray(differences, dtype=float)
    if d.ndim != 1 or len(d) == 0 or not np.isfinite(d).all():
        raise ValueError(f"differences must be finite numbers, one a seed, got {differences!r}")
    return d
