"""QHM's numbers: its three implementations against Algorithm 1 in plain Python."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from batchramp.optim import QHM
from batchramp.optim.reference import reference_qhm

pytestmark = pytest.mark.usefixtures("one_thread")

IMPLEMENTATIONS = {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "default": {},
    "capturable": {"capturable": True},
    "differentiable": {"differentiable": True},
}
every_implementation = pytest.mark.parametrize(
    "options", IMPLEMENTATIONS.values(), ids=[*IMPLEMENTATIONS]
)

# Autograd lets no leaf be stepped differentiably, so these leave that one out.
of_leaves = [name for name in IMPLEMENTATIONS if name != "differentiable"]
every_implementation_of_leaves = pytest.mark.parametrize(
    "options", [IMPLEMENTATIONS[name] for name in of_leaves], ids=of_leaves
)

# (lr, beta, gamma), each followed by each of the others somewhere in `crossing`.
EDGES = [
    (0.1, 0.9, 0.7),
    (0.1, 0.0, 0.5),
    (0.1, 0.9, 0.0),
    (0.2, 0.5, 1.0),
    (0.0, 0.9, 0.7),
    (0.1, 0.9, 1e-12),
    (0.1, 0.9, 1 - 1e-12),
    (0.1, 1e-12, 0.5),
    (0.1, 0.9999, 0.3),
    (0.1, 0.0, 0.0),
    (0.1, 0.0, 1.0),
    (0.3, 0.99, 0.999),
]


def crossing(seed=0):
    pairs = [(a, b) for a in EDGES for b in EDGES if a != b]
    random.Random(seed).shuffle(pairs)
    return [values for pair in pairs[:20] for values in pair]


def wandering(steps, seed=0):
    rng = random.Random(seed)
    return [
        (rng.uniform(0, 0.3), rng.uniform(0.01, 0.999), rng.uniform(0.01, 0.999))
        for _ in range(steps)
    ]


def transposed(t):
    return t.mT.contiguous().mT if t.dim() > 1 else t


def with_gaps(t):
    base = torch.zeros(*t.shape[:-1], 2 * t.shape[-1], dtype=t.dtype)
    return base[..., ::2].copy_(t)


def channels_last(t):
    return t.contiguous(memory_format=torch.channels_last)


def plain(t):
    return t.contiguous()


# name -> shape, layout of the parameter, layout of its gradients
LAYOUTS = {
    "scalar": ((), plain, plain),
    "empty": ((0, 3), plain, plain),
    "vector": ((37,), plain, plain),
    "matrix": ((5, 7), plain, plain),
    "transposed": ((5, 7), transposed, transposed),
    "transposed, plain gradient": ((5, 7), transposed, plain),
    "gaps": ((5, 7), with_gaps, plain),
    "gaps in the gradient": ((5, 7), plain, with_gaps),
    "gaps in both": ((5, 7), with_gaps, with_gaps),
    "channels_last": ((4, 3, 2, 2), channels_last, channels_last),
    "channels_last, plain gradient": ((4, 3, 2, 2), channels_last, plain),
    "plain, channels_last gradient": ((4, 3, 2, 2), plain, channels_last),
    "1x1 convolution": ((4, 3, 1, 1), channels_last, plain),
}


def check(
    options, values, dtype=torch.float64, tolerance=None, layouts=LAYOUTS, absent=0.2, **extra
):
    """Run QHM and the reference on the same gradients, some of them absent, and compare.

    The error is measured against the largest number that an iterate or a step had.
    """
    generator = torch.Generator().manual_seed(0)
    rng = random.Random(0)

    def draw(shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    params = [torch.nn.Parameter(put(draw(shape))) for shape, put, _ in layouts.values()]
    starts = [p.detach().double().flatten().tolist() for p in params]
    optimizer = QHM(params, lr=0.1, **options, **extra)
    history = [[] for _ in params]
    for lr, beta, gamma in values:
        optimizer.param_groups[0].update(lr=lr, beta=beta, gamma=gamma)
        for p, seen, (shape, _, put) in zip(params, history, layouts.values(), strict=True):
            p.grad = None if rng.random() < absent else put(draw(shape))
            seen.append(None if p.grad is None else p.grad.double().flatten().tolist())
        held = [(p.grad, None if p.grad is None else p.grad.clone()) for p in params]
        with torch.no_grad():  # in-place steps of leaves, for the differentiable one as well
            if not options.get("differentiable"):
                optimizer.step()
            else:
                for p in params:
                    p.requires_grad_(False)
                optimizer.step()
        for p, (grad, before) in zip(params, held, strict=True):
            assert p.grad is grad
            assert grad is None or torch.equal(grad, before), "a gradient was changed"

    lrs, betas, gammas = zip(*values, strict=True)
    decay = {
        k: v
        for k, v in extra.items()
        if k in ("weight_decay", "decoupled_weight_decay", "maximize")
    }
    if tolerance is None:
        # Each step rounds d, m and x (and the decayed gradient), half a unit in the last place
        # each, times a little for numbers beyond the ones measured against.
        tolerance = 1e-12 if dtype is torch.float64 else 2 * torch.finfo(dtype).eps * len(values)
    for name, p, start, seen in zip(layouts, params, starts, history, strict=True):
        iterates = reference_qhm(start, seen, lrs, betas, gammas, **decay)
        if not start:
            continue
        size = max(1.0, *(abs(x) for iterate in iterates for x in iterate))
        actual = p.detach().double().flatten().tolist()
        error = max(abs(x - y) for x, y in zip(actual, iterates[-1], strict=True))
        assert error <= tolerance * size, f"{name}: {error / size}"
        moved = max(abs(x - y) for x, y in zip(start, iterates[-1], strict=True))
        assert moved > 10 * tolerance * size or moved == 0, "the test would see nothing"


@every_implementation
@pytest.mark.parametrize("seed", [0, 1])
def test_algorithm_1_when_values_change_at_every_step_and_cross_their_limits(options, seed):
    check(options, crossing(seed))


@every_implementation
def test_algorithm_1_over_200_wandering_steps(options):
    check(options, wandering(200), layouts={"vector": LAYOUTS["vector"]}, absent=0)


@every_implementation
def test_algorithm_1_when_values_stay(options):
    check(options, [(0.1, 0.9, 0.7)] * 100, absent=0.1)


@every_implementation
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("maximize", [False, True])
def test_weight_decay_and_maximize(options, decoupled, maximize):
    values = crossing(2)[:20]
    check(options, values, weight_decay=0.3, decoupled_weight_decay=decoupled, maximize=maximize)


# 1001 numbers: both the vectorised part of a kernel and its remainder.
LONG = {"long": ((1001,), plain, plain)}


@every_implementation
def test_float32(options):
    check(options, wandering(40, seed=3), torch.float32, layouts=LAYOUTS | LONG, absent=0)


@every_implementation
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(options, dtype):
    values = [(10 * lr, beta, gamma) for lr, beta, gamma in wandering(4, seed=3)]
    layouts = {name: LAYOUTS[name] for name in ("matrix", "channels_last, plain gradient")} | LONG
    check(options, values, dtype, layouts=layouts, absent=0)


@pytest.mark.parametrize(
    ("beta", "gamma"), [(0.9, 1 - 1e-6), (0.9, 1e-6), (0.9999, 0.01), (1e-6, 0.9)]
)
def test_float32_keeps_its_digits_near_the_limits(beta, gamma):
    check({"fused": True}, [(0.1, beta, gamma)] * 40, torch.float32, absent=0)


unit = st.floats(0, 1, exclude_max=True)
step_values = st.tuples(st.floats(0, 1), unit, st.floats(0, 1))


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    values=st.lists(step_values, min_size=1, max_size=12),
    weight_decay=st.sampled_from([0.0, 0.1]),
    decoupled=st.booleans(),
)
def test_fused_is_algorithm_1_for_any_values(values, weight_decay, decoupled):
    generator = torch.Generator().manual_seed(0)
    x = torch.nn.Parameter(torch.randn(19, dtype=torch.float64, generator=generator))
    start = x.tolist()
    other = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = QHM(
        [x, other], lr=0.1, weight_decay=weight_decay, decoupled_weight_decay=decoupled, fused=True
    )
    gradients = []
    for k, (lr, beta, gamma) in enumerate(values):
        optimizer.param_groups[0].update(lr=lr, beta=beta, gamma=gamma)
        x.grad = torch.randn(19, dtype=torch.float64, generator=generator)
        other.grad = torch.ones(2, dtype=torch.float64) if k % 3 else None
        gradients.append(x.grad.tolist())
        optimizer.step()
    iterates = reference_qhm(
        start,
        gradients,
        *zip(*values, strict=True),
        weight_decay=weight_decay,
        decoupled_weight_decay=decoupled,
    )
    torch.testing.assert_close(
        x.detach(), torch.tensor(iterates[-1], dtype=torch.float64), rtol=1e-12, atol=1e-12
    )


def test_reference_is_algorithm_1_by_hand():
    # d0 = .5*2 = 1; m0 = .75*2 + .25*1 = 1.75; x1 = 1 - .5*1.75 = .125
    # d1 = .75*4 + .25*1 = 3.25; m1 = .5*4 + .5*3.25 = 3.625; x2 = .125 - 3.625 = -3.5
    iterates = reference_qhm(
        [1.0], [[2.0], None, [4.0]], [0.5, 9.0, 1.0], [0.5, 0.9, 0.25], [0.25, 0.9, 0.5]
    )
    assert iterates == [[1.0], [0.125], [0.125], [-3.5]]


def sgd_and_qhm(make_sgd, make_qhm, steps=50):
    """Run both on a quadratic whose gradient depends on the iterate; lr changes at every step."""
    torch.manual_seed(0)
    matrix = torch.randn(6, 6, dtype=torch.float64)
    start = torch.randn(6, dtype=torch.float64)
    ends = []
    for make in (make_sgd, make_qhm):
        x = torch.nn.Parameter(start.clone())
        optimizer = make([x])
        initial = optimizer.param_groups[0]["lr"]
        for k in range(steps):
            optimizer.param_groups[0]["lr"] = initial / (1 + 0.1 * k)
            optimizer.zero_grad()
            (matrix @ x).square().sum().backward()
            optimizer.step()
        ends.append(x.detach())
    assert (ends[0] - start).abs().max() > 0.1
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-13, atol=1e-13)


@every_implementation_of_leaves
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_from_sgd_takes_the_steps_of_torch_sgd(options, nesterov, weight_decay):
    sgd_and_qhm(
        lambda x: torch.optim.SGD(
            x, lr=0.01, momentum=0.9, nesterov=nesterov, weight_decay=weight_decay
        ),
        lambda x: QHM.from_sgd(
            x, lr=0.01, momentum=0.9, nesterov=nesterov, weight_decay=weight_decay, **options
        ),
    )


@every_implementation_of_leaves
@pytest.mark.parametrize("values", [{"gamma": 0.0}, {"beta": 0.0}])
def test_gamma_or_beta_zero_is_sgd(options, values):
    sgd_and_qhm(
        lambda x: torch.optim.SGD(x, lr=0.02), lambda x: QHM(x, lr=0.02, **values, **options)
    )


def test_qhm_is_not_sgd_without_the_conversion():
    with pytest.raises(AssertionError):
        sgd_and_qhm(
            lambda x: torch.optim.SGD(x, lr=0.01, momentum=0.9),
            lambda x: QHM(x, lr=0.01, beta=0.9, gamma=1),
        )


def test_from_sgd_converts_groups_and_refuses_what_it_cannot():
    x, y = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    groups = [{"params": [x]}, {"params": [y], "lr": 0.5, "momentum": 0.5, "nesterov": True}]
    first, second = QHM.from_sgd(groups, lr=0.1, momentum=0.75).param_groups
    assert (first["lr"], first["beta"], first["gamma"]) == (0.4, 0.75, 1.0)
    assert (second["lr"], second["beta"], second["gamma"]) == (1.0, 0.5, 0.5)
    assert "momentum" in groups[1], "the caller's group was changed"
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\), got 1"):
        QHM.from_sgd([x], lr=0.1, momentum=1)
    for field in ("beta", "gamma"):
        with pytest.raises(ValueError, match=f"a group of SGD must not set {field}"):
            QHM.from_sgd([{"params": [x], field: 0.5}], lr=0.1, momentum=0.9)
    with pytest.raises(ValueError, match="dampening must be 0"):
        QHM.from_sgd([{"params": [x], "dampening": 0.1}], lr=0.1, momentum=0.9)
    with pytest.raises(ValueError, match="lr must be a finite number >= 0"):
        QHM.from_sgd([x], lr=torch.tensor(0.1), momentum=0.9)


@pytest.mark.parametrize("options", [IMPLEMENTATIONS[k] for k in ("loop", "foreach", "fused")])
def test_complex_parameters_are_pairs_of_reals(options):
    torch.manual_seed(0)
    z = torch.nn.Parameter(torch.randn(5, 3, dtype=torch.complex128))
    pairs = torch.nn.Parameter(torch.view_as_real(z.detach()).clone())
    optimizers = [QHM([p], lr=0.1, weight_decay=0.1, **options) for p in (z, pairs)]
    for lr, beta, gamma in crossing(4)[:12]:
        grad = torch.randn(5, 3, dtype=torch.complex128)
        z.grad, pairs.grad = grad, torch.view_as_real(grad).clone()
        if options.get("foreach"):
            z.grad = grad.conj().resolve_conj().conj()  # a conjugate that is not yet carried out
        for optimizer in optimizers:
            optimizer.param_groups[0].update(lr=lr, beta=beta, gamma=gamma)
            optimizer.step()
    assert optimizers[0].state_dict()["state"][0]["momentum_buffer"].is_complex()
    torch.testing.assert_close(
        torch.view_as_real(z.detach()), pairs.detach(), rtol=1e-13, atol=1e-13
    )


def test_differentiable_step_by_lr_beta_gamma_and_the_start():
    torch.manual_seed(0)
    target = torch.randn(4, dtype=torch.float64)

    def after_three_steps(lr, beta, gamma, start, decoupled):
        x = start.clone()
        optimizer = QHM(
            [x],
            lr=lr,
            beta=beta,
            gamma=gamma,
            weight_decay=0.1,
            decoupled_weight_decay=decoupled,
            differentiable=True,
        )
        for _ in range(3):
            x.grad = (x.clone() - target) ** 3
            optimizer.step()
        return x

    values = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.1, 0.8, 0.6)]
    start = torch.randn(4, dtype=torch.float64, requires_grad=True)
    for decoupled in (False, True):
        assert torch.autograd.gradcheck(
            lambda *inputs, d=decoupled: after_three_steps(*inputs, d), (*values, start)
        )


@pytest.mark.parametrize("foreach", [None, False])
def test_capturable_follows_tensors_filled_in_place(foreach):
    torch.manual_seed(0)
    tensors = [torch.tensor(v, dtype=torch.float64) for v in (0.1, 0.9, 0.7)]
    x, y = (torch.nn.Parameter(torch.ones(7, dtype=torch.float64)) for _ in range(2))
    captured = QHM(
        [x],
        *tensors,
        weight_decay=0.1,
        decoupled_weight_decay=True,
        capturable=True,
        foreach=foreach,
    )
    plain_one = QHM([y], 0.1, weight_decay=0.1, decoupled_weight_decay=True, foreach=False)
    for values in crossing(5):
        for tensor, value in zip(tensors, values, strict=True):
            tensor.fill_(value)
        plain_one.param_groups[0].update(zip(("lr", "beta", "gamma"), values, strict=True))
        x.grad = torch.randn(7, dtype=torch.float64)
        y.grad = x.grad.clone()
        captured.step()
        plain_one.step()
    torch.testing.assert_close(x, y, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("foreach", [None, False])
def test_capturable_reads_no_tensor_back(foreach):
    # On the meta device, to read a value is an error.
    x = torch.nn.Parameter(torch.ones(3, device="meta"))
    optimizer = QHM([x], 0.1, weight_decay=0.1, capturable=True, foreach=foreach)
    for field in ("lr", "beta", "gamma"):
        optimizer.param_groups[0][field] = torch.ones((), device="meta")
    for decoupled in (False, True):
        optimizer.param_groups[0]["decoupled_weight_decay"] = decoupled
        x.grad = torch.ones(3, device="meta")
        optimizer.step()
    assert optimizer.state[x]["momentum_buffer"].is_meta


@pytest.mark.parametrize("options", [IMPLEMENTATIONS[k] for k in ("loop", "foreach", "fused")])
def test_tensor_values_are_read_at_each_step(options):
    tensors = [torch.tensor([v], dtype=torch.float64) for v in (0.1, 0.9, 0.7)]
    x, y = (torch.nn.Parameter(torch.ones(7, dtype=torch.float64)) for _ in range(2))
    by_tensor, by_number = QHM([x], *tensors, **options), QHM([y], 0.1, **options)
    for values in wandering(10):
        for tensor, value in zip(tensors, values, strict=True):
            tensor.fill_(value)
        by_number.param_groups[0].update(zip(("lr", "beta", "gamma"), values, strict=True))
        for p, optimizer in ((x, by_tensor), (y, by_number)):
            p.grad = torch.arange(7.0, dtype=torch.float64)
            optimizer.step()
    assert torch.equal(x, y)
