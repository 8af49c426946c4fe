"""How a global batch is dealt to processes: contiguous shares, and their weights under DDP's mean.

Nothing here speaks to another process. The batch size that a Plan schedules is that of the global
batch, whatever the number of processes.
"""

import sys
from numbers import Integral
from typing import Any

from batchramp.plan import Plan

__all__ = ["check_batch_sizes", "chosen", "share", "this_process", "weight"]


def share(size: int, rank: int, world_size: int) -> slice:
    """Where in a global batch the samples of a process lie.

    Shares are contiguous, in the order of the ranks, and their sizes differ by at most one: the
    first ranks have the larger ones. A process for which no sample is left takes the batch's first
    once more, with `weight` 0, for it must take part in the step.

    Args:
        size: of the global batch, >= 1.
        rank: of the process, 0 <= rank < world_size.
        world_size: the number of processes.

    >>> [share(8, rank, 3) for rank in range(3)]
    [slice(0, 3, None), slice(3, 6, None), slice(6, 8, None)]
    >>> share(2, 2, 3), weight(2, 2, 3)
    (slice(0, 1, None), 0.0)
    """
    least, more = divmod(size, world_size)
    if rank >= more and not least:
        return slice(0, 1)
    start = rank * least + min(rank, more)
    return slice(start, start + least + (rank < more))


def weight(size: int, rank: int, world_size: int) -> float:
    """What the mean loss over a share is multiplied with: world_size · |share| / size.

    (1/W) Σ_r w_r ∇(mean over share r) = (1/size) Σ_i ∇f_i: DDP's mean over W processes of the
    weighted gradients is the gradient of the mean over the global batch. 0 where `share` repeats a
    sample.

    >>> [weight(8, rank, 3) for rank in range(3)]
    [1.125, 1.125, 0.75]
    """
    least, more = divmod(size, world_size)
    return world_size * (least + (rank < more)) / size


def this_process() -> tuple[int, int]:
    """(rank, world size) of torch.distributed's group, (0, 1) where none is initialised.

    Raises:
        ValueError: accelerate, which would average the gradients, counts other processes.
    """
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    state = getattr(sys.modules.get("accelerate"), "PartialState", None)
    counted = getattr(state, "_shared_state", {}).get("num_processes", world_size)
    if counted != world_size:
        raise ValueError(
            f"accelerate counts {counted} process where torch.distributed has {world_size}, and "
            "would train each alone: without a GPU it is to be told, Accelerator(cpu=True)"
        )
    return rank, world_size


def chosen(rank: Any, world_size: Any) -> tuple[int, int]:
    """A rank and a world size as given, or those of `this_process` for two times None.

    Raises:
        ValueError: one without the other, a world size below 1, or a rank outside
            0..world_size - 1.
    """
    if rank is None and world_size is None:
        return this_process()
    if rank is None or world_size is None:
        raise ValueError(
            f"rank and world_size go together, got rank={rank!r} and world_size={world_size!r}"
        )
    if not _whole(world_size) or world_size < 1:
        raise ValueError(f"world_size must be an integer >= 1, got {world_size!r}")
    if not _whole(rank) or not 0 <= rank < world_size:
        raise ValueError(f"rank must be in 0..{world_size - 1}, got {rank!r}")
    return int(rank), int(world_size)


def check_batch_sizes(plan: Plan, world_size: int) -> None:
    """Refuses a Plan under which a full batch would leave a process without a sample.

    Raises:
        ValueError: a scheduled batch size is below the world size.
    """
    for tick in plan.batch_size.extremes(plan.length) if world_size > 1 else ():
        if (size := plan.at(tick).batch_size) < world_size:
            raise ValueError(
                f"batch_size must be >= the {world_size} processes, for each takes a share of a "
                f"batch, got {size} at tick {tick} ({plan.unit})"
            )


def _whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
