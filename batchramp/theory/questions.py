"""Questions that the bounds answer: how long, which batch size, which lr, which of several Plans.

Every answer is one of an upper bound. It says what suffices, never what is needed, and the
`warnings` say where the bound is blind.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, final

import numpy as np
from numpy.typing import NDArray

from batchramp.plan import HYPERPARAMETERS, Plan
from batchramp.schedules import (
    Constant,
    Delayed,
    Exponential,
    Product,
    Schedule,
    StepDecay,
    Warmup,
    as_count,
    as_number,
)
from batchramp.theory import (
    MEANINGS,
    Bound,
    Curve,
    Problem,
    Segments,
    auxiliary,
    best_bound,
    bound_curve,
    segments,
    theorem2,
    theorem4,
)

__all__ = [
    "Answer",
    "Change",
    "Comparison",
    "CriticalBatch",
    "MaxLR",
    "best_constant_batch",
    "compare",
    "critical_batch_size",
    "epochs_to",
    "max_lr",
    "steps_to",
    "warnings",
    "what_would_change_it_most",
]

Which = Literal["best", "theorem2", "theorem4", "auxiliary"]

# Of each bound: the forms that it takes, the default first.
_FORMS: dict[str, tuple[str, ...]] = {
    "theorem2": ("per_step", "printed"),
    "theorem4": ("safe", "printed"),
    "auxiliary": ("1.0", "best"),
}
_BEST = (("theorem2", "per_step"), ("theorem4", "safe"), ("auxiliary", "best"))

# A Plan is lengthened up to so many epochs or runs of like steps, or until doubling it lowers the
# bound by less.
_MOST_EPOCHS = 2**20
_MOST_RUNS = 2**16
_LEAST_GAIN = 1e-6
# Epochs times runs of like steps that a curve of the auxiliary bound is drawn over; beyond, it is
# looked at so many points of each doubling.
_MOST_ON_A_CURVE = 1_000_000
_POINTS = 8
# Integer batch sizes that are tried.
_MOST_TRIED = 2_000_000
# 10.000000000000002 steps are 10.
_ROUNDING = 1e-12

# What makes the terms of a bound smaller, by their letters.
_HELP = {
    "A_K": "more steps or a larger lr",
    "B_K": "a larger or growing batch size, or a smaller lr",
    "C_K": "less momentum, or one that decays",
    "A'_K": "more steps or a larger lr",
    "A'_K start": "more steps or a larger lr",
    "B'_K": "a larger or growing batch size, or a beta nearer to 1",
    "C'_K": "a smaller lr",
    "D'_K": "a smaller lr, or a beta further from 1",
    "A": "more steps or a larger lr",
    "B": "a larger or growing batch size, or a smaller lr",
    "B momentum": "a larger or growing batch size, a smaller lr, or less momentum",
}


# ------------------------------------------------------------------------------------- how long


@final
@dataclass(frozen=True)
class Answer:
    """How long it takes until a bound is at most epsilon.

    Attributes:
        epsilon: what E||∇f||² is to come down to.
        steps: the number of steps K; 0 if x_0 has it, None if the bound was not seen to get there.
        epochs: epochs begun by then.
        samples: single-sample gradients by then, by the loader's count.
        floor: the least value of the bound that the search met; inf where no condition holds.
        source: which bound.
        plan: the Plan that the answer is about: the one asked about, lengthened where it must be.
        because: what limits it, what would help, and what was searched.
        warnings: where the bound is blind.
    """

    epsilon: float
    steps: int | None
    epochs: int | None
    samples: int | None
    floor: float
    source: str
    plan: Plan
    because: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def reached(self) -> bool:
        """Whether there is such a number of steps."""
        return self.steps is not None

    def __str__(self) -> str:
        if self.steps is None:
            said = f"not reached; the least the bound got to is {self.floor:.4g}"
        else:
            said = f"{self.steps:,} steps, {self.epochs:,} epochs, {self.samples:,} samples"
        head = f"E||∇f||² <= {self.epsilon:.6g} by {self.source}: {said}"
        return _lines(head, self.because, self.warnings)


def _lines(head: str, because: Sequence[str], warned: Sequence[str] = ()) -> str:
    return "\n".join([head, *(f"  {b}" for b in because), *(f"  warning: {w}" for w in warned)])


def steps_to(
    epsilon: float,
    plan: Plan,
    problem: Problem,
    n: int,
    *,
    bound: Which = "best",
    form: str | None = None,
) -> Answer:
    """The least number of steps K after which a bound says min_{k<K} E||∇f(x_k)||² <= ε.

    A bound for K steps holds for all later ones, so the first K counts even if the bound rises
    again. Theorems 2 and 4 are quotients of sums that only grow, and monotone while lr, beta,
    gamma and batch size stay: K is exact, and no stretch of steps is looked into that cannot hold
    it. The sums of the auxiliary bound change with K: its K is one at which it is <= ε and one
    step before is not, inside the first epoch of that kind where there are few epochs, inside the
    first of 8 parts of the Plan (and of each doubling) where there are many.

    A Plan that is too short is lengthened: the same schedules over twice the length, again and
    again, up to 2^20 epochs, to 2^16 runs of like steps, or until doubling lowers the bound by less
    than 1e-6 of itself and no schedule has a change to come. Where the schedules depend on the
    length (Cosine, Polynomial) each length is another sequence; the answer then is a length at
    whose end the bound is <= ε and one tick shorter it is not, found by doubling and bisection. A
    shorter one may do, as the bound need not be monotone in it.

    Args:
        epsilon: ε > 0.
        plan, problem, n: as in `theorem2`.
        bound: which; "best" for the first of the three that is <= ε.
        form: as that bound takes it; of the auxiliary bound None for split 1, or "best".

    Returns:
        An `Answer`. For ε >= min(G², 2 L D0), which x_0 has, its steps are 0.

    Raises:
        ValueError: an argument is out of range, or the Plan has no lr, beta or gamma. A condition
            that fails does not raise: the answer is "not reached", and says why.

    >>> plan = Plan(epochs=10, batch_size=8, lr=0.1, beta=0.0, gamma=0.0)
    >>> problem = Problem(initial_gap=1.0, smoothness=2.0, variance=1.0, gradient_bound=3.0)
    >>> answer = steps_to(0.02, plan, problem, n=800)  # 2/(0.18 K) + 2 0.01/(8 0.18)
    >>> answer.steps, answer.epochs, answer.samples
    (1819, 19, 14552)
    >>> steps_to(0.01, plan, problem, n=800).reached
    False
    """
    target = float(as_number(epsilon, "epsilon", "a finite number > 0", lambda x: x > 0))
    parts = _parts(bound, form)
    start = [_Search(plan, problem, n, *part) for part in parts]
    trivial = start[0].at(start[0].steps).trivial
    if target >= trivial:
        said = f"min(G², 2 L D0) = {trivial:.6g} bounds ||∇f(x_0)||²: epsilon asks for no step"
        return Answer(target, 0, 0, 0, trivial, "no theorem", plan, (said,))

    limit = _limit(plan, n)
    shorter, now, searches, least = plan, plan, start, math.inf
    lengths: list[int] = []
    because: list[str] = []
    found = _first(searches, 0, target)
    while found is None:
        before, least = least, min(least, *(search.least for search in searches))
        if lengths and least >= before * (1 - _LEAST_GAIN) and not _waiting(shorter, now, limit):
            because.append(f"doubling to {_length(now)} lowered it by less than 1e-6 of itself")
            break
        longer, refused = _lengthened(now, n, limit)
        if longer is None:
            because.append(f"searched up to {_length(now)}{refused}")
            break
        lengths.append(longer.length)
        after = searches[0].steps
        searches = [_Search(longer, problem, n, *part) for part in parts]
        shorter, now = now, longer
        if _same_start(shorter, now, n):
            found = _first(searches, after, target)
        elif any(search.at(search.steps).value <= target for search in searches):
            now, found = _least_length(shorter, now, problem, n, parts, target)
            looked = ", ".join(f"{length:,}" for length in lengths)
            because.append(
                f"the schedules depend on the length: {looked} {plan.unit} and a bisection were "
                "looked at; a length that was not may do"
            )

    if found is None:
        last = min((search.at(search.steps) for search in searches), key=lambda b: b.value)
        because = [*_why_not(searches, last), *because]
        if not least < trivial:
            because.insert(0, f"VACUOUS: ||∇f(x_0)||² <= {trivial:.4g} before any step")
        source = last.source if math.isfinite(last.value) else "any bound"
        warned = _blind(now, problem, n, last.steps)
        return Answer(target, None, None, None, least, source, now, tuple(because), warned)
    if lengths:
        because.append(f"the plan is too short and was lengthened to {_length(now)}")
    because = [_what_helps(found), *because]
    warned = _blind(now, problem, n, found.steps)
    least = min(least, found.value)
    return Answer(
        target,
        found.steps,
        *_position(now, n, found.steps),
        least,
        found.source,
        now,
        tuple(because),
        warned,
    )


def epochs_to(
    epsilon: float,
    plan: Plan,
    problem: Problem,
    n: int,
    *,
    bound: Which = "best",
    form: str | None = None,
) -> Answer:
    """The least number of whole epochs after which a bound says min E||∇f||² <= ε.

    The epochs of `steps_to` done to the end, which the bound for fewer steps covers too.

    Args:
        epsilon, plan, problem, n, bound, form: as in `steps_to`.

    Returns:
        An `Answer` whose steps and samples are those at the end of the last of these epochs, or of
        the Plan if it ends inside that.

    Raises:
        ValueError: as in `steps_to`.

    >>> plan = Plan(epochs=10, batch_size=8, lr=0.1, beta=0.0, gamma=0.0)
    >>> problem = Problem(initial_gap=1.0, smoothness=2.0, variance=1.0, gradient_bound=3.0)
    >>> answer = epochs_to(0.02, plan, problem, n=800)
    >>> answer.epochs, answer.steps, answer.samples
    (19, 1900, 15200)
    """
    answer = steps_to(epsilon, plan, problem, n, bound=bound, form=form)
    if not answer.epochs:
        return answer
    steps = samples = 0
    left = answer.epochs
    for times, lap in answer.plan.laps(n):
        taken = min(times, left)
        steps += taken * sum(count for _, count in lap)
        samples += taken * sum(size * count for size, count in lap)
        left -= taken
    return replace(answer, steps=steps, samples=samples)


@final
class _Search:
    """One bound at those steps of one Plan that are asked for."""

    def __init__(self, plan: Plan, problem: Problem, n: int, bound: str, form: str) -> None:
        self.plan, self.problem, self.n, self.bound, self.form = plan, problem, n, bound, form
        whole = segments(plan, n)
        self.steps = whole.total_steps
        self.ends = np.cumsum(whole.count)
        with np.errstate(over="ignore"):
            self.lr_sums = np.cumsum(whole.count * whole.lr)
        self.seen: dict[int, Bound] = {}
        self.least = math.inf

    def at(self, steps: int) -> Bound:
        """The bound for so many steps."""
        if steps not in self.seen:
            self.seen[steps] = _evaluate(
                self.plan, self.problem, self.n, self.bound, self.form, steps
            )
            self.least = min(self.least, self.seen[steps].value)
        return self.seen[steps]

    def first(self, after: int, target: float) -> int | None:
        """The first K > after at which the bound is <= target; see `steps_to`."""
        if self.bound == "auxiliary":
            return self._first_on_a_curve(after, target)
        if after == 0:
            self._curve()
        runs = range(len(self.ends))
        # A condition that a step has failed stays failed.
        usable = bisect_left(runs, True, key=lambda run: self._fails(int(self.ends[run])))
        low = int(np.searchsorted(self.ends, after, side="right"))
        self.at(self.steps)
        return self._first_in(low, usable, after, target) if low < usable else None

    def _curve(self) -> Curve:
        form = None if self.bound == "auxiliary" and self.form != "best" else self.form
        which: Which = self.bound  # pyright: ignore
        curve = bound_curve(self.plan, self.problem, self.n, bound=which, form=form)
        self.least = min(self.least, float(curve.values.min()))
        return curve

    def _fails(self, steps: int) -> bool:
        return not math.isfinite(self.at(steps).value) and self._lr_sum(steps) > 0

    def _first_in(self, low: int, high: int, after: int, target: float) -> int | None:
        """Likewise in the runs low, ..., high - 1 alone."""
        start = max(after, int(self.ends[low - 1]) if low else 0)
        stop = int(self.ends[high - 1])
        # The bound is N/D, and N only grows: in between it is at least N(start)/D(stop).
        if start and self._weight(stop) > 0:
            least = self.at(start).value * self._weight(start) / self._weight(stop)
            if target * (1 + _ROUNDING) < least < math.inf:
                return None
        if high - low > 1:
            middle = (low + high) // 2
            return self._first_in(low, middle, after, target) or self._first_in(
                middle, high, after, target
            )
        if self.at(start + 1).value <= target:
            return start + 1
        if self.at(stop).value > target:
            return None
        return self._crossing(start + 1, stop, target)

    def _crossing(self, above: int, below: int, target: float) -> int:
        """A K in (above, below] with the bound <= target at K and not at K - 1."""
        while below - above > 1:
            middle = (above + below) // 2
            if self.at(middle).value <= target:
                below = middle
            else:
                above = middle
        return below

    def _weight(self, steps: int) -> float:
        """What D grows by: D itself, or Σ lr where D also has the worst step's factor."""
        if self.form == "printed":
            return self._lr_sum(steps)
        gap = next(iter(self.at(steps).terms.values()))  # over D
        return 1 / gap if gap else math.inf

    def _lr_sum(self, steps: int) -> float:
        return float(np.interp(steps, np.append(0, self.ends), np.append(0, self.lr_sums)))

    def _first_on_a_curve(self, after: int, target: float) -> int | None:
        epochs = min(self.plan.total_epochs(self.n), 2000)
        if after == 0 and epochs * (len(self.ends) + epochs) <= _MOST_ON_A_CURVE:
            curve = self._curve()
            points, values = curve.steps.tolist(), curve.values
        else:
            points = np.geomspace(after + 1, self.steps, _POINTS + 1)[1:].astype(np.int64)
            points = np.unique(np.append(points, self.steps)).tolist()
            values = np.array([self.at(point).value for point in points])
        below = np.flatnonzero(values <= target)
        if not len(below):
            return None
        i = int(below[0])
        return self._crossing(points[i - 1] if i else after, points[i], target)


