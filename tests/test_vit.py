"""The vision transformer: its size by a formula, its parts against slow twins, what it refuses."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn import functional as F

from batchramp.models import ViT, vit_micro, vit_tiny
from batchramp.models import vit as parts

pytestmark = pytest.mark.usefixtures("one_thread")


def tiny(**changes: Any) -> ViT:
    torch.manual_seed(0)
    sizes = {"channels": 2, "classes": 3, "image": 12, "patch": 4, "width": 6, "depth": 2,
             "heads": 3, "rate": 0.0}  # fmt: skip
    return ViT(**{**sizes, **changes})


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def size_by_formula(
    channels: int, classes: int, image: int, patch: int, w: int, depth: int, ratio: int = 2
) -> int:
    features, patches = 5 * channels * patch**2, (image // patch) ** 2
    embedding = 2 * features + features * w + w + w + (patches + 1) * w
    attention = 2 * w + 3 * w * w + 1 + (w * w + w)
    mlp = 2 * w + (w * ratio * w + ratio * w) + (ratio * w * w + w)
    return embedding + depth * (attention + mlp) + 2 * w + w * classes + classes


@pytest.mark.parametrize(
    ("make", "sizes", "count"),
    [
        (vit_tiny, (3, 100, 32, 4, 192, 9), 2_747_149),
        (lambda: vit_tiny(classes=10), (3, 10, 32, 4, 192, 9), None),
        (vit_micro, (1, 10, 28, 7, 32, 3), 34_679),
        (tiny, (2, 3, 12, 4, 6, 2), None),
        (lambda: tiny(ratio=3), (2, 3, 12, 4, 6, 2, 3), None),
    ],
)
def test_sizes_are_those_documented_and_of_the_formula(
    make: Any, sizes: tuple[int, ...], count: int | None
) -> None:
    found = size(make())
    assert found == size_by_formula(*sizes)
    assert count is None or found == count


def test_docstrings_tell_the_sizes() -> None:
    assert "2,747,149" in str(vit_tiny.__doc__)
    assert "34,679" in str(vit_micro.__doc__)
    assert len(vit_tiny().blocks) == 9


# ------------------------------------------------------------------------------------ slow twins


@pytest.mark.parametrize(("patch", "h"), [(4, 12), (3, 6), (7, 14), (2, 2)])
def test_shifted_patches_are_those_of_a_loop(patch: int, h: int) -> None:
    torch.manual_seed(0)
    by = patch // 2
    images = torch.randn(2, 3, h, h, dtype=torch.float64)
    found = parts._patches(parts._shifted(images, by), patch)
    assert found.shape == (2, (h // patch) ** 2, 5 * 3 * patch**2)
    shifts = [(0, 0), (-by, -by), (-by, by), (by, -by), (by, by)]
    for b in range(2):
        for number in range((h // patch) ** 2):
            top, left = patch * (number // (h // patch)), patch * (number % (h // patch))
            expected = []
            for i in range(top, top + patch):
                for j in range(left, left + patch):
                    for down, right in shifts:
                        for c in range(3):
                            inside = 0 <= i + down < h and 0 <= j + right < h
                            expected.append(float(images[b, c, i + down, j + right]) if inside
                                            else 0.0)  # fmt: skip
            assert found[b, number].tolist() == expected


@torch.no_grad()
def test_attention_is_that_of_a_loop() -> None:
    torch.manual_seed(0)
    tokens, heads, d = 5, 3, 4
    module = parts.LocalityAttention(tokens, heads * d, heads).double()
    assert float(module.scale) == pytest.approx(d**-0.5)
    module.scale.fill_(0.9)
    x = torch.randn(2, tokens, heads * d, dtype=torch.float64)
    weight = module.queries_keys_values.weight
    expected = torch.zeros_like(x)
    for b in range(2):
        q, k, v = (x[b] @ weight[i * heads * d : (i + 1) * heads * d].T for i in range(3))
        for head in range(heads):
            at = slice(head * d, (head + 1) * d)
            for i in range(tokens):
                others = [j for j in range(tokens) if j != i]
                powers = [math.exp(0.9 * float(q[i, at] @ k[j, at])) for j in others]
                for j, power in zip(others, powers, strict=True):
                    expected[b, i, at] += power / sum(powers) * v[j, at]
    expected = expected @ module.output.weight.T + module.output.bias
    torch.testing.assert_close(module(x), expected)


def test_the_whole_is_its_blocks_in_order() -> None:
    model = tiny().double().eval()
    images = torch.randn(4, 2, 12, 12, dtype=torch.float64)

    def norm(x: Tensor, module: Any) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        deviation = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return centred / deviation * module.weight + module.bias

    def linear(x: Tensor, module: Any) -> Tensor:
        return x @ module.weight.T + module.bias

    embed: Any = model.embedding
    x = parts._patches(parts._shifted(images, 2), 4)
    x = linear(norm(x, embed[0]), embed[1])
    x = torch.cat([torch.stack([model.token[0]] * 4), x], 1) + model.positions
    block: Any
    for block in model.blocks:
        x = x + block.attention[1](norm(x, block.attention[0]))
        hidden = linear(norm(x, block.mlp[0]), block.mlp[1])
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        x = x + linear(hidden, block.mlp[3])
    torch.testing.assert_close(model(images), linear(norm(x[:, 0], model.norm), model.head))


# -------------------------------------------------------------------------------- stochastic depth


def test_a_sample_is_kept_whole_or_left_out_whole() -> None:
    torch.manual_seed(0)
    rate, n = 0.3, 20_000
    x = torch.randn(n, 3, 2, dtype=torch.float64)
    module = parts.StochasticDepth(rate)
    found = module(x)
    kept = found[:, 0, 0] != 0
    torch.testing.assert_close(found[kept], x[kept] / (1 - rate))
    assert found[~kept].eq(0).all()
    # five standard errors of a share, so of the mean of what multiplies x
    error = 5 * math.sqrt(rate * (1 - rate) / n)
    assert float(kept.double().mean()) == pytest.approx(1 - rate, abs=error)
    assert module.eval()(x) is x
    assert parts.StochasticDepth(0.0).train()(x) is x


def test_the_rate_grows_linearly_and_each_branch_draws_its_own() -> None:
    model = tiny(depth=4, rate=0.3)
    rates = [m.rate for m in model.modules() if isinstance(m, parts.StochasticDepth)]
    assert rates == pytest.approx([0, 0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3])
    assert "rate=0.1" in repr(model)
    assert [m.rate for m in tiny(depth=1, rate=0.3).modules()
            if isinstance(m, parts.StochasticDepth)] == [0, 0]  # fmt: skip
    drawn: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, parts.StochasticDepth) and module.rate == 0.3:
            module.register_forward_hook(lambda m, i, out: drawn.append(out[:, 0, 0] != 0))
    model.train()(torch.randn(200, 2, 12, 12))
    assert not torch.equal(*drawn)


def test_the_rate_is_for_training_only() -> None:
    images = torch.randn(3, 2, 12, 12)
    plain, deep = tiny(), tiny(rate=0.9)
    assert torch.equal(plain.eval()(images), deep.eval()(images))
    assert not torch.equal(plain.train()(images), deep.train()(images))


# ---------------------------------------------------------------------------------------- the model


def test_starts_as_said() -> None:
    torch.manual_seed(0)
    model = vit_micro()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            deviation = math.sqrt(2 / sum(module.weight.shape))
            error = 5 / math.sqrt(2 * module.weight.numel())
            assert float(module.weight.detach().std()) == pytest.approx(deviation, rel=error), name
            assert module.bias is None or module.bias.eq(0).all()
    assert float(model.positions.detach().std()) == pytest.approx(1, rel=5 / math.sqrt(2 * 17 * 32))


def test_outputs_depend_on_their_image_alone_and_a_state_dict_is_all_of_it() -> None:
    model = tiny(rate=0.5).eval()
    images = torch.randn(5, 2, 12, 12)
    outputs = model(images)
    assert outputs.shape == (5, 3)
    torch.testing.assert_close(model(images[3:4]), outputs[3:4])
    last = images.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model.to(memory_format=torch.channels_last)(last), outputs)  # type: ignore[call-overload]
    torch.manual_seed(9)
    other = tiny(rate=0.5)
    other.load_state_dict(model.state_dict())
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
    torch.testing.assert_close(other.eval()(images), outputs)


def test_every_parameter_gets_a_gradient() -> None:
    model = tiny()
    F.cross_entropy(model(torch.randn(6, 2, 12, 12)), torch.arange(6) % 3).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_many_at_once_are_each_alone() -> None:
    models = []
    for seed in range(3):
        torch.manual_seed(seed)
        models.append(ViT(1, 10, image=28, patch=7, width=32, depth=3, heads=4, rate=0).double())
    parameters, buffers = stack_module_state(models)  # type: ignore[arg-type]
    images = torch.randn(3, 6, 1, 28, 28, dtype=torch.float64)
    classes = torch.arange(18).reshape(3, 6) % 10

    def loss(p: Any, b: Any, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(models[0], (p, b), (x,)), y)

    gradients = vmap(grad(loss))(parameters, buffers, images, classes)
    for i, model in enumerate(models):
        F.cross_entropy(model(images[i]), classes[i]).backward()
        for name, p in model.named_parameters():
            torch.testing.assert_close(gradients[name][i], p.grad)


# ------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("shape", [(2, 12, 12), (1, 1, 12, 12), (1, 2, 12, 11), (1, 2, 16, 16)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^images must be \[b, 2, 12, 12\], got \["):
        tiny()(torch.zeros(shape))


@pytest.mark.parametrize("value", [0, -1, 2.0, True, None, "3"])
def test_wrong_sizes_are_refused(value: Any) -> None:
    for name in ("channels", "classes", "image", "patch", "width", "depth", "heads", "ratio"):
        with pytest.raises(ValueError, match=f"^{name} must be an integer >= 1, got {value!r}$"):
            tiny(**{name: value})


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"patch": 5}, "^image must be a multiple of patch >= 2, got image 12, patch 5$"),
        ({"patch": 1}, "^image must be a multiple of patch >= 2, got image 12, patch 1$"),
        ({"heads": 4}, "^width must be a multiple of heads, got width 6, heads 4$"),
        ({"rate": 1.0}, "^rate must be a number >= 0 and below 1, got 1.0$"),
        ({"rate": -0.1}, "^rate must be a number >= 0 and below 1, got -0.1$"),
        ({"rate": math.nan}, "^rate must be a number >= 0 and below 1, got nan$"),
        ({"rate": True}, "^rate must be a number >= 0 and below 1, got True$"),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_are_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        tiny(**changes)
