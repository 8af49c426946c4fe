"""Models: their sizes as documented, their shapes, what they compute, what they refuse."""

import math

import pytest
import torch
from torch.nn import functional as F

from batchramp.models import MLP, Quadratic, SmallCNN


def size(model):
    return sum(p.numel() for p in model.parameters())


def test_sizes_are_those_documented():
    assert size(MLP()) == 118_282
    assert size(SmallCNN()) == 24_058
    assert "118,282" in str(MLP.__doc__)
    assert "24,058" in str(SmallCNN.__doc__)


@pytest.mark.parametrize("shape", [(5, 1, 28, 28), (5, 784), (1, 28, 28), (0, 784)])
def test_mlp_is_its_formula(shape):
    torch.manual_seed(0)
    model, x = MLP(hidden=7, classes=4), torch.randn(shape)
    _, a, _, b, _, c = model.layers
    expected = c(F.relu(b(F.relu(a(x.reshape(-1, 784))))))
    assert model(x).shape == (shape[0], 4)
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("side", [28, 32, 7, 1])
def test_cnn_takes_images_of_any_size(side):
    torch.manual_seed(0)
    model = SmallCNN(channels=3, width=4, classes=6).eval()
    x = torch.randn(5, 3, side, side)
    outputs = model(x)
    assert outputs.shape == (5, 6)
    torch.testing.assert_close(model(x[2:3]), outputs[2:3])
    h = x
    for block, stride in zip(model.features[:3], (1, 2, 2), strict=True):
        convolution, norm, _ = block
        assert convolution.bias is None
        h = F.conv2d(h, convolution.weight, stride=stride, padding=1)
        h = F.relu(norm(h))
    torch.testing.assert_close(model.head(h.mean((2, 3))), outputs)


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    for model in (MLP(), SmallCNN()):
        F.cross_entropy(model(torch.randn(8, 1, 28, 28)), torch.arange(8)).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_one_seed_makes_one_model():
    made = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        made.append(torch.cat([p.flatten() for p in MLP(hidden=5).parameters()]))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_quadratic_is_its_formula_and_owns_its_point():
    start = torch.tensor([0.5, -2.0], dtype=torch.float64)
    z = torch.tensor([[1.0, 0.0], [0.0, -3.0]], dtype=torch.float64)
    model = Quadratic(start)
    base = 0.25 / 1.25 + 4 / 5
    assert model(z).tolist() == pytest.approx([base + 0.5, base + 6.0])
    with torch.no_grad():
        model.x.zero_()
    assert start.tolist() == [0.5, -2.0]


@pytest.mark.parametrize("value", [0, -1, 2.0, True, None, "3", math.nan])
def test_widths_are_checked(value):
    for model, names in ((MLP, "inputs hidden classes"), (SmallCNN, "channels width classes")):
        for name in names.split():
            with pytest.raises(ValueError, match=f"^{name} must be an integer >= 1, got {value!r}"):
                model(**{name: value})


@pytest.mark.parametrize("start", [torch.ones(2, 2), torch.ones(2).long(), torch.tensor(1.0), 1.0])
def test_quadratic_refuses_another_start(start):
    with pytest.raises(ValueError, match="start must be a floating-point tensor") as error:
        Quadratic(start)
    assert "\n" not in str(error.value)
