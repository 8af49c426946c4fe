"""One comparison of two policies, paired by seed, and the sentence that says what it shows.

Runs of the same seed share their initial weights and their permutations. Fewer than `MIN_SEEDS`
pairs decide nothing: they show means, ranges and signs. From there on a decision takes a paired
t-test under Holm's correction and, uncorrected, exact sign flips, which assume symmetry alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

from batchramp.report.cells import Cell, count, last, listed, number, percent, setting, spread
from batchramp.report.statistics import effect_size, equivalence, paired_t, sign_flip
from batchramp.store import Record

__all__ = ["ACCURACY", "NORM", "VALIDATION", "Comparison", "Measure", "compare"]

MIN_SEEDS = 8
LEVEL = 0.05
ACCURACY_MARGIN = 0.5  # points
NORM_MARGIN = 0.1  # of the logarithm: log(1 + this)
NORM_ALIKE = f"within a factor of {1 + NORM_MARGIN:g} either way"

HOLDS, FAILS, OPEN = "holds", "does not hold", "not decided"
_SEVERAL = {HOLDS: "hold", FAILS: "do not hold", OPEN: OPEN}


def tally(outcomes: Sequence[str]) -> str:
    """How many ended how.

    >>> tally(["holds", "holds", "not decided"])
    '2 hold, 1 not decided'
    """
    counts = {outcome: outcomes.count(outcome) for outcome in _SEVERAL}
    return ", ".join(
        f"{n} {outcome if n == 1 else _SEVERAL[outcome]}" for outcome, n in counts.items() if n
    )


@final
@dataclass(frozen=True)
class Comparison:
    """One comparison, paired by seed.

    Attributes:
        where: the panel and the quantity.
        kind: what is claimed of the differences: "above" 0, "at least" -margin, "alike" (within
            ±margin) or "unlike" (beyond it).
        differences: one a seed, turned so that positive is in the claim's favour; of logarithms
            for norms and samples.
        margin: in the unit of the differences.
        sentence: what the numbers say, without a decision.
        obstacle: why no test would be fair; "" if one is.
        of: whom it compares, as far as ``where`` leaves it open.
        other_lr: where the two start at different lr, each its own; "" where at the same. What is
            decided is then of two tuned policies, not of what names them.
    """

    where: str
    kind: str
    differences: tuple[float, ...]
    sentence: str
    margin: float = 0.0
    obstacle: str = ""
    of: str = ""
    other_lr: str = ""

    @property
    def seeds(self) -> int:
        """How many pairs there are."""
        return len(self.differences)

    @property
    def tests(self) -> tuple[float, ...]:
        """p-values of the paired t-test, before Holm: what is corrected. () if none is fair.

        "above" and "at least" have one, two-sided, that decides for or against; "alike" and
        "unlike" have two: that they are alike, that they are not.
        """
        return self._tests(paired_t)

    @property
    def sign_flips(self) -> tuple[float, ...]:
        """p-values of the exact sign-flip test of the same, without correction."""
        return self._tests(sign_flip)

    def _tests(self, test: Callable[[Sequence[float], str], float]) -> tuple[float, ...]:
        if self.obstacle or self.seeds < MIN_SEEDS:
            return ()
        return self._p_values(test)

    @property
    def forgone(self) -> int:
        """Tests that enough seeds allow and an obstacle forbids.

        Holm counts them: whether there is an obstacle depends on the runs, and what is corrected
        must not.
        """
        if not self.obstacle or self.seeds < MIN_SEEDS:
            return 0
        return 1 if self.kind in ("above", "at least") else 2

    def _p_values(self, test: Callable[[Sequence[float], str], float]) -> tuple[float, ...]:
        d, margin = self.differences, self.margin
        if self.kind in ("above", "at least"):
            return (test([x + margin for x in d], "two-sided"),)
        beyond = min(
            test([x - margin for x in d], "greater"), test([x + margin for x in d], "less")
        )
        return (equivalence(d, margin, test), min(1.0, 2 * beyond))

    def outcome(self, adjusted: Sequence[float]) -> str:
        """The decision: by the p-values of `tests` as Holm adjusted them, and by `sign_flips`.

        A decision needs both at `LEVEL`.
        """
        decided = [
            max(p, exact) <= LEVEL for p, exact in zip(adjusted, self.sign_flips, strict=True)
        ]
        if not any(decided):
            return OPEN
        if self.kind in ("above", "at least"):
            return HOLDS if mean(self.differences) > -self.margin else FAILS
        return HOLDS if decided[0] == (self.kind == "alike") else FAILS

    def evidence(self, adjusted: Sequence[float], total: int) -> str:
        """The tests in words; "" if there are none.

        Args:
            adjusted: `tests` after Holm.
            total: how many tests Holm ran over.
        """
        if not adjusted:
            return ""
        over = f"after Holm over {total} tests" if total > 1 else "the only test"
        names = ("",) if len(adjusted) == 1 else ("alike: ", "unlike: ")
        parts = [
            f"{name}paired t p {_p(p)}, {over} {_p(corrected)}, sign flips p {_p(exact)}"
            for name, p, corrected, exact in zip(
                names, self.tests, adjusted, self.sign_flips, strict=True
            )
        ]
        # p and d are of the same null hypothesis.
        shift = self.margin if self.kind == "at least" else 0.0
        size = effect_size([x + shift for x in self.differences])
        effect = f"; effect size d = {abs(size):.2g}" if math.isfinite(size) else ""
        text = "; ".join(parts) + effect
        if shift:
            return f"Against a difference of {signed(-shift)}: {text}"
        return text[:1].upper() + text[1:]


def _p(p: float) -> str:
    return "< 0.0001" if p < 1e-4 else f"= {p:.2g}"


@final
@dataclass(frozen=True)
class Measure:
    """A quantity that runs are compared in.

    Attributes:
        name: in words.
        of: its value in a run; nan where there is none.
        text: how the value is written.
        log: whether differences are of logarithms.
        more, less: the words for a larger and a smaller value.
        unit: of differences, with a space before it.
    """

    name: str
    of: Callable[[Record], float]
    text: Callable[[float], str]
    log: bool
    more: str
    less: str
    unit: str = ""

    def difference(self, a: float, b: float) -> float:
        """Of two values, as it is tested."""
        return math.log(a / b) if self.log else a - b


def _loss_at_min(record: Record) -> float:
    return last("loss_at_min_norm")(record)


NORM = Measure("minimum norm", last("min_full_gradient_norm"), number, True, "higher", "lower")
ACCURACY = Measure(
    "test accuracy", last("test_accuracy"), percent, False, "higher", "lower", " points"
)
VALIDATION = replace(ACCURACY, name="validation accuracy", of=last("validation_accuracy"))


def compare(
    where: str,
    a: Cell,
    b: Cell,
    measure: Measure,
    kind: str,
    favour: int = 1,
    margin: float = 0.0,
    equal_epochs: bool = True,
) -> Comparison:
    """a against b, seed by seed.

    Args:
        where: the panel.
        a, b: the cells.
        measure: what is compared.
        kind: as in `Comparison`.
        favour: -1 where the claim says that a has the lower value.
        margin: as in `Comparison`.
        equal_epochs: whether both must have taken as many samples.
    """
    ours = {r.seed: r for r in a.finished}
    theirs = {r.seed: r for r in b.finished}
    pairs = []
    for seed in sorted(ours.keys() & theirs.keys()):
        x, y = measure.of(ours[seed]), measure.of(theirs[seed])
        if math.isfinite(x) and math.isfinite(y) and (not measure.log or min(x, y) > 0):
            pairs.append((ours[seed], theirs[seed], x, y))
    d = [measure.difference(x, y) for _, _, x, y in pairs]
    untested = why_untested(a, b, [(r, s) for r, s, _, _ in pairs] if equal_epochs else [])
    return Comparison(
        where=f"{where}, {measure.name}" if where else measure.name,
        kind=kind,
        differences=tuple(favour * x for x in d),
        sentence=_describe(a, b, pairs, d, measure),
        margin=margin,
        obstacle=untested or unpaired(a, b, len(pairs)),
        of=opponents(a, b),
        other_lr=other_lr(a, b),
    )


def unpaired(a: Cell, b: Cell, pairs: int) -> str:
    """Why no test would be fair where some seeds have no pair of values; "" if all have."""
    most = max(len(a.records), len(b.records))
    return "" if pairs == most else f"{pairs} of {most} seeds have a value of both"


def other_lr(ours: Cell, theirs: Cell) -> str:
    """Where two policies start at, each with the lr it was given; "" if at the same."""
    x, y = (cell.records[0].plan.at(0).lr for cell in (ours, theirs))
    if x == y:
        return ""
    first, second = ("its own" if lr is None else setting(lr) for lr in (x, y))
    return f"{theirs.name} starts at lr {second}, {ours.name} at {first}"


def opponents(a: Cell, b: Cell) -> str:
    """The two cells by their lines, and by their panels where these differ.

    Two comparisons of the same kind in one study never have the same.
    """
    names = [
        (f"{c.line} under {c.panel}" if c.line else c.panel) if a.panel != b.panel else c.line
        for c in (a, b)
    ]
    return " against ".join(names)


def why_untested(a: Cell, b: Cell, pairs: Sequence[tuple[Record, Record]]) -> str:
    lost = [f"{cell.name}: {cell.remark}" for cell in (a, b) if cell.lost]
    if lost:
        return f"the seeds that are left would flatter ({'; '.join(lost)})"
    left = [f"{cell.name}: {cell.remark}" for cell in (a, b) if cell.remark]
    if left:
        return f"not all runs have finished ({'; '.join(left)})"
    for r, s in pairs:
        x, y = last("samples")(r), last("samples")(s)
        if abs(x - y) > 0.01 * max(x, y):
            return f"not at equal epochs: {count(x)} samples against {count(y)}"
    return ""


def _describe(
    a: Cell,
    b: Cell,
    pairs: Sequence[tuple[Record, Record, float, float]],
    d: Sequence[float],
    measure: Measure,
) -> str:
    if not pairs:
        left = [f"{cell.name}: {cell.remark}" for cell in (a, b) if cell.remark]
        why = f" ({'; '.join(left)})" if left else ""
        return f"no seed finished both {a.name} and {b.name}{why}."
    xs, ys = [x for _, _, x, _ in pairs], [y for _, _, _, y in pairs]
    text = (
        f"{a.name} {spread(xs, measure.text)}, {b.name} {spread(ys, measure.text)}; "
        f"{_effect(d, measure)}; {signs(d, measure)}."
    )
    if measure is NORM:
        text += _losses(pairs)
    return text


def _effect(d: Sequence[float], measure: Measure) -> str:
    if measure.log:
        return f"ratio {spread(d, ratio)}"
    low, high = (signed(end) for end in (min(d), max(d)))
    inside = "" if low == high else f" [{low}, {high}]"
    return f"difference {signed(mean(d))}{inside}{measure.unit}"


def ratio(log: float) -> str:
    """A ratio by its logarithm: the mean of logarithms becomes the geometric mean.

    >>> spread([math.log(0.2), math.log(1.25)], ratio)
    '0.50 [0.20, 1.25]'
    """
    value = math.exp(log)
    return f"{value:.2f}" if 0.0995 <= value < 9.995 else f"{value:.2g}"


def signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def signs(d: Sequence[float], measure: Measure) -> str:
    """In how many seeds each way, the commoner way first."""
    n = len(d)
    up, down = sum(x > 0 for x in d), sum(x < 0 for x in d)
    ways = sorted([(up, measure.more), (down, measure.less)], key=lambda w: -w[0])
    parts = [f"{word} in {k} of {n}" for k, word in ways if k]
    if up + down < n:
        parts.append(f"equal in {n - up - down} of {n}")
    return listed(parts) + (" seeds" if n > 1 else " seed")


def _losses(pairs: Sequence[tuple[Record, Record, float, float]]) -> str:
    """The train loss beside the norm: a small norm at a high loss is no success."""
    ours = [_loss_at_min(r) for r, _, _, _ in pairs]
    theirs = [_loss_at_min(s) for _, s, _, _ in pairs]
    if not all(map(math.isfinite, ours + theirs)):
        return ""
    text = f" Train loss there: {spread(ours)} against {spread(theirs)}"
    smaller, larger = (ours, theirs) if mean(_logs(pairs)) < 0 else (theirs, ours)
    if mean(smaller) > (1 + NORM_MARGIN) * mean(larger):
        text += " – the smaller norm stands at the higher loss"
    return text + "."


def _logs(pairs: Sequence[tuple[Record, Record, float, float]]) -> list[float]:
    return [math.log(x / y) for _, _, x, y in pairs]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def measured(measure: Measure, *cells: Cell) -> bool:
    """Whether every cell has the quantity, or has runs that are still to bring it."""
    return all(
        any(math.isfinite(measure.of(r)) for r in cell.records) or not cell.finished
        for cell in cells
    ) and any(math.isfinite(measure.of(r)) for cell in cells for r in cell.records)
