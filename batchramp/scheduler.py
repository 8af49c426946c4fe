"""Applies a Plan to the param groups of any optimizer. Holds one integer and no formula."""

import math
import sys
import warnings
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, final

from torch import Tensor, distributed
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
    Plan's times that. A group added later must come with the optimizer's default, the Plan's
    present value or an ``lr_scale``.

    Args:
        optimizer: any torch optimizer. A tensor-valued field is filled in place.
        plan: the Plan.
        fields: where a hyperparameter goes when the optimizer calls it otherwise, such as
            ``{"beta": "momentum"}``, or ``{"beta": ("betas", 0)}`` for the first of Adam's pair.
            Mind that torch's SGD(momentum=β) is not QHM with that beta: its steps are 1/(1 - β)
            times longer. And that Adam and AdamW correct their bias by 1 - β^step with the β of the
            moment: where it rises early, steps are too long until step is some 1/(1 - β) (9.5 times
            after a rise from 0.5 to 0.99 at step 10). NAdam keeps the product instead.
        sampler: a `ScheduledBatchSampler` of the same Plan to move along, so that one `step` moves
            both. For a Plan in epochs.

    Raises:
        ValueError: the Plan schedules what the param groups lack, an unknown field is mapped, two
            go to one field, groups differ in a scheduled value (for lr: without an ``lr_scale``),
            which a schedule would flatten, or the sampler has another Plan.

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
        fields: Mapping[str, str | tuple[str, int]] | None = None,
        sampler: Any = None,
    ) -> None:
        # LRScheduler.__init__ would wrap optimizer.step and insist on lr; its interface is kept.
        if not isinstance(optimizer, Optimizer):
            raise ValueError(f"optimizer must be a torch Optimizer, got {type(optimizer).__name__}")
        if not isinstance(plan, Plan):
            raise ValueError(f"plan must be a Plan, got {type(plan).__name__}")
        if sampler is not None:
            _check_sampler(sampler, plan)
        self.optimizer = optimizer
        self.plan = plan
        self.sampler = sampler
        self.fields = _fields(optimizer, plan, {} if fields is None else fields)
        self.last_epoch = 0
        self._groups = list(optimizer.param_groups)
        self._written: dict[tuple[int, str], tuple[dict[str, Any], float]] = {}
        self._write()
        self.base_lrs = self.get_last_lr()

    def step(self, epoch: int | None = None) -> None:
        """Goes to the next tick, or to tick ``epoch``; after the last tick its values are kept.

        Raises:
            ValueError: beyond the end of the Plan, the Plan counts samples (`set_epoch` then), or
                the sampler stands at another epoch, as when only one of the two was resumed.
        """
        if sys._getframe(1).f_globals.get("__name__") == "accelerate.scheduler" and _several():
            raise ValueError(
                "accelerate would step a scheduler once for every process: leave it out of "
                "accelerator.prepare"
            )
        if epoch is None and self.plan.unit == "samples":
            raise ValueError("a plan in samples does not advance by steps: call set_epoch(samples)")
        if epoch is None and self.sampler is not None and self.sampler.epoch != self.last_epoch:
            raise ValueError(
                f"sampler stands at epoch {self.sampler.epoch}, the scheduler at "
                f"{self.last_epoch}: load the state of both, or set_epoch"
            )
        if epoch is None:
            self.set_epoch(self.last_epoch + 1)
        else:
            self._go(epoch)

    # What torch's SequentialLR calls: it takes a scheduler back by one, then starts it.

    def _initial_step(self) -> None:
        self._go(self.last_epoch + 1)

    def _update_lr(self, epoch: int | None = None) -> None:
        self.step(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Goes to a tick of the Plan: an epoch, or a step or a count of samples if it counts those.

        Args:
            epoch: 0 <= epoch <= the Plan's length; there, the values of the last tick are kept.

        Warns:
            UserWarning: something else has written to a planned field, such as another scheduler.
        """
        self._warn_of_others()
        self._go(epoch)

    def _go(self, epoch: int) -> None:
        if isinstance(epoch, bool) or not isinstance(epoch, Integral) or epoch < 0:
            raise ValueError(f"epoch must be an integer >= 0, got {epoch!r}")
        if epoch > self.plan.length:
            raise ValueError(
                f"the plan ends after {self.plan.length} {self.plan.unit}, got {epoch}: step() was "
                "called too often, or another plan was meant"
            )
        self._check_groups()
        self.last_epoch = epoch = int(epoch)
        self._write()
        if self.sampler is not None and self.sampler.epoch != epoch:
            self.sampler.set_epoch(epoch)

    def get_last_lr(self) -> list[float | Tensor]:
        """The lr of each param group, as numbers; of those that have one."""
        rates = (group.get("lr") for group in self.optimizer.param_groups)
        return [float(lr) for lr in rates if lr is not None]

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
        if not isinstance(state_dict, Mapping) or not {"last_epoch", "plan"} <= state_dict.keys():
            found = list(state_dict) if isinstance(state_dict, Mapping) else state_dict
            raise ValueError(
                f"state_dict must have last_epoch and plan, as state_dict() returns it, got {found}"
            )
        if strict and (theirs := Plan.from_dict(state_dict["plan"])) != self.plan:
            raise ValueError(
                f"plan differs from the one that was saved: saved {theirs!r}, here {self.plan!r}; "
                "strict=False resumes all the same"
            )
        self.set_epoch(state_dict["last_epoch"])

    def _values(self) -> dict[str, float]:
        return self.plan.at(min(max(self.last_epoch, 0), self.plan.length - 1)).hyperparameters

    def _warn_of_others(self) -> None:
        for group in self.optimizer.param_groups:
            for name, target in self.fields.items():
                known, wrote = self._written.get((id(group), name), (None, 0.0))
                if known is group and (found := float(_get(group, target))) != wrote:
                    warnings.warn(
                        f"{name} of a param group is {found:.6g}, where the plan wrote "
                        f"{wrote:.6g}: another scheduler writes it too; leave one of the two out",
                        stacklevel=4,
                    )

    def _write(self) -> None:
        if not self.fields:
            return
        self._write_values()
        # As it is held: a tensor rounds.
        self._written = {
            (id(group), name): (group, float(_get(group, target)))
            for group in self.optimizer.param_groups
            for name, target in self.fields.items()
        }

    def _write_values(self) -> None:
        values = self._values()
        filled = set()
        for group in self.optimizer.param_groups:
            for name, target in self.fields.items():
                value = values[name] * (group["lr_scale"] if _scaled(name, group) else 1.0)
                held = _get(group, target)
                if not isinstance(held, Tensor):
                    _put(group, target, value)
                    continue
                if id(held) in filled:  # the optimizer's default, shared by its groups
                    held = held.clone()
                    _put(group, target, held)
                held.fill_(value)  # in place: a compiled or captured step holds it
                filled.add(id(held))

    def _check_groups(self) -> None:
        """Refuses groups that came since the last look and whose values would be flattened."""
        groups = self.optimizer.param_groups
        new = [group for group in groups if not any(group is known for known in self._groups)]
        if not new:
            return
        values = self._values()
        for name, target in self.fields.items():
            for group in new:
                _check_number(name, target, group)
            free = [float(_get(group, target)) for group in new if not _scaled(name, group)]
            if len(new) == len(groups):  # the optimizer has loaded a state
                wrong = len(set(free)) > 1
            else:
                default = _get(self.optimizer.defaults, target)
                wrong = any(value not in (values[name], default) for value in free)
            if wrong:
                raise ValueError(
                    f"{name} must be the same in all param groups to be scheduled, got {free} in "
                    f"groups that came later{_remedy(name)}"
                )
        self._groups = list(groups)


def _several() -> bool:
    there = distributed.is_available() and distributed.is_initialized()
    return there and distributed.get_world_size() > 1


Target = str | tuple[str, int]


def _get(group: Mapping[str, Any], target: Target) -> Any:
    """What a param group holds at ``target``: a key, or a key and a place in its tuple."""
    return group.get(target) if isinstance(target, str) else group[target[0]][target[1]]


def _put(group: dict[str, Any], target: Target, value: Any) -> None:
    if isinstance(target, str):
        group[target] = value
        return
    field, place = target
    group[field] = type(group[field])(
        value if i == place else held for i, held in enumerate(group[field])
    )


def _check_sampler(sampler: Any, plan: Plan) -> None:
    if plan.unit != "epochs":
        raise ValueError(
            f"sampler goes with a plan in epochs, got one in {plan.unit}: call "
            "sampler.set_epoch(epoch) before each pass over the data instead"
        )
    # By what it can do, not by its class: a wrapper may deal its batches out to ranks.
    if not callable(getattr(sampler, "set_epoch", None)) or not hasattr(sampler, "epoch"):
        raise ValueError(f"sampler must be a ScheduledBatchSampler, got {type(sampler).__name__}")
    if getattr(sampler, "plan", plan) != plan:
        raise ValueError(f"sampler must have the same plan, got one with {sampler.plan!r}")


def _fields(optimizer: Optimizer, plan: Plan, given: Mapping[str, Target]) -> dict[str, Target]:
    """Hyperparameter -> where in a param group it is written to, checked."""
    if not isinstance(given, Mapping):
        raise ValueError(f"fields must map lr, beta or gamma to names, got {given!r}")
    # A pair out of TOML or JSON is a list.
    given = {name: (*at,) if isinstance(at, list) else at for name, at in given.items()}  # pyright: ignore
    for name in given:
        if name not in HYPERPARAMETERS:
            raise ValueError(f"fields maps lr, beta or gamma, got {name!r}")
        if getattr(plan, name) is None:
            raise ValueError(f"fields maps {name}, but the plan does not schedule {name}")
    planned = [name for name in HYPERPARAMETERS if getattr(plan, name) is not None]
    fields = {name: given.get(name, name) for name in planned}
    if len(set(fields.values())) < len(fields):
        raise ValueError(f"fields must map each to a field of its own, got {fields}")
    groups = optimizer.param_groups
    kind = type(optimizer).__name__
    for name, target in fields.items():
        field = target if isinstance(target, str) else target[0]
        if any(field not in group for group in groups):
            to = ("betas", 0) if "betas" in groups[0] else "momentum"
            raise ValueError(
                f"the plan schedules {name}, but {kind}'s param groups have no {field!r}: leave "
                f"{name} out of the plan or map it, as in fields={{{name!r}: {to!r}}}"
            )
        for group in groups:
            _check_number(name, target, group)
        free = [float(_get(group, target)) for group in groups if not _scaled(name, group)]
        if len(set(free)) > 1:
            raise ValueError(
                f"{name} must be the same in all param groups to be scheduled, got "
                f"{free}{_remedy(name)}"
            )
    return fields


def _check_number(name: str, target: Target, group: Mapping[str, Any]) -> None:
    try:
        value = _get(group, target)
    except (IndexError, TypeError, KeyError):
        held = group.get(target[0])
        raise ValueError(f"{name} must go to a place that exists, got {target} of {held}") from None
    one = value.numel() == 1 if isinstance(value, Tensor) else isinstance(value, Real)
    if not one or isinstance(value, bool):
        shown = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
        several = isinstance(value, tuple | list)
        remedy = f"; name one of them, as in ({target!r}, 0)" if several else ""
        raise ValueError(f"{name} must go to a single number, but {target!r} is {shown}{remedy}")
    if not _scaled(name, group):
        return
    scale = group["lr_scale"]
    number = float(scale) if isinstance(scale, Real) and not isinstance(scale, bool) else math.nan
    if not 0 <= number < math.inf:
        raise ValueError(f"lr_scale must be a finite number >= 0, got {scale!r}")


def _scaled(name: str, group: Mapping[str, Any]) -> bool:
    return name == "lr" and "lr_scale" in group


def _remedy(name: str) -> str:
    return "; give each group its ratio as group['lr_scale']" if name == "lr" else ""
