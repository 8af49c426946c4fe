"""How far a run is, the row that each epoch leaves, and when a run has ended."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from batchramp.plan import HYPERPARAMETERS, Values

__all__ = ["STEPS_BETWEEN_CHECKS", "Progress", "check_seed", "row_of", "status_of"]

# Steps between looks at the loss; each look makes a GPU wait.
STEPS_BETWEEN_CHECKS = 100
# A classifier that does no better than a constant answer for so long has collapsed.
_EPOCHS_AT_CHANCE = 3


@final
@dataclass
class Progress:
    """How far a run is."""

    epoch: int = 0
    steps: int = 0
    samples: int = 0
    seconds: float = 0.0
    status: str = "running"


def check_seed(seed: Any) -> None:
    """Refuses what is no seed of a run.

    Raises:
        ValueError: it is not an integer in [0, 2^32).
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be an integer >= 0 and below 2**32, got {seed!r}")


def row_of(
    at: Progress,
    values: Values,
    measured: Mapping[str, Any],
    earlier: Iterable[Mapping[str, Any]],
) -> dict[str, Any]:
    """The row of an epoch, with the columns of `batchramp.store`.

    Args:
        at: at the epoch's end, before it counts as complete.
        values: what was planned there.
        measured: as `Task.measure` returns it, finite or None.
        earlier: what was measured at the start and after each earlier epoch.
    """
    least = _least([*earlier, measured])
    return {
        **{name: getattr(at, name) for name in ("epoch", "steps", "samples", "seconds")},
        **{name: getattr(values, name) for name in ("batch_size", *HYPERPARAMETERS)},
        **measured,
        "min_full_gradient_norm": least["full_gradient_norm"],
        "loss_at_min_norm": least["train_loss"],
    }


def status_of(initial: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], epochs: int) -> str:
    """How a run stands after its rows: "running", or one of `batchramp.store.ENDED`."""
    if None in (rows[-1]["train_loss"], rows[-1]["full_gradient_norm"]):
        return "diverged"
    stuck = sum(row["at_chance"] for row in rows[-_EPOCHS_AT_CHANCE:]) == _EPOCHS_AT_CHANCE
    was_better = not all(row["at_chance"] for row in (initial, *rows))
    if stuck and (was_better or len(rows) == epochs):
        return "collapsed"
    return "finished" if len(rows) == epochs else "running"


def _least(rows: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The row of the smallest full-gradient norm, as far as norms are finite."""
    norm = "full_gradient_norm"
    return min(rows, key=lambda row: math.inf if row[norm] is None else row[norm])
