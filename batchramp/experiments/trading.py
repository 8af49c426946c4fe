"""Does growth of the batch size end where the decay of lr that was traded for it does?

Two decays, cosine and in steps, for SGD and for AdamW, each at an lr tuned for the decay alone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from batchramp.experiments.chosen import committed, lr_of
from batchramp.experiments.recipes import ADAPTIVE_LRS, HEAVY_BALL_LRS, Cell
from batchramp.experiments.run import Run
from batchramp.experiments.scales import Setting, scale_named
from batchramp.plan import Plan
from batchramp.schedules import Cosine, Schedule, StepDecay

__all__ = ["trade_decay", "trade_decay_cells"]

SEEDS = range(10)
BATCH_SIZE, MAXIMUM = 32, 4096
_FACTOR, _STAGES = 0.5, 6
_KINDS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    (
        "SGD",
        "smith",
        {"optimizer": "SGD", "options": (("momentum", 0.9),), "lrs": HEAVY_BALL_LRS},
    ),
    ("AdamW", "seesaw", {"optimizer": "AdamW", "lrs": ADAPTIVE_LRS}),
)


def trade_decay_cells(scale: str = "quick") -> list[Cell]:
    """The decay as it is, the growth it is traded for, and a constant batch of as many steps.

    >>> [cell.plan(0.01).total_steps(6_500) for cell in trade_decay_cells()[:3]]
    [6120, 3032, 3060]
    """
    setting = scale_named(scale).main

    def decay(name: str, lr: float) -> Schedule:
        every = setting.epochs // _STAGES
        return Cosine(lr) if name == "cosine" else StepDecay(lr, factor=_FACTOR, every=every)

    def cells(name: str, optimizer: str, rule: Any, given: Mapping[str, Any]) -> list[Cell]:
        def decayed(lr: float, batch_size: int = BATCH_SIZE) -> Plan:
            return Plan(epochs=setting.epochs, batch_size=batch_size, lr=decay(name, lr))

        def grown(lr: float) -> Plan:
            return Plan.trade_decay(
                decay(name, lr), BATCH_SIZE, rule, epochs=setting.epochs, maximum=MAXIMUM
            )

        size = _equal_steps(setting, grown(1.0))
        plans: dict[str, Callable[[float], Plan]] = {
            "decay": decayed,
            "growth": grown,
            "equal-steps": lambda lr: decayed(lr, size),
        }
        panel = f"{optimizer}, {name}"
        return [
            Cell("trade-decay", panel, label, setting, plan, **given)
            for label, plan in plans.items()
        ]

    return [
        cell
        for optimizer, rule, given in _KINDS
        for name in ("cosine", "steps")
        for cell in cells(name, optimizer, rule, given)
    ]


def _equal_steps(setting: Setting, plan: Plan) -> int:
    """The constant batch size whose steps are nearest to the plan's."""
    steps = plan.total_steps(setting.n)

    def apart(size: int) -> int:
        constant = Plan(epochs=setting.epochs, batch_size=size)
        return abs(constant.total_steps(setting.n) - steps)

    return min(range(BATCH_SIZE, 8 * BATCH_SIZE), key=apart)


def trade_decay(
    scale: str = "quick", seeds: Sequence[int] = SEEDS, *, tuned: Mapping[str, Any] | None = None
) -> list[Run]:
    """The runs that say whether `Plan.trade_decay` costs accuracy.

    lr of the growth is that of the decay: nothing is tuned for it. The constant batch of as many
    steps has its own.

    Args:
        scale: "quick"; at another one give ``tuned``.
        seeds: of the runs; at least 8 decide.
        tuned: the lr of every cell, as `choose_lr` returns; None for the committed result.

    Raises:
        ValueError: a scale for which lr was not tuned.
    """
    chosen = committed("trade-decay", scale) if tuned is None else tuned
    if chosen is None:
        raise ValueError(f"scale must be one at which lr was tuned, or give tuned; got {scale!r}")
    note = f"how lr was chosen: {chosen['rule']}; of growth: that of its decay"
    return [
        cell.run(
            lr_of(chosen, cell.panel, "decay" if cell.label == "growth" else cell.label),
            seed,
            note=note,
        )
        for cell in trade_decay_cells(scale)
        for seed in seeds
    ]
