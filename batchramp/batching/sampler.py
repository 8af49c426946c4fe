"""Which samples form batch k of an epoch: a pure function of (seed, epoch, position)."""

import warnings
from collections.abc import Iterator, Sized
from typing import Any, final

import numpy as np
from torch.utils.data import Sampler

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

    Args:
        plan: the Plan.
        dataset_or_n: a data set with a length, or the number of samples n >= 1.
        seed: an integer >= 0; with the epoch it decides the order.
        shuffle: a new permutation each epoch; False for the data set's own order.
        drop_last: leave out a last batch that is shorter than scheduled.
        replacement: draw each sample independently and uniformly, n draws an epoch: condition
            (C3) of Imaizumi and Iiduka (ACML 2025), which their theorems assume.

    Raises:
        ValueError: an empty data set, a negative seed, or ``replacement`` without ``shuffle``.

    >>> from batchramp import Plan, schedules as s
    >>> plan = Plan(epochs=2, batch_size=s.Exponential(2, factor=2, every=1))
    >>> sampler = ScheduledBatchSampler(plan, 5, shuffle=False)
    >>> len(sampler), list(sampler)
    (3, [[0, 1], [2, 3], [4]])
    >>> sampler.set_epoch(1)
    >>> list(sampler)
    [[0, 1, 2, 3], [4]]

    Differs from torch's BatchSampler: it has no attribute ``batch_size``, which hosts would copy
    once and then believe.
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
    ) -> None:
        n = dataset_or_n if isinstance(dataset_or_n, int) else len(dataset_or_n)
        if isinstance(n, bool) or n < 1:
            raise ValueError(f"dataset_or_n must have at least 1 sample, got {n!r}")
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ValueError(f"seed must be an integer >= 0, got {seed!r}")
        if replacement and not shuffle:
            raise ValueError("replacement draws at random: it needs shuffle=True, got False")
        self.plan = plan
        self.n = n
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.replacement = replacement
        self.epochs = plan.total_epochs(n, drop_last)
        self.epoch = 0
        self._first_batch = 0  # where the next pass starts; not 0 only after a resume
        self._finished: int | None = None

    def set_epoch(self, epoch: int) -> None:
        """Goes to the start of an epoch, 0 <= epoch <= the number of epochs."""
        if isinstance(epoch, bool) or not isinstance(epoch, int) or not 0 <= epoch <= self.epochs:
            raise ValueError(f"epoch must be in 0..{self.epochs}, got {epoch!r}")
        self.epoch = epoch
        self._first_batch = 0
        self._finished = None

    def __len__(self) -> int:
        """Batches that the next pass yields; 0 after the last epoch."""
        if self.epoch == self.epochs:
            return 0
        return len(self.sizes()) - self._first_batch

    def __iter__(self) -> Iterator[list[int]]:
        return (indices.tolist() for _, indices in self.batches())

    def batches(self) -> Iterator[tuple[int, np.ndarray]]:
        """What iterating yields, as (position of the first sample, indices as an int64 array)."""
        if self.epoch == self.epochs:
            raise ValueError(f"the plan ends after {self.epochs} epochs: there is no further batch")
        if self._finished == self.epoch:
            warnings.warn(
                f"epoch {self.epoch} is iterated once more with the same batches: call "
                "scheduler.step() or sampler.set_epoch() between epochs",
                stacklevel=3,
            )
        epoch, first, self._first_batch = self.epoch, self._first_batch, 0
        order, sizes = self.order(), self.sizes()
        start = sum(sizes[:first])
        for size in sizes[first:]:
            yield start, order[start : start + size]
            start += size
        if self.epoch == epoch:
            self._finished = epoch

    def sizes(self) -> list[int]:
        """The true sizes of all batches of this epoch, in order."""
        return self.plan.batch_sizes(self.epoch, self.n, self.drop_last)

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
                drawn more than that, so only the training loop knows. None: the start of the epoch
                (or where a resumed pass starts).

        Raises:
            ValueError: more batches than the epoch has.
        """
        sizes = self.sizes() if self.epoch < self.epochs else []
        done = self._first_batch if batches_done is None else batches_done
        if isinstance(done, bool) or not isinstance(done, int) or not 0 <= done <= len(sizes):
            raise ValueError(f"batches_done must be in 0..{len(sizes)}, got {batches_done!r}")
        return {
            "epoch": self.epoch,
            "sample": sum(sizes[:done]),
            "plan": self.plan.to_dict(),
            **self._identity(),
        }

    def load_state_dict(self, state_dict: dict[str, Any], *, strict: bool = True) -> None:
        """Goes to a saved position; the next pass yields the batches that remain of its epoch.

        Args:
            state_dict: from `state_dict`.
            strict: refuse the position of another plan.

        Raises:
            ValueError: another data set length, seed, order or plan; or a position where no batch
                of this plan starts.
        """
        for name, ours in self._identity().items():
            if state_dict[name] != ours:
                raise ValueError(f"{name} differs: saved {state_dict[name]!r}, here {ours!r}")
        if strict and Plan.from_dict(state_dict["plan"]) != self.plan:
            raise ValueError(
                "plan differs from the one that was saved; strict=False resumes anyway"
            )
        self.set_epoch(state_dict["epoch"])
        start, sample = 0, state_dict["sample"]
        sizes = self.sizes() if self.epoch < self.epochs else []
        for done, size in enumerate([*sizes, 0]):
            if start == sample:
                self._first_batch = done
                return
            start += size
        raise ValueError(f"sample must be where a batch of epoch {self.epoch} starts, got {sample}")

    def _identity(self) -> dict[str, Any]:
        names = ("n", "seed", "shuffle", "drop_last", "replacement")
        return {"algorithm": ALGORITHM, **{name: getattr(self, name) for name in names}}
