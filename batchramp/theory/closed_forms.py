"""Corollaries 3 and 5: the sums of Theorems 2 and 4 bounded in closed form.

They are those of Imaizumi and Iiduka (ACML 2025): as the main text prints them, as they hold for
every K, and sharper. With T_m = ⌈n/b_m⌉ steps in epoch m, a = α_0 and c the least lr, all of them
rest on this. T_m does not rise where b_m does not fall, so step k is in an epoch m(k) with
⌊k/T_0⌋ <= m(k) <= k/T, where T is the number of steps of the last epoch begun. Hence, for
the decaying schedules, integrals. As α_m does not rise either, Chebyshev's sum inequality has
Σ α_k >= K times the plain mean of α_m over the J epochs begun, or over all.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, final

import numpy as np

from batchramp.plan import Plan
from batchramp.schedules import (
    Constant,
    Cosine,
    Exponential,
    IncreasingBeta,
    Inverse,
    InverseSqrt,
    Linear,
    Polynomial,
    Schedule,
    StepDecay,
)
from batchramp.theory.bound import Bound
from batchramp.theory.bounds import theorem2, theorem4
from batchramp.theory.layout import segments
from batchramp.theory.problem import Problem

__all__ = ["Form", "corollary3", "corollary5"]

Form = Literal["printed", "corrected", "sharp"]

_Kinds = tuple[type[Schedule], ...]

# The cases in the paper's words.
_WORDS: dict[str, dict[type[Schedule], str]] = {
    "batch_size": {
        Constant: "[Constant BS (1)]",
        Exponential: "[Exponential BS (2)]",
        Linear: "[Linear BS (A.11)]",
    },
    "lr": {
        Constant: "[Constant LR (3)]",
        InverseSqrt: "[Sqrt-Decaying LR (4)]",
        Inverse: "[Decaying LR (5)]",
        Cosine: "[Cosine LR (6)]",
        Polynomial: "[Polynomial LR (7)]",
    },
    "beta": {
        Constant: "[Constant Beta (8)]",
        StepDecay: "[Step Decay Beta (9)]",
        IncreasingBeta: "[Increasing Beta (10)]",
    },
    "gamma": {Constant: "[Constant Gamma (11)]", StepDecay: "[Step Decay Gamma (12)]"},
}

# Σ m^(-s) over m >= 1; that of 5/4 is rounded up.
_ZETA = {1.25: 4.595112, 2.0: math.pi**2 / 6}


def corollary3(
    plan: Plan, problem: Problem, n: int, steps: int | None = None, *, form: Form = "corrected"
) -> Bound:
    """Corollary 3: Theorem 2 with A_K, B_K and C_K in closed form, for βγ that step-decays.

    With a lower bound S on Σα of aK (constant lr), 2a(√(K+1) − 1) (sqrt), a log(K+1) (decaying),
    (a+c)K/2 (cosine) or (a+pc)K/(p+1) (polynomial), and ρ the factor of βγ::

        A_K <= 1/S,   C_K <= β_0 γ_0 T_0 E / ((1 − ρ) S),   B_K <= a/b            (constant batch)
        B_K <= a² T_0 E δ / (b_0 (δ − 1) S)                                    (exponential batch)
        B_K <= a² T_0 E [1/b_0 + log(1 + (J − 1) δ/b_0)/δ] / S    (linear batch, J levels begun)

    and for a constant batch also, where it is less, a² T_0 (1 + log(K+1))/(bS) (sqrt),
    (π²/6) a² T_0/(bS) (decaying) and, after the last step only, a bound of the mean of α_m²
    (polynomial). Sharp: S of sqrt is 2aT(√(K/T + 1) − 1) and of decaying aT log(K/T + 1), with T
    the steps of the last epoch begun or, if that is more, their mean over the epochs begun;
    T_m <= n/b_m + 1; B_K <= a/b_0; the mean of α_m² of cosine after the last step; Σβγ itself.

    Args:
        plan: in epochs. lr is Constant, InverseSqrt, Inverse, Cosine or Polynomial (over the whole
            Plan, not rising); batch size Constant, or Exponential or Linear without a maximum; beta
            and gamma StepDecay alike, or one of them Constant, or one of them 0.
        problem: D0, L, σ², G.
        n: samples of the data set.
        steps: K, at most the Plan's; None for all of them.
        form: "printed" as the main text has it, without decaying lr and linear batch: C_K of
            cosine is half of what it should be, and B_K of polynomial fails before the last step.
            "corrected" bounds the sums for every K, and "sharp" does too, never above it.

    Returns:
        A `Bound` with the terms and conditions of `theorem2` in its printed form; its source
        names the case in the paper's words.

    Raises:
        ValueError: a schedule that the corollary does not speak of, or as `theorem2`.

    >>> from batchramp import schedules as s
    >>> growth, decay = s.Exponential(8, factor=2, every=30), s.StepDecay(0.9, factor=0.5, every=30)
    >>> plan = Plan(epochs=300, batch_size=growth, lr=0.1, beta=decay, gamma=0.2)
    >>> problem = Problem(initial_gap=5.0, smoothness=2.0, variance=1.0, gradient_bound=3.0)
    >>> print(corollary3(plan, problem, n=50_000))
    Corollary 3, corrected: [Exponential BS (2)] [Constant LR (3)] [Step Decay Beta (9)]
    [Constant Gamma (11)], 374,760 steps: min E||∇f||² <= 2.653
      A_K  0.0001808   initial gap
      B_K  0.01695     gradient noise
      C_K  2.636       momentum  <- dominant
    """
    sizes: _Kinds = (Constant, Exponential)
    lrs: _Kinds = (Constant, InverseSqrt, Cosine, Polynomial)
    if form != "printed":
        sizes, lrs = (*sizes, Linear), (*lrs, Inverse)
    case = _case(plan, form, "Corollary 3", sizes, lrs)
    decay, momentum_case = _decay_of_momentum(plan)
    theorem = theorem2(plan, problem, n, steps=steps, form="printed")
    here = _read(plan, n, theorem.steps, form)

    total = _least_total_lr(here)
    initial, smoothness = here.beta * here.gamma, problem.smoothness
    momentum = here.total_momentum if form == "sharp" else initial * here.longest * decay
    if form == "printed" and isinstance(plan.lr, Cosine):
        momentum /= 2  # the appendix has the 2 that the main text lacks
    common = (1 - initial) * (2 - here.lr * smoothness)
    bound2 = problem.gradient_bound * problem.gradient_bound
    coefficient = 2 * here.lr * (1 + here.lr * smoothness) * bound2
    terms = {
        "A_K": _over(2 * problem.initial_gap, common * total),
        "B_K": _over(smoothness * problem.variance * _noise(here, total), common),
        "C_K": _over(coefficient * momentum, common * total),
    }
    return _bound(theorem, f"Corollary 3, {form}: {case} {momentum_case}", terms)


def corollary5(
    plan: Plan, problem: Problem, n: int, steps: int | None = None, *, form: Form = "corrected"
) -> Bound:
    """Corollary 5: Theorem 4 with A'_K, B'_K, C'_K and D'_K in closed form, for any gamma.

    With S as in `corollary3` and Z = T_0 E δ/(b_0 (δ − 1)), for sqrt-decaying lr and constant β::

        B'_K <= (1 − β) K/(bS)  or  (1 − β) Z/S        (constant or exponential batch)
        C'_K <= a² T_0 (1 + log(K+1))/S,   D'_K <= C'_K's/(1 − β)

    and for decaying lr and β that increases from β_0::

        B'_K <= T_0 (1 + 4 (1 − β_0)(K+1)^(1/4))/(bS)  or  (1 − β_0) Z/S
        C'_K <= 2a² T_0/S,   D'_K <= 5a² T_0/((1 − β_0) S)

    For a constant batch both B'_K grow with K, so that the bound vanishes in neither case.

    Args:
        plan: in epochs. lr InverseSqrt with beta Constant, or lr Inverse with IncreasingBeta that
            changes every epoch; batch size Constant, or Exponential without a maximum.
        problem, n, steps: as in `corollary3`; where ``initial_gradient_norm`` is not known, G
            stands for it.
        form: "printed" as the main text has it, with 5L² in Theorem 4: B'_K of sqrt and constant
            batch lacks 1/(2a), D'_K of sqrt T_0 (1 + log(K+1))/2, D'_K of decaying has 2 for 5.
            "corrected" bounds the sums for every K, with Theorem 4's safe constants, and "sharp"
            does too, never above it.

    Returns:
        A `Bound` with the terms and conditions of `theorem4`, printed for "printed", else safe;
        its source names the case in the paper's words.

    Raises:
        ValueError: a schedule that the corollary does not speak of, or as `theorem4`.

    >>> from batchramp import schedules as s
    >>> plan = Plan(
    ...     epochs=300, batch_size=8, lr=s.Inverse(0.1), beta=s.IncreasingBeta(0.5), gamma=1
    ... )
    >>> problem = Problem(initial_gap=5.0, smoothness=2.0, variance=1.0, gradient_bound=3.0)
    >>> bound = corollary5(plan, problem, n=50_000, form="sharp")
    >>> bound.source
    'Corollary 5, sharp: [Constant BS (1)] [Decaying LR (5)] [Increasing Beta (10)]'
    >>> round(bound.terms["D'_K"], 2), round(theorem4(plan, problem, n=50_000).terms["D'_K"], 2)
    (10.19, 8.33)
    """
    case = _case(plan, form, "Corollary 5", (Constant, Exponential), (InverseSqrt, Inverse))
    beta_case = _beta_of_corollary5(plan)
    reading: Literal["printed", "safe"] = "printed" if form == "printed" else "safe"
    theorem = theorem4(plan, problem, n, steps=steps, form=reading)
    here = _read(plan, n, theorem.steps, form)

    total = _least_total_lr(here)
    noise, squares, remembered = _sums_of_theorem4(here)
    smooth2 = problem.smoothness * problem.smoothness
    bound2 = problem.gradient_bound * problem.gradient_bound
    terms = {"A'_K": _over(2 * problem.initial_gap, total)}
    constant = 5 * smooth2
    if form != "printed":
        first = problem.initial_gradient_norm
        terms["A'_K start"] = _over(2 * (bound2 if first is None else first * first), total)
        constant = 4 * smooth2 + problem.smoothness
    terms |= {
        "B'_K": _over(4 * problem.variance * noise, total),
        "C'_K": _over(constant * bound2 * squares, total),
        "D'_K": _over(2 * smooth2 * bound2 * remembered, total),
    }
    return _bound(theorem, f"Corollary 5, {form}: {case} {beta_case}", terms)


def _bound(theorem: Bound, source: str, terms: Mapping[str, float]) -> Bound:
    value = sum(terms.values()) if theorem.holds else math.inf
    return replace(theorem, value=value, source=source, terms=dict(terms))


# ---------------------------------------------------------------------------- what a Plan says


@final
@dataclass(frozen=True)
class _Here:
    """The first K steps of a Plan in the letters of the corollaries.

    Attributes:
        plan, form: as given.
        n: samples.
        steps: K.
        complete: whether K is all of the Plan.
        epoch: m(K − 1).
        longest: T_0, the steps of the first epoch.
        shortest: T, the steps of epoch m(K − 1) if it is completed.
        batch_size: b_0, rounded up as every b_m is.
        lr, beta, gamma: those of the first step.
        total_momentum: Σ βγ.
    """

    plan: Plan
    form: str
    n: int
    steps: int
    complete: bool
    epoch: int
    longest: int
    shortest: int
    batch_size: int
    lr: float
    beta: float
    gamma: float
    total_momentum: float


def _read(plan: Plan, n: int, steps: int, form: str) -> _Here:
    whole = segments(plan, n)
    cut = whole.split([steps])
    first, last = int(cut.batch_size[0]), int(cut.batch_size[-1])
    shortest = -(-n // last)
    return _Here(
        plan,
        form,
        n,
        steps,
        steps == whole.total_steps,
        int(cut.tick[-1]) + (int(cut.count[-1]) - 1) // shortest,
        -(-n // first),
        shortest,
        first,
        float(cut.lr[0]),
        float(cut.beta[0]),
        float(cut.gamma[0]),
        float(np.sum(cut.count * cut.beta * cut.gamma)),
    )


def _case(plan: Plan, form: str, corollary: str, sizes: _Kinds, lrs: _Kinds) -> str:
    """The case of batch size and lr in the paper's words, or a refusal."""
    if form not in ("printed", "corrected", "sharp"):
        raise ValueError(f"form must be 'printed', 'corrected' or 'sharp', got {form!r}")
    if plan.unit != "epochs":
        raise ValueError(f"plan must be in epochs for {corollary}, got one in {plan.unit}")
    if form == "printed":
        corollary += " as printed"
    size, lr = plan.batch_size, plan.lr
    case = f"{_named(plan, 'batch_size', sizes, corollary)} {_named(plan, 'lr', lrs, corollary)}"
    if isinstance(size, Exponential | Linear) and size.maximum is not None:
        raise ValueError(f"batch_size must have no maximum for {corollary}, got {size!r}")
    if isinstance(size, Linear) and not size.increment > 0:
        raise ValueError(f"batch_size must grow if it is Linear for {corollary}, got {size!r}")
    if isinstance(lr, Cosine | Polynomial) and lr.span is not None:
        raise ValueError(f"lr must span the whole plan for {corollary}, got {lr!r}")
    if isinstance(lr, Cosine | Polynomial) and lr.end > lr.start:
        raise ValueError(f"lr must not rise for {corollary}, got {lr!r}")
    return case


