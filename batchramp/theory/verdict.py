"""Whether a Plan, if it went on for ever, would converge by each bound, how fast, and why not.

Each bound is a few sums over steps divided by the sum of lr; the orders of the schedules
(`batchramp.theory.asymptotics`) give those of the sums. `docs/rates.md` has the results and proofs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, final

import numpy as np

from batchramp.plan import HYPERPARAMETERS, Plan, round_batch_size
from batchramp.schedules import Product, Schedule, as_count
from batchramp.theory.asymptotics import (
    Array,
    Order,
    UnknownOrder,
    complement,
    constant,
    order,
    unlimited,
)
from batchramp.theory.bound import Condition
from batchramp.theory.bounds import auxiliary, theorem2, theorem4
from batchramp.theory.layout import Segments, segments
from batchramp.theory.problem import Problem

__all__ = ["Judgement", "Verdict", "verdict"]

_ONE = _GAP = constant(1.0)
_NO_BOUND = "no bound"
_NOISE, _LR = "sigma^2/b", "L^2 G^2 lr"
_STRETCHED = "lr is stretched with the horizon: one bound for each horizon"
_TINY = 1e-300
# Theorem 4's condition on the schedules reads no constant.
_ANY = Problem(initial_gap=1.0, smoothness=1.0, variance=1.0, gradient_bound=1.0)


@final
@dataclass(frozen=True)
class Judgement:
    """What one bound says of a Plan without end.

    Attributes:
        source: which bound.
        vanishes: whether it tends to 0; None where that is not known. Without a problem it is
            taken that lr is small enough for L; `because` says how small.
        rate: how it behaves in K, as "O(1/K + sigma^2/b)"; "unknown" and "no bound" are possible.
        satisfies_paper: whether the conditions of part (ii) of the theorem hold; None where that
            is not known or the bound is not the paper's.
        floor: what the bound tends to; inf where it diverges or does not hold, None where that is
            not known or a problem is needed to say.
        because: why, in sentences.
        unlimited: the rate if the growth of the batch size went on where the Plan breaks it off;
            "" where it breaks off none.
    """

    source: str
    vanishes: bool | None
    rate: str
    satisfies_paper: bool | None
    floor: float | None
    because: tuple[str, ...]
    unlimited: str = ""

    def __str__(self) -> str:
        tends = {True: "tends to 0; ", False: "does not tend to 0; ", None: "limit unknown; "}
        head = f"{self.source}: {'' if self.rate == _NO_BOUND else tends[self.vanishes]}{self.rate}"
        if self.floor is not None and 0 < self.floor < math.inf:
            head += f"; the floor is {self.floor:.4g}"
        lines = [head]
        if self.unlimited:
            lines.append(f"  with a batch size that grows without limit: {self.unlimited}")
        if self.satisfies_paper is not None:
            lines.append(f"  part (ii) of the paper: {'yes' if self.satisfies_paper else 'no'}")
        return "\n".join([*lines, *(f"  - {sentence}" for sentence in self.because)])


@final
@dataclass(frozen=True)
class Verdict:
    """What each bound says of a Plan without end; prints well."""

    theorem2: Judgement
    theorem4: Judgement
    auxiliary: Judgement

    def __str__(self) -> str:
        return "\n".join(str(getattr(self, each.name)) for each in fields(self))


@np.errstate(all="ignore")  # what leaves the range of floats has no floor, and a rate all the same
def verdict(plan: Plan, *, problem: Problem | None = None, n: int | None = None) -> Verdict:
    """Whether each bound of a Plan tends to 0 as the Plan gets longer, how fast, and why.

    The rates are in K, the steps. A cosine or polynomial lr is stretched with the Plan: one bound
    for each horizon. All other schedules go on as they are.

    Args:
        plan: schedules batch size, lr, beta and gamma.
        problem: gives `Judgement.floor` a number, and has the conditions that read L checked.
        n: samples of the data set, >= 1; it takes them to check the auxiliary bound's condition at
            every step, and for a floor under a batch size that is stretched with the horizon.

    Returns:
        A `Verdict` with a `Judgement` of theorem2 (the per-step form where the two differ),
        theorem4 (the safe form) and auxiliary.

    Raises:
        ValueError: the Plan leaves lr, beta or gamma to the optimizer.

    >>> from batchramp import schedules as s
    >>> growth = s.Exponential(8, factor=2, every=30)
    >>> said = verdict(Plan(epochs=300, batch_size=growth, lr=0.1, beta=0.5, gamma=0.9))
    >>> said.theorem2.rate, said.theorem4.rate, said.auxiliary.rate
    ('O(1/K) + floor', 'O(1/K + L^2 G^2 lr)', 'O(1/K)')
    """
    for name in HYPERPARAMETERS:
        if getattr(plan, name) is None:
            raise ValueError(f"{name} must be in the plan for a verdict, got None")
    given = _Given(plan, problem, None if n is None else as_count(n, "n"))
    first = _judged("Theorem 2", _theorem2, given)
    return Verdict(
        first,
        _judged("Theorem 4", _theorem4, given),
        _judged("auxiliary, not in the paper", _auxiliary, given, first),
    )


# --------------------------------------------------------------------------------- what is given


@final
@dataclass(frozen=True)
class _Given:
    """A Plan's orders, and a problem's constants: 1 where there is none, as only orders count."""

    plan: Plan
    problem: Problem | None
    n: int | None
    growth: Schedule | None = None
    """A batch size in place of the Plan's."""

    @cached_property
    def lr(self) -> Order:
        assert self.plan.lr is not None
        lr = order(self.plan.lr, self.plan.length)
        if (lr.size < 0).any():
            raise UnknownOrder(f"{self.plan.lr} falls below 0 in the end")
        return lr

    @cached_property
    def beta(self) -> Order:
        assert self.plan.beta is not None
        return order(self.plan.beta, self.plan.length)

    @cached_property
    def rest_of_beta(self) -> Order:
        """1 - beta."""
        assert self.plan.beta is not None
        return complement(self.plan.beta, self.plan.length)

    @cached_property
    def _weight(self) -> Product:
        assert self.plan.beta is not None
        assert self.plan.gamma is not None
        return Product(self.plan.beta, self.plan.gamma)

    @cached_property
    def q(self) -> Order:
        """Beta gamma."""
        complement(self._weight, self.plan.length)  # refuses what leaves [0, 1]
        return order(self._weight, self.plan.length)

    @cached_property
    def rest(self) -> Order:
        """1 - beta gamma."""
        return complement(self._weight, self.plan.length)

    @cached_property
    def batch_size(self) -> Order:
        size = order(self.growth or self.plan.batch_size, self.plan.length)
        if size.diverges:
            return size
        whole = [b if math.isnan(b) else max(round_batch_size(b), 1) for b in size.limit]
        return constant(whole)

    @cached_property
    def _steps(self) -> Order:
        """Steps per tick where that is not a constant in the end."""
        size = self.batch_size
        if self.plan.unit == "steps" or not size.rescaled:
            return _ONE
        return constant(np.ceil(self.n / size.size) if self.n else np.full(size.size.shape, np.nan))

    def sum(self, each: Order) -> Order:
        """Of the sum over K steps."""
        return (each * self._steps).sum()

    @property
    def tick(self) -> str:
        return self.plan.unit.removesuffix("s")

    @property
    def smoothness(self) -> float:
        """L inside brackets, which lr makes small without a problem."""
        return self.problem.smoothness if self.problem else 0.0

    @property
    def constants(self) -> Problem:
        return self.problem or _ANY

    def conditions(self, bound: Callable[..., Any], **form: Any) -> tuple[Condition, ...] | None:
        """A bound's conditions on this Plan as long as it is; None if it is too long to look."""
        try:
            return bound(self.plan, self.constants, self.n or 1, **form).conditions
        except ValueError:
            return None

    @cached_property
    def segments(self) -> Segments | None:
        """The Plan as long as it is; None if it changes too often to look."""
        try:
            return segments(self.plan, self.n or 1)
        except ValueError:
            return None

    def greatest(self, of: Callable[[Segments], Array]) -> float | None:
        return None if self.segments is None else float(np.max(of(self.segments)))


