"""Recipes: lists of runs that say what the paper's comparisons say."""

import dataclasses
import itertools
import json
import math
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from batchramp import Plan, store
from batchramp import schedules as s
from batchramp.experiments import (
    Run,
    choose_lr,
    figure1,
    figure1_tuning,
    from_file,
    plan_from_file,
    recipes,
    trade_decay,
    tuning_runs,
)
from batchramp.experiments.chosen import committed, lr_of
from batchramp.experiments.scales import SCALES
from batchramp.experiments.tasks import MODELS, TASKS, load, training_samples
from batchramp.experiments.trading import trade_decay_cells
from batchramp.experiments.tuning import TUNING_RULE, TUNINGS

TUNED_FILE = Path(store.__file__).parent / "experiments" / "tuned" / "figure1-quick.json"
PANELS = ("constant", "inverse-sqrt", "cosine", "polynomial")
POLICIES = ("increasing", "small", "equal-steps", "best-constant", "large", "lr-decay-twin")
SIZES = {"increasing": 8, "small": 8, "equal-steps": 40, "best-constant": 64, "large": 4096,
         "lr-decay-twin": 8}  # fmt: skip
# An lr of its own for every cell, so that none can be taken for another.
LRS = {cell: 0.01 * (i + 1) for i, cell in enumerate(itertools.product(PANELS, POLICIES))}
TUNED = {
    "cells": {
        panel: {
            policy: {"lr": LRS[panel, policy], "batch_size": SIZES[policy]} for policy in POLICIES
        }
        for panel in PANELS
    }
}
N = 6_500


def figure1_by_cell(**given: Any) -> dict[tuple[str, str], Plan]:
    return {(run.panel, run.label): run.plan for run in figure1(seeds=[0], tuned=TUNED, **given)}


def test_figure1_has_every_policy_in_every_panel_on_every_seed() -> None:
    runs = figure1(seeds=[3, 4], tuned=TUNED)
    cells = {(run.panel, run.label, run.seed) for run in runs}
    assert len(runs) == len(cells) == 48
    assert cells == set(itertools.product(PANELS, POLICIES, (3, 4)))
    assert {(run.task, run.model, run.optimizer) for run in runs} == {
        ("fashion-mini", "mlp", "QHM")
    }
    assert len({run.folder for run in runs}) == 48


def test_figure1_main_is_part_of_all() -> None:
    all_of_it = figure1_by_cell()
    main = figure1_by_cell(part="main")
    assert {panel for panel, _ in main} == {"constant", "cosine"}
    assert main.items() <= all_of_it.items()


def test_figure1_has_the_paper_s_plans_at_a_tenth_of_its_epochs() -> None:
    plans = figure1_by_cell()
    formulas = {
        "constant": lambda t: 1.0,
        "inverse-sqrt": lambda t: 1 / math.sqrt(t + 1),
        "cosine": lambda t: (1 + math.cos(t * math.pi / 29)) / 2,
        "polynomial": lambda t: (1 - t / 30) ** 2,
    }
    for (panel, policy), plan in plans.items():
        assert plan.epochs == 30
        for epoch in range(30):
            values = plan.at(epoch)
            doublings = epoch // 3
            grown = 2**doublings
            assert values.batch_size == SIZES[policy] * (grown if policy == "increasing" else 1)
            assert values.beta == pytest.approx(0.9 / grown)
            assert values.gamma == pytest.approx(0.7 / grown)
            assert values.lr is not None
            if policy not in ("lr-decay-twin",) and panel != "cosine":
                expected = LRS[panel, policy] * formulas[panel](epoch)
                assert values.lr == pytest.approx(expected)
    assert plans["constant", "increasing"].at(29).batch_size == 4096


def test_the_twin_s_lr_halves_exactly_when_the_increasing_batch_doubles() -> None:
    plans = figure1_by_cell()
    for panel in PANELS:
        increasing, twin = plans[panel, "increasing"], plans[panel, "lr-decay-twin"]
        small = plans[panel, "small"]
        for epoch in range(30):
            grown = increasing.at(epoch).batch_size / increasing.at(0).batch_size
            own = (small.at(epoch).lr or 0) / LRS[panel, "small"]  # the panel's shape
            assert twin.at(epoch).lr == pytest.approx(LRS[panel, "lr-decay-twin"] * own / grown)
            assert twin.at(epoch).batch_size == 8


