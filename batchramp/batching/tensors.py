"""In-memory data, cut and augmented a whole batch at a time."""

from collections.abc import Callable, Iterator, Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor

from batchramp.batching.augmentation import Augmentation
from batchramp.batching.sampler import ScheduledBatchSampler

__all__ = ["TensorLoader"]

# Small batches are cut out of one gather of about so many bytes: at batch size 8 indexing costs
# more than the samples do. Of six times as many, glibc gives the memory back each time, and
# faulting it in again takes longer than all else.
_GATHER = 1 << 19

# Sets the augmentation's random stream apart from the permutation's.
_AUGMENT = 1


@final
class TensorLoader:
    """Yields a `ScheduledBatchSampler`'s batches of tensors that lie in memory.

    The same batches as ``DataLoader(TensorDataset(*tensors), batch_sampler=sampler)``, gathered
    without a Python call per sample.

    Args:
        tensors: one or more tensors of the same first dimension, n; a batch is a tuple of their
            rows, of shape ``[b, ...]``. Small batches share memory with their neighbours: do not
            write into them (autograd would refuse the backward of another batch), and clone one
            before you save it.
        sampler: decides the batches; its n is that of the tensors.
        augment: called as ``augment(inputs, generator)`` on the first tensor of each batch, on its
            device; its randomness must come from the CPU ``generator``, which is seeded by (seed,
            epoch, position), so that a batch never depends on how the run got there. Nor does it
            on the number of processes: each draws for the global batch. An `Augmentation` is then
            applied to the process's share alone; any other callable has to be applied to the whole
            global batch by every process, and the result is cut.
        device: where the tensors are put, once, whole.

    Raises:
        ValueError: no tensor, unequal lengths, or a sampler over another number of samples.

    >>> from batchramp import Plan, ScheduledBatchSampler
    >>> inputs, targets = torch.arange(5.0), torch.arange(5)
    >>> sampler = ScheduledBatchSampler(Plan(epochs=1, batch_size=4), 5, shuffle=False)
    >>> [y.tolist() for x, y in TensorLoader((inputs, targets), sampler)]
    [[0, 1, 2, 3], [4]]
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        sampler: ScheduledBatchSampler,
        *,
        augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if not isinstance(sampler, ScheduledBatchSampler):
            raise ValueError(
                f"sampler must be a ScheduledBatchSampler, got {type(sampler).__name__}"
            )
        if isinstance(tensors, Tensor):  # would be taken for a sequence of its rows
            raise ValueError(
                f"tensors must be a tuple of tensors, got one of shape {tuple(tensors.shape)}"
            )
        tensors = tuple(tensors)
        shapes = [tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__ for t in tensors]
        if not tensors or any(shape[:1] != (sampler.n,) for shape in shapes):
            raise ValueError(
                f"tensors must be one or more, each of the sampler's {sampler.n} samples, got "
                f"{shapes}"
            )
        self.tensors = tensors if device is None else tuple(t.to(device) for t in tensors)
        self.sampler = sampler
        self.augment = augment

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        if self.augment is None:
            for batches in self._gathers():
                yield from self._rows(batches)
            return
        epoch = self.sampler.epoch
        for position, indices in self.sampler.batches():
            seed = np.random.SeedSequence([self.sampler.seed, epoch, position, _AUGMENT])
            generator = torch.Generator().manual_seed(int(seed.generate_state(1)[0]))
            if self.sampler.world_size == 1:
                ((inputs, *rest),) = self._rows([indices])
                yield self.augment(inputs, generator), *rest
            else:
                yield self._augmented_share(self.augment, indices, generator)

    def _augmented_share(
        self,
        augment: Callable[[Tensor, torch.Generator], Tensor],
        indices: np.ndarray,
        generator: torch.Generator,
    ) -> tuple[Tensor, ...]:
        share = self.sampler.share(len(indices))
        if isinstance(augment, Augmentation):
            draws = augment.draw(len(indices), generator)
            ((inputs, *rest),) = self._rows([indices[share]])
            return augment.apply(inputs, draws._make(drawn[share] for drawn in draws)), *rest
        ((inputs, *rest),) = self._rows([indices])
        return augment(inputs, generator)[share], *(tensor[share] for tensor in rest)

    def _gathers(self) -> Iterator[list[np.ndarray]]:
        """The batches' indices, several small batches at a time."""
        batches: list[np.ndarray] = []
        samples = 0
        of_one = sum(t[:1].numel() * t.element_size() for t in self.tensors)
        most = _GATHER // max(1, of_one)
        for indices in self.sampler.shares():
            batches.append(indices)
            samples += len(indices)
            if samples >= most:
                yield batches
                batches, samples = [], 0
        if batches:
            yield batches

    def _rows(self, batches: list[np.ndarray]) -> Iterator[tuple[Tensor, ...]]:
        """One tuple of rows a batch, out of one gather for all of them."""
        indices = torch.from_numpy(np.concatenate(batches))
        sizes = [len(batch) for batch in batches]
        rows = [t.index_select(0, indices.to(t.device)).split(sizes) for t in self.tensors]
        return zip(*rows, strict=True)
