"""Decisions on one set of seeds, held against those on another and against no difference."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, final

from batchramp.report.cells import Cell, studies
from batchramp.report.claims import Claim, Decision, Judgement, judge
from batchramp.report.comparisons import (
    ACCURACY,
    FAILS,
    HOLDS,
    LEVEL,
    MIN_SEEDS,
    NORM,
    OPEN,
    Measure,
    compare,
    tally,
)
from batchramp.report.statistics import wilson
from batchramp.store import Record, read_all

__all__ = ["Calibration", "Conclusion", "calibrate", "conclude"]

_PAIRS = 200
# Decisions with p after Holm below this are counted apart: those near the level repeat less.
_CLEAR = 0.001


@final
@dataclass(frozen=True)
class Calibration:
    """How often two sets of runs of one plan are declared different, by the claims' own rule.

    Without Holm's correction, which makes it rarer still: paired t and exact sign flips at 0.05.

    Attributes:
        pairs: sets compared, each a cell's runs dealt into two halves at random. Dealing makes
            signs fair whatever the runs are, so that this checks the rule alone.
        different: of them, declared different.
        seeds: in each half.
        sets: cells whose runs on the first seeds were compared with those on the second, in norm
            and in accuracy. Runs that changed in between would show here.
        sets_different: of them, declared different.
    """

    pairs: int
    different: int
    seeds: int
    sets: int = 0
    sets_different: int = 0

    def __str__(self) -> str:
        text = (
            f"Calibration, pairs of the same plan, {self.seeds} against {self.seeds} seeds, each "
            f"tested at {LEVEL:g} without a correction: dealt at random, "
            f"{_share(self.different, self.pairs)} are declared different"
        )
        if self.sets:
            text += (
                f"; the first seeds against the second, {_share(self.sets_different, self.sets)}"
            )
        return f"{text}."


@final
@dataclass(frozen=True)
class Conclusion:
    """What the runs decide; and, where there is a second set of seeds, whether it says the same.

    Attributes:
        judgement: the claims on the first set.
        repeated: on the second; None if there is none.
        calibration: on both together; None if there is no second set.
        names: what the two sets are called.
    """

    judgement: Judgement
    repeated: Judgement | None
    calibration: Calibration | None
    names: tuple[str, ...]

    @property
    def pairs(self) -> list[tuple[str, Decision, str]]:
        """Claim, decision on the first seeds, and its outcome on the second."""
        if self.repeated is None:
            return []
        second = {(name, d.where): d.outcome for name, d in _decisions(self.repeated)}
        return [
            (name, d, second.get((name, d.where), OPEN)) for name, d in _decisions(self.judgement)
        ]

    @property
    def counts(self) -> dict[str, int]:
        """How many comparisons are decided on the first seeds, and what the second say of them.

        "decided", "repeated" (decided alike), "reversed" (the other way); "clear" and
        "clear_repeated": the same of those whose p after Holm is below 0.001; "open" and
        "open_decided": those tested and not decided at first, and decided then.
        """
        tested = [(d.p, d.outcome, then) for _, d, then in self.pairs if d.p is not None]
        decided = [(p, now, then) for p, now, then in tested if now != OPEN]
        clear = [(now, then) for p, now, then in decided if p < _CLEAR]
        undecided = [then for _, now, then in tested if now == OPEN]
        return {
            "decided": len(decided),
            "repeated": sum(now == then for _, now, then in decided),
            "reversed": sum({now, then} == {HOLDS, FAILS} for _, now, then in decided),
            "clear": len(clear),
            "clear_repeated": sum(now == then for now, then in clear),
            "open": len(undecided),
            "open_decided": sum(then != OPEN for then in undecided),
        }

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "seeds": list(self.names),
            "claims": [_claim(claim) for claim in _claims(self.judgement)],
            "repeated": None
            if self.repeated is None
            else [_claim(claim) for claim in _claims(self.repeated)],
            "counts": None if self.repeated is None else self.counts,
            "calibration": None if self.calibration is None else asdict(self.calibration),
        }

    def __str__(self) -> str:
        second = [None] if self.repeated is None else _claims(self.repeated)
        verdicts = {(c.number, c.statement): c.verdict for c in second if c is not None}
        lines = []
        for claim in _claims(self.judgement):
            line = (
                f"{claim.number or '-':>2}  {claim.statement}\n    {claim.verdict}{_tally(claim)}"
            )
            if self.repeated is not None:
                other = verdicts.get((claim.number, claim.statement), "not in these runs")
                line += f"; on fresh seeds: {other}"
            lines.append(line)
        lines.append(self.judgement.note)
        if self.repeated is not None:
            c = self.counts
            if c["decided"]:
                lines.append(
                    f"Of the comparisons that were decided, {_share(c['repeated'], c['decided'])} "
                    f"are decided alike on fresh seeds, {c['reversed']} the other way; of the "
                    f"{c['clear']} with p below {_CLEAR:g} after Holm, {c['clear_repeated']}."
                )
            lines.append(
                f"Of the {c['open']} tested and not decided, {c['open_decided']} are decided on "
                "fresh seeds."
            )
        if self.calibration is not None:
            lines.append(str(self.calibration))
        return "\n".join(lines)


def conclude(folder: str | Path, repeated: str | Path | None = None) -> Conclusion:
    """Judges the claims by the runs in a folder, and again by those of fresh seeds in another.

    Args:
        folder: of runs.
        repeated: of the same runs on other seeds; None if there are none.

    Raises:
        ValueError: a folder without runs, or the two share a seed of a plan.
    """
    first = read_all(Path(folder))
    if repeated is None:
        return Conclusion(judge(first), None, None, (_seeds(first),))
    second = read_all(Path(repeated))
    if shared := {r.seed for r in first} & {r.seed for r in second}:
        raise ValueError(f"repeated must have fresh seeds, got {min(shared)} in both folders")
    names = (_seeds(first), _seeds(second))
    return Conclusion(judge(first), judge(second), calibrate(first, second), names)


def calibrate(
    first: Iterable[Record], second: Iterable[Record], pairs: int = _PAIRS, seed: int = 0
) -> Calibration | None:
    """Compares runs of one plan with runs of the same plan, by what compares policies.

    The runs of a cell drawn at random, of both sets together, are dealt into two halves at random;
    norms and accuracies in turn. And every cell's first set is compared with its second, in both.

    Args:
        first, second: runs on different seeds; cells with an unfinished run, or fewer than 8 in a
            set, are left out.
        pairs: how many are dealt.
        seed: of what is drawn.

    Returns:
        What was declared different; None if there is no such cell.
    """
    sets = [_whole(first), _whole(second)]
    both = [key for key in sets[0] if key in sets[1]]
    if not both:
        return None
    draw = random.Random(seed)
    different = 0
    for number in range(pairs):
        key = draw.choice(both)
        records = [*sets[0][key].records, *sets[1][key].records]
        draw.shuffle(records)
        half = len(records) // 2
        halves = (records[:half], records[half : 2 * half])
        different += _different(*halves, (NORM, ACCURACY)[number % 2])
    apart = [
        _different(sets[0][key].records, sets[1][key].records, measure)
        for key in both
        for measure in (NORM, ACCURACY)
    ]
    seeds = min(len(by_key[key].records) for by_key in sets for key in both)
    return Calibration(pairs, different, seeds, len(apart), sum(apart))


_Key = tuple[str, str, str, str]


def _whole(records: Iterable[Record]) -> dict[_Key, Cell]:
    """The cells whose runs have all finished, enough of them to decide."""
    return {
        (study.name, cell.panel, cell.label, cell.variant): cell
        for study in studies(records)
        for cell in study.cells
        if len(cell.finished) == len(cell.records) >= MIN_SEEDS
    }


def _different(ours: Sequence[Record], theirs: Sequence[Record], measure: Measure) -> bool:
    """Whether runs of one plan are declared different, their seeds counted anew."""
    a, b = (
        Cell("", label, "", tuple(replace(record, seed=i) for i, record in enumerate(records)))
        for label, records in (("a", ours), ("b", theirs))
    )
    found = compare("", a, b, measure, "above")
    return found.outcome(found.tests) != OPEN


def _share(some: int, of: int) -> str:
    low, high = wilson(some, of)
    return f"{some} of {of} ({some / of:.1%}; as of independent ones, {low:.0%} to {high:.0%})"


def _claims(judgement: Judgement) -> list[Claim]:
    return [*judgement.claims, *judgement.controls]


def _decisions(judgement: Judgement) -> list[tuple[str, Decision]]:
    return [
        (str(claim.number or claim.statement), decision)
        for claim in _claims(judgement)
        for decision in claim.decisions
    ]


def _claim(claim: Claim) -> dict[str, Any]:
    return {
        "number": claim.number,
        "statement": claim.statement,
        "verdict": claim.verdict,
        "decisions": [
            {"where": d.where, "kind": d.kind, "outcome": d.outcome, "p": d.p}
            for d in claim.decisions
        ],
        "sentences": list(claim.sentences),
    }


def _tally(claim: Claim) -> str:
    outcomes = [d.outcome for d in claim.decisions]
    return f" ({tally(outcomes)})" if len(outcomes) > 1 else ""


def _seeds(records: Sequence[Record]) -> str:
    seeds = sorted({record.seed for record in records})
    return f"seeds {seeds[0]} to {seeds[-1]}" if seeds else "no seeds"
