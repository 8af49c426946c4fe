"""Training under a Plan: rows as by a hand-written loop, and resuming changes nothing."""

import functools
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from batchramp import QHM, Plan, store
from batchramp import schedules as s
from batchramp.experiments import tasks
from batchramp.task import Task
from batchramp.training import fit, scheduled

EPOCHS = Plan(
    epochs=4,
    batch_size=s.Exponential(8, factor=2, every=1),
    lr=s.Cosine(0.3),
    beta=s.StepDecay(0.9, factor=0.5, every=2),
    gamma=0.7,
)
# 96 samples and batches of 10 and 20: an epoch whose size changes, and a last one that is cut.
STEPS = Plan(
    steps=27,
    batch_size=s.Piecewise({0: 10, 13: 20}),
    lr=s.InverseSqrt(0.3),
    beta=s.IncreasingBeta(0.5),
    gamma=0.7,
)
SAMPLES = Plan(
    samples=250,
    batch_size=s.Piecewise({0: 10, 130: 20}),
    lr=s.Cosine(0.3),
    beta=0.5,
    gamma=s.StepDecay(0.8, factor=0.5, every=100),
)
ADAMW = functools.partial(torch.optim.AdamW, lr=0.01)
SIZES = Plan(epochs=4, batch_size=s.Exponential(8, factor=2, every=1))


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def noisy_net() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)
    )


def blobs(n: int, seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, 6, generator=generator, dtype=dtype)
    return inputs, inputs[:, :3].argmax(1)


def small(model: Callable[[], nn.Module] = net, **changes: Any) -> Task:
    values: dict[str, Any] = {
        "model": model,
        "train": blobs(96, 0),
        "validation": blobs(40, 1),
        "test": blobs(30, 2),
        "loss_fn": nn.functional.cross_entropy,
    }
    return Task(**{**values, **changes})


def in_float64() -> Task:
    parts = {"train": (96, 0), "validation": (40, 1), "test": (30, 2)}
    return small(lambda: net().double(), **{p: blobs(*a, torch.float64) for p, a in parts.items()})


def noisy() -> Task:
    """All that draws random numbers: dropout, and loaders of Datasets, which draw a seed a pass."""
    return small(
        noisy_net,
        train=TensorDataset(*blobs(96, 0)),
        validation=TensorDataset(*blobs(40, 1)),
        test=None,
    )


def without_seconds(rows: Any) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit, through all containers."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def left_by(folder: Path) -> tuple[Any, ...]:
    """What a run left on disk, seconds aside."""
    record = store.read(folder)
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    saved["progress"].pop("seconds")
    return record.status, dict(record.initial), without_seconds(record.rows), saved


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class Stop(Exception):
    pass


def stop_after(epoch: int) -> Callable[[dict[str, Any]], None]:
    def on_epoch(row: dict[str, Any]) -> None:
        if row["epoch"] == epoch:
            raise Stop

    return on_epoch


# ------------------------------------------------------------------------ the same as by hand


