import dataclasses
import json
import math
import random

import pytest
from test_report_runs import ENDS, figure1, write_runs

from batchramp.report.cells import studies
from batchramp.report.comparisons import NORM
from batchramp.report.decisions import _halves, calibrate, conclude

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
    assert json.loads(json.dumps(found.to_dict()))["counts"] == counts
    assert "(100.0%) are decided alike, 0 the other way" in str(found)


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
    found = calibrate(figure1(20, PANELS, LABELS), pairs=2000)
    assert (found.pairs, found.seeds) == (2000, 10)
    assert 0 < found.different / found.pairs <= 0.05  # it can fail: some are declared different
    assert found.corrected <= found.different


def test_a_difference_inside_a_cell_would_be_seen():
    """The calibration can fail: halves that do differ are declared different."""
    records = figure1(20, PANELS, ("increasing",))
    moved = []
    for record in records:
        factor = 1.5 if record.seed >= 10 else 1.0
        rows = [
            {**row, "min_full_gradient_norm": factor * row["min_full_gradient_norm"]}
            for row in record.rows
        ]
        moved.append(dataclasses.replace(record, rows=rows))
    (cell,) = studies(moved)[0].cells

    class Unshuffled(random.Random):
        def shuffle(self, x):
            pass

    differences = _halves(cell, NORM, Unshuffled(0))
    assert len(differences) == 10
    assert sum(differences) / 10 == pytest.approx(-math.log(1.5), abs=0.1)


def test_too_few_or_unfinished_runs_calibrate_nothing():
    assert calibrate(figure1(8, PANELS, LABELS)) is None
    records = figure1(16, PANELS, ("small",))
    assert calibrate(records) is not None
    assert calibrate([dataclasses.replace(records[0], status="running"), *records[1:]]) is None
