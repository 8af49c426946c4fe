"""Bounds against measurements, on a nonconvex problem whose every constant is known.

What theory bounds, min_{k<K} E||∇f(x_k)||², is measured as a mean over seeds and held against each
bound at every K, for 4 batch policies by 5 lr schedules by 5 families of momentum.
"""

import base64
import csv
import io
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from batchramp.plan import Plan, round_batch_size
from batchramp.schedules import (
    Constant,
    Cosine,
    Exponential,
    IncreasingBeta,
    Inverse,
    InverseSqrt,
    Linear,
    Piecewise,
    Polynomial,
    Schedule,
    StepDecay,
    as_count,
    as_number,
)
from batchramp.theory import MEANINGS, Problem, auxiliary, bound_curve, segments
from batchramp.theory.bound import over, trivial
from batchramp.theory.bounds import OF_BEST, evaluate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["BOUNDS", "FAMILIES", "BoundsExperiment", "Combination", "bounds"]

Array = NDArray[np.float64]

# The problem: samples, dimension, sigma, seed of its directions.
_N, _DIMENSION, _RADIUS, _PROBLEM_SEED = 256, 10, 0.5, 0
_SMALL, _LARGE = 8, 64

# What is compared, in the order of the tables; the best is the least so far of those in `OF_BEST`.
BOUNDS = {
    "theorem2": "Theorem 2, per step",
    "theorem2_printed": "Theorem 2, printed",
    "theorem4": "Theorem 4, safe",
    "theorem4_printed": "Theorem 4, printed",
    "auxiliary": "auxiliary",
    "best": "best",
}
FAMILIES = ("batch_policy", "lr_schedule", "momentum")

# Drawn in full, as (batch policy, lr schedule, momentum).
_SELECTION = (
    ("constant 8", "constant", "SGD"),
    ("constant 8", "constant", "NSHB constant"),
    ("exponential", "constant", "QHM constant"),
    ("exponential", "cosine", "QHM step decay"),
    ("linear", "inverse sqrt", "NSHB increasing"),
    ("constant 64", "inverse", "SGD"),
)


@final
@dataclass(frozen=True, eq=False)
class Combination:
    """One Plan, measured and bounded; entry i of an array of shape ``[horizons]`` is at steps[i].

    Attributes:
        batch_policy, lr_schedule, momentum: which of each family.
        plan: the Plan.
        steps: the horizons K: all, or 2,000 evenly spaced of more.
        measured: the least over k < K of the mean over seeds of ||∇f(x_k)||².
        error: the standard error of that mean at the k where it is least.
        bounds: a curve for each name in `BOUNDS`; inf where a condition fails.
        source: the bound that the best is at the last K; "none" where none holds.
        largest_term: what that bound's largest term is; "" where no bound holds.
        share: of that bound, which the largest term is.
        failing: the condition of the auxiliary bound that the whole Plan does not meet; "" if none.
    """

    batch_policy: str
    lr_schedule: str
    momentum: str
    plan: Plan
    steps: NDArray[np.int64]
    measured: Array
    error: Array
    bounds: Mapping[str, Array]
    source: str
    largest_term: str
    share: float
    failing: str

    @property
    def best(self) -> float:
        """The best bound at the last K."""
        return float(self.bounds["best"][-1])

    @property
    def ratio(self) -> float:
        """The best bound over what was measured."""
        return self.best / float(self.measured[-1])

    @cached_property
    def violations(self) -> int:
        """Pairs of a bound and a K at which more was measured than the bound allows."""
        return sum(int(np.sum(self.measured > values)) for values in self.bounds.values())

    def row(self, trivial: float) -> dict[str, Any]:
        """At the last K, as plain values; None where a bound does not hold."""
        return {
            "batch_policy": self.batch_policy,
            "lr_schedule": self.lr_schedule,
            "momentum": self.momentum,
            "epochs": self.plan.length,
            "steps": int(self.steps[-1]),
            "measured": float(self.measured[-1]),
            "standard_error": float(self.error[-1]),
            **{name: _finite(values[-1]) for name, values in self.bounds.items()},
            "ratio": _finite(self.ratio),
            "vacuous": not self.best < trivial,
            "source": self.source,
            "largest_term": self.largest_term,
            "share": self.share,
            "auxiliary_fails": self.failing,
            "violations": self.violations,
        }


