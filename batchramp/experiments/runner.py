"""Runs many runs: each in a process of its own, so many at a time, none of them twice.

A run's folder is the queue's memory: finished runs are not run again, interrupted ones go on from
their last epoch, and a lock on the folder keeps two runners from the same run.
"""

import contextlib
import functools
import inspect
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, final

from batchramp import store
from batchramp.experiments.recipes import Run

__all__ = ["Outcome", "default_jobs", "run_all"]

_SECONDS_BETWEEN_LOOKS = 0.5


@final
@dataclass(frozen=True)
class Outcome:
    """How the runs ended.

    Attributes:
        statuses: one of `batchramp.store.STATUSES` for each run, in the order given.
        errors: what went wrong, for each run that failed.
    """

    statuses: tuple[str, ...]
    errors: tuple[tuple[Run, str], ...]


def default_jobs() -> int:
    """As many as this process may use cores."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_all(
    runs: Sequence[Run],
    out: Path,
    *,
    jobs: int | None = None,
    on_row: Callable[[Run, dict[str, Any]], None] | None = None,
    on_end: Callable[[Run, str], None] | None = None,
) -> Outcome:
    """Runs all runs below ``out`` that are not finished there, the longest first.

    Args:
        runs: with different folders.
        out: each run's folder is ``out / run.folder``.
        jobs: processes at a time, each with one torch thread; None for the cores at hand.
        on_row: called with each epoch's row as it comes.
        on_end: called with each run's status, those finished before included.

    Returns:
        How they ended. A run that fails is recorded with its error, and the rest go on.

    Raises:
        ValueError: jobs below 1, two runs of one folder, an optimizer that does not fit its plan or
            its options, or a folder that holds another run: before anything is started.
    """
    jobs = default_jobs() if jobs is None else jobs
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise ValueError(f"jobs must be an integer >= 1, got {jobs!r}")
    folders = [run.folder for run in runs]
    if len(set(folders)) < len(folders):
        twice = next(folder for folder in folders if folders.count(folder) > 1)
        raise ValueError(f"runs must have different folders, got {twice} twice: give them labels")
    out = Path(out)
    for kind in {(run.plan, run.optimizer, run.options): run for run in runs}.values():
        _check_optimizer(kind)
    statuses = {run: _status(run, out) for run in runs}
    out.mkdir(parents=True, exist_ok=True)

    def end(run: Run, status: str) -> None:
        statuses[run] = status
        if on_end is not None:
            on_end(run, status)

    for run, status in statuses.items():
        if status in store.ENDED:
            end(run, status)
    waiting = [run for run in runs if statuses[run] not in store.ENDED]
    waiting.sort(key=_work, reverse=True)
    errors: list[tuple[Run, str]] = []
    context = _context()
    active: dict[Connection, tuple[Run, Any]] = {}
    try:
        while waiting or active:
            for run in list(waiting):
                if len(active) == jobs:
                    break
                if _taken(out / run.folder):
                    continue
                waiting.remove(run)
                if (status := _status(run, out)) in store.ENDED:  # by another runner, meanwhile
                    end(run, status)
                    continue
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_child, args=(run, out / run.folder, theirs))
                process.start()
                theirs.close()
                active[ours] = (run, process)
            if not active:
                time.sleep(_SECONDS_BETWEEN_LOOKS)  # all that is left is taken by another runner
                continue
            for ready in wait(list(active), timeout=_SECONDS_BETWEEN_LOOKS):
                assert isinstance(ready, Connection)
                run, process = active[ready]
                kind, value = _receive(ready, process)
                if kind == "row":
                    if on_row is not None:
                        on_row(run, value)
                    continue
                del active[ready]
                ready.close()
                process.join()
                if kind == "taken":
                    waiting.append(run)
                    continue
                if kind == "failed":
                    _record_failure(run, out / run.folder, value)
                    errors.append((run, value))
                end(run, "failed" if kind == "failed" else value)
    finally:
        for _, process in active.values():
            process.terminate()
        for _, process in active.values():
            process.join()
    return Outcome(tuple(statuses[run] for run in runs), tuple(errors))


def _work(run: Run) -> int:
    from batchramp.experiments.tasks import training_samples

    return run.plan.total_steps(training_samples(run.task))


def _status(run: Run, out: Path) -> str:
    """The status of the run's folder, "" if there is none. Refuses the folder of another run."""
    record = store.existing(out / run.folder, _identity(run), resume=True)
    return "" if record is None else record.status


