"""Each conversion runs both methods on the same gradients and compares their points."""

import ast
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from batchramp.optim import conversions as c
from batchramp.optim.reference import reference_qhm
from batchramp.plan import Plan
from batchramp.schedules import Constant, Cosine, IncreasingBeta, Piecewise, Product, StepDecay

D, K = 5, 60
X0 = np.random.default_rng(7).normal(size=D)
A = np.random.default_rng(8).normal(size=(8, D))
NOISE = np.random.default_rng(9).normal(size=(4 * K, D))


def gradient(k, x):
    """Of sum(sin(Ax)) / 8 + |x|^2 / 20, nonconvex and smooth, with the noise of step k."""
    return A.T @ np.cos(A @ x) / 8 + x / 10 + 0.3 * NOISE[k]


def changing(seed, low, high, steps=K):
    return np.random.default_rng(seed).uniform(low, high, size=steps).tolist()


LR = changing(1, 0.05, 0.4)
BETA = changing(2, 0.1, 0.95)
MOMENTUM = [0.7, *changing(3, 0.1, 1.1)[1:]]  # above 1 at some steps


def shb(lr, momentum, steps=None, grad=gradient):
    x, m, points = X0.copy(), np.zeros(D), [X0]
    for k, (e, mu) in enumerate(zip(lr, momentum, strict=True)):
        m = mu * m + grad(k, x)
        x = x - e * m
        points.append(x)
    return np.array(points)


def snag(lr, momentum):
    """Sutskever's form; the points are the lookaheads, and the last theta comes with them."""
    theta, v, points = X0.copy(), np.zeros(D), []
    for k, e in enumerate(lr):
        y = theta + momentum[k] * v
        points.append(y)
        v = momentum[k] * v - e * gradient(k, y)
        theta = theta + v
    points.append(theta + momentum[len(lr)] * v)
    return np.array(points), theta


def torch_sgd(lr, momentum, nesterov=False):
    x = torch.tensor(X0, requires_grad=True)
    # torch refuses to be built for Nesterov without momentum; the group is then set at each step
    optimizer = torch.optim.SGD([x], lr=1.0, momentum=0.5, nesterov=nesterov)
    points = [X0]
    for k, (e, mu) in enumerate(zip(lr, momentum, strict=True)):
        optimizer.param_groups[0].update(lr=e, momentum=mu)
        x.grad = torch.tensor(gradient(k, x.detach().numpy()))
        optimizer.step()
        points.append(x.detach().numpy().copy())
    return np.array(points)


def assert_qhm(points, lr, beta, gamma, tol=1e-10):
    """QHM, fed with the gradients at these points, visits these points."""
    recorded = [gradient(k, x).tolist() for k, x in enumerate(points[:-1])]
    visited = reference_qhm(X0.tolist(), recorded, lr, beta, gamma)
    np.testing.assert_allclose(visited, points, rtol=0, atol=tol)
    assert np.abs(np.diff(points, axis=0)).max(axis=1).min() > 1e-6  # it moves at every step


# ---------------------------------------------------------------------------------- sequences


def test_nshb_to_shb():
    lr, momentum = c.nshb_to_shb(LR, BETA)
    assert_qhm(shb(lr, momentum), LR, BETA, [1.0] * K)


def test_the_first_step_after_a_change_of_beta():
    beta = [0.5] * 10 + [0.9] * 10
    lr, momentum = c.nshb_to_shb([0.1] * 20, beta)
    assert momentum[9:12] == pytest.approx([0.5, 0.9 * 0.5 / 0.1, 0.9])
    assert_qhm(shb(lr, momentum), [0.1] * 20, beta, [1.0] * 20)
    momentum[10] = 0.9  # without the correction
    off = shb(lr, momentum)
    with pytest.raises(AssertionError):
        assert_qhm(off, [0.1] * 20, beta, [1.0] * 20, tol=1e-3)


@pytest.mark.parametrize("beta0", [None, 0.0, 0.3, 0.99])
def test_shb_to_nshb_for_any_first_beta(beta0):
    lr, beta = c.shb_to_nshb(LR, MOMENTUM, beta0=beta0)
    assert beta[0] == (0.7 if beta0 is None else beta0)
    assert_qhm(shb(LR, MOMENTUM), lr, beta, [1.0] * K)


