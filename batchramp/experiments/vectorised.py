"""Runs that differ in seed, lr, beta and gamma alone, trained together: one pass serves them all.

At small batches a step is mostly calls, not arithmetic. Here the parameters of all members lie in
one array ``[members, parameters]``: a step is one vectorised pass (`torch.func.vmap`), traced once
for every batch size, and one call of QHM's kernel for all members of a Plan. Numbers, files and
endings are those of `batchramp.training.fit`, so that a run begun here goes on there alone, and the
other way round.
"""

import functools
import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, fields
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from batchramp import store
from batchramp.batching import ScheduledBatchSampler
from batchramp.experiments.tracing import Traced, can_trace, traced
from batchramp.measure import evaluate
from batchramp.optim import QHM
from batchramp.plan import HYPERPARAMETERS, Plan
from batchramp.progress import STEPS_BETWEEN_CHECKS, Progress, check_seed, row_of, status_of
from batchramp.scheduler import ParamScheduler
from batchramp.task import Task
from batchramp.training import scheduled

if TYPE_CHECKING:
    from batchramp.experiments.run import Run

__all__ = ["Member", "obstacle", "together", "train_together"]

# Tracing a step takes as long as is saved in about so many steps.
_WORTH_TRACING = 100
# Samples of one gather, over all seeds; see `TensorLoader`.
_GATHER = 1024
# Times the samples that a model alone is measured on at a time, over all members: memory.
_MEASURED_AT_ONCE = 3
# Parameters of all members on a CPU. Of the time of as many lone steps, MLPs of 118,282 took at
# batch sizes 8, 32 and 128: 3 together 0.48, 0.67 and 0.85; 5 together 0.45, 0.66 and 0.87; 10
# together 0.46, 0.74 and 1.04; 36 together 0.75, 0.91 and 1.07.
_PARAMETERS_AT_ONCE = 600_000
# Files are synced by so many threads: the disk takes them together.
_WRITERS = 8


@final
@dataclass(frozen=True)
class Member:
    """One run among those trained together: the arguments of `fit` of these names.

    Args:
        plan: the Plan.
        seed: of initial weights, order of samples and augmentation.
        out: the run's folder; None for a run that leaves no files.
        label, panel, experiment, note: see `fit`.
    """

    plan: Plan
    seed: int
    out: Path | None = None
    label: str = ""
    panel: str = ""
    experiment: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        check_seed(self.seed)


def train_together(
    task: Task,
    members: Sequence[Member],
    *,
    on_row: Callable[[int, dict[str, Any]], None] | None = None,
) -> tuple[str, ...]:
    """Trains ``task`` once for every member with `QHM`, all at the same time, resuming what began.

    Each member's numbers are those of its own `fit` up to rounding: sums are taken in another
    order. ``seconds`` is a member's share of the time.

    Args:
        task: what is trained on what: a pair of tensors, and a model that draws no random numbers.
        members: whose plans share unit, length and batch sizes, in different folders.
        on_row: called with a member's place and its new row, after every epoch.

    Returns:
        Each member's status: as `fit` says it, "failed" where its files could not be written (the
        others go on) or "taken" where another process trains in its folder.

    Raises:
        ValueError: no member, plans of different batches, a task that is not served, or a folder
            that holds another run: before anything is trained.

    >>> from batchramp.experiments import tasks
    >>> plans = [Plan(epochs=2, batch_size=64, lr=lr, beta=0.9, gamma=0.7) for lr in (0.01, 0.02)]
    >>> train_together(tasks.load("quadratic"), [Member(plan, seed=0) for plan in plans])
    ('finished', 'finished')
    """
    members = list(members)
    _check(members)
    if reason := obstacle(task):
        raise ValueError(f"task {task.name} cannot be vectorised: {reason}")
    statuses = [""] * len(members)
    devices = [task.device] if task.device.startswith("cuda") else []
    with ExitStack() as stack, torch.random.fork_rng(devices=devices):
        for member in members:  # refused before a lock leaves its file
            if member.out is not None:
                store.existing(member.out, _identity(task, member), resume=True)
        runs, data = [], task.fingerprint()
        for place, member in enumerate(members):
            try:
                if member.out is not None:
                    stack.enter_context(store.lock(member.out))
            except BlockingIOError:
                statuses[place] = "taken"
                continue
            runs.append(_Run(task, member, place, data))
        writers = stack.enter_context(ThreadPoolExecutor(_WRITERS))
        stacked = None
        if new := [run for run in runs if run.initial is None]:
            stacked = _Stack(task, new)
            list(writers.map(_Run.begin, stacked.runs, stacked.measure()))
        while running := [run for run in runs if run.at.status == "running"]:
            epoch = min(run.at.epoch for run in running)
            # Those that are behind catch up first, and the others join them.
            behind = [run for run in running if run.at.epoch == epoch]
            if stacked is None or set(stacked.runs) != set(behind):
                stacked = None  # its memory goes before the next one's comes
                stacked = _Stack(task, behind)
            stacked.train_epoch()
            for run, measured in zip(stacked.runs, stacked.measure(), strict=True):
                run.end_epoch(measured)
            list(writers.map(_Run.save, stacked.runs, [run.checkpoint() for run in stacked.runs]))
            for run in stacked.runs:
                if on_row is not None and run.at.status != "failed":
                    on_row(run.place, run.rows[-1])
    for run in runs:
        statuses[run.place] = run.at.status
    return tuple(statuses)


