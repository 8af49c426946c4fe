"""Gradient noise against a loop over samples; the sampled estimate and its error."""

import itertools
import math

import numpy as np
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
from torch import nn
from torch.nn import functional as F

from batchramp.experiments.tasks import load
from batchramp.measure import full_gradient_norm, gradient_noise
from batchramp.measure.gradient_noise import _Drawing, estimated_mean

pytestmark = pytest.mark.usefixtures("one_thread")

N = 23


def loop(model, loss_fn, x, y):
    """Every sample's gradient by autograd, one after the other, in float64."""
    model.eval()
    rows = []
    for i in range(len(x)):
        loss = loss_fn(model(x[i : i + 1]), y[i : i + 1])
        used = [p for p in model.parameters() if p.requires_grad]
        grads = torch.autograd.grad(loss, used, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([g.flatten().double() for g in grads]))
    g = torch.stack(rows)
    mean = g.mean(0)
    variance = sum(float((row - mean).square().sum()) for row in g) / len(g)
    return variance, max(float(row.norm()) for row in g), float(mean.norm())


def numbers(noise):
    return noise.variance, noise.gradient_bound, noise.full_gradient_norm


def fashion(kind, n):
    task = load("fashion-mini", kind)
    torch.manual_seed(0)
    model = task.model().double()
    x, y = task.train[0][:n].double(), task.train[1][:n]
    with torch.no_grad():
        model.train()(x[:100])  # running statistics of something, where there are any
    return model, task.loss_fn, x, y


