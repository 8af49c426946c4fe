"""Training under a Plan: one plain loop, read from top to bottom."""

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import nn
from torch.optim import Optimizer

from batchramp import store
from batchramp.batching import ScheduledBatchSampler
from batchramp.optim import QHM
from batchramp.plan import Plan, Values
from batchramp.processes import Processes, join
from batchramp.progress import STEPS_BETWEEN_CHECKS, Progress, check_seed, row_of, status_of
from batchramp.scheduler import ParamScheduler
from batchramp.task import Task

__all__ = ["Fit", "Task", "fit", "scheduled"]


@final
@dataclass(frozen=True)
class Fit:
    """What `fit` returns.

    Attributes:
        status: "finished", "diverged" (a loss or norm that is not finite) or "collapsed" (a
            classifier that did no better than a constant answer for three epochs); both stop early,
            but a classifier that started so is given all its epochs to leave.
        rows: one dict an epoch; its keys are `batchramp.store.COLUMNS`.
        initial: losses, accuracies and norm before the first step.
        model: the trained model.
    """

    status: str
    rows: list[dict[str, Any]]
    initial: Mapping[str, float | None]
    model: nn.Module


def fit(
    task: Task,
    plan: Plan,
    *,
    seed: int,
    optimizer: Callable[..., Optimizer] = QHM,
    fields: Mapping[str, str | tuple[str, int]] | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = True,
    constants: bool = False,
    label: str = "",
    panel: str = "",
    experiment: str = "",
    note: str = "",
) -> Fit:
    """Trains ``task`` under ``plan``, measuring after every epoch.

    Called by every process of a torch.distributed group, or of `torchrun`, whose group it then
    initialises, it trains one model on all of them, each on its share of every global batch, with
    the steps of one process to rounding. The first process measures, decides, calls ``on_epoch``
    and writes; all return the same. What one refuses, all refuse. A process that dies ends the
    others; started again, they go on from the checkpoint, on another number of processes too, or by
    ``torchrun --standalone --max-restarts`` (``--rdzv-backend c10d`` on several machines; torch's
    static rendezvous restarts nobody). BatchNorm normalises by each process's share, as DDP has
    it, and keeps the first one's running statistics; dropout differs between processes: models
    with either train otherwise than on one process.

    Args:
        task: what is trained on what.
        plan: the Plan.
        seed: 0 <= seed < 2**32; decides initial weights, order of samples and all other randomness.
            torch's own random state is left as found. Runs of one seed share weights and orders.
        optimizer: called with the model's parameters and the planned hyperparameters by name;
            ``functools.partial(torch.optim.AdamW, lr=1e-3)`` where the Plan leaves lr out.
        fields: see `ParamScheduler`.
        on_epoch: called with each new row.
        out: a folder for the run's file, rows and checkpoint; see `batchramp.store`.
            The run in it is this one if plan, seed, optimizer, the task's options and the names of
            task and model are, and data that are tensors are the same: give a Task another name
            when its Dataset or its loss change.
        resume: go on from the checkpoint in ``out``, bit for bit as if never interrupted (same
            machine, threads and versions); from the one before, with a warning, if the last is
            damaged; False refuses a folder that holds a run.
        constants: also measure, after every epoch, the largest loss, gradient norm and secant
            smoothness of a single training sample (`batchramp.store.CONSTANTS`; appendix A.8 of the
            paper), which takes about as long as an epoch.
        label, panel, experiment: how reports group the run.
        note: what they say of it, such as how its lr was chosen.

    Raises:
        ValueError: the folder holds another run, or plan and optimizer do not fit.
        BlockingIOError: another process trains in the folder.
        ConnectionError: another process that trained with this one has ended.
    """
    processes = join(task.device)
    with processes.together():
        check_seed(seed)
        task = replace(task, device=processes.own(task.device))
        what = store.identity(
            task=task.name,
            model=task.model_name,
            optimizer=optimizer,
            plan=plan,
            seed=seed,
            options=task.options,
            label=label,
            panel=panel,
            experiment=experiment,
            note=note,
        )
    folder = None if out is None else Path(out)
    processes.check_same({**what, "n": task.n, "constants": constants, "out": folder is not None})
    with ExitStack() as stack:
        with processes.together():
            devices = [task.device] if task.device.startswith("cuda") else []
            stack.enter_context(torch.random.fork_rng(devices=devices))
            torch.manual_seed(seed)
            model = task.make()
            network = task.for_training(model)
            sampler = ScheduledBatchSampler(plan, task.n, seed=seed)
            loader = task.batches(sampler)
            scheduler = scheduled(optimizer, model.parameters(), plan, fields)
            opt = scheduler.optimizer

        at, rows, initial = Progress(), [], None
        if folder is not None and (
            begun := processes.once(_open, stack, folder, what, resume, task)
        ):
            saved, initial, file = begun
            with processes.together():
                at = Progress(**store.restore(saved, sampler, model, opt, task.device))
            rows = processes.once(store.settle, folder, asdict(at), file)
        if initial is None:
            initial = processes.once(_start, task, model, constants, folder, what)

        network = processes.shared(network)
        while at.status == "running":
            before = _copied(model) if constants else None
            processes.seed_own(seed, at.epoch)
            with processes.watched():
                values = _train_epoch(task, network, loader, sampler, scheduler, at, processes)
            earlier = [initial, *rows]
            row = processes.once(_row, task, model, at, values, earlier, constants, before)
            rows.append(row)
            at.epoch += 1
            sampler.set_epoch(at.epoch)
            if at.status == "running":
                at.status = status_of(initial, rows, sampler.epochs)
            # Taken whether saved or not, so that saving changes no number: QHM folds the scales of
            # its fused buffers, which rounds.
            checkpoint = store.checkpoint(asdict(at), sampler, model, opt, task.device)
            processes.once(_keep, folder, row, checkpoint, at.status, on_epoch)
        with processes.watched():
            processes.share_buffers(model)
        return Fit(at.status, rows, initial, model)


