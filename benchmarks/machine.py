"""On what was measured, and whether others used it meanwhile."""

import ctypes
import os
import platform
import re
import time
from importlib import metadata
from pathlib import Path
from typing import Any, final

__all__ = ["LIMIT", "Others", "adopt_orphans", "describe", "packages"]

# Cores that others may take of a machine that is called quiet.
LIMIT = 0.15

_PACKAGES = (
    "torch",
    "numpy",
    "qhoptim",
    "pytorch_optimizer",
    "bs_scheduler",
    "torchdata",
    "pillow",
)


def describe() -> dict[str, Any]:
    """The machine, in words and numbers that tell it from others."""
    import torch

    return {
        "processor": _of_proc("/proc/cpuinfo", r"model name\s*:\s*(.+)") or platform.machine(),
        "cores": cores(),
        "memory": _memory(),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **packages(),
    }


def packages() -> dict[str, str]:
    """The versions of what is compared, "missing" where it is not installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def cores() -> int:
    """As many as this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@final
class Others:
    """How many cores everything but this process and its ended children uses, from now on.

    Only Linux tells; elsewhere `cores` is None.
    """

    def __init__(self) -> None:
        self._machine, self._own, self._wall = _busy(), _own(), time.perf_counter()

    def cores(self) -> float | None:
        """The mean since the start; children count as others until they are waited for."""
        now = _busy()
        if now is None or self._machine is None:
            return None
        taken = (now - self._machine) - (_own() - self._own)
        return max(0.0, taken / (time.perf_counter() - self._wall))


def adopt_orphans() -> None:
    """Has this process wait for its children's children too, so that their time is its own.

    A fork server outlives the process that started it by a moment; without this its time would be
    counted as that of others. Linux only; elsewhere nothing happens.
    """
    if platform.system() == "Linux":
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def wait_for_all(seconds: float = 5.0) -> None:
    """Waits for every child that there still is, so that its time is counted."""
    until = time.perf_counter() + seconds
    try:
        while time.perf_counter() < until:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                time.sleep(0.02)
    except ChildProcessError:
        return


def _busy() -> float | None:
    """Seconds of all cores together, since the start of the machine, that were not idle."""
    try:
        line = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0]
    except OSError:
        return None
    user, nice, system, _idle, _waiting, irq, softirq, steal = map(int, line.split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _own() -> float:
    return sum(os.times()[:4])


def _of_proc(path: str, pattern: str) -> str:
    try:
        found = re.search(pattern, Path(path).read_text(encoding="utf-8"))
    except OSError:
        return ""
    return " ".join(found[1].split()) if found else ""


def _memory() -> str:
    kilobytes = _of_proc("/proc/meminfo", r"MemTotal:\s*(\d+)")
    return f"{int(kilobytes) / 2**20:.0f} GiB" if kilobytes else "unknown"
