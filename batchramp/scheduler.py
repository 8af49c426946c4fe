"""Applies a Plan to the param groups of any optimizer. Holds one integer and no formula."""

from collections.abc import Mapping
from typing import Any, final

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from batchramp.plan import HYPERPARAMETERS, Plan

__all__ = ["ParamScheduler"]


@final
class ParamScheduler(LRScheduler):
    """Writes a Plan's lr, beta and gamma into an optimizer's param groups, tick by tick.

    It writes only what the Plan schedules: with ``Plan(epochs=30, batch_size=...)`` alone it
    touches no param group, and the lr scheduler you already have goes on. The values of tick 0 are
    written at construction. Call `step` once per tick: after each epoch for a Plan in epochs, after
    each batch for one in steps.

    A param group with its own lr keeps its ratio through ``group["lr_scale"]``: its lr is the
    Plan's times that.

    Args:
        optimizer: any torch optimizer. A tensor-valued field is filled in place.
        plan: the Plan.
        fields: where a hyperparameter goes when the optimizer calls it otherwise, such as
            ``{"beta": "momentum"}``. Mind that torch's SGD(momentum=β) is not QHM with that beta:
            its steps are 1/(1 - β) times longer.
        sampler: a `ScheduledBatchSampler` to move along, so that one `step` moves both. For a Plan
            in epochs.

    Raises:
        ValueError: the Plan schedules what the param groups lack, an unknown field is mapped, or
            groups differ in a scheduled value (for lr: without an ``lr_scale``), which a schedule
            would flatten.

    >>> import torch
    >>> from batchramp import Plan, QHM, schedules as s
    >>> plan = Plan(epochs=4, batch_size=8, lr=s.Inverse(0.1), beta=0.9, gamma=0.7)
    >>> optimizer = QHM([torch.zeros(2, requires_grad=True)], **plan.at(0).hyperparameters)
    >>> scheduler = ParamScheduler(optimizer, plan)
    >>> scheduler.step()
    >>> scheduler.last_epoch, scheduler.get_last_lr()
    (1, [0.05])

    Differs from torch's schedulers: it is an ``LRScheduler`` to `isinstance`, but wraps no method
    of the optimizer, and its values are absolute, so nothing drifts after an outside edit.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        plan: Plan,
        *,
        fields: Mapping[str, str] | None = None,
        sampler: Any = None,
    ) -> None:
        # LRScheduler.__init__ would wrap optimizer.step and insist on lr; its interface is kept.
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch Optimizer, got {type(optimizer).__name__}")
        if sampler is not None and plan.unit != "epochs":
            raise ValueError(
                f"sampler goes with a plan in epochs, got one in {plan.unit}: call "
                "sampler.set_epoch(epoch) before each pass over the data instead"
            )
        self.optimizer = optimizer
        self.plan = plan
        self.sampler = sampler
        self.fields = _fields(optimizer, plan, fields or {})
        self.last_epoch = 0
        self._write()
        self.base_lrs = self.get_last_lr()

    def step(self, epoch: int | None = None) -> None:
        """Goes to the next tick, or to tick ``epoch``; after the last tick its values are kept.

        Raises:
            ValueError: beyond the end of the Plan, or the Plan counts samples (`set_epoch` then).
        """
        if epoch is None and self.plan.unit == "samples":
            raise ValueError("a plan in samples does not advance by steps: call set_epoch(samples)")
        self.set_epoch(self.last_epoch + 1 if epoch is None else epoch)

    def set_epoch(self, epoch: int) -> None:
        """Goes to a tick of the Plan: an epoch, or a step or a count of samples if it counts those.

        Args:
            epoch: 0 <= epoch <= the Plan's length; there, the values of the last tick are kept.
        """
        if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
            raise ValueError(f"epoch must be an integer >= 0, got {epoch!r}")
        if epoch > self.plan.length:
            raise ValueError(
                f"the plan ends after {self.plan.length} {self.plan.unit}, got {epoch}: step() was "
                "called too often, or another plan was meant"
            )
        self.last_epoch = epoch
        self._write()
        if self.sampler is not None and self.sampler.epoch != epoch:
            self.sampler.set_epoch(epoch)

    def get_last_lr(self) -> list[float | Tensor]:
        """The lr of each param group, as numbers."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def get_lr(self) -> list[float | Tensor]:
        """The lr of each param group, as `get_last_lr`; torch's name for the same question."""
        return self.get_last_lr()

    def state_dict(self) -> dict[str, Any]:
        """``last_epoch`` and the plan, as plain values."""
        return {"last_epoch": self.last_epoch, "plan": self.plan.to_dict()}

    def load_state_dict(self, state_dict: dict[str, Any], *, strict: bool = True) -> None:
        """Goes to the tick of ``state_dict`` and writes its values.

        Args:
            state_dict: from `state_dict`.
            strict: refuse the state of another plan. False allows it, say to extend 300 epochs to
                400; the values are then those of the plan held here.

        Raises:
            ValueError: the plans differ, or the tick is beyond the end of this one.
        """
        theirs = Plan.from_dict(state_dict["plan"])
        if strict and theirs != self.plan:
            raise ValueError(
                f"plan differs from the one that was saved: saved {theirs!r}, here {self.plan!r}; "
                "strict=False resumes all the same"
            )
        self.set_epoch(state_dict["last_epoch"])

    def _write(self) -> None:
        if not self.fields:
            return
        values = self.plan.at(min(self.last_epoch, self.plan.length - 1)).hyperparameters
        for group in self.optimizer.param_groups:
            for name, field in self.fields.items():
                value = values[name]
                if name == "lr":
                    value *= group.get("lr_scale", 1.0)
                if isinstance(group[field], Tensor):
                    group[field].fill_(value)  # a compiled or captured step holds this tensor
                else:
                    group[field] = value
        self._last_lr = self.get_last_lr()


def _fields(optimizer: Optimizer, plan: Plan, given: Mapping[str, str]) -> dict[str, str]:
    """Hyperparameter -> the key of a param group it is written to, checked."""
    for name in given:
        if name not in HYPERPARAMETERS:
            raise ValueError(f"fields maps lr, beta or gamma, got {name!r}")
        if getattr(plan, name) is None:
            raise ValueError(f"fields maps {name}, but the plan does not schedule {name}")
    planned = [name for name in HYPERPARAMETERS if getattr(plan, name) is not None]
    fields = {name: given.get(name, name) for name in planned}
    groups = optimizer.param_groups
    kind = type(optimizer).__name__
    for name, field in fields.items():
        if any(field not in group for group in groups):
            raise ValueError(
                f"the plan schedules {name}, but {kind}'s param groups have no {field!r}: leave "
                f"{name} out of the plan or map it, as in fields={{{name!r}: 'momentum'}}"
            )
        if any(isinstance(group[field], tuple | list) for group in groups):
            raise ValueError(
                f"{name} must go to a single number, but {kind}'s {field!r} is several"
            )
        free = [float(g[field]) for g in groups if not (name == "lr" and "lr_scale" in g)]
        if len(set(free)) > 1:
            remedy = "; give each group its ratio as group['lr_scale']" if name == "lr" else ""
            raise ValueError(
                f"{name} must be the same in all param groups to be scheduled, got {free}{remedy}"
            )
    return fields
