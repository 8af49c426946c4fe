import dataclasses

import numpy as np
import pytest
from test_report_runs import ENDS, LRS, figure1, plan_of, run

from batchramp.plan import Plan
from batchramp.report.cells import Cell, percent
from batchramp.report.claims import judge
from batchramp.report.comparisons import Comparison
from batchramp.report.thresholds import compare_thresholds
from batchramp.schedules import Exponential, Linear

SWAPPED = {**ENDS, "increasing": ENDS["small"], "small": ENDS["increasing"]}


def verdict(records, number):
    return judge(records).claims[number - 1].verdict


def sentences(records, number):
    return " ".join(judge(records).claims[number - 1].sentences)


def pair(seeds, a, b, **settings):
    """Runs labelled increasing and small that end at these norms and accuracies."""
    ends = {"increasing": a, "small": b}
    return figure1(seeds, ("cosine",), ("increasing", "small"), ends, **settings)


def test_there_are_ten_claims_whatever_was_run():
    for records in ([], [run("")], figure1(1)):
        assert [claim.number for claim in judge(records).claims] == list(range(1, 11))


@pytest.mark.parametrize("seeds", [1, 3, 7])
def test_few_seeds_decide_nothing_however_clear(seeds):
    judgement = judge(figure1(seeds))
    said = {claim.verdict for claim in (*judgement.claims, *judgement.controls)}
    words = f"{seeds} seeds" if seeds > 1 else "1 seed"
    assert said == {f"not decided ({words})", "not in these runs"}
    assert judgement.tests == 0
    assert " p " not in " ".join(s for c in judgement.claims for s in c.sentences)


@pytest.mark.parametrize("number", [1, 3])
def test_eight_seeds_decide_either_way(number):
    assert verdict(figure1(8), number) == "holds"
    assert verdict(figure1(8, ends=SWAPPED), number) == "does not hold"


def test_sentences_flip_with_the_rows():
    now, then = (sentences(pair(3, *ends), 1) for ends in (
        ((0.02, 73.0), (0.05, 71.0)), ((0.05, 71.0), (0.02, 73.0)),
    ))  # fmt: skip
    assert "ratio 0.4" in now
    assert "lower in 3 of 3 seeds" in now
    assert "ratio 2.5" in then
    assert "higher in 3 of 3 seeds" in then


def test_equal_policies_are_not_decided():
    assert verdict(pair(10, (0.05, 71.0), (0.05, 71.0)), 1) == "not decided"


def test_at_least_allows_half_a_point_and_no_more():
    assert verdict(pair(12, (0.05, 71.0), (0.05, 71.2), noise=0.005), 3) == "holds"
    assert verdict(pair(12, (0.05, 71.0), (0.05, 72.0), noise=0.005), 3) == "does not hold"


def test_pairs_are_of_the_same_seed():
    """Seeds differ by more than policies do, but within a seed the order is always the same."""
    records = []
    for seed in range(8):
        for label, norm in (("increasing", 0.047), ("small", 0.05)):
            scale = 1 + seed
            records.append(run(label, "cosine", seed, norm=norm * scale, noise=1e-4))
    assert verdict(records, 1) == "holds"
    shifted = [
        dataclasses.replace(r, seed=(r.seed + 3) % 8) if r.label == "small" else r for r in records
    ]
    assert verdict(shifted, 1) == "not decided"


@pytest.mark.parametrize("lost", ["collapsed", "diverged"])
def test_a_lost_run_decides_nothing_and_hides_nothing(lost):
    records = figure1(9)
    at = next(i for i, r in enumerate(records) if r.label == "small")
    records[at] = run("small", "constant", 0, status=lost)
    said = sentences(records, 1)
    assert f"1 of 9 {lost}" in said
    assert "lower in 8 of 8 seeds" in said  # the seeds that are left are shown
    assert verdict(records, 1) == "not decided"


