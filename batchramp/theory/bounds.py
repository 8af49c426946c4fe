"""Upper bounds on min_k E||∇f(x_k)||² under a Plan, as exact sums over its schedules.

Theorem 2 and Theorem 4 are those of Imaizumi and Iiduka (ACML 2025), as printed and as they hold;
the auxiliary bound is not in the paper. `docs/theory.md` proves each.

Sums run over runs of like steps, never over steps: what they cost goes with the changes of the
schedules, and a Plan of 300 epochs costs the same with 10^3 steps and with 10^12.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from batchramp.plan import Plan
from batchramp.schedules import as_count, as_number
from batchramp.theory.auxiliary import evaluate_auxiliary
from batchramp.theory.bound import (
    Array,
    Bound,
    Condition,
    Evaluated,
    at_start,
    over,
    positive,
    total,
    trivial,
)
from batchramp.theory.layout import Batches, Segments, epoch_ends, segments
from batchramp.theory.problem import Problem

__all__ = [
    "Curve",
    "auxiliary",
    "best_bound",
    "bound_curve",
    "theorem2",
    "theorem4",
]

Name = Literal["theorem2", "theorem4", "auxiliary"]
Which = Literal["best", Name]

# Of each bound: the forms that it takes, the default first. Of the auxiliary bound it is the split.
_FORMS: dict[Name, tuple[str, ...]] = {
    "theorem2": ("per_step", "printed"),
    "theorem4": ("safe", "printed"),
    "auxiliary": ("1.0", "best"),
}
# What the best bound is the least of.
OF_BEST: tuple[tuple[Name, str], ...] = (
    ("theorem2", "per_step"),
    ("theorem4", "safe"),
    ("auxiliary", "best"),
)

# Prefixes of a Plan that the best bound looks at.
_MOST_PREFIXES = 300

# A bound at several horizons, each the end of one of its segments.
_Evaluate = Callable[[Segments, NDArray[np.int64], Problem], Evaluated]


@final
@dataclass(frozen=True, eq=False)
class Curve:
    """A bound after every epoch; prints as a table of a few of them.

    All arrays have the shape ``[epochs]``.

    Attributes:
        epochs: epochs done, from 1; of more than 2,000, some and the last.
        steps: K by then.
        samples: single-sample gradients by then, by the loader's count.
        values: the bound, inf where it does not hold.
        terms: its terms by letter; empty for the best bound.
        sources: which bound each value is.
    """

    epochs: NDArray[np.int64]
    steps: NDArray[np.int64]
    samples: NDArray[np.int64]
    values: Array
    terms: Mapping[str, Array] = field(default_factory=dict)
    sources: tuple[str, ...] = ()

    def __str__(self) -> str:
        shown = np.unique(np.linspace(0, len(self.steps) - 1, 12).astype(np.int64)).tolist()
        rows: list[tuple[str, ...]] = [("epochs", "steps", "samples", "bound", "")]
        for i in shown:
            counts = (f"{int(a[i]):,}" for a in (self.epochs, self.steps, self.samples))
            rows.append((*counts, f"{self.values[i]:.4g}", self.sources[i]))
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        return "\n".join(
            "  ".join([*map(str.rjust, row[:4], widths), row[4]]).rstrip() for row in rows
        )

    __repr__ = __str__


# ----------------------------------------------------------------------------------- the theorems


def theorem2(
    plan: Plan,
    problem: Problem,
    n: int,
    *,
    steps: int | None = None,
    form: Literal["per_step", "printed"] = "per_step",
    batches: Batches = "scheduled",
) -> Bound:
    """Theorem 2 (i): the bound whose momentum term wants beta gamma to vanish.

    With q = βγ, q̄ = max q, a = max α, N = (1 − q̄)(2 − aL) and sums over k < K, the printed form is
    ``2 D0/(N Σα) + L σ²/N · Σ(α²/b)/Σα + 2a(1 + aL)G²/N · Σq/Σα``. The per-step form is the same
    proof before each step is replaced by the worst one, and never larger::

        [2 D0 + L σ² Σ α²(1−q)²/b + G² Σ αq(2|1 − αL(1−q)| + αLq)] / Σ α(1−q)(2 − αL(1−q))

    Args:
        plan: schedules batch size, lr, beta and gamma.
        problem: D0, L, σ², G.
        n: samples of the data set.
        steps: K, at most the Plan's; None for all of them.
        form: "per_step", which needs α(1−q) < 2/L, or "printed", which needs α < 2/L.
        batches: see `segments`.

    Returns:
        A `Bound` with the terms A_K, B_K and C_K.

    Raises:
        ValueError: the Plan leaves lr, beta or gamma to the optimizer, or an argument is out of
            range. A condition that fails does not raise; see `Bound.conditions`.

    >>> plan = Plan(epochs=10, batch_size=8, lr=0.1, beta=0.0, gamma=0.0)
    >>> problem = Problem(initial_gap=1.0, smoothness=2.0, variance=1.0, gradient_bound=3.0)
    >>> print(theorem2(plan, problem, n=800))
    Theorem 2, per step, 1,000 steps: min E||∇f||² <= 0.025
      A_K  0.01111     initial gap
      B_K  0.01389     gradient noise  <- dominant
      C_K  0           momentum
    """
    _check_form(form, _FORMS["theorem2"])
    return _single(partial(_theorem2, form=form), plan, problem, n, steps, batches)


@np.errstate(all="ignore")  # over() makes inf of what overflows
def _theorem2(cut: Segments, ends: NDArray[np.int64], problem: Problem, form: str) -> Evaluated:
    smoothness, lr, q, count = problem.smoothness, cut.lr, cut.beta * cut.gamma, cut.count
    if form == "printed":
        most, q_most = np.maximum.accumulate(lr)[ends - 1], np.maximum.accumulate(q)[ends - 1]
        sums = (1 - q_most) * (2 - most * smoothness) * _sums(count * lr, ends)
        noise = _sums(count * lr**2 / cut.batch_size, ends)
        momentum = 2 * most * (1 + most * smoothness) * _sums(count * q, ends)
        requirement = _Requirement("lr < 2/L", lr * smoothness >= 2, lr, 2 / smoothness, "<")
    else:
        fresh = lr * (1 - q)  # the learning rate of the newest gradient
        sums = _sums(count * fresh * (2 - fresh * smoothness), ends)
        noise = _sums(count * fresh**2 / cut.batch_size, ends)
        drag = lr * q * (2 * np.abs(1 - fresh * smoothness) + lr * q * smoothness)
        momentum = _sums(count * drag, ends)
        requirement = _Requirement(
            "lr (1 - beta gamma) < 2/L",
            fresh * smoothness >= 2,
            lr,
            2 / smoothness / np.maximum(1 - q, 1e-300),
            "<",
        )
    terms = {
        "A_K": over(2 * problem.initial_gap, sums),
        "B_K": over(smoothness * problem.variance * noise, sums),
        "C_K": over(problem.gradient_bound * problem.gradient_bound * momentum, sums),
    }
    name = f"Theorem 2, {form.replace('_', ' ')}"
    return _evaluated(name, cut, ends, terms, requirement, sums)


def theorem4(
    plan: Plan,
    problem: Problem,
    n: int,
    *,
    steps: int | None = None,
    form: Literal["safe", "printed"] = "safe",
    batches: Batches = "scheduled",
) -> Bound:
    """Theorem 4 (i): the bound for any gamma and an increasing beta.

    The safe form is what the paper's proof gives for d_{-1} = 0 and any L::

        [2 D0 + 2||∇f(x_0)||² + 4σ² Σ(1−β)/b + (4L² + L)G² Σα² + 2L²G² Σ α²/(1−β)] / Σα

    The printed form has 5L² in place of 4L² + L, which is wrong for L < 1, and lacks
    ||∇f(x_0)||², since it takes d_{-1} = ∇f(x_0) (see `docs/errata.md`).

    Args:
        plan, problem, n, steps, batches: as in `theorem2`. Where ``initial_gradient_norm`` is not
            known, G stands for it.
        form: "safe" or "printed".

    Returns:
        A `Bound` with the terms A'_K, B'_K, C'_K and D'_K, and in the safe form "A'_K start".

    Raises:
        ValueError: as in `theorem2`.

    >>> plan = Plan(epochs=10, batch_size=8, lr=0.1, beta=0.9, gamma=1.0)
    >>> problem = Problem(initial_gap=1.0, smoothness=2.0, variance=1.0, gradient_bound=3.0)
    >>> bound = theorem4(plan, problem, n=800)
    >>> bound.dominant, bound.vacuous
    ("D'_K", True)
    """
    _check_form(form, _FORMS["theorem4"])
    return _single(partial(_theorem4, form=form), plan, problem, n, steps, batches)


@np.errstate(all="ignore")
def _theorem4(cut: Segments, ends: NDArray[np.int64], problem: Problem, form: str) -> Evaluated:
    smoothness, lr, beta, count = problem.smoothness, cut.lr, cut.beta, cut.count
    sums = _sums(count * lr, ends)
    squares = _sums(count * lr**2, ends)
    noise = _sums(count * (1 - beta) / cut.batch_size, ends)
    remembered = _sums(count * lr**2 / (1 - beta), ends)
    # Not by **, which raises where a float overflows.
    bound2, smooth2 = problem.gradient_bound * problem.gradient_bound, smoothness * smoothness
    terms = {"A'_K": over(2 * problem.initial_gap, sums)}
    caveats: tuple[str, ...] = ()
    if form == "safe":
        first = problem.initial_gradient_norm
        terms["A'_K start"] = over(2 * (bound2 if first is None else first * first), sums)
        constant = 4 * smooth2 + smoothness
    else:
        constant = 5 * smooth2
        caveats = ("its proof lets the momentum buffer start at the full gradient, not at 0",)
        if smoothness < 1:
            caveats += (f"its constant 5 L^2 is right for L >= 1 only, and L is {smoothness:.6g}",)
    terms |= {
        "B'_K": over(4 * problem.variance * noise, sums),
        "C'_K": over(constant * bound2 * squares, sums),
        "D'_K": over(2 * smooth2 * bound2 * remembered, sums),
    }
    requirement = _Requirement(
        "beta (lr/2 + 1) <= 1",
        beta * (lr / 2 + 1) > 1 + 4e-16,  # an lr of 2 (1 - beta)/beta itself is allowed
        lr,
        2 * (1 - beta) / np.maximum(beta, 1e-300),
        "<=",
    )
    return _evaluated(f"Theorem 4, {form}", cut, ends, terms, requirement, sums, caveats)


@final
@dataclass(frozen=True, eq=False)
class _Requirement:
    """A condition on every segment: where it fails, and the lr that would meet it there."""

    statement: str
    fails: NDArray[np.bool_]
    lr: Array
    allowed: Array | float
    sign: str

    def until(self, end: int, tick: NDArray[np.int64]) -> Condition:
        """As the segments before ``end`` meet it."""
        failing = np.flatnonzero(self.fails[:end])
        if not len(failing):
            return Condition(self.statement, True)
        first = int(failing[0])
        allowed = float(np.broadcast_to(self.allowed, self.lr.shape)[first])
        needed = f"lr {self.sign} {allowed:.6g}, not {float(self.lr[first]):.6g}"
        return Condition(self.statement, False, int(tick[first]), needed)


def _evaluated(
    source: str,
    cut: Segments,
    ends: NDArray[np.int64],
    terms: dict[str, Array],
    requirement: _Requirement,
    sums: Array,
    caveats: tuple[str, ...] = (),
) -> Evaluated:
    """A bound whose condition is on each segment alone."""
    failing = np.flatnonzero(requirement.fails)
    before = ends <= (failing[0] if len(failing) else len(requirement.fails))
    values = np.where(before & (sums > 0), total(terms), np.inf)

    def conditions(i: int) -> list[Condition]:
        own = requirement.until(int(ends[i]), cut.tick)
        return [own, positive(not own.holds or bool(sums[i] > 0))]

    return Evaluated(source, values, terms, conditions, caveats)


def _sums(of: Array, ends: NDArray[np.int64]) -> Array:
    """Over the first ``ends`` segments."""
    return np.cumsum(of)[ends - 1]


def auxiliary(
    plan: Plan,
    problem: Problem,
    n: int,
    *,
    steps: int | None = None,
    split: float | Literal["best"] = 1.0,
    batches: Batches = "scheduled",
) -> Bound:
    """The auxiliary bound: momentum of any size, no decay of it, no G. Not in the paper.

    With q = βγ, c_K = 0 and c_k = α_k q_k + β_k c_{k+1}, the points z_k = x_k − c_k d_{k−1} take
    plain SGD steps z_{k+1} = z_k − η_k g_k of the size η_k = α_k(1−q_k) + (1−β_k) c_{k+1}. With
    v_i = (1−β_i) Σ_{k>i} η_k c_k² Π_{i<j<k} β_j and any 0 < s < 2 (``split``)::

        [2 D0 + σ² Σ (L η² + L² v/s)/b] / Σ [η(2 − s − L η) − L² v/s]

    wherever every bracket of the denominator is >= 0 and one is > 0. The brackets of constant lr,
    beta and gamma are so at every K with the best split if L α(1/2 + q/(1−β)) < 1, and with split 1
    if and only if Lα + (Lαq/(1−β))² <= 1. At q = 0 and s → 0 this is Theorem 2 of plain SGD.

    Args:
        plan, problem, n, steps, batches: as in `theorem2`; G is not read but for `Bound.trivial`.
        split: s, how the cross term is divided between gradient and momentum; "best" for the s
            of the least bound.

    Returns:
        A `Bound` with the terms A, B and "B momentum".

    Raises:
        ValueError: as in `theorem2`, or a split outside (0, 2).

    >>> plan = Plan(epochs=10, batch_size=8, lr=0.02, beta=0.9, gamma=1.0)
    >>> problem = Problem(initial_gap=1.0, smoothness=2.0, variance=1.0, gradient_bound=3.0)
    >>> [f"{bound(plan, problem, 800).value:.3g}" for bound in (theorem2, theorem4, auxiliary)]
    ['82.8', '21.1', '0.146']
    """
    if split != "best":
        split = as_split(split, "split")
    return _single(partial(evaluate_auxiliary, split=split), plan, problem, n, steps, batches)


# ---------------------------------------------------------------------------------- by their names


def resolve(bound: Which, form: str | float | None = None) -> tuple[tuple[Name, str], ...]:
    """The bounds that a name stands for, each with its form; None is the default form.

    The form of the auxiliary bound is its split, as a text.
    """
    if bound == "best":
        if form is not None:
            raise ValueError(f"form must be None for the best bound, got {form!r}")
        return OF_BEST
    if bound not in _FORMS:
        raise ValueError(f"bound must be one of best, {', '.join(_FORMS)}, got {bound!r}")
    if form is None:
        form = _FORMS[bound][0]
    elif bound == "auxiliary" and form != "best":
        form = str(as_split(form, "form"))
    else:
        _check_form(form, _FORMS[bound])
    return ((bound, str(form)),)


def evaluate(
    plan: Plan, problem: Problem, n: int, bound: Name, form: str, *, steps: int | None = None
) -> Bound:
    """A bound by its name and form."""
    return _single(_named(bound, form), plan, problem, n, steps, "scheduled")


def _named(bound: Name, form: str) -> _Evaluate:
    if bound == "auxiliary":
        return partial(evaluate_auxiliary, split="best" if form == "best" else float(form))
    return partial(_theorem2 if bound == "theorem2" else _theorem4, form=form)


# ------------------------------------------------------------------------------- the best of them


def best_bound(
    plan: Plan,
    problem: Problem,
    n: int,
    *,
    steps: int | None = None,
    batches: Batches = "scheduled",
) -> Bound:
    """The least of the bounds whose conditions hold, over the prefixes that end with an epoch.

    The least of E||∇f(x_k)||² over K steps is not above that over fewer, so a bound for fewer steps
    holds for K too; it is the smaller one where a schedule turns bad on the way. Of more than 300
    epochs, at most 300 are looked at.

    Args:
        plan, problem, n, steps, batches: as in `theorem2`.

    Returns:
        A `Bound` that says by `Bound.source` and `Bound.steps` which it is. Where none holds its
        value is inf and `Bound.conditions` are those of all.

    Raises:
        ValueError: as in `theorem2`.

    >>> plan = Plan(epochs=10, batch_size=8, lr=0.02, beta=0.9, gamma=1.0)
    >>> problem = Problem(initial_gap=1.0, smoothness=2.0, variance=1.0, gradient_bound=3.0)
    >>> best_bound(plan, problem, n=800).source
    'auxiliary, not in the paper'
    """
    horizon = _horizon(segments(plan, n, batches), steps)
    _, ends, _ = epoch_ends(plan, n)
    ends = ends[ends < horizon]
    if len(ends) > _MOST_PREFIXES:
        half = _MOST_PREFIXES // 2
        spread = [*np.linspace(0, len(ends) - 1, half), *np.geomspace(1, len(ends), half) - 1]
        ends = ends[np.unique(np.array(spread).astype(np.int64))]
    at = np.append(ends, horizon)
    found = _evaluate_at(OF_BEST, plan, problem, n, at, batches)
    values = np.array([each.values for each in found])
    which, i = np.unravel_index(np.argmin(values), values.shape)
    if not math.isfinite(values[which, i]):
        return Bound(
            math.inf,
            "none",
            horizon,
            {},
            tuple(c for each in found for c in each.conditions(len(at) - 1)),
            trivial(problem),
            at_start(problem),
        )
    best = found[which].bound(int(i), int(at[i]), problem)
    if at[i] < horizon:
        note = f"the least up to step {horizon:,}; taken at step {int(at[i]):,}"
        best = replace(best, caveats=(*best.caveats, note))
    return best


def _evaluate_at(
    parts: Sequence[tuple[Name, str]],
    plan: Plan,
    problem: Problem,
    n: int,
    at: NDArray[np.int64],
    batches: Batches,
) -> list[Evaluated]:
    """Bounds by name and form, each after so many steps."""
    cut = segments(plan, n, batches).split(at)
    ends = np.searchsorted(np.cumsum(cut.count), at) + 1
    return [_named(*part)(cut, ends, problem) for part in parts]


def bound_curve(
    plan: Plan,
    problem: Problem,
    n: int,
    *,
    bound: Which = "best",
    form: str | float | None = None,
    batches: Batches = "scheduled",
) -> Curve:
    """A bound after every epoch.

    Args:
        plan, problem, n, batches: as in `theorem2`.
        bound: which; "best" is the least so far of all that hold, and so never rises.
        form: as that bound takes it, None for its default; of the auxiliary bound the split; the
            best bound has none.

    Raises:
        ValueError: as in `theorem2`.

    >>> plan = Plan(epochs=3, batch_size=8, lr=0.1, beta=0.0, gamma=0.0)
    >>> problem = Problem(initial_gap=1.0, smoothness=2.0, variance=1.0, gradient_bound=3.0)
    >>> curve = bound_curve(plan, problem, 800, bound="theorem2")
    >>> curve.steps.tolist(), curve.values.round(4).tolist()
    ([100, 200, 300], [0.125, 0.0694, 0.0509])
    """
    parts = resolve(bound, form)
    epochs, steps, samples = epoch_ends(plan, n)
    found = _evaluate_at(parts, plan, problem, n, steps, batches)
    if bound == "best":
        values = np.array([each.values for each in found])
        least = np.minimum.accumulate(values.min(axis=0))
        newest = np.maximum.accumulate(
            np.where(values.min(axis=0) <= least, np.arange(len(steps)), 0)
        )
        sources = [found[i].source for i in values.argmin(axis=0)]
        return Curve(epochs, steps, samples, least, {}, tuple(sources[i] for i in newest))
    (one,) = found
    return Curve(epochs, steps, samples, one.values, one.terms, (one.source,) * len(steps))


def _single(
    evaluate: _Evaluate,
    plan: Plan,
    problem: Problem,
    n: int,
    steps: int | None,
    batches: Batches,
) -> Bound:
    whole = segments(plan, n, batches)
    horizon = _horizon(whole, steps)
    cut = whole if horizon == whole.total_steps else whole.split([horizon])
    return evaluate(cut, np.array([len(cut.count)]), problem).bound(0, horizon, problem)


def _horizon(whole: Segments, steps: int | None) -> int:
    if steps is None:
        return whole.total_steps
    horizon = as_count(steps, "steps")
    if horizon > whole.total_steps:
        raise ValueError(f"steps must be at most the plan's {whole.total_steps:,}, got {steps!r}")
    return horizon


def as_split(value: Any, field: str) -> float:
    """A split of the auxiliary bound as a float."""
    return float(as_number(value, field, "in (0, 2) or 'best'", lambda s: 0 < s < 2))


def _check_form(form: Any, allowed: tuple[str, ...]) -> None:
    if form not in allowed:
        raise ValueError(f"form must be {' or '.join(map(repr, allowed))}, got {form!r}")