@final
@dataclass(frozen=True)
class _Term:
    """A term of a bound: what becomes of it, and what it is called where it stays constant."""

    ratio: Order
    label: str = ""


@final
@dataclass(frozen=True)
class _Finding:
    """A bound as its orders have it."""

    terms: list[_Term]
    rate: str
    fails: bool
    satisfies_paper: bool | None
    because: list[str]
    floor: float | None = None
    """In place of the sum of the terms' limits."""


def _judged(
    source: str, find: Callable[..., _Finding], given: _Given, *others: Judgement
) -> Judgement:
    try:
        found = find(given, *others)
    except UnknownOrder as unknown:
        return Judgement(source, None, "unknown", None, None, (f"{unknown}",))
    return Judgement(
        source,
        not found.fails and all(term.ratio.vanishes for term in found.terms),
        _said(found),
        found.satisfies_paper,
        _floor(found, given),
        tuple(found.because),
        _unlimited(find, given, others, found),
    )


def _said(found: _Finding) -> str:
    """The rate; where a condition fails only a divergence is worth saying."""
    return _NO_BOUND if found.fails and "diverges" not in found.rate else found.rate


def _floor(found: _Finding, given: _Given) -> float | None:
    if found.fails or any(term.ratio.diverges for term in found.terms):
        return math.inf
    stay = [term for term in found.terms if not term.ratio.vanishes]
    if not stay:
        return 0.0
    if given.problem is None:
        return None
    if found.floor is not None:
        floor = found.floor
    else:
        floor = float(sum(term.ratio.size[0] for term in stay))
    return floor if math.isfinite(floor) else None