@final
@dataclass(frozen=True, eq=False)
class BoundsExperiment:
    """What was measured and what the bounds allow; ``str`` of it is the table.

    Attributes:
        combinations: the 100, by batch policy, lr schedule and momentum.
        problem: its constants.
        lr: that of the first step, of all combinations.
        steps: the least number of steps of a Plan.
        seeds: independent repetitions that the means are over.
        seed: of the draws.
        seconds: what the whole took.
    """

    combinations: tuple[Combination, ...]
    problem: Problem
    lr: float
    steps: int
    seeds: int
    seed: int
    seconds: float

    @property
    def trivial(self) -> float:
        """min(G², 2 L D0): a bound not below it says nothing."""
        return trivial(self.problem)

    @property
    def start(self) -> float:
        """||∇f(x_0)||², which is known here and a stricter measure than `trivial`."""
        assert self.problem.initial_gradient_norm is not None
        return self.problem.initial_gradient_norm**2

    @property
    def violations(self) -> int:
        """Over all combinations, bounds and K."""
        return sum(each.violations for each in self.combinations)

    @property
    def compared(self) -> int:
        """Comparisons with a bound that holds."""
        return sum(
            int(np.isfinite(values).sum())
            for each in self.combinations
            for values in each.bounds.values()
        )

    @property
    def closest(self) -> float:
        """The least of bound over measured, over all combinations, bounds and K."""
        return min(
            float(np.min(values / each.measured))
            for each in self.combinations
            for values in each.bounds.values()
        )

    @property
    def closest_in_errors(self) -> float:
        """The least of (bound - measured)/(standard error), over the same."""
        return min(
            float(np.min(over(values - each.measured, each.error)))  # x_0 has no error
            for each in self.combinations
            for values in each.bounds.values()
        )

    @property
    def largest_error(self) -> float:
        """The largest standard error over what was measured."""
        return max(float(np.max(each.error / each.measured)) for each in self.combinations)

    @property
    def vacuous(self) -> tuple[Combination, ...]:
        """Those whose best bound says nothing."""
        return tuple(each for each in self.combinations if not each.best < self.trivial)

    def below(self, limit: float | None = None) -> dict[str, int]:
        """Of how many combinations each bound is below ``limit`` at the end; None: `trivial`."""
        limit = self.trivial if limit is None else limit
        return {
            name: sum(bool(each.bounds[name][-1] < limit) for each in self.combinations)
            for name in BOUNDS
        }

    def by_family(self, family: str) -> dict[str, tuple[int, int]]:
        """Of each member, how many best bounds are not vacuous, and of how many.

        Args:
            family: one of `FAMILIES`.
        """
        if family not in FAMILIES:
            raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
        said: dict[str, list[bool]] = {}
        for each in self.combinations:
            said.setdefault(getattr(each, family), []).append(each.best < self.trivial)
        return {member: (sum(found), len(found)) for member, found in said.items()}

    @property
    def sources(self) -> dict[str, int]:
        """How often each bound is the best."""
        found = [each.source for each in self.combinations]
        return {source: found.count(source) for source in sorted(set(found))}

    @property
    def largest_terms(self) -> dict[str, int]:
        """How often each term is the largest of the best bound."""
        found = [each.largest_term for each in self.combinations if each.largest_term]
        return {term: found.count(term) for term in sorted(set(found))}

    def rows(self) -> list[dict[str, Any]]:
        """One a combination, as plain values."""
        return [each.row(self.trivial) for each in self.combinations]

    def to_dict(self) -> dict[str, Any]:
        """Setting, counts and rows, as JSON takes them."""
        problem = self.problem
        return {
            "setting": {
                "n": _N,
                "dimension": _DIMENSION,
                "initial_gap": problem.initial_gap,
                "smoothness": problem.smoothness,
                "variance": problem.variance,
                "gradient_bound": problem.gradient_bound,
                "lr": self.lr,
                "steps": self.steps,
                "seeds": self.seeds,
                "seed": self.seed,
            },
            "trivial": self.trivial,
            "start": self.start,
            "comparisons": self.compared,
            "violations": self.violations,
            "closest": _finite(self.closest),
            "closest_in_errors": _finite(self.closest_in_errors),
            "largest_error": self.largest_error,
            "not_vacuous": self.below(),
            "below_start": self.below(self.start),
            "sources": self.sources,
            "largest_terms": self.largest_terms,
            "not_vacuous_by_family": {
                family: {name: good for name, (good, _) in self.by_family(family).items()}
                for family in FAMILIES
            },
            "rows": self.rows(),
        }

    def summary(self) -> list[str]:
        """Sentences."""
        count = len(self.combinations)
        good, below = self.below(), self.below(self.start)
        return [
            f"{count} combinations, at least {self.steps:,} steps each, {self.seeds} seeds, lr "
            f"{self.lr:g}: {self.violations} violations in {self.compared:,} comparisons.",
            f"At the closest the bound is {self.closest:.3g} times what was measured, and at least "
            f"{self.closest_in_errors:.3g} standard errors above it wherever that has an error; "
            f"the standard error is at most {self.largest_error:.2g} of what was measured.",
            f"Not vacuous (below {self.trivial:.4g}, which holds without any step): "
            + ", ".join(f"{BOUNDS[name]} {number}" for name, number in good.items())
            + f" of {count}.",
            f"Below the squared gradient norm at the start, {self.start:.4g}: "
            + ", ".join(f"{BOUNDS[name]} {number}" for name, number in below.items())
            + f" of {count}.",
            *(
                f"By {family.replace('_', ' ')}: "
                + ", ".join(f"{name} {a}/{b}" for name, (a, b) in self.by_family(family).items())
                + "."
                for family in FAMILIES
            ),
            "The best bound is "
            + ", ".join(f"{source} {number} times" for source, number in self.sources.items())
            + "; its largest term is "
            + ", ".join(f"{term} {number} times" for term, number in self.largest_terms.items())
            + ": terms that are small here are hardly tested.",
        ]

    def table(self) -> list[tuple[str, ...]]:
        """The rows in words, the heading first."""
        heading = ("batch size", "lr", "momentum", "measured", *BOUNDS.values(), "best/measured")
        return [
            (*heading, "vacuous", "best is", "its largest term"),
            *(
                (
                    each.batch_policy,
                    each.lr_schedule,
                    each.momentum,
                    _short(float(each.measured[-1])),
                    *(_short(float(each.bounds[name][-1])) for name in BOUNDS),
                    _short(each.ratio),
                    "" if each.best < self.trivial else "vacuous",
                    each.source,
                    f"{each.largest_term}, {each.share:.0%}" if each.largest_term else "",
                )
                for each in self.combinations
            ),
        ]

    def __str__(self) -> str:
        table = self.table()
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in table
        ]
        return "\n".join([*self.summary(), "", *lines])

    __repr__ = __str__

    def plot(self) -> "Figure":
        """Measured and bounds against steps for six combinations, and the ratio of all."""
        return _figure(self)


