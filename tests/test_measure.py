"""The full gradient against one big batch in float64; what measuring must leave alone."""

import copy
import math
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from batchramp import full_gradient_norm, models
from batchramp.measure import evaluate, evaluate_with_gradient

N = 23


def images(dtype=torch.float64, n=N):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 6, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (n,), generator=generator)
    return x.to(dtype), y


def network(*extra, dtype=torch.float64):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 5), *extra, nn.Tanh(), nn.Linear(5, 3)).to(dtype)


def cut(x, y, *sizes):
    return list(zip(x.split(list(sizes)), y.split(list(sizes)), strict=True))


def reference(model, loss_fn, x, y):
    """One batch, one backward, on a copy."""
    model = copy.deepcopy(model)
    for p in model.parameters():
        p.grad = None
    loss = loss_fn(model(x), y)
    loss.backward()
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return torch.cat(grads).norm().item(), loss.item()


CUTS = [(N,), (10, 10, 3), (1, 22), (1,) * N, (22, 1)]


@pytest.mark.parametrize("sizes", CUTS, ids=str)
def test_it_is_exact_over_the_set_however_it_is_cut(sizes):
    model, (x, y) = network(), images()
    expected = reference(model, F.cross_entropy, x, y)
    found = full_gradient_norm(model, F.cross_entropy, iter(cut(x, y, *sizes)))
    assert found == pytest.approx(expected, rel=1e-12)


def test_a_mean_of_batch_means_would_be_seen():
    model, (x, y) = network(), images()
    means = [reference(model, F.cross_entropy, *batch)[1] for batch in cut(x, y, 22, 1)]
    loss = full_gradient_norm(model, F.cross_entropy, cut(x, y, 22, 1)).loss
    assert abs(sum(means) / 2 - loss) > 0.01


def test_an_empty_batch_counts_for_nothing():
    model, (x, y) = network(), images()
    found = full_gradient_norm(model, F.cross_entropy, cut(x, y, 10, 0, 13))
    assert found == pytest.approx(reference(model, F.cross_entropy, x, y), rel=1e-12)
    assert evaluate(model, F.cross_entropy, cut(x, y, 10, 0, 13)).loss == pytest.approx(
        found.loss, rel=1e-12
    )


@pytest.mark.parametrize("training", [False, True])
def test_batch_norm_in_eval_mode_uses_running_statistics(training):
    model, (x, y) = network(nn.BatchNorm1d(5)), images()
    model(x + 1)  # running statistics of something
    model.train(training)
    expected = reference(copy.deepcopy(model).eval(), F.cross_entropy, x, y)
    found = full_gradient_norm(model, F.cross_entropy, cut(x, y, 10, 10, 3))
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("training", [False, True])
def test_batch_norm_in_train_mode_uses_the_batchs(training):
    model, (x, y) = network(nn.BatchNorm1d(5)), images()
    model.train(training)
    expected = reference(copy.deepcopy(model).train(), F.cross_entropy, x, y)
    batches = cut(x, y, N)
    assert full_gradient_norm(model, F.cross_entropy, batches, mode="train") == pytest.approx(
        expected, rel=1e-12
    )
    cut_up = full_gradient_norm(model, F.cross_entropy, cut(x, y, 10, 13), mode="train")
    assert cut_up.loss != pytest.approx(expected[1], rel=1e-4)


def test_dropout_follows_the_mode():
    model, (x, y) = network(nn.Dropout(0.5)), images()
    expected = reference(copy.deepcopy(model).eval(), F.cross_entropy, x, y)
    assert full_gradient_norm(model, F.cross_entropy, cut(x, y, 10, 13)) == pytest.approx(expected)
    torch.manual_seed(5)
    expected = reference(model, F.cross_entropy, x, y)
    torch.manual_seed(5)
    found = full_gradient_norm(model, F.cross_entropy, cut(x, y, N), mode="train")
    assert found == pytest.approx(expected, rel=1e-12)


