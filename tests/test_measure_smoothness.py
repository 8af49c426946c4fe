"""Lanczos against the dense Hessian; secants against quadratics; a gradient at another point."""

import copy
import math

import pytest
import torch
from test_measure import (
    Restless,
    counting_loss,
    cut,
    images,
    network,
    reference,
    run_to_the_end_or,
    snapshot,
    unchanged,
)
from torch import nn
from torch.func import functional_call, jacrev
from torch.nn import functional as F

from batchramp.experiments.tasks import load
from batchramp.measure import SecantTrajectory, full_gradient, secant, smoothness

pytestmark = pytest.mark.usefixtures("one_thread")

N = 23


def eigenvalues(model, loss_fn, x, y):
    """Of the dense Hessian, ascending."""
    model = model.eval()
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    sizes = [p.numel() for p in parameters.values()]

    def f(flat):
        pieces = zip(parameters.items(), flat.split(sizes), strict=True)
        at = {name: piece.view_as(p) for (name, p), piece in pieces}
        return loss_fn(functional_call(model, at, (x,)), y)

    flat = torch.cat([p.flatten() for p in parameters.values()])
    return torch.linalg.eigvalsh(jacrev(jacrev(f))(flat))


class Bowl(nn.Module):
    """½ xᵀ A x at any input, A symmetric."""

    def __init__(self, matrix, start=None):
        super().__init__()
        self.register_buffer("matrix", torch.as_tensor(matrix, dtype=torch.float64))
        self.x = nn.Parameter(torch.zeros(len(self.matrix), dtype=torch.float64))

    def forward(self, inputs):
        return (self.x @ self.matrix @ self.x / 2).expand(len(inputs))


def value(outputs, _):
    return outputs.mean()


ONE = [(torch.zeros(1), torch.zeros(1))]


def relu():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3)).double()


# The Hessian


@pytest.mark.parametrize("sizes", [(N,), (10, 0, 13), (1, 22)], ids=str)
@pytest.mark.parametrize(
    "make", [network, relu, lambda: network(nn.BatchNorm1d(5))], ids=["tanh", "relu", "norm"]
)
def test_it_is_the_outermost_eigenvalue_of_the_dense_hessian(make, sizes):
    model, (x, y) = make(), images()
    model(x + 1)  # running statistics of something
    expected = eigenvalues(model, F.cross_entropy, x, y)
    found = smoothness(model, F.cross_entropy, iter(cut(x, y, *sizes)), tolerance=1e-9)
    assert found.converged
    assert found.value == pytest.approx(float(expected.abs().max()), rel=1e-8)
    assert found.largest == pytest.approx(float(expected[-1]), rel=1e-8)
    # The other end was not what it stopped for; but it lies inside the spectrum.
    assert float(expected[0]) - 1e-12 <= found.smallest < 0
    assert found.n == N


def test_to_the_end_both_ends_are_those_of_the_dense_hessian():
    model, (x, y) = network(), images()
    expected = eigenvalues(model, F.cross_entropy, x, y)
    found = smoothness(model, F.cross_entropy, [(x, y)], tolerance=1e-300)
    assert found.largest == pytest.approx(float(expected[-1]), rel=1e-11)
    assert found.smallest == pytest.approx(float(expected[0]), rel=1e-11)


@pytest.mark.parametrize("iterations", range(1, 16))
def test_an_eigenvalue_lies_within_the_residual_and_the_value_below_the_norm(iterations):
    model, (x, y) = relu(), images()
    expected = eigenvalues(model, F.cross_entropy, x, y)
    found = smoothness(model, F.cross_entropy, [(x, y)], tolerance=1e-9, max_iterations=iterations)
    theta = found.largest if found.value == found.largest else found.smallest
    assert float((expected - theta).abs().min()) <= found.residual + 1e-12
    assert found.value <= float(expected.abs().max()) + 1e-12
    assert found.iterations == iterations
    assert not found.converged


@pytest.mark.parametrize("tolerance", [0.3, 1e-2, 1e-4])
def test_converged_means_within_the_tolerance(tolerance):
    for seed in range(5):
        model, (x, y) = relu(), images()
        expected = float(eigenvalues(model, F.cross_entropy, x, y).abs().max())
        found = smoothness(model, F.cross_entropy, [(x, y)], tolerance=tolerance, seed=seed)
        assert found.converged
        assert found.residual <= tolerance * found.value
        assert (1 - tolerance) * expected <= found.value <= expected * (1 + 1e-12)


def test_the_negative_end_counts_where_it_is_larger():
    found = smoothness(Bowl(torch.diag(torch.tensor([2.0, 0.5, -6.0]))), value, ONE)
    assert found.value == pytest.approx(6, rel=1e-3)
    assert (found.smallest, found.largest) == pytest.approx((-6, 2), rel=1e-2)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("sign", [1, -1])
