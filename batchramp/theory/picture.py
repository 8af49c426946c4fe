"""A Plan's bound against steps and samples, as a figure and in the terminal."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from batchramp.plan import Plan
from batchramp.theory.bound import Array, trivial
from batchramp.theory.bounds import OF_BEST, Curve, bound_curve
from batchramp.theory.problem import Problem

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_bound", "draw_bound_as_text", "draw_bounds"]

# What the best bound is the least of, as a legend says it.
_LINES = dict(zip(("Theorem 2, per step", "Theorem 4, safe", "auxiliary"), OF_BEST, strict=True))
# The terms, where there is no colour.
_LETTERS = ["a", "b", "c", "d", "e"]
# Colours that the colour-blind tell apart (Okabe and Ito 2008).
_COLOURS = ("#0072b2", "#cc79a7", "#009e73", "#d55e00", "#e69f00", "#56b4e9")


def _curves(plan: Plan, problem: Problem, n: int) -> tuple[Curve, dict[str, Curve]]:
    """The best bound, and each of those that it is the least of."""
    best = bound_curve(plan, problem, n)
    each = {
        name: bound_curve(plan, problem, n, bound=bound, form=form)
        for name, (bound, form) in _LINES.items()
    }
    return best, each


def _last_source(best: Curve) -> str:
    """Which line the best bound ends on; "" where none holds."""
    if not np.isfinite(best.values[-1]):
        return ""
    return next(name for name in _LINES if best.sources[-1].startswith(name))


def draw_bound(plan: Plan, problem: Problem, n: int) -> "Figure":
    """The bounds after every epoch, and the best one by term, against steps and against samples.

    Args:
        plan: schedules batch size, lr, beta and gamma.
        problem: D0, L, σ², G.
        n: samples of the data set.

    Raises:
        ValueError: the Plan leaves lr, beta or gamma to the optimizer.
    """
    from matplotlib.figure import Figure

    best, each = _curves(plan, problem, n)
    of = _last_source(best)
    terms = each[of].terms if of else {}
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    panels = figure.subplots(2, 2, sharex="col", sharey="row")
    for column, (x, words) in enumerate(
        ((best.steps, "steps"), (best.samples, "samples (single-sample gradients)"))
    ):
        above, below = panels[0][column], panels[1][column]
        for (name, curve), colour in zip(each.items(), _COLOURS, strict=False):
            if np.isfinite(curve.values).any():
                above.plot(x, _finite(curve.values), color=colour, lw=1.6, label=name)
        dashed = {"color": "#222222", "ls": (0, (3, 2)), "lw": 2.2}
        above.plot(x, _finite(best.values), label="the least so far", **dashed)
        above.plot(
            x,
            np.full(len(x), trivial(problem)),
            color="#d55e00",
            ls="--",
            lw=1,
            label="no news above: min(G², 2 L D0)",
        )
        for (letter, values), dash in zip(terms.items(), ("-", "--", "-.", ":", "-"), strict=False):
            if np.any(np.isfinite(values) & (values > 0)):
                below.plot(x, _finite(values), ls=dash, lw=1.4, label=letter)
        below.set_xlabel(words)
        for axes in (above, below):
            axes.set_xscale("log")
            axes.grid(alpha=0.3)
            if axes.lines:  # a log axis wants something on it
                axes.set_yscale("log")
    panels[0][0].set_ylabel("bound on min E‖∇f‖²")
    panels[1][0].set_ylabel(f"terms of {of}" if of else "no bound holds")
    panels[0][0].legend(fontsize="small", framealpha=0.6)
    if panels[1][0].lines:
        panels[1][0].legend(fontsize="small")
    return figure


def draw_bounds(plans: Mapping[str, Plan], problem: Problem, n: int) -> "Figure":
    """The best bound of several Plans after every epoch, against steps and against samples.

    Args:
        plans: by name.
        problem, n: as in `draw_bound`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for i, (name, plan) in enumerate(plans.items()):
        best = bound_curve(plan, problem, n)
        if not np.isfinite(best.values).any():
            continue
        look = {
            "color": _COLOURS[i % len(_COLOURS)],
            "ls": ("-", "--", ":")[i // len(_COLOURS) % 3],
        }
        for axes, x in ((left, best.steps), (right, best.samples)):
            axes.plot(x, _finite(best.values), label=name, **look)
    for axes, words in ((left, "steps"), (right, "samples (single-sample gradients)")):
        axes.set_xlabel(words)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.set_xscale("log")
            axes.set_yscale("log")
    left.set_ylabel("best bound on min E‖∇f‖²")
    if left.lines:
        left.legend(fontsize="small")
    return figure


def draw_bound_as_text(
    plan: Plan, problem: Problem, n: int, *, width: int = 80, colour: bool = False
) -> str:
    """The least bound so far and the terms of the last against steps, for a terminal.

    Args:
        plan, problem, n: as in `draw_bound`.
        width: of the terminal, in characters.
        colour: whether lines are told apart by colour; else by letters.
    """
    from uniplot import plot_to_string

    best, each = _curves(plan, problem, n)
    of = _last_source(best)
    lines = dict(each[of].terms) if of else {}
    lines["bound"] = best.values  # last, and so on top
    lines = {
        name: values for name, values in lines.items() if np.any(np.isfinite(values) & (values > 0))
    }
    xs, ys = [], []
    for values in lines.values():
        shown = np.isfinite(values) & (values > 0)
        xs.append(best.steps[shown].astype(np.float64))
        ys.append(values[shown])
    if not lines:
        return "no bound holds: there is nothing to draw"
    letters = [*_LETTERS[: len(lines) - 1], "#"]
    title = f"bound on min E||∇f||² against steps: {best.sources[-1]}"
    drawn = plot_to_string(
        xs=xs,
        ys=ys,
        x_as_log=True,
        y_as_log=True,
        lines=len(best.steps) > 1,
        width=max(width - 10, 20),  # labels stand at the right
        height=14,
        title=title,
        legend_labels=list(lines),
        color=colour,
        **({} if colour else {"character_set": "ascii", "force_ascii_characters": letters}),
    )
    return drawn if isinstance(drawn, str) else "\n".join(drawn)


def _finite(values: Array) -> Array:
    """Gaps where there is no bound."""
    return np.where(np.isfinite(values), values, np.nan)