def _taken(folder: Path) -> bool:
    try:
        with store.lock(folder):
            return False
    except BlockingIOError:
        return True


def _context() -> Any:
    """Children that are forked from a server which has imported torch but run nothing."""
    if sys.platform == "win32":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["batchramp.training", "batchramp.experiments.runner"])
    if threading.current_thread() is threading.main_thread():
        from multiprocessing import forkserver

        # Ctrl-C is for this process, which ends the others: without this the server, and what it
        # forks, would each answer it with a traceback.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            forkserver.ensure_running()
        finally:
            signal.signal(signal.SIGINT, before)
    return context


def _receive(connection: Connection, process: Any) -> tuple[str, Any]:
    try:
        return connection.recv()
    except (EOFError, OSError):  # OSError: killed in the middle of a word
        process.join()
        return "failed", f"its process ended without a word, with exit code {process.exitcode}"


def _child(run: Run, folder: Path, connection: Connection) -> None:
    try:
        import torch

        from batchramp.experiments import tasks
        from batchramp.training import fit

        # More would wait for each other: OpenMP's barrier spins, and other runs need the core.
        torch.set_num_threads(1)
        result = fit(
            tasks.load(run.task, run.model),
            run.plan,
            seed=run.seed,
            optimizer=_optimizer(run),
            on_epoch=lambda row: connection.send(("row", row)),
            out=folder,
            constants=run.constants,
            **_names(run),
        )
        connection.send(("ended", result.status))
    except BlockingIOError:
        connection.send(("taken", None))
    except (KeyboardInterrupt, BrokenPipeError):
        pass  # told to stop, or nobody is left to tell
    except Exception as error:  # whatever it is, it is this run's and goes into its record
        connection.send(("failed", f"{type(error).__name__}: {error}"))


def _optimizer(run: Run) -> Callable[..., Any]:
    import torch

    from batchramp.optim import QHM

    make = QHM if run.optimizer == "QHM" else getattr(torch.optim, run.optimizer)
    return functools.partial(make, **dict(run.options)) if run.options else make


def _check_optimizer(run: Run) -> None:
    """Refuses now what the child would find out later."""
    import torch

    from batchramp.training import scheduled

    make = _optimizer(run)
    allowed = list(inspect.signature(getattr(make, "func", make)).parameters)[1:]
    for name, _ in run.options:
        if name not in allowed:
            raise ValueError(
                f"optimizer.{name} is not an option of {run.optimizer}: allowed are "
                f"{', '.join(allowed)}"
            )
    scheduled(make, [torch.zeros(1, requires_grad=True)], run.plan)


def _names(run: Run) -> dict[str, Any]:
    return {name: getattr(run, name) for name in ("label", "panel", "experiment", "note")}


def _identity(run: Run) -> dict[str, Any]:
    return store.identity(
        task=run.task,
        model=run.model,
        optimizer=_optimizer(run),
        plan=run.plan,
        seed=run.seed,
        **_names(run),
    )


def _record_failure(run: Run, folder: Path, error: str) -> None:
    # What cannot be recorded still stands in the outcome: the folder itself may be what failed, or
    # another runner may have taken it up.
    with contextlib.suppress(OSError, ValueError), store.lock(folder):
        if store.existing(folder, _identity(run), resume=True) is None:
            store.create(folder, _identity(run), {})
        store.finish(folder, "failed", error)