def obstacle(task: Task) -> str:
    """Why ``task`` cannot be trained by `train_together`; "" if it can.

    It is tried on two samples, torch's random state left as found.
    """
    if not isinstance(task.train, tuple):
        return "its training data are a Dataset, not a pair of tensors"
    for option in task.options:
        return f"it asks for {option}"
    devices = [task.device] if task.device.startswith("cuda") else []
    with torch.random.fork_rng(devices=devices):
        model = task.make().train()
        own = [p for p in model.parameters() if p.requires_grad]
        if len({p.dtype for p in own}) != 1 or not own[0].is_floating_point():
            return "its parameters are not of one floating dtype"
        inputs, targets = (t[:2].to(task.device) for t in task.train)
        inputs = task.prepared(inputs).expand(2, *inputs.shape)
        try:
            gradient = vmap(grad_and_value(_loss(task, model)), randomness="error")
            parameters = {name: torch.stack([p, p]) for name, p in _trainable(model).items()}
            gradient(parameters, _rest([model, model]), inputs, targets.expand(2, *targets.shape))
        except Exception as error:  # torch.func refuses in many ways
            if "random" in str(error):
                return f"{task.model_name} draws random numbers in training"
            return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    return ""


def together(runs: Sequence["Run"]) -> list[list["Run"]]:
    """Groups of runs, each of which `train_together` can train; others are groups of one.

    A group is as large as serves its speed; groups of like runs are of like sizes.

    Args:
        runs: see `batchramp.experiments.Run`.
    """
    alike: dict[Any, list[Run]] = {}
    for run in runs:
        own = {f.name: getattr(run, f.name) for f in fields(run) if f.name not in _MAY_DIFFER}
        batches = (run.plan.unit, run.plan.length, run.plan.batch_size)
        alone = run.optimizer != "QHM" or run.options or run.constants or run.fields
        key = (batches, tuple(own.items()), id(run) if alone else 0)
        alike.setdefault(key, []).append(run)
    groups = []
    for found in alike.values():
        most = 1 if len(found) == 1 else _most(found[0])
        # Runs of one seed see the same samples: side by side they share them.
        ordered = sorted(found, key=lambda run: run.seed)
        parts = math.ceil(len(found) / most)
        edges = [len(found) * i // parts for i in range(parts + 1)]
        groups += [ordered[i:j] for i, j in pairwise(edges)]
    return groups


# What may differ between runs that are trained together.
_MAY_DIFFER = ("label", "plan", "seed", "panel", "experiment", "note", "within")


def _most(run: "Run") -> int:
    """How many runs like this one are best trained together."""
    if run.channels_last or run.autocast or run.compiled:
        return 1
    return _most_of(run.task, run.model)


@functools.cache
def _most_of(task: str, name: str) -> int:
    from batchramp.experiments import tasks

    try:
        loaded = tasks.load(task, name)
    except (ValueError, OSError):  # data that are missing are each run's own failure
        return 1
    if obstacle(loaded):
        return 1
    with torch.random.fork_rng(devices=[]):
        model = loaded.model()
    # A CPU takes grouped convolutions one by one, and slower: 1.0 to 1.8 times as long as alone.
    if any(isinstance(module, _CONVOLUTIONS) for module in model.modules()):
        return 1
    return max(1, _PARAMETERS_AT_ONCE // sum(p.numel() for p in model.parameters()))


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _check(members: list[Member]) -> None:
    if not members:
        raise ValueError("members must be at least one, got none")
    first = members[0].plan
    for member in members:
        for name in ("unit", "length", "batch_size"):
            here, there = getattr(member.plan, name), getattr(first, name)
            if here != there:
                raise ValueError(f"plans must share their {name}, got {there!r} and {here!r}")
    folders = [Path(member.out).resolve() for member in members if member.out is not None]
    if len(set(folders)) < len(folders):
        twice = next(folder for folder in folders if folders.count(folder) > 1)
        raise ValueError(f"members must have different folders, got {twice} twice")


def _identity(task: Task, member: Member) -> dict[str, Any]:
    names = {name: getattr(member, name) for name in ("label", "panel", "experiment", "note")}
    return store.identity(
        task=task.name,
        model=task.model_name,
        optimizer=QHM,
        plan=member.plan,
        seed=member.seed,
        **names,
    )


class _Run:
    """One member as `fit` has it: model, optimizer, sampler, progress, rows and files."""

    def __init__(
        self, task: Task, member: Member, place: int, data: Mapping[str, int | None]
    ) -> None:
        self.task, self.plan, self.seed, self.place = task, member.plan, member.seed, place
        self.data = data
        self.folder = None if member.out is None else Path(member.out)
        self.what = _identity(task, member)
        torch.manual_seed(member.seed)
        self.model = task.make()
        self.sampler = ScheduledBatchSampler(member.plan, task.n, seed=member.seed)
        self.scheduler = scheduled(QHM, self.model.parameters(), member.plan)
        self.at, self.rows = Progress(), []
        self.initial: Mapping[str, float | None] | None = None
        if self.folder is not None:
            parts = (self.sampler, self.model, self.scheduler.optimizer, task.device)
            if resumed := store.resume(self.folder, self.what, *parts, data=data):
                progress, self.rows, self.initial = resumed
                self.at = Progress(**progress)
        # Nothing draws from it any more: it is kept for the checkpoint alone.
        self.random = torch.get_rng_state()
        self.random_cuda = _cuda_random_state(task.device)

    def begin(self, measured: Mapping[str, Any]) -> None:
        """Takes what was measured before the first step."""
        self.initial = store.finite(measured)
        if self.folder is not None:
            problem = None if self.task.problem is None else asdict(self.task.problem)
            given = {"n": self.task.n, "problem": problem, "data": self.data}
            store.create(self.folder, self.what, self.initial, **given)

    def end_epoch(self, measured: Mapping[str, Any]) -> None:
        """Adds the epoch's row, and says how the run stands."""
        assert self.initial is not None
        at, measured = self.at, store.finite(measured)
        values = self.plan.at(self.scheduler.last_epoch)
        self.rows.append(row_of(at, values, measured, [self.initial, *self.rows]))
        at.epoch += 1
        self.sampler.set_epoch(at.epoch)
        if at.status == "running":
            at.status = status_of(self.initial, self.rows, self.sampler.epochs)

    def checkpoint(self) -> dict[str, Any]:
        """As `fit` takes it, in tensors of its own."""
        torch.set_rng_state(self.random)
        if self.random_cuda is not None:
            torch.cuda.set_rng_state(self.random_cuda, self.task.device)
        parts = (self.sampler, self.model, self.scheduler.optimizer, self.task.device)
        # Cloned: a view would be saved with all that it is a view of.
        return _cloned(store.checkpoint(asdict(self.at), *parts))

    def save(self, checkpoint: Mapping[str, Any]) -> None:
        """Writes what an epoch leaves; what cannot be written fails this run alone."""
        if self.folder is None:
            return
        try:
            store.save_epoch(self.folder, self.rows[-1], checkpoint, self.at.status)
        except (OSError, ValueError) as error:
            self.at.status = "failed"
            said = f"{type(error).__name__}: {error}"
            warnings.warn(f"the run in {self.folder} failed: {said}", stacklevel=2)
            with suppress(OSError, ValueError):
                store.finish(self.folder, "failed", said)


def _cuda_random_state(device: str) -> Tensor | None:
    return torch.cuda.get_rng_state(device) if device.startswith("cuda") else None


def _cloned(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return type(value)((key, _cloned(each)) for key, each in value.items())
    return [_cloned(each) for each in value] if isinstance(value, list) else value


class _Stack:
    """The runs that train together, which all stand at the same epoch.

    Row r of ``x``, ``g`` and ``d``, arrays ``[runs, parameters]``, is run r's point, gradient and
    momentum; the models' own parameters and buffers become views of the stacks, so that whatever
    reads a model or its optimizer between epochs finds it up to date.
    """

    def __init__(self, task: Task, runs: Sequence[_Run]) -> None:
        self.task = task
        # Runs of one plan side by side: one call of QHM's kernel steps them.
        plans = list(dict.fromkeys(run.plan for run in runs))
        self.runs = sorted(runs, key=lambda run: (plans.index(run.plan), run.seed))
        self.model = self.runs[0].model
        models = [run.model for run in self.runs]
        seeds = list(dict.fromkeys(run.seed for run in self.runs))
        self.seeds = [next(run for run in self.runs if run.seed == seed) for seed in seeds]
        self.of_seed = torch.tensor([seeds.index(run.seed) for run in self.runs])

        own = _trainable(self.model)
        self.x = torch.stack([_flat(list(_trainable(model).values())) for model in models])
        self.g, self.d = torch.zeros_like(self.x), torch.zeros_like(self.x)
        self.parameters = _views(self.x, own)
        self.gradients = _views(self.g, own)
        momenta = _views(self.d, own)
        self.rest = _rest(models)
        for r, run in enumerate(self.runs):
            optimizer = run.scheduler.optimizer
            optimizer.state_dict()  # brings momenta to scale 1
            for name, p in _trainable(run.model).items():
                p.data = self.parameters[name][r]
                state = optimizer.state[p]
                if "momentum_buffer" in state:
                    momenta[name][r].copy_(state["momentum_buffer"])
                optimizer.state[p] = {"momentum_buffer": momenta[name][r], "scale": 1.0}
            _put_rest(run.model, {name: stack[r] for name, stack in self.rest.items()})

        # One QHM for all: a group for each plan, of one tensor, the rows of its runs.
        self.plans: list[ParamScheduler] = []
        groups = []
        for _, same in groupby(range(len(self.runs)), key=lambda r: self.runs[r].plan):
            rows = list(same)
            place = slice(rows[0], rows[-1] + 1)
            p = nn.Parameter(self.x[place])
            p.grad = self.g[place]
            groups.append((p, self.d[place]))
            self.plans.append(self.runs[rows[0]].scheduler)
        values = [_values(scheduler) for scheduler in self.plans]
        self.optimizer = QHM(
            [{"params": [p], **own} for (p, _), own in zip(groups, values, strict=True)], lr=0.0
        )
        for p, d in groups:
            self.optimizer.state[p] = {"momentum_buffer": d, "scale": 1.0}
        self.data = [t.to(task.device) for t in task.train]
        self.uses: Counter[int] = Counter()
        self.traced: dict[int, Traced] = {}

    # ------------------------------------------------------------------------------- training

    def train_epoch(self) -> None:
        """As `fit` trains: one pass over the data, each run in its own order."""
        task, first = self.task, self.runs[0]
        plan, at, device = first.plan, first.at, task.device
        steps, samples = at.steps, at.samples
        stopped: dict[int, _Stopped] = {}
        self.uses.update(first.sampler.sizes())
        started = time.perf_counter()
        self.model.train()
        for inputs, targets in self._batches():
            tick = plan.tick(epoch=at.epoch, step=steps, samples=samples)
            if tick != self.plans[0].last_epoch:
                self._set_tick(tick)
            steps += 1
            samples += targets.shape[1]
            losses = self._gradient(inputs, targets, steps % STEPS_BETWEEN_CHECKS == 0)
            self.optimizer.step()
            if losses is not None and not losses.isfinite().all():
                for r in (~losses.isfinite()).nonzero().flatten().tolist():
                    if r not in stopped:
                        stopped[r] = self._stop(r, steps, samples)
                if len(stopped) == len(self.runs):
                    break
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        self.optimizer.state_dict()  # folds momenta, as a checkpoint of each would
        seconds = (time.perf_counter() - started) / len(self.runs)
        last = self.plans[0].last_epoch
        for r, run in enumerate(self.runs):
            run.at.steps, run.at.samples = steps, samples
            run.at.seconds += seconds
            if r in stopped:
                self._put_back(r, stopped[r])
            run.scheduler.set_epoch(stopped[r].tick if r in stopped else last)

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Each run's batches, ``[runs, b, ...]``."""
        own = self._gathered() if self.task.augment is None else self._augmented()
        for inputs, targets in own:
            if len(self.seeds) == len(self.runs):
                yield inputs, targets
            elif len(self.seeds) == 1:
                yield self._for_all(inputs), self._for_all(targets)
            else:
                yield inputs[self.of_seed], targets[self.of_seed]

    def _for_all(self, batch: Tensor) -> Tensor:
        return batch.expand(len(self.runs), *batch.shape[1:])

    def _augmented(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Each seed's batches, ``[seeds, b, ...]``, as its own loader gives them."""
        task = self.task
        loaders = [task.batches(run.sampler) for run in self.seeds]
        for batches in zip(*loaders, strict=True):
            inputs = torch.stack([task.prepared(x) for x, _ in batches])
            yield inputs, torch.stack([y.to(task.device) for _, y in batches])

    def _gathered(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The same without augmentation: several batches of all seeds out of one gather."""
        task, device = self.task, self.task.device
        orders = np.stack([run.sampler.order() for run in self.seeds])
        rooms: list[Tensor] | None = None
        start = 0
        for size, batches in groupby(self.seeds[0].sampler.sizes()):
            count = len(list(batches))
            at_once = max(1, _GATHER // (size * len(orders)))
            for done in range(0, count, at_once):
                k = min(at_once, count - done)
                cut = orders[:, start : start + k * size].reshape(len(orders), k, size)
                start += k * size
                indices = torch.from_numpy(cut.swapaxes(0, 1).reshape(-1)).to(device)
                # Into the same memory again: pages that the system must clear first cost more.
                if rooms is None or len(indices) > len(rooms[0]):
                    rooms = [t.new_empty(len(indices), *t.shape[1:]) for t in self.data]
                inputs, targets = (
                    torch.index_select(t, 0, indices, out=room[: len(indices)])
                    for t, room in zip(self.data, rooms, strict=True)
                )
                if task.prepare is None:
                    inputs = inputs.unflatten(0, (k, len(orders), size))
                else:  # as it is called alone: on one batch of one seed
                    own = [task.prepared(x) for x in inputs.split(size)]
                    inputs = torch.stack(own).unflatten(0, (k, len(orders)))
                targets = targets.unflatten(0, (k, len(orders), size))
                yield from zip(inputs, targets, strict=True)

    def _set_tick(self, tick: int) -> None:
        for group, scheduler in zip(self.optimizer.param_groups, self.plans, strict=True):
            scheduler.set_epoch(tick)
            group.update(_values(scheduler))

    def _gradient(self, inputs: Tensor, targets: Tensor, wanted: bool) -> Tensor | None:
        """Leaves the gradients at a batch ``[runs, b, ...]`` in ``g``; returns losses if wanted."""
        size = targets.shape[1]
        step = self.traced.get(size)
        if step is None:
            of_all = vmap(grad_and_value(_loss(self.task, self.model)), randomness="error")
            if self.uses[size] < _WORTH_TRACING or not can_trace():
                gradients, losses = of_all(self.parameters, self.rest, inputs, targets)
                for name, gradient in gradients.items():
                    self.gradients[name].copy_(gradient)
                return losses if wanted else None
            step = traced(of_all, self.parameters, self.rest, inputs, targets, self.gradients)
            self.traced[size] = step
        with torch.inference_mode():
            return (step.with_losses if wanted else step.alone)(inputs, targets)

    def _stop(self, r: int, steps: int, samples: int) -> "_Stopped":
        """What run r is now: the others go on, and its row with them."""
        group = next(g for g in self.optimizer.param_groups if self._holds(g, r))
        scale = self.optimizer.state[group["params"][0]]["scale"]
        rest = {name: stack[r].clone() for name, stack in self.rest.items()}
        tick = self.plans[0].last_epoch
        return _Stopped(steps, samples, tick, self.x[r].clone(), self.d[r] * scale, rest)

    def _holds(self, group: dict[str, Any], r: int) -> bool:
        p = group["params"][0]
        first = (p.data_ptr() - self.x.data_ptr()) // (self.x.stride(0) * self.x.element_size())
        return first <= r < first + len(p)

    def _put_back(self, r: int, stopped: "_Stopped") -> None:
        at = self.runs[r].at
        at.steps, at.samples, at.status = stopped.steps, stopped.samples, "diverged"
        self.x[r].copy_(stopped.x)
        self.d[r].copy_(stopped.d)
        for name, stack in self.rest.items():
            stack[r].copy_(stopped.rest[name])

    # ------------------------------------------------------------------------------ measuring

    @torch.no_grad()
    def measure(self) -> list[dict[str, float | None]]:
        """What `Task.measure` says of each run's model."""
        task = self.task
        self.model.eval()
        found: list[dict[str, float | None]] = [{} for _ in self.runs]
        norms: list[float] = []
        for part in ("train", "validation", "test"):
            outputs: list[Tensor] = []
            if part == "train":
                outputs, norms = self._full_gradient()
            elif getattr(task, part) is not None:
                outputs = self._outputs(part)
            for r, measured in enumerate(found):
                data = task.in_order(part)
                # The outputs are known: what is said of them is `evaluate`'s.
                result = None if data is None else evaluate(_Known(outputs, r), task.loss_fn, data)
                measured[f"{part}_loss"] = None if result is None else result.loss
                measured[f"{part}_accuracy"] = None if result is None else result.accuracy
                if result is not None and part == "train":
                    measured["at_chance"] = result.at_chance
        for measured, norm in zip(found, norms, strict=True):
            measured["full_gradient_norm"] = norm
        return found

    def _outputs(self, part: str) -> list[Tensor]:
        """All runs' outputs on a part, ``[runs, b, ...]`` for its batches."""
        model = self.model
        of_all = vmap(
            lambda own, rest, inputs: functional_call(model, (own, rest), (inputs,)),
            in_dims=(0, 0, None),
        )
        return [
            torch.cat([of_all(self.parameters, self.rest, x) for x in self._pieces(inputs)], 1)
            for inputs, _ in self.task.in_order(part) or ()
        ]

    def _full_gradient(self) -> tuple[list[Tensor], list[float]]:
        """One pass over the training set: all runs' outputs and full-gradient norms."""
        loss = _loss(self.task, self.model, outputs=True)
        of_all = vmap(grad_and_value(loss, has_aux=True), in_dims=(0, 0, None, None))
        total = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        found, count = [], 0
        for batch in self.task.in_order("train") or ():
            outputs = []
            for x, y in zip(*map(self._pieces, batch), strict=True):
                gradients, (_, output) = of_all(self.parameters, self.rest, x, y)
                for name, gradient in gradients.items():
                    total[name].add_(gradient, alpha=len(y))
                outputs.append(output)
                count += len(y)
            found.append(torch.cat(outputs, 1))
        # In float64, as `full_gradient_norm`: a sum of millions of squares in float32 loses digits.
        squares = [sum_.reshape(len(sum_), -1).double().square().sum(1) for sum_ in total.values()]
        norms = torch.stack(squares).sum(0).sqrt() / count
        return found, norms.tolist()

    def _pieces(self, batch: Tensor) -> tuple[Tensor, ...]:
        return batch.split(math.ceil(len(batch) * _MEASURED_AT_ONCE / len(self.runs)))


@dataclass
class _Stopped:
    """A run where its loss was found not to be finite, before the end of its epoch."""

    steps: int
    samples: int
    tick: int
    x: Tensor
    d: Tensor
    rest: dict[str, Tensor]


class _Known(nn.Module):
    """Says run r's outputs, batch after batch, whatever it is asked."""

    def __init__(self, outputs: Sequence[Tensor], r: int) -> None:
        super().__init__()
        self.outputs = iter([batch[r] for batch in outputs])

    def forward(self, inputs: Tensor) -> Tensor:
        return next(self.outputs)


def _loss(task: Task, model: nn.Module, *, outputs: bool = False) -> Callable[..., Any]:
    """The loss of a batch as a function of trainable parameters and of what else a model holds."""
    classes = task.train[1] if isinstance(task.train, tuple) else None
    plain = (
        task.loss_fn is nn.functional.cross_entropy
        and classes is not None
        and classes.dtype == torch.int64
        and classes.ndim == 1
        and bool((classes >= 0).all())
    )

    def loss(own: Any, rest: Any, inputs: Tensor, targets: Tensor) -> Any:
        found = functional_call(model, (own, rest), (inputs,))
        fast = plain and found.ndim == 2
        value = _cross_entropy(found, targets) if fast else task.loss_fn(found, targets)
        return (value, found) if outputs else value

    return loss


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """torch's, where no class is to be ignored: it looks three times for one that is."""
    return -outputs.log_softmax(1).gather(1, targets.unsqueeze(1)).mean()


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def _views(flat: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The rows of ``flat``, ``[runs, parameters]``, cut into stacks of tensors of these shapes."""
    parts = flat.split([p.numel() for p in like.values()], 1)
    return {
        name: part.view(len(flat), *p.shape)
        for (name, p), part in zip(like.items(), parts, strict=True)
    }


def _rest(models: Sequence[nn.Module]) -> dict[str, Tensor]:
    """Stacks of what a model holds beside its trainable parameters: buffers, frozen parameters."""

    def of(model: nn.Module) -> dict[str, Tensor]:
        frozen = {n: p.detach() for n, p in model.named_parameters() if not p.requires_grad}
        return {**frozen, **dict(model.named_buffers())}

    all_ = [of(model) for model in models]
    return {name: torch.stack([each[name] for each in all_]) for name in all_[0]}


def _put_rest(model: nn.Module, rest: Mapping[str, Tensor]) -> None:
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, value in rest.items():
        held[name].data = value


def _values(scheduler: ParamScheduler) -> dict[str, float]:
    (group,) = scheduler.optimizer.param_groups
    return {name: group[name] for name in HYPERPARAMETERS}
