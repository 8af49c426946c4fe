"""Trackers: sinks of the rows that a run leaves, each imported when it is asked for.

A tracker has three methods: ``row(run, row)`` for each epoch's row, ``end(run, status)`` and
``close()``. They are called in the process that hands runs out, not in those that train.

What a tracker was told is noted in its folder, and what it missed, such as the last row before an
interruption, it is told from the run's own file before what comes next.
"""

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, final

from batchramp import store
from batchramp.experiments.run import Run

__all__ = ["TRACKERS", "MLflow", "TensorBoard", "Trackers", "WandB", "tracker"]


def tracker(name: str, out: Path) -> Any:
    """The tracker of that name, which keeps what is its own in the folder ``out / name``.

    Raises:
        ValueError: no such tracker, or its package is not installed.
    """
    if name not in TRACKERS:
        raise ValueError(f"tracker must be one of {', '.join(TRACKERS)}, got {name!r}")
    return TRACKERS[name](Path(out) / name)


@final
class Trackers:
    """Those that have not failed: none of them can lose a run.

    Args:
        given: names of `TRACKERS`, or objects with a tracker's methods, which are told everything.
        out: the folder above those of the runs.
        warn: called with a line on a tracker that raised, and is dropped.
    """

    def __init__(self, given: Sequence[Any], out: Path, warn: Callable[[str], None]) -> None:
        self._out, self._warn = out, warn
        self._told = {
            tracker(one, out) if isinstance(one, str) else one: _Told(
                out / one / "told" if isinstance(one, str) else None
            )
            for one in given
        }

    def row(self, run: Run, row: Mapping[str, Any]) -> None:
        self._each(lambda sink, told: self._tell(sink, told, run, row))

    def end(self, run: Run, status: str) -> None:
        self._each(lambda sink, told: self._end(sink, told, run, status))

    def close(self) -> None:
        self._each(lambda sink, told: sink.close())

    def _tell(self, sink: Any, told: "_Told", run: Run, row: Mapping[str, Any]) -> None:
        epoch = row["epoch"]
        missed = self._rows(run)[told.rows(run) : epoch] if told.rows(run) < epoch else []
        for one in (*missed, row):
            sink.row(run, one)
            told.note(run, str(one["epoch"] + 1))

    def _end(self, sink: Any, told: "_Told", run: Run, status: str) -> None:
        if told.ended(run) == status:
            return
        for row in self._rows(run)[told.rows(run) :]:
            self._tell(sink, told, run, row)
        sink.end(run, status)
        told.note(run, status)

    def _rows(self, run: Run) -> Sequence[Mapping[str, Any]]:
        with suppress(OSError, ValueError):  # the run's own affair
            return store.read(self._out / run.folder).rows
        return []

    def _each(self, call: Callable[[Any, "_Told"], None]) -> None:
        for sink, told in list(self._told.items()):
            try:
                call(sink, told)
            except Exception as error:  # whatever it is, it is not the run's
                del self._told[sink]
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                self._warn(f"tracker {type(sink).__name__} is dropped: {reason}")


