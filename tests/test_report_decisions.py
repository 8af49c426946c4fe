import dataclasses
import json

import pytest
from test_report_runs import ENDS, figure1, write_runs

from batchramp.report.claims import judge
from batchramp.report.decisions import calibrate, conclude

PANELS, LABELS = ("cosine",), ("increasing", "small", "large")


def runs(first, count=8, ends=ENDS):
    found = figure1(first + count, PANELS, LABELS, ends)
    return [r for r in found if r.seed >= first]


def concluded(tmp_path, second):
    write_runs(tmp_path / "a", runs(0))
    write_runs(tmp_path / "b", second)
    return conclude(tmp_path / "a", tmp_path / "b")


def test_decisions_that_repeat_are_counted(tmp_path):
    found = concluded(tmp_path, runs(8))
    counts = found.counts
    assert counts["decided"] >= 3
    assert counts["repeated"] == counts["decided"]
    assert counts["reversed"] == 0
    assert 0 < counts["clear"] <= counts["decided"]
    assert counts["clear_repeated"] == counts["clear"]
    assert json.loads(json.dumps(found.to_dict()))["counts"] == counts
    decided = counts["decided"]
    assert f"{decided} of {decided} (100.0%; as of independent ones, " in str(found)
    assert "are decided alike on fresh seeds, 0 the other way" in str(found)


def test_what_was_not_tested_is_counted_nowhere(tmp_path):
    counts = concluded(tmp_path, runs(8)).counts
    lost = [dataclasses.replace(r, status="diverged") if r.seed == 0 else r for r in runs(0)]
    write_runs(tmp_path / "c", lost)
    found = conclude(tmp_path / "c", tmp_path / "b")
    assert found.counts["decided"] + found.counts["open"] == 0
    assert counts["decided"] + counts["open"] > 0
    assert "of those decided" not in str(found)


def test_decisions_that_turn_round_are_counted(tmp_path):
    swapped = {**ENDS, "increasing": ENDS["small"], "small": ENDS["increasing"]}
    counts = concluded(tmp_path, runs(8, ends=swapped)).counts
    assert counts["reversed"] >= 1
    assert counts["repeated"] < counts["decided"]


def test_one_set_of_seeds_is_concluded_alone(tmp_path):
    write_runs(tmp_path, runs(0))
    found = conclude(tmp_path)
    assert (found.repeated, found.calibration, found.pairs) == (None, None, [])
    assert found.to_dict()["counts"] is None
    assert "fresh seeds" not in str(found)


def test_seeds_that_are_not_fresh_are_refused(tmp_path):
    write_runs(tmp_path / "a", runs(0))
    with pytest.raises(ValueError, match="repeated must have fresh seeds, got 0 in both folders"):
        conclude(tmp_path / "a", tmp_path / "a")


def test_pairs_of_one_plan_are_seldom_declared_different():
    found = calibrate(runs(0, 10), runs(10, 10), pairs=2000)
    assert (found.pairs, found.seeds, found.sets) == (2000, 10, 2 * len(LABELS))
    assert 0 < found.different / found.pairs <= 0.05
    assert f"{found.different} of 2000" in str(found)


def test_runs_that_changed_between_two_sets_of_seeds_are_declared_different():
    """Dealing at random cannot see it: each half has as many of both."""
    moved = [
        dataclasses.replace(
            r,
            rows=[
                {**row, "min_full_gradient_norm": 1.5 * row["min_full_gradient_norm"]}
                for row in r.rows
            ],
        )
        for r in runs(10, 10)
    ]
    found = calibrate(runs(0, 10), moved, pairs=200)
    assert found.sets_different >= len(LABELS)  # every norm, and no accuracy but by chance
    assert found.different <= 15


def test_the_calibration_compares_as_the_claims_do():
    """A difference that the page decides is one that the calibration declares."""
    (norm,) = judge([*runs(0, 10)]).claims[0].decisions
    assert norm.outcome == "holds"
    relabelled = [
        dataclasses.replace(r, label="increasing", plan=runs(0, 1)[0].plan, seed=r.seed + 10)
        for r in runs(0, 10)
        if r.label == "small"
    ]
    ours = [r for r in runs(0, 10) if r.label == "increasing"]
    found = calibrate(ours, relabelled)
    assert (found.sets, found.sets_different) == (2, 2)


def test_too_few_or_unfinished_runs_calibrate_nothing():
    assert calibrate(runs(0, 7), runs(7, 7)) is None
    first, second = runs(0), runs(8)
    assert calibrate(first, second) is not None
    unfinished = [dataclasses.replace(r, status="running") if r.seed == 0 else r for r in first]
    assert calibrate(unfinished, second) is None
