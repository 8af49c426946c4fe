"""One training run, as a value."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from batchramp.experiments.tasks import MODELS, training_samples
from batchramp.plan import Plan
from batchramp.progress import check_seed

__all__ = ["OPTIMIZERS", "Run"]

OPTIMIZERS = ("QHM", "SGD", "Adam", "AdamW", "RMSprop")


@final
@dataclass(frozen=True)
class Run:
    """One training run, as a value.

    Args:
        label: what it is called among the runs it is compared with, such as "increasing".
        plan: the Plan.
        task: a name of `batchramp.experiments.tasks`.
        seed: of initial weights and order of samples.
        panel: which comparison it belongs to, such as "cosine".
        experiment: the recipe's name.
        model: of the task; "" for its usual one.
        optimizer: one of QHM, SGD, Adam, AdamW, RMSprop.
        options: the optimizer's own arguments, beside what the Plan schedules.
        note: what reports say of it, such as how its lr was chosen.
        constants: whether it measures constants after every epoch; see `fit`.
        fields: what the optimizer calls what the Plan schedules, as pairs; see `ParamScheduler`.
        within: a folder above that of the panel, where several experiments share one folder.
        device, channels_last, autocast, compiled: see `Task`.

    Raises:
        ValueError: no such task, model or optimizer, or a seed out of range.
    """

    label: str
    plan: Plan
    task: str
    seed: int
    panel: str = ""
    experiment: str = ""
    model: str = ""
    optimizer: str = "QHM"
    options: tuple[tuple[str, Any], ...] = ()
    note: str = ""
    constants: bool = False
    fields: tuple[tuple[str, Any], ...] = ()
    within: str = ""
    device: str = "cpu"
    channels_last: bool = False
    autocast: bool = False
    compiled: bool = False

    def __post_init__(self) -> None:
        training_samples(self.task)
        if not self.model:
            object.__setattr__(self, "model", MODELS[self.task][0])
        if self.model not in MODELS[self.task]:
            allowed = ", ".join(MODELS[self.task])
            raise ValueError(
                f"model of task {self.task} must be one of {allowed}, got {self.model!r}"
            )
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(
                f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}"
            )
        check_seed(self.seed)
        for name, value in self.options:
            try:
                hash(value)
            except TypeError:
                raise ValueError(
                    f"optimizer.{name} must be a number, a text, true, false or a list of those, "
                    f"got {value!r}"
                ) from None

    @property
    def folder(self) -> Path:
        """Where the run's files go, below the experiment's folder."""
        parts = [_slug(part) for part in (self.within, self.panel, self.label) if part]
        return Path(*parts, f"seed-{self.seed}")

    @property
    def title(self) -> str:
        """For people."""
        return " / ".join(part for part in (self.panel, self.label, f"seed {self.seed}") if part)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.=_-]+", "-", text).strip("-.") or "run"
