"""A Plan in Lightning's Trainer."""

import math
from collections.abc import Mapping
from typing import Any, final

from torch.utils.data import DataLoader

from batchramp.batching import ScheduledBatchSampler, ScheduledStream
from batchramp.integrations.position import Batches, complete, ended, tick_of, total_of
from batchramp.plan import Plan
from batchramp.scheduler import ParamScheduler

try:
    from lightning.pytorch import Callback  # pyright: ignore[reportMissingImports]
except ImportError:
    Callback = None
_Base: Any = Callback or object

__all__ = ["PlanCallback"]


@final
class PlanCallback(_Base):
    """Trains by a Plan in Lightning's Trainer: ``Trainer(callbacks=[PlanCallback(plan)])``.

    The training DataLoader has a `ScheduledBatchSampler` of the same Plan as ``batch_sampler``, or
    holds a `stream` with ``batch_size=None``. Return it from ``train_dataloader()`` of the module
    or data module: there the processes are known. On several, also give the Trainer
    ``use_distributed_sampler=False``, for the sampler has dealt the batches already.

    The callback takes care that

    - each epoch has its own number of batches, in the loop, the progress bar and the checks of
      validation, where Lightning keeps the first epoch's;
    - lr, beta and gamma, as far as the Plan schedules them, are written before each batch;
    - each process's loss counts by its share of the batch. The loss that ``training_step``
      returns, or ``manual_backward`` gets, must be a mean over the samples; it is multiplied by
      the sampler's ``weight`` before its backward, so do not do that yourself. What is logged is
      not multiplied;
    - checkpoints hold the position in samples, and training resumes there;
    - training stops at the Plan's end.

    Args:
        plan: the Plan.
        fields: of `ParamScheduler`.

    Raises:
        ImportError: Lightning is missing.
        ValueError: as training starts: another loader, another Plan in it, a sampler made for
            other processes, a checkpoint without a position, or an option of the Trainer or an lr
            scheduler that would work against the Plan.
    """

    def __init__(
        self, plan: Plan, *, fields: Mapping[str, str | tuple[str, int]] | None = None
    ) -> None:
        if Callback is None:
            raise ImportError("PlanCallback needs Lightning: pip install 'batchramp[lightning]'")
        if not isinstance(plan, Plan):
            raise ValueError(f"plan must be a Plan, got {type(plan).__name__}")
        self.plan = plan
        self.fields = fields
        self._batches: Batches | None = None
        self._done = 0  # batches of the epoch that are trained
        self._scheduler: ParamScheduler | None = None
        self._loaded: Mapping[str, Any] | None = None
        self._length_before = 0  # of the epoch whose last batch was the last before a resume

    # ----------------------------------------------------------------------------- the way

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuses what of the Trainer's options would work against the Plan."""
        if stage == "fit":
            _check_options(trainer)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Goes to where training resumes, and has Lightning count the batches anew."""
        self._batches = batches = _batches(trainer, self.plan)
        _check_length(trainer, batches)
        _check_schedulers(trainer, batches)
        if self.plan.at(0).hyperparameters:
            self._scheduler = ParamScheduler(_optimizer(trainer), self.plan, fields=self.fields)
        begun = batches.epoch == trainer.current_epoch  # what Lightning reads already
        self._done = 0
        if self._loaded is not None:
            batches.load_state_dict(dict(self._loaded))
            self._loaded = None
            self._done = batches.first_batch
            begun = False
        elif trainer.fit_loop.is_resuming:
            raise ValueError(
                "the checkpoint has no position of the plan: it was written without PlanCallback"
            )
        elif not begun:
            batches.set_epoch(trainer.current_epoch)
        if batches.epoch == trainer.current_epoch - 1 and complete(batches, self._done):
            # Saved after the last batch of an epoch. Lightning sees it by the length of that epoch.
            self._length_before = self._done
            batches.set_epoch(trainer.current_epoch)
            self._done = 0
        if batches.epoch != trainer.current_epoch:
            raise ValueError(
                f"the plan's position is in epoch {batches.epoch}, but Lightning resumes in epoch "
                f"{trainer.current_epoch}: the checkpoint is of a fit that stopped inside an "
                "epoch; stop at an epoch's end, or resume with the plain loop"
            )
        if ended(batches):
            trainer.should_stop = True
            return
        self._count(trainer)
        if not begun:
            self._renew(trainer)
        if self._length_before:
            trainer.fit_loop.max_batches = self._length_before

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes the hyperparameters of the batch's tick."""
        if trainer.accumulate_grad_batches != 1:  # a callback may have changed it
            raise ValueError(_ACCUMULATES.format(trainer.accumulate_grad_batches))
        if self._length_before:
            self._length_before = 0
            self._count(trainer)
        if self._scheduler is not None:
            tick = tick_of(self._here, self._done)
            if tick != self._scheduler.last_epoch:
                self._scheduler.set_epoch(tick)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """Weights the loss by this process's share of the batch."""
        if self._here.world_size > 1:
            weight = self._here.weight(self._done)
            if weight != 1:
                loss.mul_(weight)  # in place, part of the graph: Lightning goes back from this one

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts the batch as trained."""
        self._done += 1

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Goes to the next epoch, unless the Trainer stopped inside this one."""
        batches = self._here
        if not complete(batches, self._done):
            return
        batches.set_epoch(batches.epoch + 1)
        self._done = 0
        if ended(batches):
            trainer.should_stop = True
        else:
            self._count(trainer)

    # --------------------------------------------------------------------------- its state

    def state_dict(self) -> dict[str, Any]:
        """The position: the sampler's or stream's own state."""
        return {} if self._batches is None else self._batches.state_dict(batches_done=self._done)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps a position until training starts, when the loader is known."""
        self._loaded = state_dict or None

    # -------------------------------------------------------------------------- with Lightning

    @property
    def _here(self) -> Any:
        if self._batches is None:
            raise ValueError("the plan has no loader: PlanCallback must be there when fit starts")
        return self._batches

    def _count(self, trainer: Any) -> None:
        """Tells Lightning how many batches this epoch has."""
        if trainer.fast_dev_run:
            return
        # There is no other way: Lightning's own reload comes before it goes to the next epoch.
        loop = trainer.fit_loop
        total = total_of(self._here)
        loop._combined_loader.limits = [total]
        loop.max_batches = total
        if isinstance(trainer.val_check_interval, float) and total < math.inf:
            trainer.val_check_batch = max(1, int(total * trainer.val_check_interval))

    def _renew(self, trainer: Any) -> None:
        """Has Lightning read from where the loader stands now."""
        fetcher = trainer.fit_loop._data_fetcher
        iter(fetcher)
        if (total := total_of(self._here)) < math.inf:
            fetcher.length = total  # Lightning adds to what it reads what it had read before


_ACCUMULATES = (
    "accumulate_grad_batches must be 1, got {}: it would multiply the batch size that the plan "
    "schedules; plan the batch size that you want"
)


def _check_options(trainer: Any) -> None:
    deals = getattr(trainer._accelerator_connector, "use_distributed_sampler", False)
    if deals and trainer.world_size > 1:
        raise ValueError(
            f"use_distributed_sampler must be False on {trainer.world_size} processes, got True: "
            "the plan's sampler has dealt the batches already"
        )
    if trainer.accumulate_grad_batches != 1:
        raise ValueError(_ACCUMULATES.format(trainer.accumulate_grad_batches))
    for name in ("overfit_batches", "reload_dataloaders_every_n_epochs"):
        if getattr(trainer, name):
            raise ValueError(
                f"{name} must be 0, got {getattr(trainer, name)}: Lightning would put another "
                "sampler in the place of the plan's"
            )
    if trainer.limit_train_batches != 1.0 and not trainer.fast_dev_run:
        raise ValueError(
            f"limit_train_batches must be 1.0, got {trainer.limit_train_batches}: the plan says "
            "which batches an epoch has; shorten the plan instead"
        )


def _batches(trainer: Any, plan: Plan) -> Batches:
    loader = trainer.train_dataloader
    if not isinstance(loader, DataLoader):
        raise ValueError(
            "the training data must come from one torch DataLoader, got "
            f"{type(loader).__name__}: Lightning would move another loader's sampler"
        )
    batches: Any = loader.batch_sampler
    if isinstance(loader.dataset, ScheduledStream) and loader.batch_size is None:
        batches = loader.dataset
    if not isinstance(batches, ScheduledBatchSampler | ScheduledStream):
        raise ValueError(
            "the training DataLoader must have batch_sampler=ScheduledBatchSampler(plan, ...), or "
            f"be DataLoader(stream(...), batch_size=None), got a {type(batches).__name__}"
        )
    if batches.plan != plan:
        raise ValueError(f"plan differs: the callback has {plan!r}, the loader {batches.plan!r}")
    if (batches.rank, batches.world_size) != (trainer.global_rank, trainer.world_size):
        raise ValueError(
            f"the sampler was made for process {batches.rank} of {batches.world_size}, this is "
            f"{trainer.global_rank} of {trainer.world_size}: make it in train_dataloader(), where "
            "the processes are known"
        )
    return batches


def _check_length(trainer: Any, batches: Batches) -> None:
    plan, most = batches.plan, trainer.max_epochs
    if batches.n is None:
        if most not in {None, -1}:
            raise ValueError(
                f"max_epochs must be -1 for a stream without a length, got {most}: the plan of "
                f"{plan.length} {plan.unit} ends the training"
            )
        return
    epochs = plan.total_epochs(batches.n, batches.drop_last)
    if most is not None and most > epochs:
        raise ValueError(
            f"max_epochs must be at most the plan's {epochs} epochs, or -1 to end where the plan "
            f"does, got {most}"
        )


def _check_schedulers(trainer: Any, batches: Batches) -> None:
    plan = batches.plan
    for config in trainer.lr_scheduler_configs:
        scheduler = config.scheduler
        name = type(scheduler).__name__
        if plan.lr is not None:
            raise ValueError(
                f"the plan schedules lr, and so does the module's {name}: return no lr scheduler "
                "from configure_optimizers, or leave lr out of the plan"
            )
        if plan.beta is not None and getattr(scheduler, "cycle_momentum", False):
            raise ValueError(
                f"the plan schedules beta, and the module's {name} cycles the momentum: give it "
                "cycle_momentum=False, or leave beta out of the plan"
            )
        told = getattr(scheduler, "total_steps", None)
        if told is None or config.interval != "step" or batches.n is None:
            continue
        steps = plan.total_steps(batches.n, batches.drop_last)
        if told * config.frequency != steps:
            raise ValueError(
                f"{name} has total_steps={told}, but the plan has {steps} steps: give it "
                "plan.total_steps(n); Lightning's estimated_stepping_batches takes every epoch "
                "for as long as the first"
            )


def _optimizer(trainer: Any) -> Any:
    if len(trainer.optimizers) != 1:
        raise ValueError(
            f"the plan schedules hyperparameters of one optimizer, got {len(trainer.optimizers)}: "
            "leave them out of the plan, and step a ParamScheduler for each in the module"
        )
    return trainer.optimizers[0]
