"""The auxiliary bound: momentum of any size, with no decay of it and no bound on the gradient.

Not in the paper, which says that the sequence behind it needs a constant learning rate (Liu et al.,
2020). Built backwards from the horizon it does not. `docs/theory.md` has the proof.
"""

import math
from typing import final

import numpy as np
from numpy.typing import NDArray

from batchramp.theory.bound import Array, Condition, Evaluated, over, positive, total
from batchramp.theory.layout import Segments
from batchramp.theory.problem import Problem

__all__ = ["evaluate_auxiliary", "most_lr"]

_STATEMENT = "eta (2 - s - L eta) >= L^2 v/s at every step"
# A momentum buffer has forgotten what is this many nepers ago: e^-40 is below a float's last digit.
_MEMORY = 40.0
# Steps of one segment that are looked at one by one.
_MOST_LOOKED_AT = 1_000_000
# A bracket, relative to its step size, that counts as not negative.
_ROUNDING = 1e-13
# Horizons times segments that are held at once.
_AT_ONCE = 2_000_000
# Halvings in the search for the edge of the splits that are allowed.
_HALVINGS = 20


@np.errstate(all="ignore")  # what overflows is inf, or nan and then inf, by over() and total()
def evaluate_auxiliary(
    cut: Segments, ends: NDArray[np.int64], problem: Problem, split: float | str
) -> Evaluated:
    """The auxiliary bound of the first ``ends`` segments, for each of ``ends``; see `auxiliary`."""
    # Each horizon has a backward recursion of its own.
    at_once = max(1, _AT_ONCE // len(cut.count))
    blocks = [
        _Shadow(cut, ends[start : start + at_once], problem).evaluate(split)
        for start in range(0, len(ends), at_once)
    ]
    return Evaluated(
        blocks[0].source,
        np.concatenate([block.values for block in blocks]),
        {name: np.concatenate([b.terms[name] for b in blocks]) for name in blocks[0].terms},
        lambda i: blocks[i // at_once].conditions(i % at_once),
    )


def most_lr(smoothness: float, reach: float, split: float | None = None) -> float:
    """The constant lr below which the auxiliary bound holds at every K.

    Args:
        smoothness: L.
        reach: r = βγ/(1 − β).
        split: s; None for the best, which gives 2/(L (1 + 2r)).

    With x = Lα the brackets stay >= 0 where 2 − s − x − (x r)²/s >= 0, which is
    x <= 2s(2 − s)/(s + √(s² + 4 r² s (2 − s))).

    >>> most_lr(2.0, 9.0), most_lr(2.0, 0.0, split=1.0)
    (0.05263157894736842, 0.5)
    """
    if split is None:
        return 2 / (smoothness * (1 + 2 * reach))
    root = math.sqrt(split**2 + 4 * reach**2 * split * (2 - split))
    return 2 * split * (2 - split) / (split + root) / smoothness


@final
class _Shadow:
    """The points z_k = x_k − c_k d_{k−1} over segments, for several horizons K.

    Let w_i = Σ_{k>i} η_k c_k² Π_{i<j<k} β_j, so that v_i = (1−β_i) w_i. Inside a segment, c and w
    obey affine recursions with constant coefficients: j steps before its end, with u = β^j,
    c* = αq/(1−β) and D = c(end) − c*,

        η = α + (1−β) D u,   c = c* + β D u,   η c² = h0 + h1 u + h2 u² + h3 u³,

    and every sum is geometric. Arrays have the shape ``[segments, horizons]``, those of what is
    constant in a segment ``[segments, 1]``.
    """

    def __init__(self, cut: Segments, ends: NDArray[np.int64], problem: Problem) -> None:
        self.cut, self.ends, self.problem = cut, ends, problem
        self.lr, self.beta, self.count = (a[:, None] for a in (cut.lr, cut.beta, cut.count))
        self.q = self.beta * cut.gamma[:, None]
        self.fresh = 1 - self.beta
        self.log_beta = np.log(self.beta)  # -inf for beta = 0
        self.still = self.lr * self.q / self.fresh  # c*
        self.used = np.arange(len(cut.count))[:, None] < ends
        self.kept, self.kernels = self._kernels(self.count)
        self.c, self.w = self._backward()
        self.d = self.c - self.still
        self.h = self._cubic(self.d)

    def evaluate(self, split: float | str) -> Evaluated:
        problem, beta, count = self.problem, self.beta, self.count
        smoothness, swing = problem.smoothness, self.fresh * self.d
        g1 = _one_minus_power(self.log_beta, count) / self.fresh  # Σ u, Σ u², Σ u³
        g2 = g1 * (1 + self.kept) / (1 + beta)
        g3 = g1 * (1 + self.kept + self.kept**2) / (1 + beta + beta**2)
        eta = self.lr * count + swing * g1
        eta2 = self.lr**2 * count + 2 * self.lr * swing * g1 + swing**2 * g2
        h0, h1, h2, h3 = self.h
        # Σ v = Σ (1−β) w telescopes, for each w is h + β w of the step after it.
        first = self.kept * self.w + sum(
            h * kernel for h, kernel in zip(self.h, self.kernels, strict=True)
        )
        v = np.maximum(h0 * count + h1 * g1 + h2 * g2 + h3 * g3 + self.w - first, 0)
        steps, squares, echo = (np.sum(a * self.used, axis=0) for a in (eta, eta2, v))
        per_sample = self.used / self.cut.batch_size[:, None]
        noise, echo_noise = (np.sum(a * per_sample, axis=0) for a in (eta2, v))
        sums = _Sums(
            gap=2 * problem.initial_gap,
            noise=problem.variance * smoothness * noise,
            echo_noise=problem.variance * smoothness * smoothness * echo_noise,
            steps=steps,
            squares=smoothness * squares,
            echo=smoothness * smoothness * echo,
        )
        splits = self._best_splits(sums) if split == "best" else np.full(len(self.ends), split)
        failing = self._failing(splits)
        terms = sums.terms(splits)
        below = sums.below(splits)
        values = np.where((failing < 0) & (below > 0), total(terms), np.inf)

        def conditions(i: int) -> list[Condition]:
            asked = None if split == "best" else float(splits[i])
            step = Condition(_STATEMENT, True)
            if failing[i] >= 0:
                step = self._condition(i, float(splits[i]), asked)
            return [step, positive(failing[i] >= 0 or bool(below[i] > 0))]

        return Evaluated("auxiliary, not in the paper", values, terms, conditions)

    # ------------------------------------------------------------------------- the two recursions

    def _backward(self) -> tuple[Array, Array]:
        """c and w behind each segment."""
        g0, g1, g2, g3 = self.kernels
        lr, beta, fresh, still = self.lr, self.beta, self.fresh, self.still
        # What a segment adds to w, as a polynomial in D; see `_cubic`.
        columns = [
            column[:, 0].tolist()
            for column in (
                self.kept,
                still,
                lr * still**2 * g0,
                still * (2 * lr * beta + fresh * still) * g1,
                beta * (lr * beta + 2 * fresh * still) * g2,
                fresh * beta**2 * g3,
            )
        ]
        rows, horizons = self.used.shape
        c, w = np.zeros((rows, horizons)), np.zeros((rows, horizons))
        one = horizons == 1  # in Python's floats, which are faster one by one
        here, weight = (0.0, 0.0) if one else (c[-1], w[-1])
        for i in range(rows - 1, 0, -1):
            kept, fixed, k0, k1, k2, k3 = (column[i] for column in columns)
            used = 1.0 if one else self.used[i]
            d = here - fixed
            weight = used * (kept * weight + k0 + d * (k1 + d * (k2 + d * k3)))
            here = used * (fixed + kept * d)
            c[i - 1], w[i - 1] = here, weight
        return c, w

    def _cubic(self, d: Array) -> tuple[Array, Array, Array, Array]:
        """h0..h3 of (α + (1−β) D u)(c* + β D u)²."""
        lr, beta, fresh, still = self.lr, self.beta, self.fresh, self.still
        return (
            lr * still**2,
            still * (2 * lr * beta + fresh * still) * d,
            beta * (lr * beta + 2 * fresh * still) * d**2,
            fresh * beta**2 * d**3,
        )

    def _kernels(self, count: Array) -> tuple[Array, tuple[Array, Array, Array, Array]]:
        """β^T, and Σ_{i<T} β^{T−1−i} β^{ri} for r = 0..3: what T steps make of h0..h3 in w."""
        gone = _one_minus_power(self.log_beta, count)
        kept = 1 - gone
        before = _power(self.log_beta, count - 1)
        share = before * gone / self.fresh
        return kept, (
            gone / self.fresh,
            count * before,
            share,
            share * (1 + kept) / (1 + self.beta),
        )

    # --------------------------------------------------------------------- where the brackets hold

    def _best_splits(self, sums: "_Sums") -> Array:
        """For each horizon the split of the least bound, as far as the brackets allow it."""
        least = np.clip(sums.least(), 1e-12, 2 - 1e-12)
        x, y = self._extremes()
        room = np.maximum((2 - x) ** 2 - 4 * y, 0)
        low, high = (2 - x - np.sqrt(room)) / 2, (2 - x + np.sqrt(room)) / 2
        safe = np.clip(np.clip(least, low, high), 1e-12, 2 - 1e-12)
        widest = np.clip(np.sqrt(y), 1e-12, 2 - 1e-12)
        splits, found = least, self._failing(least) < 0
        if found.all():
            return splits
        splits = np.where(found, least, 1.0)
        for fallback in (safe, widest, np.ones_like(least)):
            holds = self._failing(fallback) < 0
            splits = np.where(~found & holds, fallback, splits)
            found |= holds
        # The bound is quasiconvex in s: it falls all the way to the edge of what is allowed.
        good, bad = splits, least
        for _ in range(_HALVINGS):
            middle = (good + bad) / 2
            holds = found & (self._failing(middle) < 0)
            good, bad = np.where(holds, middle, good), np.where(holds, bad, middle)
        return good

    def _at_the_ends(self) -> tuple[Array, Array, Array]:
        """η of a segment's last and first step, and what no v in the segment exceeds."""
        last = np.ones_like(self.count)
        first = _power(self.log_beta, self.count - 1)
        etas = [np.maximum(self.lr + self.fresh * self.d * u, 0) for u in (last, first)]
        cs = [self.still + self.beta * self.d * u for u in (last, first)]
        # w is a mean of its end and of h/(1−β), and h is monotone in a segment, as η and c are.
        h = np.maximum(etas[0] * cs[0] ** 2, etas[1] * cs[1] ** 2)
        return etas[0], etas[1], np.maximum(self.fresh * self.w, h)

    def _extremes(self) -> tuple[Array, Array]:
        """What L η and L² v/η do not exceed, each over all steps."""
        last, first, v = self._at_the_ends()
        smoothness = self.problem.smoothness
        x = np.max(np.where(self.used, np.maximum(last, first), 0), axis=0) * smoothness
        y = np.where(self.used & (v > 0), over(v, np.minimum(last, first)), 0)
        return x, np.minimum(np.max(y, axis=0) * smoothness * smoothness, 4.0)

    def _failing(self, s: Array) -> NDArray[np.int64]:
        """A segment with a negative bracket η(2 − s − Lη) − L² v/s; -1 if there is none."""
        surely, doubtful = self._suspects(s)
        failing = np.where(surely.any(axis=0), surely.argmax(axis=0), -1)
        for horizon in np.flatnonzero((failing < 0) & doubtful.any(axis=0)).tolist():
            for segment in np.flatnonzero(doubtful[:, horizon]).tolist():
                if self._negative(segment, horizon, float(s[horizon])) is not None:
                    failing[horizon] = segment
                    break
        return failing

    def _suspects(self, s: Array) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Segments whose last bracket is negative, and those of which any may be."""
        smoothness = self.problem.smoothness
        last, first, v = self._at_the_ends()
        open_last, open_first = (eta * (2 - s - smoothness * eta) for eta in (last, first))
        square = smoothness * smoothness / s
        # Concave in η, so least at an end; v may be less than this, so a closer look follows.
        least = np.minimum(open_last, open_first) - square * v
        doubtful = self.used & ~(least >= -_ROUNDING * np.maximum(last, first))
        at_the_end = open_last - square * self.fresh * self.w
        return doubtful & ~(at_the_end >= -_ROUNDING * last), doubtful

    @np.errstate(all="ignore")
    def _negative(self, segment: int, horizon: int, s: float) -> float | None:
        """The first step of a segment with a negative bracket, None if there is none.

        Looks at each step back from the end until momentum has forgotten that.
        """
        lr, beta, fresh, log_beta, count = (
            float(a[segment, 0])
            for a in (self.lr, self.beta, self.fresh, self.log_beta, self.count)
        )
        d, w = float(self.d[segment, horizon]), float(self.w[segment, horizon])
        h = [float(np.broadcast_to(a, self.used.shape)[segment, horizon]) for a in self.h]
        looked_at = math.ceil(min(count, _MEMORY / -log_beta + 2, _MOST_LOOKED_AT))
        j = np.append(np.arange(looked_at, dtype=np.float64), count - 1)
        u = _power(log_beta, j)
        before = np.where(j > 0, _power(log_beta, j - 1), 0)
        gone = np.where(j > 0, _one_minus_power(log_beta, np.maximum(j, 1)), 0)
        share = before * gone / fresh
        weight = u * w + h[0] * gone / fresh + h[1] * j * before
        weight += h[2] * share + h[3] * share * (1 + u) / (1 + beta)
        eta = lr + fresh * d * u
        smoothness = self.problem.smoothness
        bracket = eta * (2 - s - smoothness * eta) - smoothness * smoothness * fresh * weight / s
        negative = j[~(bracket >= -_ROUNDING * np.abs(eta))]
        return None if not len(negative) else count - 1 - float(negative.max())

    @np.errstate(all="ignore")
    def _condition(self, horizon: int, split: float, asked: float | None) -> Condition:
        """Of one horizon, with the split that was used; ``asked``: by the caller, if by any."""
        _, doubtful = self._suspects(np.full(len(self.ends), split))
        for segment in np.flatnonzero(doubtful[:, horizon]).tolist():
            step = self._negative(segment, horizon, split)
            if step is not None:
                break
        else:
            raise AssertionError("a bracket was negative")
        # c gathers what is ahead, so the lr to blame may come later.
        needed = "a smaller lr, or smaller jumps of lr, beta and gamma"
        reach = self.q[segment:, 0] / self.fresh[segment:, 0]
        for ahead, (lr, r) in enumerate(
            zip(self.lr[segment:, 0].tolist(), reach.tolist(), strict=True)
        ):
            allowed = most_lr(self.problem.smoothness, r, asked)
            if lr >= allowed:
                at = f" at tick {self.cut.tick[segment + ahead]}" if ahead else ""
                needed = f"lr < {allowed:.6g} with this beta and gamma{at}, not {lr:.6g}"
                break
        return Condition(_STATEMENT, False, int(self.cut.tick_at(segment, step)), needed)


@final
class _Sums:
    """The bound as a function of the split: what it is made of, by horizon."""

    def __init__(
        self,
        *,
        gap: float,
        noise: Array,
        echo_noise: Array,
        steps: Array,
        squares: Array,
        echo: Array,
    ) -> None:
        self.gap, self.noise, self.echo_noise = gap, noise, echo_noise
        self.steps, self.squares, self.echo = steps, squares, echo

    def below(self, s: Array) -> Array:
        """The denominator."""
        return (2 - s) * self.steps - self.squares - self.echo / s

    def terms(self, s: Array) -> dict[str, Array]:
        below = self.below(s)
        return {
            "A": over(self.gap, below),
            "B": over(self.noise, below),
            "B momentum": over(self.echo_noise / s, below),
        }

    def least(self) -> Array:
        """Where the bound is least.

        Times s it is an affine over a concave function of s, so quasiconvex, and its derivative's
        zeros are those of s² + 2 h s − (echo + h (2 steps − squares))/steps, with
        h = echo_noise/(gap + noise).
        """
        h = self.echo_noise / (self.gap + self.noise)
        rest = np.where(
            self.steps > 0, over(self.echo + h * (2 * self.steps - self.squares), self.steps), 0
        )
        return np.sqrt(np.maximum(h**2 + rest, 0)) - h


def _power(log_base: Array | float, exponent: Array) -> Array:
    """base^exponent, with 0^0 = 1."""
    positive_exponent = np.maximum(exponent, 1)
    return np.where(exponent > 0, np.exp(positive_exponent * log_base), 1.0)


def _one_minus_power(log_base: Array | float, exponent: Array) -> Array:
    """1 − base^exponent without cancellation, for exponents > 0."""
    return -np.expm1(exponent * log_base)
