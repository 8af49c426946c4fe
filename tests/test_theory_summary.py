"""What the theory says of Plans in one value, its pictures, and the problem's file."""

import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batchramp import Plan
from batchramp import schedules as s
from batchramp.experiments import measure_constants, tasks
from batchramp.task import Task
from batchramp.theory import (
    Problem,
    auxiliary,
    best_bound,
    bound_curve,
    draw_bound,
    draw_bound_as_text,
    summary,
    theorem2,
)

PROBLEM = Problem(initial_gap=5.0, smoothness=2.0, variance=1.0, gradient_bound=3.0)


def plan_of(**changed: Any) -> Plan:
    growth = s.Exponential(8, factor=2, every=5)
    given = {"epochs": 20, "batch_size": growth, "lr": 0.03, "beta": 0.9, "gamma": 0.7}
    return Plan(**given | changed)


def test_a_summary_holds_what_its_parts_say() -> None:
    plan = plan_of()
    said = summary({"": plan}, 1000, problem=PROBLEM, epsilon=0.5)
    assert said.best[""] == best_bound(plan, PROBLEM, 1000)
    assert said.bounds[""][0] == theorem2(plan, PROBLEM, 1000)
    assert said.bounds[""][2] == auxiliary(plan, PROBLEM, 1000, split="best")
    assert said.answers[""].epsilon == 0.5
    assert said.comparison is None
    assert said.warnings
    assert all(f"warning: {warning}" in said.text() for warning in said.warnings)
    assert "Theorem 4, safe              " in said.text()
    assert "(vacuous)" in next(
        x for x in said.text().splitlines() if x.startswith("  Theorem 4, s")
    )
    text = said.text()
    for line in (*str(said.best[""]).splitlines(), *str(said.verdicts[""]).splitlines()):
        assert line in text
    assert not re.search(r"\bnan\b", text)
    plain = said.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


def test_without_a_problem_there_are_verdicts_and_no_numbers() -> None:
    said = summary({"": plan_of()}, 1000)
    assert said.best == {}
    assert "does each bound of QHM tend to 0" in said.text()
    assert "best bound" not in said.text()


def test_where_no_bound_holds_the_summary_says_which_condition_fails() -> None:
    said = summary({"": plan_of(lr=50.0)}, 1000, problem=PROBLEM)
    assert said.best[""].value == math.inf
    text = said.text()
    assert "no bound holds: there is nothing to draw" in text
    assert "lr (1 - beta gamma) < 2/L: fails from tick 0; it takes lr < 2.7027, not 50" in text
    assert said.to_dict()["bound"]["value"] is None
    assert not re.search(r"\bnan\b", text)


def test_several_plans_stand_side_by_side_and_those_left_to_the_optimizer_aside() -> None:
    plans = {"grow": plan_of(), "flat": plan_of(batch_size=8), "alone": plan_of(beta=None)}
    said = summary(plans, 1000, problem=PROBLEM)
    assert said.unplanned["alone"] == ("beta",)
    assert said.comparison is not None
    assert set(said.comparison.warnings) == {"grow", "flat"}
    assert "the plan leaves beta to the optimizer" in said.text()
    assert said.best.keys() == {"grow", "flat"}
    left = summary({"": plan_of(lr=None)}, 1000, problem=PROBLEM, epsilon=1.0)
    assert left.text().endswith("not read, for the plan leaves lr to the optimizer")
    assert set(said.to_dict()["plans"]) == set(plans)


