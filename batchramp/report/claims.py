"""What the runs say about the paper's ten claims.

Every claim is a set of comparisons, each paired by seed; Holm's correction runs over all tests of
the page. A claim holds if all its comparisons do, does not hold if one of them
is decided against it, and is not decided otherwise. Where a run of either policy has not finished,
whether it is still going, failed, collapsed or diverged, the comparison of the seeds that are left
is shown and not tested. Claim 10 is no test over seeds: one counterexample in a finished run
decides it.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, final

from batchramp.report.cells import (
    Cell,
    Study,
    count,
    last,
    listed,
    number,
    percent,
    spread,
    state,
    studies,
)
from batchramp.report.comparisons import (
    ACCURACY,
    ACCURACY_MARGIN,
    FAILS,
    HOLDS,
    LEVEL,
    MIN_SEEDS,
    NORM,
    NORM_ALIKE,
    NORM_MARGIN,
    OPEN,
    VALIDATION,
    Comparison,
    Measure,
    compare,
    mean,
    measured,
    other_lr,
    ratio,
    signed,
    signs,
    tally,
)
from batchramp.report.statistics import holm, seeds_needed
from batchramp.report.thresholds import compare_thresholds, threshold_grid
from batchramp.store import Record

__all__ = ["STATEMENTS", "Claim", "Decision", "Judgement", "judge"]

STATEMENTS = {
    1: "The increasing batch reaches a lower minimum of the full-gradient norm than the small "
    "constant batch at equal epochs.",
    2: "The increasing batch reaches a lower minimum of the full-gradient norm than the large "
    "constant batch at equal epochs.",
    3: "The test accuracy of the increasing batch is at least that of the small and of the large "
    "constant batch.",
    4: "The norm and the accuracy jump where the batch grows.",
    5: "Under an increasing batch, sqrt-decaying and decaying lr end with a larger norm than "
    "constant, cosine and polynomial lr.",
    6: "QHM, NSHB and SGD end alike.",
    7: "Exponential growth of the batch ends with a smaller norm than linear growth.",
    8: "The increasing batch reaches a given accuracy or norm with fewer samples than the small "
    "batch.",
    9: "lr matters for the norm; the first beta and gamma hardly do.",
    10: "The train loss stays below its start at every recorded epoch.",
}

SILENT = "not in these runs"


@final
@dataclass(frozen=True)
class Decision:
    """How one comparison of a claim ended, to be held against the same one of other seeds.

    Attributes:
        where: what was compared; unlike that of every other decision of the claim.
        kind: what is claimed of the differences; see `Comparison`.
        outcome: "holds", "does not hold" or "not decided".
        p: the least p-value of its paired t-tests after Holm's correction; None if none was fair.
        differences: one a seed, positive in the claim's favour; of logarithms for norms and
            samples.
    """

    where: str
    kind: str
    outcome: str
    p: float | None
    differences: tuple[float, ...]

    def __str__(self) -> str:
        return f"{self.where}: {self.outcome} ({seeds_text(len(self.differences))})"


@final
@dataclass(frozen=True)
class Claim:
    """A claim and what the runs say of it.

    Attributes:
        number: 1 to 10, as in `STATEMENTS`; 0 for a control that is not the paper's.
        statement: the claim.
        verdict: "holds", "does not hold", "not decided (3 seeds)", "not decided", or "not in these
            runs".
        sentences: the evidence, each computed from rows.
        decisions: one a comparison; none where the verdict is counted (claim 10).
    """

    number: int
    statement: str
    verdict: str
    sentences: tuple[str, ...]
    decisions: tuple[Decision, ...] = ()

    def __str__(self) -> str:
        head = f"{self.number}. " if self.number else ""
        return "\n".join(
            [f"{head}{self.statement} {self.verdict}", *(f"   {s}" for s in self.sentences)]
        )


@final
@dataclass(frozen=True)
class Judgement:
    """All claims, the controls, and what the tests of the page have in common.

    Attributes:
        claims: the ten, in order.
        controls: comparisons with opponents that the paper lacks.
        tests: how many tests Holm's correction ran over: those made, and those that enough seeds
            allowed and an obstacle forbade.
        note: how verdicts were formed, and what these runs could decide.
    """

    claims: tuple[Claim, ...]
    controls: tuple[Claim, ...]
    tests: int
    note: str

    def __str__(self) -> str:
        return "\n".join([*map(str, self.claims), *map(str, self.controls), self.note])


@dataclass
class _Draft:
    """A claim before Holm: its comparisons, and sentences that stand before them."""

    number: int
    statement: str
    comparisons: list[Comparison]
    remarks: list[str]
    verdict: str = ""  # where it does not come from the comparisons
    silence: str = ""  # why the runs cannot speak to it


def judge(records: Iterable[Record]) -> Judgement:
    """Judges the ten claims and the controls by the runs.

    Args:
        records: all runs of the page; compared within one experiment, task and model. Those of
            an experiment named "...-tuning" chose an lr and are not judged.

    >>> judge([]).claims[0].verdict
    'not in these runs'
    """
    found = [s for s in studies(records) if not s.experiment.endswith("-tuning")]
    builders = (_claim1, _claim2, _claim3, _claim4, _claim5, _claim6, _claim7, _claim8, _claim9)
    drafts = [_gather(i, builder, found) for i, builder in enumerate(builders, start=1)]
    drafts.append(_claim10(found))
    drafts += _controls(found)
    comparisons = [comparison for draft in drafts for comparison in draft.comparisons]
    made = [p for comparison in comparisons for p in comparison.tests]
    forgone = sum(comparison.forgone for comparison in comparisons) if made else 0
    adjusted = iter(holm([*made, *[1.0] * forgone]))
    total = len(made) + forgone
    claims = [_close(draft, adjusted, total) for draft in drafts]
    return Judgement(
        claims=tuple(c for c in claims if c.number),
        controls=tuple(c for c in claims if not c.number),
        tests=total,
        note=_note(drafts, total),
    )


# ------------------------------------------------------------------------- from drafts to verdicts

_Builder = Callable[[Study], tuple[list[Comparison], list[str], str]]


def _gather(which: int, builder: _Builder, found: Sequence[Study]) -> _Draft:
    comparisons: list[Comparison] = []
    remarks: list[str] = []
    silence = "there are no runs"
    for study in found:
        new, said, silence = builder(study)
        if len(found) > 1:
            prefix = f"{study.name} – "
            new = [_prefixed(c, prefix) for c in new]
            said = [prefix + s for s in said]
        comparisons += new
        remarks += said
    return _Draft(
        which, STATEMENTS[which], comparisons, remarks, silence="" if comparisons else silence
    )


def _prefixed(c: Comparison, prefix: str) -> Comparison:
    return replace(c, where=prefix + c.where)


def _close(draft: _Draft, adjusted: Iterator[float], total: int) -> Claim:
    if draft.silence:
        return Claim(draft.number, draft.statement, SILENT, (_sentence(draft.silence),))
    sentences = list(draft.remarks)
    decisions = []
    for comparison in draft.comparisons:
        raw = comparison.tests
        corrected = [next(adjusted) for _ in raw]
        outcome = comparison.outcome(corrected)
        where = ": ".join(part for part in (comparison.where, comparison.of) if part)
        least = min(corrected, default=None)
        decisions.append(Decision(where, comparison.kind, outcome, least, comparison.differences))
        sentence = f"{comparison.where}: {comparison.sentence}"
        if raw:
            sentence += f" {comparison.evidence(corrected, total)}: {outcome}."
        elif comparison.obstacle:
            sentence += f" Not tested: {comparison.obstacle}."
        if comparison.other_lr:
            sentence += f" Mind the lr: {comparison.other_lr}."
        sentences.append(sentence)
    outcomes = [decision.outcome for decision in decisions]
    verdict = draft.verdict or _verdict(draft.comparisons, outcomes)
    if len(outcomes) > 1 and len(set(outcomes)) > 1:
        sentences.insert(0, f"Of {len(outcomes)} comparisons: {tally(outcomes)}.")
    if text := _at_other_lr(draft.comparisons, outcomes):
        sentences.insert(0, text)
    return Claim(draft.number, draft.statement, verdict, tuple(sentences), tuple(decisions))


def _at_other_lr(comparisons: Sequence[Comparison], outcomes: Sequence[str]) -> str:
    """How many of the decisions are between policies that were tuned to different lr."""
    decided = [(c, o) for c, o in zip(comparisons, outcomes, strict=True) if o != OPEN]
    unlike = [o for c, o in decided if c.other_lr]
    if not unlike:
        return ""
    return (
        f"{len(unlike)} of the {len(decided)} that are decided are between policies that start at "
        f"different lr, each its own: {tally(unlike)}."
    )


def _verdict(comparisons: Sequence[Comparison], outcomes: Sequence[str]) -> str:
    if FAILS in outcomes:
        return FAILS
    if all(outcome == HOLDS for outcome in outcomes):
        return HOLDS
    fewest = min(c.seeds for c in comparisons)
    return f"{OPEN} ({seeds_text(fewest)})" if fewest < MIN_SEEDS else OPEN


def _note(drafts: Sequence[_Draft], total: int) -> str:
    comparisons = [comparison for draft in drafts for comparison in draft.comparisons]
    most = max((c.seeds for c in comparisons), default=0)
    if not comparisons:
        text = "No two policies were run that a claim compares."
    elif total:
        text = _tested([c for c in comparisons if c.tests], total)
    elif most < MIN_SEEDS:
        text = (
            f"No comparison has {MIN_SEEDS} paired seeds (the most is {most}), so no policies were "
            "tested against each other: their means, ranges and directions decide nothing."
        )
    else:
        text = "No comparison could be tested; each says why."
    if comparisons:
        text += (
            " The number of seeds must be fixed beforehand; a comparison is tested only once all "
            "runs of its policies have finished."
        )
    if any(draft.number == 10 and not draft.silence for draft in drafts):
        text += (
            " Claim 10 is no test over seeds: it is counted in finished runs, and one "
            "counterexample decides it."
        )
    return text


def _tested(tested: Sequence[Comparison], total: int) -> str:
    text = (
        f"{total} tests, paired by seed: a decision takes a paired t-test at {LEVEL:g} after "
        "Holm’s correction over all of them, and exact sign flips at the same level. Margins, "
        f"fixed beforehand: {ACCURACY_MARGIN:g} points of accuracy; a norm {NORM_ALIKE}. "
        "The t-test assumes that differences (of logarithms for norms and samples) are close to "
        "normal, far in the tail where many tests are corrected for: skewed ones would err more "
        "often. Sign flips assume that they are symmetric about 0, or about the margin. That an "
        "error anywhere on the page stays as rare as the level says was checked by simulation on "
        "pages of one panel, for pairs of the same plan alone. Test accuracies are of one test "
        "set: what another would say is in no test."
    )
    alike = any(c.kind in ("alike", "unlike") for c in tested)
    needed = seeds_needed(total, LEVEL, sides=1 if alike else 2)
    if min(c.seeds for c in tested) < needed:
        text += (
            f" Sign flips alone, corrected over {total} tests, could decide nothing below "
            f"{needed} seeds."
        )
    return text


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def seeds_text(n: int) -> str:
    return f"{n} seed" if n == 1 else f"{n} seeds"


# -------------------------------------------------------------------------------------- the claims


def _against(
    study: Study, opponents: Sequence[str], measure: Measure, kind: str, favour: int, margin: float
) -> tuple[list[Comparison], list[str], str]:
    """The increasing batch against others, panel by panel."""
    found = []
    for panel in study.panels:
        ours = study.cell(panel, "increasing")
        for label in opponents:
            theirs = study.cell(panel, label)
            if ours and theirs and measured(measure, ours, theirs):
                found.append(compare(panel, ours, theirs, measure, kind, favour, margin))
    names = " or ".join(f"“{label}”" for label in opponents)
    if any(study.cell(p, "increasing") for p in study.panels):
        silence = f"no panel has {names} beside “increasing” with a {measure.name}"
    else:
        silence = f"it compares runs labelled “increasing” and {names}"
    return found, [], silence


def _claim1(study: Study) -> tuple[list[Comparison], list[str], str]:
    return _against(study, ("small",), NORM, "above", -1, 0.0)


def _claim2(study: Study) -> tuple[list[Comparison], list[str], str]:
    return _against(study, ("large",), NORM, "above", -1, 0.0)


def _claim3(study: Study) -> tuple[list[Comparison], list[str], str]:
    found, _, silence = _against(
        study, ("small", "large"), ACCURACY, "at least", 1, ACCURACY_MARGIN
    )
    said = [f"“At least” allows {ACCURACY_MARGIN:g} points; test accuracy is that of the last "
            "epoch."] if found else []  # fmt: skip
    return found, said, silence


def _claim4(study: Study) -> tuple[list[Comparison], list[str], str]:
    found: list[Comparison] = []
    said: list[str] = []
    accuracy = curve_accuracy(study)
    for panel in study.panels:
        ours, control = study.cell(panel, "increasing"), study.cell(panel, "small")
        if ours is None or control is None or not (elsewhere := _elsewhere(ours)):
            continue
        if _kind(control.records[0].plan.batch_size) != "Constant":
            continue
        epochs = (ours.growths, elsewhere)
        measures = [_jump("full_gradient_norm", "extra fall of log norm", *epochs, -1)]
        if accuracy:
            measures.append(_jump(accuracy, f"extra rise of {words(accuracy)}", *epochs, 1))
        found += [
            compare(panel, ours, control, measure, "above", equal_epochs=False)
            for measure in measures
            if ours.values(measure.of) or control.values(measure.of)
        ]
        said.append(_at_growth(panel, ours, control))
    if found:
        said.insert(
            0,
            "The mean change over the epochs at whose start the batch grew, less that over the "
            "epochs between them: a run that falls fast everywhere does not jump. Against the same "
            "of the small batch, which does not grow. The test set is not read along the way.",
        )
    return found, said, (
        "it needs “increasing”, under a plan in epochs with a batch that grows and epochs between "
        "its growths, beside “small” in a panel"
    )  # fmt: skip


def _at_growth(panel: str, ours: Cell, control: Cell) -> str:
    epochs = [str(m) for m in ours.growths]
    where = listed(epochs) if len(epochs) <= 12 else f"{len(epochs)} epochs"
    text = f"{panel}: the batch grows at {'epoch ' if len(epochs) == 1 else 'epochs '}{where}"
    if len(epochs) > 12:
        text = f"{panel}: the batch grows at {where}"
    return f"{text}."


def _elsewhere(cell: Cell) -> tuple[int, ...]:
    """The epochs after the first growth at whose start the batch did not grow."""
    growths = cell.growths
    if not growths:
        return ()
    rows = max(len(record.rows) for record in cell.records)
    return tuple(m for m in range(growths[0] + 1, rows) if m not in growths)


def _jump(
    column: str, name: str, growths: Sequence[int], elsewhere: Sequence[int], sign: int
) -> Measure:
    """The mean change over some epochs less that over others; of the logarithm for a norm."""
    log = column == "full_gradient_norm"

    def change(record: Record, epochs: Sequence[int]) -> float:
        changes = []
        for m in epochs:
            if m >= len(record.rows):
                return math.nan
            before, after = record.rows[m - 1].get(column), record.rows[m].get(column)
            if before is None or after is None or (log and min(before, after) <= 0):
                return math.nan
            changes.append(sign * (math.log(after / before) if log else after - before))
        return mean(changes)

    def of(record: Record) -> float:
        return change(record, growths) - change(record, elsewhere)

    return Measure(name, of, signed, False, "more", "less", "" if log else " points")


def curve_accuracy(study: Study) -> str:
    """The accuracy that may be read at every epoch: never that of the test set."""
    for column in ("validation_accuracy", "train_accuracy"):
        if study.measures(column):
            return column
    return ""


def words(column: str) -> str:
    return column.replace("_", " ")


# lr schedules by their kind in a Plan's file, in the paper's words.
_LR_KINDS = {
    "Constant": "constant",
    "InverseSqrt": "inverse-sqrt",
    "Inverse": "decaying",
    "Cosine": "cosine",
    "Polynomial": "polynomial",
}
_SLOW, _FAST = ("inverse-sqrt", "decaying"), ("constant", "cosine", "polynomial")


def _lr_kind(record: Record) -> str:
    return _LR_KINDS.get(_kind(record.plan.lr), "")


def _kind(schedule: Any) -> str:
    """The schedule's kind, as files name it; what is merely delayed is of the kind that it delays.

    The released code delays every schedule by one epoch.
    """
    kind = type(schedule).__name__
    return _kind(schedule.schedule) if kind == "Delayed" else kind


def _is_constant(schedule: Any, value: float) -> bool:
    return _kind(schedule) == "Constant" and schedule(0, 1) == value


def _momentum(record: Record) -> str:
    """QHM, NSHB (gamma = 1) or SGD (gamma or beta = 0), by the Plan; else the optimizer's name.

    torch's SGD with a momentum, its own or a planned beta, is heavy ball: none of the three.
    """
    plan, name = record.plan, record.optimizer.upper()
    if not name.startswith("QHM"):
        plain = plan.beta is None or _is_constant(plan.beta, 0)
        moving = not plain or "MOMENTUM" in name
        return "SGD" if name.partition("(")[0] == "SGD" and not moving else f"{name}, its own"
    if _is_constant(plan.gamma, 0) or _is_constant(plan.beta, 0):
        return "SGD"
    if _is_constant(plan.gamma, 1):
        return "NSHB"
    return name if plan.gamma is None else "QHM"


def _grows(cell: Cell) -> bool:
    plan = cell.records[0].plan
    return plan.at(plan.length - 1).batch_size > plan.at(0).batch_size


def _claim5(study: Study) -> tuple[list[Comparison], list[str], str]:
    grown = [c for c in study.cells if _grows(c) and _lr_kind(c.records[0])]
    found = []
    for a in grown:
        for b in grown:
            x, y = a.records[0], b.records[0]
            if (
                (a.label == b.label or a.panel == b.panel)
                and _lr_kind(x) in _SLOW
                and _lr_kind(y) in _FAST
                and x.plan.batch_size == y.plan.batch_size
                and x.plan.length == y.plan.length
                and _momentum(x) == _momentum(y)
                and measured(NORM, a, b)
            ):
                where = f"{_lr_kind(x)} against {_lr_kind(y)} lr"
                if (x.plan.beta, x.plan.gamma) != (y.plan.beta, y.plan.gamma):
                    where += " (beta or gamma differ as well)"
                found.append(compare(where, a, b, NORM, "above"))
    return found, [], (
        "it needs growing batches of one plan under a sqrt-decaying or decaying lr and under a "
        "constant, cosine or polynomial lr"
    )  # fmt: skip


def _claim6(study: Study) -> tuple[list[Comparison], list[str], str]:
    found: list[Comparison] = []
    for a, b in combinations(study.cells, 2):
        x, y = a.records[0], b.records[0]
        kinds = (_momentum(x), _momentum(y))
        if (
            kinds[0] == kinds[1]
            or not set(kinds) <= {"QHM", "NSHB", "SGD"}
            or x.plan.batch_size != y.plan.batch_size
            or x.plan.length != y.plan.length
            or _kind(x.plan.lr) != _kind(y.plan.lr)
            # Momentum of one course; SGD has none.
            or ("SGD" not in kinds and _kind(x.plan.beta) != _kind(y.plan.beta))
        ):
            continue
        where = f"{_lr_kind(x)} lr, {kinds[0]} against {kinds[1]}".removeprefix(" lr, ")
        margins = ((NORM, math.log1p(NORM_MARGIN)), (ACCURACY, ACCURACY_MARGIN))
        found += [
            compare(where, a, b, measure, "alike", margin=margin)
            for measure, margin in margins
            if measured(measure, a, b)
        ]
    said = []
    if found:
        said.append(
            f"Alike is within {ACCURACY_MARGIN:g} points of accuracy, and a norm {NORM_ALIKE}."
        )
        decayed = [r for c in study.cells for r in c.records if _fades(r)]
        if decayed:
            said.append(
                f"In {len(decayed)} of {len(study.records)} runs the momentum decays in steps and "
                "is below a tenth of its start at the end: there the optimizers are SGD for most "
                "of the run."
            )
    return found, said, (
        "it needs runs of one batch and lr schedule under two of QHM, NSHB (gamma = 1) and SGD "
        "(gamma or beta = 0, or torch’s SGD without momentum)"
    )  # fmt: skip


def _fades(record: Record) -> bool:
    first, end = record.plan.at(0), record.plan.at(record.plan.length - 1)
    weight = [(v.beta or 0) * (v.gamma or 0) for v in (first, end)]
    return weight[1] < 0.1 * weight[0]


def _claim7(study: Study) -> tuple[list[Comparison], list[str], str]:
    found = []
    for a in study.cells:
        for b in study.cells:
            x, y = a.records[0].plan, b.records[0].plan
            if (
                _kind(x.batch_size) == "Exponential"
                and _kind(y.batch_size) == "Linear"
                and _kind(x.lr) == _kind(y.lr)
                and a.records[0].optimizer == b.records[0].optimizer
                and (x.beta, x.gamma, x.length) == (y.beta, y.gamma, y.length)
                and measured(NORM, a, b)
            ):
                found.append(compare(a.panel, a, b, NORM, "above", favour=-1))
    return found, [], "it needs a batch that grows exponentially and one that grows linearly"


def _claim8(study: Study) -> tuple[list[Comparison], list[str], str]:
    found: list[Comparison] = []
    said: list[str] = []
    accuracy = curve_accuracy(study)
    columns = [("min_full_gradient_norm", False, "minimum norm", number)]
    if accuracy:
        columns.append((accuracy, True, words(accuracy), percent))
    for panel in study.panels:
        ours, theirs = study.cell(panel, "increasing"), study.cell(panel, "small")
        if ours is None or theirs is None:
            continue
        for column, rising, name, text in columns:
            grid = threshold_grid((ours, theirs), column, rising)
            if grid and ours.finished and theirs.finished:
                found.append(
                    compare_thresholds(panel, ours, theirs, column, rising, name, text, grid)
                )
    if found:
        said.append(
            "Over the whole range of thresholds, not one: samples are counted at the ends of "
            "epochs, the logarithm of the ratio is averaged over the thresholds that both reach. "
            + (
                f"Accuracy is {words(accuracy)}, so that the test set is not read along the way."
                if accuracy
                else ""
            )
        )
    return found, said, "it compares runs labelled “increasing” and “small” in one panel"


def _claim9(study: Study) -> tuple[list[Comparison], list[str], str]:
    """Within a grid: the greatest against the least lr, beta and gamma, the others averaged out."""
    silence = "it needs a grid: runs of one policy that differ in lr and in beta or gamma alone"
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in study.cells:
        plan, first = cell.records[0].plan, cell.records[0]
        key = (
            first.optimizer,
            plan.batch_size,
            plan.length,
            _kind(plan.lr),
            _kind(plan.beta),
            _kind(plan.gamma),
        )
        groups.setdefault(key, []).append(cell)
    found: list[Comparison] = []
    for cells in groups.values():
        grid = {tuple(_start(c, name) for name in ("lr", "beta", "gamma")): c for c in cells}
        levels = [sorted({k[i] for k in grid}) for i in range(3)]
        full = math.prod(map(len, levels)) == len(grid) == len(cells)
        if not full or len(levels[0]) < 2 or len(levels[1]) * len(levels[2]) < 2:
            continue
        for i, name in enumerate(("lr", "beta", "gamma")):
            if len(levels[i]) > 1:
                found.append(_extremes(grid, i, name, levels[i][0], levels[i][-1]))
    said = []
    if found:
        said.append(
            "The minimum norm at the greatest value against that at the least, the logarithm "
            f"averaged over the rest of the grid. “Hardly” is {NORM_ALIKE}, “matters” is beyond it."
        )
    return found, said, silence


def _start(cell: Cell, name: str) -> float:
    value = getattr(cell.records[0].plan.at(0), name)
    return math.nan if value is None else value


def _extremes(
    grid: dict[tuple[float, ...], Cell], axis: int, name: str, low: float, high: float
) -> Comparison:
    seeds = set.intersection(*({r.seed for r in c.finished} for c in grid.values()))
    means: dict[int, list[float]] = {}
    for seed in sorted(seeds):
        for end in (low, high):
            norms = [
                NORM.of(r)
                for key, cell in grid.items()
                if key[axis] == end
                for r in cell.finished
                if r.seed == seed
            ]
            logs = [math.log(x) if x > 0 else math.nan for x in norms]
            means.setdefault(seed, []).append(mean(logs))
    d = [b - a for a, b in means.values() if math.isfinite(a) and math.isfinite(b)]
    left = [state(r) for c in grid.values() for r in c.records if state(r) != "finished"]
    ended = ", ".join(f"{left.count(what)} {what}" for what in dict.fromkeys(left))
    most = max(len(c.records) for c in grid.values())
    first = next(iter(grid.values()))
    return Comparison(
        where=f"{name} {high:g} against {low:g}",
        kind="unlike" if name == "lr" else "alike",
        differences=tuple(d),
        sentence=f"ratio {spread(d, ratio)}; {signs(d, NORM)}."
        if d
        else "no seed finished the whole grid.",
        margin=math.log1p(NORM_MARGIN),
        obstacle=f"not every run of the grid has finished: {ended}"
        if left
        else ""
        if len(d) == most
        else f"{len(d)} of {most} seeds have the whole grid",
        of=f"{first.batch_sizes}, {_kind(first.records[0].plan.lr)} lr",
    )


def _claim10(found: Sequence[Study]) -> _Draft:
    """Counted, not tested: in finished runs, every epoch whose train loss was measured."""
    draft = _Draft(10, STATEMENTS[10], [], [])
    cells = [
        (cell, [r for r in cell.records if r.rows and r.initial.get("train_loss") is not None])
        for study in found
        for cell in study.cells
    ]
    cells = [(cell, runs) for cell, runs in cells if runs]
    if not cells:
        draft.silence = "no run has rows and a train loss before its first step"
        return draft
    rows, over, finished, broken = 0, 0, 0, []
    for cell, runs in cells:
        for record in runs:
            if state(record) != "finished":
                continue
            start = record.initial["train_loss"]
            assert start is not None
            losses = [x for row in record.rows if (x := row.get("train_loss")) is not None]
            above = [x for x in losses if x >= start]
            rows, over, finished = rows + len(losses), over + len(above), finished + 1
            if above:
                name = ", ".join(part for part in (cell.panel, cell.name) if part)
                broken.append(
                    f"{name}, seed {record.seed}: not below its start {number(start)} at "
                    f"{len(above)} of {len(losses)} epochs, up to {number(max(above))}."
                )
    if finished:
        draft.remarks.append(
            f"{count(rows - over)} of {count(rows)} recorded epochs, in {finished - len(broken)} "
            f"of {finished} finished runs at all of them, have a train loss below that before the "
            "first step."
        )
    states = [[state(r) for r in runs] for _, runs in cells]
    if left := [what for these in states for what in these if what != "finished"]:
        kinds = ", ".join(f"{left.count(what)} {what}" for what in dict.fromkeys(left))
        draft.remarks.append(f"The runs that did not finish do not count: {kinds}.")
    draft.remarks += broken[:8]
    if len(broken) > 8:
        draft.remarks.append(f"And {len(broken) - 8} more runs.")
    seeds = min(these.count("finished") for these in states)
    if broken:
        draft.verdict = FAILS
    elif seeds >= MIN_SEEDS:
        draft.verdict = HOLDS
        draft.remarks.append("This says so of these runs; no test is needed for what was counted.")
    else:
        draft.verdict = f"{OPEN} ({seeds_text(seeds)})"
        draft.remarks.append("One counterexample would decide; their absence in few seeds cannot.")
    return draft


def _controls(found: Sequence[Study]) -> list[_Draft]:
    """The opponents that the paper lacks; each is named for what it holds equal."""
    drafts = []
    for label, statement, alike in (
        (
            "equal-steps",
            "Control: against the constant batch that takes as many steps, the increasing batch "
            f"has the lower norm and at least its accuracy less {ACCURACY_MARGIN:g} points.",
            False,
        ),
        (
            "best-constant",
            "Control: against the constant batch size that was chosen by validation accuracy, the "
            "increasing batch has the lower norm and at least its accuracy less "
            f"{ACCURACY_MARGIN:g} points.",
            False,
        ),
        (
            "lr-decay-twin",
            "Control: the increasing batch ends as its lr-decay twin does, whose batch stays and "
            "whose lr falls where the batch would grow.",
            True,
        ),
    ):
        comparisons: list[Comparison] = []
        remarks: list[str] = []
        for study in found:
            prefix = f"{study.name} – " if len(found) > 1 else ""
            for panel in study.panels:
                ours, theirs = study.cell(panel, "increasing"), study.cell(panel, label)
                if ours is None or theirs is None:
                    continue
                if text := steps_sentence(ours, theirs):
                    remarks.append(prefix + text)
                if label == "best-constant" and (text := _lowest_norm(study, ours)):
                    remarks.append(prefix + text)
                for measure, margin, favour in (
                    (NORM, math.log1p(NORM_MARGIN), -1),
                    (ACCURACY, ACCURACY_MARGIN, 1),
                ):
                    if not measured(measure, ours, theirs):
                        continue
                    kind = "alike" if alike else "above" if measure is NORM else "at least"
                    allowed = 0.0 if kind == "above" else margin
                    where = prefix + panel
                    comparisons.append(compare(where, ours, theirs, measure, kind, favour, allowed))
        if comparisons:
            drafts.append(_Draft(0, statement, comparisons, remarks))
    return [*drafts, *_traded(found)]


def _traded(found: Sequence[Study]) -> list[_Draft]:
    """Growth of the batch size beside the decay of lr that was traded for it."""
    comparisons: list[Comparison] = []
    remarks: list[str] = []
    for study in found:
        prefix = f"{study.name} – " if len(found) > 1 else ""
        for panel in study.panels:
            ours, theirs = study.cell(panel, "growth"), study.cell(panel, "decay")
            if ours is None or theirs is None or not measured(VALIDATION, ours, theirs):
                continue
            if text := steps_sentence(ours, theirs):
                remarks.append(prefix + text)
            where = prefix + panel
            comparisons.append(
                compare(where, ours, theirs, VALIDATION, "alike", margin=ACCURACY_MARGIN)
            )
    if not comparisons:
        return []
    statement = (
        "Growth of the batch size ends as the decay of lr that was traded for it: within "
        f"{ACCURACY_MARGIN:g} points of validation accuracy."
    )
    return [_Draft(0, statement, comparisons, remarks)]


def _lowest_norm(study: Study, ours: Cell) -> str:
    """The increasing batch beside the constant batch of the least norm; "" if there is none."""
    found = [
        (mean(values), cell)
        for cell in study.panel(ours.panel)
        if _kind(cell.records[0].plan.batch_size) == "Constant"
        and cell.label != "lr-decay-twin"
        and not cell.lost
        and (values := cell.values(NORM.of))
    ]
    norms = ours.values(NORM.of)
    if not found or not norms or ours.lost:
        return ""
    least, cell = min(found, key=lambda pair: pair[0])
    way = "lower" if mean(norms) < least else "higher"
    panel = f"{ours.panel}: " if ours.panel else ""
    return (
        f"{panel}the constant batch size with the lowest minimum norm is that of {cell.name}, "
        f"{number(least)}; {ours.name} ends {way}, at {number(mean(norms))} (means; not tested, "
        "because it was picked by that norm)."
    )


def steps_sentence(ours: Cell, theirs: Cell) -> str:
    """Both results, the share of steps and an lr that differs; "" if either has no finished run."""
    norms = [cell.values(NORM.of) for cell in (ours, theirs)]
    accuracies = [cell.values(ACCURACY.of) for cell in (ours, theirs)]
    steps = [cell.values(last("steps")) for cell in (ours, theirs)]
    if not all(steps):
        return ""
    parts = []
    if all(accuracies):
        parts.append(f"at {percent(mean(accuracies[0]))} against {percent(mean(accuracies[1]))}")
    if all(norms):
        parts.append(
            f"at a minimum norm of {number(mean(norms[0]))} against {number(mean(norms[1]))}"
        )
    if not parts:
        return ""
    share = mean(steps[0]) / mean(steps[1])
    apart = other_lr(ours, theirs)
    panel = f"{ours.panel}: " if ours.panel else ""
    return (
        f"{panel}compared with {theirs.name}, {ours.name} ends {' and '.join(parts)}, with "
        f"{_share(share)} ({count(mean(steps[0]))} against {count(mean(steps[1]))})"
        f"{'; ' if apart else ''}{apart}."
    )


def _share(share: float) -> str:
    """The one's steps as a share of the other's.

    >>> _share(0.2), _share(0.9994), _share(1.6)
    ('20 % of its steps', 'as many steps', '1.6 times its steps')
    """
    if abs(share - 1) < 0.005:
        return "as many steps"
    return f"{100 * share:.2g} % of its steps" if share < 1 else f"{share:.3g} times its steps"
