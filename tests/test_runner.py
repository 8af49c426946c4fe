"""Many runs: each in a process of its own, none of them twice, no failure taking others along."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from batchramp import QHM, Plan, store
from batchramp import schedules as s
from batchramp.experiments import Outcome, Run, run_all, tasks
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


def test_a_failing_run_is_recorded_and_the_rest_go_on(tmp_path: Path) -> None:
    given = runs("a", "b", "c")
    run_all(given[1:2], tmp_path, jobs=1)
    whole = rows(tmp_path / "b" / "seed-0")
    store.finish(tmp_path / "b" / "seed-0", "running")
    (tmp_path / "b" / "seed-0" / "checkpoint.pt").write_bytes(b"garbage")
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

    (tmp_path / "b" / "seed-0" / "checkpoint.pt").unlink()
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
    plan = Plan(epochs=6, batch_size=16, lr=0.01, beta=0.9, gamma=0.7)
    runs = [Run("x", plan, "quadratic", seed) for seed in range(5)]
    seen = []
    print("ready", flush=True)
    sys.stdin.readline()
    outcome = run_all(runs, Path(sys.argv[1]), jobs=2,
                      on_row=lambda run, row: seen.append((run.seed, row["epoch"])))
    print(json.dumps({"statuses": outcome.statuses, "seen": seen}))
"""


@pytest.mark.slow
def test_two_runners_on_one_folder_never_run_a_run_twice(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO)
    runners = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path / "runs")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    for runner in runners:  # start together
        assert runner.stdout is not None
        assert runner.stdout.readline() == "ready\n"
    for runner in runners:
        assert runner.stdin is not None
        runner.stdin.write("go\n")
        runner.stdin.flush()
    results = [json.loads(runner.communicate()[0]) for runner in runners]
    assert [result["statuses"] for result in results] == [["finished"] * 5] * 2
    trained = [tuple(at) for result in results for at in result["seen"]]
    assert sorted(trained) == [(seed, epoch) for seed in range(5) for epoch in range(6)]
    for seed in range(5):
        path = tmp_path / "runs" / "x" / f"seed-{seed}" / "epochs.jsonl"
        lines = path.read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == list(range(6))


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
