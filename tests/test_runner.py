"""Many runs: each in a process of its own, none of them twice, no failure taking others along."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from batchramp import QHM, Plan, store
from batchramp import schedules as s
from batchramp.experiments import Outcome, Run, run_all, runner, tasks
from batchramp.training import fit

PLAN = Plan(epochs=3, batch_size=s.Exponential(32, factor=2, every=1), lr=0.05, beta=0.9, gamma=0.7)


def runs(*labels: str, **changes: Any) -> list[Run]:
    values: dict[str, Any] = {"plan": PLAN, "task": "quadratic", "seed": 0, **changes}
    return [Run(label, **values) for label in labels]


def rows(folder: Path) -> list[dict[str, Any]]:
    found = store.read(folder).rows
    return [{key: value for key, value in row.items() if key != "seconds"} for row in found]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_runs_are_trained_in_processes_of_one_thread_and_come_in_the_order_given(
    tmp_path: Path,
) -> None:
    short, long = runs("short"), runs("long", plan=Plan(epochs=9, batch_size=4, lr=0.01, beta=0.9,
                                                        gamma=0.7))  # fmt: skip
    given = [*short, *long, *runs("exploding", plan=Plan(epochs=99, batch_size=64, lr=1e308,
                                                         beta=0, gamma=0))]  # fmt: skip
    seen: list[tuple[str, int]] = []
    ends: list[tuple[Run, str]] = []
    QHM([torch.zeros(1)], lr=0.1)  # torch sets a variable of its own at its first optimizer
    surroundings = dict(os.environ)
    outcome = run_all(
        given, tmp_path, jobs=2,
        on_row=lambda run, row: seen.append((run.label, row["epoch"])),
        on_end=lambda run, status: ends.append((run, status)),
    )  # fmt: skip
    assert outcome == Outcome(("finished", "finished", "diverged"), ())
    assert dict(os.environ) == surroundings
    assert [epoch for label, epoch in seen if label == "long"] == list(range(9))
    assert sorted((run.label, status) for run, status in ends) == [
        ("exploding", "diverged"), ("long", "finished"), ("short", "finished"),
    ]  # fmt: skip
    record = store.read(tmp_path / "short" / "seed-0")
    assert record.environment["threads"] == 1
    assert (record.label, record.task, record.optimizer) == ("short", "quadratic", "QHM")
    fit(tasks.load("quadratic"), PLAN, seed=0, out=tmp_path / "alone")
    assert rows(tmp_path / "alone") == rows(record.folder)

    before = snapshot(tmp_path)
    seen.clear()
    assert run_all(given, tmp_path, on_row=lambda run, row: seen.append(("", 0))) == outcome
    assert seen == []
    assert snapshot(tmp_path) == before


def test_a_damaged_checkpoint_is_told_of_and_the_run_goes_on(tmp_path: Path) -> None:
    given = runs("a", "b")
    run_all(given, tmp_path)
    whole = rows(tmp_path / given[0].folder)
    store.finish(tmp_path / given[0].folder, "running")
    (tmp_path / given[0].folder / store.CHECKPOINTS[0]).write_bytes(b"garbage")
    warned: list[str] = []
    outcome = run_all(given, tmp_path, on_warning=warned.append)
    assert outcome == Outcome(("finished", "finished"), ())
    (line,) = warned
    assert line.startswith("a / seed 0: ")
    assert "checkpoint.pt is damaged" in line
    assert rows(tmp_path / given[0].folder) == whole


def test_data_that_cannot_be_had_are_said_once_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pooch

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(pooch, "retrieve", fail)
    monkeypatch.setenv("BATCHRAMP_DATA", str(tmp_path / "data"))
    given = [*runs("a", "b", task="cifar100"), *runs("c")]
    with pytest.raises(
        ValueError, match=r"cifar-100-binary\.tar\.gz is missing .*no route to host"
    ):
        run_all(given, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert run_all(given[2:], tmp_path / "out").statuses == ("finished",)


def test_a_failing_run_is_recorded_and_the_rest_go_on(tmp_path: Path) -> None:
    given = runs("a", "b", "c")
    run_all(given[1:2], tmp_path, jobs=1)
    whole = rows(tmp_path / "b" / "seed-0")
    store.finish(tmp_path / "b" / "seed-0", "running")
    for name in store.CHECKPOINTS:
        (tmp_path / "b" / "seed-0" / name).write_bytes(b"garbage")
    ends: dict[str, str] = {}
    outcome = run_all(
        given, tmp_path, jobs=2, on_end=lambda run, status: ends.update({run.label: status})
    )
    assert outcome.statuses == ("finished", "failed", "finished")
    ((failed, error),) = outcome.errors
    assert failed == given[1]
    assert "checkpoint.pt is damaged" in error
    assert ends == {"a": "finished", "b": "failed", "c": "finished"}
    record = store.read(tmp_path / "b" / "seed-0")
    assert (record.status, record.error) == ("failed", error)

    for name in store.CHECKPOINTS:
        (tmp_path / "b" / "seed-0" / name).unlink()
    assert run_all(given, tmp_path).statuses == ("finished",) * 3
    assert store.read(tmp_path / "b" / "seed-0").error is None
    assert rows(tmp_path / "b" / "seed-0") == whole


def test_a_killed_child_is_recorded_as_failed_and_the_rest_go_on(tmp_path: Path) -> None:
    given = runs("a", "b", plan=Plan(epochs=20, batch_size=16, lr=0.01, beta=0.9, gamma=0.7))
    killed: list[Run] = []

    def kill_the_first(run: Run, row: dict[str, Any]) -> None:
        if not killed:
            killed.append(run)
            (child,) = multiprocessing.active_children()
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)

    outcome = run_all(given, tmp_path, jobs=1, on_row=kill_the_first)
    other = next(run for run in given if run != killed[0])
    assert dict(zip(given, outcome.statuses, strict=True)) == {
        killed[0]: "failed",
        other: "finished",
    }
    assert "exit code -9" in outcome.errors[0][1]
    record = store.read(tmp_path / killed[0].folder)
    assert (record.status, record.error) == ("failed", outcome.errors[0][1])
    assert 0 < len(record.rows) < 20
    assert run_all(given, tmp_path).statuses == ("finished", "finished")
    assert rows(tmp_path / killed[0].folder) == rows(tmp_path / other.folder)  # labels aside


def test_an_interrupted_experiment_stops_its_children_and_continues(tmp_path: Path) -> None:
    given = runs("a", "b", "c", plan=Plan(epochs=10, batch_size=16, lr=0.01, beta=0.9, gamma=0.7))

    def interrupt(run: Run, row: dict[str, Any]) -> None:
        if row["epoch"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all(given, tmp_path, jobs=2, on_row=interrupt)
    assert multiprocessing.active_children() == []
    begun = {record.label: len(record.rows) for record in store.read_all(tmp_path)}
    assert max(begun.values()) >= 4
    seen: list[tuple[str, int]] = []
    outcome = run_all(
        given, tmp_path, jobs=2, on_row=lambda run, row: seen.append((run.label, row["epoch"]))
    )
    assert outcome.statuses == ("finished",) * 3
    assert len(seen) <= 3 * 10 - 4  # what was trained is not trained again
    fit(tasks.load("quadratic"), given[0].plan, seed=0, out=tmp_path / "alone")
    for run in given:
        assert rows(tmp_path / run.folder) == rows(tmp_path / "alone")


TWO = """
import json, sys
from pathlib import Path
from batchramp import Plan
from batchramp.experiments import Run, run_all

