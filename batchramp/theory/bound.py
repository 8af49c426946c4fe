"""What a bound is: its value, its terms, its conditions."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from batchramp.theory.problem import Problem

__all__ = ["MEANINGS", "Bound", "Condition"]

Array = NDArray[np.float64]

# What the terms are called beside the paper's letters.
MEANINGS = {
    "A_K": "initial gap",
    "B_K": "gradient noise",
    "C_K": "momentum",
    "A'_K": "initial gap",
    "A'_K start": "momentum buffer that starts at 0",
    "B'_K": "gradient noise",
    "C'_K": "learning rate",
    "D'_K": "learning rate over 1 - beta",
    "A": "initial gap",
    "B": "gradient noise",
    "B momentum": "gradient noise in the momentum buffer",
}


@final
@dataclass(frozen=True)
class Condition:
    """What a bound needs.

    Attributes:
        statement: the condition, such as "lr < 2/L".
        holds: whether the Plan meets it at every step.
        first_failure: the first tick (of the Plan) at which it does not; None if it holds.
        needed: what would meet it there, such as "lr < 0.4 (lr is 0.5)"; "" if it holds.
    """

    statement: str
    holds: bool
    first_failure: int | None = None
    needed: str = ""

    def __str__(self) -> str:
        if self.holds:
            return f"{self.statement}: holds"
        return f"{self.statement}: fails from tick {self.first_failure}; it takes {self.needed}"


@final
@dataclass(frozen=True)
class Bound:
    """An upper bound on the least of E||∇f(x_0)||², ..., E||∇f(x_{K-1})||².

    Attributes:
        value: the bound; inf where a condition fails, which means that nothing is known.
        source: which theorem in which form.
        steps: K. A bound for K steps holds for every larger number of steps too.
        terms: what the bound is the sum of, by the paper's letters; `MEANINGS` has them in words.
            Where a condition fails they are what the formula gives, as far as it is finite.
        conditions: what the bound needs.
        trivial: min(G², 2 L D0), which bounds ||∇f(x_0)||² before any step is taken.
        start: ||∇f(x_0)||² where the problem has it, else None.
        caveats: what a reader of the value should know.
    """

    value: float
    source: str
    steps: int
    terms: Mapping[str, float]
    conditions: tuple[Condition, ...]
    trivial: float
    start: float | None = None
    caveats: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether all conditions do."""
        return all(condition.holds for condition in self.conditions)

    @property
    def vacuous(self) -> bool:
        """Whether the bound says nothing: it is not below min(G², 2 L D0)."""
        return not self.value < self.trivial

    @property
    def news(self) -> str:
        """Why the bound says nothing that was not known at x_0; "" if it does.

        Beside `vacuous`, a bound may lie above a ||∇f(x_0)||² that is known.
        """
        if self.vacuous:
            return f"VACUOUS: ||∇f(x_0)||² <= {self.trivial:.4g} before any step"
        if self.start is not None and not self.value < self.start:
            return f"no news: ||∇f(x_0)||² is {self.start:.4g}"
        return ""

    @property
    def dominant(self) -> str | None:
        """The letter of the largest term; None where the bound has no value."""
        if not math.isfinite(self.value):
            return None
        return max(self.terms, key=lambda name: self.terms[name])

    def __str__(self) -> str:
        lines = [f"{self.source}, {self.steps:,} steps: min E||∇f||² <= {self.value:.4g}"]
        lines += [f"  {self.news}"] if self.news else []
        width = max(map(len, self.terms), default=0)
        for name, value in self.terms.items():
            mark = "  <- dominant" if name == self.dominant else ""
            lines.append(f"  {name:{width}}  {value:<10.4g}  {MEANINGS.get(name, '')}{mark}")
        lines += [f"  {condition}" for condition in self.conditions if not condition.holds]
        lines += [f"  {caveat}" for caveat in self.caveats]
        return "\n".join(lines)


# ------------------------------------------------------------- a bound at several horizons at once


@final
@dataclass(frozen=True, eq=False)
class Evaluated:
    """A bound at several horizons."""

    source: str
    values: Array
    terms: dict[str, Array]
    conditions: Callable[[int], list[Condition]]
    caveats: tuple[str, ...] = ()

    def bound(self, i: int, steps: int, problem: Problem) -> Bound:
        """At the i-th horizon, which is after so many steps."""
        return Bound(
            float(self.values[i]),
            self.source,
            steps,
            {name: float(term[i]) for name, term in self.terms.items()},
            tuple(self.conditions(i)),
            trivial(problem),
            at_start(problem),
            self.caveats,
        )


def total(terms: dict[str, Array]) -> Array:
    values = np.sum(list(terms.values()), axis=0)
    return np.where(np.isfinite(values), values, np.inf)


def positive(holds: bool) -> Condition:
    statement = "some step has lr > 0"
    return Condition(statement, True) if holds else Condition(statement, False, 0, "lr > 0")


def over(numerator: Array | float, denominator: Array) -> Array:
    """The quotient where it makes sense, else inf."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        quotient = np.asarray(numerator, dtype=np.float64) / denominator
    return np.where((denominator > 0) & ~np.isnan(quotient), quotient, np.inf)


def at_start(problem: Problem) -> float | None:
    """||∇f(x_0)||², where it is known."""
    norm = problem.initial_gradient_norm
    return None if norm is None else norm * norm


def trivial(problem: Problem) -> float:
    """min(G², 2 L D0): what ||∇f(x_0)||² cannot exceed, whatever the algorithm."""
    return min(
        problem.gradient_bound * problem.gradient_bound,
        2 * problem.smoothness * problem.initial_gap,
    )