def _unlimited(
    find: Callable[..., _Finding], given: _Given, others: tuple[Judgement, ...], found: _Finding
) -> str:
    growth = unlimited(given.plan.batch_size)
    if growth is None:
        return ""
    try:
        rate = _said(find(_Given(given.plan, given.problem, given.n, growth), *others))
    except UnknownOrder:
        return ""
    return "" if rate == _said(found) else rate


def _rate(terms: list[_Term]) -> str:
    """As in "O(1/K + sigma^2/b) + floor"; a constant without a label is the floor."""
    worst = max((term.ratio for term in terms), key=lambda ratio: ratio.growth)
    if worst.diverges:
        return f"diverges like {worst}"
    vanishing = [term.ratio for term in terms if term.ratio.vanishes]
    if not terms[0].ratio.vanishes:  # the gap stays: the sum of lr converges
        return "O(1)"
    labels = [term.label for term in terms if not term.ratio.vanishes]
    inside = [str(max(vanishing, key=lambda ratio: ratio.growth)), *filter(None, labels)]
    return f"O({' + '.join(dict.fromkeys(inside))})" + (" + floor" if "" in labels else "")


def _bracket(each: Order, smoothness: float) -> Array:
    """L times a limit."""
    return smoothness * each.limit if smoothness else np.zeros(1)


# ----------------------------------------------------------------------------------- the sentences


def _part_two(given: _Given, series: Callable[[Order], dict[str, Order]]) -> tuple[bool, list[str]]:
    """Part (ii): the first series, of lr, must diverge and the others converge."""
    satisfied, because = True, []
    for i, (name, each) in enumerate(series(given.lr).items()):
        total = each.sum()
        wanted = total.diverges == (i == 0)
        satisfied &= wanted
        asks = "" if wanted else f"; part (ii) asks that it {'diverge' if i == 0 else 'converge'}"
        because.append(f"the sum of {name} {_how(total)}{asks}")
    return satisfied, because


def _how(total: Order) -> str:
    return f"diverges like {total}" if total.diverges else "converges"


