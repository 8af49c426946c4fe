"""What the theory says of one Plan, or of several side by side, in one value that prints itself."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass, replace
from typing import TYPE_CHECKING, Any, final

from batchramp.plan import HYPERPARAMETERS, Plan
from batchramp.theory.bound import Bound
from batchramp.theory.bounds import OF_BEST, best_bound, evaluate
from batchramp.theory.comparison import (
    Change,
    Comparison,
    blind_spots,
    compare,
    what_would_change_it_most,
)
from batchramp.theory.critical_batch import max_lr
from batchramp.theory.picture import draw_bound, draw_bound_as_text, draw_bounds
from batchramp.theory.problem import Problem
from batchramp.theory.questions import Answer, steps_to
from batchramp.theory.verdict import Verdict, verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Summary", "summary"]


@final
@dataclass(frozen=True)
class Summary:
    """Stages, verdicts, bounds and answers of Plans over ``n`` samples.

    Attributes:
        plans: by name.
        n: samples of the data set.
        problem: the constants, if known.
        unplanned: by Plan: which of lr, beta and gamma it leaves to the optimizer, so that the
            theory cannot read it.
        verdicts: by Plan, as far as it can be read; so below.
        best: the best bound; where there is a problem, as below.
        bounds: each of the bounds it is the least of.
        answers: how long until the bound is at most epsilon, where there is one.
        changes: what would change a single Plan's best bound most.
        warnings: where the bounds are blind.
        comparison: of several Plans.
        note: where the problem's constants come from; "" if that is not said.
    """

    plans: Mapping[str, Plan]
    n: int
    problem: Problem | None
    unplanned: Mapping[str, tuple[str, ...]]
    verdicts: Mapping[str, Verdict]
    best: Mapping[str, Bound]
    bounds: Mapping[str, tuple[Bound, ...]]
    answers: Mapping[str, Answer]
    changes: tuple[Change, ...]
    warnings: tuple[str, ...]
    comparison: Comparison | None
    note: str = ""

    def text(self, *, colour: bool = False, width: int = 80) -> str:
        """For a terminal.

        Args:
            colour: whether lines of the picture are told apart by colour.
            width: of the terminal, for the picture.
        """
        several = len(self.plans) > 1
        parts = []
        for name, plan in self.plans.items():
            title = [f"== {name} =="] if several else []
            parts.append("\n".join([*title, str(plan.describe(self.n)), *self._of(name)]))
        if self.comparison is not None:
            parts.append(str(self.comparison))
        elif not several:
            parts += self._single(colour, width)
        if self.problem is not None:
            parts.insert(0, "\n".join([*([self.note] if self.note else []), _said(self.problem)]))
        return "\n\n".join(parts)

    __str__ = text

    def _of(self, name: str) -> list[str]:
        if self.unplanned[name]:
            left = ", ".join(self.unplanned[name])
            return [f"convergence: not read, for the plan leaves {left} to the optimizer"]
        judged = self.verdicts[name]
        said = [
            str(each).split("\n") for each in (judged.theorem2, judged.theorem4, judged.auxiliary)
        ]
        lines = ["", "does each bound of QHM tend to 0, were the plan to go on?"]
        lines += [f"  {head}" for head, *_ in said]
        for head, *reasons in said:
            lines += [f"why: {head.partition(':')[0]}", *reasons]
        if name in self.best:
            lines += ["", "the best bound", str(self.best[name])]
            lines += ["each bound at the end", *(_line(bound) for bound in self.bounds[name])]
        if name in self.answers:
            # Its warnings are those of the Plan, which stand below.
            lines += ["", str(replace(self.answers[name], warnings=()))]
        return lines

    def _single(self, colour: bool, width: int) -> list[str]:
        (name, plan), *_ = self.plans.items()
        if self.problem is None or self.unplanned[name]:
            return []
        parts = [draw_bound_as_text(plan, self.problem, self.n, width=width, colour=colour)]
        if any(change.bound.holds for change in self.changes):
            changes = map(str, self.changes)
            parts.append("\n".join(["what would change the best bound most", *changes]))
        if not self.best[name].holds:
            first = plan.at(0)
            most = max_lr(self.problem, beta=first.beta or 0.0, gamma=first.gamma or 0.0)
            parts.append(f"{most}\n  (beta and gamma as at the start of the plan)")
        if self.warnings:
            parts.append("\n".join(f"warning: {said}" for said in self.warnings))
        return parts

    def figure(self) -> "Figure":
        """The bound of one Plan by term, or the best bounds of several; else its schedules.

        Raises:
            ValueError: several Plans, and no bound to draw.
        """
        readable = {name: plan for name, plan in self.plans.items() if not self.unplanned[name]}
        if len(self.plans) > 1:
            if self.problem is None or not readable:
                raise ValueError("plans must be 1 to be drawn without a problem, got several")
            return draw_bounds(readable, self.problem, self.n)
        (plan,) = self.plans.values()
        if self.problem is None or not readable:
            return plan.plot(self.n)
        return draw_bound(plan, self.problem, self.n)

    def to_dict(self) -> dict[str, Any]:
        """As plain numbers, strings, lists and dicts; what is not finite is None."""
        of_each = {
            name: {
                "plan": plan.to_dict(),
                "stages": [asdict(stage) for stage in plan.stages(self.n)],
                "total": {
                    "steps": plan.total_steps(self.n),
                    "samples": plan.total_samples(self.n),
                },
                "verdict": _plain(self.verdicts.get(name)),
                "bound": _plain(self.best.get(name)),
                "bounds": _plain(self.bounds.get(name)),
                "answer": _plain(self.answers.get(name)),
            }
            for name, plan in self.plans.items()
        }
        given = {"problem": _plain(self.problem), "note": self.note}
        if len(of_each) == 1:
            (one,) = of_each.values()
            changes = {change.change: _plain(change.bound.value) for change in self.changes}
            return {**one, **given, "changes": changes, "warnings": list(self.warnings)}
        return {"plans": of_each, **given, "comparison": _plain(self.comparison)}


def summary(
    plans: Mapping[str, Plan],
    n: int,
    *,
    problem: Problem | None = None,
    epsilon: float | None = None,
    note: str = "",
) -> Summary:
    """All that the theory says of ``plans`` over ``n`` samples.

    A Plan that leaves lr, beta or gamma to the optimizer is described, and not judged.

    Args:
        plans: by name, at least one.
        n: samples of the data set.
        problem: D0, L, σ², G; without it there are verdicts, but no numbers.
        epsilon: what E||∇f||² is to come down to.
        note: where the problem comes from, which is printed first.

    Raises:
        ValueError: no Plan, or an epsilon without a problem or not above 0.

    >>> plan = Plan(epochs=10, batch_size=8, lr=0.1, beta=0.0, gamma=0.0)
    >>> print(summary({"sgd": plan}, 800).text().splitlines()[3])
    total: 1,000 steps, 8,000 samples
    """
    if not plans:
        raise ValueError("plans must hold at least 1 plan, got none")
    if epsilon is not None and problem is None:
        raise ValueError(
            f"epsilon {epsilon} is of a bound, which needs a problem: give one too (--problem or "
            "--measure)"
        )
    unplanned = {
        name: tuple(field for field in HYPERPARAMETERS if getattr(plan, field) is None)
        for name, plan in plans.items()
    }
    readable = {name: plan for name, plan in plans.items() if not unplanned[name]}
    verdicts = {name: verdict(plan, problem=problem, n=n) for name, plan in readable.items()}
    best: dict[str, Bound] = {}
    bounds: dict[str, tuple[Bound, ...]] = {}
    answers: dict[str, Answer] = {}
    changes: list[Change] = []
    warned: tuple[str, ...] = ()
    comparison = None
    if problem is not None:
        for name, plan in readable.items():
            best[name] = best_bound(plan, problem, n)
            bounds[name] = tuple(evaluate(plan, problem, n, *part) for part in OF_BEST)
            if epsilon is not None:
                answers[name] = steps_to(epsilon, plan, problem, n)
        if len(plans) > 1:
            comparison = compare(readable, problem, n) if readable else None
        elif readable:
            (plan,) = readable.values()
            changes = what_would_change_it_most(plan, problem, n)
            warned = blind_spots(plan, problem, n)
    return Summary(
        dict(plans), n, problem, unplanned, verdicts, best, bounds, answers, tuple(changes), warned,
        comparison, note,
    )  # fmt: skip


def _said(problem: Problem) -> str:
    known = {
        "D0 = f(x_0) - f*": problem.initial_gap,
        "smoothness L": problem.smoothness,
        "variance sigma^2": problem.variance,
        "gradient bound G": problem.gradient_bound,
        "||∇f(x_0)||": problem.initial_gradient_norm,
    }
    return ", ".join(f"{name}: {value:.4g}" for name, value in known.items() if value is not None)


def _line(bound: Bound) -> str:
    """One bound on one line."""
    if not bound.holds:
        failed = next(c for c in bound.conditions if not c.holds)
        return f"  {bound.source:28} no bound: {failed}"
    word = bound.news.partition(":")[0].lower()
    return f"  {bound.source:28} {bound.value:.4g}{f'  ({word})' if word else ''}"


def _plain(value: Any) -> Any:
    if isinstance(value, Plan):
        return value.to_dict()
    if isinstance(value, Bound):
        own = {name: getattr(value, name) for name in ("vacuous", "dominant")}
        return {**{k: _plain(v) for k, v in vars(value).items()}, **own}
    if is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(item) for name, item in vars(value).items()}
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
