"""Groups of runs on the machines of a Ray cluster, whose files meet in one shared folder."""

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from queue import Empty
from typing import Any, final

from batchramp.experiments.run import Run
from batchramp.experiments.runner import BETWEEN, keep_freed_for, train

__all__ = ["Cluster"]

_SECONDS_TO_ANSWER = 15
# Ray starts a task again when its machine or process dies, so many times; the run goes on from its
# checkpoint. What kills every process that tries it fails in the end.
_RESTARTS = 3

Group = tuple[Run, ...]


@final
class Cluster:
    """Workers on a Ray cluster: each group is a task of one core (and one GPU where it asks).

    All machines need this package and the folder ``out`` under the same path, on a file system that
    locks files for all of them, as NFS 4 does.

    Args:
        address: as `ray.init` takes it: "host:6379" or "auto" from a machine of the cluster,
            "ray://host:10001" from outside, "local" for a cluster of this machine alone.
        jobs: groups at a time; None for as many as the cluster has cores.
        out: the folder above those of the runs.

    Raises:
        ValueError: Ray is not installed or no cluster answers.
    """

    def __init__(self, address: str, jobs: int | None, out: Path) -> None:
        try:
            ray: Any = importlib.import_module("ray")
        except ImportError:
            raise ValueError("--ray needs Ray: pip install 'batchramp[ray]'") from None
        self._ray, self._jobs, self._out = ray, jobs, out.resolve()
        self._begun = not ray.is_initialized()
        if self._begun:
            if address != "local":
                _check_answers(address)
            try:
                ray.init(address=address, log_to_driver=False, logging_level="ERROR")
            except Exception as error:  # Ray refuses in many ways
                raise ValueError(_no_answer(address, str(error))) from None
        # Where this process is: it must outlive every other machine.
        here = importlib.import_module("ray.util.scheduling_strategies")
        node = ray.get_runtime_context().get_node_id()
        strategy = here.NodeAffinitySchedulingStrategy(node_id=node, soft=False)
        queues = importlib.import_module("ray.util.queue")
        options = {"num_cpus": 0, "scheduling_strategy": strategy}
        self._queue = queues.Queue(actor_options=options)
        self._active: dict[Any, tuple[int, Group]] = {}
        self._number = 0

    def free(self) -> bool:
        # Machines come and go while runs are trained.
        cores = int(self._ray.cluster_resources().get("CPU", 1))
        return len(self._active) < (self._jobs or max(1, cores))

    def active(self) -> bool:
        return bool(self._active)

    def start(self, group: Group) -> None:
        gpus = any(run.device.startswith("cuda") for run in group)
        task = self._ray.remote(num_cpus=1, num_gpus=int(gpus), max_retries=_RESTARTS)(_train)
        self._number += 1
        data = os.environ.get("BATCHRAMP_DATA")
        reference = task.remote(group, self._out, self._queue, self._number, data)
        self._active[reference] = (self._number, group)

    def receive(self, seconds: float) -> Iterable[tuple[Group, str, Any]]:
        ready, _ = self._ray.wait(list(self._active), timeout=0)
        # What a task sent is in the queue before it is ready.
        yield from self._sent(0 if ready else seconds)
        for reference in ready:
            _, group = self._active.pop(reference)
            try:
                kind, value = self._ray.get(reference)
            except Exception as error:  # its processes died, or what it raised cannot be sent
                first = next(iter(str(error).splitlines()), "")
                kind, value = "failed", f"{type(error).__name__}: {first}"
            yield group, kind, value

    def stop(self) -> None:
        for reference in self._active:
            self._ray.cancel(reference, force=True)
        self._active.clear()
        self._queue.shutdown(force=True)
        if self._begun:
            self._ray.shutdown()

    def _sent(self, seconds: float) -> Iterable[tuple[Group, str, Any]]:
        groups = dict(self._active.values())
        until = time.monotonic() + seconds
        while True:
            messages = self._queue.get_nowait_batch(self._queue.qsize())
            for number, message in messages:
                if number in groups:  # else of one whose machine was given up
                    yield groups[number], *message
            if messages or time.monotonic() >= until:
                return
            try:  # waits where the queue is, not here
                number, message = self._queue.get(timeout=max(0.01, until - time.monotonic()))
            except Empty:
                return
            if number in groups:
                yield groups[number], *message
                return


def _train(group: Group, out: Path, queue: Any, number: int, data: str | None) -> tuple[str, Any]:
    """What a task does: sends rows as they come, and returns how it ended."""
    last: tuple[str, Any] = ("failed", "it ended without a word")

    def send(message: tuple[str, Any]) -> None:
        nonlocal last
        if message[0] in BETWEEN:
            queue.put((number, message))
        last = message

    keep_freed_for(group)
    train(group, out, send, data)
    return last


def _check_answers(address: str) -> None:
    """Asks from a process of its own: one that finds nobody may hang, or end itself."""
    code = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False)"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, address],
            capture_output=True,
            text=True,
            timeout=_SECONDS_TO_ANSWER,
            check=False,
        )
    except subprocess.TimeoutExpired:
        within = f"nothing within {_SECONDS_TO_ANSWER} s"
        raise ValueError(_no_answer(address, within)) from None
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise ValueError(_no_answer(address, lines[-1] if lines else "nothing"))


def _no_answer(address: str, reason: str) -> str:
    return f"ray must be the address of a cluster that answers, got {address!r}: {reason.strip()}"
