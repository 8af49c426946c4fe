"""Extremes over samples against a loop; Proposition 9 where its constants are known."""

import math

import pytest
import torch
from test_measure import (
    Restless,
    counting_loss,
    cut,
    images,
    network,
    run_to_the_end_or,
    snapshot,
    unchanged,
)
from test_measure_noise import fashion
from torch import nn
from torch.nn import functional as F

from batchramp.experiments.tasks import load
from batchramp.measure import gradient_bound

pytestmark = pytest.mark.usefixtures("one_thread")

N = 23


def gradients(model, loss_fn, x, y):
    """Of every sample, one after the other, by autograd; and the losses."""
    model.eval()
    rows, losses = [], []
    for i in range(len(x)):
        loss = loss_fn(model(x[i : i + 1]), y[i : i + 1])
        used = [p for p in model.parameters() if p.requires_grad]
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, used)]))
        losses.append(float(loss.detach()))
    return torch.stack(rows), losses


def loop(model, loss_fn, x, y, previous):
    """The numbers of a GradientBound; the model is moved to ``previous`` and back."""
    rows, losses = gradients(model, loss_fn, x, y)
    here = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for p, there in zip(model.parameters(), previous, strict=True):
            p.copy_(there)
    earlier, _ = gradients(model, loss_fn, x, y)
    with torch.no_grad():
        for p, own in zip(model.parameters(), here, strict=True):
            p.copy_(own)
    distance = torch.cat([(a - b).flatten() for a, b in zip(here, previous, strict=True)]).norm()
    secants = (rows - earlier).norm(dim=1) / distance
    return (
        max(losses),
        min(losses),
        float(rows.norm(dim=1).max()),
        float(secants.max()),
        math.sqrt(2 * float(secants.max()) * max(losses)),
    )


def numbers(found):
    return (
        found.max_loss,
        found.min_loss,
        found.max_gradient_norm,
        found.max_smoothness,
        found.proposition9,
    )


def beside(model, by=0.01):
    torch.manual_seed(5)
    return [p.detach() + by * torch.randn_like(p) for p in model.parameters()]


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_it_is_what_a_loop_over_samples_finds(kind):
    model, loss_fn, x, y = fashion(kind, 100)
    previous = beside(model)
    expected = loop(model, loss_fn, x, y, previous)
    found = gradient_bound(model, loss_fn, cut(x, y, 40, 60), previous=previous)
    assert numbers(found) == pytest.approx(expected, rel=1e-11)
    assert found.n == 100
    narrow = gradient_bound(
        model.float(),
        loss_fn,
        cut(x.float(), y, 40, 60),
        previous=[p.float() for p in previous],
    )
    assert numbers(narrow) == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_it_is_what_a_loop_over_all_6500_finds(kind):
    model, loss_fn, x, y = fashion(kind, 6500)
    previous = beside(model)
    found = gradient_bound(model, loss_fn, [(x, y)], previous=previous)
    # In parts: the gradients of all samples would take 6 GB.
    parts = [loop(model, loss_fn, *part, previous) for part in cut(x, y, *[100] * 65)]
    most, least, norm, smoothness, _ = zip(*parts, strict=True)
    expected = (max(most), min(least), max(norm), max(smoothness))
    assert numbers(found)[:4] == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("chunk", [1, 7, 100])
@pytest.mark.parametrize("sizes", [(N,), (10, 0, 13), (1,) * N, (22, 1)], ids=str)
def test_cuts_and_chunks_change_nothing(sizes, chunk):
    model, (x, y) = network(nn.BatchNorm1d(5)), images()
    model(x + 1)  # running statistics of something
    previous = beside(model)
    expected = loop(model, F.cross_entropy, x, y, previous)
    batches = iter(cut(x, y, *sizes))
    found = gradient_bound(model, F.cross_entropy, batches, previous=previous, chunk=chunk)
    assert numbers(found) == pytest.approx(expected, rel=1e-11)


def test_the_previous_point_by_name_or_in_order():
    model, (x, y) = network(nn.BatchNorm1d(5)), images()
    model[3].weight.requires_grad_(False)
    previous = beside(model)
    previous[-2] = model[3].weight.detach() + 100  # frozen: does not count
    state = model.state_dict()  # with buffers, which do not either
    state = {name: tensor + 1 for name, tensor in state.items()}
    names = [name for name, _ in model.named_parameters()]
    state.update(zip(names, previous, strict=True))
    a = gradient_bound(model, F.cross_entropy, [(x, y)], previous=previous)
    b = gradient_bound(model, F.cross_entropy, [(x, y)], previous=state)
    assert a == b
    assert a.max_smoothness < 10


def test_without_a_step_there_is_no_secant():
    model, (x, y) = network(), images()
    alone = gradient_bound(model, F.cross_entropy, [(x, y)])
    still = gradient_bound(model, F.cross_entropy, [(x, y)], previous=list(model.parameters()))
    assert alone == still
    assert (alone.max_smoothness, alone.proposition9) == (None, None)


def test_a_negative_loss_has_no_proposition_9():
    model, (x, y) = network(), images()
    found = gradient_bound(
        model, lambda out, y: F.cross_entropy(out, y) - 1, [(x, y)], previous=beside(model)
    )
    assert found.min_loss < 0 < found.max_loss
    assert found.max_smoothness > 0
    assert found.proposition9 is None


