"""What breaks while a run is trained: it goes on to where the uninterrupted one ends."""

import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from injected import (
    PLAN,
    STRIKES,
    Fault,
    context,
    counted,
    failing,
    goes_on,
    killed_in,
    many,
    one_line,
    operations,
    train,
)
from test_training import (
    Stop,
    left_by,
    noisy_net,
    same,
    small,
    snapshot,
    stop_after,
    without_seconds,
)

from batchramp import Plan, report, store
from batchramp.experiments import Run, run_all
from batchramp.experiments.vectorised import Member, train_together
from batchramp.training import fit

posix = pytest.mark.skipif(sys.platform == "win32", reason="processes are forked from a server")


def spread(count: int, places: int) -> list[tuple[int, float]]:
    """``count`` places of so many, each with a part of a write: all, if there are enough."""
    step = max(1, places // count)
    found = [(at % places, (at // places) / 4) for at in range(0, count * step, step)]
    return found if step == 1 else [(at, 0.5) for at, _ in found]


# ------------------------------------------------------------------------------------ killed


@posix
@many(3, 90, 900)
def test_a_run_killed_at_any_operation_goes_on(count: int, whole: Any, tmp_path: Path) -> None:
    left, _, names = whole
    done = operations(train, tmp_path / "counted")
    assert {"open", "write", "fsync", "replace", "mkdir", "step"} <= set(done)
    for at, part in spread(count, len(done)):
        folder = tmp_path / f"{at} {part}"
        assert killed_in(train, folder, Fault("kill", at, part))
        if (folder / "run.json").exists():
            store.read(folder)
        goes_on(folder, left, names)
        shutil.rmtree(folder)


@posix
@many(1, 10, 100)
def test_a_run_killed_again_and_again_goes_on(count: int, whole: Any, tmp_path: Path) -> None:
    left, _, names = whole
    generator = random.Random(count)
    for number in range(count):
        folder, kills = tmp_path / str(number), 0
        while kills < 4 and killed_in(train, folder, Fault("kill", generator.randrange(9, 50))):
            kills += 1
        goes_on(folder, left, names)


def _together(folder: Path) -> None:
    plans = [Plan(epochs=3, batch_size=32, lr=lr, beta=0.9, gamma=0.7) for lr in (0.1, 0.2)]
    train_together(small(), [Member(p, 0, folder / str(i)) for i, p in enumerate(plans)])


@posix
@many(1, 20, 150)
def test_runs_trained_together_and_killed_go_on(count: int, tmp_path: Path) -> None:
    _together(tmp_path / "whole")
    done = operations(_together, tmp_path / "counted")
    for at, part in spread(count, len(done)):
        folder = tmp_path / f"{at} {part}"
        killed_in(_together, folder, Fault("kill", at, part))  # its threads come in any order
        _together(folder)
        for name in ("0", "1"):
            ours, theirs = left_by(folder / name), left_by(tmp_path / "whole" / name)
            assert ours[0] == theirs[0] == "finished"
            # Members that stand at different epochs catch up alone, in sums of another order.
            for a, b in zip(ours[2], theirs[2], strict=True):
                assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-5)


def _report(folder: Path) -> None:
    report.write(folder)


@posix
@many(1, 10, 30)
def test_a_report_killed_leaves_the_old_page_or_the_new_one(
    count: int, whole: Any, tmp_path: Path
) -> None:
    shutil.copytree(whole[1], tmp_path / "runs" / "a")
    _report(tmp_path / "runs")
    page = (tmp_path / "runs" / "report.html").read_bytes()
    done = operations(_report, tmp_path / "runs")
    shutil.copytree(whole[1], tmp_path / "runs" / "b")
    before = snapshot(tmp_path / "runs" / "a")
    _report(tmp_path / "runs")
    new = (tmp_path / "runs" / "report.html").read_bytes()
    for at, part in spread(count, len(done)):
        (tmp_path / "runs" / "report.html").write_bytes(page)
        assert killed_in(_report, tmp_path / "runs", Fault("kill", at, part))
        assert (tmp_path / "runs" / "report.html").read_bytes() in (page, new)
        assert snapshot(tmp_path / "runs" / "a") == before
    _report(tmp_path / "runs")
    assert (tmp_path / "runs" / "report.html").read_bytes() == new


# ------------------------------------------------------------------------ the system says no


@many(6, 150, 900)
def test_what_the_system_refuses_stops_a_run_that_goes_on_later(
    count: int, whole: Any, tmp_path: Path
) -> None:
    left, _, names = whole
    done = operations(train, tmp_path / "counted")
    faults = [
        Fault(kind, at, (at % 3) / 2, lasting)
        for kind, operations_ in STRIKES.items()
        for lasting in (False, True)
        for at, name in enumerate(done)
        if name in operations_
    ]
    random.Random(0).shuffle(faults)
    while len(faults) < count:
        faults += faults
    for number, fault in enumerate(faults[:count]):
        folder = tmp_path / str(number)
        with failing(fault, folder) as layer:
            train(folder)
        assert layer.struck, fault
        if (folder / "run.json").exists():
            store.read(folder)
        goes_on(folder, left, names)
        shutil.rmtree(folder)


def test_a_finished_run_is_read_where_only_its_lock_can_be_written(whole: Any) -> None:
    _, folder, _ = whole
    before = snapshot(folder)
    with failing(Fault("EROFS", 0, lasting=True), folder):
        assert train(folder).status == "finished"
    assert snapshot(folder) == before


@many(2, 8, 40)
def test_a_clock_that_jumps_changes_nothing(
    count: int, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, _, names = whole
    generator = random.Random(count)
    for number in range(count):
        folder = tmp_path / str(number)
        with monkeypatch.context() as patched:
            patched.setattr(time, "time", lambda: generator.uniform(0, 4e9))
            patched.setattr(time, "time_ns", lambda: generator.randrange(4 * 10**18))
            with pytest.raises(Stop):
                train(folder, on_epoch=stop_after(generator.randrange(4)))
            for name in os.listdir(folder):
                os.utime(folder / name, (generator.uniform(0, 4e9),) * 2)
            goes_on(folder, left, names)
        seconds = [0.0, *(row["seconds"] for row in store.read(folder).rows)]
        assert seconds == sorted(seconds)
        assert seconds[-1] < 60
        counted["clock"] += 1


# ------------------------------------------------------------------------ several processes


def _train_or_refused(folder: Path, start: Any) -> None:
    torch.set_num_threads(1)
    start.wait()
    try:
        train(folder)
    except BlockingIOError as error:
        one_line(error)
        raise SystemExit(3) from None


@posix
@many(1, 6, 40)
def test_two_writers_on_one_folder_are_one_and_a_refusal(
    count: int, whole: Any, tmp_path: Path
) -> None:
    left, _, names = whole
    for number in range(count):
        folder, start = tmp_path / str(number), context().Event()
        both = [context().Process(target=_train_or_refused, args=(folder, start)) for _ in "ab"]
        for process in both:
            process.start()
        start.set()
        for process in both:
            process.join(60)
        codes = sorted(process.exitcode for process in both)
        assert codes in ([0, 0], [0, 3]), codes  # the second may come when the first has ended
        assert same(left_by(folder), left)
        assert sorted(os.listdir(folder)) == names
        counted["two writers"] += 1


@posix
@many(1, 5, 30)
def test_workers_that_die_take_their_run_alone(count: int, tmp_path: Path) -> None:
    plan = Plan(epochs=6, batch_size=32, lr=0.01, beta=0.9, gamma=0.7)
    runs = [Run(label, plan, "quadratic", 0) for label in "abc"]
    fit_alone = fit_rows(plan, tmp_path / "alone")
    generator = random.Random(count)
    for number in range(count):
        out, victim = tmp_path / str(number), generator.randrange(6)
        dead: list[str] = []

        def kill(run: Run, row: dict[str, Any], victim: int = victim, dead: Any = dead) -> None:
            if row["epoch"] == victim and not dead:
                dead.append(run.label)
                for child in multiprocessing.active_children():
                    assert child.pid is not None
                    os.kill(child.pid, generator.choice([signal.SIGKILL, signal.SIGSEGV]))

        outcome = run_all(runs, out, jobs=1, on_row=kill)
        assert set(outcome.statuses) <= {"finished", "failed"}
        assert outcome.statuses.count("failed") <= 1
        for _, error in outcome.errors:
            assert "\n" not in error
        assert run_all(runs, out).statuses == ("finished",) * 3
        for run in runs:
            assert without_seconds(store.read(out / run.folder).rows) == fit_alone
        counted["worker"] += 1


def fit_rows(plan: Plan, out: Path) -> list[dict[str, Any]]:
    from batchramp.experiments import tasks

    return without_seconds(fit(tasks.load("quadratic"), plan, seed=0, out=out).rows)


# -------------------------------------------------------------------- numbers that are none


def _in_data(value: float) -> Any:
    task = small(noisy_net)
    assert isinstance(task.train, tuple)
    inputs = task.train[0].clone()
    inputs[7, 2] = value
    return small(noisy_net, train=(inputs, task.train[1]))


def _in_loss(value: float, step: int) -> Any:
    steps = 0

    def loss_fn(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        nonlocal steps
        steps += outputs.requires_grad
        loss = torch.nn.functional.cross_entropy(outputs, targets)
        return loss * value if steps == step and outputs.requires_grad else loss

    return small(noisy_net, loss_fn=loss_fn)


def _in_gradient(value: float, step: int) -> Any:
    def make() -> torch.nn.Module:
        model, calls = noisy_net(), 0

        def strike(gradient: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            return gradient * value if calls == step else gradient

        next(model.parameters()).register_hook(strike)
        return model

    return small(make)


NOT_FINITE = [float("nan"), float("inf"), -float("inf")]


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize(
    "make",
    [_in_data, *(lambda v, k=k: _in_loss(v, k) for k in (4, 9)),
     *(lambda v, k=k: _in_gradient(v, k) for k in (4, 9))],
    ids=["data", "loss 4", "loss 9", "gradient 4", "gradient 9"],
)  # fmt: skip
def test_numbers_that_are_none_end_a_run_as_diverged(
    make: Callable[[float], Any], value: float, tmp_path: Path
) -> None:
    counted["not finite"] += 1
    result = fit(make(value), PLAN, seed=0, out=tmp_path / "run")
    assert result.status == "diverged"
    record = store.read(tmp_path / "run")
    assert (record.status, record.rows) == ("diverged", result.rows)
    before = snapshot(tmp_path)
    again = fit(make(value), PLAN, seed=0, out=tmp_path / "run", on_epoch=stop_after(0))
    assert again.rows == result.rows  # read, not trained
    assert snapshot(tmp_path) == before
