"""Loss and accuracy over a set."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Evaluation", "evaluate"]

# A collapsed classifier answers (almost) every sample with one class, at the loss of the best
# constant answer or worse; a few odd samples and rounding are allowed for.
_ONE_CLASS = 0.99
_CONSTANT_LOSS = 0.999


class Evaluation(NamedTuple):
    """Loss and accuracy over a set, and whether the network does better than a constant.

    Attributes:
        loss: the mean loss.
        accuracy: percent of samples whose largest output is their class; None where the targets
            are not classes.
        at_chance: 99 % of samples are given one and the same class, at a loss not below the
            entropy of the classes, which is the cross-entropy of the best constant answer. The
            gradient of such a network is small, and no success.
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
        model: left in eval mode.
        loss_fn: ``loss_fn(model(inputs), targets)``, the mean loss over a batch.
        batches: yields ``(inputs, targets)``.

    Raises:
        ValueError: no sample.
    """
    model.eval()
    loss_sum = 0.0
    count = correct = 0
    answers: Tensor | int = 0  # how often each class was given,
    truths: Tensor | int = 0  # and how often it was right to
    classes = True
    with torch.inference_mode():
        for inputs, targets in batches:
            outputs = model(inputs)
            loss_sum += float(loss_fn(outputs, targets)) * len(targets)
            count += len(targets)
            classes = outputs.ndim == 2 and targets.ndim == 1 and not targets.is_floating_point()
            if classes:
                answer = outputs.argmax(1)
                correct += int((answer == targets).sum())
                answers += torch.bincount(answer, minlength=outputs.shape[1])
                truths += torch.bincount(targets, minlength=outputs.shape[1])
    if count == 0:
        raise ValueError("batches must hold at least 1 sample, got none")
    loss = loss_sum / count
    if not isinstance(answers, Tensor) or not isinstance(truths, Tensor):
        return Evaluation(loss, None, False)
    entropy = float(torch.special.entr(truths.double() / count).sum())
    one_class = float(answers.max()) / count >= _ONE_CLASS
    at_chance = one_class and not loss < _CONSTANT_LOSS * entropy
    return Evaluation(loss, 100 * correct / count, at_chance)
