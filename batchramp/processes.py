"""The processes that train one model together: one decides, and all end in the same way.

Each holds the same parameters and takes its share of every global batch; DDP averages gradients.
What is read, measured, decided and written is so on the first process, and told to the others.
"""

import atexit
import contextlib
import gc
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, final

import numpy as np
import torch
from torch import Tensor, nn

from batchramp.batching import ranks

__all__ = ["Processes", "join"]

T = TypeVar("T")

# Why this process can no longer train with the others.
_failures: list[str] = []

# Sets the random streams of the processes apart from the order of the samples.
_OWN = 2


def join(device: str = "cpu") -> "Processes":
    """The processes that this one trains with.

    Those of torch.distributed's group where it is initialised. Else, where the environment is that
    of torchrun (RANK, WORLD_SIZE > 1, MASTER_ADDR), the group is initialised here, once, with gloo
    for a CPU and with nccl beside it for GPUs, and left when this process ends. Else this one
    alone.

    Args:
        device: where is trained.
    """
    from torch import distributed

    started = {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys()
    if started and os.environ["WORLD_SIZE"] != "1" and not distributed.is_initialized():
        cuda = device.startswith("cuda")
        with _told_plainly():
            _begin("cpu:gloo,cuda:nccl" if cuda else "gloo")
        atexit.register(_leave)
    return Processes(*ranks.this_process())


def _begin(backend: str) -> None:
    """Initialises the group, as of torchrun's env://, but each restart by keys of its own.

    torchrun keeps its store over a restart, and with it the addresses of processes that have died:
    who reads one before it is written anew is refused a connection.
    """
    from torch import distributed
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, rank, world_size = next(iter(rendezvous("env://")))
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"batchramp/{restart}", store)
    distributed.init_process_group(backend, store=store, rank=rank, world_size=world_size)


def _leave() -> None:
    from torch import distributed

    if distributed.is_initialized():
        gc.collect()  # a DDP module left in a cycle holds the group, whose threads would outlive us
        distributed.destroy_process_group()


@final
class Processes:
    """This process among those that train one model.

    What they tell each other goes through torch's object collectives, which pickle it: a group is
    of one user's processes. On one process nothing is told, and nothing costs.
    """

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank = rank
        self.world_size = world_size
        self.alone = world_size == 1

    def own(self, device: str) -> str:
        """The device of this process where all were told "cuda": that of its LOCAL_RANK."""
        if self.alone or device != "cuda":
            return device
        index = int(os.environ.get("LOCAL_RANK", self.rank))
        torch.cuda.set_device(index)
        return f"cuda:{index}"

    def once(self, work: Callable[..., T], *arguments: Any) -> T:
        """Does ``work`` on the first process. All return its result, or raise its error."""
        if self.alone:
            return work(*arguments)
        from torch import distributed

        said: list[Any] = [None, None]
        raised = None
        if self.rank == 0:
            try:
                said[0] = work(*arguments)
            except Exception as error:
                raised, said[1] = error, _portable(error)
        with _told_plainly():
            distributed.broadcast_object_list(said, src=0)
        if (error := raised or said[1]) is not None:
            raise error
        return said[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """What fails inside on one process fails on all, with the first one's error.

        Inside, nothing may wait for another process.
        """
        if self.alone:
            yield
            return
        raised = None
        try:
            yield
        except Exception as error:
            raised = error
        errors = [error for error in self._all(_portable(raised)) if error is not None]
        if errors:
            raise errors[0] from raised

    def check_same(self, what: Mapping[str, Any]) -> None:
        """Refuses processes that were told different things.

        Raises:
            ValueError: on all of them; it names what differs.
        """
        if self.alone:
            return
        first, *others = self._all(dict(what))
        for rank, other in enumerate(others, start=1):
            for name, value in first.items():
                if other[name] != value:
                    raise ValueError(
                        f"{name} must be the same on every process, got {value!r} on process 0 and "
                        f"{other[name]!r} on process {rank}"
                    )

    def shared(self, network: nn.Module) -> nn.Module:
        """``network`` under DDP: the processes' gradients are averaged in its backward pass."""
        if self.alone:
            return network
        from torch.nn.parallel import DistributedDataParallel

        device = next(network.parameters()).device
        with _told_plainly():
            return DistributedDataParallel(
                network,
                device_ids=[device] if device.type == "cuda" else None,
                gradient_as_bucket_view=True,
            )

    def mean(self, value: Tensor) -> float:
        """The mean over the processes, the same on all of them."""
        if self.alone:
            return value.item()
        from torch import distributed

        total = value.detach().clone()
        distributed.all_reduce(total)
        return total.item() / self.world_size

    def share_buffers(self, model: nn.Module) -> None:
        """Gives all the first process's buffers, such as running statistics."""
        if self.alone:
            return
        from torch import distributed

        for buffer in model.buffers():
            distributed.broadcast(buffer, src=0)

    def seed_own(self, seed: int, epoch: int) -> None:
        """Gives each process but the first random numbers of its own.

        A function of (seed, epoch, rank), so that a resumed run needs no more than the first one's
        state.
        """
        if self.rank > 0:
            own = np.random.SeedSequence([seed, epoch, self.rank, _OWN])
            torch.manual_seed(int(own.generate_state(1, np.uint64)[0]))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Around what waits for other processes in its midst.

        That another has ended is said in one line, where torch says which socket broke. What fails
        here alone leaves the others waiting: from then on this process tells them nothing, so that
        it ends, and they with it.
        """
        if self.alone:
            yield
            return
        try:
            with _told_plainly():
                yield
        except Exception as error:
            _failures.append(f"{type(error).__name__}: {error}")
            raise

    def _all(self, value: Any) -> list[Any]:
        from torch import distributed

        found: list[Any] = [None] * self.world_size
        with _told_plainly():
            distributed.all_gather_object(found, value)
        return found


@contextmanager
def _told_plainly() -> Iterator[None]:
    from torch import distributed

    if _failures:
        raise ConnectionError(f"this process has failed while others waited: {_failures[0]}")
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        reason = " ".join(str(error).split())
        raise ConnectionError(
            "another process of this run has ended or does not answer, and so this one ends: start "
            f"all of them again to go on from the last checkpoint ({reason})"
        ) from None


def _portable(error: Exception | None) -> Exception | None:
    """``error``, or one that says the same where it cannot be sent."""
    with contextlib.suppress(Exception):
        if error is None or str(pickle.loads(pickle.dumps(error))) == str(error):
            return error
    return RuntimeError(f"{type(error).__name__}: {error}")
