"""Runs trained together: the numbers, files and endings of each one's own `fit`."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from batchramp import Plan, store
from batchramp import schedules as s
from batchramp.experiments import vectorised
from batchramp.experiments.vectorised import Member, obstacle, train_together
from batchramp.models import MLP, SmallCNN
from batchramp.task import Task
from batchramp.training import fit

pytestmark = pytest.mark.usefixtures("one_thread")

# In float64 both are the same sums in another order; see the class of each test for float32.
CLOSE = 1e-10
SEEDS = (0, 1, 2)


def plan(lr: float = 0.1, beta: float = 0.9, gamma: float = 0.7, **changes: Any) -> Plan:
    given: dict[str, Any] = {
        "epochs": 4,
        "batch_size": s.Exponential(8, factor=2, every=1),
        "lr": s.Cosine(lr),
        "beta": s.StepDecay(beta, factor=0.5, every=2),
        "gamma": gamma,
    }
    return Plan(**{**given, **changes})


def blobs(n: int, seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, *shape, generator=generator, dtype=torch.float64).to(dtype)
    return inputs, inputs.flatten(1)[:, :3].argmax(1)


def small(
    model: Callable[[], nn.Module] = lambda: MLP(6, 8, 3),
    shape: tuple[int, ...] = (6,),
    dtype: torch.dtype = torch.float64,
    **changes: Any,
) -> Task:
    parts = {"train": (96, 0), "validation": (40, 1), "test": (30, 2)}
    values: dict[str, Any] = {
        "model": lambda: model().to(dtype),
        "loss_fn": nn.functional.cross_entropy,
        **{part: blobs(*size, shape, dtype) for part, size in parts.items()},
    }
    return Task(**{**values, **changes})


def convolutional(**changes: Any) -> Task:
    return small(lambda: SmallCNN(1, 2, 3), (1, 8, 8), **changes)


def grid() -> list[Member]:
    """Two seeds by three plans, one of each seed left out: nothing is a full grid."""
    plans = [plan(), plan(0.3, 0.5, 0.2), plan(0.05, 0.3, 1.0)]
    return [Member(p, seed) for p in plans for seed in (0, 1)][:-1]


def rows_of(task: Task, members: Sequence[Member]) -> tuple[tuple[str, ...], list[list[Any]]]:
    rows: list[list[Any]] = [[] for _ in members]
    statuses = train_together(task, members, on_row=lambda i, row: rows[i].append(row))
    return statuses, rows


def agree(ours: Sequence[Any], theirs: Sequence[Any], rel: float = CLOSE) -> None:
    assert len(ours) == len(theirs)
    for here, there in zip(ours, theirs, strict=True):
        assert list(here) == list(there)
        for name in here.keys() - {"seconds"}:
            assert here[name] == pytest.approx(there[name], rel=rel, abs=1e-12), name


def random_flips(inputs: Tensor, generator: torch.Generator) -> Tensor:
    signs = torch.randint(0, 2, (len(inputs), *[1] * (inputs.ndim - 1)), generator=generator)
    return inputs * (2 * signs - 1)


@pytest.mark.parametrize(
    ("task", "members"),
    [
        pytest.param(small(), [Member(plan(), seed) for seed in SEEDS], id="seeds"),
        pytest.param(small(), grid(), id="grid"),
        pytest.param(small(), [Member(plan(lr), 0) for lr in (0.1, 0.3)], id="one seed"),
        pytest.param(convolutional(), grid(), id="batch norm"),
        pytest.param(
            small(augment=random_flips), [Member(plan(), seed) for seed in SEEDS], id="augmented"
        ),
        pytest.param(
            small(),
            [
                Member(plan(epochs=None, steps=40, batch_size=s.Piecewise({0: 10, 13: 20})), seed)
                for seed in SEEDS
            ],
            id="steps",
        ),
    ],
)
@pytest.mark.parametrize("worth", [1, math.inf], ids=["traced", "untraced"])
def test_rows_are_those_of_each_alone(
    task: Task, members: list[Member], worth: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectorised, "_WORTH_TRACING", worth)
    statuses, rows = rows_of(task, members)
    for member, status, own in zip(members, statuses, rows, strict=True):
        alone = fit(task, member.plan, seed=member.seed)
        assert status == alone.status
        agree(own, alone.rows)


def test_a_checkpoint_is_continued_by_fit_and_fit_s_here(tmp_path: Path) -> None:
    def stop_in(epoch: int) -> Callable[..., None]:
        def on_row(*given: Any) -> None:
            if given[-1]["epoch"] == epoch:
                raise KeyboardInterrupt

        return on_row

    task = convolutional()
    plans = {"lr 0.1": plan(0.1), "lr 0.3": plan(0.3)}

    def members(folder: str) -> list[Member]:
        return [Member(p, 0, tmp_path / folder / name) for name, p in plans.items()]

    with pytest.raises(KeyboardInterrupt):
        train_together(task, members("here first"), on_row=stop_in(1))
    for name, p in plans.items():
        assert len(store.read(tmp_path / "here first" / name).rows) == 2
        fit(task, p, seed=0, out=tmp_path / "here first" / name)
        fit(task, p, seed=0, out=tmp_path / "alone" / name)
    # They stand at different epochs: one must catch up before they go on together.
    for epoch, (name, p) in enumerate(plans.items()):
        out = tmp_path / "fit first" / name
        with pytest.raises(KeyboardInterrupt):
            fit(task, p, seed=0, out=out, on_epoch=stop_in(epoch))
    assert train_together(task, members("fit first")) == ("finished", "finished")
    for name in plans:
        alone, saved = left_by(tmp_path / "alone" / name)
        for folder in ("here first", "fit first"):
            record, checkpoint = left_by(tmp_path / folder / name)
            assert record.status == "finished"
            agree(record.rows, alone.rows)
            agree([record.initial], [alone.initial])
            assert checkpoint.keys() == saved.keys()
            for key in ("model", "optimizer"):
                torch.testing.assert_close(
                    dict(checkpoint[key]), dict(saved[key]), rtol=CLOSE, atol=1e-12
                )
            assert torch.equal(checkpoint["rng"], saved["rng"])
            assert checkpoint["sampler"] == saved["sampler"]
            assert (tmp_path / folder / name / "checkpoint.pt").stat().st_size < 30_000


def left_by(folder: Path) -> tuple[store.Record, dict[str, Any]]:
    return store.read(folder), torch.load(folder / "checkpoint.pt", weights_only=True)


def test_a_model_that_draws_random_numbers_is_refused() -> None:
    task = small(lambda: nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3), nn.Linear(8, 3)))
    assert "draws random numbers" in obstacle(task)
    with pytest.raises(ValueError, match="cannot be vectorised: custom draws random numbers"):
        train_together(task, [Member(plan(), 0)])
