"""Plans side by side, what the bounds of a Plan hide, and what a change of it would do to them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np

from batchramp.plan import Plan
from batchramp.schedules import Delayed, Exponential, Product, Schedule, Warmup
from batchramp.theory.bound import Bound
from batchramp.theory.bounds import OF_BEST, Which, best_bound, evaluate, resolve, theorem2
from batchramp.theory.critical_batch import best_constant_batch
from batchramp.theory.layout import Segments, segments
from batchramp.theory.problem import Problem

__all__ = ["Change", "Comparison", "caveats", "compare", "what_would_change_it_most"]


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
        head = f"min E||∇f||² by the {self.bound} bound, all cut to the least of (* the best)"
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
    min E||∇f||² by the best bound, all cut to the least of (* the best)
    plan  10 epochs  8,000 samples  100 steps
    b=8      0.025*         0.025*      0.125
    b=80     0.1125         0.1125    0.1125*
    """
    if not isinstance(plans, Mapping):
        plans = {f"plan {i}": plan for i, plan in enumerate(plans, 1)}
    if not plans:
        raise ValueError("plans must hold at least 1 plan, got none")
    parts = resolve(bound)
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
        return evaluate(plan, problem, n, *parts[0], steps=k).value

    values = {
        axis: {name: value(plan, steps[axis][name]) for name, plan in plans.items()}
        for axis in axes
    }
    least = {
        axis: min(of, key=lambda name: of[name]) if math.isfinite(min(of.values())) else None
        for axis, of in values.items()
    }
    warned = {name: caveats(plan, problem, n) for name, plan in plans.items()}
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


def caveats(plan: Plan, problem: Problem, n: int) -> tuple[str, ...]:
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
    >>> for said in caveats(plan, problem, n=800):
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
    elif best.news:
        said.append(f"the best bound, {best.value:.4g}, says nothing: {best.news}")
    for part in OF_BEST:
        said += failures(evaluate(plan, problem, n, *part))
    return (*said, *blind_spots(plan, problem, n))


def failures(bound: Bound) -> list[str]:
    """The conditions of a bound that fail, in sentences."""
    return [f"{bound.source}: {c}" for c in bound.conditions if not c.holds]


def _least(plan: Plan, problem: Problem, n: int, steps: int | None) -> float:
    return min(evaluate(plan, problem, n, *part, steps=steps).value for part in OF_BEST)


def blind_spots(plan: Plan, problem: Problem, n: int, steps: int | None = None) -> tuple[str, ...]:
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
    if not best.bound <= 0.99 * grown:
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
        if not math.isfinite(self.bound.value):
            return f"{self.change:36} no bound"
        word = self.bound.news.partition(":")[0].lower()
        word = f", {word}" if word else ""
        return f"{self.change:36} {self.bound.value:<10.4g} {self.bound.source}{word}"


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