def test_shb_and_nshb_are_inverse():
    lr, beta = c.shb_to_nshb(*c.nshb_to_shb(LR, BETA))
    assert lr == pytest.approx(LR, rel=1e-11)
    assert beta == pytest.approx(BETA, rel=1e-11)


def test_constants_stay_constant():
    lr, beta = c.shb_to_nshb([0.01] * 500, [0.9] * 500)
    assert set(beta) == {0.9}
    assert set(lr) == {lr[0]}
    assert lr[0] == pytest.approx(0.1)


def test_bias_correction_is_first_beta_0():
    """With beta0 = 0, d is the weighted mean of the gradients: of equal gradients, their value."""
    _, beta = c.shb_to_nshb([1.0] * 9, [0.9] * 9, beta0=0.0)
    means = [reference_qhm([0.0], [[3.0]] * k, [1.0] * k, beta[:k], [1.0] * k) for k in range(10)]
    assert [points[-1][0] for points in means] == pytest.approx([-3.0 * k for k in range(10)])


@pytest.mark.parametrize("beta0", [None, 0.0, 0.9])
@pytest.mark.parametrize("after", [None, 0.0, 0.6])
def test_snag_to_qhm(beta0, after):
    momentum = MOMENTUM if after is None else [*MOMENTUM, after]
    points, theta = snag(LR, [*MOMENTUM, MOMENTUM[-1] if after is None else after])
    assert_qhm(points, *c.snag_to_qhm(LR, momentum, beta0=beta0))
    assert np.array_equal(points[-1], theta) == (after == 0)


def test_snag_of_constants_is_gamma_equal_beta():
    lr, beta, gamma = c.snag_to_qhm([0.1] * K, [0.8] * K)
    assert lr == pytest.approx([0.5] * K)
    assert beta == pytest.approx([0.8] * K)
    assert gamma == pytest.approx([0.8] * K)


