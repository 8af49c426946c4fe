"""Runs many runs: each in a process of its own, so many at a time, none of them twice.

A run's folder is the queue's memory: finished runs are not run again, interrupted ones go on from
their last epoch, and a lock on the folder keeps two runners from the same run.

What a process is given is a group: one run, or several that are trained together as one program. A
group that fails as a whole is repeated run by run.
"""

import contextlib
import dataclasses
import functools
import inspect
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, final

from batchramp import store
from batchramp.batching import ranks
from batchramp.experiments.run import Run
from batchramp.experiments.trackers import Trackers
from batchramp.memory import keep_freed

if TYPE_CHECKING:
    from batchramp.processes import Processes

__all__ = ["Outcome", "default_jobs", "run_all", "train"]

_SECONDS_BETWEEN_LOOKS = 0.5
# Fewer in one program gain less from each other than a second core gives.
_LEAST_TO_SPLIT = 8
_TASK_OPTIONS = ("channels_last", "autocast", "compiled")
# A server that has imported these forks a child in milliseconds: torch._dynamo alone, which a
# process's first optimizer imports, takes a second.
_PRELOADED = [
    "batchramp.training",
    "batchramp.experiments.runner",
    "batchramp.data",
    "batchramp.models",
    "torch._dynamo",
]

Group = tuple[Run, ...]

# Words of `train` that are not its last.
BETWEEN = ("row", "damage")


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


class Workers(Protocol):
    """Where groups are trained: processes of this machine or of others."""

    def free(self) -> bool:
        """Whether another group can be started."""
        ...

    def start(self, group: Group) -> None:
        """Hands a group out."""
        ...

    def active(self) -> bool:
        """Whether a group is being trained."""
        ...

    def receive(self, seconds: float) -> Iterable[tuple[Group, str, Any]]:
        """What came within ``seconds``: what `train` sends, with its group."""
        ...

    def stop(self) -> None:
        """Ends what is active."""
        ...