def test_a_collapsed_run_never_wins_by_its_tiny_norm():
    records = figure1(8, labels=("small", "large"))
    records += [run("increasing", p, s, status="collapsed") for p in LRS for s in range(8)]
    judgement = judge(records)
    assert records[-1].rows[-1]["min_full_gradient_norm"] == 0.0003
    assert "0.0003" not in str(judgement)
    assert {c.verdict for c in judgement.claims[:3]} == {"not decided (0 seeds)"}


@pytest.mark.parametrize("status", ["failed", "running"])
def test_nothing_is_tested_before_all_runs_have_finished(status):
    """Whoever looks while seeds come in, and stops when it suits, would decide by chance."""
    records = figure1(9)
    at = next(i for i, r in enumerate(records) if r.label == "small")
    records[at] = run("small", "constant", 0, status=status, rows=4)
    said = sentences(records, 1)
    assert "lower in 8 of 8 seeds" in said
    assert f"Not tested: not all runs have finished (small (b = 8): 1 of 9 {status})." in said
    assert verdict(records, 1) == "not decided"
    # What Holm corrects for does not depend on how runs went.
    assert judge(records).tests == judge(figure1(9)).tests
    assert not any(d.p is not None for d in judge(records).claims[0].decisions[:1])


def test_unequal_epochs_are_not_compared():
    records = [
        *(run("increasing", "cosine", s, norm=0.02) for s in range(8)),
        *(run("small", "cosine", s, norm=0.05, epochs=6) for s in range(8)),
    ]
    assert "not at equal epochs: 9,600 samples against 4,800" in sentences(records, 1)
    assert verdict(records, 1) == "not decided"


def test_a_small_norm_at_a_high_loss_is_told():
    records = [
        *(run("increasing", "cosine", s, norm=0.02, loss=0.5) for s in range(3)),
        *(run("small", "cosine", s, norm=0.05, loss=0.1) for s in range(3)),
    ]
    told = "the smaller norm stands at the higher loss"
    assert told in sentences(records, 1)
    assert told not in sentences(figure1(3), 1)


def test_jumps_are_measured_against_a_control_that_does_not_grow():
    settings = {"norm": 0.03, "accuracy": 72.0}
    control = [run("small", "cosine", s, **settings) for s in range(8)]
    jumping = [run("increasing", "cosine", s, **settings) for s in range(8)]
    smooth = [run("increasing", "cosine", s, jump=False, **settings) for s in range(8)]
    assert verdict(control + jumping, 4) == "holds"
    assert verdict(control + smooth, 4) != "holds"
    assert "at epochs 3, 6 and 9" in sentences(control + jumping, 4)
    assert verdict(jumping, 4) == "not in these runs"


def test_falling_faster_everywhere_is_no_jump():
    control = [run("small", "cosine", s, norm=0.05, accuracy=60.0) for s in range(8)]
    faster = [
        run("increasing", "cosine", s, norm=0.01, accuracy=80.0, jump=False) for s in range(8)
    ]
    norm = judge(control + faster).claims[3].decisions[0]
    assert norm.where.startswith("cosine, extra fall of log norm")
    assert norm.outcome == "not decided"


def test_a_batch_that_grows_at_every_epoch_has_nothing_to_jump_from():
    plan = Plan(epochs=12, batch_size=Exponential(8, factor=2, every=1), lr=0.1)
    records = [run("small", "constant", s) for s in range(8)]
    records += [run("increasing", "constant", s, plan=plan) for s in range(8)]
    assert verdict(records, 4) == "not in these runs"
    assert "epochs between its growths" in sentences(records, 4)


def test_seeds_without_a_pair_are_told_and_not_tested():
    records = figure1(10, ("cosine",), ("increasing", "small"))
    partial = [r for r in records if r.label == "increasing" or r.seed < 8]
    assert verdict(records, 1) == "holds"
    assert verdict(partial, 1) == "not decided"
    assert "Not tested: 8 of 10 seeds have a value of both." in sentences(partial, 1)


