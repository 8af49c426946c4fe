"""The report holds measured norms against the theory's bound where constants are known."""

from dataclasses import replace

import pytest
import torch

from batchramp import Plan, store
from batchramp import schedules as s
from batchramp.experiments import tasks
from batchramp.report.bounds import compared
from batchramp.report.cells import studies
from batchramp.report.page import render
from batchramp.theory import best_bound
from batchramp.training import fit


def test_bounds_stand_beside_what_was_measured(tmp_path):
    """Where constants are known: the least of the seeds' mean of squares, under the best bound."""
    task = tasks.load("quadratic")
    plan = Plan(
        epochs=6, batch_size=s.Exponential(4, factor=2, every=2), lr=0.03, beta=0.9, gamma=0.7
    )
    for seed in range(3):
        fit(task, plan, seed=seed, out=tmp_path / f"{seed}", label="growth", constants=True)
    records = store.read_all(tmp_path)
    (study,) = studies(records)
    (held,) = compared(study.cells)
    squares = [
        [r.initial["full_gradient_norm"] ** 2, *(row["full_gradient_norm"] ** 2 for row in r.rows)]
        for r in records
    ]
    means = [sum(run[k] for run in squares) / 3 for k in range(7)]
    assert held.measured.tolist() == pytest.approx([min(means[: k + 1]) for k in range(7)])
    assert held.bound == best_bound(plan, task.problem, 256)
    assert held.curve.values[-1] == held.bound.value
    (x, _), (at, values) = held.points("samples")
    assert (x.tolist(), at.tolist()) == (
        [256.0 * k for k in range(7)],
        [256.0 * k for k in range(1, 7)],
    )
    assert values.tolist() == held.curve.values.tolist()
    others = [replace(r, optimizer="Adam") for r in records]
    assert compared(studies(others)[0].cells) == []
    unknown = [replace(r, problem=None) for r in records]
    assert compared(studies(unknown)[0].cells) == []
    page = render(records)
    assert "Measured, and the bound on it" in page
    assert "Largest gradient norm of a single sample" in page
    assert held.sentence.split(",")[0] in page


def test_no_bound_is_drawn_of_what_the_theory_does_not_read(tmp_path):
    task = tasks.load("quadratic")
    plan = Plan(epochs=2, batch_size=32, lr=0.03)
    fit(task, plan, seed=0, optimizer=torch.optim.SGD, out=tmp_path / "sgd")
    (study,) = studies(store.read_all(tmp_path))
    assert compared(study.cells) == []
    assert "the bound on it" not in render(store.read_all(tmp_path))