@pytest.mark.parametrize("beta0", [None, 0.0, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_to_qhm(nesterov, beta0):
    points = torch_sgd(LR, MOMENTUM, nesterov)
    assert_qhm(points, *c.sgd_to_qhm(LR, MOMENTUM, nesterov=nesterov, beta0=beta0))


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("zeros", [1, 4])
def test_sgd_whose_momentum_starts_and_ends_at_zero(nesterov, zeros):
    momentum = [0.0] * zeros + MOMENTUM[zeros : K - 5] + [0.0] * 5
    points = torch_sgd(LR, momentum, nesterov)
    assert_qhm(points, *c.sgd_to_qhm(LR, momentum, nesterov=nesterov))
    # torch's late buffer holds no gradient from before it: heavy ball itself would.
    if not nesterov:
        assert np.abs(points - shb(LR, momentum)).max() > 1e-3


def test_torch_keeps_its_buffer_at_momentum_zero():
    """Why a zero between other momenta is refused: SHB forgets there, torch does not."""
    momentum = MOMENTUM.copy()
    momentum[20] = 0.0
    assert np.abs(torch_sgd(LR, momentum) - shb(LR, momentum)).max() > 1e-3
    with pytest.raises(ValueError, match=r"momentum must be > 0 between .* got 0 at step 20"):
        c.sgd_to_qhm(LR, momentum)
    lr, beta = c.shb_to_nshb(LR, momentum)
    assert_qhm(shb(LR, momentum), lr, beta, [1.0] * K)


@pytest.mark.parametrize("first_gamma", [1.0, 0.4])
@pytest.mark.parametrize("zeros", [0, 1, 3])
def test_qhm_to_sgd_with_gamma_1(zeros, first_gamma):
    beta = [0.0] * zeros + BETA[zeros : K - 4] + [0.0] * 4
    gamma = [first_gamma] + [1.0] * (K - 1)
    points = torch_sgd(*c.qhm_to_sgd(LR, beta, gamma))
    assert_qhm(points, LR, beta, gamma)


@pytest.mark.parametrize("zeros", [0, 1, 3])
def test_qhm_to_sgd_with_nesterov(zeros):
    beta = [0.0] * zeros + BETA[zeros : K - 4] + [0.0] * 4
    gamma = [0.2] * K
    for k in range(1, K):
        ahead = beta[k] * (1 - beta[k - 1]) / (1 - beta[k]) ** 2
        gamma[k] = ahead / (1 + ahead)
    points = torch_sgd(*c.qhm_to_sgd(LR, beta, gamma, nesterov=True), nesterov=True)
    assert_qhm(points, LR, beta, gamma)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_to_qhm_and_back(nesterov):
    lr, momentum = c.qhm_to_sgd(*c.sgd_to_qhm(LR, MOMENTUM, nesterov=nesterov), nesterov=nesterov)
    assert lr == pytest.approx(LR, rel=1e-10)
    assert momentum == pytest.approx(MOMENTUM, rel=1e-10)


def test_qhm_with_gamma_0_is_sgd_without_momentum():
    lr, momentum = c.qhm_to_sgd(LR, BETA, [0.0] * K)
    assert_qhm(torch_sgd(lr, momentum), LR, BETA, [0.0] * K)


def test_gamma_equal_beta_is_not_nesterov_where_beta_changes():
    beta = [0.5] * 5 + [0.9] * 5
    with pytest.raises(ValueError, match=r"gamma must be 0\.978261 at step 5 .* got 0\.9"):
        c.qhm_to_sgd([0.1] * 10, beta, beta, nesterov=True)


# ------------------------------------------------------------------------------ Proposition 6


@pytest.mark.parametrize("beta", [0.3, 0.45, 0.9])
def test_proposition_6_as_printed_is_wrong(beta):
    """Step 0 fixes the lr, alpha (1 - beta), so only the momentum is in question."""
    lr = 0.1 * (1 - beta)
    assert_qhm(shb([lr] * K, [beta] * K), [0.1] * K, [beta] * K, [1.0] * K)
    printed = shb([lr] * K, [beta / (1 - beta)] * K)
    right = shb([lr] * K, [beta] * K)
    np.testing.assert_allclose(printed[1], right[1], atol=1e-12)
    assert np.abs(printed - right).max() > 1e-2


def test_proposition_6_blows_up_from_beta_one_half():
    """On the quadratic |x|^2 / 2, where the right SHB converges for each of these."""

    def last(beta, momentum):
        points = shb([0.1 * (1 - beta)] * 300, [momentum] * 300, grad=lambda k, x: x)
        return np.abs(points[-1]).max()

    for beta in (0.45, 0.55, 0.9):
        assert last(beta, beta) < 1e-5
    assert last(0.45, 0.45 / 0.55) < 1e-6
    assert last(0.55, 0.55 / 0.45) > 1e10
    assert last(0.9, 9.0) > 1e100
    # The way back, beta = mu / (1 + mu): with mu = 0.9 it gives 0.474 for 0.9.
    _, beta = c.shb_to_nshb([0.1], [0.9])
    assert beta == [0.9]


# ---------------------------------------------------------------------------------- constants


@pytest.mark.parametrize("nesterov", [False, True])
def test_from_sgd_and_to_sgd(nesterov):
    constants = c.from_sgd(0.1, 0.8, nesterov=nesterov)
    assert_qhm(torch_sgd([0.1] * K, [0.8] * K, nesterov), *([v] * K for v in constants.values()))
    back = c.to_sgd(**constants)
    assert back == {"lr": pytest.approx(0.1), "momentum": 0.8, "nesterov": nesterov}
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], **back)


@pytest.mark.parametrize(("beta", "gamma"), [(0.0, 0.3), (0.9, 0.0), (0.0, 0.0), (0.0, 1.0)])
def test_to_sgd_without_momentum(beta, gamma):
    kwargs = c.to_sgd(0.1, beta, gamma)
    assert kwargs == {"lr": 0.1, "momentum": 0.0, "nesterov": False}
    assert_qhm(torch_sgd([0.1] * K, [0.0] * K), [0.1] * K, [beta] * K, [gamma] * K)


def assert_constants(points, constants):
    assert list(constants) == ["lr", "beta", "gamma"]
    assert_qhm(points, *([value] * K for value in constants.values()))


def test_from_pid():
    k_p, k_i, k_d = -0.3, 0.4, 0.9
    filter_ = k_d / (k_d - k_p)
    x, before, total, v = X0, np.zeros(D), np.zeros(D), np.zeros(D)
    points = [X0]
    for k in range(K):
        e = -gradient(k, x)
        v = filter_ * v + (1 - filter_) * (e - before)
        total, before = total + e, e
        x = X0 + k_p * e + k_i * total + k_d * v
        points.append(x)
    constants = c.from_pid(k_p, k_i, k_d)
    assert_constants(np.array(points), constants)
    assert constants["gamma"] == pytest.approx(0.25)
    assert c.from_pid(0.0, 0.4, 0.0) == {"lr": 0.4, "beta": 0.0, "gamma": 0.0}


