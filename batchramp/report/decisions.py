"""Decisions on one set of seeds, held against those on another and against no difference."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from batchramp.report.cells import Cell, studies
from batchramp.report.claims import Claim, Judgement, judge
from batchramp.report.comparisons import ACCURACY, FAILS, HOLDS, LEVEL, NORM, OPEN, Measure
from batchramp.report.statistics import paired_t, sign_flip
from batchramp.store import Record, read_all

__all__ = ["Calibration", "Conclusion", "calibrate", "conclude"]

_PAIRS = 200


@final
@dataclass(frozen=True)
class Calibration:
    """How often two sets of runs of one plan are declared different.

    Attributes:
        pairs: sets compared, each a cell's runs dealt into two halves at random.
        different: declared different by the rule of the claims, before Holm: paired t and exact
            sign flips both at 0.05. Holm makes it rarer still.
        corrected: declared different where the t-test's p is multiplied by the number of pairs.
        seeds: in each half.
    """

    pairs: int
    different: int
    corrected: int
    seeds: int

    def __str__(self) -> str:
        return (
            f"Calibration: of {self.pairs} pairs of the same plan ({self.seeds} against "
            f"{self.seeds} seeds), {self.different} ({self.different / self.pairs:.1%}) are "
            f"declared different at {LEVEL:g} without a correction, {self.corrected} with it."
        )


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
    def pairs(self) -> list[tuple[str, str, str, str]]:
        """Claim, comparison, and its outcome on each set of seeds."""
        if self.repeated is None:
            return []
        second = {(name, d.where): d.outcome for name, d in _decisions(self.repeated)}
        return [
            (name, d.where, d.outcome, second.get((name, d.where), OPEN))
            for name, d in _decisions(self.judgement)
        ]

    @property
    def counts(self) -> dict[str, int]:
        """Comparisons; those decided at first, decided alike again, and the other way."""
        pairs = self.pairs
        decided = [(a, b) for _, _, a, b in pairs if a != OPEN]
        return {
            "comparisons": len(pairs),
            "same": sum(a == b for _, _, a, b in pairs),
            "decided": len(decided),
            "repeated": sum(a == b for a, b in decided),
            "reversed": sum({a, b} == {HOLDS, FAILS} for a, b in decided),
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
            share = f"{c['repeated'] / c['decided']:.1%}" if c["decided"] else "none"
            lines.append(
                f"On fresh seeds {c['repeated']} of the {c['decided']} comparisons that were "
                f"decided ({share}) are decided alike, {c['reversed']} the other way; of all "
                f"{c['comparisons']} comparisons {c['same']} end alike."
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
    return Conclusion(judge(first), judge(second), calibrate([*first, *second]), names)


def calibrate(records: Iterable[Record], pairs: int = _PAIRS, seed: int = 0) -> Calibration | None:
    """Deals the runs of random cells into two halves and tests the halves against each other.

    Norms and accuracies in turn. In each half the order is random as well, so that pairs share
    nothing but the plan.

    Args:
        records: runs; cells with an unfinished run or fewer than 16 are left out.
        pairs: how many.
        seed: of what is drawn.

    Returns:
        What was declared different; None if there is no such cell.
    """
    found = [cell for study in studies(records) for cell in study.cells]
    whole = [c for c in found if len(c.finished) == len(c.records) >= 16]
    if not whole:
        return None
    draw = random.Random(seed)
    different = corrected = 0
    for number in range(pairs):
        d = _halves(draw.choice(whole), (NORM, ACCURACY)[number % 2], draw)
        t, exact = paired_t(d), sign_flip(d)
        different += max(t, exact) <= LEVEL
        corrected += max(min(1.0, t * pairs), exact) <= LEVEL
    return Calibration(pairs, different, corrected, min(len(c.records) for c in whole) // 2)


def _halves(cell: Cell, measure: Measure, draw: random.Random) -> list[float]:
    values = [measure.of(record) for record in cell.finished]
    draw.shuffle(values)
    half = len(values) // 2
    return [measure.difference(a, b) for a, b in zip(values, values[half:], strict=False)][:half]


def _claims(judgement: Judgement) -> list[Claim]:
    return [*judgement.claims, *judgement.controls]


def _decisions(judgement: Judgement) -> list[tuple[str, Any]]:
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
            {"where": d.where, "kind": d.kind, "outcome": d.outcome} for d in claim.decisions
        ],
        "sentences": list(claim.sentences),
    }


def _tally(claim: Claim) -> str:
    outcomes = [d.outcome for d in claim.decisions]
    if len(outcomes) < 2:
        return ""
    parts = [f"{outcomes.count(o)} {o}" for o in (HOLDS, FAILS, OPEN) if o in outcomes]
    return f" ({', '.join(parts)})"


def _seeds(records: Sequence[Record]) -> str:
    seeds = sorted({record.seed for record in records})
    return f"seeds {seeds[0]} to {seeds[-1]}" if seeds else "no seeds"
