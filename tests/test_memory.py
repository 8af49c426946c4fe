"""Freed memory is kept, and changes no number."""

import multiprocessing
import platform
import subprocess
import sys

import pytest

from batchramp import Plan
from batchramp.experiments import Run, runner
from batchramp.memory import keep_freed

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")

# What tensors are to the allocator: a block of 32 MiB, written to and freed, again and again.
_FAULTS = """
import ctypes, resource
from batchramp.memory import keep_freed
if {kept}:
    assert keep_freed()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def once():
    block = libc.malloc(1 << 25)
    ctypes.memset(block, 1, 1 << 25)
    libc.free(block)
once()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    once()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@glibc
def test_a_block_that_was_freed_is_not_faulted_in_again():
    kept, given_back = (
        int(subprocess.check_output([sys.executable, "-c", _FAULTS.format(kept=kept)]))
        for kept in (True, False)
    )
    assert given_back >= 10 * 16  # at least one fault for 2 MiB, the largest page
    assert kept <= given_back / 10


def test_without_glibc_nothing_happens(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert keep_freed() is False


def test_processes_that_train_keep_it_before_they_begin(monkeypatch, tmp_path):
    order = []
    monkeypatch.setattr(runner, "keep_freed", lambda: order.append("kept"))
    monkeypatch.setattr(runner, "train", lambda *_: order.append("trains"))
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        runner._child((), tmp_path, theirs, None)
    assert order == ["kept", "trains"]


def test_a_residual_network_of_big_images_gives_it_back(monkeypatch):
    monkeypatch.setattr(runner, "keep_freed", lambda: True)
    plan = Plan(epochs=1, batch_size=8, lr=0.1, beta=0.9, gamma=0.7)
    assert runner.keep_freed_for([Run("a", plan, "fashion-mini", 0)])
    assert not runner.keep_freed_for([Run("a", plan, "cifar100", 0)])