def test_least_squares_have_the_constants_of_the_paper():
    # f_i = ½ (<a_i, w> - c_i)²: L_i = |a_i|² and ||∇f_i||² = 2 L_i f_i, with equality.
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(4, 1, bias=False).double()
    x = torch.randn(N, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(N, 1, generator=generator, dtype=torch.float64)
    largest = int(x.norm(dim=1).argmax())
    along = model.weight.detach() + x[largest]  # the step in which a_i is seen in full
    found = gradient_bound(
        model, lambda out, y: F.mse_loss(out, y) / 2, [(x, y)], previous={"weight": along}
    )
    assert found.max_smoothness == pytest.approx(float(x[largest].square().sum()), rel=1e-12)
    assert found.max_gradient_norm <= found.proposition9
    alone = gradient_bound(
        model,
        lambda out, y: F.mse_loss(out, y) / 2,
        [(x[[largest]], y[[largest]])],
        previous={"weight": along},
    )
    assert alone.proposition9 == pytest.approx(alone.max_gradient_norm, rel=1e-12)


def test_every_sample_of_the_synthetic_problem_is_as_smooth_as_f():
    task = load("quadratic")
    model = task.model()
    with torch.no_grad():
        model.x.zero_()  # where the curvature is φ''(0) = 2
    found = gradient_bound(
        model, task.loss_fn, [task.train], previous=[torch.full((10,), 1e-4).double()]
    )
    assert found.max_smoothness == pytest.approx(2, rel=1e-6)
    assert found.max_gradient_norm == pytest.approx(1, rel=1e-12)
    # Here f_i = 0, and yet f_i < 0 elsewhere: the losses of one point prove no bound.
    assert found.proposition9 == 0
    assert "no bound here" in str(found)


@pytest.mark.parametrize("failing", [False, True])
def test_the_model_is_left_as_found(failing):
    restless = Restless()
    model = network(nn.BatchNorm1d(5), nn.Dropout(0.5), nn.BatchNorm1d(5), restless)
    x, y = images()
    model(x).sum().backward()
    model[0].bias.grad = None
    model[3].weight.requires_grad_(False)
    model.train()
    model[1].train(False)
    merged = restless.merged
    previous = beside(model)
    given = [p.clone() for p in previous]
    before = snapshot(model)
    loss_fn, _ = counting_loss(4 if failing else None)

    def run():
        return gradient_bound(model, loss_fn, cut(x, y, 10, 13), chunk=4, previous=previous)

    run_to_the_end_or(failing, run)
    unchanged(model, before)
    assert restless.merged is merged
    assert all(torch.equal(a, b) for a, b in zip(previous, given, strict=True))


def test_unused_parameters_and_where_gradients_are_off():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = network(), nn.Linear(2, 2).double()

        def forward(self, x):
            return self.used(x)

    model, (x, y) = Unused(), images()
    alone = gradient_bound(model.used, F.cross_entropy, [(x, y)])
    with torch.no_grad():
        # A distance counts what moved, used or not.
        previous = [p + 1 for p in model.parameters()]
        found = gradient_bound(model, F.cross_entropy, [(x, y)], previous=previous)
    assert found.max_gradient_norm == pytest.approx(alone.max_gradient_norm, rel=1e-12)
    assert found.max_smoothness > 0


def test_what_is_not_finite_is_not_hidden():
    model = nn.Linear(1, 1, bias=False)
    x = torch.ones(4, 1)
    x[1] = math.nan
    found = gradient_bound(
        model, F.mse_loss, [(x, torch.zeros(4, 1))], chunk=1, previous=beside(model)
    )
    assert all(math.isnan(value) for value in numbers(found)[:4])
    assert found.proposition9 is None


def test_it_prints_its_numbers_and_that_they_are_local():
    model, (x, y) = network(), images()
    found = gradient_bound(model, F.cross_entropy, [(x, y)], previous=beside(model))
    for value in numbers(found):
        assert f"{value:.6g}" in str(found)
    assert "Local estimates" in str(found)
    assert "network in eval mode" in str(found)
    assert ("no bound here" in str(found)) == (found.proposition9 < found.max_gradient_norm)
    alone = str(gradient_bound(model, F.cross_entropy, [(x, y)]))
    assert "Proposition 9" not in alone
    assert "None" not in alone


def test_bad_input_is_refused_in_one_line():
    model, (x, y) = network(), images()
    cases = [
        ("batches must hold at least 1 sample, got none", {"batches": iter(())}),
        ("batches must yield pairs of tensors .* got 23 and 22", {"batches": [(x, y[1:])]}),
        ("model must have a parameter that requires a gradient", {"model": nn.ReLU()}),
        (r"loss_fn must return .* got shape \(1, 3\)", {"loss_fn": lambda out, y: out}),
        ("depends on the model's parameters", {"loss_fn": lambda out, y: out.detach().mean()}),
        ("chunk must be an integer >= 1, got 0", {"chunk": 0}),
        ("chunk must be an integer <= 2", {"chunk": 10**30}),
        ("previous must hold 4 parameters, got 1", {"previous": [x]}),
        (r"previous must hold every .* got none for '0\.weight'", {"previous": {}}),
        (r"previous must have .* \(5, 6\) .* got \(23, 6\)", {"previous": [x, x, x, x]}),
    ]
    for message, change in cases:
        given = {"model": model, "loss_fn": F.cross_entropy, "batches": [(x, y)]} | change
        with pytest.raises(ValueError, match=message) as error:
            gradient_bound(**given)
        assert "\n" not in str(error.value)


def test_a_parameter_that_is_one_number_has_a_gradient_too():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

        def forward(self, x):
            return self.scale * x

    x = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    found = gradient_bound(Scaled(), nn.functional.mse_loss, [(x, torch.zeros_like(x))])
    assert found.max_gradient_norm == pytest.approx(2 * 2 * 9)  # d/ds (s x)^2 at s = 2, x = 3
