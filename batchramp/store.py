"""What a run leaves on disk, and nothing else knows the format.

A run is a folder:

``run.json``
    what was run (plan, task, model, optimizer, seed), where (versions, machine, threads), what was
    measured before the first step (``initial``) and how it stands (``status``).
``epochs.jsonl``
    one row an epoch, one line a row.
``checkpoint.pt``
    what it takes to go on from the last complete epoch; loaded with ``weights_only=True``.
``lock``
    held by the process that trains here.

Files are written to a temporary name, synced and renamed, so that a reader or a restart sees the
old file or the new one. Rows are appended and synced; a line torn by a crash is dropped when read.
"""

import json
import math
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from batchramp.plan import Plan

FORMAT = 1
STATUSES = ("running", "finished", "diverged", "collapsed", "failed")

# A row's columns. Losses, accuracies and norms are those at the end of the epoch; null where the
# task has no such set or the number is not finite.
COLUMNS = (
    "epoch",  # from 0
    "steps",  # taken since the start
    "samples",  # single-sample gradients taken since the start
    "seconds",  # spent in training steps since the start, measuring left out
    "batch_size",
    "lr",
    "beta",
    "gamma",
    "train_loss",  # over the whole clean training set, network in eval mode
    "train_accuracy",  # in percent, and so below
    "validation_loss",
    "validation_accuracy",
    "test_loss",
    "test_accuracy",
    "full_gradient_norm",  # of the clean training loss, network in eval mode
    "min_full_gradient_norm",  # the least so far, the initial point included
    "loss_at_min_norm",  # train_loss where that was
    "at_chance",  # true: the classifier does no better than a constant answer
)


@final
@dataclass(frozen=True)
class Record:
    """A run as read from its folder.

    Attributes:
        folder: where it lies.
        label: what the run is called among those it is compared with, such as "increasing".
        panel: which group of comparisons it belongs to, such as "cosine".
        experiment: the recipe's name; "" for a run of its own.
        task, model, optimizer: by name.
        plan: the Plan it was run under.
        seed: of initial weights and data order.
        status: one of `STATUSES`.
        error: what went wrong in a failed run.
        initial: train, validation and test losses, accuracies and norm before the first step.
        rows: one dict an epoch, with the keys of `COLUMNS`.
        environment: threads, versions, machine.
    """

    folder: Path
    label: str
    panel: str
    experiment: str
    task: str
    model: str
    optimizer: str
    plan: Plan
    seed: int
    status: str
    error: str | None = None
    initial: Mapping[str, float | None] = field(default_factory=dict)
    rows: Sequence[Mapping[str, Any]] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)


def create(folder: Path, identity: Mapping[str, Any], initial: Mapping[str, Any]) -> None:
    """Starts a run's folder: ``run.json`` with the status "running".

    Args:
        folder: made if it is missing.
        identity: what was run; see `Record`. The plan as `Plan.to_dict` gives it.
        initial: what was measured before the first step.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(
        folder / "run.json",
        {
            "format": FORMAT,
            **identity,
            "environment": environment(),
            "initial": finite(initial),
            "status": "running",
            "error": None,
        },
    )


def finish(folder: Path, status: str, error: str | None = None) -> None:
    """Marks how the run ended; ``status`` is one of `STATUSES`."""
    run = _read_run(folder)
    _write_json(folder / "run.json", {**run, "status": status, "error": error})


def append_row(folder: Path, row: Mapping[str, Any]) -> None:
    """Adds one epoch's row, on disk when this returns. Numbers that are not finite become null."""
    with open(folder / "epochs.jsonl", "ab") as file:
        file.write(json.dumps(finite(row), allow_nan=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def cut_rows(folder: Path, epochs: int) -> list[dict[str, Any]]:
    """Keeps the rows of the first ``epochs`` epochs and returns them.

    Drops what a crash left: a torn last line, and rows past the checkpoint.

    Raises:
        ValueError: rows are missing.
    """
    rows = _read_rows(folder)
    if len(rows) < epochs:
        raise ValueError(
            f"{folder / 'epochs.jsonl'} has {len(rows)} rows, but the checkpoint stands after "
            f"{epochs} epochs: the folder was damaged; train into a new one"
        )
    text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows[:epochs])
    _write(folder / "epochs.jsonl", text.encode())
    return rows[:epochs]


def existing(folder: Path, identity: Mapping[str, Any], resume: bool) -> Record | None:
    """The run that ``folder`` holds already, None if it is new or empty.

    Raises:
        ValueError: it holds another run or other files, or it holds a run and ``resume`` is False.
    """
    if not (folder / "run.json").is_file():
        if folder.exists() and any(path.name != "lock" for path in folder.iterdir()):
            raise ValueError(f"out must be a new or empty folder or hold a run, got {folder}")
        return None
    if not resume:
        raise ValueError(f"out {folder} holds a run already: resume it or name another folder")
    record = read(folder)
    for name in ("task", "model", "optimizer", "plan", "seed"):
        here, there = identity[name], getattr(record, name)
        if name == "plan":
            here = Plan.from_dict(here)
        if here != there:
            raise ValueError(
                f"{name} differs from that of the run in {folder}: there {there!r}, here {here!r}; "
                "name another folder"
            )
    return record


def read(folder: Path) -> Record:
    """Reads one run.

    Raises:
        ValueError: there is none, or its files are damaged or of another format.
    """
    run = _read_run(folder)
    try:
        return Record(
            folder=folder,
            plan=Plan.from_dict(run["plan"]),
            rows=_read_rows(folder),
            **{
                key: run[key]
                for key in (
                    "label", "panel", "experiment", "task", "model", "optimizer",
                    "seed", "status", "error", "initial", "environment",
                )
            },
        )  # fmt: skip
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / 'run.json'} is damaged: {error!r}") from None