def test_it_does_not_end_while_the_other_end_may_be_the_larger(sign, seed):
    # 1 is found after 6 products, when the end at -1.03 of the others is seen at -0.99.
    others = torch.linspace(-1.03, 0, 50, dtype=torch.float64)
    spectrum = sign * torch.cat([torch.ones(50, dtype=torch.float64), others])
    found = smoothness(Bowl(torch.diag(spectrum)), value, ONE, seed=seed)
    assert found.converged
    assert found.value == pytest.approx(1.03, rel=1e-3)


@pytest.mark.parametrize(
    ("matrix", "ends", "iterations"),
    [
        ([[3.0]], (3, 3), 1),  # the whole space
        ([[-3.0]], (-3, -3), 1),
        (torch.zeros(5, 5), (0, 0), 1),  # the start is an eigenvector
        (4 * torch.eye(50), (4, 4), 1),
        (torch.diag(torch.tensor([7.0] * 20 + [-1.0] * 30)), (-1, 7), 2),  # two eigenvalues
        (9 * torch.ones(40, 40).double() / 40, (0, 9), 2),  # of rank one
    ],
    ids=["1d", "-1d", "zero", "identity", "two", "rank"],
)
def test_it_ends_where_the_krylov_space_does(matrix, ends, iterations):
    for tolerance in (1e-3, 1e-14, 1e-300):
        found = smoothness(Bowl(matrix), value, ONE, tolerance=tolerance)
        assert (found.smallest, found.largest) == pytest.approx(ends, rel=1e-12, abs=1e-12)
        assert found.converged
        assert found.iterations == iterations
        assert found.residual < 1e-12


def test_a_linear_loss_has_no_curvature():
    model, (x, y) = nn.Linear(6, 3).double(), images()
    for loss_fn in (lambda out, _: out.mean(), lambda out, _: out.sum() * 0):
        found = smoothness(model, loss_fn, cut(x, y, 10, 13))
        assert (found.value, found.converged) == (0.0, True)


def test_as_many_products_as_dimensions_find_the_last_end():
    # The lone eigenvalue converges long before the end of the cluster opposite.
    spectrum = torch.cat([torch.tensor([90.0]), -100 - torch.linspace(0, 1, 29)]).double()
    rotation, _ = torch.linalg.qr(
        torch.randn(30, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    )
    model = Bowl(rotation @ torch.diag(spectrum) @ rotation.T)
    found = smoothness(model, value, ONE, tolerance=1e-300)
    assert (found.smallest, found.largest) == pytest.approx((-101, 90), rel=1e-12)
    assert found.iterations <= 30


def test_the_bundled_set_in_both_precisions():
    task = load("fashion-mini")
    torch.manual_seed(0)
    model = task.model()
    x, y = (part[:300] for part in task.train)
    narrow = smoothness(model, task.loss_fn, cut(x, y, 100, 200))
    wide = smoothness(model.double(), task.loss_fn, cut(x.double(), y, 100, 200), tolerance=1e-5)
    assert narrow.converged
    assert wide.converged
    assert 12 <= narrow.iterations <= 60
    assert narrow.value == pytest.approx(wide.value, rel=1e-3)


def test_frozen_unused_and_shared_parameters():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(6, 6)
            self.frozen = nn.Linear(6, 3).requires_grad_(False)
            self.again = self.a
            self.b = nn.Linear(6, 6)
            self.b.weight = self.a.weight
            self.unused = nn.Linear(2, 2)

        def forward(self, x):
            return self.frozen(self.b(self.again(self.a(x).tanh()).tanh()))

    torch.manual_seed(0)
    model, (x, y) = Odd().double(), images()
    found = smoothness(model, F.cross_entropy, cut(x, y, 10, 13), tolerance=1e-9)
    # functional_call of a module under two names does not leave it as it was: a copy.
    expected = eigenvalues(copy.deepcopy(model), F.cross_entropy, x, y)
    assert found.value == pytest.approx(float(expected.abs().max()), rel=1e-8)


def test_attention_without_a_fused_kernel():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dtype=torch.float64)
    x, y = torch.randn(6, 5, 4, dtype=torch.float64), torch.zeros(6)
    found = smoothness(layer, lambda out, _: out.sin().mean(), [(x, y)], tolerance=1e-9)
    # By differences: jacrev of jacrev is wrong for attention by 0.6 % (torch 2.13).
    names = dict(layer.named_parameters())
    columns = []
    for name, p in names.items():
        for i in range(p.numel()):
            at = {key: q.detach().clone() for key, q in names.items()}
            gradients = []
            for step in (1e-5, -1e-5):
                at[name] = p.detach().clone()
                at[name].view(-1)[i] += step
                g = full_gradient(layer, lambda out, _: out.sin().mean(), [(x, y)], at=at)
                gradients.append(torch.cat([piece.flatten() for piece in g]))
            columns.append((gradients[0] - gradients[1]) / 2e-5)
    dense = torch.stack(columns)
    expected = torch.linalg.eigvalsh((dense + dense.T) / 2)
    assert found.value == pytest.approx(float(expected.abs().max()), rel=1e-7)