def test_equal_steps_has_as_many_steps_as_increasing_within_a_percent() -> None:
    plans = figure1_by_cell()
    increasing = plans["cosine", "increasing"].total_steps(N)
    assert plans["cosine", "equal-steps"].total_steps(N) == pytest.approx(increasing, rel=0.01)
    assert plans["cosine", "small"].total_steps(N) > 4.9 * increasing


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"scale": "full"}, "scale must be one of paper, small, quick, got 'full'"),
        ({"small_batch": 16}, "small_batch must be 8 or 256, got 16"),
        ({"variant": "ours"}, "variant must be one of paper, released, got 'ours'"),
        ({"part": "some"}, "part must be 'all' or 'main', got 'some'"),
        ({"seeds": [-1]}, "seed must be an integer >= 0"),
    ],
)
def test_figure1_refuses(given: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        figure1(**{"tuned": TUNED, **given})


# -------------------------------------------------------------------------------------- tuning


def test_figure1_tuning_has_every_candidate_on_two_seeds_of_its_own() -> None:
    runs = figure1_tuning()
    assert len(runs) == 4 * (2 + 9) * 4 * 2
    assert len({run.folder for run in runs}) == len(runs)
    assert {run.seed for run in runs} == {1000, 1001}
    assert {run.plan.at(0).lr for run in runs if run.panel == "constant"} == {0.05, 0.1, 0.25, 0.5}


def records(score: Any, seeds: Any = (1000, 1001), status: Any = None) -> list[store.Record]:
    """The tuning runs as if trained, with accuracies ``score(panel, policy, size, lr, seed)``."""
    found = []
    for run in figure1_tuning(seeds=seeds):
        policy, lr = run.label.split(" lr ")
        at = (run.panel, policy, run.plan.at(0).batch_size, float(lr), run.seed)
        ended = "finished" if status is None else status(*at)
        row = {**dict.fromkeys(store.COLUMNS), "validation_accuracy": score(*at)}
        found.append(
            store.Record(
                folder=Path("x"), label=run.label, panel=run.panel, experiment=run.experiment,
                task=run.task, model=run.model, optimizer="QHM", plan=run.plan, seed=run.seed,
                status=ended, rows=[row],
            )
        )  # fmt: skip
    return found


def test_the_lr_of_the_highest_mean_validation_accuracy_is_chosen() -> None:
    best = {"increasing": 0.25, "lr-decay-twin": 0.5}

    def score(panel: str, policy: str, size: int, lr: float, seed: int) -> float:
        wanted = best.get(policy, 0.1 if size <= 40 else 0.5)
        return 80.0 - 10 * abs(lr - wanted) - abs(math.log2(size / 128))

    cells = choose_lr(records(score))["cells"]
    assert set(cells) == set(PANELS)
    assert cells["cosine"] == {
        "increasing": {"lr": 0.25, "batch_size": 8},
        "small": {"lr": 0.1, "batch_size": 8},
        "equal-steps": {"lr": 0.1, "batch_size": 40},
        "best-constant": {"lr": 0.5, "batch_size": 128},
        "large": {"lr": 0.5, "batch_size": 4096},
        "lr-decay-twin": {"lr": 0.5, "batch_size": 8},
    }
    assert len(figure1(seeds=[0], tuned={"cells": cells})) == 24  # figure1 reads what is chosen


def test_ties_go_to_the_smaller_lr_though_rounding_may_prefer_another() -> None:
    low, high = (
        (80.1, 80.3),
        (80.0, 80.4),
    )  # seed by seed, in percent: one mean but for the last bit
    assert fmean(low) < fmean(high)
    assert round(sum(low), 9) == round(sum(high), 9)

    def score(panel: str, policy: str, size: int, lr: float, seed: int) -> float:
        return (low if lr == 0.05 else high)[seed - 1000]

    cells = choose_lr(records(score))["cells"]
    assert {cell["lr"] for panel in cells.values() for cell in panel.values()} == {0.05}
    assert {panel["best-constant"]["batch_size"] for panel in cells.values()} == {8}


@pytest.mark.parametrize("lost", ["collapsed", "diverged"])
def test_one_lost_run_rules_its_lr_out(lost: str) -> None:
    def status(panel: str, policy: str, size: int, lr: float, seed: int) -> str:
        return lost if lr == 0.5 and seed == 1001 else "finished"

    chosen = choose_lr(records(lambda *at: 50 + at[3], status=status))
    assert {cell["lr"] for cells in chosen["cells"].values() for cell in cells.values()} == {0.25}
    ruled_out = [row for row in chosen["accuracies"] if row["validation_accuracy"] is None]
    assert len(ruled_out) == 4 * 11
    assert {row["lr"] for row in ruled_out} == {0.5}


def test_a_cell_without_an_lr_and_a_foreign_run_are_refused() -> None:
    def status(panel: str, policy: str, size: int, lr: float, seed: int) -> str:
        return "collapsed" if policy == "increasing" else "finished"

    with pytest.raises(ValueError, match=r"increasing \(constant\) has no lr at which all its"):
        choose_lr(records(lambda *at: 50.0, status=status))
    foreign = store.Record(
        folder=Path("mine"), label="x", panel="", experiment="other", task="quadratic",
        model="point", optimizer="QHM", plan=Plan(epochs=1, batch_size=1), seed=0,
        status="finished",
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"records must be of one of figure1-tuning, .*got other"):
        choose_lr([foreign])


def test_what_is_missing_unfinished_or_of_other_seeds_chooses_nothing() -> None:
    complete = records(lambda *at: 50.0)
    message = r"all runs of figure1-tuning and no others, ended: {} are missing or too many"
    with pytest.raises(ValueError, match=message.format(1)):
        choose_lr(complete[1:])
    for status in ("failed", "running"):
        with pytest.raises(ValueError, match=message.format(1)):
            choose_lr([dataclasses.replace(complete[0], status=status), *complete[1:]])
    with pytest.raises(ValueError, match=message.format(2 * len(complete))):
        choose_lr(records(lambda *at: 50.0, seeds=(0, 1)))


def test_the_note_says_how_lr_was_chosen_and_where_the_grid_ended() -> None:
    (note,) = {run.note for run in figure1(seeds=[0])}
    assert TUNING_RULE in note
    cells = json.loads(TUNED_FILE.read_text())["cells"]
    for panel, policies in cells.items():
        for policy, cell in policies.items():
            at_edge = f"{policy} ({panel}, {cell['lr']})" in note
            assert at_edge == (cell["lr"] in (0.05, 0.5))


# ------------------------------------------------------------------------------ the other figures


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", recipes.PAPER)
def test_every_figure_has_runs_of_different_folders_at_every_scale(name: str, scale: str) -> None:
    runs = recipes.PAPER[name](scale, [0, 1])
    assert len({run.folder for run in runs}) == len(runs) >= 4
    assert {run.seed for run in runs} == {0, 1}
    assert all(run.plan.epochs for run in runs)


def test_all_is_every_experiment_once() -> None:
    runs = recipes.everything(seeds=[0])
    assert {run.within for run in runs} == {
        "figure1", "figure4", "figure5", "figure8", "a11", "figure10", "baselines"
    }  # fmt: skip
    assert all(run.folder.parts[0] == run.experiment for run in runs)
    ours = [dataclasses.replace(run, within="") for run in runs]
    for name in ("figure2", "figure4", "figure9", "figure11"):
        assert set(recipes.PAPER[name](seeds=[0])) <= set(ours)


def test_the_paper_s_scale_has_the_paper_s_steps() -> None:
    plans = {run.label: run.plan for run in figure1("paper", [0]) if run.panel == "cosine"}
    steps = {label: plan.total_steps(50_000) for label, plan in plans.items()}
    assert steps["increasing"] == 374_760
    assert steps["small"] == steps["lr-decay-twin"] == 1_875_000
    assert steps["large"] == 3_900
    assert abs(steps["equal-steps"] - steps["increasing"]) < 300
    text = {run.label: run.plan for run in figure1("paper", [0], small_batch=256)}
    assert text["small"].total_steps(50_000) == 58_800
    released = {run.label: run.plan for run in figure1("paper", [0], variant="released")}
    assert released["increasing"].total_steps(50_000) == 380_997


def test_the_released_schedules_are_those_of_its_code() -> None:
    for run in figure1("paper", [0], variant="released"):
        values = [run.plan.at(epoch) for epoch in range(300)]
        late = [max(epoch - 1, 0) // 30 for epoch in range(300)]
        for value, levels in zip(values, late, strict=True):
            assert value.beta == pytest.approx(0.9 * 0.5**levels)
            assert value.gamma == pytest.approx(0.7 * 0.5**levels)
            if run.label == "increasing":
                assert value.batch_size == 8 * 2**levels
        if run.label == "lr-decay-twin":
            continue
        shape = {
            "constant": lambda m: 1.0,
            "inverse-sqrt": lambda m: (m + 1) ** -0.5,
            "cosine": lambda m: (1 + math.cos(math.pi * m / 300)) / 2,
            "polynomial": lambda m: (1 - m / 299) ** 2,
        }[run.panel]
        assert [v.lr for v in values] == pytest.approx([0.1 * shape(m) for m in range(300)])


def test_figure4_is_nshb_with_the_betas_of_the_paper() -> None:
    plans = {run.panel: run.plan for run in recipes.figure4("paper", [0])}
    assert len(plans) == 6
    assert all(plan.at(m).gamma == 1 for plan in plans.values() for m in (0, 299))
    assert plans["cosine"].at(60).beta == pytest.approx(0.9 / 4)
    assert plans["inverse-sqrt, constant beta"].at(299).beta == 0.9
    rising = plans["inverse, increasing beta"]
    assert rising.at(15).beta == pytest.approx(1 - 0.5 / 16**0.75)
    assert rising.at(9).lr == pytest.approx(0.01)


def test_the_grid_is_that_of_the_paper() -> None:
    runs = recipes.figure8("paper", [0])
    starts = [(run.plan.at(0).lr, run.plan.at(0).beta, run.plan.at(0).gamma) for run in runs]
    assert sorted(starts) == sorted(
        itertools.product((0.05, 0.1, 0.25, 0.5), (0.3, 0.5, 0.9), (0.2, 0.4, 0.7))
    )
    assert all(run.plan.epochs == 150 for run in runs)
    assert [runs[0].plan.at(m).batch_size for m in (0, 30, 149)] == [32, 64, 512]


def test_a11_grows_linearly_in_as_many_steps_and_to_the_same_end() -> None:
    for scale, found in SCALES.items():
        plans = {run.label: run.plan for run in recipes.a11(scale, [0])}
        n = found.main.n
        steps = plans["increasing"].total_steps(n)
        assert plans["linear"].total_steps(n) == pytest.approx(steps, rel=0.02)
        sizes = [plans["linear"].at(m).batch_size for m in range(3)]
        assert sizes[2] - sizes[1] == pytest.approx(sizes[1] - sizes[0], abs=1)
        last = found.main.epochs - 1
        assert plans["linear to the same end"].at(last).batch_size == 4096


def test_the_baselines_are_torch_s_own_under_the_same_plan() -> None:
    runs = {(run.panel, run.label): run for run in recipes.baselines(seeds=[0])}
    assert {label for _, label in runs} == {
        "SGD", "SHB", "NSHB", "QHM", "Adam", "AdamW", "RMSprop"
    }  # fmt: skip
    assert {run.plan.batch_size for run in runs.values()} == {s.Exponential(8, factor=2, every=3)}
    assert runs["cosine", "SHB"].options == (("momentum", 0.9),)
    assert runs["cosine", "Adam"].plan.beta is None
    assert runs["cosine", "NSHB"].plan.at(0).gamma == 1


@pytest.mark.parametrize("name", TUNINGS)
def test_every_committed_lr_follows_from_its_accuracies(name: str) -> None:
    experiment = name.removesuffix("-tuning")
    found = committed(experiment, "quick")
    if found is None:
        pytest.skip(f"lr of {experiment} is not tuned at quick scale")
    for panel, cells in found["cells"].items():
        for label, chosen in cells.items():
            if any(e["panel"] == panel and e["policy"] == label for e in found["accuracies"]):
                by_rule = lr_of({"cells": {}, "accuracies": found["accuracies"]}, panel, label)
                assert chosen["lr"] == by_rule


def test_an_lr_that_was_not_tuned_is_not_made_up() -> None:
    with pytest.raises(ValueError, match="tuned has no lr for linear"):
        lr_of({"cells": {}}, "cosine", "linear")


# ---------------------------------------------------------------------------------- tasks, runs


def test_samples_are_known_without_reading_the_data() -> None:
    for name in ("fashion-mini", "quadratic"):
        assert load(name).n == training_samples(name)
    assert TASKS["cifar100"] - TASKS["cifar100-tuning"] == 5_000
    assert set(TASKS) == set(MODELS)


@pytest.mark.parametrize("model", MODELS["fashion-mini"])
def test_a_task_s_model_takes_its_data(model: str) -> None:
    task = load("fashion-mini", model)
    inputs, targets = (part[:5] for part in task.train)  # type: ignore[union-attr]
    assert task.loss_fn(task.model()(inputs), targets).isfinite()
    assert (task.name, task.model_name) == ("fashion-mini", model)


PLAN = Plan(epochs=1, batch_size=8, lr=0.1)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"task": "mnist"}, "task must be one of .*quadratic, got 'mnist'"),
        ({"model": "resnet"}, "model of task quadratic must be one of point, got 'resnet'"),
        ({"optimizer": "Lion"}, "optimizer must be one of QHM, SGD.*, got 'Lion'"),
        ({"seed": -1}, "seed must be .*got -1"),
        ({"seed": 1.5}, "seed must be .*got 1.5"),
        ({"seed": 2**32}, "seed must be .*below 2"),
        ({"options": (("lr", {"a": 1}),)}, "optimizer.lr must be a number.*got {'a': 1}"),
    ],
)
def test_a_wrong_run_is_refused(change: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Run(**{"label": "x", "plan": PLAN, "task": "quadratic", "seed": 0, **change})


@pytest.mark.parametrize("label", ["..", "../../etc", "/etc/passwd", "a/b", ".", "ä ö", ""])
def test_a_run_s_folder_stays_below_the_experiment_s(label: str) -> None:
    folder = Run(label, PLAN, "quadratic", 0, panel=label).folder
    assert not folder.is_absolute()
    assert ".." not in folder.parts
    assert folder.name == "seed-0"


# ---------------------------------------------------------------------------------------- files

GOOD = """
task = "quadratic"
seeds = [2, 0]
label = "mine"
panel = "p"
[plan]
epochs = 3
batch_size = { kind = "Exponential", start = 4, factor = 2, every = 1 }
[optimizer]
kind = "AdamW"
lr = 0.01
betas = [0.8, 0.99]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "file.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_gives_a_run_for_each_seed(tmp_path: Path) -> None:
    plan = Plan(epochs=3, batch_size=s.Exponential(4, factor=2, every=1))
    options = (("betas", (0.8, 0.99)), ("lr", 0.01))
    assert from_file(write(tmp_path, GOOD)) == [
        Run("mine", plan, "quadratic", seed, "p", "file", "point", "AdamW", options)
        for seed in (2, 0)
    ]
    assert plan_from_file(write(tmp_path, GOOD)) == (plan, 256)
    assert plan_from_file(write(tmp_path, plan.to_toml())) == (plan, None)
    defaults = from_file(write(tmp_path, 'task = "quadratic"\n[plan]\nepochs = 1\nbatch_size = 8'))
    assert [(run.seed, run.label, run.optimizer) for run in defaults] == [(0, "file", "QHM")]


def replaced(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new)


SIZE = '{ kind = "Exponential", start = 4, factor = 2, every = 1 }'


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("task = ", "is not TOML"),
        ("", "task is missing"),
        ('task = "quadratic"', "plan is missing"),
        (replaced('"quadratic"', '"cifar"'), "task must be one of .*got 'cifar'"),
        (replaced('"quadratic"', "3"), "task must be a text, got 3"),
        (replaced("label", "lable"), "lable is not a key of it: allowed are task, model"),
        (replaced('"mine"', "7"), "label must be a text, got 7"),
        (replaced("[2, 0]", "2"), "seeds must be a list .*got 2"),
        (replaced("[2, 0]", "[]"), r"seeds must be a list .*got \[\]"),
        (replaced("[2, 0]", "[0, 0]"), r"seeds must be a list of different .*got \[0, 0\]"),
        (replaced("[2, 0]", "[-1]"), "seed must be an integer >= 0 .*got -1"),
        (replaced("[2, 0]", "[1.5]"), "seed must be an integer >= 0 .*got 1.5"),
        (replaced("[2, 0]", "[true]"), "seed must be an integer >= 0 .*got True"),
        (replaced("[2, 0]", "[18446744073709551616]"), "seed must be .*got 18446744073709551616"),
        (replaced("epochs = 3", "epochs = 0"), "epochs must be .*got 0"),
        (replaced("epochs = 3", "epochs = 2.5"), "epochs must be .*got 2.5"),
        (replaced("epochs = 3", ""), "exactly one of epochs, steps, samples must be given, got no"),
        (replaced("epochs = 3", "epochs = 3\nsteps = 9"), "exactly one of .*got epochs, steps"),
        (replaced("epochs = 3", "epoch = 3"), "epoch is not a field of a plan: allowed are epochs"),
        (replaced(SIZE, "-8"), "batch_size must be .*got -8"),
        (replaced(SIZE, "8.5"), "batch_size must be .*got 8.5"),
        (replaced(SIZE, "nan"), "batch_size must be .*got nan"),
        (replaced(SIZE, '"big"'), "batch_size must be .*got 'big'"),
        (replaced("factor = 2", "factor = 1"), "batch_size: factor must be .*got 1"),
        (replaced("factor = 2", "factor = nan"), "batch_size: factor must be .*got nan"),
        (replaced("every = 1", "every = 0"), "batch_size: every must be .*got 0"),
        (replaced('"Exponential"', '"Expo"'), "batch_size.kind must be one of .*got 'Expo'"),
        (replaced("start = 4", "begin = 4"), "batch_size.begin is not a field of Exponential: all"),
        (replaced("epochs = 3", "epochs = 3\nbeta = 1"), "beta must be in .*got 1"),
        (replaced("epochs = 3", "epochs = 3\ngamma = 1.2"), "gamma must be in .*got 1.2"),
        (replaced("epochs = 3", "epochs = 3\nlr = nan"), "lr must be .*got nan"),
        (
            replaced(
                "epochs = 3",
                'epochs = 3\nbeta = { kind = "StepDecay", start = 0.9, factor = 1, every = 2 }',
            ),
            "beta: factor must be .*got 1",
        ),
        (replaced('"AdamW"', '"Lion"'), "optimizer must be one of .*got 'Lion'"),
        (replaced('"AdamW"', "5"), "optimizer must be one of .*got 5"),
        (replaced("lr = 0.01", "lr = { a = 1 }"), "optimizer.lr must be a number.*got {'a': 1}"),
        (replaced("lr = 0.01", "lr = [[1]]"), "optimizer.lr must be a number"),
        ('task = "quadratic"\nplan = 3', r"plan must be a table \[plan\], got 3"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_in_one_line_that_names_it(
    text: str, match: str, tmp_path: Path
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=match) as raised:
        from_file(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not TOML"):
        from_file(path)
    with pytest.raises(FileNotFoundError):
        from_file(tmp_path / "none.toml")


def test_growth_takes_the_lr_of_its_decay_and_the_steps_that_are_promised():
    cells = {cell.label: cell for cell in trade_decay_cells() if cell.panel == "AdamW, cosine"}
    chosen = {
        "cells": {
            panel: {"decay": {"lr": lr}, "equal-steps": {"lr": 2 * lr}}
            for panel, lr in (
                ("SGD, cosine", 0.01), ("SGD, steps", 0.02),
                ("AdamW, cosine", 0.001), ("AdamW, steps", 0.002),
            )
        },
        "rule": "mine",
    }  # fmt: skip
    runs = {(run.panel, run.label): run for run in trade_decay(seeds=[3], tuned=chosen)}
    assert len(runs) == 12
    for (panel, label), run in runs.items():
        lr = chosen["cells"][panel]["decay"]["lr"]
        assert run.plan.at(0).lr == (2 * lr if label == "equal-steps" else lr)
        assert run.note.startswith("how lr was chosen: mine")
    n = training_samples("fashion-mini")
    before, after = (runs["AdamW, cosine", label].plan for label in ("decay", "growth"))
    assert after == Plan.trade_decay(s.Cosine(0.001), 32, "seesaw", epochs=30, maximum=4096)
    assert after.saved(n).steps_before == before.total_steps(n)
    assert after.saved(n).ratio <= 0.5
    assert set(cells) == {"decay", "growth", "equal-steps"}
    tried = {run.label.split(" lr ")[0] for run in tuning_runs("trade-decay")}
    assert tried == {"decay", "equal-steps"}  # nothing is tuned for the growth
