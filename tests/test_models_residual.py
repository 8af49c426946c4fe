"""ResNet: its size by a formula, its blocks by hand, what it refuses."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

from batchramp.models import ResNet, resnet18, small_resnet

pytestmark = pytest.mark.usefixtures("one_thread")


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def size_by_formula(channels: int, classes: int, width: int, blocks: tuple[int, ...]) -> int:
    """Convolutions of k*k*in*out weights, two numbers a channel of each BatchNorm, the head."""
    total = 9 * channels * width + 2 * width
    before = width
    for stage, count in enumerate(blocks):
        w = width * 2**stage
        total += (9 * before * w + 2 * w) + (9 * w * w + 2 * w)
        if stage > 0:
            total += before * w + 2 * w
        total += (count - 1) * 2 * (9 * w * w + 2 * w)
        before = w
    return total + before * classes + classes


def tiny(**changes: Any) -> ResNet:
    torch.manual_seed(0)
    return ResNet(**{"channels": 2, "classes": 3, "width": 4, "blocks": (1, 2), **changes})


def used(model: nn.Module) -> nn.Module:
    """In eval mode, after BatchNorms have got statistics and weights other than those at start."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(value)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    return model.eval()


@pytest.mark.parametrize(
    ("make", "shape", "count"),
    [
        (resnet18, (3, 100, 64, (2, 2, 2, 2)), 11_220_132),
        (lambda: resnet18(classes=10), (3, 10, 64, (2, 2, 2, 2)), 11_173_962),
        (small_resnet, (1, 10, 4, (1, 1, 1, 1)), 19_830),
        (tiny, (2, 3, 4, (1, 2)), None),
    ],
)
def test_sizes_are_those_documented_and_of_the_formula(
    make: Any, shape: tuple[Any, ...], count: int | None
) -> None:
    found = size(make())
    assert found == size_by_formula(*shape)
    assert count is None or found == count


def test_docstrings_tell_the_sizes() -> None:
    assert "11,220,132" in str(resnet18.__doc__)
    assert "11,173,962" in str(resnet18.__doc__)
    assert "19,830" in str(small_resnet.__doc__)


def norm_by_hand(module: nn.BatchNorm2d, x: Tensor) -> Tensor:
    mean, variance, weight, bias = (
        v.detach()[:, None, None]
        for v in (module.running_mean, module.running_var, module.weight, module.bias)  # type: ignore[union-attr]
    )
    return (x - mean) / (variance + 1e-5).sqrt() * weight + bias


def convolution_by_hand(weight: Tensor, x: Tensor, stride: int) -> Tensor:
    """Σ over the kernel of shifted images, zeros outside."""
    k, (h, w) = weight.shape[2], x.shape[2:]
    padded = F.pad(x, [k // 2] * 4)
    total = torch.zeros(len(x), len(weight), h, w, dtype=x.dtype)
    for i in range(k):
        for j in range(k):
            part = padded[:, :, i : i + h, j : j + w]
            total += torch.einsum("oc,bchw->bohw", weight[:, :, i, j], part)
    return total[:, :, ::stride, ::stride]


@pytest.mark.parametrize(("h", "w"), [(8, 8), (9, 11)])
def test_it_is_its_formula(h: int, w: int) -> None:
    model = used(tiny().double())
    x = torch.randn(3, 2, h, w, dtype=torch.float64)
    state = {name: value.detach() for name, value in model.state_dict().items()}
    modules = dict(model.named_modules())

    def convolved(place: str, norm: str, x: Tensor, stride: int = 1) -> Tensor:
        return norm_by_hand(
            modules[norm],  # type: ignore[arg-type]
            convolution_by_hand(state[f"{place}.weight"], x, stride),
        )

    y = convolved("stem", "norm", x).clamp(min=0)
    for number, (stride, projected) in enumerate([(1, False), (2, True), (1, False)]):
        block = f"blocks.{number}"
        inner = convolved(f"{block}.first", f"{block}.first_norm", y, stride).clamp(min=0)
        inner = convolved(f"{block}.second", f"{block}.second_norm", inner)
        shortcut = f"{block}.shortcut"
        assert (f"{shortcut}.0.weight" in state) is projected
        kept = convolved(f"{shortcut}.0", f"{shortcut}.1", y, stride) if projected else y
        y = (inner + kept).clamp(min=0)
    expected = y.sum((2, 3)) / (y.shape[2] * y.shape[3]) @ state["head.weight"].T
    torch.testing.assert_close(model(x), expected + state["head.bias"])


def test_convolutions_start_with_variance_two_over_fan_out() -> None:
    torch.manual_seed(0)
    model = ResNet(width=32, blocks=(1, 1))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            k, weight = module.kernel_size[0], module.weight
            # the estimate of a variance from N normal numbers has a relative error of √(2/N)
            error = 5 * math.sqrt(2 / weight.numel())
            assert float(weight.detach().var()) == pytest.approx(
                2 / (k**2 * len(weight)), rel=error
            )
        if isinstance(module, nn.BatchNorm2d):
            assert module.weight.eq(1).all()
            assert module.bias.eq(0).all()


@pytest.mark.parametrize("side", [8, 13, 28, 32])
def test_images_of_any_size_and_batch(side: int) -> None:
    torch.manual_seed(0)
    model = used(small_resnet(channels=3))
    x = torch.randn(5, 3, side, side)
    outputs = model(x)
    assert outputs.shape == (5, 10)
    torch.testing.assert_close(model(x[2:3]), outputs[2:3])
    torch.testing.assert_close(model(x.contiguous(memory_format=torch.channels_last)), outputs)


def test_every_parameter_gets_a_gradient_and_a_state_dict_is_all_of_it() -> None:
    model = tiny().train()
    x = torch.randn(6, 2, 8, 8)
    F.cross_entropy(model(x), torch.arange(6) % 3).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    other = tiny(width=4)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.eval()(x), model.eval()(x))


def test_many_at_once_are_each_alone() -> None:
    models = [tiny(), tiny(), tiny()]
    for seed, model in enumerate(models):
        torch.manual_seed(seed)
        used(model).double().train()
    parameters, buffers = stack_module_state(models)  # type: ignore[arg-type]
    x = torch.randn(3, 6, 2, 8, 8, dtype=torch.float64)

    def outputs(p: Any, b: Any, x: Tensor) -> Tensor:
        return functional_call(models[0], (p, b), (x,))

    together = vmap(outputs)(parameters, buffers, x)
    for i, model in enumerate(models):
        torch.testing.assert_close(together[i], model(x[i]))
        for name, buffer in model.named_buffers():
            torch.testing.assert_close(buffers[name][i], buffer)


@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 3, 8, 8), (1, 2, 1, 8), (1, 2, 8, 1), (4, 128)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^images must be \[b, 2, h, w\] with h, w >= 2, got \["):
        tiny()(torch.zeros(shape))


@pytest.mark.parametrize("value", [0, -1, 2.0, True, None, "3"])
def test_wrong_sizes_are_refused(value: Any) -> None:
    for name in ("channels", "classes", "width"):
        with pytest.raises(ValueError, match=f"^{name} must be an integer >= 1, got {value!r}$"):
            tiny(**{name: value})
    with pytest.raises(ValueError, match=r"^blocks\[1\] must be an integer >= 1, got "):
        tiny(blocks=(2, value))
    for blocks in ((), 3, None):
        with pytest.raises(ValueError, match=r"^blocks must be a tuple of 1 or more"):
            tiny(blocks=blocks)