def _paper(
    given: _Given, series: Callable[[Order], dict[str, Order]]
) -> tuple[bool | None, list[str]]:
    """Part (ii) of one infinite sequence, and what its series do."""
    satisfied, because = _part_two(given, series)
    tail = series(Order(0, -0.5)).values()
    if any(each.rescaled for each in tail):
        because.insert(
            0,
            "schedules other than lr are stretched with the horizon: one bound for each horizon, "
            "and no infinite sequence that part (ii) could speak of",
        )
        return None, because
    if not given.lr.rescaled:
        return satisfied, because
    because.insert(0, _STRETCHED)
    if given.lr.growth != (0, 0, 0):
        return None, because
    satisfied = all(each.sum().diverges == (i == 0) for i, each in enumerate(tail))
    because.append(
        "as one infinite sequence the paper continues such an lr with 1/sqrt(m), and then part "
        f"(ii) {'holds' if satisfied else 'does not hold'}"
    )
    return satisfied, because


def _checked(conditions: tuple[Condition, ...] | None, given: _Given) -> tuple[bool, list[str]]:
    """Whether a condition fails on the Plan as long as it is, and the sentences."""
    if conditions is None:
        return False, ["the plan changes too often to be looked at step by step"]
    failing = [condition for condition in conditions if not condition.holds]
    return bool(failing), [
        f"{c.statement} fails from {given.tick} {c.first_failure}: it takes {c.needed}"
        for c in failing
    ]


def _allowing(limit: float, most: float | None) -> str:
    return f": on this plan, L < {limit / most:.4g}" if most else ""


# ------------------------------------------------------------------------------------ the bounds


def _theorem2(given: _Given) -> _Finding:
    """Gap, noise and momentum over Σα(1−q)(2 − αL(1−q)); as printed, over (1−q̄)Σα."""
    lr, q, size, known = given.lr, given.q, given.batch_size, given.constants
    fresh, smoothness = lr * given.rest, given.smoothness
    part_two, because = _paper(
        given, lambda lr: {"lr": lr, "beta gamma": q, "lr^2/b": lr**2 / size}
    )

    fails, sentences = False, []
    if given.problem is not None:
        fails, sentences = _checked(given.conditions(theorem2), given)
        if _checked(given.conditions(theorem2, form="printed"), given)[0]:
            part_two = False
    else:
        most = given.greatest(lambda s: s.lr * (1 - s.beta * s.gamma))
        sentences = [f"it needs lr (1 - beta gamma) < 2/L{_allowing(2, most)}"]
    if fresh.diverges or (smoothness and (fresh.limit * smoothness >= 2).any()):
        if not fails:
            sentences.append("lr (1 - beta gamma) < 2/L fails in the end")
        fails = True

    turn = _bracket(fresh, smoothness)
    echo = _bracket(lr * q, smoothness)
    sums = given.sum(fresh * (2 - turn))
    drag = np.maximum(2 * np.abs(1 - turn) + echo, _TINY)
    per_step = [
        _Term(_GAP / sums * (2 * known.initial_gap)),
        _Term(given.sum(fresh**2 / size * (known.smoothness * known.variance)) / sums, _NOISE),
        _Term(given.sum(lr * q * (drag * known.gradient_bound * known.gradient_bound)) / sums),
    ]
    sums = given.sum(lr) * (given.rest if given.rest.vanishes else _ONE)
    printed = [
        _Term(_GAP / sums),
        _Term(given.sum(lr**2 / size) / sums, _NOISE),
        _Term(given.sum(q) / sums),
    ]

    rate, as_printed = _rate(per_step), _rate(printed)
    if not per_step[2].ratio.vanishes:
        because.append(
            "the mean of beta gamma, weighted by lr, does not tend to 0: the proof pays G^2 for it"
        )
    elif rate != as_printed:
        because.append("the per-step form weights beta gamma by lr, the printed one does not")
    if given.rest.vanishes:
        because.append(
            "beta gamma tends to 1, and the printed theorem asks that its supremum is < 1"
        )
    if rate != as_printed:
        rate = f"{as_printed} as printed, {'floor' if rate.endswith('floor') else rate} per step"
    return _Finding(per_step, rate, fails, part_two and not fails, because + sentences)


