"""Trackers: what they keep is what the rows say, and none of them can lose a run."""

import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batchramp import Plan, store
from batchramp.experiments import Run, run_all
from batchramp.experiments.trackers import TRACKERS, Trackers, tracker

PLAN = Plan(epochs=3, batch_size=64, lr=0.05, beta=0.9, gamma=0.7)
RUNS = [Run("a", PLAN, "quadratic", seed, experiment="tracked") for seed in range(2)]


def begun_and_continued(name: str, out: Path) -> list[dict[str, float]]:
    """Trains both runs with a tracker, the first with an interruption. The rows on disk."""

    def interrupt(run: Run, row: dict[str, Any]) -> None:
        if row["epoch"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all(RUNS, out, trackers=[name], on_row=interrupt)
    warned: list[str] = []
    outcome = run_all(RUNS, out, trackers=[name], on_warning=warned.append)
    assert (outcome.statuses, warned) == (("finished", "finished"), [])
    rows = store.read(out / RUNS[0].folder).rows
    return [{key: row[key] for key in ("steps", "batch_size", "lr", "train_loss")} for row in rows]


class Spy:
    """Keeps what it is told; fails at the row of that number."""

    def __init__(self, fails_at: int = 10**9) -> None:
        self.fails_at, self.rows, self.ends = fails_at, [], []
        self.closed = False

    def row(self, run: Run, row: dict[str, Any]) -> None:
        self.rows.append((run.seed, row["epoch"]))
        if len(self.rows) == self.fails_at:
            raise OSError("no space left\non the tracker")

    def end(self, run: Run, status: str) -> None:
        self.ends.append((run.seed, status))

    def close(self) -> None:
        self.closed = True


def test_a_tracker_is_told_every_row_and_one_that_fails_is_dropped(tmp_path: Path) -> None:
    whole, failing = Spy(), Spy(fails_at=2)
    warned: list[str] = []
    outcome = run_all(RUNS, tmp_path, trackers=[failing, whole], on_warning=warned.append)
    assert outcome.statuses == ("finished", "finished")
    assert warned == ["tracker Spy is dropped: OSError: no space left on the tracker"]
    assert len(failing.rows) == 2
    assert not failing.ends
    assert sorted(whole.rows) == [(seed, epoch) for seed in range(2) for epoch in range(3)]
    assert sorted(whole.ends) == [(0, "finished"), (1, "finished")]
    assert whole.closed
    for run in RUNS:
        assert len(store.read(tmp_path / run.folder).rows) == 3


def test_what_a_tracker_missed_it_is_told_from_the_run_s_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spies: list[Spy] = []

    def opened(folder: Path) -> Spy:
        spies.append(Spy())
        return spies[-1]

    monkeypatch.setitem(TRACKERS, "spy", opened)
    run, other = RUNS
    trackers = Trackers(["spy"], tmp_path, pytest.fail)
    run_all([other], tmp_path)
    rows = store.read(tmp_path / other.folder).rows
    trackers.row(other, rows[1])  # the first has come while nobody listened
    assert spies[0].rows == [(1, 0), (1, 1)]
    trackers.close()
    run_all(RUNS, tmp_path, trackers=["spy"])  # another process: one run has ended, one begins
    assert spies[1].rows == [(1, 2), *((0, epoch) for epoch in range(3))]
    assert spies[1].ends == [(1, "finished"), (0, "finished")]
    run_all(RUNS, tmp_path, trackers=["spy"])
    assert (spies[2].rows, spies[2].ends) == ([], [])
    shutil.rmtree(tmp_path / run.folder)
    run_all(RUNS, tmp_path, trackers=["spy"])  # from the start again
    assert spies[3].rows == [(0, epoch) for epoch in range(3)]


def test_without_a_callback_a_dropped_tracker_is_a_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="tracker Spy is dropped: OSError"):
        run_all(RUNS[:1], tmp_path, trackers=[Spy(fails_at=1)])


@pytest.mark.parametrize("name", TRACKERS)
def test_a_package_that_is_missing_is_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=rf"pip install 'batchramp\[{name}\]'") as raised:
        run_all(RUNS, tmp_path / "out", trackers=[name])
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_an_unknown_tracker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tracker must be one of tensorboard, mlflow, wandb"):
        tracker("paper", tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_tensorboard_reads_back_the_rows(tmp_path: Path) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    rows = begun_and_continued("tensorboard", tmp_path)
    events = reading.EventAccumulator(str(tmp_path / "tensorboard" / RUNS[0].folder))
    events.Reload()
    for name in ("batch_size", "lr", "train_loss"):
        read = {event.step: event.value for event in events.Scalars(name)}
        assert read == pytest.approx({row["steps"]: row[name] for row in rows}, rel=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # its own, of many kinds
def test_mlflow_reads_back_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    rows = begun_and_continued("mlflow", tmp_path)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "tracked"]
    found = client.search_runs([experiment.experiment_id])
    assert len(found) == 2  # the interrupted run went on
    (run,) = [run for run in found if run.data.params["seed"] == "0"]
    assert (run.info.status, run.data.tags["status"]) == ("FINISHED", "finished")
    for name in ("batch_size", "lr", "train_loss"):
        history = client.get_metric_history(run.info.run_id, name)
        read = {metric.step: metric.value for metric in history}
        assert read == pytest.approx({row["steps"]: row[name] for row in rows})


def records(content: bytes) -> Iterator[bytes]:
    """Of a file in LevelDB's log format, as wandb writes it: 7 bytes, then blocks of 32 KiB."""
    at, whole = 7, b""
    while at + 7 <= len(content):
        left = -at % 32768
        if 0 < left < 7:  # too few for a header: the rest of a block is padding
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # full, or the last of several
            yield whole
            whole = b""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # its own, of many kinds
def test_wandb_keeps_a_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    rows = begun_and_continued("wandb", tmp_path)
    read: dict[str, dict[int, dict[str, str]]] = {}
    for path in sorted((tmp_path / "wandb").rglob("*.wandb")):
        identity = ""
        for data in records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.HasField("run"):
                identity = record.run.run_id
            if record.HasField("history"):
                items = {i.key or i.nested_key[0]: i.value_json for i in record.history.item}
                read.setdefault(identity, {})[int(items["_step"])] = items
    assert len(read) == 2  # the interrupted run went on under its id
    expected = {row["steps"]: row["train_loss"] for row in rows}
    found = [{s: float(items["train_loss"]) for s, items in of.items()} for of in read.values()]
    assert any(of == pytest.approx(expected) for of in found)
