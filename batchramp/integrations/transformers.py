"""A Plan in the Trainer of Hugging Face's transformers, and so on accelerate's processes."""

import copy
import os
from collections.abc import Mapping
from typing import Any, final

import torch
from torch.utils.data import DataLoader, IterableDataset

from batchramp.batching import ScheduledBatchSampler, stream
from batchramp.integrations.position import Batches, complete, ended, tick_of
from batchramp.plan import Plan
from batchramp.scheduler import ParamScheduler

try:
    from transformers import Trainer  # pyright: ignore[reportMissingImports]
except ImportError:
    Trainer = None
_Base: Any = Trainer or object

__all__ = ["PlanTrainer"]

# Of a checkpoint: the position, as the sampler or the stream says it.
_FILE = "plan.pt"
# What TrainingArguments has for num_train_epochs if nothing was said.
_DEFAULT_EPOCHS = 3


@final
class PlanTrainer(_Base):
    """The Trainer, trained by a Plan: ``PlanTrainer(model, args, plan=plan, ...)``.

    The Plan gives the batches, over all processes together, and the length: what the arguments say
    of the batch size per device does not count, and ``max_steps`` is the Plan's, so that the lr
    scheduler is as long as the training. Data that are read by index come in the order of a
    `ScheduledBatchSampler`, an IterableDataset in that of a `stream`. The loader is not handed to
    accelerate, which would deal the batches to the processes once more.

    The loss is the model's mean over the labels of a process's share, or what ``compute_loss_func``
    makes of them without ``num_items_in_batch``; it is weighted by the number of labels that are
    not -100, or of samples where there are no labels, so that its mean over the processes is that
    of the whole batch, also for models that take no account of ``num_items_in_batch``.

    Checkpoints hold the position in samples in a file of their own, and resuming checks that Plan,
    data and seed are the same.

    Args:
        model, args, options: of Trainer.
        plan: the Plan. Where it schedules lr, ``lr_scheduler_type`` must be ``"constant"``.
        fields: of `ParamScheduler`.

    Raises:
        ImportError: transformers is missing, or older than 5.
        ValueError: an argument that would work against the Plan; data without a length where the
            number of steps depends on it; when resumed, a checkpoint of something else.
    """

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        *,
        plan: Plan,
        fields: Mapping[str, str | tuple[str, int]] | None = None,
        **options: Any,
    ) -> None:
        if not hasattr(Trainer, "_run_epoch"):
            raise ImportError(
                "PlanTrainer needs transformers >= 5 and accelerate: pip install "
                "'batchramp[transformers]'"
            )
        if not isinstance(plan, Plan):
            raise ValueError(f"plan must be a Plan, got {type(plan).__name__}")
        if args is None:
            raise ValueError("args must be TrainingArguments, got None")
        self.plan = plan
        self.fields = fields
        _check_arguments(args, plan, options)
        args = copy.copy(args)
        steps = _steps(options.get("train_dataset"), plan, args.dataloader_drop_last)
        if args.max_steps > 0 and args.max_steps != steps:
            raise ValueError(f"max_steps must be the plan's {steps}, or -1, got {args.max_steps}")
        args.max_steps = steps
        self._batches: Batches | None = None
        self._done = 0  # batches of the epoch that are trained
        self._weight: float | None = None  # of the loss of a step of training
        self._planned: ParamScheduler | None = None
        super().__init__(model, args, **options)
        if self.is_deepspeed_enabled or getattr(self.accelerator, "parallelism_config", None):
            raise ValueError(
                "DeepSpeed and parallelism_config have other shares of a batch than the plan's: "
                "use DDP or FSDP"
            )

    # ------------------------------------------------------------------------------ the batches

    def get_train_dataloader(self) -> DataLoader:
        """The scheduled batches; not prepared by accelerate, for they are this process's share."""
        args, data = self.args, self.train_dataset
        collate = self._get_collator_with_removed_columns(self.data_collator, "training")
        ranks = {"rank": args.process_index, "world_size": args.world_size}
        drop_last, workers = args.dataloader_drop_last, args.dataloader_num_workers
        # Of its own, or each pass would draw from the generator that dropout draws from.
        options: dict[str, Any] = {"generator": torch.Generator()}
        if isinstance(data, IterableDataset):
            if workers:
                data = DataLoader(data, batch_size=None, num_workers=workers, **options)
            self._batches = stream(
                data, self.plan, collate_fn=collate, drop_last=drop_last, **ranks
            )
            return DataLoader(self._batches, batch_size=None, **options)
        seed = args.seed if args.data_seed is None else args.data_seed
        shuffle = args.train_sampling_strategy == "random"
        self._batches = ScheduledBatchSampler(
            self.plan, data, seed=seed, shuffle=shuffle, drop_last=drop_last, **ranks
        )
        return DataLoader(
            data,
            batch_sampler=self._batches,
            collate_fn=collate,
            num_workers=workers,
            pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            **options,
        )

    @property
    def _here(self) -> Any:
        return self._batches

    def set_initial_training_values(self, args: Any, dataloader: Any) -> tuple:
        """As of Trainer, with the Plan's own number of epochs and of samples."""
        values = list(super().set_initial_training_values(args, dataloader))
        batches = self._here
        values[3] = None  # samples trained, for the speed that is reported
        if batches.n is not None:
            values[0] = self.plan.total_epochs(batches.n, batches.drop_last)
            values[3] = self.plan.total_samples(batches.n, batches.drop_last)
        return tuple(values)

    def _init_training_state(
        self, max_steps: int, steps: int, epochs: int, resume: Any, trial: Any
    ) -> tuple[int, int]:
        super()._init_training_state(max_steps, steps, epochs, resume, trial)
        batches = self._here
        if resume is not None:
            path = os.path.join(resume, _FILE)
            if not os.path.isfile(path):
                raise ValueError(f"{resume} has no {_FILE}: it was written without PlanTrainer")
            batches.load_state_dict(torch.load(path, weights_only=True))
            if complete(batches, batches.first_batch):
                batches.set_epoch(batches.epoch + 1)
        return batches.epoch, 0  # the batches themselves know where in the epoch they are

    def _run_epoch(self, *, epoch: int, **rest: Any) -> None:
        batches = self._here
        if ended(batches):  # resumed at the Plan's end
            self.control.should_training_stop = True
            return
        if batches.epoch != epoch:
            batches.set_epoch(epoch)
        self._done = batches.first_batch
        left = self.args.max_steps - self.state.global_step if batches.n is None else len(batches)
        rest |= {"steps_in_epoch": left, "num_update_steps_per_epoch": left}
        super()._run_epoch(epoch=epoch, **rest)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = f"checkpoint-{self.state.global_step}"
            state = self._here.state_dict(batches_done=self._done)
            torch.save(state, os.path.join(self._get_output_dir(trial=trial), folder, _FILE))

    # ----------------------------------------------------------------------------- the steps

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The Plan's lr where it schedules one, else what the arguments say."""
        if self.plan.at(0).hyperparameters:
            chosen = self.optimizer if optimizer is None else optimizer
            self._planned = ParamScheduler(chosen, self.plan, fields=self.fields)
        if self.plan.lr is None:
            return super().create_scheduler(num_training_steps, optimizer)
        self.lr_scheduler = _Written(self._planned)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: Any
    ) -> tuple[list[Any], None]:
        """The next batch; without a count of its items, of which `compute_loss` takes care."""
        return [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)], None

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """As of Trainer, with the batch's hyperparameters and weight."""
        if self._planned is not None:
            tick = tick_of(self._here, self._done)
            if tick != self._planned.last_epoch:
                self._planned.set_epoch(tick)
        self._weight = self._weight_of(inputs)
        try:
            return super().training_step(model, inputs)
        finally:
            self._weight = None
            self._done += 1

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, **rest: Any
    ) -> Any:
        """As of Trainer; in a step of training times the weight of this process's share."""
        found = super().compute_loss(model, inputs, return_outputs, **rest)
        if self._weight is None:
            return found
        return (found[0] * self._weight, found[1]) if return_outputs else found * self._weight

    def _weight_of(self, inputs: Any) -> float | None:
        """world size · own labels / all labels of the batch; None on one process."""
        batches = self._here
        if batches.world_size == 1:
            return None
        weight = batches.weight(self._done)
        labels = inputs.get("shift_labels", inputs.get("labels"))
        if labels is None:
            return weight
        if self._loss_shifts_labels and "shift_labels" not in inputs:
            labels = labels[..., 1:]
        own = labels.ne(-100).sum().to(self.args.device) * (weight > 0)
        return batches.world_size * int(own) / int(self.accelerator.gather(own).sum())