def batches_by_hand(plan: Plan, n: int, seed: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """(epoch, tick, indices) of every batch: permutation, sizes and ends without the sampler."""
    epoch = step = samples = 0
    while True:
        order = np.random.Generator(
            np.random.PCG64(np.random.SeedSequence([seed, epoch]))
        ).permutation(n)
        start = 0
        while start < n:
            tick = {"epochs": epoch, "steps": step, "samples": samples}[plan.unit]
            if tick >= plan.length:
                return
            size = min(plan.at(tick).batch_size, n - start)
            if plan.unit == "samples":
                size = min(size, plan.length - samples)
            yield epoch, tick, order[start : start + size]
            start, step, samples = start + size, step + 1, samples + size
        epoch += 1


def measured_by_hand(model: nn.Module, task: Task) -> dict[str, float]:
    found = {}
    for part in ("train", "validation", "test"):
        x, y = getattr(task, part)
        outputs = model(x)
        found[f"{part}_loss"] = nn.functional.cross_entropy(outputs, y).item()
        found[f"{part}_accuracy"] = 100 * (outputs.argmax(1) == y).double().mean().item()
    x, y = task.train
    loss = nn.functional.cross_entropy(model(x), y)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    found["full_gradient_norm"] = math.sqrt(sum(float((g**2).sum()) for g in gradients))
    return found


@pytest.mark.parametrize("plan", [EPOCHS, STEPS, SAMPLES], ids=lambda plan: plan.unit)
def test_rows_are_those_of_qhm_by_hand(plan: Plan) -> None:
    task = in_float64()
    x, y = task.train  # type: ignore[misc]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = task.model()
    parameters = list(model.parameters())
    buffers = [torch.zeros_like(p) for p in parameters]
    expected = [{**measured_by_hand(model, task), "epoch": -1, "steps": 0, "samples": 0}]
    steps = samples = 0
    for epoch, tick, indices in batches_by_hand(plan, 96, seed=5):
        values = plan.at(tick)
        loss = nn.functional.cross_entropy(model(x[indices]), y[indices])
        with torch.no_grad():
            gradients = torch.autograd.grad(loss, parameters)
            for p, d, g in zip(parameters, buffers, gradients, strict=True):
                d.mul_(values.beta).add_(g, alpha=1 - values.beta)
                p.sub_(values.lr * ((1 - values.gamma) * g + values.gamma * d))
        steps, samples = steps + 1, samples + len(indices)
        row = {"epoch": epoch, "steps": steps, "samples": samples, **vars(values)}
        row |= measured_by_hand(model, task)
        if expected[-1]["epoch"] == epoch:
            expected.pop()
        expected.append(row)
    result = fit(task, plan, seed=5)
    assert result.status == "finished"
    assert len(result.rows) == len(expected) - 1 >= 3
    for name, value in expected[0].items():
        assert name in ("epoch", "steps", "samples") or result.initial[name] == pytest.approx(
            value, rel=1e-12
        )
    for i, (row, hand) in enumerate(zip(result.rows, expected[1:], strict=True), start=1):
        assert {name: row[name] for name in hand} == pytest.approx(hand, rel=1e-9)
        least = min(expected[: i + 1], key=lambda r: r["full_gradient_norm"])
        assert row["min_full_gradient_norm"] == pytest.approx(least["full_gradient_norm"], rel=1e-9)
        assert row["loss_at_min_norm"] == pytest.approx(least["train_loss"], rel=1e-9)
        assert set(row) == set(store.COLUMNS)


def test_rows_are_those_of_adamw_by_hand_to_the_last_bit() -> None:
    task = small()
    x, y = task.train  # type: ignore[misc]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = task.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses: dict[int, float] = {}
    steps: dict[int, int] = dict.fromkeys(range(4), 0)
    for epoch, _, indices in batches_by_hand(SIZES, 96, seed=3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[indices]), y[indices]).backward()
        optimizer.step()
        steps[epoch] += 1
        losses[epoch] = nn.functional.cross_entropy(model(x), y).item()
    result = fit(task, SIZES, seed=3, optimizer=ADAMW)
    assert [row["train_loss"] for row in result.rows] == list(losses.values())
    assert same(result.model.state_dict(), model.state_dict())
    assert [row["steps"] for row in result.rows] == list(np.cumsum(list(steps.values())))
    assert {row["lr"] for row in result.rows} == {None}  # the optimizer's own business


def test_seconds_grow_and_a_missing_set_is_none() -> None:
    rows = fit(small(test=None), EPOCHS, seed=0).rows
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0
    assert all(row["test_loss"] is None and row["test_accuracy"] is None for row in rows)
    assert all(row["validation_loss"] is not None for row in rows)