def test_frozen_unused_shared_and_sparse_parameters():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(6, 6)
            self.table = nn.Embedding(3, 6, sparse=True)
            self.unused = nn.Linear(4, 4)
            self.frozen = nn.Linear(6, 6).requires_grad_(False)
            self.again = self.a
            self.twice = nn.Parameter(torch.zeros(6))
            self.twin = nn.Parameter(torch.zeros(6))

        def forward(self, x):
            same = self.twice + self.twin  # whose gradients are one tensor
            return self.frozen(self.again(self.a(x) + self.table.weight.sum(0)) + same)

    torch.manual_seed(0)
    model, (x, y) = Odd().double(), images()
    expected = reference(model, F.cross_entropy, x, y)
    for sizes in CUTS:
        found = full_gradient_norm(model, F.cross_entropy, cut(x, y, *sizes))
        assert found == pytest.approx(expected, rel=1e-12)

    looked_up = nn.Sequential(nn.Embedding(9, 3, sparse=True)).double()
    dense = nn.Sequential(nn.Embedding(9, 3)).double()
    dense.load_state_dict(looked_up.state_dict())
    index = torch.arange(N) % 7
    found = full_gradient_norm(looked_up, F.cross_entropy, cut(index, y, 10, 13))
    assert found == pytest.approx(reference(dense, F.cross_entropy, index, y), rel=1e-12)


@pytest.mark.parametrize(
    ("dtype", "rel"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03), (torch.float16, 0.004)]
)
def test_narrow_dtypes_are_summed_wide(dtype, rel):
    x, y = images(dtype)
    model = network(dtype=dtype)
    expected = reference(copy.deepcopy(model).double(), F.cross_entropy, x.double(), y)
    found = full_gradient_norm(model, F.cross_entropy, cut(x, y, *(1,) * N))
    assert found == pytest.approx(expected, rel=rel)


def test_many_like_bfloat16_batches_do_not_stall_the_sum():
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.zeros_(model.weight)
    batch = (torch.ones(1, 1, dtype=torch.bfloat16), torch.zeros(1))

    def slope(outputs, _):
        return outputs.mean()

    assert full_gradient_norm(model, slope, [batch] * 1500).norm == 1.0


def test_float16_does_not_overflow_with_the_count():
    model = nn.Linear(1, 1, bias=False).to(torch.float16)
    nn.init.ones_(model.weight)
    batch = (torch.full((3000, 1), 40.0, dtype=torch.float16), torch.zeros(3000))
    found = full_gradient_norm(model, lambda outputs, _: outputs.mean(), [batch])
    assert found == pytest.approx((40.0, 40.0), rel=1e-3)


def test_complex_parameters():
    weight = nn.Parameter(torch.tensor([1 + 2j, 3 - 1j], dtype=torch.complex128))
    model = nn.Module()
    model.weight = weight
    model.forward = lambda x: x @ weight
    x = torch.tensor([[1 + 1j, 2.0], [0.5j, 1.0], [2.0, 1j]], dtype=torch.complex128)
    y = torch.zeros(3)

    def loss_fn(outputs, _):
        return outputs.abs().square().mean()

    expected = (2 / 3 * (x.mH @ (x @ weight.detach()))).norm().item()
    found = full_gradient_norm(model, loss_fn, cut(x, y, 2, 1))
    assert found.norm == pytest.approx(expected, rel=1e-12)