def test_what_is_not_finite_ends_it():
    model = nn.Linear(1, 1)
    x = torch.tensor([[math.nan]])
    found = smoothness(model, F.mse_loss, [(x, x)])
    assert math.isnan(found.value)
    assert (found.iterations, found.converged) == (1, False)


# Secants


def test_a_gradient_elsewhere_is_that_of_a_model_elsewhere():
    x, y = images()
    here, there = network(nn.BatchNorm1d(5)), network(nn.BatchNorm1d(5))
    with torch.no_grad():
        for p in there.parameters():
            p.add_(torch.randn_like(p))
    own = list(here.parameters())
    at = {name: p.detach().clone() for name, p in there.named_parameters()}
    found = full_gradient(here, F.cross_entropy, cut(x, y, 10, 13), at=at)
    expected = full_gradient(there, F.cross_entropy, cut(x, y, 10, 13))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    norm = torch.cat([g.flatten() for g in found]).norm().item()
    assert norm == pytest.approx(reference(there.eval(), F.cross_entropy, x, y)[0], rel=1e-12)
    assert all(a is b for a, b in zip(own, here.parameters(), strict=True))


def test_along_an_eigenvector_of_a_quadratic_it_is_the_eigenvalue():
    spectrum = torch.tensor([5.0, 2.0, -3.0, 0.25], dtype=torch.float64)
    rotation, _ = torch.linalg.qr(
        torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    )
    model = Bowl(rotation @ torch.diag(spectrum) @ rotation.T)
    start = torch.ones(4, dtype=torch.float64)
    for eigenvalue, vector in zip(spectrum, rotation.T, strict=True):
        found = secant(model, value, ONE, {"x": start}, {"x": start + 0.3 * vector})
        assert found == pytest.approx(abs(float(eigenvalue)), rel=1e-12)
    # Between others it is a mean of them: from below.
    other = secant(model, value, ONE, {"x": start}, {"x": -start})
    assert other < 5


@pytest.mark.parametrize("sizes", [(N,), (10, 0, 13), (1, 22)], ids=str)
def test_a_secant_of_a_network_is_the_difference_of_two_gradients(sizes):
    x, y = images()
    here, there = network(nn.BatchNorm1d(5)), network(nn.BatchNorm1d(5))
    here(x + 1)  # the buffers of the one that is measured count, at both points
    with torch.no_grad():
        for p in there.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    before, after = dict(there.named_parameters()), dict(here.named_parameters())
    moved = network(nn.BatchNorm1d(5))
    moved.load_state_dict({**here.state_dict(), **{k: p.detach() for k, p in before.items()}})
    gradients = []
    for model in (here, moved):
        loss = F.cross_entropy(model.eval()(x), y)
        grads = torch.autograd.grad(loss, list(model.parameters()))
        gradients.append(torch.cat([g.flatten() for g in grads]))
    far = torch.cat([(after[k] - before[k]).flatten() for k in after]).norm().detach()
    expected = float((gradients[0] - gradients[1]).norm() / far)
    found = secant(here, F.cross_entropy, iter(cut(x, y, *sizes)), there.state_dict(), after)
    assert found == pytest.approx(expected, rel=1e-10)


def test_a_short_secant_is_below_the_local_smoothness():
    model, (x, y) = network(), images()
    local = smoothness(model, F.cross_entropy, [(x, y)], tolerance=1e-6).value
    here = {name: p.detach().clone() for name, p in model.named_parameters()}
    torch.manual_seed(0)
    for _ in range(5):
        there = {name: p + 1e-6 * torch.randn_like(p) for name, p in here.items()}
        assert secant(model, F.cross_entropy, [(x, y)], here, there) < local


def test_a_path_keeps_the_largest_secant():
    model = Bowl(torch.diag(torch.tensor([1.0, 4.0])))
    path = SecantTrajectory()
    found = []
    for x in ([0, 0], [1, 0], [1, 1], [1, 1], [3, 1]):
        with torch.no_grad():
            model.x.copy_(torch.tensor(x))
        found.append((path.update(model, value, iter(ONE)), path.value))
    assert found == [(None, 0.0), (1.0, 1.0), (4.0, 4.0), (None, 4.0), (1.0, 4.0)]
    again = SecantTrajectory(path.value, path.previous)
    with torch.no_grad():
        model.x.copy_(torch.tensor([3, 2]))
    assert again.update(model, value, ONE) == path.update(model, value, ONE) == 4.0
    with torch.no_grad():
        model.x.fill_(math.inf)
    assert math.isnan(path.update(model, value, ONE))
    assert path.value == 4.0


