"""The auxiliary bound: momentum of any size, with no decay of it and no bound on the gradient.

Not in the paper, which says that the sequence behind it needs a constant learning rate (Liu et al.,
2020). Built backwards from the horizon it does not. `docs/theory.md` has the proof.
"""

import math
from functools import cached_property
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
# Steps of one run that are looked at one by one.
_MOST_LOOKED_AT = 1_000_000
# (1 - beta) times the steps of a run below which its geometric sums would cancel too many digits.
_SHORT = 0.02
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
    runs = _Runs(cut)
    blocks = [
        _Shadow(cut, runs, ends[start : start + at_once], problem).evaluate(split)
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
class _Runs:
    """What each run of like steps does to c and w, as polynomials of c at its end.

    Let w_i = Σ_{k>i} η_k c_k² Π_{i<j<k} β_j, so that v_i = (1−β_i) w_i. Inside a run both obey
    affine recursions with constant coefficients: j steps before its end, with u = β^j,
    c* = αq/(1−β) and D = c(end) − c*,

        η = α + (1−β) D u,   c = c* + β D u,   η c² = h0 + h1 u + h2 u² + h3 u³,

    and every sum is geometric. Where (1−β) times the steps is small, c* is large and D cancels it;
    there D = c(end), and a power of the matrix of one step takes the place of the sums.

    Arrays have the shape ``[runs, 1]``; a polynomial is a tuple of them, lowest power first.
    """

    def __init__(self, cut: Segments) -> None:
        self.lr, self.beta, self.count = (a[:, None] for a in (cut.lr, cut.beta, cut.count))
        self.q = self.beta * cut.gamma[:, None]
        self.fresh = 1 - self.beta
        self.log_beta = np.log(self.beta)  # -inf for beta = 0
        lr, beta, count, fresh, log_beta = self.lr, self.beta, self.count, self.fresh, self.log_beta
        self.shift = still = lr * self.q / fresh  # D = c − shift
        self.kept = kept = _power(log_beta, count)  # c before = add + kept D
        gone = _one_minus_power(log_beta, count)
        before = _power(log_beta, count - 1)
        self.cubic = (  # h0..h3 are these times 1, D, D², D³
            lr * still**2,
            still * (2 * lr * beta + fresh * still),
            beta * (lr * beta + 2 * fresh * still),
            fresh * beta**2,
        )
        # Σ u^r over the steps, and Σ β^(T−1−i) u_i^r: what they leave of h in w.
        one = gone / fresh
        plain = (count, one, one * (1 + kept) / (1 + beta),
                 one * (1 + kept + kept**2) / (1 + beta + beta**2))  # fmt: skip
        share = before * one
        faded = (one, count * before, share, share * (1 + kept) / (1 + beta))
        self.add = still
        self.w = tuple(h * g for h, g in zip(self.cubic, faded, strict=True))
        self.eta = (lr * count, fresh * one)
        self.eta2 = (lr**2 * count, 2 * lr * fresh * one, fresh**2 * plain[2])
        # Σ (1−β) w telescopes, for each w is h + β w of the step after it.
        self.v = tuple(h * (g - f) for h, g, f in zip(self.cubic, plain, faded, strict=True))
        self.v_of_w = gone
        self.short = (fresh * count < _SHORT)[:, 0]
        if self.short.any():
            self._step_by_step(np.flatnonzero(self.short))

    def _step_by_step(self, runs: NDArray[np.int64]) -> None:
        """Short runs, by powers of a matrix without a negative entry: nothing cancels."""
        lr, q, beta, fresh = (a[runs, 0] for a in (self.lr, self.q, self.beta, self.fresh))
        slow, pull = lr * (1 - q), lr * q  # η = slow + fresh c, c before = pull + β c
        h = (
            slow * pull**2,
            2 * slow * pull * beta + fresh * pull**2,
            slow * beta**2 + 2 * fresh * pull * beta,
            fresh * beta**2,
        )
        # State: 1, c, c², c³, w, Σ η, Σ η², Σ v.
        step = np.zeros((len(runs), 8, 8))
        step[:, 0, 0] = step[:, 5, 5] = step[:, 6, 6] = step[:, 7, 7] = 1
        step[:, 1, 0], step[:, 1, 1] = pull, beta
        step[:, 2, :3] = np.stack([pull**2, 2 * pull * beta, beta**2], 1)
        step[:, 3, :4] = np.stack([pull**3, 3 * pull**2 * beta, 3 * pull * beta**2, beta**3], 1)
        step[:, 4, :5] = np.stack([*h, beta], 1)
        step[:, 5, :2] = np.stack([slow, fresh], 1)
        step[:, 6, :3] = np.stack([slow**2, 2 * slow * fresh, fresh**2], 1)
        step[:, 7, 4] = fresh
        power = np.broadcast_to(np.eye(8), step.shape).copy()
        left = self.count[runs, 0].astype(np.int64)
        while left.any():
            odd = left % 2 == 1
            power[odd] = step[odd] @ power[odd]
            left //= 2
            step = step @ step
        self.shift, self.add = self.shift.copy(), self.add.copy()
        self.shift[runs], self.add[runs] = 0, power[:, 1, :1]
        for name, row, size in (("w", 4, 4), ("eta", 5, 2), ("eta2", 6, 3), ("v", 7, 4)):
            polynomial = tuple(a.copy() for a in getattr(self, name))
            for i in range(size):
                polynomial[i][runs, 0] = power[:, row, i]
            setattr(self, name, polynomial)
        self.v_of_w = self.v_of_w.copy()
        self.v_of_w[runs, 0] = power[:, 7, 4]

    def c_at(self, j: Array, c: Array) -> Array:
        """c behind the step that is j steps before a run's end; no term is negative."""
        gone = np.where(j > 0, _one_minus_power(self.log_beta, np.maximum(j, 1)), 0)
        return _power(self.log_beta, j) * c + self.lr * self.q * gone / self.fresh


@final
class _Shadow:
    """The points z_k = x_k − c_k d_{k−1} over runs of like steps, for several horizons K.

    Arrays have the shape ``[runs, horizons]``; c and w are those behind each run.
    """

    def __init__(
        self, cut: Segments, runs: _Runs, ends: NDArray[np.int64], problem: Problem
    ) -> None:
        self.cut, self.runs, self.ends, self.problem = cut, runs, ends, problem
        self.used = np.arange(len(cut.count))[:, None] < ends
        self.c, self.w = self._backward()

    def _backward(self) -> tuple[Array, Array]:
        runs = self.runs
        columns = [a[:, 0].tolist() for a in (runs.shift, runs.add, runs.kept, *runs.w)]
        rows, horizons = self.used.shape
        c, w = np.zeros((rows, horizons)), np.zeros((rows, horizons))
        one = horizons == 1  # in Python's floats, which are faster one by one
        here, weight = (0.0, 0.0) if one else (c[-1], w[-1])
        for i in range(rows - 1, 0, -1):
            shift, add, kept, w0, w1, w2, w3 = (column[i] for column in columns)
            used = 1.0 if one else self.used[i]
            d = here - shift
            weight = used * (kept * weight + w0 + d * (w1 + d * (w2 + d * w3)))
            here = used * (add + kept * d)
            c[i - 1], w[i - 1] = here, weight
        return c, w

    def evaluate(self, split: float | str) -> Evaluated:
        problem, runs = self.problem, self.runs
        smoothness, d = problem.smoothness, self.c - runs.shift
        eta = runs.eta[0] + d * runs.eta[1]
        eta2 = runs.eta2[0] + d * (runs.eta2[1] + d * runs.eta2[2])
        v0, v1, v2, v3 = runs.v
        v = np.maximum(v0 + d * (v1 + d * (v2 + d * v3)) + runs.v_of_w * self.w, 0)
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

    @cached_property  # no split enters, and many are tried
    def _at_the_ends(self) -> tuple[Array, Array, Array]:
        """η of a run's last and first step, and what no v in the run exceeds."""
        runs = self.runs
        after = self.c, runs.c_at(runs.count - 1, self.c)  # c behind the last and first step
        etas = [runs.lr * (1 - runs.q) + runs.fresh * c for c in after]
        h = [
            eta * (runs.lr * runs.q + runs.beta * c) ** 2
            for eta, c in zip(etas, after, strict=True)
        ]
        # w is a mean of its end and of h/(1−β), and h is monotone in a run, as η and c are.
        return etas[0], etas[1], np.maximum(runs.fresh * self.w, np.maximum(*h))

    def _extremes(self) -> tuple[Array, Array]:
        """What L η and L² v/η do not exceed, each over all steps."""
        last, first, v = self._at_the_ends
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
        """Runs whose last bracket is negative, and those of which any may be."""
        smoothness = self.problem.smoothness
        last, first, v = self._at_the_ends
        open_last, open_first = (eta * (2 - s - smoothness * eta) for eta in (last, first))
        square = smoothness * smoothness / s
        # Concave in η, so least at an end; v may be less than this, so a closer look follows.
        doubtful = self.used & ~(np.minimum(open_last, open_first) - square * v >= 0)
        at_the_end = open_last - square * self.runs.fresh * self.w
        return doubtful & ~(at_the_end >= 0), doubtful

    @np.errstate(all="ignore")
    def _negative(self, run: int, horizon: int, s: float) -> float | None:
        """The first step of a doubtful run with a negative bracket, None if there is none.

        Looks at each step back from the end until momentum has forgotten that; where this takes too
        many, what was not looked at counts as negative.
        """
        lr, q, beta, fresh, log_beta, count = (
            float(getattr(self.runs, name)[run, 0])
            for name in ("lr", "q", "beta", "fresh", "log_beta", "count")
        )
        end, w = float(self.c[run, horizon]), float(self.w[run, horizon])
        remembered = math.ceil(min(count, _MEMORY / -log_beta + 2))
        j = np.arange(min(remembered, _MOST_LOOKED_AT), dtype=np.float64)
        short = bool(self.runs.short[run])
        if remembered < count:
            j = np.append(j, count - 1)
        u = _power(log_beta, j)
        gone = np.where(j > 0, _one_minus_power(log_beta, np.maximum(j, 1)), 0)
        c = u * end + lr * q * gone / fresh
        eta = lr * (1 - q) + fresh * c
        if short:  # the sum of what was added at each step, faded since
            h = eta * (lr * q + beta * c) ** 2
            weight = u * (w + np.append(0, np.cumsum(h / (u * beta))[:-1]))
        else:
            d = np.float64(end) - self.runs.shift[run, 0]
            h = [float(a[run, 0]) * d**i for i, a in enumerate(self.runs.cubic)]
            before = np.where(j > 0, _power(log_beta, j - 1), 0)
            share = before * gone / fresh
            weight = u * w + h[0] * gone / fresh + h[1] * j * before
            weight += h[2] * share + h[3] * share * (1 + u) / (1 + beta)
        smoothness = self.problem.smoothness
        bracket = eta * (2 - s - smoothness * eta) - smoothness * smoothness * fresh * weight / s
        negative = j[~(bracket >= 0)]
        if len(negative):
            return count - 1 - float(negative.max())
        return 0.0 if remembered > _MOST_LOOKED_AT else None

    @np.errstate(all="ignore")
    def _condition(self, horizon: int, split: float, asked: float | None) -> Condition:
        """What fails, for one horizon: ``split`` was used, ``asked`` for by the caller, if any."""
        _, doubtful = self._suspects(np.full(len(self.ends), split))
        first, step = next(
            (run, step)
            for run in np.flatnonzero(doubtful[:, horizon]).tolist()
            if (step := self._negative(run, horizon, split)) is not None
        )
        # c gathers what is ahead, so the lr to blame may come later.
        needed = "a smaller lr, or smaller jumps of lr, beta and gamma"
        reach = self.runs.q[first:, 0] / self.runs.fresh[first:, 0]
        for ahead, (lr, r) in enumerate(
            zip(self.cut.lr[first:].tolist(), reach.tolist(), strict=True)
        ):
            allowed = most_lr(self.problem.smoothness, r, asked)
            if lr >= allowed:
                at = f" at tick {self.cut.tick[first + ahead]}" if ahead else ""
                needed = f"lr < {allowed:.6g} with this beta and gamma{at}, not {lr:.6g}"
                break
        return Condition(_STATEMENT, False, int(self.cut.tick_at(first, step)), needed)


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