def read_all(folder: Path) -> list[Record]:
    """Reads every run in ``folder`` and below, in the order of their paths.

    Raises:
        ValueError: the folder does not exist or holds no run.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"folder {folder} does not exist")
    found = sorted(path.parent for path in folder.rglob("run.json"))
    if not found:
        raise ValueError(f"folder {folder} holds no run: no run.json in it or below")
    return [read(path) for path in found]


# ------------------------------------------------------------------------------------ checkpoints


def save_checkpoint(folder: Path, state: Mapping[str, Any]) -> None:
    """Replaces the run's checkpoint; ``state`` holds tensors, numbers, strings, lists, dicts."""
    import io

    import torch

    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    _write(folder / "checkpoint.pt", buffer.getvalue())


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The run's checkpoint, or None if no epoch was completed. Nothing is unpickled.

    Raises:
        ValueError: it is damaged or of another format.
    """
    import pickle

    import torch

    path = folder / "checkpoint.pt"
    if not path.exists():
        return None
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"checkpoint {path} is damaged: {reason}") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"checkpoint {path} is not of format {FORMAT}: it was not written by this")
    return state


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Holds the run's folder; the system lets go when the process ends, however it ends.

    Raises:
        BlockingIOError: another process holds it.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    held = FileLock(folder / "lock")
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise BlockingIOError(f"folder {folder} is in use by another process") from None
    try:
        yield
    finally:
        held.release()


def environment() -> dict[str, Any]:
    """Threads, versions and machine: what a measurement is only true of."""
    import numpy
    import torch

    import batchramp

    return {
        "threads": torch.get_num_threads(),
        "versions": {
            "batchramp": batchramp.__version__,
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "python": platform.python_version(),
        },
        "machine": {
            "system": platform.system(),
            "architecture": platform.machine(),
            "cpus": os.cpu_count(),
        },
    }


# ------------------------------------------------------------------------------------------- files


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if sys.platform != "win32":  # the new name itself must survive a power cut
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    _write(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def _read_run(folder: Path) -> dict[str, Any]:
    path = folder / "run.json"
    try:
        run = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"folder {folder} holds no run: no run.json in it") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(run, dict) or run.get("format") != FORMAT:
        found = run.get("format") if isinstance(run, dict) else type(run).__name__
        raise ValueError(f"{path} must be of format {FORMAT}, got {found!r}")
    if run.get("status") not in STATUSES:
        raise ValueError(f"{path} is damaged: status {run.get('status')!r}")
    return run


def _read_rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / "epochs.jsonl"
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1]):  # what follows the last newline is torn
        try:
            row = json.loads(line)
            whole = isinstance(row, dict) and row["epoch"] == len(rows) and set(COLUMNS) <= set(row)
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError):
            whole = False
        if not whole:
            if number == len(lines) - 2:  # the last whole line: a crash can leave it half written
                break
            raise ValueError(f"{path} is damaged at line {number + 1}")
        rows.append(row)
    return rows


def finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """``row`` with null for numbers that are not finite, as JSON wants it."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }
