"""What a run leaves on disk, and nothing else knows the format.

A run is a folder:

``run.json``
    what was run (plan, task, model, optimizer, seed), where (versions, machine, threads), what was
    measured before the first step (``initial``) and how it stands (``status``).
``epochs.jsonl``
    one row an epoch, one line a row.
``checkpoint.pt``, ``checkpoint.previous.pt``
    what it takes to go on from the last complete epoch, and from the one before, should the first
    be damaged; loaded with ``weights_only=True``.
``lock``
    held by the process that trains here.

Files are written to a temporary name, synced and renamed, so that a reader or a restart sees the
old file or the new one. Rows are appended and synced; a line torn by a crash is dropped when read.

Each file carries a CRC-32 of what it holds, so that what a disk or a copy has changed is seen. It
is no signature: who may write in the folder can make one. What was written before there were any,
or has had its own taken out by hand, is read without.

A run's folder never takes more than three checkpoints (the two, and the one being written) and
about a kilobyte an epoch.
"""

import errno
import functools
import io
import json
import math
import os
import platform
import sys
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from batchramp.plan import Plan

FORMAT = 1
# A checkpoint's own: 1, before it had a checksum, is read as well.
CHECKPOINT_FORMAT = 2
CHECKPOINTS = ("checkpoint.pt", "checkpoint.previous.pt")
STATUSES = ("running", "finished", "diverged", "collapsed", "failed")
# There is nothing more to train.
ENDED = ("finished", "diverged", "collapsed")

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

# A row's further columns where a run measures constants: extremes over the training samples, at the
# end of the epoch.
CONSTANTS = (
    "max_loss",  # max f_i
    "max_gradient_norm",  # max ||∇f_i||
    "max_secant",  # max ||∇f_i(x) − ∇f_i(x')||/||x − x'||, x' where the epoch began
    "proposition9",  # its bound of ||∇f_i|| with these: √(2 max_secant max_loss)
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
        note: what a reader of its numbers should know, such as how its lr was chosen.
        task, model, optimizer: by name.
        plan: the Plan it was run under.
        seed: of initial weights and data order.
        status: one of `STATUSES`.
        error: what went wrong in a failed run.
        initial: train, validation and test losses, accuracies and norm before the first step.
        rows: one dict an epoch, with the keys of `COLUMNS`.
        environment: threads, versions, machine.
        n: training samples; None in folders written before they were kept.
        problem: the constants of the task's problem by name, where they are known.
        options: the task's options that were on, such as autocast; none in folders written before
            they were kept.
        data: checksums of the data (`batchramp.Task.fingerprint`); None in folders written before
            they were kept.
        epochs: how many rows a run that has ended has; None while it has not, and in folders
            written before it was kept.
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
    note: str = ""
    error: str | None = None
    initial: Mapping[str, float | None] = field(default_factory=dict)
    rows: Sequence[Mapping[str, Any]] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    n: int | None = None
    problem: Mapping[str, float | None] | None = None
    options: Mapping[str, bool] = field(default_factory=dict)
    data: Mapping[str, int | None] | None = None
    epochs: int | None = None


@final
class DamageWarning(UserWarning):
    """A file was found damaged, and the run goes on without it."""


@final
class _Damaged(ValueError):
    """A checkpoint that is not as it was written."""


def identity(
    *,
    task: str,
    model: str,
    optimizer: Callable[..., Any],
    plan: Plan,
    seed: int,
    label: str,
    panel: str,
    experiment: str,
    note: str = "",
    options: Mapping[str, bool] | None = None,
) -> dict[str, Any]:
    """What was run, as `Record` names it: what tells one run from another."""
    return {
        "label": label,
        "panel": panel,
        "experiment": experiment,
        "note": note,
        "task": task,
        "model": model,
        "optimizer": name_of(optimizer),
        "plan": plan.to_dict(),
        "seed": seed,
        "options": dict(options or {}),
    }


def name_of(optimizer: Callable[..., Any]) -> str:
    """What files call an optimizer.

    >>> name_of(functools.partial(dict, lr=0.1))
    'dict(lr=0.1)'
    """
    if isinstance(optimizer, functools.partial):
        given = [repr(value) for value in optimizer.args]
        given += [f"{key}={value!r}" for key, value in optimizer.keywords.items()]
        return f"{name_of(optimizer.func)}({', '.join(given)})"
    return getattr(optimizer, "__qualname__", type(optimizer).__qualname__)


def create(
    folder: Path,
    identity: Mapping[str, Any],
    initial: Mapping[str, Any],
    *,
    n: int | None = None,
    problem: Mapping[str, float | None] | None = None,
    data: Mapping[str, int | None] | None = None,
) -> None:
    """Starts a run's folder: ``run.json`` with the status "running".

    Args:
        folder: made if it is missing.
        identity: what was run; see `Record`. The plan as `Plan.to_dict` gives it.
        initial: what was measured before the first step.
        n, problem, data: see `Record`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "epochs.jsonl").unlink(missing_ok=True)  # of a start that saved no checkpoint
    _write_run(
        folder,
        {
            "format": FORMAT,
            **identity,
            "environment": environment(),
            "n": n,
            "problem": None if problem is None else dict(problem),
            "data": None if data is None else dict(data),
            "initial": finite(initial),
            "status": "running",
            "error": None,
            "epochs": None,
        },
    )


def finish(
    folder: Path, status: str, error: str | None = None, *, epochs: int | None = None
) -> None:
    """Marks how the run stands; ``status`` is one of `STATUSES`, ``epochs`` see `Record`."""
    run = _read_run(folder)
    _check_run(folder / "run.json", run)
    _write_run(folder, {**run, "status": status, "error": error, "epochs": epochs})


def append_row(folder: Path, row: Mapping[str, Any]) -> None:
    """Adds one epoch's row, on disk when this returns. Numbers that are not finite become null."""
    with open(folder / "epochs.jsonl", "ab") as file:
        file.write(_line(finite(row)))
        file.flush()
        os.fsync(file.fileno())


def cut_rows(folder: Path, epochs: int) -> list[dict[str, Any]]:
    """Keeps the rows of the first ``epochs`` epochs and returns them.

    Drops what a crash left: a torn last line, and rows past the checkpoint.

    Raises:
        ValueError: rows are missing.
    """
    path = folder / "epochs.jsonl"
    rows = _read_rows(folder)
    if len(rows) < epochs:
        raise ValueError(
            f"{path} has {len(rows)} rows, but the checkpoint stands after "
            f"{epochs} epochs: the folder was damaged; train into a new one"
        )
    text = b"".join(map(_line, rows[:epochs]))
    if path.exists() and path.read_bytes() != text:
        write(path, text)
    return rows[:epochs]


def existing(folder: Path, identity: Mapping[str, Any], resume: bool) -> Record | None:
    """The run that ``folder`` holds already, None if it is new or empty.

    Raises:
        ValueError: it holds another run or other files, or it holds a run and ``resume`` is False.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"out must be a folder, got the file {folder}")
    if not (folder / "run.json").exists():
        if folder.exists() and any(not _is_ours(path) for path in folder.iterdir()):
            raise ValueError(
                f"out must be a new or empty folder or hold a run, got {folder}, which holds "
                "other files"
            )
        return None
    if not resume:
        raise ValueError(f"out {folder} holds a run already: resume it or name another folder")
    record = read(folder)
    for name in ("task", "model", "optimizer", "plan", "seed", "options"):
        here, there = identity[name], getattr(record, name)
        if name == "plan":
            here = Plan.from_dict(here)
        if here != there:
            raise ValueError(
                f"{name} differs from that of the run in {folder}: there {there!r}, here {here!r}; "
                "name another folder"
            )
    return record


def _is_ours(path: Path) -> bool:
    """What a process leaves that was killed before it had written ``run.json``."""
    return path.name == "lock" or _is_temporary(path)


# What run.json holds beside its format; the fields of a Record.
_KINDS: dict[str, Any] = {
    "label": str,
    "panel": str,
    "experiment": str,
    "note": str,
    "task": str,
    "model": str,
    "optimizer": str,
    "plan": dict,
    "seed": int,
    "status": str,
    "error": str | None,
    "initial": dict,
    "environment": dict,
}


def read(folder: Path) -> Record:
    """Reads one run.

    Raises:
        ValueError: there is none, or its files are damaged or of another format.
    """
    run = _read_run(folder)
    path = folder / "run.json"
    for key, kind in _KINDS.items():
        if key not in run:
            raise ValueError(f"{path} is damaged: {key} is missing")
        if not isinstance(run[key], kind) or isinstance(run[key], bool):
            raise ValueError(f"{path} is damaged: {key} is {run[key]!r}")
    if not _are_numbers(run["initial"]):
        raise ValueError(f"{path} is damaged: initial is {run['initial']!r}")
    n, problem, epochs = (run.get(key) for key in ("n", "problem", "epochs"))
    for key, value in {"n": n, "epochs": epochs}.items():
        if value is not None and (type(value) is not int or value < 1):
            raise ValueError(f"{path} is damaged: {key} is {value!r}")
    options = run.get("options", {})
    if not isinstance(options, dict) or not all(type(on) is bool for on in options.values()):
        raise ValueError(f"{path} is damaged: options is {options!r}")
    data = run.get("data")
    for key, value in {"problem": problem, "data": data}.items():
        if value is not None and not (isinstance(value, dict) and _are_numbers(value)):
            raise ValueError(f"{path} is damaged: {key} is {value!r}")
    try:
        plan = Plan.from_dict(run["plan"])
    except ValueError as error:
        hint = "; --import names a module of yours that defines it" if ".kind" in str(error) else ""
        raise ValueError(f"{path}: plan: {error}{hint}") from None
    _check_run(path, run)  # last: what is wrong says more than that something is
    given = {key: run[key] for key in _KINDS}
    rows = _read_rows(folder, whole=run["status"] in ENDED)
    if epochs not in (None, len(rows)):
        raise ValueError(
            f"{folder / 'epochs.jsonl'} is damaged: it has {len(rows)} rows, and the run has "
            f"{run['status']} after {epochs} epochs"
        )
    return Record(
        **{**given, "plan": plan},
        folder=folder,
        rows=rows,
        n=n,
        problem=problem,
        options=options,
        data=data,
        epochs=epochs,
    )


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


# What follows torch's own bytes in the file, and then eight hexadecimal digits.
_SEAL = b"\nbatchramp checkpoint crc32 "
_SEALED = len(_SEAL) + 8


def save_checkpoint(folder: Path, state: Mapping[str, Any]) -> None:
    """Puts ``state`` in the place of the run's checkpoint, and that in the place of the one before.

    ``state`` holds tensors, numbers, strings, lists, dicts.
    """
    import torch

    buffer = io.BytesIO()
    torch.save({"format": CHECKPOINT_FORMAT, **state}, buffer)
    seal = _SEAL + b"%08x" % zlib.crc32(buffer.getbuffer())
    buffer.write(seal)
    newest, before = (folder / name for name in CHECKPOINTS)
    write(newest, buffer.getbuffer(), before=before)


def load_checkpoint(record: Record) -> tuple[dict[str, Any], str] | None:
    """The run's checkpoint and its file's name, or None if no epoch was completed.

    If the newest is damaged and the run has not ended, the one before, with a `DamageWarning`. A
    run that has ended is not trained again for want of its last checkpoint. Nothing is unpickled.

    Raises:
        ValueError: there is none that can be read, or it is of a format not known here.
    """
    ended = record.status in ENDED
    paths = [record.folder / name for name in CHECKPOINTS]
    present = [path for path in paths if path.exists()]
    if ended and paths[0] not in present:
        raise ValueError(f"checkpoint {paths[0]} is missing, and the run has {record.status}")
    said: list[str] = []
    for path in present:  # the one before alone: killed when the new one was about to be put there
        try:
            state = _load(path)
        except _Damaged as error:
            if ended:
                raise ValueError(
                    f"{error}, and the run has {record.status}: its rows stand, its model is lost"
                ) from None
            said.append(str(error))
            continue
        if said:
            went_on = f"{said[0]}: the run goes on from {path.name}"
            warnings.warn(went_on, DamageWarning, stacklevel=2)
        return state, path.name
    if said:
        raise ValueError(", and ".join(said))
    return None


def _load(path: Path) -> dict[str, Any]:
    import torch

    try:
        content = path.read_bytes()
    except OSError as error:
        if error.errno != errno.EIO:  # else it is there, and the disk does not give it
            raise
        raise _Damaged(f"checkpoint {path} is damaged: {error.strerror}") from None
    seal = content[-_SEALED:]
    sealed = seal.startswith(_SEAL)
    if sealed:
        content = memoryview(content)[:-_SEALED]
        if seal[len(_SEAL) :] != b"%08x" % zlib.crc32(content):
            raise _Damaged(f"checkpoint {path} is damaged: its checksum is another")
    try:
        state = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except MemoryError:
        raise
    except Exception as error:  # bytes that anybody may have written can fail in any way
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        if sealed:
            raise ValueError(
                f"checkpoint {path} is as it was written, but cannot be loaded: {reason}"
            ) from None
        raise _Damaged(f"checkpoint {path} is damaged: {reason}") from None
    found = state.get("format") if isinstance(state, dict) else None
    if not sealed and not _is(found, FORMAT):
        missing = _is(found, CHECKPOINT_FORMAT)
        why = "its checksum is missing" if missing else "it was not written by this"
        raise _Damaged(f"checkpoint {path} is damaged: {why}")
    if sealed and not _is(found, CHECKPOINT_FORMAT):
        raise ValueError(
            f"checkpoint {path} is of format {found!r}, of another version: known are {FORMAT} and "
            f"{CHECKPOINT_FORMAT}"
        )
    return state


def _is(found: Any, number: int) -> bool:
    return type(found) is int and found == number


def checkpoint(
    progress: Mapping[str, Any], sampler: Any, model: Any, optimizer: Any, device: str
) -> dict[str, Any]:
    """All that it takes to go on bit for bit, torch's random state included."""
    import torch

    return {
        "progress": dict(progress),
        "sampler": sampler.state_dict(),
        "defaults": _defaults(optimizer),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state(device) if device.startswith("cuda") else None,
    }


def restore(
    saved: Mapping[str, Any], sampler: Any, model: Any, optimizer: Any, device: str
) -> dict[str, Any]:
    """Puts everything where it stood at `checkpoint`. Returns the progress.

    Raises:
        ValueError: the checkpoint is of other data, another model or another optimizer.
    """
    import torch

    try:
        sampler.load_state_dict(saved["sampler"])
        if saved["defaults"] != _defaults(optimizer):
            raise ValueError(
                f"optimizer differs: saved {saved['defaults']}, here {_defaults(optimizer)}"
            )
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["rng"])
        if saved["cuda_rng"] is not None:
            torch.cuda.set_rng_state(saved["cuda_rng"], device)
        return saved["progress"]
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"checkpoint is damaged or of another run: {reason}") from None


def resume(
    folder: Path,
    identity: Mapping[str, Any],
    sampler: Any,
    model: Any,
    optimizer: Any,
    device: str,
    *,
    allowed: bool = True,
    data: Mapping[str, int | None] | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]], Mapping[str, float | None]] | None:
    """Puts everything where the run in ``folder`` stands after its last complete epoch.

    Returns:
        Its progress, its rows, and what was measured before the first step; None if no epoch of it
        was completed.

    Raises:
        ValueError: as `existing`, with ``allowed`` for its ``resume``, or the files are damaged, or
            ``data`` are others.
    """
    found = begun(folder, identity, allowed=allowed, data=data)
    if found is None:
        return None
    saved, initial, file = found
    progress = restore(saved, sampler, model, optimizer, device)
    return progress, settle(folder, progress, file), initial


def begun(
    folder: Path,
    identity: Mapping[str, Any],
    *,
    allowed: bool = True,
    data: Mapping[str, int | None] | None = None,
) -> tuple[dict[str, Any], Mapping[str, float | None], str] | None:
    """The run's checkpoint, what was measured before the first step, and the checkpoint's file.

    None if no epoch was completed. First half of `resume`; nothing on disk changes.
    """
    record = existing(folder, identity, allowed)
    if record is None:
        return None
    for part, here in (data or {}).items():
        there = None if record.data is None else record.data.get(part)
        if None not in (here, there) and here != there:
            raise ValueError(
                f"{part} data differ from those of the run in {folder}: checksum there {there}, "
                f"here {here}; name another folder"
            )
    found = load_checkpoint(record)
    return None if found is None else (found[0], record.initial, found[1])


def settle(
    folder: Path, progress: Mapping[str, Any], file: str = CHECKPOINTS[0]
) -> list[dict[str, Any]]:
    """Brings the other files where the checkpoint ``file`` stands, and returns the rows.

    Second half of `resume`, when the checkpoint has been found to fit.
    """
    rows = cut_rows(folder, progress["epoch"])
    if file != CHECKPOINTS[0]:  # else the next one would put the damaged one in its place
        os.replace(folder / file, folder / CHECKPOINTS[0])
    if _read_run(folder)["status"] != progress["status"]:
        ended = progress["status"] in ENDED
        finish(folder, progress["status"], epochs=progress["epoch"] if ended else None)
    return rows


def save_epoch(
    folder: Path, row: Mapping[str, Any], checkpoint: Mapping[str, Any], status: str
) -> None:
    """Adds an epoch's row, replaces the checkpoint, and marks the end where the run has ended."""
    append_row(folder, row)
    save_checkpoint(folder, checkpoint)
    if status != "running":
        finish(folder, status, epochs=row["epoch"] + 1)


def _defaults(optimizer: Any) -> dict[str, Any]:
    """The optimizer's own arguments, as far as they are plain values."""
    plain = (bool, int, float, str, tuple, type(None))
    return {key: value for key, value in optimizer.defaults.items() if isinstance(value, plain)}


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Holds the run's folder, made if it is missing, and clears it of half-written files.

    The system lets go when the process ends, however it ends.

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
        for path in filter(_is_temporary, folder.iterdir()):
            path.unlink()
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


def write(path: Path, content: bytes | memoryview, *, before: Path | None = None) -> None:
    """Puts ``content`` at ``path``, all of it or nothing, on disk when this returns.

    What was there goes to ``before``, if that is given; between the two, nothing is at ``path``.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if before is not None:
            with suppress(FileNotFoundError):
                os.replace(path, before)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if sys.platform != "win32":  # the new name itself must survive a power cut
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _is_temporary(path: Path) -> bool:
    return path.name.startswith((".run.json.", ".epochs.jsonl.", ".checkpoint.pt."))


def _crc32(content: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, allow_nan=False).encode())


def _is_whole(content: Mapping[str, Any], known: Iterable[str]) -> bool:
    """Whether what carries a checksum has its own; what carries none has no key but those known."""
    if "crc32" not in content:
        return set(content) <= set(known)
    rest = {key: value for key, value in content.items() if key != "crc32"}
    return content["crc32"] == _crc32(rest)


def _write_run(folder: Path, run: Mapping[str, Any]) -> None:
    run = {key: value for key, value in run.items() if key != "crc32"}
    sealed = {**run, "crc32": _crc32(run)}
    write(folder / "run.json", (json.dumps(sealed, indent=2, allow_nan=False) + "\n").encode())


def _check_run(path: Path, run: Mapping[str, Any]) -> None:
    try:
        whole = _is_whole(run, ("format", *_KINDS, "n", "problem", "options", "data", "epochs"))
    except (ValueError, RecursionError):  # a number that is none
        whole = False
    if not whole:
        raise ValueError(
            f"{path} is damaged or was changed by hand: it is not what its crc32 was taken of; "
            "without that line it is read as it is"
        )


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps({**row, "crc32": _crc32(row)}, allow_nan=False).encode() + b"\n"


def _read_run(folder: Path) -> dict[str, Any]:
    path = folder / "run.json"
    try:
        run = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"folder {folder} holds no run: no run.json in it") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(run, dict) or run.get("format") != FORMAT:
        found = run.get("format") if isinstance(run, dict) else type(run).__name__
        raise ValueError(f"{path} must be of format {FORMAT}, got {found!r}")
    if run.get("status") not in STATUSES:
        raise ValueError(f"{path} is damaged: status {run.get('status')!r}")
    return run


def _read_rows(folder: Path, *, whole: bool = False) -> list[dict[str, Any]]:
    """The rows; without what a crash has torn at their end, unless they must be whole."""
    path = folder / "epochs.jsonl"
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = []
    lines = path.read_bytes().split(b"\n")
    if whole and lines[-1]:
        raise ValueError(f"{path} is damaged at line {len(lines)}")
    for number, line in enumerate(lines[:-1]):  # what follows the last newline is torn
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # not UTF-8, not JSON
            row = {}
        if not _is_row(row, epoch=number):
            # The last whole line: a crash can leave it half written.
            if number == len(lines) - 2 and not whole:
                break
            raise ValueError(f"{path} is damaged at line {number + 1}")
        rows.append({key: value for key, value in row.items() if key != "crc32"})
    return rows


def _is_row(row: Any, epoch: int) -> bool:
    return (
        isinstance(row, dict)
        and set(COLUMNS) <= set(row)
        and row["epoch"] == epoch
        and _are_numbers(row)
        and _is_whole(row, COLUMNS + CONSTANTS)
    )


def _are_numbers(row: Mapping[str, Any]) -> bool:
    """Whether `finite` could have made ``row``."""
    numbers = all(value is None or isinstance(value, int | float) for value in row.values())
    return numbers and row == finite(row)


def finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """``row`` with null for numbers that are not finite, as JSON wants it."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }
