"""Loss and accuracy over a set."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from batchramp.measure.full_gradient import (
    FullGradient,
    left_as_found,
    mean_loss,
    nonempty,
    norm_seen,
)

__all__ = ["Evaluation", "evaluate", "evaluate_with_gradient"]

# What a collapsed classifier has over the best constant answer, at most. Seen of MLPs that too
# large a learning rate broke: accuracy up to 0.8 points above, loss down to 0.4 % below.
_POINTS_ABOVE = 2.0
_LOSS_SHARE = 0.99


class Evaluation(NamedTuple):
    """Loss and accuracy over a set, and whether the network does better than a constant.

    Attributes:
        loss: the mean loss.
        accuracy: percent of samples whose largest output is their class; None where the targets
            are not classes.
        at_chance: accuracy (within 2 points, or half of what is left to 100) and loss (within 1 %)
            are no better than those of the best constant answer: the share of the commonest class,
            and the entropy of the classes, so the loss must be cross-entropy to be judged. The
            gradient of such a network can be small, and that is no success.
    """

    loss: float
    accuracy: float | None
    at_chance: bool


def evaluate(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    batches: Iterable[tuple[Any, Any]],
) -> Evaluation:
    """Loss and accuracy in eval mode, batches weighted by true counts.

    Args:
        model: any module; left as found.
        loss_fn: ``loss_fn(model(inputs), targets)``, the mean loss over a batch.
        batches: yields ``(inputs, targets)``.

    Raises:
        ValueError: no sample, batches of anything but pairs of one length, or a loss that is not
            one number.
    """
    tally = _Tally()
    # Not inference mode: what a module caches in its forward pass must still serve training.
    with left_as_found(model), torch.no_grad():
        model.eval()
        for inputs, targets in nonempty(batches):
            outputs = model(inputs)
            tally.add(outputs, targets, float(mean_loss(loss_fn(outputs, targets))))
    return tally.evaluation()


def evaluate_with_gradient(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    batches: Iterable[tuple[Any, Any]],
) -> tuple[Evaluation, FullGradient]:
    """What `evaluate` and `full_gradient_norm` return, with one forward pass for both.

    Args:
        model, loss_fn, batches: as of `full_gradient_norm`, whose errors it raises.
    """
    tally = _Tally()
    gradient = norm_seen(model, loss_fn, batches, "eval", tally.add)
    return tally.evaluation(), gradient


@final
class _Tally:
    """Sums over batches."""

    def __init__(self) -> None:
        self._loss_sum, self._count, self._correct = 0.0, 0, 0
        self._frequencies: Tensor | None = None  # of the classes

    def add(self, outputs: Any, targets: Any, loss: float) -> None:
        self._loss_sum += loss * len(targets)
        self._count += len(targets)
        if outputs.ndim == 2 and targets.ndim == 1 and not targets.is_floating_point():
            self._correct += int((outputs.argmax(1) == targets).sum())
            found = torch.bincount(targets, minlength=outputs.shape[1])
            self._frequencies = found if self._frequencies is None else self._frequencies + found

    def evaluation(self) -> Evaluation:
        loss = self._loss_sum / self._count
        if self._frequencies is None:
            return Evaluation(loss, None, False)
        accuracy = 100 * self._correct / self._count
        shares = self._frequencies.double() / self._count
        commonest = 100 * float(shares.max())
        at_chance = accuracy <= commonest + min(_POINTS_ABOVE, (100 - commonest) / 2) and not (
            loss < _LOSS_SHARE * float(torch.special.entr(shares).sum())
        )
        return Evaluation(loss, accuracy, at_chance)