def synthesized(alpha, beta1, beta2):
    before = now = X0
    points = []
    for k in range(K + 1):
        y = now + beta2 * (now - before)
        points.append(y)
        before, now = now, now + beta1 * (now - before) - alpha * gradient(k, y)
    return np.array(points)


@pytest.mark.parametrize("beta2", [0.0, 0.3, 0.8])
def test_from_synthesized_nesterov(beta2):
    constants = c.from_synthesized_nesterov(0.1, 0.8, beta2)
    assert_constants(synthesized(0.1, 0.8, beta2), constants)
    if beta2 in (0.0, 0.8):
        assert constants == pytest.approx(c.from_sgd(0.1, 0.8, nesterov=beta2 > 0))


@pytest.mark.parametrize("rho", [None, 0.8, 0.9])
def test_from_robust_momentum(rho):
    smooth, kappa = 5.0, 15.0
    r = 1 - 1 / math.sqrt(kappa) if rho is None else rho
    points = synthesized(
        kappa * (1 - r) ** 2 * (1 + r) / smooth,
        kappa * r**3 / (kappa - 1),
        r**3 / ((kappa - 1) * (1 - r) ** 2 * (1 + r)),
    )
    assert_constants(points, c.from_robust_momentum(smooth, kappa, rho))


@pytest.mark.parametrize("kappa", [1.5, 15.0, 1e6])
def test_the_slowest_robust_momentum_is_gradient_descent(kappa):
    constants = c.from_robust_momentum(5.0, kappa, 1 - 1 / kappa)
    assert (constants["lr"], constants["gamma"]) == (pytest.approx(0.2), 0.0)
    assert constants["beta"] == pytest.approx((1 - 1 / kappa) ** 2)


@pytest.mark.parametrize("eps", [0.7, 0.4])
def test_from_accsgd(eps):
    delta, kappa, xi = 0.1, 40.0, 5.0
    a = 1 - eps**2 * xi / kappa
    average = w = X0
    points = [X0]
    for k in range(K):
        g = gradient(k, w)
        average = a * average + (1 - a) * (w - kappa * delta / eps * g)
        w = (eps * (w - delta * g) + (1 - a) * average) / (eps + 1 - a)
        points.append(w)
    assert_constants(np.array(points), c.from_accsgd(delta, kappa, xi, eps))


# nothing mixed; both states mixed, made by a change of variables a -> 2a + 3 theta
TWO_STATES = [
    {"h": 0.9, "k": 0.0, "l": 0.1, "m": -0.09, "q": 1.0, "z": -0.01},
    {"h": 0.8, "k": 0.0, "l": 0.2, "m": -0.1, "q": 1.0, "z": -0.15},
    {"h": 0.65, "k": 1.05, "l": -0.05, "m": -0.05, "q": 1.15, "z": -0.15},
]


@pytest.mark.parametrize("coefficients", TWO_STATES)
def test_from_two_state_optimizer(coefficients):
    h, k, l, m, q, z = coefficients.values()  # noqa: E741
    a, x, points = (1 - q) / m * X0, X0, [X0]
    for step in range(K):
        g = gradient(step, x)
        a, x = h * a + k * x + l * g, m * a + q * x + z * g
        points.append(x)
    assert_constants(np.array(points), c.from_two_state_optimizer(**coefficients))


def test_accsgd_is_a_two_state_optimizer():
    delta, kappa, xi, eps = 0.1, 1000.0, 10.0, 0.7
    w = eps**2 * xi / kappa
    g = -kappa * delta / eps * w
    two = c.from_two_state_optimizer(
        h=1 - w,
        k=w,
        l=g,
        m=w * (1 - w) / (eps + w),
        q=(eps + w**2) / (eps + w),
        z=(-eps * delta + w * g) / (eps + w),
    )
    assert two == pytest.approx(c.from_accsgd(delta, kappa, xi), rel=1e-9)


# -------------------------------------------------------------------------------------- Plans