def _named(plan: Plan, field: str, kinds: _Kinds, corollary: str) -> str:
    schedule = getattr(plan, field)
    if type(schedule) in kinds:
        return _WORDS[field][type(schedule)]
    allowed = " or ".join(kind.__name__ for kind in kinds)
    raise ValueError(f"{field} must be {allowed} for {corollary}, got {schedule!r}")


def _decay_of_momentum(plan: Plan) -> tuple[float, str]:
    """E/(1 − ρ) where βγ falls by ρ every E epochs, and the case in words, or a refusal."""
    if _is_zero(plan.beta) or _is_zero(plan.gamma):
        return 0.0, "[SGD]"
    case = " ".join(
        _named(plan, field, (Constant, StepDecay), "Corollary 3") for field in ("beta", "gamma")
    )
    decays = [s for s in (plan.beta, plan.gamma) if isinstance(s, StepDecay)]
    if len({decay.every for decay in decays}) != 1:
        raise ValueError(
            "beta or gamma must be StepDecay, and both with one every, for Corollary 3, "
            f"got {plan.beta!r} and {plan.gamma!r}"
        )
    lost = 0.0  # 1 - λζ = (1 - λ) + λ(1 - ζ), which does not cancel near 1
    for decay in decays:
        lost = (1 - decay.factor) + decay.factor * lost
    return decays[0].every / lost, case