if __name__ == "__main__":
    vectorise = sys.argv[2] == "together"
    plan = Plan(epochs=6, batch_size=16, lr=0.01, beta=0.9, gamma=0.7)
    runs = [Run(f"x {seed % 4}", plan, "quadratic", seed) for seed in range(12)]
    print("ready", flush=True)
    sys.stdin.readline()
    outcome = run_all(runs, Path(sys.argv[1]), jobs=2, vectorise=vectorise,
                      on_row=lambda run, row: print(run.seed, row["epoch"], flush=True))
    print(json.dumps(outcome.statuses), flush=True)
"""


def started(script: Path, *arguments: Any) -> "subprocess.Popen[str]":
    """A runner that waits for a line."""
    process = subprocess.Popen(
        [sys.executable, str(script), *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def trained(said: str) -> list[tuple[int, int]]:
    pairs = [line.split() for line in said.splitlines() if not line.startswith("[")]
    return [(int(pair[0]), int(pair[1])) for pair in pairs if len(pair) == 2]


EVERY_EPOCH = [(seed, epoch) for seed in range(12) for epoch in range(6)]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["apart", "together"])
def test_two_runners_on_one_folder_never_run_a_run_twice(how: str, tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO)
    runners = [started(script, tmp_path / "runs", how) for _ in range(2)]
    for process in runners:  # start together
        go(process)
    said = [process.communicate()[0] for process in runners]
    assert [json.loads(text.splitlines()[-1]) for text in said] == [["finished"] * 12] * 2
    assert sorted(pair for text in said for pair in trained(text)) == EVERY_EPOCH
    for record in store.read_all(tmp_path / "runs"):
        assert [row["epoch"] for row in record.rows] == list(range(6))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["apart", "together"])
def test_a_killed_runner_s_runs_are_the_other_s_and_the_same_command_continues(
    how: str, tmp_path: Path
) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO)
    killed, other = (started(script, tmp_path / "runs", how) for _ in range(2))
    go(killed)
    assert killed.stdout is not None
    first = [killed.stdout.readline() for _ in range(3)]  # in the middle of its work
    go(other)
    killed.kill()
    said = "".join(first) + killed.communicate()[0]
    rest = other.communicate()[0]
    assert json.loads(rest.splitlines()[-1]) == ["finished"] * 12
    both = [*trained(said), *trained(rest)]
    # What its children wrote after it was killed, nobody was told; nothing came twice.
    assert len(set(both)) == len(both)
    assert 3 <= len(trained(said)) < len(EVERY_EPOCH)
    again = started(script, tmp_path / "runs", how)
    go(again)
    last = again.communicate()[0]
    assert trained(last) == []
    assert json.loads(last.splitlines()[-1]) == ["finished"] * 12
    for record in store.read_all(tmp_path / "runs"):
        assert [row["epoch"] for row in record.rows] == list(range(6))


def losses(folder: Path) -> list[float]:
    return [row["train_loss"] for row in store.read(folder).rows]


def grid(count: int, **changes: Any) -> list[Run]:
    """Runs that can be trained together: they differ in lr."""
    plans = [replace(PLAN, lr=0.01 * (i + 1)) for i in range(count)]
    return [runs(f"lr {i}", plan=plan, **changes)[0] for i, plan in enumerate(plans)]


def test_runs_are_trained_together_and_end_as_they_do_alone(tmp_path: Path) -> None:
    given = [*grid(3), *runs("alone", optimizer="SGD", fields=(("beta", "momentum"),),
                             plan=Plan(epochs=2, batch_size=32, lr=0.05, beta=0.5))]  # fmt: skip
    started: list[list[str]] = []
    seen: list[tuple[str, int]] = []
    ends: list[str] = []
    outcome = run_all(
        given, tmp_path / "together", jobs=1, vectorise=True,
        on_start=lambda group: started.append([run.label for run in group]),
        on_row=lambda run, row: seen.append((run.label, row["epoch"])),
        on_end=lambda run, status: ends.append(run.label),
    )  # fmt: skip
    assert outcome == Outcome(("finished",) * 4, ())
    assert started == [["lr 0", "lr 1", "lr 2"], ["alone"]]  # the most work first
    assert sorted(seen) == [
        *(("alone", epoch) for epoch in range(2)),
        *((f"lr {i}", epoch) for i in range(3) for epoch in range(3)),
    ]
    assert sorted(ends) == ["alone", "lr 0", "lr 1", "lr 2"]
    run_all(given, tmp_path / "apart", jobs=1)
    for run in given:
        together, apart = (losses(tmp_path / where / run.folder) for where in ("together", "apart"))
        assert together == pytest.approx(apart, rel=1e-5)  # float32, summed in another order
    assert run_all(given, tmp_path / "together", vectorise=True) == outcome  # nothing is trained


def test_one_bad_member_takes_none_with_it(tmp_path: Path) -> None:
    given = grid(3)
    run_all(given, tmp_path, vectorise=True)
    bad = tmp_path / given[1].folder
    for run in given:
        store.finish(tmp_path / run.folder, "running")
    for name in store.CHECKPOINTS:
        (bad / name).write_bytes(b"garbage")
    warned: list[str] = []
    outcome = run_all(given, tmp_path, vectorise=True, on_warning=warned.append)
    assert outcome.statuses == ("finished", "failed", "finished")
    ((failed, error),) = outcome.errors
    assert failed == given[1]
    assert "checkpoint.pt is damaged" in error
    (line,) = warned
    assert line.startswith("3 labels / seed 0: 3 runs failed together and are repeated one by one")
    assert store.read(bad).status == "failed"


def test_a_killed_group_goes_on_one_by_one(tmp_path: Path) -> None:
    plan = Plan(epochs=30, batch_size=16, lr=0.01, beta=0.9, gamma=0.7)
    given = runs("a", "b", "c", plan=plan)
    killed: list[int] = []
    warned: list[str] = []

    def kill_once(run: Run, row: dict[str, Any]) -> None:
        if not killed:
            (child,) = multiprocessing.active_children()
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
            killed.append(child.pid)

    outcome = run_all(given, tmp_path, vectorise=True, on_row=kill_once, on_warning=warned.append)
    assert outcome == Outcome(("finished",) * 3, ())
    (line,) = warned
    assert "exit code -9" in line
    for run in given:
        assert [row["epoch"] for row in rows(tmp_path / run.folder)] == list(range(30))


def test_a_member_that_another_process_trains_is_waited_for(tmp_path: Path) -> None:
    given = grid(3)
    held = store.lock(tmp_path / given[1].folder)
    held.__enter__()
    started: list[list[str]] = []

    def on_end(run: Run, status: str) -> None:
        if run == given[2]:
            held.__exit__(None, None, None)

    outcome = run_all(
        given, tmp_path, vectorise=True, on_end=on_end,
        on_start=lambda group: started.append([run.label for run in group]),
    )  # fmt: skip
    assert outcome.statuses == ("finished",) * 3
    assert started == [["lr 0", "lr 2"], ["lr 1"]]


def test_groups_are_split_for_every_job_and_the_most_work_is_first() -> None:
    many = grid(16)
    long = runs("long", plan=replace(PLAN, epochs=99, batch_size=8))
    assert [len(group) for group in runner._groups([*many, *long], True, 1)] == [1, 16]
    assert [len(group) for group in runner._groups([*many, *long], True, 3)] == [1, 8, 8]
    assert [len(group) for group in runner._groups(grid(7), True, 2)] == [7]
    assert [len(group) for group in runner._groups([*many, *long], False, 2)] == [1] * 17
    assert runner._groups([], True, 2) == []


def test_what_a_run_asks_of_its_task_reaches_it(tmp_path: Path) -> None:
    (run,) = runs("a", autocast=True, plan=Plan(epochs=1, batch_size=64, lr=0.01, beta=0, gamma=0))
    assert run_all([run], tmp_path).statuses == ("finished",)
    assert store.read(tmp_path / run.folder).options == {"autocast": True}
    with pytest.raises(ValueError, match="options differs"):
        run_all([replace(run, autocast=False)], tmp_path)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from batchramp import Plan
from batchramp.experiments import Run, run_all

if __name__ == "__main__":
    plan = Plan(epochs=60, batch_size=64, lr=0.01, beta=0.9, gamma=0.7)
    runs = [Run(label, plan, "quadratic", 0) for label in ("a", "b")]
    if len(sys.argv) > 2:  # a disk that takes no file of more bytes
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
    outcome = run_all(runs, Path(sys.argv[1]))
    print(*outcome.statuses, *(error for _, error in outcome.errors), sep="\\n")
"""


