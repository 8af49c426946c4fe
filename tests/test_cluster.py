"""Runs on a Ray cluster: the same files as here, no run twice, a dead process's run goes on."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batchramp import Plan, store
from batchramp.experiments import Run, run_all
from batchramp.experiments.cluster import Cluster

PLAN = Plan(epochs=4, batch_size=32, lr=0.05, beta=0.9, gamma=0.7)
RUNS = [Run("a", PLAN, "quadratic", seed) for seed in range(6)]

warned_by_ray = pytest.mark.filterwarnings("ignore")  # of many kinds, when its processes end


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without cores and two machines of one core each, all of them on this one."""
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'batchramp[ray]'")
    from ray.cluster_utils import Cluster as Local

    try:
        local = Local(initialize_head=True, head_node_args={"num_cpus": 0})
        local.workers = [local.add_node(num_cpus=1) for _ in range(2)]
    except Exception as error:  # before anything of ours has run
        pytest.skip(f"Ray starts no cluster on this machine: {error}")
    yield local
    ray.shutdown()
    local.shutdown()


def rows(folder: Path) -> list[dict[str, Any]]:
    found = store.read(folder).rows
    return [{key: value for key, value in row.items() if key != "seconds"} for row in found]


def test_without_ray_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"^--ray needs Ray: pip install 'batchramp\[ray\]'$"):
        run_all(RUNS, tmp_path / "out", ray="auto")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@warned_by_ray
def test_runs_on_two_machines_leave_the_files_of_runs_here(cluster: Any, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    ends: list[int] = []
    bad = Run("bad", PLAN, "quadratic", 0)
    run_all([bad], tmp_path / "there")
    store.finish(tmp_path / "there" / bad.folder, "running")
    for name in store.CHECKPOINTS:
        (tmp_path / "there" / bad.folder / name).write_bytes(b"garbage")
    outcome = run_all(
        [*RUNS, bad], tmp_path / "there", ray=cluster.address,
        on_row=lambda run, row: seen.append((run.seed, row["epoch"])),
        on_end=lambda run, status: ends.append(run.seed),
    )  # fmt: skip
    assert outcome.statuses == (*["finished"] * 6, "failed")
    assert "checkpoint.pt is damaged" in outcome.errors[0][1]
    assert sorted(seen) == [(seed, epoch) for seed in range(6) for epoch in range(4)]
    assert sorted(ends) == [0, 0, 1, 2, 3, 4, 5]
    run_all(RUNS, tmp_path / "here")
    for run in RUNS:
        assert rows(tmp_path / "there" / run.folder) == rows(tmp_path / "here" / run.folder)


@pytest.mark.slow
@warned_by_ray
def test_runs_are_trained_together_there_too(cluster: Any, tmp_path: Path) -> None:
    started: list[int] = []
    outcome = run_all(
        RUNS, tmp_path, ray=cluster.address, vectorise=True,
        on_start=lambda group: started.append(len(group)),
    )  # fmt: skip
    assert outcome.statuses == ("finished",) * 6
    assert started == [6]


@pytest.mark.slow
@warned_by_ray
def test_a_dead_machine_s_runs_are_handed_out_again(cluster: Any, tmp_path: Path) -> None:
    plan = Plan(epochs=150, batch_size=4, lr=0.001, beta=0.9, gamma=0.7)
    given = [Run("long", plan, "quadratic", seed) for seed in range(2)]
    removed: list[int] = []
    seen: list[tuple[int, int]] = []

    def on_row(run: Run, row: dict[str, Any]) -> None:
        seen.append((run.seed, row["epoch"]))
        if not removed and {seed for seed, _ in seen} == {0, 1}:  # both machines are at work
            removed.append(run.seed)
            cluster.remove_node(cluster.workers.pop(), allow_graceful=False)

    outcome = run_all(given, tmp_path, ray=cluster.address, on_row=on_row)
    assert removed
    assert outcome.statuses == ("finished", "finished")
    assert len(set(seen)) == len(seen)  # what was trained is not trained again
    run_all(given, tmp_path / "here", jobs=2)
    for run in given:
        assert rows(tmp_path / run.folder) == rows(tmp_path / "here" / run.folder)


@pytest.mark.slow
@warned_by_ray
def test_an_address_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install 'batchramp[ray]'")
    with socket.socket() as silent:  # takes connections and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        for address in (f"127.0.0.1:{port}", "127.0.0.1:1", "nonsense"):
            began = time.monotonic()
            with pytest.raises(ValueError, match="cluster that answers, got") as raised:
                Cluster(address, None, tmp_path)
            assert time.monotonic() - began < 25
            assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_an_interrupt_ends_what_the_cluster_trains(cluster: Any, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom batchramp import Plan\n"
        "from batchramp.experiments import Run, run_all\n"
        "plan = Plan(epochs=100000, batch_size=32, lr=0.001, beta=0.9, gamma=0.7)\n"
        "run_all([Run('x', plan, 'quadratic', 0)], Path(sys.argv[1]), ray=sys.argv[2])\n"
    )
    child = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "runs"), cluster.address],
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )
    folder = tmp_path / "runs" / "x" / "seed-0"
    while not (folder / "epochs.jsonl").exists():
        assert child.poll() is None
        time.sleep(0.1)
    os.kill(child.pid, signal.SIGINT)
    assert child.wait(timeout=60) != 0
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            with store.lock(folder):
                return  # nobody trains there any more
        except BlockingIOError:
            time.sleep(0.2)
    pytest.fail("the cluster still trains")
