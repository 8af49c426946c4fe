"""Where a batch stands in the whole of a Plan: what a host does not count."""

import math
from functools import lru_cache
from itertools import accumulate

from batchramp.batching import ScheduledBatchSampler, ScheduledStream
from batchramp.plan import Plan

__all__ = ["Batches", "complete", "ended", "tick_of", "total_of"]

Batches = ScheduledBatchSampler | ScheduledStream


def tick_of(batches: Batches, k: int) -> int:
    """The Plan's tick of batch k of the epoch at which a sampler or a stream stands.

    >>> from batchramp import schedules as s
    >>> plan = Plan(samples=20, batch_size=s.Piecewise({0: 2, 5: 4}))
    >>> sampler = ScheduledBatchSampler(plan, 9)
    >>> sampler.set_epoch(1)
    >>> [tick_of(sampler, k) for k in range(len(sampler))]
    [9, 13, 17]
    """
    if isinstance(batches, ScheduledStream):
        return batches.tick(k)
    plan, epoch = batches.plan, batches.epoch
    if plan.unit == "epochs":
        return epoch
    steps, samples, starts = _starts(plan, batches.n, batches.drop_last, epoch)
    return plan.tick(epoch=epoch, step=steps + k, samples=samples + starts[k])


def total_of(batches: Batches) -> float:
    """Batches of the epoch that a pass is about to yield, or yields; inf where not known."""
    if batches.n is None:
        return math.inf
    return len(batches) + batches.first_batch


def complete(batches: Batches, done: int) -> bool:
    """Whether so many batches are all of the epoch."""
    if isinstance(batches, ScheduledStream):  # may have been read ahead, to its end
        return batches.state_dict(batches_done=done)["over"]
    return done == total_of(batches)


def ended(batches: Batches) -> bool:
    """Whether no batch of the Plan is left."""
    if isinstance(batches, ScheduledStream):
        return batches.ended
    return batches.epoch == batches.epochs


@lru_cache(maxsize=4)
def _starts(plan: Plan, n: int, drop_last: bool, epoch: int) -> tuple[int, int, tuple[int, ...]]:
    """Steps and samples before an epoch, and samples of it before each of its batches."""
    earlier = [plan.batch_sizes(i, n, drop_last) for i in range(epoch)]
    starts = accumulate(plan.batch_sizes(epoch, n, drop_last), initial=0)
    return sum(map(len, earlier)), sum(map(sum, earlier)), tuple(starts)