def _is_zero(schedule: Schedule | None) -> bool:
    if isinstance(schedule, Constant):
        return schedule.value == 0
    return isinstance(schedule, StepDecay) and schedule.start == 0


def _beta_of_corollary5(plan: Plan) -> str:
    """The case in the paper's words, or a refusal."""
    kind = Constant if isinstance(plan.lr, InverseSqrt) else IncreasingBeta
    corollary = f"Corollary 5 and lr {type(plan.lr).__name__}"
    name = _named(plan, "beta", (kind,), corollary)
    if isinstance(plan.beta, IncreasingBeta) and plan.beta.every != 1:
        raise ValueError(f"beta must change every epoch for {corollary}, got {plan.beta!r}")
    return name


# ----------------------------------------------------------------------------- the closed forms


def _least_total_lr(here: _Here) -> float:
    """S <= Σ α."""
    lr, steps = here.plan.lr, here.steps
    # T of m(k) <= k/T; and Chebyshev's bound by the mean lr of the J epochs begun is the same
    # formula with K/J for T.
    width = max(here.shortest, steps / (here.epoch + 1)) if here.form == "sharp" else 1
    match lr:
        case InverseSqrt():  # 2aT(√(K/T + 1) − 1), written so that it does not cancel
            return 2 * here.lr * steps / (math.sqrt(steps / width + 1) + 1)
        case Inverse():
            return here.lr * width * math.log1p(steps / width)
        case Cosine(end=end):
            return (here.lr + end) * steps / 2
        case Polynomial(power=power, end=end):
            return (here.lr + power * end) * steps / (power + 1)
    return here.lr * steps