def test_the_norm_loses_no_digits():
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(3_000_000))
    model.forward = lambda x: model.weight.sum() * x
    found = full_gradient_norm(model, lambda out, _: out.mean(), [(torch.ones(1), torch.ones(1))])
    assert found.norm == pytest.approx(math.sqrt(3_000_000), rel=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_said_and_not_raised(bad):
    model, (x, y) = network(), images()
    x[3] = bad
    found = full_gradient_norm(model, F.cross_entropy, cut(x, y, 10, 13))
    assert not math.isfinite(found.norm)
    assert not math.isfinite(found.loss)


# Left as found


class Restless(nn.Module):
    """Does with its buffers and mode what modules in the wild do."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("later", None)
        self.register_buffer("expanded", torch.ones(1).expand(4))
        self.register_buffer("holes", torch.tensor([math.nan, 1.0]))
        self.merged = False

    def train(self, mode=True):
        self.merged = not mode  # as adapters are merged into weights for evaluation
        return super().train(mode)

    def forward(self, x):
        self.count = self.count + 1  # a new tensor takes the buffer's place
        self.later = torch.ones(2)
        return x + torch.rand(1, dtype=x.dtype)


def snapshot(model):
    return (
        [p.grad for p in model.parameters()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        [p.detach().clone() for p in model.parameters()],
        [p.requires_grad for p in model.parameters()],
        dict(model.named_buffers()),
        {name: buffer.clone() for name, buffer in model.named_buffers()},
        [module.training for module in model.modules()],
        torch.get_rng_state(),
    )


def counting_loss(failing_at, draw=lambda: 1):
    """Cross-entropy that fails at one of its calls, if at any; and what each call has drawn."""
    calls = []

    def loss_fn(outputs, targets):
        calls.append(draw())
        if len(calls) == failing_at:
            raise RuntimeError("loss_fn failed")
        return F.cross_entropy(outputs, targets)

    return loss_fn, calls


def run_to_the_end_or(failing, run):
    """Runs, and if the loss is made to fail, expects that."""
    if failing:
        with pytest.raises(RuntimeError, match="loss_fn failed"):
            run()
    else:
        run()


def unchanged(model, before):
    after = snapshot(model)
    assert all(a is b for a, b in zip(before[0], after[0], strict=True))
    for a, b in zip(before[1] + before[2], after[1] + after[2], strict=True):
        assert (a is None and b is None) or torch.equal(a, b)
    assert before[3] == after[3]
    assert before[4].keys() == after[4].keys()
    for name, buffer in before[4].items():
        assert after[4][name] is buffer
        torch.testing.assert_close(after[5][name], before[5][name], rtol=0, atol=0, equal_nan=True)
    assert before[6] == after[6]
    assert torch.equal(before[7], after[7])


@pytest.mark.parametrize("measure", ["eval", "train", "evaluate"])
@pytest.mark.parametrize("failing", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_left_as_found(measure, failing, training):
    restless = Restless()
    model = network(nn.BatchNorm1d(5), nn.Dropout(0.5), nn.BatchNorm1d(5), restless)
    x, y = images()
    model(x).sum().backward()
    model[0].bias.grad = None
    model[3].weight.requires_grad_(False)
    model.train(training)
    model[1].train(not training)  # a network part of which is kept in the other mode
    before, merged = snapshot(model), restless.merged
    loss_fn, calls = counting_loss(2 if failing else None, draw=lambda: torch.rand(1))

    def run():
        if measure == "evaluate":
            return evaluate(model, loss_fn, cut(x, y, 10, 13))
        return full_gradient_norm(model, loss_fn, cut(x, y, 10, 13), mode=measure)

    run_to_the_end_or(failing, run)
    unchanged(model, before)
    assert restless.merged is merged
    assert restless.later is before[4].get("restless.later", restless.later)
    assert len(calls) == 2


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_later_training_is_the_same_as_without_measuring(mode):
    def train(measured):
        torch.manual_seed(3)
        model, (x, y) = network(nn.BatchNorm1d(5), nn.Dropout(0.3)), images()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            if measured:
                full_gradient_norm(model, F.cross_entropy, cut(x, y, 10, 13), mode=mode)
                evaluate(model, F.cross_entropy, cut(x, y, 10, 13))
            optimizer.step()
        return model.state_dict()

    alone, measured = train(False), train(True)
    assert all(torch.equal(alone[name], measured[name]) for name in alone)


def test_a_pending_backward_still_works():
    model, (x, y) = network(nn.BatchNorm1d(5)), images()
    model.eval()
    pending = F.cross_entropy(model(x), y)
    full_gradient_norm(model, F.cross_entropy, cut(x, y, 10, 13))
    evaluate(model, F.cross_entropy, cut(x, y, 10, 13))
    pending.backward()
    assert model[0].weight.grad is not None


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_it_works_where_gradients_are_off(context):
    model = network(nn.BatchNorm1d(5))
    x, y = images()
    expected = full_gradient_norm(model, F.cross_entropy, cut(x, y, 10, 13))
    with context():
        assert torch.is_grad_enabled() is False
        batches = ((x[i : i + 10], y[i : i + 10]) for i in (0, 10, 20))
        found = full_gradient_norm(model, F.cross_entropy, batches)
        assert torch.is_grad_enabled() is False
    assert found == pytest.approx(expected, rel=1e-12)
    F.cross_entropy(model(x), y).backward()


def test_what_a_module_caches_in_evaluation_serves_training():
    class Caching(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 3).double()
            self.cache = None

        def forward(self, x):
            if self.cache is None:
                self.cache = torch.linspace(0, 1, 6, dtype=x.dtype)
            return self.linear(x) * self.cache[:3]

    model, (x, y) = Caching(), images()
    evaluate(model, F.cross_entropy, cut(x, y, N))
    F.cross_entropy(model(x), y).backward()
    assert model.linear.weight.grad is not None


# Refusals


def test_bad_input_is_refused_in_one_line():
    model, (x, y) = network(), images()
    batches = cut(x, y, 10, 13)
    refused: list = [
        ("batches must yield pairs .* got 23 and 3 samples", {"batches": [(x, y[:3])]}),
        ("batches must yield pairs .* got tuple of 1", {"batches": [(x,)]}),
        ("batches must yield pairs .* got Tensor", {"batches": x}),
        (r"batches must yield pairs .* got \['Tensor', 'int'\]", {"batches": [(x, 1)]}),
        (r"batches must yield pairs .* got \['Tensor', 'Tensor'\]", {"batches": [(x, y[0])]}),
    ]
    cases = [
        ("mode must be 'eval' or 'train', got 'test'", {"mode": "test"}),
        ("batches must hold at least 1 sample, got none", {"batches": iter(())}),
        ("batches must hold at least 1 sample, got none", {"batches": cut(x[:0], y[:0], 0)}),
        ("model must have a parameter that requires a gradient", {"model": nn.ReLU()}),
        (
            r"loss_fn must return the mean loss .* got shape \(10,\)",
            {"loss_fn": lambda out, y: F.cross_entropy(out, y, reduction="none")},
        ),
        (r"loss_fn must return .* got 1\.0", {"loss_fn": lambda out, y: 1.0}),
        *refused,
        ("depends on the model's parameters", {"loss_fn": lambda out, y: out.detach().mean()}),
    ]
    for message, change in cases:
        given = {"model": model, "loss_fn": F.cross_entropy, "batches": batches} | change
        with pytest.raises(ValueError, match=message) as error:
            full_gradient_norm(**given)
        assert "\n" not in str(error.value)
    for message, change in refused:
        with pytest.raises(ValueError, match=message):
            evaluate(model, F.cross_entropy, **change)
    with pytest.raises(ValueError, match="at least 1 sample"):
        evaluate(model, F.cross_entropy, [])
    with pytest.raises(ValueError, match="one number"):
        evaluate(model, lambda out, y: F.cross_entropy(out, y, reduction="none"), batches)


# Evaluation


@pytest.mark.parametrize("sizes", CUTS, ids=str)
def test_evaluation_against_one_batch(sizes):
    model, (x, y) = network(nn.BatchNorm1d(5), nn.Dropout(0.5)), images()
    outputs = copy.deepcopy(model).eval()(x)
    found = evaluate(model, F.cross_entropy, iter(cut(x, y, *sizes)))
    assert found.loss == pytest.approx(F.cross_entropy(outputs, y).item(), rel=1e-12)
    right = sum(int(out.argmax()) == int(c) for out, c in zip(outputs, y, strict=True))
    assert found.accuracy == pytest.approx(100 * right / N)


def test_regression_has_no_accuracy():
    x, _ = images()
    model = nn.Linear(6, 1).double()
    found = evaluate(model, F.mse_loss, [(x, x[:, :1])])
    assert (found.accuracy, found.at_chance) == (None, False)


def constant(logits):
    model = nn.Linear(6, 10)
    nn.init.zeros_(model.weight)
    with torch.no_grad():
        model.bias.copy_(torch.as_tensor(logits))
    return model


def classes(n=1000):
    draw = random.Random(0)
    # one class in three samples, the others even
    return torch.tensor([0 if draw.random() < 0.26 else draw.randrange(10) for _ in range(n)])


def test_at_chance_is_the_best_constant_answer_or_worse():
    y = classes()
    x = torch.randn(len(y), 6, generator=torch.Generator().manual_seed(0))
    shares = torch.bincount(y, minlength=10) / len(y)
    for logits in (shares.log(), torch.zeros(10), torch.eye(10)[4] * 50):
        assert evaluate(constant(logits), F.cross_entropy, [(x, y)]).at_chance
    nan = evaluate(constant(torch.full((10,), math.nan)), F.cross_entropy, [(x, y)])
    assert nan.at_chance


def test_a_classifier_that_learned_anything_is_not_at_chance():
    y = classes()
    x = F.one_hot(y % 6, 6).float()
    model = constant((torch.bincount(y, minlength=10) / len(y)).log())
    with torch.no_grad():
        for c in range(10):
            model.weight[c, c % 6] = 2.0
    found = evaluate(model, F.cross_entropy, [(x, y)])
    assert not found.at_chance
    assert found.accuracy > 50
    # Confident and often wrong: a loss worse than chance, and yet it has learned.
    with torch.no_grad():
        model.weight.mul_(100)[6:].div_(2)
    found = evaluate(model, F.cross_entropy, [(x, y)])
    assert not found.at_chance
    assert found.loss > math.log(10)


def test_a_better_loss_at_a_constant_answer_is_not_at_chance():
    y = torch.tensor([0] * 600 + [1] * 400)
    x = F.one_hot(y, 6).float()
    model = constant([10.4, 10.0] + [-50.0] * 8)  # about the shares
    with torch.no_grad():
        model.weight[1, 1] = 0.3  # less than it takes to answer 1
    found = evaluate(model, F.cross_entropy, [(x, y)])
    assert found.accuracy == 60.0
    assert 0.8 < found.loss / -(0.6 * math.log(0.6) + 0.4 * math.log(0.4)) < 0.95
    assert not found.at_chance


def test_where_one_class_is_nearly_all_a_perfect_answer_is_not_chance():
    targets = torch.tensor([0] * 197 + [1] * 3)
    right = torch.zeros(200, 2)
    right[torch.arange(200), targets] = 0.9  # every answer right, at a loss above the entropy
    found = evaluate(nn.Identity(), nn.functional.cross_entropy, [(right, targets)])
    assert found.accuracy == 100.0
    assert found.loss > 0.99 * 0.0779
    assert not found.at_chance
    constant = torch.zeros(200, 2)
    constant[:, 0] = 0.9
    assert evaluate(nn.Identity(), nn.functional.cross_entropy, [(constant, targets)]).at_chance


@pytest.mark.parametrize(
    "make", [models.MLP, models.SmallCNN, models.vit_micro], ids=["mlp", "cnn", "vit"]
)
def test_one_pass_measures_what_two_measure_to_the_last_bit(make):
    torch.manual_seed(0)
    model = make()
    inputs, classes = torch.randn(30, 1, 28, 28), torch.randint(0, 10, (30,))
    batches = list(zip(inputs.split(13), classes.split(13), strict=True))
    both = evaluate_with_gradient(model, F.cross_entropy, batches)
    assert both == (
        evaluate(model, F.cross_entropy, batches),
        full_gradient_norm(model, F.cross_entropy, batches),
    )
    assert all(p.grad is None for p in model.parameters())
