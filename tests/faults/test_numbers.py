"""Numbers at the edges of their types: right, or refused; and QHM under whatever schedule."""

import random

import pytest
import torch
from injected import counted, many

from batchramp import QHM, Plan, ScheduledBatchSampler
from batchramp import schedules as s
from batchramp.optim.reference import reference_qhm

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
SHAPES = [(), (1,), (7,), (16,), (17,), (40,), (3, 5), (4, 3, 2, 2), (0, 3), (1, 1), (2, 31)]
# Where the formulas of the fused step have their limits, and what lies between.
SPECIAL = [0.0, 1e-12, 1e-6, 0.5, 0.9, 0.99, 0.9999, 1 - 1e-6, 1 - 1e-9]


def drawn_values(rng: random.Random, steps: int) -> list[tuple[float, float, float]]:
    """lr, beta and gamma of each step: constant, changing now and then, or at every step."""

    def one() -> tuple[float, float, float]:
        lr = rng.choice([0.0, rng.uniform(0, 0.3), 10 ** rng.uniform(-8, -1)])
        beta = rng.choice([rng.random(), rng.choice(SPECIAL)])
        gamma = rng.choice([rng.random(), rng.choice([*SPECIAL, 1.0])])
        return lr, min(beta, 1 - 1e-9), gamma

    every = rng.choice([1, 2, steps])
    kept = [one() for _ in range(-(-steps // every))]
    return [kept[k // every] for k in range(steps)]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=[*DTYPES])
@many(40, 700, 10_000)
def test_qhm_is_algorithm_1_under_random_schedules_and_shapes(
    count: int, dtype: torch.dtype
) -> None:
    for case in range(count):
        rng = random.Random(f"{case} {dtype}")
        generator = torch.Generator().manual_seed(case)
        shapes = [rng.choice(SHAPES) for _ in range(rng.randrange(1, 4))]
        values = drawn_values(rng, rng.randrange(1, 9))

        def draw(shape: tuple[int, ...], by: torch.Generator = generator) -> torch.Tensor:
            return torch.randn(shape, generator=by, dtype=torch.float64).to(dtype)

        params = [torch.nn.Parameter(draw(shape)) for shape in shapes]
        starts = [p.detach().double().flatten().tolist() for p in params]
        optimizer = (
            QHM(params, lr=0.1, fused=True) if dtype != torch.bfloat16 else QHM(params, lr=0.1)
        )
        history: list[list[list[float] | None]] = [[] for _ in params]
        for lr, beta, gamma in values:
            optimizer.param_groups[0].update(lr=lr, beta=beta, gamma=gamma)
            for p, seen in zip(params, history, strict=True):
                p.grad = None if rng.random() < 0.15 else draw(tuple(p.shape))
                seen.append(None if p.grad is None else p.grad.double().flatten().tolist())
            optimizer.step()
        lrs, betas, gammas = zip(*values, strict=True)
        tolerance = 1e-12 if dtype is torch.float64 else 2 * torch.finfo(dtype).eps * len(values)
        for p, start, seen in zip(params, starts, history, strict=True):
            if not start:
                continue
            iterates = reference_qhm(start, seen, lrs, betas, gammas)
            size = max(1.0, *(abs(x) for iterate in iterates for x in iterate))
            actual = p.detach().double().flatten().tolist()
            error = max(abs(a - b) for a, b in zip(actual, iterates[-1], strict=True))
            assert error <= tolerance * size, (case, values, shapes, error / size)
        counted["random schedule"] += 1


MAGNITUDES = {
    "float64": [0.0, 5e-324, 1e-310, 1e-200, 1e200],
    "float32": [0.0, 1e-45, 1e-40, 1e-20, 1e30],
    "bfloat16": [0.0, 1e-40, 1e-20, 1e30],
    "float16": [0.0, 6e-8, 1e-5, 6e4],
}


@pytest.mark.parametrize(
    "options", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str
)
@pytest.mark.parametrize("name", MAGNITUDES)
def test_huge_tiny_zero_and_denormal_gradients_are_right(
    name: str, options: dict[str, bool]
) -> None:
    dtype = getattr(torch, name)
    if options.get("fused") and name in ("bfloat16", "float16"):
        options = {}  # the kernel is left for these
    for magnitude in MAGNITUDES[name]:
        p = torch.nn.Parameter(torch.ones(20, dtype=dtype))
        optimizer = QHM([p], lr=0.125, beta=0.9, gamma=0.7, **options)
        gradient = torch.full_like(p, magnitude)
        for _ in range(4):
            p.grad = gradient.clone()
            optimizer.step()
        g = gradient.double()[0].item()
        last = reference_qhm([1.0], [[g]] * 4, [0.125] * 4, [0.9] * 4, [0.7] * 4)[-1][0]
        assert torch.isfinite(p).all() or abs(last) > torch.finfo(dtype).max
        tolerance = 8 * torch.finfo(dtype).eps
        expected = torch.full((20,), last, dtype=torch.float64)
        if abs(last) <= torch.finfo(dtype).max:
            torch.testing.assert_close(p.detach().double(), expected, rtol=tolerance, atol=0)


@pytest.mark.parametrize("dtype", [*DTYPES.values(), torch.float16], ids=str)
def test_lr_0_moves_nothing_and_keeps_momentum(dtype: torch.dtype) -> None:
    p = torch.nn.Parameter(torch.linspace(-3, 3, 33).to(dtype))
    start = p.detach().clone()
    optimizer = QHM([p], lr=0.0, beta=0.9, gamma=0.7)
    for _ in range(3):
        p.grad = torch.ones_like(p)
        optimizer.step()
        assert torch.equal(p, start)
    optimizer.param_groups[0]["lr"] = 1.0
    p.grad = torch.zeros_like(p)
    optimizer.step()  # what was gathered moves it: 0.7 * 0.9 * (1 - 0.9**3)
    expected = start.double() - 0.7 * 0.9 * (1 - 0.9**3)
    tolerance = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(p.detach().double(), expected, rtol=tolerance, atol=tolerance)


def test_batch_sizes_to_2_31_and_beyond() -> None:
    for size in (2**31 - 1, 2**31, 2**31 + 1, 2**40):
        plan = Plan(epochs=2, batch_size=size, lr=0.1)
        assert plan.at(1).batch_size == size
        assert plan.total_steps(10) == 2
        assert plan.total_steps(3 * 2**31) == 2 * -(-3 * 2**31 // size)
        assert [len(batch) for batch in ScheduledBatchSampler(plan, 10, seed=0)] == [10]
    growing = Plan(epochs=40, batch_size=s.Exponential(1, factor=2, every=1))
    assert growing.at(39).batch_size == 2**39
    assert growing.total_samples(10) == 400


def test_a_piecewise_plan_of_10_9_steps() -> None:
    pieces = s.Piecewise({0: 8, 10**6: 64, 10**9 - 1: 2**31})
    plan = Plan(steps=10**9, batch_size=pieces, lr=s.Piecewise({0: 0.1, 10**8: 0.0}))
    assert [stage.start for stage in plan.stages(2**40)] == [0, 10**6, 10**9 - 1]
    assert plan.total_samples(2**40) == 8 * 10**6 + 64 * (10**9 - 10**6 - 1) + 2**31
    assert (plan.at(10**8 - 1).lr, plan.at(10**8).lr) == (0.1, 0.0)