def _theorem4(given: _Given) -> _Finding:
    """Gap, noise Σ(1−β)/b, Σα² and Σα²/(1−β) over Σα."""
    lr, size, rest, known = given.lr, given.batch_size, given.rest_of_beta, given.constants
    part_two, because = _paper(
        given,
        lambda lr: {"lr": lr, "lr^2/(1 - beta)": lr**2 / rest, "(1 - beta)/b": rest / size},
    )

    fails, sentences = _checked(given.conditions(theorem4), given)
    left, right = lr * given.beta, rest * 2.0  # beta (lr/2 + 1) <= 1 is lr beta <= 2 (1 - beta)
    if left.growth > right.growth or (
        left.growth == right.growth and (left.size > right.size * (1 + 1e-12)).any()
    ):
        if not fails:
            sentences.append(
                f"beta (lr/2 + 1) <= 1 fails from some {given.tick} on, after the end of this plan"
            )
        fails = True
    if not size.diverges and known.variance > 0:
        because.append(
            "with a bounded batch size this bound never falls below 4 sqrt(2) sigma L G/sqrt(b), "
            "whatever lr and beta"
        )

    sums = given.sum(lr)
    # Not by **, which raises where a float overflows.
    smooth2 = known.smoothness * known.smoothness
    bound2 = known.gradient_bound * known.gradient_bound
    first = known.initial_gradient_norm
    start = 2 * known.initial_gap + 2 * (bound2 if first is None else first * first)
    remembered = lr**2 / rest * (2 * smooth2 * bound2)
    terms = [
        _Term(_GAP / sums * start),
        _Term(given.sum(rest / size * (4 * known.variance)) / sums, "sigma^2/(b lr)"),
        _Term(given.sum(lr**2 * ((4 * smooth2 + known.smoothness) * bound2)) / sums, _LR),
        _Term(given.sum(remembered) / sums, _LR),
    ]
    return _Finding(terms, _rate(terms), fails, part_two and not fails, because + sentences)


def _auxiliary(given: _Given, theorem2: Judgement) -> _Finding:
    """Gap and noise Σ(Lα² + L²αc²/s)/b over Σα(2 − s − Lα − L²c²/s), c the reach of momentum.

    For c_k, what of the steps from k on is due to earlier gradients, is αq/(1−β) where αq changes
    slowly, and of the order of αq where that falls geometrically (docs/rates.md, lemma 2).
    """
    lr, size, known = given.lr, given.batch_size, given.constants
    smoothness, late = given.smoothness, lr * given.q
    reach = late if late.rate < 0 else late / given.rest_of_beta
    because = [
        f"the sum of {name} {_how(each.sum())}"
        for name, each in (("lr", lr), ("lr^2/b", lr**2 / size), ("lr c^2/b", lr * reach**2 / size))
    ]
    if lr.rescaled:
        because.insert(0, _STRETCHED)
    grows = (
        "tends to 0"
        if reach.vanishes
        else "grows without limit"
        if reach.diverges
        else "stays bounded"
    )
    because.append(
        f"the reach of momentum, c = lr beta gamma/(1 - beta) where that is slow, {grows}"
    )

    fails, sentences = False, []
    if given.problem is None:
        most = given.greatest(lambda s: s.lr * (0.5 + s.beta * s.gamma / (1 - s.beta)))
        sentences = [
            "it needs L lr (1/2 + beta gamma/(1 - beta)) < 1, exactly so where they are constant"
            + _allowing(1, most)
        ]
    elif given.n is None:
        sentences = ["its condition was not checked step by step, which takes n"]
    else:
        fails, sentences = _checked(given.conditions(auxiliary, split="best"), given)
    early = fails
    if (
        lr.diverges
        or reach.diverges
        or (smoothness and (smoothness * (lr.limit / 2 + reach.limit) >= 1).any())
    ):
        if not fails:
            sentences.append("its condition, L lr/2 + L c < 1 in the end, fails: there is no bound")
        fails, early = True, False

    sums = given.sum(lr)
    smoothness = known.smoothness
    noise, echo = lr**2 / size * smoothness, lr * reach**2 / size * (smoothness * smoothness)
    terms = [
        _Term(_GAP / sums * (2 * known.initial_gap)),
        _Term(given.sum(noise * known.variance) / sums, _NOISE),
        _Term(given.sum(echo * known.variance) / sums, _NOISE),
    ]
    floor = None
    noisy = known.variance > 0 and not size.diverges
    if not fails and given.problem is not None and noisy and lr.growth == _ONE.growth:
        floor = _noise_floor(given, reach)
    if not fails and "floor" in theorem2.rate:
        because.append(
            "momentum that stays leaves no floor here: that of Theorem 2 is one of its proof, not "
            "of the method"
        )
    rate = _rate(terms)
    one_sequence = not any(each.rescaled for each in (lr, given.q, given.rest_of_beta))
    # Stairs have no limit, so that the condition in the end was not looked at.
    settles = bool(np.isfinite(lr.limit).all() and np.isfinite(reach.limit).all())
    if early and one_sequence and settles and sums.diverges:
        sentences.append(
            "so no bound is computed in this form; counted from a later step on, where the "
            f"condition holds, it would be {rate}, with constants that are not computed"
        )
    return _Finding(terms, _NO_BOUND if fails else rate, fails, None, because + sentences, floor)


