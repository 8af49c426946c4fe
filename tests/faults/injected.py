"""Faults on purpose: what breaks under a run, where, and what the run owes after it.

`Layer` stands between a run and its files: it numbers every operation on files below a folder
(open, write, fsync, replace, unlink, mkdir) and every step of an optimizer, and lets a `Fault`
happen at one of them: the process is killed there, in a write after a part of it, or the system
says that the disk is full, broken or read-only. `damaged` gives what a disk or a copy makes of a
file. `goes_on` is what is owed: that the run ends where the uninterrupted one ends, to the last
bit, with nothing left over.
"""

import builtins
import errno
import multiprocessing
import os
import random
import signal
import struct
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from test_training import left_by, noisy_net, same, small, snapshot
from torch.optim.optimizer import register_optimizer_step_pre_hook

from batchramp import Plan, store
from batchramp import schedules as s
from batchramp.training import fit

# Two epochs at least stand before and after what a fault strikes; dropout and BatchNorm, so that
# the random state and buffers must come back as well.
PLAN = Plan(
    epochs=4,
    batch_size=s.Exponential(16, factor=2, every=1),
    lr=s.Cosine(0.3),
    beta=s.StepDecay(0.9, factor=0.5, every=2),
    gamma=0.7,
)

# How many faults were injected, by kind; told at the end of a session.
counted: Counter[str] = Counter()

# What an operating system refuses by each of these.
STRIKES = {
    "ENOSPC": ("open", "write", "fsync", "mkdir"),
    "EIO": ("write", "fsync"),
    "EROFS": ("open", "replace", "unlink", "mkdir"),
    "EACCES": ("open", "replace", "unlink", "mkdir"),
    "MemoryError": ("step",),
    "OutOfMemoryError": ("step",),
}


@dataclass(frozen=True)
class Fault:
    """What happens at operation ``at``: "kill", a name of `STRIKES`.

    ``part`` of a write is done before it; ``lasting``: all that comes after fails likewise.
    """

    kind: str
    at: int
    part: float = 0.0
    lasting: bool = False