def _parts(bound: str, form: str | None) -> list[tuple[str, str]]:
    """The bounds to look at, with their forms."""
    if bound == "best":
        if form is not None:
            raise ValueError(f"form must be None for the best bound, got {form!r}")
        return list(_BEST)
    if bound not in _FORMS:
        raise ValueError(f"bound must be one of best, {', '.join(_FORMS)}, got {bound!r}")
    form = form or _FORMS[bound][0]
    if form not in _FORMS[bound]:
        raise ValueError(f"form must be {' or '.join(map(repr, _FORMS[bound]))}, got {form!r}")
    return [(bound, form)]


def _evaluate(
    plan: Plan, problem: Problem, n: int, bound: str, form: str, steps: int | None
) -> Bound:
    if bound == "theorem2":
        return theorem2(plan, problem, n, steps=steps, form=form)  # pyright: ignore
    if bound == "theorem4":
        return theorem4(plan, problem, n, steps=steps, form=form)  # pyright: ignore
    return auxiliary(plan, problem, n, steps=steps, split="best" if form == "best" else 1.0)


def _first(searches: Sequence[_Search], after: int, target: float) -> Bound | None:
    """The bound at the first K > after at which any of them is <= target."""
    found = [(search.first(after, target), search) for search in searches]
    hits = [search.at(steps) for steps, search in found if steps is not None]
    return min(hits, key=lambda bound: bound.steps, default=None)