@final
class _Told:
    """For each run, how many rows a tracker was told of it, or the end that it was told."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._rows: dict[str, int] = {}
        self._ends: dict[str, str] = {}
        if path is not None and path.exists():
            for line in path.read_text().splitlines():
                folder, tab, what = line.partition("\t")
                if tab:
                    self._put(folder, what)

    def rows(self, run: Run) -> int:
        return self._rows.get(str(run.folder), 0)

    def ended(self, run: Run) -> str:
        return self._ends.get(str(run.folder), "")

    def note(self, run: Run, what: str) -> None:
        self._put(str(run.folder), what)
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "a") as file:
                file.write(f"{run.folder}\t{what}\n")

    def _put(self, folder: str, what: str) -> None:
        if what in store.STATUSES:
            self._ends[folder] = what
        elif what.isdecimal():
            self._rows[folder] = int(what)
            self._ends.pop(folder, None)


@final
class TensorBoard:
    """Event files, one folder a run: ``tensorboard --logdir OUT/tensorboard``; x is steps."""

    def __init__(self, folder: Path) -> None:
        _import("tensorboard", "tensorboard")
        self._folder = folder
        self._writers: dict[Run, Any] = {}

    def row(self, run: Run, row: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if run not in self._writers:
            self._writers[run] = SummaryWriter(self._folder / run.folder)
        for name, value in _numbers(row):
            self._writers[run].add_scalar(name, value, row["steps"])
        self._writers[run].flush()

    def end(self, run: Run, status: str) -> None:
        if run in self._writers:
            self._writers.pop(run).close()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()


@final
class MLflow:
    """Runs of MLflow, found again by the folder they are tagged with.

    They go where MLFLOW_TRACKING_URI says, else to a database in the folder.
    """

    def __init__(self, folder: Path) -> None:
        mlflow = _import("mlflow", "mlflow")
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            folder.mkdir(parents=True, exist_ok=True)
            uri = f"sqlite:///{folder.resolve() / 'mlflow.db'}"
        self._folder = folder.parent.resolve()
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        self._metric = mlflow.entities.Metric
        self._experiments: dict[str, str] = {}
        self._ids: dict[Run, str] = {}

    def row(self, run: Run, row: Mapping[str, Any]) -> None:
        if run not in self._ids:
            self._ids[run] = self._begun(run)
        metrics = [self._metric(name, value, 0, row["steps"]) for name, value in _numbers(row)]
        self._client.log_batch(self._ids[run], metrics=metrics)

    def end(self, run: Run, status: str) -> None:
        if run in self._ids:
            ended = "FAILED" if status == "failed" else "FINISHED"
            self._client.set_tag(self._ids[run], "status", status)
            self._client.set_terminated(self._ids.pop(run), ended)

    def close(self) -> None:
        for identity in self._ids.values():
            self._client.set_terminated(identity, "KILLED")
        self._ids.clear()

    def _begun(self, run: Run) -> str:
        name = run.experiment or self._folder.name
        if name not in self._experiments:
            known = self._client.get_experiment_by_name(name)
            self._experiments[name] = (
                self._client.create_experiment(name) if known is None else known.experiment_id
            )
        experiment = self._experiments[name]
        folder = str(self._folder / run.folder)
        query = "tags.folder = '" + folder.replace("'", "''") + "'"
        if found := self._client.search_runs([experiment], query, max_results=1):
            identity = found[0].info.run_id
            self._client.update_run(identity, status="RUNNING")
            return identity
        identity = self._client.create_run(
            experiment, run_name=run.title, tags={"folder": folder}
        ).info.run_id
        for key, value in _config(run).items():
            self._client.log_param(identity, key, value)
        return identity


@final
class WandB:
    """Runs of Weights & Biases, continued by their ids; WANDB_MODE=offline keeps them here."""

    def __init__(self, folder: Path) -> None:
        self._wandb = _import("wandb", "wandb")
        self._folder = folder
        self._runs: dict[Run, Any] = {}

    def row(self, run: Run, row: Mapping[str, Any]) -> None:
        if run not in self._runs:
            self._runs[run] = self._begun(run)
        self._runs[run].log(dict(_numbers(row)), step=row["steps"])

    def end(self, run: Run, status: str) -> None:
        if run in self._runs:
            ours = self._runs.pop(run)
            ours.summary["status"] = status
            ours.finish(exit_code=int(status == "failed"))

    def close(self) -> None:
        for ours in self._runs.values():
            ours.finish(exit_code=1)
        self._runs.clear()

    def _begun(self, run: Run) -> Any:
        self._folder.mkdir(parents=True, exist_ok=True)
        place = str(self._folder.parent.resolve() / run.folder)
        return self._wandb.init(
            project=run.experiment or self._folder.parent.resolve().name,
            id=_digest(place),
            name=run.title,
            config=_config(run),
            dir=str(self._folder),
            resume="allow",
            reinit="create_new",
            settings=self._wandb.Settings(silent=True, console="off"),
        )


TRACKERS: dict[str, Callable[[Path], Any]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WandB,
}


def _import(package: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        if sys.modules.get(package) is None and getattr(error, "name", "") == package:
            raise ValueError(
                f"--track {extra} needs the package {package}: pip install 'batchramp[{extra}]'"
            ) from None
        raise ValueError(f"--track {extra}: {package} cannot be imported: {error}") from None


def _numbers(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """A row's numbers; what was not measured or not finite is left out."""
    for name, value in row.items():
        if value is not None and name != "steps":
            yield name, float(value)


def _config(run: Run) -> dict[str, Any]:
    names = ("experiment", "panel", "label", "seed", "task", "model", "optimizer", "device")
    config = {name: getattr(run, name) for name in names}
    plan = {f"plan.{key}": str(value) for key, value in run.plan.to_dict().items()}
    return {**config, **dict(run.options), **plan}


def _digest(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()[:16]