def _noise(here: _Here, total: float) -> float:
    """B_K, at most."""
    lr, size = here.lr, here.batch_size
    if not isinstance(here.plan.batch_size, Constant):
        closed = _over(lr * lr * _inverse_batch_sizes(here), total)
        return min(closed, lr / size) if here.form == "sharp" else closed
    match here.plan.lr:
        case InverseSqrt() | Inverse():
            closed = _over(_squares(here), size * total)
        case Cosine(end=end):
            closed = _mean_square_of_cosine(here, end)
        case Polynomial(power=power, end=end):
            closed = _mean_square_of_polynomial(here, power, end)
        case _:
            closed = lr / size
    # Σ α² <= a Σ α, whatever the schedule; the paper does not use it.
    return closed if here.form == "printed" else min(closed, lr / size)


def _mean_square_of_cosine(here: _Here, end: float) -> float:
    """B_K of cosine lr and constant batch size; an equality after the last step."""
    a, c, size, epochs = here.lr, end, here.batch_size, here.plan.length
    swing = (a - c) * (a - c) * here.longest
    if here.form == "printed":
        return (a + c) / size + _over(swing, 2 * size * (a + c) * here.steps)
    if not here.complete or here.form == "corrected" or epochs == 1:
        return math.inf
    if epochs == 2:  # Σ cos² is 2 here, and (M + 1)/2 from M = 3 on
        return _over(a * a + c * c, size * (a + c))
    leading = _over(3 * a * a + 2 * a * c + 3 * c * c, 4 * size * (a + c))
    return leading + _over(swing, 4 * size * (a + c) * here.steps)