def default_jobs() -> int:
    """As many as this process may use cores."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def joined(runs: Sequence[Run]) -> "Processes":
    """The processes of torchrun that train these runs together; of several, the first reports."""
    from batchramp.processes import join

    return join(runs[0].device if runs else "cpu")


def _handed() -> Group | None:
    """What the first process hands out; it is asked of the others."""


def _by_all_processes(run_all: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """On the processes of torchrun the first one runs ``run_all``, the others train with it."""

    @functools.wraps(run_all)
    def on_each(runs: Sequence[Run], out: Path, **how: Any) -> Outcome:
        processes = joined(runs)
        if processes.alone:
            return run_all(runs, out, **how)

        def lead() -> Outcome:
            try:
                return run_all(runs, out, **how, processes=processes)
            finally:
                processes.once(lambda: None)  # there is no further group

        if processes.rank > 0:
            while (group := processes.once(_handed)) is not None:
                train(group, Path(out), lambda word: None)
        return processes.once(lead)

    return on_each


@_by_all_processes
def run_all(
    runs: Sequence[Run],
    out: Path,
    *,
    jobs: int | None = None,
    vectorise: bool = False,
    ray: str | None = None,
    trackers: Sequence[Any] = (),
    on_row: Callable[[Run, dict[str, Any]], None] | None = None,
    on_end: Callable[[Run, str], None] | None = None,
    on_start: Callable[[Sequence[Run]], None] | None = None,
    on_warning: Callable[[str], None] = warnings.warn,
    processes: "Processes | None" = None,
) -> Outcome:
    """Runs all runs below ``out`` that are not finished there, the longest first.

    On the processes of torchrun, all train each run together (`batchramp.fit`), one run after the
    other. The first calls what is to be called, and all return the same.

    Args:
        runs: with different folders.
        out: each run's folder is ``out / run.folder``.
        jobs: processes at a time, each with one torch thread; None for 1, or with ``ray`` for the
            cluster's cores.
        vectorise: train runs together that can be (`batchramp.experiments.vectorised`).
        ray: address of a Ray cluster whose machines share ``out``; None for this machine.
        trackers: names of `batchramp.experiments.trackers.TRACKERS`, or objects with their methods;
            one that raises is dropped.
        on_row: called with each epoch's row as it comes.
        on_end: called with each run's status, those finished before included.
        on_start: called with the runs of each group that is handed to a process.
        on_warning: called with a line on what went wrong without losing a run.
        processes: not to be given; those of torchrun.

    Returns:
        How they ended. A run that fails is recorded with its error, and the rest go on.

    Raises:
        ValueError: jobs below 1, two runs of one folder, an optimizer that does not fit its plan or
            its options, a folder that holds another run, or data, a device, cluster or tracker
            that cannot be had; on several processes more jobs, ``vectorise``, ``ray`` or a batch
            size below their number: before anything is started.
    """
    if jobs is not None and (isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1):
        raise ValueError(f"jobs must be an integer >= 1, got {jobs!r}")
    folders = [run.folder for run in runs]
    if len(set(folders)) < len(folders):
        twice = next(folder for folder in folders if folders.count(folder) > 1)
        raise ValueError(f"runs must have different folders, got {twice} twice: give them labels")
    out = Path(out)
    if processes is not None:
        for name, asked in {"jobs": (jobs or 1) > 1, "vectorise": vectorise, "ray": ray}.items():
            if asked:
                raise ValueError(
                    f"{name} does not go with torchrun, whose {processes.world_size} processes "
                    "train each run together"
                )
        for run in runs:
            ranks.check_batch_sizes(run.plan, processes.world_size)
    kinds = {(run.plan, run.optimizer, run.options, run.fields): run for run in runs}
    for kind in kinds.values():
        _check_optimizer(kind)
    for device in {run.device for run in runs}:
        _check_device(device, here=ray is None)
    statuses = {run: _status(run, out) for run in runs}
    unended = [run for run in runs if statuses[run] not in store.ENDED]
    if ray is None:  # else it is the cluster's machines that need them
        from batchramp.experiments import tasks

        for task in sorted({run.task for run in unended}):
            tasks.fetch(task)
    errors: list[tuple[Run, str]] = []
    waiting = _groups(unended, vectorise, jobs or 1)
    with contextlib.ExitStack() as stack:
        sinks = Trackers(trackers, out, on_warning)
        stack.callback(sinks.close)

        def end(run: Run, status: str) -> None:
            statuses[run] = status
            sinks.end(run, status)
            if on_end is not None:
                on_end(run, status)

        def hear(group: Group, kind: str, value: Any) -> None:
            if kind == "row":
                index, row = value
                sinks.row(group[index], row)
                if on_row is not None:
                    on_row(group[index], row)
            elif kind == "damage":
                on_warning(f"{title(group)}: {value}")
            elif kind == "taken":
                waiting.append(group)
            elif kind == "ended":
                for run, status in zip(group, value, strict=True):
                    if status in store.ENDED:
                        end(run, status)
                        continue
                    if status == "failed":
                        on_warning(f"{run.title} failed among others and is repeated alone")
                    waiting.append((run,))  # what another runner had taken, too
            elif len(group) == 1:
                _record_failure(group[0], out / group[0].folder, value)
                errors.append((group[0], value))
                end(group[0], "failed")
            else:
                on_warning(f"{title(group)} failed together and are repeated one by one: {value}")
                waiting.extend((run,) for run in group)

        workers: Workers
        if processes is not None:
            workers = _Together(processes, out, hear)
        elif ray is None:
            workers = _Processes(jobs or 1, out)
        else:
            from batchramp.experiments.cluster import Cluster

            workers = Cluster(ray, jobs, out)
        stack.callback(workers.stop)
        out.mkdir(parents=True, exist_ok=True)

        for run, status in statuses.items():
            if status in store.ENDED:
                end(run, status)
        while waiting or workers.active():
            for group in list(waiting):
                if not workers.free():
                    break
                waiting.remove(group)
                taken = tuple(run for run in group if _taken(out / run.folder))
                if taken:
                    waiting.append(taken)
                ready = []
                for run in group:
                    if run in taken:
                        continue
                    if (status := _status(run, out)) in store.ENDED:  # by another runner, meanwhile
                        end(run, status)
                    else:
                        ready.append(run)
                if ready:
                    if on_start is not None:
                        on_start(ready)
                    workers.start(tuple(ready))
            if not workers.active():
                if waiting:
                    time.sleep(_SECONDS_BETWEEN_LOOKS)  # another runner has taken all that is left
                continue
            for word in workers.receive(_SECONDS_BETWEEN_LOOKS):
                hear(*word)
    return Outcome(tuple(statuses[run] for run in runs), tuple(errors))


def title(group: Sequence[Run]) -> str:
    """For people: a run's title, or what the runs of a group have in common."""
    if len(group) == 1:
        return group[0].title
    parts = []
    for name in ("panel", "label", "seed"):
        values = list(dict.fromkeys(getattr(run, name) for run in group))
        if len(values) > 1:
            parts.append(f"{len(values)} {name}s")
        elif values[0] != "":
            parts.append(f"seed {values[0]}" if name == "seed" else values[0])
    return f"{' / '.join(parts)}: {len(group)} runs"