def per_step(plan, n, drop_last=False):
    """What a Plan makes each step of a run have: (true batch size, lr, beta, gamma)."""
    rows, taken = [], 0
    for epoch in range(plan.total_epochs(n, drop_last)):
        for size in plan.batch_sizes(epoch, n, drop_last):
            at = plan.at(plan.tick(epoch=epoch, step=len(rows), samples=taken))
            rows.append((size, at.lr, at.beta, at.gamma))
            taken += size
    sizes, lr, beta, gamma = (list(column) for column in zip(*rows, strict=True))
    return sizes, lr, beta, gamma


EPOCHS = {"epochs": 4, "batch_size": Piecewise({0: 4, 2: 7}), "lr": Cosine(0.3, end=0.1)}


@pytest.mark.parametrize(
    "lengths",
    [
        EPOCHS,
        {"steps": 31, "batch_size": Piecewise({0: 4, 11: 7}), "lr": Cosine(0.3, end=0.1)},
        {"samples": 150, "batch_size": Piecewise({0: 4, 60: 7}), "lr": Cosine(0.3, end=0.1)},
    ],
    ids=["epochs", "steps", "samples"],
)
@pytest.mark.parametrize("drop_last", [False, True])
def test_a_plan_converts_step_by_step(lengths, drop_last):
    n = 46  # neither 4 nor 7 divides it
    plan = Plan(**lengths, beta=StepDecay(0.9, factor=0.5, every=2 if "epochs" in lengths else 13))
    converted = c.convert_plan(plan, c.nshb_to_shb, n=n, drop_last=drop_last)
    sizes, lr, beta, _ = per_step(plan, n, drop_last)
    new_sizes, new_lr, momentum, gamma = per_step(converted, n, drop_last)
    assert new_sizes == sizes
    assert [len(b) for b in c._batches(converted, n, drop_last)] == [
        len(b) for b in c._batches(plan, n, drop_last)
    ]
    assert converted.unit == "steps"
    assert set(gamma) == {None}
    assert_qhm(shb(new_lr, momentum), lr, beta, [1.0] * len(lr))
    assert Plan.from_toml(converted.to_toml()) == converted


@pytest.mark.parametrize(
    ("conversion", "options"),
    [
        (c.sgd_to_qhm, {"nesterov": True}),
        (c.sgd_to_qhm, {"beta0": 0.0}),
        (c.shb_to_nshb, {}),
        (c.snag_to_qhm, {}),
    ],
)
def test_plans_to_qhm(conversion, options):
    n = 46
    plan = Plan(**EPOCHS, beta=StepDecay(0.8, factor=0.5, every=2))
    _, lr, momentum, _ = per_step(plan, n)
    _, *weights = per_step(c.convert_plan(plan, conversion, n=n, **options), n)
    if conversion is c.snag_to_qhm:
        points, _ = snag(lr, [*momentum, momentum[-1]])
    else:
        points = torch_sgd(lr, momentum, options.get("nesterov", False))
    assert_qhm(points, *weights)


def test_a_plan_for_qhm_runs_on_torch_sgd():
    plan = Plan(**EPOCHS, beta=StepDecay(0.8, factor=0.5, every=2), gamma=1.0)
    _, *weights = per_step(plan, 46)
    _, lr, momentum, _ = per_step(c.convert_plan(plan, c.qhm_to_sgd, n=46), 46)
    assert_qhm(torch_sgd(lr, momentum), *weights)


@pytest.mark.parametrize("nesterov", [False, True])
def test_constant_weights_keep_the_unit_and_the_formula(nesterov):
    plan = Plan(**EPOCHS, beta=0.75)
    qhm = c.convert_plan(plan, c.sgd_to_qhm, nesterov=nesterov)
    gamma = Constant(0.75 if nesterov else 1.0)
    lr = Product(EPOCHS["lr"], Constant(4.0))
    assert qhm == Plan(**{**EPOCHS, "lr": lr}, beta=0.75, gamma=gamma)
    _, lr, momentum, _ = per_step(plan, 46)
    _, *weights = per_step(qhm, 46)
    assert_qhm(torch_sgd(lr, momentum, nesterov), *weights)
    back = c.convert_plan(qhm, c.qhm_to_sgd, nesterov=nesterov)
    assert per_step(back, 46)[1] == pytest.approx(lr)
    long = Plan(steps=10**12, batch_size=8, lr=0.1, beta=0.75)
    assert c.convert_plan(long, c.snag_to_qhm).gamma == Constant(0.75)