def bounds(
    seeds: int = 200,
    steps: int = 400,
    out: str | Path | None = None,
    *,
    lr: float = 0.03,
    seed: int = 0,
) -> BoundsExperiment:
    """Holds min_{k<K} E||∇f(x_k)||² against its bounds at every K, for 100 Plans.

    The problem is `batchramp.data.quadratic` with n = 256, d = 10 and σ = 0.5. Mini-batches are
    drawn i.i.d. with replacement (condition C3), b_k at step k as the Plan schedules it. The
    expectation is a mean over seeds, and the least of the means is taken, not the mean of the
    least. Plans of the same batch policy see the same draws (common random numbers): each mean is
    unbiased, their errors are not independent of each other.

    Args:
        seeds: repetitions, at least 2.
        steps: each Plan has the fewest epochs that make at least so many.
        out: a folder for ``bounds.csv``, ``bounds.json``, ``bounds.svg`` and ``report.html``.
        lr: of the first step, below 2/L = 1; the same in all Plans.
        seed: of the draws, >= 0.

    Raises:
        ValueError: an argument out of its range, or ``out`` is a file.

    >>> result = bounds(seeds=2, steps=1)
    >>> len(result.combinations), result.violations
    (100, 0)
    """
    from batchramp.data import quadratic

    seeds, steps = as_count(seeds, "seeds", 2), as_count(steps, "steps")
    lr = float(as_number(lr, "lr", "in (0, 1), below 2/L", lambda x: 0 < x < 1))
    seed = as_count(seed, "seed", 0)
    folder = None if out is None else _folder(out)
    start = time.perf_counter()
    z, x0, problem = quadratic(_N, _DIMENSION, _RADIUS, seed=_PROBLEM_SEED)
    points, found = z.numpy(), []
    for i, (policy, batch_size) in enumerate(_batch_policies(steps).items()):
        plans = _plans(batch_size, lr, steps)
        rng = np.random.default_rng([seed, i])
        draws = (
            _mean_of(points, counts)
            for counts in _draw(rng, _batch_sizes(next(iter(plans.values()))), seeds)
        )
        means, errors = _simulate(list(plans.values()), draws, x0.numpy(), seeds)
        for (names, plan), mean, error in zip(plans.items(), means, errors, strict=True):
            found.append(_compare(policy, *names, plan, problem, mean, error))
    seconds = time.perf_counter() - start
    result = BoundsExperiment(tuple(found), problem, lr, steps, seeds, seed, seconds)
    if folder is not None:
        _write(result, folder)
    return result