@pytest.mark.slow
def test_what_a_full_disk_stops_is_recorded_and_goes_on(tmp_path: Path) -> None:
    script = tmp_path / "full.py"
    script.write_text(FULL_DISK)

    def call(*arguments: Any) -> list[str]:
        command = [sys.executable, str(script), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return done.stdout.splitlines()

    run_folder = Path("a") / "seed-0"
    assert call(tmp_path / "whole") == ["finished", "finished"]
    whole = tmp_path / "whole" / run_folder
    size = {path.name: path.stat().st_size for path in whole.iterdir()}
    # Enough for a checkpoint and for some rows, not for all of them.
    limit = size["epochs.jsonl"] * 2 // 3
    assert size["run.json"] < limit
    assert size["checkpoint.pt"] < limit
    said = call(tmp_path / "full", limit)
    assert said[:2] == ["failed", "failed"]
    assert all(line.startswith("OSError: [Errno 27]") for line in said[2:])
    record = store.read(tmp_path / "full" / run_folder)
    assert record.status == "failed"
    assert 0 < len(record.rows) < 60
    assert call(tmp_path / "full") == ["finished", "finished"]
    assert rows(tmp_path / "full" / run_folder) == rows(whole)


def test_a_run_that_another_process_trains_is_waited_for(tmp_path: Path) -> None:
    first, second = runs("first", "second")
    held = store.lock(tmp_path / first.folder)
    held.__enter__()
    order: list[str] = []

    def on_end(run: Run, status: str) -> None:
        order.append(run.label)
        if run == second:
            held.__exit__(None, None, None)

    outcome = run_all([first, second], tmp_path, jobs=1, on_end=on_end)
    assert outcome.statuses == ("finished", "finished")
    assert order == ["second", "first"]


@pytest.mark.parametrize(
    ("given", "changes", "match"),
    [
        (runs("a"), {"jobs": 0}, "jobs must be an integer >= 1, got 0"),
        (runs("a"), {"jobs": -1}, "jobs must be an integer >= 1, got -1"),
        (runs("a"), {"jobs": True}, "jobs must be .*got True"),
        (runs("a"), {"jobs": 1.5}, "jobs must be .*got 1.5"),
        (runs("a", "a"), {}, "different folders, got a/seed-0 twice"),
        (runs("a b", "a-b"), {}, "different folders, got a-b/seed-0 twice"),
        (runs("a", options=(("nu", 0.7),)), {},
         "optimizer.nu is not an option of QHM: allowed are lr, beta"),
        (runs("a", optimizer="AdamW"), {}, "optimizer AdamW cannot be made .*beta"),
        (runs("a", optimizer="SGD", options=(("lr", 0.1),)), {}, "^lr is scheduled by the plan"),
        (runs("a", optimizer="SGD", options=(("momentum", -1),)), {}, "SGD.*momentum=-1"),
        (runs("a", options=(("weight_decay", float("nan")),)), {}, "weight_decay=nan"),
        (runs("a", options=(("weight_decay", "much"),)), {}, "weight_decay='much'"),
        (runs("a", device="tpu"), {}, "device must be cpu or cuda, as in cuda:0, got 'tpu'"),
        (runs("a", device="cuda:99"), {}, "device must be cpu or one that torch sees .*cuda:99"),
    ],
)  # fmt: skip
def test_a_wrong_experiment_is_refused_before_anything_is_written(
    given: list[Run], changes: dict[str, Any], match: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=match) as raised:
        run_all([*runs("good"), *given], tmp_path / "out", **changes)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_other_runs_is_refused_and_kept(tmp_path: Path) -> None:
    run_all(runs("a"), tmp_path, jobs=1)
    before = snapshot(tmp_path)
    other = Plan(epochs=5, batch_size=8, lr=0.1, beta=0, gamma=0)
    with pytest.raises(ValueError, match="plan differs from that of the run in"):
        run_all([*runs("b"), *runs("a", plan=other)], tmp_path)
    with pytest.raises(ValueError, match="optimizer differs"):
        run_all(runs("a", options=(("weight_decay", 0.1),)), tmp_path)
    path = tmp_path / "a" / "seed-0" / "run.json"
    content = path.read_bytes()
    path.write_text("{")
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        run_all(runs("a", "b"), tmp_path)
    path.write_bytes(content)
    assert snapshot(tmp_path) == before