# What it leaves alone, says and refuses


@pytest.mark.parametrize("what", [smoothness, secant])
@pytest.mark.parametrize("failing", [False, True])
def test_the_model_is_left_as_found(failing, what):
    restless = Restless()
    model = network(nn.BatchNorm1d(5), nn.Dropout(0.5), nn.BatchNorm1d(5), restless)
    x, y = images()
    model(x).sum().backward()
    model[0].bias.grad = None
    model[3].weight.requires_grad_(False)
    model.train()
    model[1].train(False)
    there = {name: p.detach() + 0.1 for name, p in model.named_parameters()}
    before, merged = snapshot(model), restless.merged
    loss_fn, _ = counting_loss(3 if failing else None)

    def run():
        if what is smoothness:
            return smoothness(model, loss_fn, cut(x, y, 10, 13), max_iterations=4)
        return secant(model, loss_fn, cut(x, y, 10, 13), dict(model.named_parameters()), there)

    run_to_the_end_or(failing, run)
    unchanged(model, before)
    assert restless.merged is merged


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_off(context):
    model, (x, y) = network(), images()
    there = {name: p.detach() + 0.1 for name, p in model.named_parameters()}

    def both():
        batches = [cut(x, y, 10, 13), ((x[i : i + 10], y[i : i + 10]) for i in (0, 10, 20))]
        return (
            smoothness(model, F.cross_entropy, batches[0]).value,
            secant(model, F.cross_entropy, batches[1], dict(model.named_parameters()), there),
        )

    expected = both()
    with context():
        found = both()
    assert found == pytest.approx(expected, rel=1e-12)


def test_it_prints_its_numbers_and_that_they_are_local():
    model, (x, y) = network(), images()
    found = smoothness(model, F.cross_entropy, [(x, y)], max_iterations=2)
    for number in (found.value, found.largest, found.smallest):
        assert f"{number:.6g}" in str(found)
    assert "NOT converged after 2" in str(found)
    assert "local estimate" in str(found)
    assert "network in eval mode" in str(found)


def test_bad_input_is_refused_in_one_line():
    model, (x, y) = network(), images()
    here = dict(model.named_parameters())
    there = {name: p + 1 for name, p in here.items()}
    shared = [
        ("batches must hold at least 1 sample, got none", {"batches": iter(())}),
        ("batches must hold at least 1 sample, got none", {"batches": cut(x[:0], y[:0], 0)}),
        ("batches must yield pairs .* got 23 and 3 samples", {"batches": [(x, y[:3])]}),
        ("batches must yield pairs .* got tuple of 1", {"batches": [(x,)]}),
        ("model must have a parameter that requires a gradient", {"model": nn.ReLU()}),
        (r"loss_fn must return the mean loss .* got shape \(23, 3\)", {"loss_fn": lambda o, y: o}),
        ("depends on the model's parameters", {"loss_fn": lambda o, y: o.detach().mean()}),
    ]
    own = [
        *(("tolerance must be a number in", {"tolerance": t}) for t in (0, 1, -1, math.nan, "x")),
        ("max_iterations must be an integer >= 1, got 0", {"max_iterations": 0}),
        *(
            ("seed must be an integer >= 0 and below 2", {"seed": seed})
            for seed in (None, "3", 2.0, True, -1, 2**63, 10**30)
        ),
        (
            r"batches must yield pairs of tensors .* got \['ndarray', 'Tensor'\]",
            {"batches": [(x.numpy(), y)]},
        ),
        (r"batches must yield .* got \['list', 'list'\]", {"batches": [([1.0], [1])]}),
        ("real parameters", {"model": nn.Linear(2, 2, dtype=torch.complex64)}),
    ]
    secants = [
        ("before and after must be different points", {"after": here}),
        (r"after must hold every .* got none for '0\.weight'", {"after": {}}),
        (
            r"before must have parameters .* \(5, 6\) .* got \(3,\)",
            {"before": {"0.weight": x[0, :3]}},
        ),
    ]
    given = {"model": model, "loss_fn": F.cross_entropy, "batches": [(x, y)]}
    cases = [(smoothness, given, case) for case in shared + own]
    given = given | {"before": here, "after": there}
    cases += [(secant, given, case) for case in shared + secants]
    for what, arguments, (message, change) in cases:
        with pytest.raises(ValueError, match=message) as error:
            what(**(arguments | change))
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"at must hold every trainable parameter"):
        full_gradient(model, F.cross_entropy, [(x, y)], at={})