def __getattr__(name: str) -> Any:
    if name == "PlanCallback":
        raise ImportError(
            "a callback of Trainer gets loader and steps when they are made, and cannot change "
            "its batches: use PlanTrainer(model, args, plan=plan, ...)"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Written:
    """Stands where Trainer wants an lr scheduler, while the Plan's values are written."""

    def __init__(self, planned: Any) -> None:
        self.planned = planned

    def step(self) -> None:
        pass

    def get_last_lr(self) -> list[Any]:
        return self.planned.get_last_lr()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


def _steps(data: Any, plan: Plan, drop_last: bool) -> int:
    if data is None:
        raise ValueError("train_dataset must be given")
    try:
        return plan.total_steps(len(data), drop_last)
    except TypeError:
        if plan.unit == "steps":
            return plan.length
    raise ValueError(
        f"train_dataset has no length, and then the steps of a plan in {plan.unit}, which the "
        "Trainer must know, are unknown: plan in steps"
    )


def _check_arguments(args: Any, plan: Plan, options: Mapping[str, Any]) -> None:
    if args.gradient_accumulation_steps != 1:
        raise ValueError(
            f"gradient_accumulation_steps must be 1, got {args.gradient_accumulation_steps}: it "
            "would multiply the batch size that the plan schedules; plan the batch size you want"
        )
    for name, why in (
        ("auto_find_batch_size", "the plan gives the batch size"),
        ("ignore_data_skip", "resuming would train on samples a second time"),
    ):
        if getattr(args, name):
            raise ValueError(f"{name} must be False, got {getattr(args, name)}: {why}")
    if args.n_gpu > 1:
        raise ValueError(
            f"DataParallel on {args.n_gpu} GPUs would average unequal parts of a batch: start one "
            "process for each, with torchrun or accelerate launch"
        )
    if args.train_sampling_strategy not in {"random", "sequential"}:
        raise ValueError(
            "train_sampling_strategy must be random or sequential, got "
            f"{args.train_sampling_strategy}: the plan's sampler orders the samples"
        )
    epochs = plan.epochs
    if epochs is not None and args.num_train_epochs not in {_DEFAULT_EPOCHS, epochs}:
        raise ValueError(
            f"num_train_epochs must be the plan's {epochs}, or be left out, got "
            f"{args.num_train_epochs}"
        )
    if plan.lr is None:
        return
    kind = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    if kind != "constant" or args.warmup_steps or (options.get("optimizers") or (0, None))[1]:
        raise ValueError(
            "the plan schedules lr, and so would the Trainer's lr scheduler: give it "
            f"lr_scheduler_type='constant' without warmup_steps, got {kind!r}, or leave lr out of "
            "the plan"
        )
