"""How large: what is trained on what, and for how long, at each of three scales."""

from dataclasses import dataclass
from typing import final

from batchramp.experiments.tasks import training_samples

__all__ = ["SCALES", "Scale", "Setting", "scale_named"]


@final
@dataclass(frozen=True)
class Setting:
    """What is trained on what for how long.

    Attributes:
        task, model: names of `batchramp.experiments.tasks`.
        epochs: M.
        every: E, the epochs between two changes of batch size and momentum.
        tuning_task: the same with a validation split, where the task itself has none.
    """

    task: str
    model: str
    epochs: int
    every: int
    tuning_task: str = ""

    @property
    def n(self) -> int:
        """Training samples."""
        return training_samples(self.task)


@final
@dataclass(frozen=True)
class Scale:
    """The settings of all figures.

    Attributes:
        main: of figures 1 to 4, 6, 7, of A.11 and of the baselines.
        residual: of figure 5, beside ``vit``.
        vit: of figures 10 to 12.
        grid: of figures 8 and 9.
    """

    main: Setting
    residual: Setting
    vit: Setting
    grid: Setting


_PAPER = Setting("cifar100", "resnet18", 300, 30, "cifar100-tuning")

SCALES = {
    # What the paper ran on an A100.
    "paper": Scale(
        main=_PAPER,
        residual=_PAPER,
        vit=Setting("cifar100", "vit_tiny", 300, 30, "cifar100-tuning"),
        grid=Setting("cifar100", "resnet18", 150, 30, "cifar100-tuning"),
    ),
    # A night of a CPU: the same ten levels of the batch size, an epoch each.
    "small": Scale(
        main=Setting("fashion-mnist", "small_resnet", 10, 1),
        residual=Setting("fashion-mnist", "small_resnet", 10, 1),
        vit=Setting("fashion-mnist", "vit_micro", 10, 1),
        grid=Setting("fashion-mnist", "small_resnet", 5, 1),
    ),
    # Minutes of two cores, on the bundled images.
    "quick": Scale(
        main=Setting("fashion-mini", "mlp", 30, 3),
        residual=Setting("fashion-mini", "small_resnet", 10, 1),
        vit=Setting("fashion-mini", "vit_micro", 10, 1),
        grid=Setting("fashion-mini", "mlp", 15, 3),
    ),
}


def scale_named(name: str) -> Scale:
    """The scale of that name.

    Raises:
        ValueError: there is none.

    >>> scale_named("paper").main.n
    50000
    """
    if name not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {name!r}")
    return SCALES[name]