def _limit(plan: Plan, n: int) -> int:
    """The greatest length that a Plan is given."""
    epochs = plan.total_epochs(n)
    return plan.length * max(1, _MOST_EPOCHS // epochs)


def _lengthened(plan: Plan, n: int, limit: int) -> tuple[Plan | None, str]:
    """The Plan over twice the length, or as long as it can be; else None and why not."""
    fits, too_long = plan.length, min(2 * plan.length, limit) + 1
    refused = f", the limit of {_MOST_EPOCHS:,} epochs"
    length = too_long - 1
    while fits < length:
        try:
            replace(plan, **{plan.unit: length})
            fits = length
        except ValueError as error:  # a batch size that has left the floats, say
            refused, too_long = f"; it cannot be longer: {error}", length
        length = (fits + too_long) // 2
    if fits == plan.length:
        return None, refused
    longer = replace(plan, **{plan.unit: fits})
    try:
        longer.laps(n)
        runs = len(segments(longer, n).count)
    except ValueError as error:
        return None, f"; it cannot be longer: {error}"
    if runs > _MOST_RUNS:
        return None, f", the limit of {_MOST_RUNS:,} runs of like steps"
    return longer, ""


def _same_start(plan: Plan, longer: Plan, n: int) -> bool:
    """Whether the steps of ``plan`` are the first of ``longer``."""
    one, other = segments(plan, n), segments(longer, n)
    ends = np.union1d(np.cumsum(one.count), np.cumsum(other.count))
    ends = ends[ends <= one.total_steps]
    one, other = (each.split(ends.astype(np.int64)) for each in (one, other))
    names = ("batch_size", *HYPERPARAMETERS)
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


def _waiting(shorter: Plan, plan: Plan, limit: int) -> bool:
    """Whether a schedule has stood still since the end of ``shorter`` and will change later."""
    for name in ("batch_size", *HYPERPARAMETERS):
        schedule = getattr(plan, name)
        still = schedule.next_change(shorter.length - 1, plan.length) >= plan.length
        if still and schedule.next_change(plan.length - 1, limit) < limit:
            return True
    return False


def _least_length(
    too_short: Plan,
    enough: Plan,
    problem: Problem,
    n: int,
    parts: Sequence[tuple[str, str]],
    target: float,
) -> tuple[Plan, Bound]:
    """By bisection: a Plan at whose end a bound is <= target, while one tick shorter it is not."""

    def at_the_end(plan: Plan) -> Bound:
        found = (_evaluate(plan, problem, n, *part, None) for part in parts)
        return min(found, key=lambda bound: bound.value)

    low, found = too_short.length, at_the_end(enough)
    while enough.length - low > 1:
        plan = replace(enough, **{enough.unit: (low + enough.length) // 2})
        bound = at_the_end(plan)
        if bound.value <= target:
            enough, found = plan, bound
        else:
            low = plan.length
    return enough, found


def _position(plan: Plan, n: int, steps: int) -> tuple[int, int]:
    """Epochs begun and samples taken by the end of so many steps."""
    epochs = samples = 0
    for times, lap in plan.laps(n):
        whole = min(times, steps // sum(count for _, count in lap))
        epochs += whole
        for size, count in lap:
            samples += whole * size * count
            steps -= whole * count
        if whole < times:
            epochs += steps > 0
            for size, count in lap:
                samples += size * min(count, steps)
                steps -= min(count, steps)
            break
    return epochs, samples


def _length(plan: Plan) -> str:
    return f"{plan.length:,} {plan.unit}"


def _what_helps(bound: Bound) -> str:
    name = bound.dominant or ""
    share = f"{bound.terms[name]:.3g} of {bound.value:.3g}"
    meaning = MEANINGS.get(name, name)
    return f"the largest term is {name} ({meaning}), {share}: what helps is {_HELP.get(name, '')}"


def _why_not(searches: Sequence[_Search], last: Bound) -> list[str]:
    if math.isfinite(last.value):
        return [_what_helps(last)]
    return [line for search in searches for line in _failures(search.at(search.steps))]


def _failures(bound: Bound) -> list[str]:
    return [f"{bound.source}: {c}" for c in bound.conditions if not c.holds]


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
        return _lines(f"{self.question}: {chosen} (bound {self.bound:.4g})", self.because)


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
    a = _number(lr, "lr", f"a number > 0 and < 2/L = {most:.6g}", lambda x: 0 < x < most)
    b_max, b_decay = _start(beta, "beta", "in [0, 1)", lambda x: 0 <= x < 1)
    g_max, g_decay = _start(gamma, "gamma", "in [0, 1]", lambda x: 0 <= x <= 1)
    q = b_max * g_max
    al = a * problem.smoothness
    scale = (1 - q) * (2 - al)
    x = 2 * problem.initial_gap / (scale * a)
    y = problem.smoothness * problem.variance * a / scale
    momentum = 2 * (1 + al) * problem.gradient_bound**2 * q / scale
    decays = [decay for decay in (b_decay, g_decay) if decay]
    if not decays or q == 0:
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
    return _Constants(x, y, momentum * every.pop() / (1 - rho), 0.0, as_count(n, "n"))


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
        with np.errstate(divide="ignore"):
            steps = np.where(left > 0, known.over(batch_size) / left, np.inf)
        return batch_size * np.maximum(np.ceil(steps * (1 - _ROUNDING)), 1)

    start, least = 1.0, math.inf
    if max(real, real * (x / room)) <= 2**53:  # what the samples exceed in any case
        start = max(1.0, math.floor(y / room) + 1.0, math.floor(real))
        least = float(samples(np.array([start, start + 1])).min())
    if not least <= 2**53:
        raise ValueError(f"epsilon must be reached within 2**53 samples, got {epsilon!r}")
    # x b² + (z − least room) b + least y <= 0 wherever bK could be less.
    least *= 1 + 1e-9  # as steps are rounded
    half = (least * room - z) / (2 * x)
    spread = math.sqrt(max(half * half - least * y / x, 0))
    tried, all_tried = _around(start, half - spread, half + spread)
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
    trivial = _trivial(problem)
    if target >= trivial:
        because.append(f"VACUOUS: ||∇f(x_0)||² <= {trivial:.4g} before any step")
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
    real = math.sqrt(budget / x) * math.sqrt(y)

    def bound(batch_size: NDArray[np.float64]) -> NDArray[np.float64]:
        return x / np.floor(budget / batch_size) + y / batch_size

    start = float(min(max(1, math.floor(real)), budget))
    least = float(bound(np.array([start, min(start + 1, budget)])).min())
    # x b² − least N b + N y <= 0 wherever the bound could be less.
    half = least * budget / (2 * x)
    spread = math.sqrt(max(half * half - budget * y / x, 0))
    tried, all_tried = _around(start, half - spread, min(half + spread, budget))
    tried = tried[tried <= budget]
    b = int(tried[np.argmin(bound(tried))])
    steps = budget // b
    because = [f"{known}; for real b and K it takes b = {real:.4g}"]
    if not all_tried:
        because.append(f"of the integers near it {_MOST_TRIED:,} were tried")
    value = known.bound(b, steps)
    if value >= (trivial := _trivial(problem)):
        because.append(f"VACUOUS: ||∇f(x_0)||² <= {trivial:.4g} before any step")
    asked = f"{budget:,} samples at lr {_said(lr)}"
    return CriticalBatch(asked, b, steps, b * steps, value, real, tuple(because))


def _around(center: float, low: float, high: float) -> tuple[NDArray[np.float64], bool]:
    """The integers from low to high, or as many around the center as are tried; whether all."""
    first, last = max(1, math.floor(low) - 1), math.ceil(high) + 1
    every = last - first < _MOST_TRIED
    if not every:
        first = max(first, int(center) - _MOST_TRIED // 2)
        last = min(last, first + _MOST_TRIED)
    return np.arange(first, last + 1, dtype=np.float64), every


def _trivial(problem: Problem) -> float:
    """min(G², 2 L D0)."""
    return min(
        problem.gradient_bound * problem.gradient_bound,
        2 * problem.smoothness * problem.initial_gap,
    )


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


# ------------------------------------------------------------------------------- which of several


@final
@dataclass(frozen=True)
class Comparison:
    """Plans side by side where they have used the same epochs, samples or steps.

    Attributes:
        bound: which bound.
        axes: of "epochs", "samples" and "steps": how many, the least of the Plans' totals.
        steps: by axis and Plan: the steps K that the Plan makes with so many.
        values: by axis and Plan: the bound after them; inf where none holds.
        least: by axis: the Plan with the least bound; None where none holds.
        warnings: where the bound is blind, by Plan.
    """

    bound: str
    axes: Mapping[str, int]
    steps: Mapping[str, Mapping[str, int]]
    values: Mapping[str, Mapping[str, float]]
    least: Mapping[str, str | None]
    warnings: Mapping[str, tuple[str, ...]]

    def __str__(self) -> str:
        rows = [("plan", *(f"{count:,} {axis}" for axis, count in self.axes.items()))]
        for name in self.warnings:
            cells = [
                f"{self.values[axis][name]:.4g}{'*' if self.least[axis] == name else ' '}"
                for axis in self.axes
            ]
            rows.append((name, *cells))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        table = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
            for row in rows
        ]
        warned = [f"{name}: {w}" for name, said in self.warnings.items() for w in said]
        head = f"min E||∇f||² by the {self.bound} bound, at equal (* the least)"
        return "\n".join([head, *table, *(f"warning: {w}" for w in warned)])


def compare(
    plans: Mapping[str, Plan] | Sequence[Plan],
    problem: Problem,
    n: int,
    *,
    bound: Which = "best",
) -> Comparison:
    """Plans at equal epochs, equal samples and equal steps.

    Args:
        plans: by name, or in order ("plan 1", ...); at least one.
        problem, n: as in `theorem2`.
        bound: which, in its default form.

    Returns:
        A `Comparison`. On each axis the Plans are cut at the least of their totals, at the last
        whole step within it; samples are the loader's.

    Raises:
        ValueError: no Plan, or as in `theorem2`.

    >>> problem = Problem(initial_gap=1.0, smoothness=2.0, variance=1.0, gradient_bound=3.0)
    >>> sgd = {"lr": 0.1, "beta": 0.0, "gamma": 0.0}
    >>> plans = {f"b={b}": Plan(epochs=10, batch_size=b, **sgd) for b in (8, 80)}
    >>> print(compare(plans, problem, n=800))
    min E||∇f||² by the best bound, at equal (* the least)
    plan  10 epochs  8,000 samples  100 steps
    b=8      0.025*         0.025*      0.125
    b=80     0.1125         0.1125    0.1125*
    """
    if not isinstance(plans, Mapping):
        plans = {f"plan {i}": plan for i, plan in enumerate(plans, 1)}
    if not plans:
        raise ValueError("plans must hold at least 1 plan, got none")
    parts = _parts(bound, None)
    totals = {
        "epochs": {name: plan.total_epochs(n) for name, plan in plans.items()},
        "samples": {name: plan.total_samples(n) for name, plan in plans.items()},
        "steps": {name: segments(plan, n).total_steps for name, plan in plans.items()},
    }
    axes = {axis: min(of.values()) for axis, of in totals.items()}
    steps = {
        axis: {name: _steps_within(plan, n, axis, count) for name, plan in plans.items()}
        for axis, count in axes.items()
    }

    def value(plan: Plan, k: int) -> float:
        if k == 0:
            return math.inf
        if bound == "best":
            return best_bound(plan, problem, n, steps=k).value
        return _evaluate(plan, problem, n, *parts[0], k).value

    values = {
        axis: {name: value(plan, steps[axis][name]) for name, plan in plans.items()}
        for axis in axes
    }
    least = {
        axis: min(of, key=lambda name: of[name]) if math.isfinite(min(of.values())) else None
        for axis, of in values.items()
    }
    warned = {name: warnings(plan, problem, n) for name, plan in plans.items()}
    return Comparison(bound, axes, steps, values, least, warned)


def _steps_within(plan: Plan, n: int, axis: str, count: int) -> int:
    """The most steps that take at most so many epochs, samples or steps."""
    steps, left = 0, count
    for times, lap in plan.laps(n):
        made = sum(c for _, c in lap)
        cost = {"epochs": 1, "samples": sum(s * c for s, c in lap), "steps": made}[axis]
        whole = min(times, left // cost)
        steps, left = steps + whole * made, left - whole * cost
        if whole < times:
            for size, c in lap:
                each = {"epochs": left + 1, "samples": size, "steps": 1}[axis]
                taken = min(c, left // each)
                steps, left = steps + taken, left - taken * each
                if taken < c:
                    break
            break
    return steps


# --------------------------------------------------------------------------- what the bounds hide


def warnings(plan: Plan, problem: Problem, n: int) -> tuple[str, ...]:
    """What is true of the bounds of this Plan and easily overlooked.

    Args:
        plan, problem, n: as in `theorem2`.

    Returns:
        Sentences: that the best bound is vacuous, which conditions fail, that momentum does not
        improve it, what the growth of the batch size costs and what of it a bound does not see.

    Raises:
        ValueError: as in `theorem2`.

    >>> growth = Exponential(8, factor=2, every=2, maximum=64)
    >>> plan = Plan(epochs=10, batch_size=growth, lr=0.1, beta=0.0, gamma=0.0)
    >>> problem = Problem(initial_gap=1.0, smoothness=2.0, variance=1.0, gradient_bound=3.0)
    >>> for said in warnings(plan, problem, n=800):
    ...     print("*", said)
    * the noise term of Theorem 2 is 1.69 times the least for these steps and samples, which takes
      a constant batch size
    * at equal samples no growth beats the best constant batch size in Theorem 2: 0.02465 with 9,
      0.03693 with this one; growth spares knowing epsilon, the noise and the budget beforehand
    * the noise term of Theorem 2 is that of a batch size of 12 throughout, not of the last, 64: a
      bound on the least of all steps does not see late gains
    """
    best = best_bound(plan, problem, n)
    said = []
    if not math.isfinite(best.value):
        said.append(f"no bound holds: ||∇f(x_0)||² <= {best.trivial:.4g} is all that is known")
    elif best.vacuous:
        said.append(
            f"the best bound is VACUOUS: {best.value:.4g}, and ||∇f(x_0)||² <= "
            f"{best.trivial:.4g} before any step"
        )
    for part in _BEST:
        said += _failures(_evaluate(plan, problem, n, *part, None))
    return (*said, *_blind(plan, problem, n, None))


def _least(plan: Plan, problem: Problem, n: int, steps: int | None) -> float:
    return min(_evaluate(plan, problem, n, *part, steps).value for part in _BEST)


def _blind(plan: Plan, problem: Problem, n: int, steps: int | None) -> tuple[str, ...]:
    """Those of the warnings that hold whatever the value of the bound."""
    cut = segments(plan, n)
    cut = cut if steps is None else cut.split([steps])
    said = []
    if np.any(cut.beta * cut.gamma > 0):
        plain = replace(plan, gamma=0)
        if segments(plain, n).total_steps >= (steps or 0):
            without, given = (_least(p, problem, n, steps) for p in (plain, plan))
            if without <= given and math.isfinite(without):
                said.append(
                    f"momentum does not improve these bounds: {given:.4g} with it, "
                    f"{without:.4g} with gamma=0"
                )
    lr, b, count = cut.lr, cut.batch_size, cut.count
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        squares, noise = np.sum(count * lr**2), np.sum(count * lr**2 / b)
        taken, lr_sum = float(np.sum(count * b)), np.sum(count * lr)
        ratio = float(noise / lr_sum * taken / lr_sum)
        effective = float(squares / noise)
    if not (problem.variance > 0 and lr_sum > 0 and math.isfinite(ratio)):
        return tuple(said)
    flat = lr.min() == lr.max()
    if ratio >= 1.01:
        shape = "a constant batch size" if flat else "a batch size in proportion to lr"
        said.append(
            f"the noise term of Theorem 2 is {ratio:.3g} times the least for these steps and "
            f"samples, which takes {shape}"
        )
    if flat and b.min() < b.max():
        said += _constant_is_better(cut, plan, problem, n, taken)
    if _unlimited(plan.batch_size):
        above = np.flatnonzero(b > n)
        full = f"; from tick {cut.tick[above[0]]} it is above n = {n:,}" if len(above) else ""
        said.append(
            "the batch size grows without a maximum: O(1/K) in steps K is O(1/log N) in the "
            f"samples N scheduled{full}"
        )
    if b[-1] > 2 * effective:
        said.append(
            f"the noise term of Theorem 2 is that of a batch size of {effective:.3g} throughout, "
            f"not of the last, {b[-1]:,.0f}: a bound on the least of all steps does not see late "
            "gains"
        )
    return tuple(said)


def _constant_is_better(
    cut: Segments, plan: Plan, problem: Problem, n: int, samples: float
) -> list[str]:
    """At equal samples, by Cauchy-Schwarz: mean 1/b_k >= K/Σ b_k."""
    lr, beta, gamma = (float(a[0]) for a in (cut.lr, cut.beta, cut.gamma))
    steady = np.all(cut.beta == beta) and np.all(cut.gamma == gamma)
    if not (steady and lr * problem.smoothness < 2 and samples <= 2**53):
        return []
    steps = int(cut.count.sum())
    grown = theorem2(plan, problem, n, steps=steps, form="printed").value
    best = best_constant_batch(problem, lr=lr, samples=int(samples), beta=beta, gamma=gamma)
    if not best.bound <= grown:
        return []
    return [
        f"at equal samples no growth beats the best constant batch size in Theorem 2: "
        f"{best.bound:.4g} with {best.batch_size:,}, {grown:.4g} with this one; growth spares "
        "knowing epsilon, the noise and the budget beforehand"
    ]


def _unlimited(schedule: Schedule) -> bool:
    while isinstance(schedule, Delayed | Warmup):
        schedule = schedule.schedule
    return isinstance(schedule, Exponential) and schedule.maximum is None


@final
@dataclass(frozen=True)
class Change:
    """What a change of a Plan does to its best bound.

    Attributes:
        change: in words; "as it is" for the Plan itself.
        bound: the best bound with it.
        plan: the Plan with it.
    """

    change: str
    bound: Bound
    plan: Plan

    def __str__(self) -> str:
        vacuous = ", vacuous" if self.bound.vacuous else ""
        return f"{self.change:36} {self.bound.value:<10.4g} {self.bound.source}{vacuous}"


def what_would_change_it_most(plan: Plan, problem: Problem, n: int) -> list[Change]:
    """The best bound with lr, batch size, momentum, length or growth changed, the least first.

    Args:
        plan, problem, n: as in `theorem2`.

    Returns:
        A `Change` each, among them "as it is". What the Plan refuses, or has already, is left out.

    Raises:
        ValueError: as in `theorem2`.

    >>> plan = Plan(epochs=10, batch_size=8, lr=0.1, beta=0.0, gamma=0.0)
    >>> problem = Problem(initial_gap=1.0, smoothness=2.0, variance=1.0, gradient_bound=3.0)
    >>> [change.change for change in what_would_change_it_most(plan, problem, n=800)][:2]
    ['twice the epochs', 'as it is']
    """
    whole = segments(plan, n)
    first = int(whole.batch_size[0])
    every = max(1, plan.length // 10)
    changes: dict[str, dict[str, object]] = {
        "half the lr": {"lr": Product(plan.lr, 0.5)},  # pyright: ignore
        "twice the lr": {"lr": Product(plan.lr, 2)},  # pyright: ignore
        "half the batch size": {"batch_size": Product(plan.batch_size, 0.5)},  # pyright: ignore
        "twice the batch size": {"batch_size": Product(plan.batch_size, 2)},  # pyright: ignore
        f"twice the {plan.unit}": {plan.unit: 2 * plan.length},
    }
    if np.any(whole.beta * whole.gamma > 0):
        changes["no momentum (gamma=0)"] = {"gamma": 0}
    if whole.batch_size.min() == whole.batch_size.max():
        growth = Exponential(first, factor=2, every=every)
        changes[f"batch size doubled every {every:,} {plan.unit}"] = {"batch_size": growth}
    else:
        changes[f"batch size constant at {first:,}"] = {"batch_size": first}
    found = [Change("as it is", best_bound(plan, problem, n), plan)]
    for said, change in changes.items():
        try:
            changed = replace(plan, **change)
            bound = best_bound(changed, problem, n)
        except ValueError:
            continue
        found.append(Change(said, bound, changed))
    return sorted(found, key=lambda each: each.bound.value)