# Exact over the set


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_it_is_what_a_loop_over_samples_finds(kind):
    model, loss_fn, x, y = fashion(kind, 200)
    found = gradient_noise(model, loss_fn, cut(x, y, 90, 110))
    assert numbers(found) == pytest.approx(loop(model, loss_fn, x, y), rel=1e-11)
    assert (found.n, found.samples, found.standard_error) == (200, None, None)
    wide = numbers(found)
    narrow = gradient_noise(model.float(), loss_fn, cut(x.float(), y, 90, 110))
    assert numbers(narrow) == pytest.approx(wide, rel=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_it_is_what_a_loop_over_all_6500_finds(kind):
    model, loss_fn, x, y = fashion(kind, 6500)
    model.eval()
    rows = list(zip(x.split(1), y.split(1), strict=True))
    mean = torch.zeros(sum(p.numel() for p in model.parameters()), dtype=torch.float64)

    def gradient(batch):
        grads = torch.autograd.grad(loss_fn(model(batch[0]), batch[1]), list(model.parameters()))
        return torch.cat([g.flatten() for g in grads])

    for row in rows:  # twice over: 6,500 gradients of the MLP would take 6 GB
        mean += gradient(row)
    mean /= len(rows)
    variance, most = 0.0, 0.0
    for row in rows:
        g = gradient(row)
        variance += float((g - mean).square().sum()) / len(rows)
        most = max(most, float(g.norm()))
    found = gradient_noise(model, loss_fn, zip(x.split(1000), y.split(1000), strict=True))
    assert numbers(found) == pytest.approx((variance, most, float(mean.norm())), rel=1e-10)


@pytest.mark.parametrize("chunk", [1, 7, 100])
@pytest.mark.parametrize("sizes", [(N,), (10, 0, 13), (1,) * N, (22, 1)], ids=str)
def test_cuts_and_chunks_change_nothing(sizes, chunk):
    model, (x, y) = network(nn.BatchNorm1d(5)), images()
    expected = loop(model, F.cross_entropy, x, y)
    for samples in (None, N, 10 * N):  # m >= n is the whole set
        batches = iter(cut(x, y, *sizes))
        found = gradient_noise(model, F.cross_entropy, batches, chunk=chunk, samples=samples)
        assert numbers(found) == pytest.approx(expected, rel=1e-12)
        assert (found.n, found.samples, found.standard_error) == (N, None, None)


def test_a_small_variance_about_a_large_gradient_is_not_lost():
    model = nn.Linear(3, 1, bias=False).double()
    small = torch.randn(N, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = 1e8 + small  # the gradient of the mean output
    expected = float(((x - 1e8) - (x - 1e8).mean(0)).square().sum()) / N
    batches = cut(x, torch.zeros(N), 10, 13)
    for samples in (None, N):
        found = gradient_noise(model, lambda out, _: out.mean(), batches, chunk=4, samples=samples)
        assert found.variance == pytest.approx(expected, rel=1e-7)
    naive = float(x.square().sum()) / N - float(x.mean(0).square().sum())
    assert abs(naive / expected - 1) > 0.1


@pytest.mark.parametrize("seed", range(3))
def test_the_synthetic_problem_has_the_variance_it_was_made_with(seed):
    task = load("quadratic")
    model = task.model()
    with torch.no_grad():
        model.x.copy_(torch.randn(10, generator=torch.Generator().manual_seed(seed)))
    noise = gradient_noise(model, task.loss_fn, [task.train])
    assert noise.variance == pytest.approx(1.0, abs=1e-12)
    full = full_gradient_norm(model, task.loss_fn, [task.train]).norm
    assert noise.full_gradient_norm == pytest.approx(full, rel=1e-12)
    assert noise.noise_scale == pytest.approx(1 / full**2, rel=1e-11)


def test_frozen_unused_and_shared_parameters():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(6, 6)
            self.unused = nn.Linear(4, 4)
            self.frozen = nn.Linear(6, 6).requires_grad_(False)
            self.again = self.a
            self.b = nn.Linear(6, 6)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.frozen(self.b(self.again(self.a(x).tanh()).tanh()))

    torch.manual_seed(0)
    model, (x, y) = Odd().double(), images()
    own = list(model.named_parameters(remove_duplicate=False))
    found = gradient_noise(model, F.cross_entropy, cut(x, y, 10, 13))
    after = list(model.named_parameters(remove_duplicate=False))
    assert all(a[1] is b[1] for a, b in zip(own, after, strict=True))
    assert numbers(found) == pytest.approx(loop(model, F.cross_entropy, x, y), rel=1e-12)


@pytest.mark.parametrize(
    # Of gradients a thousand times as large the squares would overflow float16.
    ("dtype", "scale", "rel"),
    [(torch.bfloat16, 1, 0.03), (torch.float16, 1000, 0.004)],
)
def test_narrow_gradients_are_squared_wide(dtype, scale, rel):
    model, (x, y) = network(dtype=dtype), images(dtype)

    def loss_fn(outputs, targets):
        return F.cross_entropy(outputs, targets) * scale

    found = gradient_noise(model, loss_fn, cut(x, y, 10, 13))
    expected = loop(model, loss_fn, x, y)  # its gradients are as narrow
    assert numbers(found) == pytest.approx(expected, rel=rel)


def test_attention_without_a_fused_kernel():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dtype=torch.float64)
    x = torch.randn(6, 5, 8, dtype=torch.float64)
    batches = [(x, torch.zeros(6))]
    found = gradient_noise(layer, lambda out, _: out.sin().mean(), batches)
    expected = loop(layer, lambda out, _: out.sin().mean(), *batches[0])
    assert numbers(found) == pytest.approx(expected, rel=1e-11)


# From a sample


@pytest.mark.parametrize("m", [2, 3, 5, 6])
def test_over_all_draws_the_estimate_and_its_squared_error_are_unbiased(m):
    population = torch.tensor([0.3, 7.0, 1.1, 1.1, 20.0, 4.0], dtype=torch.float64)
    n = len(population)
    draws = [torch.stack(d) for d in itertools.combinations(population, m)]
    estimates, errors = zip(*(estimated_mean(draw, n) for draw in draws), strict=True)
    mean = float(population.mean())
    assert sum(estimates) / len(draws) == pytest.approx(mean, rel=1e-13)
    true = sum((e - mean) ** 2 for e in estimates) / len(draws)
    assert sum(e**2 for e in errors) / len(draws) == pytest.approx(true, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("sizes", [(5,), (1, 4), (2, 0, 2, 1)], ids=str)
def test_every_set_of_m_is_drawn_as_often(sizes):
    x = torch.arange(5.0)
    counts = dict.fromkeys(itertools.combinations(range(5), 2), 0)
    seeds = 2000
    for seed in range(seeds):
        drawing = _Drawing(2, seed)
        passed = list(drawing.watch(cut(x, -x, *sizes)))
        assert [len(inputs) for inputs, _ in passed] == [size for size in sizes if size]
        inputs, targets = drawing.drawn
        assert torch.equal(inputs, -targets)
        counts[tuple(sorted(int(i) for i in inputs))] += 1
    expected = seeds / len(counts)
    chi2 = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi2 < 27.9  # of 9 degrees of freedom: once in a thousand


def test_the_draw_is_the_seeds_alone():
    x = torch.arange(100.0)
    drawn = []
    for sizes in [(100,), (50, 50), (7,) * 14 + (2,)]:
        drawing = _Drawing(10, 3)
        list(drawing.watch(cut(x, x, *sizes)))
        drawn.append(sorted(drawing.drawn[0].tolist()))
    assert drawn[0] == drawn[1] == drawn[2]
    other = _Drawing(10, 4)
    list(other.watch([(x, x)]))
    assert sorted(other.drawn[0].tolist()) != drawn[0]


def test_the_stated_error_covers_the_variance_of_a_network():
    # Half the set is drawn, so that without the finite population's 1 - m/n the error would be
    # stated 1.41 times too large.
    task = load("fashion-mini")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.ReLU(), nn.Linear(8, 10))
    data = (task.train[0][:200], task.train[1][:200])
    exact = gradient_noise(model, task.loss_fn, [data])
    seeds = 200
    found = [
        gradient_noise(model, task.loss_fn, [data], samples=100, chunk=100, seed=seed)
        for seed in range(seeds)
    ]
    errors = torch.tensor([noise.standard_error for noise in found])
    away = torch.tensor([noise.variance - exact.variance for noise in found])
    assert abs(float(away.mean())) < 3.3 * float(away.std()) / math.sqrt(seeds)
    assert 0.85 < float(away.std() / errors.mean()) < 1.18
    covered = float((away.abs() < 1.96 * errors).double().mean())
    assert 0.90 <= covered <= 0.99  # 0.95 within 3 standard deviations
    for noise in found:
        assert noise.full_gradient_norm == pytest.approx(exact.full_gradient_norm, rel=1e-5)
        assert noise.gradient_bound <= exact.gradient_bound * (1 + 1e-6)
        assert (noise.n, noise.samples) == (200, 100)
    assert any(noise.gradient_bound < 0.99 * exact.gradient_bound for noise in found)


# What it leaves alone, says and refuses


@pytest.mark.parametrize("samples", [None, 9])
@pytest.mark.parametrize("failing", [False, True])
def test_the_model_is_left_as_found(failing, samples):
    restless = Restless()
    model = network(nn.BatchNorm1d(5), nn.Dropout(0.5), nn.BatchNorm1d(5), restless)
    x, y = images()
    model(x).sum().backward()
    model[0].bias.grad = None
    model[3].weight.requires_grad_(False)
    model.train()
    model[1].train(False)
    before, merged = snapshot(model), restless.merged
    loss_fn, _ = counting_loss(3 if failing else None)

    def run():
        return gradient_noise(model, loss_fn, cut(x, y, 10, 13), chunk=4, samples=samples)

    run_to_the_end_or(failing, run)
    unchanged(model, before)
    assert restless.merged is merged


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("samples", [None, 9])
def test_it_works_where_gradients_are_off(context, samples):
    model, (x, y) = network(), images()
    expected = gradient_noise(model, F.cross_entropy, cut(x, y, N), samples=samples)
    with context():
        batches = ((x[i : i + 10], y[i : i + 10]) for i in (0, 10, 20))
        found = gradient_noise(model, F.cross_entropy, batches, samples=samples)
    assert numbers(found) == pytest.approx(numbers(expected), rel=1e-12)


def test_without_a_gradient_the_scale_is_infinite():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    batches = [(torch.ones(2, 1), torch.tensor([[1.0], [-1.0]]))]
    noise = gradient_noise(model, F.mse_loss, batches)
    assert (noise.variance, noise.full_gradient_norm, noise.noise_scale) == (4.0, 0.0, math.inf)


def test_what_is_not_finite_is_not_hidden():
    model = nn.Linear(1, 1, bias=False)
    x = torch.ones(4, 1)
    x[1] = math.nan
    for samples in (None, 4):
        noise = gradient_noise(model, F.mse_loss, [(x, x)], chunk=1, samples=samples)
        assert all(math.isnan(value) for value in numbers(noise))


def test_it_prints_its_numbers_and_that_they_are_local():
    model, (x, y) = network(), images()
    exact = gradient_noise(model, F.cross_entropy, [(x, y)])
    drawn = gradient_noise(model, F.cross_entropy, [(x, y)], samples=9)
    for noise in (exact, drawn):
        for value in (*numbers(noise), noise.noise_scale):
            assert f"{value:.6g}" in str(noise)
        assert "Local estimates" in str(noise)
        assert "network in eval mode" in str(noise)
    assert "standard error" not in str(exact)
    assert f"at least {drawn.gradient_bound:.6g}" in str(drawn)
    assert f"+- {drawn.standard_error:.2g}" in str(drawn)


def test_bad_input_is_refused_in_one_line():
    model, (x, y) = network(), images()
    cases = [
        ("batches must hold at least 1 sample, got none", {"batches": iter(())}),
        ("batches must hold at least 1 sample, got none", {"batches": cut(x[:0], y[:0], 0)}),
        ("batches must yield pairs of tensors .* got 23 and 22", {"batches": [(x, y[1:])]}),
        (r"batches must yield .* got \['dict', 'Tensor'\]", {"batches": [({}, y)]}),
        ("batches must yield .* got Tensor", {"batches": x}),
        ("batches must yield .* got tuple of 1", {"batches": [(x,)]}),
        (r"batches must yield .* got \['ndarray', 'ndarray'\]", {"batches": [(x.numpy(),) * 2]}),
        ("model must have a parameter that requires a gradient", {"model": nn.ReLU()}),
        (
            r"loss_fn must return the mean loss .* got shape \((1|23), 3\)",
            {"loss_fn": lambda out, y: out},
        ),
        (r"loss_fn must return .* got 1\.0", {"loss_fn": lambda out, y: 1.0}),
        ("depends on the model's parameters", {"loss_fn": lambda out, y: out.detach().mean()}),
        ("depends on the model's parameters", {"loss_fn": lambda out, y: y.double().mean()}),
        ("chunk must be an integer >= 1, got 0", {"chunk": 0}),
        (r"chunk must be an integer >= 1, got 2\.0", {"chunk": 2.0}),
        ("chunk must be an integer <= 2", {"chunk": 10**30}),
        *(
            ("seed must be an integer >= 0 and below 2", {"seed": seed})
            for seed in (None, "3", 2.0, True, -1, 2**63, 10**30)
        ),
    ]
    for message, change in cases:
        for samples in (None, 9):
            given = {"model": model, "loss_fn": F.cross_entropy, "batches": [(x, y)]} | change
            with pytest.raises(ValueError, match=message) as error:
                gradient_noise(**given, samples=samples)
            assert "\n" not in str(error.value)
    for samples in (1, 0, -3, 2.5, True):
        with pytest.raises(ValueError, match="samples must be an integer >= 2, got"):
            gradient_noise(model, F.cross_entropy, [(x, y)], samples=samples)


def test_integers_of_numpy_are_integers():
    model, (x, y) = network(), images()
    given = {"chunk": 3, "samples": 9, "seed": 2}
    plain = gradient_noise(model, F.cross_entropy, [(x, y)], **given)
    numpy = {name: np.int64(value) for name, value in given.items()}
    assert gradient_noise(model, F.cross_entropy, [(x, y)], **numpy) == plain
    gradient_noise(model, F.cross_entropy, [(x, y)], seed=2**63 - 1, samples=9)
