"""The loop that the paper's authors released, written anew from its description.

Not their code, but what it does: a DataLoader with the default collate and two workers, made anew
whenever the batch size changes; transforms image by image, through Pillow; an optimizer that is
Algorithm 1 parameter by parameter, each operation a new tensor; losses and accuracies of training
summed up step by step; after every epoch the test set, and the full gradient over the training set
in chunks of 1000, in eval mode. torchvision's own overhead and the writing of logs are left out,
in its favour. It is one epoch late with batch size, beta and gamma; here it takes the Plan's
values, so that both sides take the same steps.
"""

from collections.abc import Iterator
from typing import Any, final

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from batchramp import Plan
from batchramp.models import MLP

__all__ = ["Pictures", "ReleasedQHM", "full_gradient_norm", "train"]

_WORKERS, _CHUNK = 2, 1000
# Fashion-MNIST's, of pixels in [0, 1].
_MEAN, _STD = 0.2860, 0.3530


@final
class Pictures(Dataset[tuple[Tensor, int]]):
    """Grey images as bytes, transformed one by one when asked for.

    Args:
        inputs: float32 ``[n, 1, h, w]``, normalised by Fashion-MNIST's mean and deviation.
        targets: int64 ``[n]``.
    """

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        pixels = inputs.mul(_STD).add(_MEAN).mul(255).round()
        self.pixels = pixels.to(torch.uint8).squeeze(1).numpy()
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture = Image.fromarray(self.pixels[index])
        image = torch.from_numpy(np.array(picture)).unsqueeze(0).float().div(255)
        return image.sub_(_MEAN).div_(_STD), int(self.targets[index])


@final
class ReleasedQHM(torch.optim.Optimizer):
    """Algorithm 1 of the paper as it stands there, one parameter after the other."""

    def __init__(self, params: Any, lr: float, beta: float = 0.9, gamma: float = 0.7) -> None:
        super().__init__(params, {"lr": lr, "beta": beta, "gamma": gamma})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            lr, beta, gamma = group["lr"], group["beta"], group["gamma"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "d" not in state:
                    state["d"] = torch.zeros_like(p)
                d = (1 - beta) * p.grad + beta * state["d"]
                m = (1 - gamma) * p.grad + gamma * d
                p.copy_(p - lr * m)
                state["d"] = d


def train(
    plan: Plan,
    train_set: tuple[Tensor, Tensor],
    test_set: tuple[Tensor, Tensor],
    *,
    seed: int,
    workers: int = _WORKERS,
) -> list[dict[str, float]]:
    """One run of the MLP; the rows that it logs, one an epoch."""
    torch.manual_seed(seed)
    data, test_data = Pictures(*train_set), Pictures(*test_set)
    model = MLP()
    optimizer = ReleasedQHM(model.parameters(), **plan.at(0).hyperparameters)
    test_loader = DataLoader(test_data, batch_size=_CHUNK, num_workers=workers)
    gradient_loader = DataLoader(data, batch_size=_CHUNK, num_workers=workers)
    loader, size = None, 0
    rows = []
    for epoch in range(plan.epochs or 0):
        values = plan.at(epoch)
        if loader is None or values.batch_size != size:
            size = values.batch_size
            loader = DataLoader(data, batch_size=size, shuffle=True, num_workers=workers)
        optimizer.param_groups[0].update(values.hyperparameters)
        row = _train_epoch(model, optimizer, loader)
        row |= _test(model, test_loader)
        row["full_gradient_norm"] = full_gradient_norm(model, gradient_loader)
        rows.append(row)
    return rows


def _train_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader[Any]
) -> dict[str, float]:
    model.train()
    loss_sum = right = count = 0.0
    for inputs, targets in loader:
        optimizer.zero_grad()
        outputs = model(inputs)
        loss = cross_entropy(outputs, targets)
        loss.backward()
        optimizer.step()
        loss_sum += loss.item() * len(targets)
        right += outputs.max(1)[1].eq(targets).sum().item()
        count += len(targets)
    return {"train_loss": loss_sum / count, "train_accuracy": 100 * right / count}


def _test(model: nn.Module, loader: DataLoader[Any]) -> dict[str, float]:
    model.eval()
    loss_sum = right = count = 0.0
    with torch.no_grad():
        for inputs, targets in loader:
            outputs = model(inputs)
            loss_sum += cross_entropy(outputs, targets).item() * len(targets)
            right += outputs.max(1)[1].eq(targets).sum().item()
            count += len(targets)
    return {"test_loss": loss_sum / count, "test_accuracy": 100 * right / count}


def full_gradient_norm(model: nn.Module, loader: DataLoader[Any]) -> float:
    """The norm of the gradient over the whole set, chunk by chunk, weighted by true counts."""
    model.eval()
    total = [torch.zeros_like(p) for p in model.parameters()]
    count = 0
    for inputs, targets in loader:
        model.zero_grad()
        cross_entropy(model(inputs), targets).backward()
        for sum_, gradient in zip(total, _gradients(model), strict=True):
            sum_.add_(gradient * len(targets))
        count += len(targets)
    return float(sum((sum_ / count).pow(2).sum() for sum_ in total) ** 0.5)


def _gradients(model: nn.Module) -> Iterator[Tensor]:
    for p in model.parameters():
        assert p.grad is not None
        yield p.grad