def test_policies_of_different_lr_are_said_to_be():
    records = figure1(8, ("cosine",), ("increasing", "small"))
    assert "Mind the lr" not in sentences(records, 1)
    other = [
        dataclasses.replace(r, plan=plan_of("small", "cosine", lr=0.05))
        if r.label == "small"
        else r
        for r in records
    ]
    said = sentences(other, 1)
    assert "Mind the lr: small (b = 8) starts at lr 0.05, increasing (8 → 64) at 0.1." in said
    assert "start at different lr, each its own: 1 holds." in said


def test_the_test_set_is_read_at_the_last_epoch_alone():
    records = figure1(8)
    rng = np.random.default_rng(0)
    altered = [
        dataclasses.replace(
            r,
            rows=[{**row, "test_accuracy": 100 * rng.random()} for row in r.rows[:-1]]
            + [r.rows[-1]],
        )
        for r in records
    ]
    assert judge(altered) == judge(records)


def test_sqrt_decay_against_the_other_lr_schedules():
    ends = {"constant": 0.02, "cosine": 0.025, "inverse-sqrt": 0.05}
    for worst in ("inverse-sqrt", "cosine"):
        norms = {**ends, worst: 0.09, **({"inverse-sqrt": 0.01} if worst == "cosine" else {})}
        records = [run("increasing", p, s, norm=norms[p]) for p in ends for s in range(8)]
        expected = "holds" if worst == "inverse-sqrt" else "does not hold"
        assert verdict(records, 5) == expected
    assert verdict([run("small", p, s) for p in ends for s in range(8)], 5) == "not in these runs"


def momentum_plan(gamma):
    return Plan(epochs=12, batch_size=8, lr=0.1, beta=0.9, gamma=gamma)


@pytest.mark.parametrize(
    ("shift", "expected"), [(0.0, "holds"), (0.6, "does not hold"), (0.09, "not decided")]
)
def test_optimizers_end_alike(shift, expected):
    records = [
        run(label, "constant", s, norm=0.03 * (1 + extra), noise=0.01, plan=momentum_plan(gamma))
        for label, gamma, extra in (("a", 0.7, 0.0), ("b", 1.0, shift), ("c", 0.0, 0.0))
        for s in range(9)
    ]
    assert verdict(records, 6) == expected
    said = sentences(records, 6)
    assert "QHM against NSHB" in said
    assert "NSHB against SGD" in said


def test_exponential_against_linear_growth():
    plans = {
        "exponential": Plan(epochs=12, batch_size=Exponential(8, factor=2, every=3), lr=0.1),
        "linear": Plan(epochs=12, batch_size=Linear(8, 8), lr=0.1),
    }
    for better, expected in (("exponential", "holds"), ("linear", "does not hold")):
        records = [
            run(label, "constant", s, plan=plan, norm=0.02 if label == better else 0.04)
            for label, plan in plans.items()
            for s in range(8)
        ]
        assert verdict(records, 7) == expected


def test_thresholds_that_disagree_are_not_decided():
    # The jumps make it late before they come and early after.
    records = pair(8, (0.02, 73.0), (0.05, 71.0))
    assert "which of them is first depends on the threshold" in sentences(records, 8)
    assert not verdict(records, 8).startswith("holds")


@pytest.mark.parametrize(("norm", "expected"), [(0.01, "holds"), (0.3, "does not hold")])
def test_fewer_samples_at_every_threshold(norm, expected):
    ends = {"increasing": (norm, 80.0 if norm < 0.1 else 50.0), "small": (0.05, 65.0)}
    records = figure1(9, ("cosine",), ("increasing", "small"), ends, jump=False, noise=0.005)
    said = sentences(records, 8)
    assert verdict(records, 8) == expected
    assert ("needs fewer at" in said) == (expected == "holds")
    assert ("it alone gets there" in said) == (expected == "holds")
    assert ("small (b = 8) alone gets there" in said) == (expected != "holds")


