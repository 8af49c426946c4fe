"""One optimizer step: QHM's three implementations, torch.optim.SGD's, and everyone else's QHM."""

from collections.abc import Callable, Iterator
from typing import Any, final

import torch

from batchramp.optim import QHM
from benchmarks.machine import cores
from benchmarks.released import ReleasedQHM
from benchmarks.timing import Aim, Case, Size, Turn, repeated

TITLE = "Optimizer step"
NOTE = """All parameters have a gradient that stays. lr, and beta and gamma where there are any,
change before every step, and the change is timed with it. SGD has Nesterov's momentum, which does
the same reads and writes as QHM; its foreach adds the momentum to the gradients themselves. The
released QHM is Algorithm 1 written as the paper's code does, each operation a new tensor. The
kernel alone is what both fused ones call, with nothing around it."""

Shape = tuple[int, ...]
BASE = "torch SGD fused"
KERNEL = "the kernel alone, torch._fused_sgd_"
LOOKS = """what is above the kernel alone are looks at the shapes and strides of every tensor,
without which the kernel is silently wrong or writes past the end, and torch's own hook of `step`"""
_IMPLEMENTATIONS = {
    "loop": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}


def resnet18_shapes(classes: int = 100) -> list[Shape]:
    """The 62 parameters of the CIFAR ResNet-18: convolutions without bias, batch norms, a head."""
    shapes: list[Shape] = [(64, 3, 3, 3), (64,), (64,)]
    width = 64
    for out in (64, 128, 256, 512):
        for block in range(2):
            shapes += [(out, width, 3, 3), (out,), (out,), (out, out, 3, 3), (out,), (out,)]
            if block == 0 and width != out:
                shapes += [(out, width, 1, 1), (out,), (out,)]
            width = out
    return [*shapes, (classes, width), (classes,)]


def vit_tiny_shapes(classes: int = 100) -> list[Shape]:
    """A small vision transformer for 32 x 32 pictures: 118 parameters, 2.7 million numbers."""
    width, patch, depth, hidden = 192, 4, 9, 384
    shapes: list[Shape] = [(1, 1, width), (1, 65, width), (width, 3, patch, patch), (width,)]
    shapes += [(width,), (width,)]
    for _ in range(depth):
        shapes += [(width,), (width,), (3 * width, width), (3 * width,)]
        shapes += [(width, width), (width,), (width,), (width,)]
        shapes += [(hidden, width), (hidden,), (width, hidden), (width,)]
    return [*shapes, (width,), (width,), (classes, width), (classes,)]


# The tensors, and what QHM fused / torch SGD fused is to be at most.
MODELS: dict[str, tuple[list[Shape], float]] = {
    "ResNet-18, 62 tensors, 11.2 M numbers": (resnet18_shapes(), 1.05),
    "ViT-Tiny, 118 tensors, 2.7 M numbers": (vit_tiny_shapes(), 0.95),
    "1000 tensors of 1000 numbers": ([(1000,)] * 1000, 0.7),
}


@final
class Stepped:
    """An optimizer over parameters of its own, with gradients that stay.

    Args:
        shapes: of the parameters.
        make: makes the optimizer.
        beta, gamma: what it calls them; "" where it has none, or they are left alone.
        threads: of torch.
    """

    def __init__(
        self,
        shapes: list[Shape],
        make: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer],
        beta: str = "beta",
        gamma: str = "gamma",
        threads: int = 1,
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        self.params = [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in shapes]
        for p in self.params:
            p.grad = torch.randn(p.shape, generator=generator)
        self.optimizer = make(self.params)
        self.beta, self.gamma, self.threads = beta, gamma, threads
        self.steps = 0

    def __call__(self) -> None:
        """One step, with new hyperparameters."""
        group = self.optimizer.param_groups[0]
        k = self.steps = self.steps % 1000 + 1
        group["lr"] = 1e-4 / k
        if self.beta:
            group[self.beta] = 0.9 - 0.1 / (k + 1)
        if self.gamma:
            group[self.gamma] = 0.7 + 0.1 / (k + 1)
        self.optimizer.step()


def ours(shapes: list[Shape], threads: int = 1) -> dict[str, Stepped]:
    """QHM's and torch SGD's, and the released QHM, by name."""
    found = {}
    for kind, options in _IMPLEMENTATIONS.items():
        found[f"torch SGD {kind}"] = Stepped(
            shapes, lambda p, o=options: _sgd(p, o), "", "", threads
        )
        found[f"QHM {kind}"] = Stepped(
            shapes, lambda p, o=options: QHM(p, lr=1e-4, **o), threads=threads
        )
    found["the released QHM"] = Stepped(shapes, lambda p: ReleasedQHM(p, lr=1e-4), threads=threads)
    return found


@final
class Kernel:
    """The call that QHM fused and torch SGD fused both end in, on tensors of its own."""

    def __init__(self, shapes: list[Shape], threads: int) -> None:
        own = Stepped(shapes, lambda p: _sgd(p, {"fused": True}), "", "")
        self.threads = threads
        self.lists = (
            own.params,
            [p.grad for p in own.params],
            list(map(torch.zeros_like, own.params)),
        )
        self.step: Any = torch._C._VariableFunctions._fused_sgd_

    @torch.no_grad()
    def __call__(self) -> None:
        self.step(
            *self.lists,
            weight_decay=0.0,
            momentum=0.9,
            lr=1e-4,
            dampening=0.1,
            nesterov=True,
            maximize=False,
            is_first_step=False,
        )


def _sgd(params: Any, options: dict[str, Any]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=1e-4, momentum=0.9, nesterov=True, **options)


def peers(shapes: list[Shape], threads: int = 1) -> dict[str, Callable[[], Stepped]]:
    """Makers of other packages' QHM, by name."""

    def qhoptim() -> Stepped:
        import warnings

        from qhoptim.pyt import QHM as Theirs

        # Of add_(number, tensor), which torch deprecated long ago.
        warnings.filterwarnings("ignore", "This overload of")
        make = lambda p: Theirs(p, lr=1e-4, momentum=0.9, nu=0.7)  # noqa: E731
        return Stepped(shapes, make, "momentum", "nu", threads)

    def kozistr(foreach: bool) -> Stepped:
        from pytorch_optimizer import QHM as Theirs

        make = lambda p: Theirs(p, lr=1e-4, momentum=0.9, nu=0.7, foreach=foreach)  # noqa: E731
        return Stepped(shapes, make, "momentum", "nu", threads)

    return {
        "qhoptim QHM": qhoptim,
        "pytorch-optimizer QHM loop": lambda: kozistr(False),
        "pytorch-optimizer QHM foreach": lambda: kozistr(True),
    }


def cases(size: Size) -> Iterator[Case]:
    rounds, seconds = {"tiny": (1, 0.0), "quick": (11, 0.02), "full": (51, 0.05)}[size]
    for name, (real_shapes, most) in MODELS.items():
        shapes = real_shapes if size != "tiny" else [(3, 2), (5,)]
        for threads in sorted({1, cores()}):
            own = ours(shapes, threads)
            theirs = peers(shapes, threads)
            yield Case(
                name=f"{name}, {threads} thread{'s' if threads > 1 else ''}",
                per="step",
                base=BASE,
                sides={
                    side: _turn(stepped, seconds)
                    for side, stepped in {**own, KERNEL: Kernel(shapes, threads)}.items()
                },
                peers={side: lambda m=make: _turn(m(), seconds) for side, make in theirs.items()},
                rounds=rounds,
                aims=[
                    Aim("QHM fused", BASE, most=most, cause=LOOKS),
                    Aim("QHM foreach", "torch SGD foreach", most=1.0),
                    Aim("QHM loop", "torch SGD loop", most=1.0),
                ],
            )


def _turn(stepped: Stepped | Kernel, seconds: float) -> Turn:
    turn = repeated(stepped, seconds)

    def with_its_threads() -> float:
        torch.set_num_threads(stepped.threads)
        return turn()

    return with_its_threads