def test_plans_that_cannot_be_converted():
    changing_beta = Plan(epochs=4, batch_size=8, lr=0.1, beta=IncreasingBeta(0.5))
    with pytest.raises(ValueError, match="n must be given"):
        c.convert_plan(changing_beta, c.nshb_to_shb)
    jump = Plan(epochs=2, batch_size=8, lr=0.1, beta=Piecewise({0: 0.5, 1: 0.9}))
    with pytest.raises(ValueError, match=r"beta must be in \[0, 1\), got 4.5.* at tick 3 \(steps"):
        c.convert_plan(jump, c.nshb_to_shb, n=20)
    # Constant momentum, but SNAG's lr is inside its buffer: changing lr needs n.
    with pytest.raises(ValueError, match="n must be given"):
        c.convert_plan(Plan(**EPOCHS, beta=0.5), c.snag_to_qhm)
    with pytest.raises(ValueError, match="beta must be scheduled for nshb_to_shb, got None"):
        c.convert_plan(Plan(**EPOCHS), c.nshb_to_shb)
    with pytest.raises(ValueError, match="gamma must be 1 or None for nshb_to_shb"):
        c.convert_plan(Plan(**EPOCHS, beta=0.5, gamma=0.7), c.nshb_to_shb)
    with pytest.raises(ValueError, match="gamma must be None for sgd_to_qhm"):
        c.convert_plan(Plan(**EPOCHS, beta=0.5, gamma=1.0), c.sgd_to_qhm)
    with pytest.raises(ValueError, match="conversion must be one of nshb_to_shb, shb_to_nshb"):
        c.convert_plan(Plan(**EPOCHS, beta=0.5), c.to_sgd)
    long = Plan(steps=10**9, batch_size=8, lr=0.1, beta=StepDecay(0.9, factor=0.9, every=10**8))
    with pytest.raises(ValueError, match="steps must be <= 10,000,000"):
        c.convert_plan(long, c.nshb_to_shb)


def test_a_shrinking_batch_stays_in_its_epoch():
    """The samples that an epoch leaves over would fill a batch of the next epoch's size."""
    plan = Plan(
        epochs=2, batch_size=Piecewise({0: 4, 1: 2}), lr=0.1, beta=Piecewise({0: 0.9, 1: 0.5})
    )
    converted = c.convert_plan(plan, c.nshb_to_shb, n=10)
    assert [converted.batch_sizes(epoch, 10) for epoch in range(2)] == [[4, 4, 2], [2] * 5]
    # With drop_last a plan in steps takes that smaller batch still in the old epoch.
    with pytest.raises(ValueError, match=r"drop_last must be False .* got True"):
        c.convert_plan(plan, c.nshb_to_shb, n=10, drop_last=True)