@pytest.mark.parametrize(
    ("by_lr", "by_beta", "expected"),
    [(0.5, 0.0, "holds"), (0.0, 0.0, "does not hold"), (0.5, 0.5, "does not hold")],
)
def test_grid_over_lr_and_momentum(by_lr, by_beta, expected):
    records = [
        run(
            f"lr {lr} beta {beta}", "constant", s, noise=0.01,
            norm=0.03 * (1 + by_lr * (lr > 0.1)) * (1 + by_beta * (beta > 0.5)),
            plan=Plan(epochs=12, batch_size=8, lr=lr, beta=beta, gamma=0.7),
        )
        for lr in (0.1, 0.5)
        for beta in (0.3, 0.9)
        for s in range(9)
    ]  # fmt: skip
    assert verdict(records, 9) == expected
    assert verdict(records[:-2], 9) == "not decided (7 seeds)"  # two lack a corner of the grid


def test_loss_below_its_start():
    records = figure1(8)
    assert verdict(records, 10) == "holds"
    assert "1,152 of 1,152 recorded epochs" in sentences(records, 10)
    assert verdict(figure1(3), 10) == "not decided (3 seeds)"
    row = {**records[0].rows[5], "train_loss": 2.4}
    rows = [*records[0].rows[:5], row, *records[0].rows[6:]]
    broken = [dataclasses.replace(records[0], rows=rows), *records[1:]]
    assert verdict(broken, 10) == "does not hold"
    assert "seed 0: not below its start 2.30 at 1 of 12 epochs" in sentences(broken, 10)
    assert verdict([run(s, initial=False) for s in "ab"], 10) == "not in these runs"
    assert verdict(broken[:1], 10) == "does not hold"  # one counterexample is enough
    assert "Claim 10 is no test over seeds" in judge(broken[:1]).note


def test_the_loss_needs_its_seeds_in_every_cell():
    records = figure1(8, ("cosine",), ("increasing", "small"))
    assert verdict(records[:-1], 10) == "not decided (7 seeds)"
    apart = [dataclasses.replace(r, seed=r.seed + 5) for r in records if r.label == "small"]
    assert verdict(records[:5] + apart[:5], 10) == "not decided (5 seeds)"


@pytest.mark.parametrize("status", ["running", "failed", "collapsed", "diverged"])
def test_a_loss_counts_in_finished_runs_alone(status):
    records = figure1(8)
    row = {**records[0].rows[-1], "train_loss": None if status == "diverged" else 2.4}
    lost = dataclasses.replace(records[0], status=status, rows=[*records[0].rows[:-1], row])
    assert verdict([lost], 10) == "not decided (0 seeds)"
    assert verdict([lost, *records[1:]], 10) == "not decided (7 seeds)"
    extra = dataclasses.replace(lost, seed=8)
    assert verdict([extra, *records], 10) == "holds"
    assert f"runs that did not finish do not count: 1 {status}" in sentences([extra, *records], 10)


def test_controls_are_computed():
    controls = {c.statement.split(",")[0]: c for c in judge(figure1(9)).controls}
    assert len(controls) == 3
    twin = next(c for name, c in controls.items() if "lr-decay twin" in name)
    assert twin.verdict in ("holds", "not decided")
    text = " ".join(twin.sentences)
    # 4 levels of 3 epochs: 3 (100 + 50 + 25 + 13) steps against 12 · 100.
    assert "47 % of its steps (564 against 1,200)" in text
    apart = {**ENDS, "lr-decay-twin": (0.1, 60.0)}
    twin = judge(figure1(9, ends=apart)).controls[-1]
    assert twin.verdict == "does not hold"


def control(records, word):
    return next(c for c in judge(records).controls if word in c.statement)


def test_the_constant_chosen_by_accuracy_is_not_called_the_best_by_norm():
    found = control(figure1(2), "chosen by validation accuracy")
    assert "the constant batch size that was chosen by validation accuracy" in found.statement
    assert "best constant" not in str(found)
    said = "cosine: the constant batch size with the lowest minimum norm is that of {} (b = {}), {}"
    assert said.format("best-constant", 16, "0.0") in " ".join(found.sentences)
    lower = {**ENDS, "large": (0.01, 60.0), "lr-decay-twin": (0.001, 73.0)}
    records = figure1(2, ends=lower)
    sentence = next(s for s in control(records, "chosen by").sentences if "with the lowest" in s)
    assert "large (b = 64), 0.0" in sentence
    assert "increasing (8 → 64) ends higher, at 0.0" in sentence
    # A lost policy has no lowest norm.
    records += [run("large", p, 2, status="collapsed") for p in ("constant", "cosine")]
    said = " ".join(control(records, "chosen by").sentences)
    assert "with the lowest minimum norm is that of best-constant" in said