def _noise_floor(given: _Given, reach: Order) -> float:
    """min over s of σ²(La² + L²ac²/s)/b over a(2 − s − La) − L²ac²/s, each in the mean."""
    known, lr, c, size = given.constants, given.lr.limit, reach.limit, given.batch_size.limit

    def mean(each: Array) -> float:
        return float(given.sum(constant(each)).size[0]) if each.any() else 0.0

    noise = known.variance * known.smoothness * mean(lr**2 / size)
    smooth2 = known.smoothness * known.smoothness
    echo = known.variance * smooth2 * mean(lr * c**2 / size)
    e1, e2 = mean(lr), known.smoothness * mean(lr**2)
    v = smooth2 * mean(lr * c**2)
    if not (noise > 0 and e1 > 0 and math.isfinite(noise + echo + v)):
        return math.nan  # beyond the range of floats
    # (s noise + echo)/(-e1 s^2 + (2 e1 - e2) s - v) is quasiconvex in s, and s must leave no
    # bracket negative, in the end and, as if each step's lr and momentum were steady, on the Plan.
    half = echo / noise
    s = -half + math.sqrt(half**2 + (v + half * (2 * e1 - e2)) / e1)
    ranges = [_splits(known.smoothness * lr, known.smoothness * c)]
    if (steps := given.segments) is not None:
        late = steps.lr * steps.beta * steps.gamma / (1 - steps.beta)
        ranges.append(_splits(known.smoothness * steps.lr, known.smoothness * late))
    low, high = max(low for low, _ in ranges), min(high for _, high in ranges)
    s = min(max(s, low, 1e-9), high)
    below = -e1 * s**2 + (2 * e1 - e2) * s - v
    # Without n, steps of the Plan may leave no s at all, for nobody looked.
    return (s * noise + echo) / below if low <= high and below > 0 else math.nan


def _splits(x: Array, y: Array) -> tuple[float, float]:
    """The s with 2 − s − x − y²/s >= 0 throughout, where there are any."""
    room = (2 - x) ** 2 - 4 * y**2
    root = np.sqrt(np.maximum(room, 0))
    low, high = np.where(room < 0, 0, 2 - x - root), np.where(room < 0, 4, 2 - x + root)
    return float(np.max(low)) / 2, float(np.min(high)) / 2