# ----------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: c.nshb_to_shb([0.1, 0.1], [0.5, 1.0]), r"beta .* \[0, 1\), got 1.0 at step 1"),
        (lambda: c.nshb_to_shb([0.1, -0.1], [0.5, 0.5]), "lr .* >= 0, got -0.1 at step 1"),
        (lambda: c.nshb_to_shb([0.1], [0.5, 0.5]), r"got \[1, 2\] values"),
        (lambda: c.nshb_to_shb([], []), r"at least one, got \[0, 0\] values"),
        (lambda: c.nshb_to_shb([True], [0.5]), "lr .* got True at step 0"),
        (lambda: c.shb_to_nshb([0.1], [1.5]), "beta0 must be given .* got 1.5"),
        (lambda: c.shb_to_nshb([0.1], [0.5], beta0=1.0), r"beta0 must be in \[0, 1\), got 1.0"),
        (lambda: c.shb_to_nshb([0.1] * 99, [3.0] * 99, beta0=0.0), r"beta .* got 1\.0 at step 3\d"),
        (lambda: c.snag_to_qhm([0.1, 0.0], [0.5, 0.5]), "lr must be > 0 .* got 0.0 at step 1"),
        (lambda: c.snag_to_qhm([0.1], [0.5, 0.5, 0.5]), r"got \[1, 3\] values"),
        (lambda: c.snag_to_qhm([0.1], [0.5, -0.5]), "momentum .* got -0.5 at step 1"),
        (lambda: c.snag_to_qhm([], []), r"got \[0, 0\] values"),
        (lambda: c.sgd_to_qhm([1, 1], [0, 0.5], beta0=0.5), "beta0 must be left out .* got 0.5"),
        (lambda: c.qhm_to_sgd([1] * 2, [0.5] * 2, [0.7] * 2), "gamma must be 1 at step 1"),
        (lambda: c.qhm_to_sgd([1] * 3, [0.5, 0, 0.5], [1] * 3), "beta must be > 0 .* at step 1"),
        (lambda: c.to_sgd(0.1, 0.9, 0.7), r"gamma must be 0, beta \(0.9\) or 1 .* got 0.7"),
        (lambda: c.to_sgd(0.1, 1.0, 0.7), r"beta must be in \[0, 1\), got 1.0"),
        (lambda: c.from_sgd(0.1, 1.0), r"momentum must be in \[0, 1\), got 1.0"),
        (lambda: c.from_pid(0.1, 1.0, 1.0), "k_p must be < 0 .* got 0.1"),
        (lambda: c.from_pid(-0.1, 0.0, 1.0), "k_i must be > 0, got 0.0"),
        (lambda: c.from_pid(-0.1, 1.0, -1.0), "k_d must be > 0 .* got -1.0"),
        (lambda: c.from_pid(-2.0, 1.0, 1.0), r"gamma must be in \[0, 1\], got 4.0 after"),
        (lambda: c.from_pid(math.nan, 1.0, 1.0), "k_p must be a finite number, got nan"),
        (lambda: c.from_synthesized_nesterov(0.1, 1.0, 0.5), r"beta1 must be in \(0, 1\)"),
        (lambda: c.from_synthesized_nesterov(0.1, 0.0, 0.5), r"beta1 must be in \(0, 1\)"),
        (lambda: c.from_synthesized_nesterov(0.1, 0.5, 1.5), r"gamma .* got -0.5 after"),
        (lambda: c.from_synthesized_nesterov(0.1, 0.5, -0.5), r"gamma .* got 1.5 after"),
        (lambda: c.from_robust_momentum(1.0, 4.0, 0.4), r"rho must be in \[0.5, 0.75\], got 0.4"),
        (lambda: c.from_robust_momentum(1.0, 4.0, 0.8), r"rho must be in \[0.5, 0.75\], got 0.8"),
        (lambda: c.from_robust_momentum(1.0, 1.0), "kappa must be > 1, got 1.0"),
        (lambda: c.from_robust_momentum(0.0, 4.0), "l must be > 0, got 0.0"),
        (lambda: c.from_accsgd(0.1, 10.0, 1.0), r"xi must be in .* \[1.42857, 20.4082\], got 1.0"),
        (lambda: c.from_accsgd(0.1, 10.0, 5.0, eps=1.0), r"eps must be in \(0, 1\), got 1.0"),
        (lambda: c.from_accsgd(0.0, 10.0, 5.0), "delta must be > 0, got 0.0"),
        (lambda: c.from_accsgd(0.1, -1.0, 5.0), "kappa must be > 0, got -1.0"),
        (lambda: c.from_two_state_optimizer(0.9, 0, 0.1, -0.1, 0.9, 0), "must be 0 for a point"),
        (lambda: c.from_two_state_optimizer(1.0, 0, 0.1, -0.1, 1.0, 0), r"beta .* got 1.0 after"),
        (lambda: c.from_two_state_optimizer(0.5, 0, 0.1, 0.1, 1.0, 0), "lr must be > 0, got"),
        (lambda: c.from_two_state_optimizer(0.0, 0, 0.1, -0.1, 1.0, -0.1), "z must be -0.11"),
        (lambda: c.from_two_state_optimizer(0.5, 0, -0.1, -0.1, 1.0, -1), r"gamma .* got -"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_the_edges_survive_rounding():
    """qhoptim's own example is NSHB, gamma 1, which floating point may miss by a digit."""
    constants = c.from_two_state_optimizer(**TWO_STATES[0])
    assert constants == {
        "lr": pytest.approx(0.1),
        "beta": pytest.approx(0.9),
        "gamma": 1.0,
    }


def test_the_module_itself_needs_no_torch():
    tree = ast.parse(Path(c.__file__).read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {
        a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names
    }
    assert "batchramp.plan" in imported
    assert not any(name.startswith("torch") for name in imported if name)
