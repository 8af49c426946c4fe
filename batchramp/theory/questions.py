"""How long it takes until a bound is at most epsilon.

Every answer is one of an upper bound. It says what suffices, never what is needed, and its
`warnings` say where the bound is blind.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from batchramp.plan import HYPERPARAMETERS, Plan
from batchramp.schedules import as_number
from batchramp.theory.bound import MEANINGS, Bound
from batchramp.theory.bounds import Curve, Name, Which, bound_curve, evaluate, resolve
from batchramp.theory.comparison import blind_spots, failures
from batchramp.theory.layout import segments
from batchramp.theory.problem import Problem

__all__ = ["Answer", "epochs_to", "steps_to"]

# A Plan is lengthened up to so many epochs or runs of like steps, or until doubling it lowers the
# bound by less.
_MOST_EPOCHS = 2**20
_MOST_RUNS = 2**16
_LEAST_GAIN = 1e-6
# Epochs times runs of like steps that a curve of the auxiliary bound is drawn over; beyond, it is
# looked at so many points of each doubling.
_MOST_ON_A_CURVE = 1_000_000
_POINTS = 8
# By which the quotient of two bounds may be off.
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
        warned = (f"  warning: {w}" for w in self.warnings)
        return "\n".join([head, *(f"  {b}" for b in self.because), *warned])


def steps_to(
    epsilon: float,
    plan: Plan,
    problem: Problem,
    n: int,
    *,
    bound: Which = "best",
    form: str | float | None = None,
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
        form: as that bound takes it; of the auxiliary bound its split, None for 1.

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
    parts = resolve(bound, form)
    start = [_Search(plan, problem, n, *part) for part in parts]
    trivial, known = (getattr(start[0].at(start[0].steps), name) for name in ("trivial", "start"))
    if target >= trivial:
        said = f"min(G², 2 L D0) = {trivial:.6g} bounds ||∇f(x_0)||²: epsilon asks for no step"
        return Answer(target, 0, 0, 0, trivial, "no theorem", plan, (said,))
    if known is not None and target >= known:
        said = f"||∇f(x_0)||² is {known:.6g}: epsilon asks for no step"
        return Answer(target, 0, 0, 0, known, "no theorem", plan, (said,))

    found, now, searches, least, because = _over_lengths(start, parts, target)
    if found is None:
        last = min((search.at(search.steps) for search in searches), key=lambda b: b.value)
        because = [*_why_not(searches, last), *because]
        if not least < trivial:
            because.insert(0, f"VACUOUS: ||∇f(x_0)||² <= {trivial:.4g} before any step")
        source = last.source if math.isfinite(last.value) else "any bound"
        warned = blind_spots(now, problem, n, last.steps)
        return Answer(target, None, None, None, least, source, now, tuple(because), warned)
    if now.length > plan.length:
        because.append(f"the plan is too short and was lengthened to {_length(now)}")
    because = [_what_helps(found), *because]
    warned = blind_spots(now, problem, n, found.steps)
    epochs, steps, samples = _position(now, n, found.steps)
    least = min(least, found.value)
    return Answer(
        target, steps, epochs, samples, least, found.source, now, tuple(because), warned
    )  # fmt: skip


def epochs_to(
    epsilon: float,
    plan: Plan,
    problem: Problem,
    n: int,
    *,
    bound: Which = "best",
    form: str | float | None = None,
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
    if answer.steps is None:
        return answer
    _, steps, samples = _position(answer.plan, n, answer.steps, whole=True)
    return replace(answer, steps=steps, samples=samples)


@final
class _Search:
    """One bound at those steps of one Plan that are asked for."""

    def __init__(self, plan: Plan, problem: Problem, n: int, bound: Name, form: str) -> None:
        self.plan, self.problem, self.n, self.form = plan, problem, n, form
        self.bound: Name = bound
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
            self.seen[steps] = evaluate(
                self.plan, self.problem, self.n, self.bound, self.form, steps=steps
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
        curve = bound_curve(self.plan, self.problem, self.n, bound=self.bound, form=self.form)
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


def _first(searches: Sequence[_Search], after: int, target: float) -> Bound | None:
    """The bound at the first K > after at which any of them is <= target."""
    found = [(search.first(after, target), search) for search in searches]
    hits = [search.at(steps) for steps, search in found if steps is not None]
    return min(hits, key=lambda bound: bound.steps, default=None)


def _over_lengths(
    searches: list[_Search], parts: Sequence[tuple[Name, str]], target: float
) -> tuple[Bound | None, Plan, list[_Search], float, list[str]]:
    """Over longer and longer Plans, from the searches of the first; see `steps_to`.

    Returns:
        The first bound <= target, or None; the Plan it is of, or the last; the last searches; the
        least bound of those before; what was looked at.
    """
    plan, problem, n = searches[0].plan, searches[0].problem, searches[0].n
    limit = _limit(plan, n)
    shorter, now, least = plan, plan, math.inf
    lengths: list[int] = []
    found = _first(searches, 0, target)
    while found is None:
        before, least = least, min(least, *(search.least for search in searches))
        if lengths and least >= before * (1 - _LEAST_GAIN) and not _waiting(shorter, now, limit):
            said = f"doubling to {_length(now)} lowered it by less than 1e-6 of itself"
            return None, now, searches, least, [said]
        longer, refused = _lengthened(now, n, limit)
        if longer is None:
            return None, now, searches, least, [f"searched up to {_length(now)}{refused}"]
        lengths.append(longer.length)
        after = searches[0].steps
        searches = [_Search(longer, problem, n, *part) for part in parts]
        shorter, now = now, longer
        if _same_start(shorter, now, n):
            found = _first(searches, after, target)
        elif any(search.at(search.steps).value <= target for search in searches):
            now, found = _least_length(shorter, now, problem, n, parts, target)
            looked = ", ".join(f"{length:,}" for length in lengths)
            said = (
                f"the schedules depend on the length: {looked} {plan.unit} and a bisection were "
                "looked at; a length that was not may do"
            )
            return found, now, searches, least, [said]
    return found, now, searches, least, []


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
        except ValueError:  # a batch size that has left the floats
            refused, too_long = "; beyond, a schedule leaves its range: give it a maximum", length
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
    parts: Sequence[tuple[Name, str]],
    target: float,
) -> tuple[Plan, Bound]:
    """By bisection: a Plan at whose end a bound is <= target, while one tick shorter it is not."""

    def at_the_end(plan: Plan) -> Bound:
        found = (evaluate(plan, problem, n, *part) for part in parts)
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


def _position(plan: Plan, n: int, steps: int, *, whole: bool = False) -> tuple[int, int, int]:
    """Epochs begun, steps and samples by the end of so many steps, or of the ``whole`` epoch."""
    epochs = done = samples = 0
    for times, lap in plan.laps(n):
        if done >= steps:
            break
        in_lap = sum(count for _, count in lap)
        complete, begun = divmod(steps - done, in_lap)
        complete = min(times, complete + (whole and begun > 0))
        epochs += complete
        done += complete * in_lap
        samples += complete * sum(size * count for size, count in lap)
        if complete < times and done < steps:
            epochs += 1
            for size, count in lap:
                taken = min(count, steps - done)
                done += taken
                samples += size * taken
    return epochs, done, samples


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
    return [line for search in searches for line in failures(search.at(search.steps))]