def test_controls_of_another_lr_say_so():
    records = figure1(2)
    twins = [
        dataclasses.replace(r, plan=plan_of(r.label, r.panel, lr=0.05))
        if r.label == "lr-decay-twin"
        else r
        for r in records
    ]
    told = "lr-decay-twin (b = 8) starts at lr 0.05, increasing (8 → 64) at 0.1"
    assert told in " ".join(control(twins, "lr-decay twin").sentences)
    assert "starts at lr" not in " ".join(control(records, "lr-decay twin").sentences)
    assert "starts at lr" not in " ".join(control(twins, "as many steps").sentences)


def test_the_ratio_of_norms_is_that_of_the_test():
    """The geometric mean, whose reciprocal is the ratio the other way round."""
    norms = {0: (0.01, 0.05), 1: (0.05, 0.04)}
    ratios = []
    for swap in (False, True):
        records = [
            run(label, "cosine", s, norm=norms[s][i != swap], noise=0)
            for s in norms
            for i, label in enumerate(("increasing", "small"))
        ]
        ratios.append(sentences(records, 1).partition("ratio ")[2].partition(";")[0])
    # (0.2 · 1.25) ^ 1/2, and not the mean of 0.2 and 1.25
    assert ratios == ["0.50 [0.20, 1.25]", "2.00 [0.80, 5.00]"]


def test_heavy_ball_is_not_sgd():
    plan = Plan(epochs=12, batch_size=8, lr=0.1, beta=0.9)
    plain = dataclasses.replace(plan, beta=None)
    qhm = [run("qhm", "constant", s, plan=momentum_plan(0.7)) for s in range(2)]
    for optimizer, planned, expected in (
        ("SGD", plan, False),
        ("SGD(momentum=0.9)", plain, False),
        ("Adam", dataclasses.replace(plan, beta=0.0), False),
        ("SGD", dataclasses.replace(plan, beta=0.0), True),
        ("SGD", plain, True),
    ):
        other = [run("o", "constant", s, plan=planned, optimizer=optimizer) for s in range(2)]
        assert ("SGD against QHM" in sentences(qhm + other, 6)) == expected
        assert (verdict(qhm + other, 6) != "not in these runs") == expected


def test_jumps_need_a_plan_in_epochs():
    """A row has the batch size of the epoch's end: under another unit it may have grown before."""
    records = pair(2, (0.02, 73.0), (0.05, 71.0))
    plan = Plan(steps=1200, batch_size=Exponential(8, factor=2, every=300), lr=0.1)
    steps = [dataclasses.replace(r, plan=plan) if r.label == "increasing" else r for r in records]
    assert verdict(records, 4) == "not decided (2 seeds)"
    assert verdict(steps, 4) == "not in these runs"
    assert "in epochs" in sentences(steps, 4)


def reached(*samples):
    """A run whose validation accuracy first reaches 1, 2, ... at these samples; None is never."""
    end = 1 + max(s for s in samples if s is not None)
    rows = [
        {"samples": k, "steps": k, "validation_accuracy": level}
        for k in range(1, end + 1)
        for level in [max([i + 1 for i, s in enumerate(samples) if s is not None and s <= k] + [0])]
    ]
    return dataclasses.replace(run("small"), rows=rows)