def test_the_seed_decides_all_and_torchs_random_state_is_left_as_found() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = fit(noisy(), EPOCHS, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = fit(noisy(), EPOCHS, seed=7), fit(noisy(), EPOCHS, seed=8)
    assert without_seconds(one.rows) == without_seconds(again.rows)
    assert one.initial != other.initial


def test_the_random_state_is_left_as_found_by_a_failure_too() -> None:
    before = torch.get_rng_state()
    with pytest.raises(Stop):
        fit(noisy(), EPOCHS, seed=7, on_epoch=stop_after(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_fields_lead_a_hyperparameter_to_where_the_optimizer_keeps_it() -> None:
    plan = Plan(epochs=2, batch_size=32, lr=0.1, beta=s.StepDecay(0.8, factor=0.5, every=1))
    seen = []

    class Spy(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            seen.append(self.param_groups[0]["momentum"])
            return super().step(closure)

    fit(small(), plan, seed=0, optimizer=Spy, fields={"beta": "momentum"})
    assert seen == [0.8] * 3 + [0.4] * 3


# ------------------------------------------------------------------------------------- resuming

KINDS: dict[str, tuple[Callable[[], Task], Plan, Callable[..., Any]]] = {
    "qhm": (small, EPOCHS, QHM),
    "steps": (small, STEPS, QHM),
    "noise, BatchNorm, AdamW": (noisy, SIZES, ADAMW),
}


@pytest.fixture(params=KINDS, ids=str)
def kind(request: pytest.FixtureRequest) -> tuple[Task, Plan, Callable[..., Any]]:
    make, plan, optimizer = KINDS[request.param]
    return make(), plan, optimizer


def test_a_saved_and_an_unsaved_run_are_equal(kind: Any, tmp_path: Path) -> None:
    task, plan, optimizer = kind
    saved = fit(task, plan, seed=0, optimizer=optimizer, out=tmp_path / "run")
    unsaved = fit(task, plan, seed=0, optimizer=optimizer)
    assert without_seconds(saved.rows) == without_seconds(unsaved.rows)
    assert same(saved.model.state_dict(), unsaved.model.state_dict())
    record = store.read(tmp_path / "run")
    assert (record.status, record.rows, record.plan) == ("finished", saved.rows, plan)
    assert record.initial == saved.initial


def test_a_run_interrupted_after_every_epoch_is_the_uninterrupted_one(
    kind: Any, tmp_path: Path
) -> None:
    task, plan, optimizer = kind
    train = functools.partial(fit, task, plan, seed=0, optimizer=optimizer)
    whole = train(out=tmp_path / "whole")
    for epoch in range(len(whole.rows)):  # and on from there
        with pytest.raises(Stop):
            train(out=tmp_path / "parts", on_epoch=stop_after(epoch))
        assert len(store.read(tmp_path / "parts").rows) == epoch + 1
    parts = train(out=tmp_path / "parts")
    assert same(left_by(tmp_path / "whole"), left_by(tmp_path / "parts"))
    assert same(whole.model.state_dict(), parts.model.state_dict())
    assert without_seconds(whole.rows) == without_seconds(parts.rows)


@pytest.mark.parametrize("moment", ["measured", "row", "checkpoint", "end"])
def test_a_run_that_fails_between_two_files_goes_on_all_the_same(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # "noise": a start without a checkpoint must not inherit the random state of another moment.
    train = functools.partial(fit, noisy(), SIZES, seed=0, optimizer=ADAMW)
    train(out=tmp_path / "whole")
    name = {"measured": "create", "row": "append_row", "checkpoint": "save_checkpoint"}
    real = getattr(store, name.get(moment, "finish"))

    def fails(*args: Any, **kwargs: Any) -> None:
        if moment in ("measured", "row"):  # done, and then the power goes
            real(*args, **kwargs)
        raise Stop

    monkeypatch.setattr(store, name.get(moment, "finish"), fails)
    with pytest.raises(Stop):
        train(out=tmp_path / "parts")
    monkeypatch.undo()
    train(out=tmp_path / "parts")
    assert same(left_by(tmp_path / "whole"), left_by(tmp_path / "parts"))


def test_a_run_recorded_as_failed_before_its_first_epoch_is_trained(tmp_path: Path) -> None:
    # as the runner records it: no measurement, no checkpoint
    what = store.identity(
        task="custom", model="custom", optimizer=QHM, plan=EPOCHS, seed=0,
        label="", panel="", experiment="",
    )  # fmt: skip
    store.create(tmp_path / "run", what, {})
    store.finish(tmp_path / "run", "failed", "no data")
    fit(small(), EPOCHS, seed=0, out=tmp_path / "run")
    fit(small(), EPOCHS, seed=0, out=tmp_path / "new")
    assert same(left_by(tmp_path / "run"), left_by(tmp_path / "new"))
    assert store.read(tmp_path / "run").error is None


def test_a_resumed_run_is_running_until_it_ends(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        fit(small(), EPOCHS, seed=0, out=tmp_path / "run", on_epoch=stop_after(0))
    store.finish(tmp_path / "run", "failed", "killed")
    seen = []
    fit(
        small(), EPOCHS, seed=0, out=tmp_path / "run",
        on_epoch=lambda row: seen.append(store.read(tmp_path / "run").status),
    )  # fmt: skip
    assert seen == ["running", "running", "finished"]


@pytest.mark.parametrize("left", [b'{"epoch": 2, "st', b'{"epoch": 2}\n', b"\x00" * 40, b"\xff\n"])
def test_a_torn_last_line_is_dropped(left: bytes, tmp_path: Path) -> None:
    fit(small(), EPOCHS, seed=0, out=tmp_path / "whole")
    with pytest.raises(Stop):
        fit(small(), EPOCHS, seed=0, out=tmp_path / "torn", on_epoch=stop_after(1))
    with open(tmp_path / "torn" / "epochs.jsonl", "ab") as file:
        file.write(left)
    assert len(store.read(tmp_path / "torn").rows) == 2
    fit(small(), EPOCHS, seed=0, out=tmp_path / "torn")
    assert same(left_by(tmp_path / "whole"), left_by(tmp_path / "torn"))


def test_rows_past_the_checkpoint_are_cut(tmp_path: Path) -> None:
    fit(small(), EPOCHS, seed=0, out=tmp_path / "whole")
    with pytest.raises(Stop):
        fit(small(), EPOCHS, seed=0, out=tmp_path / "run", on_epoch=stop_after(1))
    row = {**store.read(tmp_path / "run").rows[-1], "epoch": 2, "train_loss": 99.0}
    store.append_row(tmp_path / "run", row)
    fit(small(), EPOCHS, seed=0, out=tmp_path / "run")
    assert same(left_by(tmp_path / "whole"), left_by(tmp_path / "run"))


def test_rows_lost_before_the_checkpoint_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        fit(small(), EPOCHS, seed=0, out=tmp_path / "run", on_epoch=stop_after(2))
    path = tmp_path / "run" / "epochs.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:1]))
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match=r"epochs\.jsonl has 1 rows, but the checkpoint .* 3 epo"):
        fit(small(), EPOCHS, seed=0, out=tmp_path / "run")
    assert snapshot(tmp_path) == before


# What a subprocess trains that is killed: long enough to be killed, its folder told on the command
# line.
KILLED = Plan(epochs=16, batch_size=s.Exponential(4, factor=2, every=4), lr=0.1, beta=0.9,
              gamma=0.7)  # fmt: skip


def train_to_be_killed(folder: Path) -> None:
    fit(small(noisy_net), KILLED, seed=0, out=folder, on_epoch=lambda row: time.sleep(0.02))


def kill_at_a_random_moment(folder: Path, generator: random.Random) -> None:
    code = (
        "import sys, pathlib, test_training as t; t.train_to_be_killed(pathlib.Path(sys.argv[1]))"
    )
    rows = len(store.read(folder).rows) if (folder / "run.json").exists() else 0
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        cwd=Path(__file__).parent,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},  # as for any resume
    )
    while child.poll() is None and (
        not (folder / "run.json").exists() or len(store.read(folder).rows) <= rows
    ):
        time.sleep(0.01)
    time.sleep(generator.uniform(0, 0.05))
    child.kill()
    assert child.wait() == -signal.SIGKILL, "it ended before it was killed"


@pytest.mark.parametrize("kills", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_as_if_nothing_had_been(kills: int, tmp_path: Path) -> None:
    generator = random.Random(time.time_ns())
    for _ in range(kills):
        kill_at_a_random_moment(tmp_path / "killed", generator)
    assert store.read(tmp_path / "killed").status == "running"
    train_to_be_killed(tmp_path / "killed")
    train_to_be_killed(tmp_path / "whole")
    assert same(left_by(tmp_path / "whole"), left_by(tmp_path / "killed"))
    assert sorted(os.listdir(tmp_path / "killed")) == sorted(os.listdir(tmp_path / "whole"))


def train_in_a_fork(folder: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    fit(small(noisy_net), KILLED, seed=0, out=folder)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform == "win32", reason="processes are forked from a server")
def test_fifty_runs_killed_anywhere_end_as_the_uninterrupted_one(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["batchramp.training", "torch._dynamo", __name__])
    generator, threads = random.Random(time.time_ns()), torch.get_num_threads()
    train = functools.partial(fit, small(noisy_net), KILLED, seed=0)
    started = time.monotonic()
    train(out=tmp_path / "whole")
    an_epoch = (time.monotonic() - started) / KILLED.length
    whole, kills, begun = left_by(tmp_path / "whole"), 0, set()
    for attempt in range(500):
        if kills == 50:
            break
        folder = tmp_path / str(attempt)
        child = context.Process(target=train_in_a_fork, args=(folder, threads))
        rows = generator.randrange(KILLED.length)
        child.start()
        while child.is_alive() and lines_of(folder / "epochs.jsonl") < rows:
            time.sleep(an_epoch / 5)
        time.sleep(generator.uniform(0, an_epoch))
        child.kill()
        child.join()
        if child.exitcode == 0:  # it had ended
            continue
        assert child.exitcode == -signal.SIGKILL
        kills += 1
        begun.add(lines_of(folder / "epochs.jsonl"))
        train(out=folder)
        assert same(left_by(folder), whole)
        shutil.rmtree(folder)
    assert kills == 50
    assert len(begun) > 8  # killed at many places indeed


def lines_of(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


# ------------------------------------------------------------------------------------ endings


def linear() -> Task:
    """A linear regression, which any lr that is too large makes explode."""
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    loss = nn.functional.mse_loss
    return Task(model=lambda: nn.Linear(3, 1), train=(x, x[:, :1]), test=None, loss_fn=loss)


def test_a_diverged_run_stops_keeps_its_rows_and_is_not_trained_again(tmp_path: Path) -> None:
    plan = Plan(epochs=200, batch_size=16, lr=10.0, beta=0.0, gamma=0.0)
    result = fit(linear(), plan, seed=0, out=tmp_path / "run")
    assert result.status == store.read(tmp_path / "run").status == "diverged"
    assert 1 < len(result.rows) < 100
    last = result.rows[-1]
    assert None in (last["train_loss"], last["full_gradient_norm"])
    norms = [result.initial["full_gradient_norm"], *(r["full_gradient_norm"] for r in result.rows)]
    assert last["min_full_gradient_norm"] == min(norm for norm in norms if norm is not None)
    assert result.rows[-2]["train_loss"] is not None
    before = snapshot(tmp_path)
    again = fit(linear(), plan, seed=0, out=tmp_path / "run", on_epoch=stop_after(0))
    assert (again.status, again.rows) == ("diverged", result.rows)
    assert snapshot(tmp_path) == before


def test_a_loss_that_is_not_finite_ends_an_epoch_early() -> None:
    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        loss = nn.functional.mse_loss(outputs, targets)
        # Infinite in training, not when measured: only the look inside the epoch can see it.
        return loss if len(targets) == 64 or not outputs.requires_grad else loss + math.inf

    x = torch.randn(640, 3, generator=torch.Generator().manual_seed(0))
    x = x[:64].repeat(10, 1)
    task = Task(
        model=lambda: nn.Linear(3, 1),
        train=(x, x[:, :1]),
        test=None,
        loss_fn=lambda o, t: loss_fn(o, t) if len(t) < 640 else nn.functional.mse_loss(o, t),
    )
    plan = Plan(epochs=3, batch_size=2, lr=0.01, beta=0.0, gamma=0.0)
    result = fit(task, plan, seed=0)
    assert result.status == "diverged"
    assert [row["steps"] for row in result.rows] == [100]  # of 320
    assert result.rows[0]["samples"] == 200


def test_a_collapsed_run_stops_after_three_epochs_and_is_resumable(tmp_path: Path) -> None:
    class Dead(nn.Module):
        """Answers the first class whatever comes, once its weight has moved."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            if self.weight == 0:
                return x[:, :3] + self.weight
            return torch.tensor([9.0, 0.0, 0.0]).repeat(len(x), 1) + x[:, :3] * self.weight

    plan = Plan(epochs=9, batch_size=32, lr=1e-3, beta=0.9, gamma=0.7)
    train = functools.partial(fit, small(Dead), plan, seed=0, out=tmp_path / "run")
    for epoch in range(2):
        with pytest.raises(Stop):
            train(on_epoch=stop_after(epoch))
    result = train()
    assert (result.status, len(result.rows)) == ("collapsed", 3)
    assert [row["at_chance"] for row in result.rows] == [True] * 3
    before = snapshot(tmp_path)
    assert (again := train(on_epoch=stop_after(0))).rows == result.rows
    assert again.status == "collapsed"
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(("lr", "status"), [(0.5, "finished"), (1e-9, "collapsed")])
def test_a_classifier_that_starts_at_chance_has_all_its_epochs_to_leave(
    lr: float, status: str
) -> None:
    def biased() -> nn.Module:
        model = nn.Linear(6, 3)
        with torch.no_grad():
            model.bias.copy_(torch.tensor([6.0, 0.0, 0.0]))
        return model

    plan = Plan(epochs=12, batch_size=32, lr=s.Warmup(s.Constant(lr), length=9), beta=0, gamma=0)
    result = fit(small(biased), plan, seed=0)
    assert result.initial["at_chance"]
    assert [row["at_chance"] for row in result.rows[:3]] == [True] * 3
    assert (result.status, len(result.rows)) == (status, 12)


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = fit(small(), EPOCHS, seed=0, out=tmp_path / "run")
    before = snapshot(tmp_path)
    second = fit(small(), EPOCHS, seed=0, out=tmp_path / "run", on_epoch=stop_after(0))
    assert first.rows == second.rows
    assert same(first.model.state_dict(), second.model.state_dict())
    assert snapshot(tmp_path) == before


def test_a_finished_run_without_its_checkpoint_is_refused_and_kept(tmp_path: Path) -> None:
    fit(small(), EPOCHS, seed=0, out=tmp_path / "run")
    (tmp_path / "run" / "checkpoint.pt").unlink()
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is missing, and the run has finished"):
        fit(small(), EPOCHS, seed=0, out=tmp_path / "run")
    assert snapshot(tmp_path) == before


# ------------------------------------------------------------------------------------ refusals


def refused(folder: Path, match: str, **changes: Any) -> None:
    """Refused in one line, with everything on disk as it was."""
    arguments: dict[str, Any] = {"task": small(), "plan": EPOCHS, "seed": 0, "out": folder / "run"}
    before = snapshot(folder)
    with pytest.raises(ValueError, match=match) as raised:
        fit(**{**arguments, **changes})
    assert "\n" not in str(raised.value)
    assert snapshot(folder) == before


def test_another_run_is_refused_in_the_folder_of_one(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        fit(small(), EPOCHS, seed=0, out=tmp_path / "run", on_epoch=stop_after(1))
    refused(tmp_path, r"^seed differs .*there 0, here 1", seed=1)
    refused(tmp_path, r"^plan differs .*Exponential.*Plan\(epochs=4, batch_size=Constant\(8\)",
            plan=Plan(epochs=4, batch_size=8, lr=0.1))  # fmt: skip
    refused(tmp_path, "^optimizer differs .*there 'QHM', here 'partial|QHM",
            optimizer=functools.partial(QHM, weight_decay=0.1))  # fmt: skip
    refused(tmp_path, "^task differs .*there 'custom', here 'other'", task=small(name="other"))
    refused(tmp_path, "^model differs", task=small(model_name="other"))
    refused(tmp_path, "holds a run already", resume=False)


def test_another_run_of_the_same_names_is_refused_by_its_checkpoint(tmp_path: Path) -> None:
    def make(decay: float) -> Callable[..., Any]:
        return lambda params, **given: QHM(params, **given, weight_decay=decay)

    train = functools.partial(fit, plan=EPOCHS, seed=0, out=tmp_path / "run")
    with pytest.raises(Stop):
        train(small(), optimizer=make(0.0), on_epoch=stop_after(1))
    same_names = functools.partial(refused, tmp_path, optimizer=make(0.0))
    same_names("train data differ from those", task=small(train=blobs(95, 0)))
    samples = [(x, y) for x, y in zip(*blobs(95, 0), strict=True)]
    same_names("n differs: saved 96, here 95", task=small(train=samples))
    same_names("Missing key", task=small(lambda: nn.Linear(6, 3)))
    refused(tmp_path, "optimizer differs: saved .*'weight_decay': 0.0", optimizer=make(0.5))


class Bomb:
    """Pickled, it is a call of os.mkdir on whoever unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "damage",
    [b"", b"garbage", b"PK\x03\x04 not a zip", "half", "bomb", "keys", "format", "list", "tensor"],
    ids=str,
)
def test_a_damaged_or_malicious_checkpoint_is_refused(damage: Any, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        fit(small(), EPOCHS, seed=0, out=tmp_path / "run", on_epoch=stop_after(1))
    (tmp_path / "run" / "checkpoint.previous.pt").unlink()
    path = tmp_path / "run" / "checkpoint.pt"
    saved = torch.load(path, weights_only=True)
    if isinstance(damage, bytes):
        path.write_bytes(damage)
    elif damage == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "bomb":
        torch.save({**saved, "model": Bomb(tmp_path / "exploded")}, path)
    elif damage == "keys":
        torch.save({"format": store.FORMAT}, path)
    elif damage == "format":
        torch.save({**saved, "format": 99}, path)
    elif damage == "list":
        torch.save([1, 2], path)
    else:
        torch.save({**saved, "progress": torch.zeros(3), "rng": torch.zeros(3)}, path)
    refused(tmp_path, "checkpoint")
    assert not (tmp_path / "exploded").exists()


def test_the_bomb_explodes_where_files_are_unpickled(tmp_path: Path) -> None:
    torch.save(Bomb(tmp_path / "exploded"), tmp_path / "bomb.pt")
    torch.load(tmp_path / "bomb.pt", weights_only=False)
    assert (tmp_path / "exploded").exists()


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"format": 99}', '{"format": 1}'])
def test_a_damaged_run_file_is_refused(damage: str, tmp_path: Path) -> None:
    fit(small(), EPOCHS, seed=0, out=tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text(damage)
    refused(tmp_path, r"run\.json")


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    def on_epoch(row: dict[str, Any]) -> None:
        with pytest.raises(BlockingIOError, match="in use by another process"):
            fit(small(), EPOCHS, seed=0, out=tmp_path / "run")

    result = fit(small(), EPOCHS, seed=0, out=tmp_path / "run", on_epoch=on_epoch)
    assert store.read(tmp_path / "run").rows == result.rows


def test_foreign_files_are_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    refused(tmp_path, "new or empty folder")
    (tmp_path / "file").write_text("")
    refused(tmp_path, "must be a folder, got the file", out=tmp_path / "file")


@pytest.mark.parametrize("seed", [-1, True, 1.0, 2**32, "1", None])
def test_a_wrong_seed_is_refused(seed: Any, tmp_path: Path) -> None:
    refused(tmp_path, "^seed must be an integer >= 0 and below", seed=seed)


def test_a_plan_that_does_not_fit_the_optimizer_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "optimizer QHM cannot be made .*no hyperparameter.*'lr'", plan=SIZES)
    refused(tmp_path, "optimizer AdamW cannot be made .*beta", optimizer=torch.optim.AdamW)
    refused(tmp_path, "^lr is scheduled by the plan and given", optimizer=ADAMW,
            plan=Plan(epochs=1, batch_size=8, lr=0.1))  # fmt: skip
    refused(tmp_path, "Invalid weight_decay value: -1", plan=SIZES,
            optimizer=functools.partial(torch.optim.AdamW, weight_decay=-1))  # fmt: skip
    refused(tmp_path, "fields maps lr, beta or gamma, got 'alpha'", fields={"alpha": "lr"})
    assert list(tmp_path.iterdir()) == []


def test_scheduled_starts_at_the_plans_first_values() -> None:
    parameter = torch.zeros(1, requires_grad=True)
    group = scheduled(QHM, [parameter], EPOCHS).optimizer.param_groups[0]
    assert (group["lr"], group["beta"], group["gamma"]) == (0.3, 0.9, 0.7)


def test_rows_are_strict_json(tmp_path: Path) -> None:
    plan = Plan(epochs=200, batch_size=16, lr=10.0, beta=0.0, gamma=0.0)
    fit(linear(), plan, seed=0, out=tmp_path / "run")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    for line in (tmp_path / "run" / "epochs.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)


def test_adams_first_beta_is_planned_through_fields() -> None:
    plan = Plan(epochs=2, batch_size=8, beta=s.Piecewise({0: 0.5, 1: 0.75}))
    seen = []
    make = functools.partial(torch.optim.AdamW, lr=0.01, betas=(0.9, 0.95))

    def watched(parameters: Any) -> torch.optim.Optimizer:
        optimizer = make(parameters)
        optimizer.register_step_pre_hook(
            lambda optimizer, *_: seen.append(optimizer.param_groups[0]["betas"])
        )
        return optimizer

    fit(small(), plan, seed=0, optimizer=watched, fields={"beta": ("betas", 0)})
    assert set(seen) == {(0.5, 0.95), (0.75, 0.95)}
    with pytest.raises(ValueError, match=r"map what it calls otherwise, as in fields="):
        fit(small(), plan, seed=0, optimizer=make)


def test_a_model_in_place_of_its_maker_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model must make a new model, .* got a Linear"):
        Task(torch.nn.Linear(2, 2), small().train, None, torch.nn.functional.cross_entropy)


# --------------------------------------------------------------------------- constants along a run


def test_a_run_measures_its_constants_when_asked(tmp_path: Path) -> None:
    task = tasks.load("quadratic")
    plan = Plan(epochs=3, batch_size=16, lr=0.05, beta=0.9, gamma=0.7)
    plain = fit(task, plan, seed=0)
    found = fit(task, plan, seed=0, constants=True, out=tmp_path / "run")
    assert not set(store.CONSTANTS) & set(plain.rows[0])
    without = [{k: v for k, v in row.items() if k not in store.CONSTANTS} for row in found.rows]
    assert [timeless(row) for row in without] == [timeless(row) for row in plain.rows]

    # The gradient of f_i is that of f, plus z_i: one secant for all i, at most L = 2.
    assert found.initial["max_secant"] is None
    for row in found.rows:
        assert 0 < row["max_secant"] <= 2
        assert row["max_gradient_norm"] <= task.problem.gradient_bound  # type: ignore[union-attr]
    last = found.model.state_dict()["x"]
    losses = (last**2 / (1 + last**2)).sum() + task.train[0] @ last  # type: ignore[index]
    assert found.rows[-1]["max_loss"] == pytest.approx(float(losses.max()), rel=1e-12)

    record = store.read(tmp_path / "run")
    assert record.rows == found.rows
    assert (record.n, record.problem) == (256, asdict(task.problem))  # type: ignore[call-overload]


def test_constants_go_on_after_an_interruption(tmp_path: Path) -> None:
    task = tasks.load("quadratic")
    plan = Plan(epochs=4, batch_size=16, lr=0.05, beta=0.9, gamma=0.7)
    whole = fit(task, plan, seed=0, constants=True)

    def stop(row: dict[str, Any]) -> None:
        if row["epoch"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(task, plan, seed=0, constants=True, out=tmp_path, on_epoch=stop)
    resumed = fit(task, plan, seed=0, constants=True, out=tmp_path)
    assert [timeless(row) for row in resumed.rows] == [timeless(row) for row in whole.rows]


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "seconds"}