@pytest.mark.parametrize(
    ("plans", "kwargs", "message"),
    [
        ({}, {}, "plans must hold at least 1 plan"),
        ({"": plan_of()}, {"epsilon": 1.0}, "epsilon 1.0 is of a bound, which needs a problem"),
    ],
)
def test_what_cannot_be_summed_up_is_refused(
    plans: dict[str, Plan], kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        summary(plans, 100, **kwargs)


# --------------------------------------------------------------------------------------- pictures


def test_the_figure_draws_the_curves() -> None:
    plan = plan_of()
    figure = draw_bound(plan, PROBLEM, 1000)
    above = figure.axes[0]
    lines = {line.get_label(): line for line in above.lines}
    best = bound_curve(plan, PROBLEM, 1000)
    np.testing.assert_array_equal(lines["the least so far"].get_xdata(), best.steps)
    np.testing.assert_array_equal(lines["the least so far"].get_ydata(), best.values)
    curve = bound_curve(plan, PROBLEM, 1000, bound="theorem2")
    np.testing.assert_array_equal(lines["Theorem 2, per step"].get_ydata(), curve.values)
    assert {line.get_label() for line in figure.axes[2].lines} == {"A", "B", "B momentum"}
    np.testing.assert_array_equal(figure.axes[1].lines[0].get_xdata(), best.samples)
    out = io.BytesIO()
    figure.savefig(out, format="svg")
    assert b"<svg" in out.getvalue()


@pytest.mark.parametrize(
    "plan",
    [plan_of(lr=50.0), plan_of(epochs=1), plan_of(lr=0.0), plan_of(beta=0.0), plan_of(lr=1e-12)],
    ids=["none", "one", "still", "sgd", "slow"],
)
def test_pictures_are_drawn_of_any_plan(plan: Plan) -> None:
    draw_bound(plan, PROBLEM, 1000).savefig(io.BytesIO(), format="png")
    text = draw_bound_as_text(plan, PROBLEM, 1000, width=60)
    assert max(map(len, text.splitlines())) < 80
    assert "\x1b" not in text


def test_in_colour_lines_are_told_apart_by_colour() -> None:
    assert "\x1b[" in draw_bound_as_text(plan_of(), PROBLEM, 1000, colour=True)


# ------------------------------------------------------------------------------ constants, files


@pytest.mark.parametrize(
    "problem", [PROBLEM, Problem(1e-9, 3.7, 0.0, 1 / 3, initial_gradient_norm=0.1)]
)
def test_a_problem_comes_back_from_its_file(problem: Problem, tmp_path: Path) -> None:
    assert Problem.from_toml(problem.to_toml()) == (problem, None, "")
    path = tmp_path / "problem.toml"
    path.write_text('note = "mine"\nn = 12\n' + problem.to_toml())
    assert Problem.from_toml(path) == (problem, 12, "mine")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("initial_gap = ", "problem: .*Invalid value"),
        ("initial_gap = 1", "problem: smoothness is missing: a problem has initial_gap, "),
        ("L = 1", "problem: L is not a constant of a problem: it has initial_gap, "),
        ("n = 0\n" + PROBLEM.to_toml(), "problem: n must be an integer >= 1, got 0"),
        (PROBLEM.to_toml().replace("2.0", "-2.0"), "smoothness must be a finite number > 0"),
        (PROBLEM.to_toml().replace("2.0", "nan"), "smoothness must be a finite number > 0"),
        (PROBLEM.to_toml().replace("2.0", "'2'"), "smoothness must be a finite number > 0"),
    ],
)
def test_a_wrong_problem_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Problem.from_toml(text)
    assert "\n" not in str(caught.value)


def test_constants_of_a_task_are_those_of_its_fresh_model() -> None:
    import torch

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (40,), generator=generator)
    task = Task(
        model=lambda: torch.nn.Linear(5, 3, dtype=torch.float64),
        train=(x, y),
        test=None,
        loss_fn=torch.nn.functional.cross_entropy,
    )
    before = torch.get_rng_state()
    found = measure_constants(task, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(3)
    model = task.model()
    gradients = []
    for i in range(40):
        loss = task.loss_fn(model(x[i : i + 1]), y[i : i + 1])
        gradients.append(
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*model.parameters()])])
        )
    each = torch.stack(gradients)
    loss = task.loss_fn(model(x), y).item()
    problem = found.problem
    assert problem.initial_gap == pytest.approx(loss, rel=1e-12)
    assert problem.variance == pytest.approx(float((each - each.mean(0)).square().sum(1).mean()))
    assert problem.gradient_bound == pytest.approx(float(each.norm(dim=1).max()))
    assert problem.initial_gradient_norm == pytest.approx(float(each.mean(0).norm()))
    assert (found.n, found.known) == (40, None)
    assert Problem.from_toml(found.to_toml()) == (problem, 40, found.note)
    assert found.note.startswith("local estimates at the start of training")
    part = measure_constants(task, seed=3, samples=10)
    assert "from 10 of 40 samples, so G is at least" in part.note
    assert "Local estimates" in str(found)


def test_known_constants_are_taken_and_a_loss_below_0_gives_no_gap() -> None:
    import torch

    quadratic = tasks.load("quadratic")
    assert measure_constants(quadratic).problem == quadratic.problem
    below = Task(
        model=lambda: torch.nn.Linear(1, 1),
        train=(torch.ones(4, 1), torch.zeros(4, 1)),
        test=None,
        loss_fn=lambda outputs, _: outputs.square().mean() - 9,
    )
    with pytest.raises(ValueError, match="loss of custom must be above 0"):
        _ = measure_constants(below).problem