def _train_epoch(
    task: Task,
    network: nn.Module,
    loader: Iterable[Any],
    sampler: ScheduledBatchSampler,
    scheduler: ParamScheduler,
    at: Progress,
    processes: Processes,
) -> Values:
    """One pass over the data. Returns what was planned at its end."""
    plan, optimizer = scheduler.plan, scheduler.optimizer
    sizes = sampler.sizes()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    network.train()
    started = time.perf_counter()
    for k, (inputs, targets) in enumerate(loader):
        tick = plan.tick(epoch=at.epoch, step=at.steps, samples=at.samples)
        if tick != scheduler.last_epoch:
            scheduler.set_epoch(tick)
        loss = task.loss(network, inputs, targets)
        if not processes.alone:
            loss = loss * sampler.weight(k)
        for p in parameters:  # optimizer.zero_grad(), in a tenth of its time
            p.grad = None
        loss.backward()
        optimizer.step()
        at.steps += 1
        at.samples += sizes[k]
        if at.steps % STEPS_BETWEEN_CHECKS == 0 and not math.isfinite(processes.mean(loss)):
            at.status = "diverged"
            break
    if task.device.startswith("cuda"):
        torch.cuda.synchronize(task.device)
    at.seconds += time.perf_counter() - started
    return plan.at(scheduler.last_epoch)


# What the first process does for all.


def _open(stack: ExitStack, folder: Path, what: Mapping[str, Any], resume: bool, task: Task) -> Any:
    store.existing(folder, what, resume)  # refused before the lock leaves its file
    stack.enter_context(store.lock(folder))
    return store.begun(folder, what, allowed=resume, data=task.fingerprint())


def _start(
    task: Task, model: nn.Module, constants: bool, folder: Path | None, what: Mapping[str, Any]
) -> Mapping[str, float | None]:
    initial = store.finite(task.measure(model, constants=constants))
    if folder is not None:
        problem = None if task.problem is None else asdict(task.problem)
        store.create(folder, what, initial, n=task.n, problem=problem, data=task.fingerprint())
    return initial


def _row(
    task: Task,
    model: nn.Module,
    at: Progress,
    values: Values,
    earlier: Iterable[Mapping[str, Any]],
    constants: bool,
    before: Mapping[str, torch.Tensor] | None,
) -> dict[str, Any]:
    measured = store.finite(task.measure(model, constants=constants, previous=before))
    return row_of(at, values, measured, earlier)


def _keep(
    folder: Path | None,
    row: dict[str, Any],
    checkpoint: Mapping[str, Any],
    status: str,
    on_epoch: Callable[[dict[str, Any]], None] | None,
) -> None:
    if folder is not None:
        store.save_epoch(folder, row, checkpoint, status)
    if on_epoch is not None:
        on_epoch(row)


def _copied(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def scheduled(
    make: Callable[..., Optimizer],
    parameters: Iterable[Any],
    plan: Plan,
    fields: Mapping[str, str | tuple[str, int]] | None = None,
) -> ParamScheduler:
    """An optimizer made with the values of the plan's first tick, under its scheduler.

    Raises:
        ValueError: it lacks or refuses an argument, or has been given one that the plan schedules.
    """
    planned = plan.at(0).hyperparameters
    # What goes into a place of a tuple, as of Adam's betas, its scheduler writes.
    targets = {name: (fields or {}).get(name, name) for name in planned}
    named = {field: planned[name] for name, field in targets.items() if isinstance(field, str)}
    for name in named.keys() & getattr(make, "keywords", {}).keys():
        raise ValueError(f"{name} is scheduled by the plan and given to {store.name_of(make)} too")
    try:
        optimizer = make(parameters, **named)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"optimizer {store.name_of(make)} cannot be made with what the plan schedules "
            f"({', '.join(named) or 'no hyperparameter'}): {error}; schedule what it lacks, or map "
            "what it calls otherwise, as in fields={'beta': 'momentum'}"
        ) from None
    return ParamScheduler(optimizer, plan, fields=fields)