# -------------------------------------------------------------------------------------- the plans


def _batch_policies(steps: int) -> dict[str, Schedule]:
    """Growth reaches n within so many steps, if they are enough: it takes 62 or 144 at least."""
    return {
        f"constant {_SMALL}": Constant(_SMALL),
        f"constant {_LARGE}": Constant(_LARGE),
        "exponential": Exponential(_SMALL, factor=2, every=max(1, steps // 62), maximum=_N),
        "linear": Linear(_SMALL, _SMALL, every=max(1, steps // 144), maximum=_N),
    }


def _plans(batch_size: Schedule, lr: float, steps: int) -> dict[tuple[str, str], Plan]:
    """By the names of lr schedule and momentum."""
    epochs = taken = 0
    while taken < steps:
        taken += math.ceil(_N / round_batch_size(batch_size(epochs, epochs + 1)))
        epochs += 1
    tenth = max(1, epochs // 10)
    schedules: dict[str, Schedule] = {
        "constant": Constant(lr),
        "inverse sqrt": InverseSqrt(lr),
        "inverse": Inverse(lr),
        "cosine": Cosine(lr),
        "polynomial": Polynomial(lr, power=2),
    }
    momenta: dict[str, tuple[Schedule | float, Schedule | float]] = {
        "SGD": (0, 0),
        "QHM step decay": (
            StepDecay(0.9, factor=0.5, every=tenth),
            StepDecay(0.7, factor=0.5, every=tenth),
        ),
        "QHM constant": (0.9, 0.7),
        "NSHB constant": (0.9, 1),
        "NSHB increasing": (IncreasingBeta(0.5), 1),
    }
    return {
        (name, momentum): Plan(
            epochs=epochs, batch_size=batch_size, lr=schedule, beta=beta, gamma=gamma
        )
        for name, schedule in schedules.items()
        for momentum, (beta, gamma) in momenta.items()
    }


def _batch_sizes(plan: Plan) -> NDArray[np.int64]:
    """b_k at every step."""
    runs = segments(plan, _N)
    return np.repeat(runs.batch_size.astype(np.int64), runs.count.astype(np.int64))


# --------------------------------------------------------------------------------- the measurement


def _draw(
    rng: np.random.Generator, batch_sizes: Iterable[int], seeds: int, n: int = _N
) -> Iterator[NDArray[np.int64]]:
    """For each step and seed, how often each sample is in the mini-batch: ``[seeds, n]``."""
    rows = n * np.arange(seeds)[:, None]
    for batch_size in batch_sizes:
        drawn = rows + rng.integers(n, size=(seeds, batch_size))
        yield np.bincount(drawn.ravel(), minlength=seeds * n).reshape(seeds, n)


def _mean_of(z: Array, counts: NDArray[np.int64]) -> Array:
    """The mean of z over each mini-batch, ``[seeds, d]``."""
    return counts @ z / counts.sum(axis=1, keepdims=True)


def _simulate(
    plans: Sequence[Plan], draws: Iterable[Array], x0: Array, seeds: int, n: int = _N
) -> tuple[Array, Array]:
    """Algorithm 1 for all plans and seeds at once.

    Args:
        plans: of the same batch sizes.
        draws: the mean of z over the mini-batch, for each step ``[seeds, d]``.
        x0: ``[d]``.
        seeds: how many.
        n: samples, which set the steps of an epoch.

    Returns:
        The mean over seeds of ||∇f(x_k)||² and its standard error, ``[plans, steps]``.
    """
    runs = [segments(plan, n) for plan in plans]
    lr, beta, gamma = (
        np.array([np.repeat(getattr(r, name), r.count.astype(int)) for r in runs])[..., None, None]
        for name in ("lr", "beta", "gamma")
    )
    means, errors = np.empty(lr.shape[:2]), np.empty(lr.shape[:2])
    x = np.tile(x0, (len(plans), seeds, 1))
    d = np.zeros_like(x)
    for k, noise in enumerate(draws):
        gradient = 2 * x / np.square(1 + x * x)
        squares = np.square(gradient).sum(axis=-1)
        means[:, k] = squares.mean(axis=1)
        errors[:, k] = squares.std(axis=1, ddof=1) / math.sqrt(seeds)
        gradient += noise
        d = beta[:, k] * d + (1 - beta[:, k]) * gradient
        x -= lr[:, k] * ((1 - gamma[:, k]) * gradient + gamma[:, k] * d)
    return means, errors


def _compare(
    policy: str,
    schedule: str,
    momentum: str,
    plan: Plan,
    problem: Problem,
    mean: Array,
    error: Array,
) -> Combination:
    steps, values = _bounds_at_every_step(plan, problem, _N)
    least = np.minimum.accumulate(mean)
    newest = np.maximum.accumulate(np.where(mean <= least, np.arange(len(mean)), 0))
    sharp = np.array([values[name] for name, _ in OF_BEST])
    which, i = np.unravel_index(np.argmin(sharp), sharp.shape)
    best = evaluate(plan, problem, _N, *OF_BEST[which], steps=int(steps[i]))
    largest = best.dominant
    whole = auxiliary(plan, problem, _N, split="best")
    return Combination(
        policy,
        schedule,
        momentum,
        plan,
        steps,
        least[steps - 1],
        error[newest][steps - 1],
        values,
        best.source if largest else "none",
        MEANINGS[largest] if largest else "",
        best.terms[largest] / best.value if largest else 0.0,
        "; ".join(str(condition) for condition in whole.conditions if not condition.holds),
    )


def _bounds_at_every_step(
    plan: Plan, problem: Problem, n: int
) -> tuple[NDArray[np.int64], dict[str, Array]]:
    """The horizons, and for each name in `BOUNDS` its values there.

    `bound_curve` evaluates at the ends of epochs: so the same steps are given to it as epochs of
    one step, a plan in steps over a single sample.
    """
    runs = segments(plan, n)
    starts = (np.cumsum(runs.count) - runs.count).astype(int).tolist()

    def pieces(values: Array) -> Piecewise:
        return Piecewise(dict(zip(starts, values.tolist(), strict=True)))

    same = Plan(
        steps=runs.total_steps,
        batch_size=pieces(runs.batch_size),
        lr=pieces(runs.lr),
        beta=pieces(runs.beta),
        gamma=pieces(runs.gamma),
    )
    curve = partial(bound_curve, same, problem, 1)
    curves = {
        "theorem2": curve(bound="theorem2"),
        "theorem2_printed": curve(bound="theorem2", form="printed"),
        "theorem4": curve(bound="theorem4"),
        "theorem4_printed": curve(bound="theorem4", form="printed"),
        "auxiliary": curve(bound="auxiliary", form="best"),
    }
    values = {name: each.values for name, each in curves.items()}
    # The least so far is a bound, for min_{k<K} does not rise with K.
    values["best"] = np.minimum.accumulate(np.min([values[name] for name, _ in OF_BEST], axis=0))
    return curves["auxiliary"].steps, values


# --------------------------------------------------------------------------------------- the files


def _folder(out: str | Path) -> Path:
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"out must be a folder, got the file {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write(result: BoundsExperiment, folder: Path) -> None:
    from batchramp import store

    rows = result.rows()
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    drawing = _svg(result.plot())
    store.write(folder / "bounds.csv", text.getvalue().encode())
    content = json.dumps(result.to_dict(), indent=1, allow_nan=False)
    store.write(folder / "bounds.json", content.encode())
    store.write(folder / "bounds.svg", drawing)
    store.write(folder / "report.html", _page(result, drawing).encode())


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _short(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "-"


# Colours that the colour-blind tell apart (Okabe and Ito 2008).
_COLOURS = ("#0072b2", "#56b4e9", "#d55e00", "#e69f00", "#009e73", "#cc79a7")


def _figure(result: BoundsExperiment) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 9.5), layout="constrained")
    axes = figure.subplot_mosaic([[0, 1, 2], [3, 4, 5], ["all"] * 3], height_ratios=[1, 1, 1.25])
    by_name = {(c.batch_policy, c.lr_schedule, c.momentum): c for c in result.combinations}
    for i, name in enumerate(_SELECTION):
        _draw_one(axes[i], by_name[name], result.trivial)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    for i in (0, 3):
        axes[i].set_ylabel("min over k < K of E||∇f||²")
    for i in (3, 4, 5):
        axes[i].set_xlabel("steps K")
    _draw_ratios(axes["all"], result)
    return figure


def _draw_one(axes: "Axes", one: Combination, trivial: float) -> None:
    axes.plot(one.steps, one.measured, color="black", lw=2, label="measured")
    for (name, title), colour in zip(BOUNDS.items(), _COLOURS, strict=True):
        dash = (0, (4, 1.5)) if name.endswith("printed") else "-"
        values = one.bounds[name]
        if name == "best":
            axes.plot(one.steps, values, color="#bbbbbb", lw=4.5, zorder=1, label=title)
        else:
            shown = np.where(np.isfinite(values), values, np.nan)
            axes.plot(one.steps, shown, color=colour, ls=dash, lw=1.4, label=title)
    axes.axhline(trivial, color="black", ls=":", lw=1, label="holds without any step")
    axes.set_yscale("log")
    axes.set_ylim(top=trivial * 100)
    axes.set_title(f"{one.batch_policy}, lr {one.lr_schedule}\n{one.momentum}", fontsize=9)
    axes.grid(alpha=0.25)


def _draw_ratios(axes: "Axes", result: BoundsExperiment) -> None:
    """A point a combination: columns are the momentum, and inside them the lr schedules."""
    momenta, schedules, policies = (
        list(dict.fromkeys(getattr(c, family) for c in result.combinations))
        for family in ("momentum", "lr_schedule", "batch_policy")
    )
    for policy, colour, marker in zip(policies, _COLOURS, "osD^", strict=False):
        for says in (True, False):
            some = [
                c
                for c in result.combinations
                if c.batch_policy == policy
                and (c.best < result.trivial) == says
                and math.isfinite(c.ratio)
            ]
            axes.scatter(
                [
                    momenta.index(c.momentum)
                    + (schedules.index(c.lr_schedule) - 2) * 0.16
                    + (policies.index(policy) - 1.5) * 0.03
                    for c in some
                ],
                [c.ratio for c in some],
                marker=marker,
                s=26,
                facecolors=colour if says else "none",
                edgecolors=colour,
                label=f"batch size {policy}" if says else None,
            )
    axes.scatter([], [], marker="o", facecolors="none", edgecolors="black", label="vacuous")
    axes.axhline(1, color="black", lw=1)
    axes.set_yscale("log")
    axes.set_ylim(0.7, 10 * axes.get_ylim()[1])  # room for the legend
    axes.set_xticks(range(len(momenta)), momenta)
    axes.set_ylabel("best bound / measured, last K")
    axes.set_title(
        f"All {len(result.combinations)}; in each column, from the left: lr {', '.join(schedules)}",
        fontsize=9,
    )
    axes.grid(alpha=0.25, axis="y")
    axes.legend(ncols=5, fontsize=8, loc="upper left", frameon=False)


def _svg(figure: "Figure") -> bytes:
    import matplotlib

    out = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "batchramp"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Bounds against measurements</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
img { width: 100% }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .8rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .15rem .6rem; border-bottom: 1px solid #ddd;
         white-space: nowrap }
tr.vacuous td { background: #f6f0e4 }
</style>
<h1>Bounds against measurements</h1>
<p>f<sub>i</sub>(x) = &Sigma;<sub>j</sub> x<sub>j</sub>²/(1 + x<sub>j</sub>²) +
&lang;z<sub>i</sub>, x&rang;, nonconvex, in {{ dimension }} dimensions with {{ n }} samples. All
constants are known: L = {{ problem.smoothness }}, &sigma;² = {{ problem.variance }}, G = {{
"%.4g" % problem.gradient_bound }}, f(x<sub>0</sub>) &minus; f* = {{ problem.initial_gap }}.
Mini-batches are i.i.d. with replacement; an expectation is a mean over {{ result.seeds }} seeds;
plans of one batch policy share their draws. What is compared at every number of steps K is the
least of the means up to K; a bound counts as violated without any tolerance.</p>
{% for sentence in result.summary() %}<p>{{ sentence }}</p>
{% endfor %}
<p>This is one family of functions: how loose the bounds are here says nothing of networks.</p>
<img alt="Measured values and bounds against steps for six combinations, and the ratio of best bound
to measured value for all" src="data:image/svg+xml;base64,{{ drawing }}">
{% if result.vacuous %}
<h2>Where the best bound says nothing</h2>
<ul>
{% for each in result.vacuous %}<li>{{ each.batch_policy }}, lr {{ each.lr_schedule }},
{{ each.momentum }}: {{ "%.3g" % each.best }}{{
"; largest term: " + each.largest_term if each.largest_term }}{{
"; auxiliary: " + each.failing if each.failing }}</li>
{% endfor %}
</ul>
{% endif %}
<h2>All combinations</h2>
<p>At the last K. A dash: a condition of the bound fails.</p>
<div class="wide"><table>
<tr>{% for cell in table[0] %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for line in table[1:] %}
<tr{{ ' class="vacuous"'|safe if "vacuous" in line }}>{% for cell in line %}<td>{{ cell }}</td>{%
endfor %}</tr>
{% endfor %}
</table></div>
</html>
"""


def _page(result: BoundsExperiment, drawing: bytes) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(_PAGE).render(
        result=result,
        problem=result.problem,
        table=result.table(),
        n=_N,
        dimension=_DIMENSION,
        drawing=base64.b64encode(drawing).decode(),
    )
