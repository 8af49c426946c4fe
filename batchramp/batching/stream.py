"""Any iterable of samples in batches of scheduled sizes, with a position to resume at."""

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from itertools import islice
from numbers import Integral
from typing import Any, final

from torch.utils.data import DataLoader, IterableDataset, default_collate, get_worker_info

from batchramp.batching import ranks
from batchramp.batching.sampler import check_state
from batchramp.plan import Plan

__all__ = ["ScheduledStream", "stream"]

_END = object()


def stream(
    dataset: Iterable[Any] | Callable[[], Iterable[Any]],
    plan: Plan,
    *,
    n: int | None = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    drop_last: bool = False,
    rank: int | None = None,
    world_size: int | None = None,
) -> "ScheduledStream":
    """Batches of the sizes that a Plan schedules, from samples that come one after the other.

    One pass over the stream is one pass over the data, with a shorter batch at its end, and the
    next pass goes on where the Plan stands: ``while not batches.ended: for batch in batches: ...``.
    Over a list they are the batches of ``ScheduledBatchSampler(shuffle=False)``; shuffling is the
    data set's own business.

    Workers belong under the stream, where they load samples and cannot change the batches:
    ``stream(DataLoader(dataset, batch_size=None, num_workers=4), plan)``. The data set must then
    deal its samples to the workers itself, as Hugging Face's do.

    Args:
        dataset: an iterable of samples that starts over at each pass, or a function that makes one.
            Its own ``set_epoch`` is called before each pass.
        plan: the Plan. One in epochs needs the samples of a pass.
        n: samples of a pass where ``len(dataset)`` does not say; checked as each pass ends.
        collate_fn: a list of samples to a batch; torch's `default_collate` by default.
        drop_last: leave out a last batch of a pass that is shorter than scheduled.
        rank, world_size: as of `ScheduledBatchSampler`. Every process reads all samples, in the
            same order, and collates its share of each batch.

    Raises:
        ValueError: what can be read only once or by index only, a DataLoader that batches, a Plan
            in epochs without a length, or ranks that the sampler would refuse; when iterated, a
            pass of another length than n, a position after the data's end, or a stream inside a
            worker, where its position would be lost and several would repeat each sample.

    >>> from batchramp import Plan, schedules as s
    >>> plan = Plan(samples=12, batch_size=s.Piecewise({0: 2, 4: 3}))
    >>> batches = stream(lambda: iter(range(8)), plan)
    >>> [batch.tolist() for batch in batches]
    [[0, 1], [2, 3], [4, 5, 6], [7]]
    >>> state = batches.state_dict()
    >>> [batch.tolist() for batch in batches], batches.ended
    ([[0, 1, 2], [3]], True)
    >>> batches.load_state_dict(state)
    >>> [batch.tolist() for batch in batches]
    [[0, 1, 2], [3]]
    """
    return ScheduledStream(dataset, plan, n, collate_fn, drop_last, rank, world_size)