@pytest.mark.parametrize(
    ("ours", "theirs", "said"),
    [
        ((1, 2, 4, 5), (2, 3, 5, 6), "needs fewer at 4 (between 1.0 % and 4.0 %) of 4 thresholds"),
        (
            (2, 3, 5, 6),
            (3, 3, 6, 6),
            "fewer at 2 (among those from 1.0 % to 3.0 %) and equally many at 2",
        ),
        ((2, 3, 5, 6), (3, 3, 5, 6), "fewer at 1 (1.0 %) and equally many at 3"),
        ((1, 2, None, None), (2, 3, None, None), "at 2, neither gets there with every seed"),
    ],
)
def test_thresholds_are_all_accounted_for(ours, theirs, said):
    cells = [
        Cell("p", label, "", (reached(*samples),))
        for label, samples in (("increasing", ours), ("small", theirs))
    ]
    found = compare_thresholds(
        "p", *cells, "validation_accuracy", True, "accuracy", percent, [1.0, 2.0, 3.0, 4.0]
    )
    assert said in found.sentence


def everything(seeds):
    """Two experiments: figure 1 with linear growth, and the growing batch under NSHB."""
    linear = Plan(epochs=12, batch_size=Linear(8, 8), lr=0.1)
    yield from figure1(seeds, ("constant", "inverse-sqrt", "cosine"))
    for seed in range(seeds):
        yield run("linear", "constant", seed, plan=linear)
        for label, gamma in (("a", 0.7), ("b", 1.0), ("c", 0.0)):
            yield run(label, "constant", seed, plan=momentum_plan(gamma))
        for panel, lr, beta in (
            ("constant", "constant", 0.9),
            ("inverse-sqrt", "inverse-sqrt", 0.9),
            ("inverse-sqrt, constant beta", "inverse-sqrt", 0.8),
        ):
            plan = dataclasses.replace(plan_of("increasing", lr), beta=beta, gamma=1.0)
            yield run("increasing", panel, seed, plan=plan, experiment="figure4")


def test_every_comparison_has_a_decision_of_its_own():
    """Two sets of seeds are held against each other decision by decision."""
    judgement = judge(everything(8))
    compared = [c for c in (*judgement.claims, *judgement.controls) if c.decisions]
    assert {c.number for c in compared} >= {0, 1, 2, 3, 4, 5, 6, 7, 8}
    for claim in compared:
        places = [d.where for d in claim.decisions]
        assert len(set(places)) == len(places)
        assert all(len(d.differences) <= 8 for d in claim.decisions)
        outcomes = {d.outcome for d in claim.decisions}
        assert ("does not hold" in outcomes) == (claim.verdict == "does not hold")
        assert (outcomes == {"holds"}) == (claim.verdict == "holds")
    fresh = [dataclasses.replace(r, seed=r.seed + 100) for r in everything(8)]
    assert judge(fresh) == judgement
    (norm, *_) = judge(pair(8, (0.02, 73.0), (0.05, 71.0))).claims[0].decisions
    assert norm.where == "cosine, minimum norm: increasing against small"
    assert (norm.kind, norm.outcome) == ("above", "holds")
    assert str(norm).endswith("increasing against small: holds (8 seeds)")
    assert np.mean(norm.differences) == pytest.approx(np.log(0.05 / 0.02), abs=0.1)


def test_runs_that_chose_an_lr_are_not_judged():
    tuning = [dataclasses.replace(r, experiment="figure1-tuning") for r in figure1(2)]
    assert {c.verdict for c in judge(tuning).claims} == {"not in these runs"}
    assert judge([*everything(8), *tuning]) == judge(everything(8))


def test_claims_see_several_experiments_at_once():
    said = judge(everything(8)).claims[4]
    places = [d.where for d in said.decisions]
    assert sum(w.startswith("figure4, digits, cnn – ") for w in places) == 2
    assert any("(beta or gamma differ as well)" in w for w in places)
    assert not any("figure1" in w and "figure4" in w for w in places)


def test_holm_runs_over_all_tests_of_the_page():
    one = judge(pair(8, (0.02, 73.0), (0.05, 71.0)))
    two = judge(
        [*pair(8, (0.02, 73.0), (0.05, 71.0)), *(run("large", "cosine", s) for s in range(8))]
    )
    assert two.tests == one.tests + 2  # claims 2 and 3
    assert f"Holm over {two.tests} tests" in " ".join(two.claims[0].sentences)