def _groups(runs: Sequence[Run], vectorise: bool, jobs: int) -> list[Group]:
    """What is handed out as one, the most work first, and enough for all jobs if possible."""
    if vectorise:
        from batchramp.experiments import vectorised

        groups = [tuple(group) for group in vectorised.together(runs)]
        while 0 < len(groups) < jobs and len(largest := max(groups, key=len)) >= _LEAST_TO_SPLIT:
            groups.remove(largest)
            middle = len(largest) // 2
            groups += [largest[:middle], largest[middle:]]
    else:
        groups = [(run,) for run in runs]
    return sorted(groups, key=lambda group: sum(map(_work, group)), reverse=True)


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


@final
class _Processes:
    """Workers of this machine, each a process that is forked from a server and ends by itself."""

    def __init__(self, jobs: int, out: Path) -> None:
        self._jobs, self._out = jobs, out
        self._context = _context()
        self._active: dict[Connection, tuple[Group, Any]] = {}

    def free(self) -> bool:
        return len(self._active) < self._jobs

    def active(self) -> bool:
        return bool(self._active)

    def start(self, group: Group) -> None:
        ours, theirs = self._context.Pipe(duplex=False)
        given = (group, self._out, theirs, os.environ.get("BATCHRAMP_DATA"))
        process = self._context.Process(target=_child, args=given)
        process.start()
        theirs.close()
        self._active[ours] = (group, process)

    def receive(self, seconds: float) -> Iterable[tuple[Group, str, Any]]:
        for ready in wait(list(self._active), timeout=seconds):
            assert isinstance(ready, Connection)
            group, process = self._active[ready]
            kind, value = _receive(ready, process)
            if kind not in BETWEEN:
                del self._active[ready]
                ready.close()
                process.join()
            yield group, kind, value

    def stop(self) -> None:
        for _, process in self._active.values():
            process.terminate()
        for _, process in self._active.values():
            process.join()


@final
class _Together:
    """All processes of torchrun as one worker, which has trained a group when `start` returns."""

    def __init__(self, processes: "Processes", out: Path, hear: Callable[..., None]) -> None:
        self._processes, self._out, self._hear = processes, out, hear

    def free(self) -> bool:
        return True

    def active(self) -> bool:
        return False

    def start(self, group: Group) -> None:
        self._processes.once(lambda: group)
        train(group, self._out, lambda word: self._hear(group, *word))

    def receive(self, seconds: float) -> Iterable[tuple[Group, str, Any]]:
        return ()

    def stop(self) -> None:
        pass


def _context() -> Any:
    """Children that are forked from a server which has imported torch but run nothing."""
    if sys.platform == "win32":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
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


def keep_freed_for(runs: Sequence[Run]) -> bool:
    """Keeps freed memory where that costs little of it: not where a ResNet-18 is trained.

    Its blocks of many sizes leave holes: at batch size 256 it took 3.0 GiB instead of 2.1, for 0.84
    of the time.
    """
    return not any(run.task.startswith("cifar") for run in runs) and keep_freed()


def _child(group: Group, out: Path, connection: Connection, data: str | None) -> None:
    keep_freed_for(group)
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):  # told to stop, nobody to tell
        train(group, out, connection.send, data)