@final
class ScheduledStream(IterableDataset):
    """What `stream` returns; for a loop, or for ``DataLoader(..., batch_size=None)``.

    A pass starts where the last one ended. One that was broken off starts again where it started.

    Attributes:
        epoch: passes over the data before the present one, or the last.
        first_batch: the batch of it that a pass starts with; not 0 only after a resume.
        n: samples of a pass, or None.
    """

    def __init__(
        self,
        dataset: Any,
        plan: Plan,
        n: int | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        drop_last: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if not isinstance(plan, Plan):
            raise ValueError(f"plan must be a Plan, got {type(plan).__name__}")
        if not isinstance(drop_last, bool):
            raise ValueError(f"drop_last must be True or False, got {drop_last!r}")
        if collate_fn is not None and not callable(collate_fn):
            raise ValueError(f"collate_fn must be a function of a list, got {collate_fn!r}")
        _check_dataset(dataset)
        self.rank, self.world_size = ranks.chosen(rank, world_size)
        ranks.check_batch_sizes(plan, self.world_size)
        self.dataset = dataset
        self.plan = plan
        self.n = _length(dataset, n)
        if self.n is None and plan.unit == "epochs":
            raise ValueError(
                "dataset has no length, and a plan in epochs would stay at its first batch size if "
                "it never ends: plan in steps or samples, or give n, the samples of one pass"
            )
        if self.n is not None:
            plan.total_epochs(self.n, drop_last)  # refuses no number, and a Plan without a batch
        self.collate_fn = default_collate if collate_fn is None else collate_fn
        self.drop_last = drop_last
        self._go(0, (0, 0))

    def _go(self, epoch: int, before: tuple[int, int]) -> None:
        """To the start of an epoch, before which so many steps and samples were taken."""
        self.epoch = epoch
        self.first_batch = 0
        self._before = before
        self._ends = array("q", [0])  # samples of this epoch before each batch, and after the last
        self._over = False  # whether this epoch's last batch is out,
        self._exhausted = False  # and that because the data have no more, not the Plan
        self._dataset_state: Any = None  # the data set's own, where a pass starts

    @property
    def ended(self) -> bool:
        """Whether the Plan is at its end: there is no further batch."""
        return self._next_sizes(*self._next_position()) == (0, 0)

    def _next_position(self) -> tuple[int, int, int]:
        """(epoch, steps, samples) of the batch after the last one that came out."""
        steps, samples = self._before
        steps, samples = steps + len(self._ends) - 1, samples + self._ends[-1]
        return self.epoch + self._over, steps, samples

    def _next_sizes(self, epoch: int, steps: int, samples: int) -> tuple[int, int]:
        """Of a batch that starts there: as scheduled, and less where the Plan ends; 0 after it."""
        tick = self.plan.tick(epoch=epoch, step=steps, samples=samples)
        left = self.plan.length - tick
        if left <= 0:
            return 0, 0
        size = self.plan.at(tick).batch_size
        return size, min(size, left) if self.plan.unit == "samples" else size

    def __len__(self) -> int:
        """Batches that a pass yields; TypeError where the samples of a pass are unknown."""
        if self.n is None:
            raise TypeError("a stream of data without a length has none; give n if you know it")
        if self.ended:
            return 0
        sizes = self.plan.batch_sizes(self.epoch + self._over, self.n, self.drop_last)
        return len(sizes) - (0 if self._over else self.first_batch)

    def __iter__(self) -> Iterator[Any]:
        if get_worker_info() is not None:
            raise ValueError(
                "num_workers must be 0 for the DataLoader that holds a stream: the stream's "
                "position would be lost, and several workers would repeat each sample; put the "
                "workers under it: stream(DataLoader(dataset, batch_size=None, num_workers=4), ...)"
            )
        if self.ended:
            raise ValueError(
                f"the plan ends after {self.plan.length} {self.plan.unit}: there is no further "
                "batch; set_epoch(0) starts over"
            )
        if self._over:
            self._go(self.epoch + 1, self._next_position()[1:])
        self._ends = self._ends[: self.first_batch + 1]
        return self._pass(self._ends, self._read())

    def _read(self) -> Iterator[Any]:
        """The samples from where a pass starts."""
        for each in (self.dataset, getattr(self.dataset, "dataset", None)):
            if set_epoch := getattr(each, "set_epoch", None):
                set_epoch(self.epoch)
        if self._dataset_state is not None:
            self.dataset.load_state_dict(deepcopy(self._dataset_state))
            return iter(self.dataset)
        samples = iter(self.dataset if hasattr(self.dataset, "__iter__") else self.dataset())
        skip = self._ends[-1]
        skipped = sum(1 for _ in islice(samples, skip))
        if skipped < skip:
            raise ValueError(
                f"dataset ended after {skipped} samples, before the position {skip} to resume at"
            )
        return samples

    def _pass(self, ends: array, samples: Iterator[Any]) -> Iterator[Any]:
        epoch, (steps, taken) = self.epoch, self._before
        at_end = False  # of the data
        while not at_end:
            scheduled, size = self._next_sizes(epoch, steps + len(ends) - 1, taken + ends[-1])
            # Whether a batch is dropped depends on what is scheduled, not on where the Plan ends.
            read = scheduled if self.drop_last else size
            batch = list(islice(samples, read))
            if at_end := len(batch) < read:
                self._check_length(ends[-1] + len(batch))
            if not batch or (at_end and self.drop_last):
                break
            batch = batch[:size]
            ends.append(ends[-1] + len(batch))
            if self._ends is ends and (at_end or self._complete()):
                self._over, self._exhausted = True, at_end or self._exhausts()
            yield self.collate_fn(batch[ranks.share(len(batch), self.rank, self.world_size)])
            if ends[-1] == self.n and not at_end and next(samples, _END) is not _END:
                raise ValueError(f"dataset gave more samples in epoch {epoch} than n={self.n}")
        if len(ends) == 1:
            raise ValueError(f"dataset gave no batch in epoch {epoch}")
        if self._ends is ends and not self._over:
            self._over, self._exhausted = True, at_end

    def _complete(self) -> bool:
        """Whether no batch of this epoch can follow, as far as is known without reading on."""
        return not self._next_sizes(*self._next_position())[0] or self._exhausts()

    def _exhausts(self) -> bool:
        """Whether the data are known to have no further batch."""
        scheduled, _ = self._next_sizes(*self._next_position())
        least = max(scheduled, 1) if self.drop_last else 1
        return self.n is not None and self.n - self._ends[-1] < least

    def _check_length(self, read: int) -> None:
        if self.n is not None and read != self.n:
            raise ValueError(f"dataset gave {read} samples in epoch {self.epoch}, not n={self.n}")

    def set_epoch(self, epoch: int) -> None:
        """Goes to the start of an epoch; inside this one, it stays at the position resumed at.

        Hosts call it before each pass; a loop of one's own need not.

        Raises:
            ValueError: where it starts is not known: neither the first, nor this, nor the next
                after a complete pass, over data without a length.
        """
        if not isinstance(epoch, Integral) or isinstance(epoch, bool) or epoch < 0:
            raise ValueError(f"epoch must be an integer >= 0, got {epoch!r}")
        if epoch == self.epoch:
            if self._over:
                self._go(self.epoch, self._before)
        elif epoch == self.epoch + 1 and self._over:
            self._go(self.epoch + 1, self._next_position()[1:])
        elif epoch == 0:
            self._go(0, (0, 0))
        elif self.n is None:
            raise ValueError(
                f"epoch must be 0 or {self.epoch}, where the stream stands, got {epoch}: without a "
                "length nobody knows where it starts; load_state_dict goes there"
            )
        elif epoch > (epochs := self.plan.total_epochs(self.n, self.drop_last)):
            raise ValueError(f"epoch must be in 0..{epochs}, got {epoch}")
        else:
            self._go(int(epoch), self._before_epoch(int(epoch)))

    def weight(self, k: int) -> float:
        """What the mean loss over this process's share of batch k is to be multiplied with.

        See `ScheduledBatchSampler.weight`; of a stream only batches that came out have one.

        Args:
            k: the batch, counted from the start of this epoch, also in a resumed pass.

        Raises:
            ValueError: batch k has not come out.
        """
        self._check_out(k)
        return ranks.weight(self._ends[k + 1] - self._ends[k], self.rank, self.world_size)

    def tick(self, k: int) -> int:
        """The Plan's tick of batch k, counted from the start of this epoch, that came out."""
        self._check_out(k)
        steps, samples = self._before
        samples += self._ends[k]
        return self.plan.tick(epoch=self.epoch, step=steps + k, samples=samples)

    def state_dict(self, *, batches_done: int | None = None) -> dict[str, Any]:
        """The position as (epoch, samples of it), with what it is a position in.

        It holds the data set's own state where the data set has ``state_dict`` and has given no
        sample beyond the position; else resuming skips samples.

        Args:
            batches_done: batches of this epoch that were *trained*, where a host reads ahead; it
                counts from the start of the epoch, also in a resumed pass. None: all that came out.

        Raises:
            ValueError: more batches than came out.
        """
        out = len(self._ends) - 1
        done = out if batches_done is None else batches_done
        if not isinstance(done, Integral) or isinstance(done, bool) or not 0 <= done <= out:
            raise ValueError(f"batches_done must be in 0..{out}, got {batches_done!r}")
        state = {
            "epoch": self.epoch,
            "sample": self._ends[done],
            "before": {"steps": self._before[0], "samples": self._before[1]},
            "over": self._over and done == out,
            "exhausted": self._exhausted and done == out,
            "plan": self.plan.to_dict(),
            **self._identity(),
        }
        if done == self.first_batch and self._dataset_state is not None:
            state["dataset"] = deepcopy(self._dataset_state)
        elif self.first_batch < done == out and not self._over and _resumable(self.dataset):
            state["dataset"] = deepcopy(self.dataset.state_dict())
        return state

    def load_state_dict(self, state_dict: dict[str, Any], *, strict: bool = True) -> None:
        """Goes to a saved position; a pass then yields the batches that remain of its epoch.

        Args:
            state_dict: from `state_dict`, of any number of processes.
            strict: refuse the position of another plan. False goes on from the end of a Plan by a
                longer one, with what is left of the epoch.

        Raises:
            ValueError: another n or plan, or a position where no batch of this plan starts. The
                stream stays where it was.
        """
        names = {"epoch", "sample", "before", "over", "exhausted"}
        check_state(state_dict, names, self._identity(), self.plan, strict)
        same = strict or Plan.from_dict(state_dict["plan"]) == self.plan
        epoch, sample, steps, taken = self._position(state_dict, same)
        over = state_dict["over" if same else "exhausted"]
        ends = array("q", [0])
        while ends[-1] < sample:
            _, size = self._next_sizes(epoch, steps + len(ends) - 1, taken + ends[-1])
            end = ends[-1] + size
            if not size or (end > sample and not over):
                raise ValueError(
                    f"sample must be where a batch of epoch {epoch} starts, got {sample}"
                )
            ends.append(min(end, sample))  # the last of a pass may be shorter
        self._go(epoch, (steps, taken))
        self._ends, self._over, self.first_batch = ends, over, len(ends) - 1
        self._exhausted = state_dict["exhausted"]
        if _resumable(self.dataset):
            self._dataset_state = state_dict.get("dataset")

    def _position(self, state: Mapping[str, Any], same: bool) -> tuple[int, int, int, int]:
        """Epoch, samples of it, steps and samples before it, as a state has them, checked."""
        before: Mapping[str, Any] = state["before"] if isinstance(state["before"], Mapping) else {}
        names = ("epoch", "sample", "steps before", "samples before")
        found: tuple[Any, ...] = (
            state["epoch"],
            state["sample"],
            before.get("steps"),
            before.get("samples"),
        )
        for name, value in zip(names, found, strict=True):
            if not isinstance(value, Integral) or isinstance(value, bool) or value < 0:
                raise ValueError(f"{name} of a state must be an integer >= 0, got {value!r}")
        for name in ("over", "exhausted"):
            if not isinstance(state[name], bool):
                raise ValueError(f"{name} of a state must be True or False, got {state[name]!r}")
        epoch, sample, steps, taken = (int(value) for value in found)
        if self.n is not None and sample > self.n:
            raise ValueError(f"sample must be in 0..{self.n}, got {sample}")
        if self.n is not None and same:
            epochs = self.plan.total_epochs(self.n, self.drop_last)
            if epoch > epochs or (epoch == epochs and sample):
                raise ValueError(f"epoch must be in 0..{epochs}, got {epoch}")
            if (steps, taken) != self._before_epoch(epoch):
                raise ValueError(
                    f"before must be the {self._before_epoch(epoch)} steps and samples of the plan "
                    f"before epoch {epoch}, got {(steps, taken)}"
                )
        return epoch, sample, steps, taken

    def _before_epoch(self, epoch: int) -> tuple[int, int]:
        """Steps and samples before an epoch over data with a length."""
        assert self.n is not None
        sizes = [self.plan.batch_sizes(i, self.n, self.drop_last) for i in range(epoch)]
        return sum(map(len, sizes)), sum(map(sum, sizes))

    def _check_out(self, k: int) -> None:
        done = len(self._ends) - 1
        if not isinstance(k, Integral) or isinstance(k, bool) or not 0 <= k < done:
            raise ValueError(f"k must be one of the {done} batches of this epoch so far, got {k!r}")

    def _identity(self) -> dict[str, Any]:
        return {"n": self.n, "drop_last": self.drop_last}


def _resumable(dataset: Any) -> bool:
    """Whether the data set has a state of its own that brings back every sample."""
    # Of Hugging Face's, what waits in a shuffle buffer is not in the state.
    examples = getattr(dataset, "_ex_iterable", None)
    while examples is not None:
        if "BufferShuffled" in type(examples).__name__:
            return False
        examples = getattr(examples, "ex_iterable", None)
    return all(callable(getattr(dataset, f"{do}state_dict", None)) for do in ("", "load_"))


def _length(dataset: Any, n: int | None) -> int | None:
    try:
        found = len(dataset)
    except (TypeError, NotImplementedError):
        found = None
    if n is None:
        return found
    if found is not None and found != n:
        raise ValueError(f"n must be the length of dataset, {found}, or be left out, got {n}")
    return n


def _check_dataset(dataset: Any) -> None:
    if isinstance(dataset, Iterator):
        raise ValueError(
            f"dataset must start over at each pass, which a {type(dataset).__name__} cannot: give "
            "the function that makes it"
        )
    if isinstance(dataset, DataLoader):
        if not isinstance(dataset.dataset, IterableDataset):
            raise ValueError(
                "dataset is a DataLoader of data that are read by index: give them to "
                "ScheduledBatchSampler, whose order can be resumed"
            )
        if dataset.batch_size is not None:
            raise ValueError(
                "dataset must give samples, got a DataLoader of batches: make it with "
                f"batch_size=None, not {dataset.batch_size}"
            )
        if dataset.persistent_workers and hasattr(dataset.dataset, "set_epoch"):
            raise ValueError(
                "persistent_workers must be False where the data set has set_epoch: it would "
                "not reach them, and each pass would repeat the first"
            )
    elif not hasattr(dataset, "__iter__") and not callable(dataset):
        raise ValueError(
            "dataset must be an iterable of samples or a function that makes one, got "
            f"{type(dataset).__name__}; data that are read by index go with ScheduledBatchSampler"
        )
