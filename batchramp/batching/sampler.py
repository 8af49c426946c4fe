"""Which samples form batch k of an epoch: a pure function of (seed, epoch, position)."""

import sys
import warnings
from collections.abc import Iterator, Mapping, Sized
from itertools import accumulate
from numbers import Integral, Real
from operator import itemgetter
from typing import Any, final

import numpy as np
from torch.utils.data import DataLoader, Sampler

from batchramp.batching import ranks
from batchramp.plan import Plan

__all__ = ["ScheduledBatchSampler"]

# Names the way from (seed, epoch) to an order of samples. It changes when that way changes, so that
# an old state is refused and not continued with other batches.
ALGORITHM = "numpy-pcg64-1"


@final
class ScheduledBatchSampler(Sampler[list[int]]):
    """Batches of the sizes that a Plan schedules, for ``DataLoader(batch_sampler=...)``.

    The sampler itself decides each batch from its own position, so that workers which prefetch,
    persistent ones included, change nothing. Every sample comes exactly once an epoch; the last
    batch of an epoch takes what is left.

    With several processes the scheduled batch is the global one: each process has a sampler with
    the same arguments and gets its contiguous share of every batch. Shares differ by at most one
    sample, and the mean loss over a share times `weight`, averaged by DDP, is the mean over the
    global batch. Sizes, length, order and state are global: a state of one number of processes
    loads in another.

    Args:
        plan: the Plan.
        dataset_or_n: a data set with a length, or the number of samples n >= 1.
        seed: an integer >= 0; with the epoch it decides the order.
        shuffle: a new permutation each epoch; False for the data set's own order.
        drop_last: leave out an epoch's last batch that is shorter than scheduled. The last batch
            of a Plan in samples stays, whatever its size: the Plan ends there.
        replacement: draw each sample independently and uniformly, n draws an epoch: condition
            (C3) of Imaizumi and Iiduka (ACML 2025), which their theorems assume.
        rank, world_size: which process of how many this is; both None for those of
            torch.distributed where it is initialised, as DistributedSampler has it, else 0 and 1.

    Attributes:
        epoch: the epoch that a pass yields.
        first_batch: the batch of it that a pass starts with; not 0 only after a resume.

    Raises:
        ValueError: an empty data set, a negative seed, ``replacement`` without ``shuffle``, a rank
            outside 0..world_size - 1 or one of the two without the other, or a batch size below
            world_size.

    >>> from batchramp import Plan, schedules as s
    >>> plan = Plan(epochs=2, batch_size=s.Exponential(2, factor=2, every=1))
    >>> sampler = ScheduledBatchSampler(plan, 5, shuffle=False)
    >>> len(sampler), list(sampler)
    (3, [[0, 1], [2, 3], [4]])
    >>> sampler.set_epoch(1)
    >>> list(sampler)
    [[0, 1, 2, 3], [4]]
    >>> shared = ScheduledBatchSampler(plan, 5, shuffle=False, rank=1, world_size=2)
    >>> list(shared), [shared.weight(k) for k in range(3)]  # of the last batch it has no share
    ([[1], [3], [4]], [1.0, 1.0, 0.0])

    In torchdata's StatefulDataLoader nothing needs to be called: its state holds the position, at
    any batch; that loader wants as many workers again as it was saved with. Elsewhere save and load
    `state_dict` beside the loop, which any number of workers may resume.

    Differs from torch's BatchSampler: it has no attribute ``batch_size``, which hosts would copy
    once and then believe. Differs from torch's DistributedSampler: nothing is padded.
    """

    def __init__(
        self,
        plan: Plan,
        dataset_or_n: Sized | int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        replacement: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if not isinstance(plan, Plan):
            raise ValueError(f"plan must be a Plan, got {type(plan).__name__}")
        # SeedSequence takes words of 32 bits: a longer seed would share an order with a short one.
        if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= seed < 2**32:
            raise ValueError(f"seed must be an integer >= 0 and below 2**32, got {seed!r}")
        flags = {"shuffle": shuffle, "drop_last": drop_last, "replacement": replacement}
        for name, flag in flags.items():
            if not isinstance(flag, bool):
                raise ValueError(f"{name} must be True or False, got {flag!r}")
        if replacement and not shuffle:
            raise ValueError("replacement draws at random: it needs shuffle=True, got False")
        self.rank, self.world_size = ranks.chosen(rank, world_size)
        ranks.check_batch_sizes(plan, self.world_size)
        self.plan = plan
        self.n = _length(dataset_or_n)
        self.seed = int(seed)
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.replacement = replacement
        self.epochs = plan.total_epochs(self.n, drop_last)
        self._loaded = False
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Goes to the start of an epoch, 0 <= epoch <= the number of epochs.

        Where a state of this epoch was loaded and no pass has begun, it stays there: a resumed loop
        may call it before each pass as any other does.
        """
        epoch = self._checked(epoch)
        if self._loaded and epoch == self.epoch:
            return
        self.epoch = epoch
        self.first_batch = 0  # of the epoch, that a pass starts with; not 0 only after a resume
        self._begun = self._finished = self._over = self._loaded = False
        self._sizes = self._sizes_of(self.epoch)

    def __len__(self) -> int:
        """Batches that a pass yields; 0 after the last epoch."""
        return len(self._sizes) - self.first_batch

    def __iter__(self) -> Iterator[list[int]]:
        if _called_by("accelerate.data_loader"):
            raise ValueError(
                "accelerate would deal whole batches to the processes, where each has its share of "
                "every batch: leave the loader out of accelerator.prepare"
            )
        return _Pass(self)

    def shares(self) -> Iterator[np.ndarray]:
        """What iterating yields, as int64 arrays: this process's share of every batch."""
        if self.world_size == 1:
            return map(itemgetter(1), self.batches())
        return (indices[self.share(len(indices))] for _, indices in self.batches())

    def share(self, size: int) -> slice:
        """Where in a global batch of ``size`` samples this process's lie."""
        return ranks.share(size, self.rank, self.world_size)

    def weight(self, k: int) -> float:
        """What the mean loss over this process's share of batch k is to be multiplied with.

        world_size · |share| / C for a global batch of C samples: averaged by DDP, the gradients are
        those of the mean over the global batch. 0 where this process has no share and only repeats
        the batch's first sample. Always 1 on one process.

        Args:
            k: the batch, counted from the start of this epoch, also in a resumed pass:
                ``enumerate(loader, sampler.first_batch)``.

        Raises:
            ValueError: this epoch has no batch k.
        """
        sizes = self._sizes
        if not isinstance(k, Integral) or isinstance(k, bool) or not 0 <= k < len(sizes):
            raise ValueError(
                f"k must be a batch of epoch {self.epoch}, which has {len(sizes)}, got {k!r}"
            )
        return ranks.weight(sizes[k], self.rank, self.world_size)

    def batches(self) -> Iterator[tuple[int, np.ndarray]]:
        """The global batches, as (position of the first sample, indices as an int64 array)."""
        if self._over:
            self.set_epoch(self.epoch + 1)
        if self.epoch == self.epochs:
            raise ValueError(f"the plan ends after {self.epochs} epochs: there is no further batch")
        if self._finished:
            warnings.warn(
                f"epoch {self.epoch} is iterated once more with the same batches: call "
                "scheduler.step() or sampler.set_epoch() between epochs",
                stacklevel=_stack_level(),
            )
        self._begun, self._loaded = True, False
        # Epoch and start are those of this call, whatever is set while workers still draw.
        return self._pass(self.epoch, self.first_batch, self.order(), self.sizes())

    def _pass(
        self, epoch: int, first: int, order: np.ndarray, sizes: list[int]
    ) -> Iterator[tuple[int, np.ndarray]]:
        start = sum(sizes[:first])
        for number, size in enumerate(sizes[first:], first + 1):
            if number == len(sizes) and self.epoch == epoch:
                self._finished = True
            yield start, order[start : start + size]
            start += size

    def sizes(self) -> list[int]:
        """The true sizes of all batches of this epoch, in order; none after the last epoch."""
        return list(self._sizes)

    def order(self) -> np.ndarray:
        """The sample indices of this epoch in order, an int64 array of length n."""
        if not self.shuffle:
            return np.arange(self.n)
        generator = np.random.Generator(
            np.random.PCG64(np.random.SeedSequence([self.seed, self.epoch]))
        )
        if self.replacement:
            return generator.integers(0, self.n, size=self.n)
        return generator.permutation(self.n)

    def state_dict(self, *, batches_done: int | None = None) -> dict[str, Any]:
        """The position as (epoch, sample index), with what it is a position in.

        Args:
            batches_done: batches of this epoch that were *trained*. A loader with workers has
                drawn more than that, so only the training loop knows. It counts from the start of
                the epoch, also in a resumed pass: ``for done, batch in enumerate(loader,
                sampler.first_batch + 1)``. None before a pass of this epoch has begun: where
                it starts.

        Raises:
            ValueError: more batches than the epoch has, or None once a pass has begun.
        """
        # torchdata asks this too, beside the pass, whose state it goes on from.
        if batches_done is None and self._begun and not _called_by("torchdata."):
            raise ValueError(
                f"batches_done must be given once a pass has begun: how many of the "
                f"{len(self._sizes)} batches of epoch {self.epoch} were trained, got None"
            )
        done = self.first_batch if batches_done is None else batches_done
        return self._state(self.epoch, self._sizes, done)

    def _state(self, epoch: int, sizes: list[int], done: Any) -> dict[str, Any]:
        whole = isinstance(done, Integral) and not isinstance(done, bool)
        if not whole or not 0 <= int(done) <= len(sizes):
            raise ValueError(f"batches_done must be in 0..{len(sizes)}, got {done!r}")
        return {
            "epoch": epoch,
            "sample": sum(sizes[: int(done)]),
            "plan": self.plan.to_dict(),
            **self._identity(),
        }

    def load_state_dict(self, state_dict: dict[str, Any], *, strict: bool = True) -> None:
        """Goes to a saved position; a pass then yields the batches that remain of its epoch.

        Args:
            state_dict: from `state_dict`.
            strict: refuse the position of another plan.

        Raises:
            ValueError: another data set length, seed, order or plan; or a position where no batch
                of this plan starts. The sampler stays where it was.
        """
        check_state(state_dict, {"epoch", "sample"}, self._identity(), self.plan, strict)
        epoch, sample = self._checked(state_dict["epoch"]), state_dict["sample"]
        starts = list(accumulate(self._sizes_of(epoch), initial=0))
        if sample not in starts:
            raise ValueError(f"sample must be where a batch of epoch {epoch} starts, got {sample}")
        self._loaded = False
        self.set_epoch(epoch)
        self.first_batch, self._loaded = starts.index(sample), True

    def _checked(self, epoch: Any) -> int:
        whole = isinstance(epoch, Integral) and not isinstance(epoch, bool)
        if not whole or not 0 <= int(epoch) <= self.epochs:
            raise ValueError(f"epoch must be in 0..{self.epochs}, got {epoch!r}")
        return int(epoch)

    def _sizes_of(self, epoch: int) -> list[int]:
        if epoch == self.epochs:
            return []
        return self.plan.batch_sizes(epoch, self.n, self.drop_last)

    def _identity(self) -> dict[str, Any]:
        names = ("n", "seed", "shuffle", "drop_last", "replacement")
        return {"algorithm": ALGORITHM, **{name: getattr(self, name) for name in names}}


@final
class _Pass(Iterator[list[int]]):
    """The batches of a pass, with a state: torchdata's StatefulDataLoader asks what it iterates."""

    def __init__(self, sampler: ScheduledBatchSampler) -> None:
        self._sampler = sampler
        self._start()

    def _start(self) -> None:
        self._shares = map(np.ndarray.tolist, self._sampler.shares())
        self._epoch, self._sizes = self._sampler.epoch, self._sampler.sizes()
        self._done = self._sampler.first_batch

    def __next__(self) -> list[int]:
        indices = next(self._shares)
        self._done += 1
        return indices

    def state_dict(self) -> dict[str, Any]:
        return self._sampler._state(self._epoch, self._sizes, self._done)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._sampler.load_state_dict(state_dict)
        self._start()
        # At the end of an epoch this pass has nothing left, and what is begun after it is the next.
        self._sampler._over = self._done == len(self._sizes)


def check_state(
    state_dict: Any, names: set[str], identity: Mapping[str, Any], plan: Plan, strict: bool
) -> None:
    """Refuses a state that is no position, or one in other batches.

    Args:
        state_dict: what was given.
        names: of what it must have, beside ``identity`` and a plan.
        identity: what must be as it was saved.
        plan: that of the batches here; with ``strict`` another one is refused.
    """
    needed = {*names, "plan", *identity}
    if not isinstance(state_dict, Mapping) or not needed <= state_dict.keys():
        found = list(state_dict) if isinstance(state_dict, Mapping) else state_dict
        raise ValueError(
            f"state_dict must have {', '.join(sorted(needed))}, as state_dict() returns it, "
            f"got {found}"
        )
    for name, ours in identity.items():
        if state_dict[name] != ours:
            raise ValueError(
                f"{name} differs: saved {state_dict[name]!r}, here {ours!r}; its position is "
                "one in other batches: resume with what was saved, or start anew"
            )
    if strict and (theirs := Plan.from_dict(state_dict["plan"])) != plan:
        raise ValueError(
            f"plan differs from the one that was saved: saved {theirs!r}, here {plan!r}; "
            "strict=False resumes all the same"
        )


def _called_by(module: str) -> bool:
    """Whether the caller of this function's caller is of that module."""
    return sys._getframe(2).f_globals.get("__name__", "").startswith(module)


def _stack_level() -> int:
    """Of the nearest caller outside torch and this package, for the caller of this function."""
    level, frame = 0, sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] in _OURS:
        level, frame = level + 1, frame.f_back
    return level + 1


_OURS = ("batchramp", "torch")


def _length(dataset_or_n: Any) -> int:
    n = dataset_or_n
    if isinstance(n, DataLoader):
        raise ValueError("dataset_or_n must be a data set or its length, got a DataLoader")
    if not isinstance(n, Real):
        try:
            n = len(dataset_or_n)
        except TypeError:
            n = type(dataset_or_n).__name__
    if isinstance(n, Integral) and not isinstance(n, bool) and int(n) >= 1:
        return int(n)
    raise ValueError(
        f"dataset_or_n must be a number of samples >= 1 or a data set of such a length, got {n}"
    )
