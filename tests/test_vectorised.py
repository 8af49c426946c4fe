"""Runs trained together: the numbers, files and endings of each one's own `fit`."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from batchramp import Plan, store
from batchramp import schedules as s
from batchramp.experiments import Run, tasks, vectorised
from batchramp.experiments.vectorised import Member, obstacle, together, train_together
from batchramp.models import MLP, SmallCNN
from batchramp.task import Task
from batchramp.training import fit

pytestmark = pytest.mark.usefixtures("one_thread")

# In float64 both are the same sums in another order.
CLOSE = 1e-10
SEEDS = (0, 1, 2)


def plan(
    lr: float = 0.1, beta: float | None = 0.9, gamma: float | None = 0.7, **changes: Any
) -> Plan:
    given: dict[str, Any] = {
        "epochs": 4,
        "batch_size": s.Exponential(8, factor=2, every=1),
        "lr": s.Cosine(lr),
        "beta": None if beta is None else s.StepDecay(beta, factor=0.5, every=2),
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
            expected = there[name]  # None where it is not finite
            close = expected if expected is None else pytest.approx(expected, rel=rel, abs=1e-12)
            assert here[name] == close, name


def random_flips(inputs: Tensor, generator: torch.Generator) -> Tensor:
    signs = torch.randint(0, 2, (len(inputs), *[1] * (inputs.ndim - 1)), generator=generator)
    return inputs * (2 * signs - 1)


STEPS = plan(epochs=None, steps=40, batch_size=s.Piecewise({0: 10, 13: 20}))
THREE = [Member(plan(epochs=2), seed) for seed in SEEDS]
CASES = {
    "seeds": (small(), THREE),
    "grid": (small(), grid()),
    "one seed": (small(), [Member(plan(lr), 0) for lr in (0.1, 0.3)]),
    "batch norm": (convolutional(), [Member(plan(lr, epochs=1), 0) for lr in (0.1, 0.3)]),
    "augmented": (small(augment=random_flips), THREE),
    "prepared": (small(prepare=lambda inputs: 0.5 * inputs + 0.1), THREE),
    "steps": (small(), [Member(STEPS, seed) for seed in SEEDS]),
}
QUICK = (("seeds", 1), ("batch norm", 1), ("grid", math.inf), ("augmented", math.inf),
         ("prepared", math.inf), ("steps", math.inf))  # fmt: skip
ALL = [(name, worth) for name in CASES for worth in (1, math.inf)]


@pytest.mark.parametrize(
    ("name", "worth"),
    [pytest.param(*c, marks=() if c in QUICK else pytest.mark.slow) for c in ALL],
)
def test_rows_are_those_of_each_alone(
    name: str, worth: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectorised, "_WORTH_TRACING", worth)  # every step or none is traced
    task, members = CASES[name]
    statuses, rows = rows_of(task, members)
    for member, status, own in zip(members, statuses, rows, strict=True):
        alone = fit(task, member.plan, seed=member.seed)
        assert status == alone.status
        agree(own, alone.rows)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_a_hundred_steps_on_images_agree_in_float64(model: str) -> None:
    """The first 100 steps and more, at which the step of batch size 8 is traced."""
    loaded = tasks.load("fashion-mini", model)
    parts = {}
    for part, n in (("train", 900), ("test", 100)):
        inputs, targets = getattr(loaded, part)
        parts[part] = (inputs[:n].double(), targets[:n])
    task = replace(loaded, model=lambda: loaded.model().double(), validation=None, **parts)
    plans = [Plan(epochs=1, batch_size=8, lr=lr, beta=b, gamma=g) for lr in (0.05, 0.2)
             for b, g in ((0.9, 0.7), (0.3, 0.2))]  # fmt: skip
    members = [Member(p, seed) for p in plans for seed in (0, 1)]
    members = members if model == "mlp" else members[1:4]  # convolutions take their time
    _, rows = rows_of(task, members)
    for member, own in zip(members, rows, strict=True):
        agree(own, fit(task, member.plan, seed=member.seed).rows)


def test_float32_agrees_as_far_as_it_can() -> None:
    """Two epochs of sums in another order: 1e-5; an accuracy may differ by no sample here."""
    task = small(dtype=torch.float32)
    _, rows = rows_of(task, THREE)
    for member, own in zip(THREE, rows, strict=True):
        agree(own, fit(task, member.plan, seed=member.seed).rows, rel=1e-5)


def test_a_run_that_diverges_stops_where_it_would_alone_and_the_others_go_on() -> None:
    task = small(train=blobs(250, 0, (6,), torch.float64))
    plans = [Plan(epochs=2, batch_size=2, lr=lr, beta=0.9, gamma=0.7) for lr in (0.05, 1e200)]
    members = [Member(p, seed) for p in plans for seed in (0, 1)]
    statuses, rows = rows_of(task, members)
    assert statuses == ("finished", "finished", "diverged", "diverged")
    for member, own in zip(members, rows, strict=True):
        agree(own, fit(task, member.plan, seed=member.seed).rows)
    assert [own[-1]["steps"] for own in rows] == [250, 250, 100, 100]


def test_files_that_cannot_be_written_fail_their_run_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = store.save_checkpoint

    def full(folder: Path, state: Any) -> None:
        if folder.name == "1" and state["progress"]["epoch"] == 2:
            raise OSError(28, "No space left on device")
        save(folder, state)

    monkeypatch.setattr(store, "save_checkpoint", full)
    members = [Member(plan(), seed, tmp_path / str(seed)) for seed in SEEDS]
    with pytest.warns(UserWarning, match="No space left"):
        assert train_together(small(), members) == ("finished", "failed", "finished")
    failed = store.read(tmp_path / "1")
    assert (failed.status, "No space left" in str(failed.error)) == ("failed", True)
    monkeypatch.setattr(store, "save_checkpoint", save)
    # It goes on from the epoch that it has; what has ended stays as it is.
    before = (tmp_path / "0" / "checkpoint.pt").stat().st_mtime_ns
    assert train_together(small(), members) == ("finished",) * 3
    assert (tmp_path / "0" / "checkpoint.pt").stat().st_mtime_ns == before
    agree(store.read(tmp_path / "1").rows, fit(small(), plan(), seed=1).rows)


def test_a_run_that_another_process_trains_is_left_to_it(tmp_path: Path) -> None:
    members = [Member(plan(epochs=1), seed, tmp_path / str(seed)) for seed in SEEDS]
    with store.lock(tmp_path / "1"):
        assert train_together(small(), members) == ("finished", "taken", "finished")
    assert not (tmp_path / "1" / "run.json").exists()


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([], "at least one"),
        ([Member(plan(), 0), Member(plan(batch_size=8), 0)], "share their batch_size"),
        ([Member(plan(), 0), Member(plan(epochs=5), 0)], "share their length"),
        ([Member(plan(), 0, Path("a")), Member(plan(), 1, Path("a"))], "different folders"),
    ],
)
def test_members_that_cannot_go_together_are_refused(members: list[Member], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        train_together(small(), members)


def test_runs_are_grouped_with_their_like() -> None:
    def run(**changes: Any) -> Run:
        given = {"label": "a", "plan": plan(), "task": "quadratic", "seed": 0}
        return Run(**{**given, **changes})

    like = [run(seed=seed, label=str(lr), plan=plan(lr)) for seed in SEEDS for lr in (0.1, 0.2)]
    others = [
        run(plan=plan(batch_size=8)),
        run(plan=plan(epochs=5)),
        run(constants=True),
        run(optimizer="SGD", plan=plan(beta=None, gamma=None)),
    ]
    groups = together([others[0], *like, *others[1:]])
    assert sorted(map(len, groups)) == [1, 1, 1, 1, 6]
    assert sorted(id(run) for group in groups for run in group) == sorted(map(id, [*like, *others]))
    images = [run(task="fashion-mini", label=str(i)) for i in range(23)]
    assert [len(group) for group in together(images)] == [4, 5, 4, 5, 5]  # at most 5, all alike
    cnns = [run(task="fashion-mini", model="cnn", label=str(i)) for i in range(3)]
    assert [len(group) for group in together(cnns)] == [1, 1, 1]


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


def test_without_the_tracer_the_numbers_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from batchramp.experiments import tracing

    task = tasks.load("quadratic")
    plan = Plan(epochs=4, batch_size=2, lr=0.02, beta=0.9, gamma=0.7)  # traced after 100 steps

    def rows() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        members = [Member(plan, seed) for seed in (0, 1)]
        train_together(task, members, on_row=lambda _, row: found.append(row))
        return found

    with_it = rows()
    monkeypatch.setattr(tracing, "make_fx", None)
    for a, b in zip(with_it, rows(), strict=True):
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-10)
        assert a["full_gradient_norm"] == pytest.approx(b["full_gradient_norm"], rel=1e-10)