def _mean_square_of_polynomial(here: _Here, power: float, end: float) -> float:
    """B_K of polynomial lr and constant batch size: the integral, and its Riemann sum's error."""
    a, c, p = here.lr, end, power
    if not here.complete and here.form != "printed":
        return math.inf
    size = here.batch_size
    square = (p + 1) * a * a + 2 * p * a * c + 2 * p * p * c * c
    integral = _over(square, size * (2 * p + 1) * (a + p * c))
    size_of_error = 1 if here.form == "printed" else size
    error = (p + 1) * (a * a - c * c) * here.longest
    return integral + _over(error, size_of_error * (a + p * c) * here.steps)


def _inverse_batch_sizes(here: _Here) -> float:
    """Σ 1/b_k, at most: a level j of E epochs has at most T_0, and n/b + 1, steps an epoch."""
    size, longest = here.plan.batch_size, here.longest
    match size:
        case Exponential(start=start, factor=factor, every=every):
            once = factor / (factor - 1) / start  # Σ 1/(b_0 δ^j)
            twice = once * (factor / (factor + 1)) / start  # Σ 1/(b_0 δ^j)²
        case Linear(start=start, increment=increment, every=every):
            rises = here.epoch // every
            once = 1 / start + math.log1p(rises * increment / start) / increment
            twice = 1 / start / start + rises / start / (start + rises * increment)
        case _:
            return here.steps / here.batch_size
    closed = longest * every * once
    if here.form != "sharp":
        return closed
    return min(closed, every * (here.n * twice + once), here.steps / here.batch_size)


def _squares(here: _Here) -> float:
    """Σ α² of sqrt-decaying or decaying lr, at most, but for Corollary 5's own 2 T_0."""
    lr2, longest = here.lr * here.lr, here.longest
    decaying = isinstance(here.plan.lr, Inverse)
    if here.form == "sharp":
        return lr2 * _powers(here, 2.0 if decaying else 1.0)
    return lr2 * longest * (_ZETA[2.0] if decaying else 1 + math.log1p(here.steps))


def _powers(here: _Here, exponent: float) -> float:
    """Σ (m(k) + 1)^(-s), at most.

    m(k) >= ⌊k/T_0⌋, and the power of ⌊x/T_0⌋ + 1 is at most that of x/T_0, and at most 1: so the
    sum is at most K, T_0 (1 + ∫ u^(-s) du) from 1 to K/T_0, and T_0 ζ(s).
    """
    longest, rest = here.longest, 1 - exponent
    nepers = math.log(max(here.steps / longest, 1.0))
    integral = math.expm1(rest * nepers) / rest if rest else nepers
    return min(here.steps, longest * min(1 + integral, _ZETA.get(exponent, math.inf)))


def _sums_of_theorem4(here: _Here) -> tuple[float, float, float]:
    """Σ (1−β)/b, Σ α² and Σ α²/(1−β), at most."""
    lr2, longest, left = here.lr * here.lr, here.longest, 1 - here.beta
    printed, sharp = here.form == "printed", here.form == "sharp"
    squares = _squares(here)
    constant_size = isinstance(here.plan.batch_size, Constant)
    if isinstance(here.plan.lr, InverseSqrt):
        noise = left * _inverse_batch_sizes(here)
        if not printed:
            return noise, squares, squares / left
        # Over S = 2a(√(K+1) − 1) these are K (1−β)/(b(√(K+1) − 1)) and a/((1−β)(√(K+1) − 1)).
        return (2 * here.lr * noise if constant_size else noise), squares, 2 * lr2 / left
    if not constant_size:
        noise = (1.0 if printed else left) * _inverse_batch_sizes(here)
    elif sharp:
        noise = left * _powers(here, 0.75) / here.batch_size
    else:
        noise = longest * (1 + 4 * left * (here.steps + 1) ** 0.25) / here.batch_size
    if sharp:
        return noise, squares, lr2 * _powers(here, 1.25) / left
    return noise, 2 * lr2 * longest, (2 if printed else 5) * lr2 * longest / left


def _over(numerator: float, denominator: float) -> float:
    """The quotient where it makes sense, else inf."""
    quotient = numerator / denominator if denominator > 0 else math.inf
    return math.inf if math.isnan(quotient) else quotient