def train(
    group: Group, out: Path, send: Callable[[tuple[str, Any]], Any], data: str | None = None
) -> None:
    """What a process does with a group: trains it with one thread and sends how it goes.

    Args:
        group: one run, or several that `vectorised.together` put together.
        out: each run's folder is ``out / run.folder``.
        send: called with ("row", (index of the run, its row)), with ("damage", what was found
            damaged where a run goes on without it), and at last with ("ended", statuses),
            ("taken", None) if another process trains in the folder, or ("failed", error). In a
            group, statuses may be "failed" or "taken".
        data: the folder of data sets; None where the process itself knows it.
    """
    with _damage_said(send):
        _train(group, out, send, data)


@contextlib.contextmanager
def _damage_said(send: Callable[[tuple[str, Any]], Any]) -> Iterator[None]:
    """What is found damaged goes to who asked for the run, who alone knows where to say it."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", store.DamageWarning)
        show = warnings.showwarning

        def said(message: Any, category: Any, *rest: Any, **more: Any) -> None:
            if issubclass(category, store.DamageWarning):
                send(("damage", str(message)))
            else:
                show(message, category, *rest, **more)

        warnings.showwarning = said
        yield


def _train(
    group: Group, out: Path, send: Callable[[tuple[str, Any]], Any], data: str | None
) -> None:
    try:
        import torch

        from batchramp.training import fit

        if data is not None:
            os.environ["BATCHRAMP_DATA"] = data
        # More would wait for each other: OpenMP's barrier spins, and other runs need the core.
        torch.set_num_threads(1)
        run, task = group[0], _task(group[0])
        if len(group) == 1:
            result = fit(
                task,
                run.plan,
                seed=run.seed,
                optimizer=_optimizer(run),
                fields=dict(run.fields),
                on_epoch=lambda row: send(("row", (0, row))),
                out=out / run.folder,
                constants=run.constants,
                **_names(run),
            )
            statuses: tuple[str, ...] = (result.status,)
        else:
            from batchramp.experiments.vectorised import Member, train_together

            members = [
                Member(plan=run.plan, seed=run.seed, out=out / run.folder, **_names(run))
                for run in group
            ]
            statuses = train_together(
                task, members, on_row=lambda index, row: send(("row", (index, row)))
            )
        send(("ended", statuses))
    except BlockingIOError:
        send(("taken", None))
    except BrokenPipeError:
        raise
    except Exception as error:  # whatever it is, it is this group's and goes into its record
        send(("failed", f"{type(error).__name__}: {error}"))


def _task(run: Run) -> Any:
    from batchramp.experiments import tasks

    options = {name: getattr(run, name) for name in ("device", *_TASK_OPTIONS)}
    return dataclasses.replace(tasks.load(run.task, run.model), **options)


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
    scheduled(make, [torch.zeros(1, requires_grad=True)], run.plan, dict(run.fields))


def _check_device(device: str, *, here: bool) -> None:
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (":" in device and not index.isdecimal()):
        raise ValueError(f"device must be cpu or cuda, as in cuda:0, got {device!r}")
    if kind == "cuda" and here:
        import torch

        if int(index or 0) >= torch.cuda.device_count():
            raise ValueError(
                f"device must be cpu or one that torch sees ({torch.cuda.device_count()} of cuda), "
                f"got {device!r}"
            )


def _names(run: Run) -> dict[str, Any]:
    return {name: getattr(run, name) for name in ("label", "panel", "experiment", "note")}


def _identity(run: Run) -> dict[str, Any]:
    return store.identity(
        task=run.task,
        model=run.model,
        optimizer=_optimizer(run),
        plan=run.plan,
        seed=run.seed,
        options={name: True for name in _TASK_OPTIONS if getattr(run, name)},
        **_names(run),
    )


def _record_failure(run: Run, folder: Path, error: str) -> None:
    # What cannot be recorded still stands in the outcome: the folder itself may be what failed, or
    # another runner may have taken it up.
    with contextlib.suppress(OSError, ValueError), store.lock(folder):
        if store.existing(folder, _identity(run), resume=True) is None:
            store.create(folder, _identity(run), {})
        store.finish(folder, "failed", error)