class Layer:
    """Counts operations below ``folder``, and lets ``fault`` happen."""

    def __init__(self, folder: Path, fault: Fault | None = None) -> None:
        self.folder, self.fault = str(folder), fault
        self.seen: list[str] = []  # what was done, in order
        self.struck = False

    def __enter__(self) -> "Layer":
        self._stack = ExitStack()
        for module, name in (
            (os, "fsync"), (os, "replace"), (os, "unlink"), (os, "mkdir"), (builtins, "open"),
        ):  # fmt: skip
            patched = mock.patch.object(module, name, self._around(name, getattr(module, name)))
            self._stack.enter_context(patched)
        hook = register_optimizer_step_pre_hook(lambda *_: self.at("step"))
        self._stack.callback(hook.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _around(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **more: Any) -> Any:
            if name != "fsync" and not str(given[0]).startswith(self.folder):
                return real(*given, **more)
            if name == "open":
                mode = given[1] if len(given) > 1 else more.get("mode", "r")
                if "r" in mode:
                    return real(*given, **more)
                self.at(name)
                return _File(self, real(*given, **more))
            self.at(name)
            return real(*given, **more)

        return call

    def at(self, name: str, half: Callable[[float], None] | None = None) -> None:
        """One operation is about to be done; ``half`` does a part of it."""
        number = len(self.seen)
        self.seen.append(name)
        fault = self.fault
        if fault is None or number < fault.at or (number > fault.at and not fault.lasting):
            return
        if fault.kind != "kill" and name not in STRIKES[fault.kind]:
            return
        self.struck = True
        if half is not None:
            half(fault.part)
        if fault.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault.kind == "MemoryError":
            raise MemoryError
        if fault.kind == "OutOfMemoryError":
            raise torch.OutOfMemoryError("out of memory")
        code = getattr(errno, fault.kind)
        raise OSError(code, os.strerror(code))


class _File:
    """A file whose writes are operations of a `Layer`."""

    def __init__(self, layer: Layer, file: Any) -> None:
        self._layer, self._file = layer, file

    def write(self, content: Any) -> int:
        def half(part: float) -> None:
            self._file.write(bytes(content)[: int(part * len(content))])
            self._file.flush()

        self._layer.at("write", half)
        return self._file.write(content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


# ------------------------------------------------------------------------------- what is trained


def train(folder: Path, **how: Any) -> Any:
    return fit(small(noisy_net), PLAN, seed=0, out=folder, **how)


def killed_in(work: Callable[[Path], Any], folder: Path, fault: Fault) -> bool:
    """Does ``work`` in a process of its own that ``fault`` kills; whether it did."""
    counted[fault.kind] += 1
    process = context().Process(target=_until_killed, args=(work, folder, fault))
    process.start()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return process.exitcode != 0


def _until_killed(work: Callable[[Path], Any], folder: Path, fault: Fault) -> None:
    torch.set_num_threads(1)
    with Layer(folder, fault):
        work(folder)


def context() -> Any:
    """Children that are forked from a server, ready to train."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["batchramp.training", "torch._dynamo", __name__])
    return found


def operations(work: Callable[[Path], Any], folder: Path) -> list[str]:
    """What ``work`` does below ``folder``, in order."""
    with Layer(folder) as layer:
        work(folder)
    return layer.seen


# --------------------------------------------------------------------------- what a run owes


def one_line(error: BaseException) -> None:
    said = str(error)
    assert said, type(error)
    assert "\n" not in said, said


def goes_on(folder: Path, whole: Any, names: list[str]) -> None:
    """The run in ``folder`` ends as the uninterrupted one did, and leaves the same files."""
    train(folder)
    assert same(left_by(folder), whole)
    assert sorted(os.listdir(folder)) == names


def goes_on_or_refuses(folder: Path, whole: Any, names: list[str]) -> str:
    """As `goes_on`, or refused in one line with everything on disk as it was. Says which."""
    before = snapshot(folder)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            goes_on(folder, whole, names)
        except (ValueError, OSError) as error:
            one_line(error)
            assert snapshot(folder) == before
            return "refused"
    for warning in said:
        assert warning.category is store.DamageWarning, warning
        one_line(warning.message)  # type: ignore[arg-type]
    return "fell back" if said else "went on"


@contextmanager
def failing(fault: Fault, folder: Path) -> Iterator[Layer]:
    """Inside, the fault happens, and what it raises ends here; in one line, if it is an OSError."""
    counted[fault.kind] += 1
    with Layer(folder, fault) as layer:
        try:
            yield layer
        except OSError as error:
            one_line(error)
        except (MemoryError, torch.OutOfMemoryError):
            pass


# --------------------------------------------------------------------------------- damaged files


def boundaries(content: bytes, name: str) -> list[int]:
    """Lengths at which a file may be cut: one of each kind of place in it."""
    end = len(content)
    found = {0, 1, 2, 3, 4, end // 2, end - 1, end - 2, end - 8, end - 9, end - 35, end - 36}
    if name.endswith(".pt"):
        import io

        with zipfile.ZipFile(io.BytesIO(content)) as file:
            for record in file.infolist():
                header = record.header_offset
                _, _, named, more = struct.unpack("<IIHH", content[header + 18 : header + 30])
                starts = header + 30 + named + more
                found |= {header, header + 15, starts, starts + record.compress_size // 2}
                found |= {starts + record.compress_size}
            found |= {file.start_dir, file.start_dir + 20}
        at = content.rindex(b"PK\x05\x06")
        found |= {at, at + 4, at + 21, at + 22}
    else:
        for at, byte in enumerate(content):
            if byte == ord("\n"):
                found |= {at, at + 1, at + 2}
    return sorted(length for length in found if 0 <= length < end)


def flipped(content: bytes, generator: random.Random, bits: int = 1) -> bytes:
    """``content`` with so many bits the other way."""
    changed = bytearray(content)
    for place in generator.sample(range(8 * len(content)), bits):
        changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def mutated(content: bytes, generator: random.Random) -> bytes:
    """What a hostile hand or a broken tool makes of a valid file."""
    changed = bytearray(content)
    for _ in range(generator.choice((1, 1, 1, 2, 4, 8))):
        at = generator.randrange(len(changed) + 1)
        length = min(generator.choice((1, 1, 2, 4, 16)), len(changed) - at)
        kind = generator.randrange(7)
        if kind == 0:
            changed[at : at + length] = generator.randbytes(length)
        elif kind == 1:
            del changed[at : at + length]
        elif kind == 2:
            changed[at:at] = changed[at : at + length] * generator.choice((1, 2, 50))
        elif kind == 3:
            changed[at:at] = generator.choice(_WORDS)
        elif kind == 4:
            changed[at : at + length] = generator.choice(_WORDS)
        elif kind == 5 and changed:
            changed[min(at, len(changed) - 1)] ^= 1 << generator.randrange(8)
        elif kind == 6 and generator.random() < 0.3:
            del changed[at:]
    return bytes(changed)


# What parsers and numbers stumble over.
_WORDS = [
    b"-", b"0", b"1e999", b"-1e308", b"1e-320", b"NaN", b"Infinity", b"nan", b"inf", b"null",
    b"true", b"[]", b"{}", b"[[[[[[[[", b"{{{{{{{{", b"[" * 3000, b"\x00", b"\xff",
    b"\xff\xff\xff\xff",
    b"\x80\x02c", b"cos\nsystem\n", b"<script>", b"9" * 30, b"9" * 5000, b"1.0000000000000002",
    b"\xed\xa0\x80", b"\\ud800", b"\n", b"\r\n", b"\"", b"'", b"=", b",", b"PK\x03\x04",
    b"\x1f\x8b\x08", b"../../x", b"__class__", b"2147483648", b"9223372036854775808", b"1979-05-27",
]  # fmt: skip


def many(quick: int, slow: int, soak: int) -> Any:
    """Parametrizes ``count``: some always, more where there is time, and far more in a soak."""
    return pytest.mark.parametrize(
        "count",
        [
            quick,
            pytest.param(slow, marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
            pytest.param(soak, marks=[pytest.mark.soak, pytest.mark.timeout(0)]),
        ],
    )