def test_the_note_says_how_many_seeds_sign_flips_need():
    """The floor of a test of equivalence is 1 / 2^n, half of that of a two-sided one."""
    two_sided = judge(pair(8, (0.02, 73.0), (0.05, 71.0)))
    assert not any("alike: " in s for c in two_sided.claims for s in c.sentences)
    assert two_sided.tests == 6  # 2 · 6 / 2^n <= 0.05 from n = 8 on
    assert "could decide nothing" not in two_sided.note
    alike = judge(figure1(8, ("cosine",), ("increasing", "lr-decay-twin")))
    assert alike.tests == 4
    assert "could decide nothing" not in alike.note
    for panels, needed in ((1, 9), (2, 10)):
        judgement = judge(figure1(8, tuple(LRS)[:panels]))
        least = min(n for n in range(30) if judgement.tests / 2**n <= 0.05)
        assert least == needed
        assert f"{judgement.tests} tests, could decide nothing below {least} seeds" in (
            judgement.note
        )
        assert "whatever the runs say" not in judgement.note


def test_the_note_says_what_is_assumed():
    note = judge(figure1(8)).note
    for said in ("close to normal", "symmetric about 0", "simulation", "of the same plan alone",
                 "a factor of 1.1 either way"):  # fmt: skip
        assert said in note
    for seeds in (3, 8):
        assert "number of seeds must be fixed beforehand" in judge(figure1(seeds)).note
    assert "10 %" not in str(judge(figure1(8)))


def test_a_decision_needs_both_tests():
    """An outlier's t says no where signs say yes, and the other way round."""
    clear = Comparison("", "above", (1.0, 1.1, 0.9, 1.0, 1.2, 0.8, 1.0, 1.1), "")
    assert clear.outcome([0.01]) == "holds"
    assert clear.outcome([0.06]) == "not decided"
    mixed = Comparison("", "above", (1.0, -1.1, 0.9, -1.0, 1.2, -0.8, 1.0, 1.1), "")
    assert mixed.outcome([0.01]) == "not decided"
    assert Comparison("", "above", tuple(-x for x in clear.differences), "").outcome([0.01]) == (
        "does not hold"
    )


def test_runs_of_the_same_plan_are_seldom_declared_different():
    """Calibration of the whole: the same plan under two labels and relabelled seeds."""
    decided = 0
    for trial in range(120):
        records = [
            dataclasses.replace(
                run("small", "constant", 1000 * trial + 8 * k + seed, noise=0.1, rows=3, epochs=3),
                label=label,
                seed=seed,
                plan=plan_of("small", "constant", 3),
            )
            for k, label in enumerate(("increasing", "small"))
            for seed in range(8)
        ]
        claims = judge(records).claims
        assert claims[0].verdict in ("holds", "does not hold", "not decided")
        # Of policies that are the same, "at least" (claim 3) may hold; all else is an error.
        decided += claims[2].verdict == "does not hold" or any(
            claims[i].verdict in ("holds", "does not hold") for i in (0, 7)
        )
    assert decided <= 12  # 6 expected at most; P(> 12) < 1 %


def test_studies_are_not_mixed():
    records = pair(3, (0.02, 73.0), (0.05, 71.0))
    other = [dataclasses.replace(r, task="other") for r in records if r.label == "small"]
    mixed = [r for r in records if r.label == "increasing"] + other
    assert verdict(mixed, 1) == "not in these runs"


def test_growth_is_held_against_the_decay_it_was_traded_for():
    for accuracy, expected in ((71.1, "holds"), (69.0, "does not hold")):
        ends = {"growth": (0.05, accuracy), "decay": (0.05, 71.0)}
        records = figure1(10, ("cosine",), ("growth", "decay"), ends, noise=0.005)
        (control,) = judge(records).controls
        assert control.verdict == expected
        assert "compared with decay" in control.sentences[0]
        (decision,) = control.decisions
        assert decision.where == "cosine, validation accuracy: growth against decay"
