"""QHM as a citizen of torch.optim: groups, hooks, closures, scaling, checkpoints, refusals."""

import copy
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from batchramp import optim
from batchramp.optim import QHM

OPTIONS = {"loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
every_implementation = pytest.mark.parametrize("options", OPTIONS.values(), ids=[*OPTIONS])


def parameter(*values):
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def after_one_step(lr, beta, gamma, grad=1.0, start=1.0):
    d = (1 - beta) * grad
    return start - lr * ((1 - gamma) * grad + gamma * d)


# Refusals


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("lr", -0.1, r"lr must be in \[0, inf\), got -0.1"),
        ("lr", float("nan"), r"lr must be in \[0, inf\), got nan"),
        ("lr", float("inf"), r"lr must be in \[0, inf\), got inf"),
        ("lr", "0.1", r"lr must be in \[0, inf\), got '0.1'"),
        ("lr", None, r"lr must be in \[0, inf\), got None"),
        ("beta", 1.0, r"beta must be in \[0, 1\), got 1.0"),
        ("beta", -1e-9, r"beta must be in \[0, 1\), got -1e-09"),
        ("beta", float("nan"), r"beta must be in \[0, 1\), got nan"),
        ("gamma", 1.0001, r"gamma must be in \[0, 1\], got 1.0001"),
        ("gamma", float("nan"), r"gamma must be in \[0, 1\], got nan"),
        ("gamma", torch.tensor(2.0), r"gamma must be in \[0, 1\], got 2.0"),
        ("lr", torch.ones(2), r"lr must have one element, got shape \(2,\)"),
        ("weight_decay", -1, r"weight_decay must be in \[0, inf\), got -1"),
        ("weight_decay", torch.tensor(0.1), "weight_decay must be a number"),
    ],
)
def test_values_are_refused_in_the_constructor_and_in_groups(field, value, message):
    x, y = parameter(1.0), parameter(1.0)
    with pytest.raises(ValueError, match=message) as error:
        QHM([x], **{"lr": 0.1, field: value})
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=message):
        QHM([{"params": [x], field: value}], lr=0.1)
    optimizer = QHM([x], lr=0.1)
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [y], field: value})
    assert len(optimizer.param_groups) == 1


@every_implementation
@pytest.mark.parametrize(
    ("field", "value"),
    [("lr", -1.0), ("beta", 1.0), ("gamma", 1.5), ("gamma", float("nan")), ("weight_decay", -1.0)],
)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_what_a_scheduler_wrote_is_refused_before_anything_moves(options, field, value, as_tensor):
    x, y = parameter(1.0), parameter(1.0)
    optimizer = QHM([{"params": [x]}, {"params": [y]}], lr=0.1, **options)
    x.grad, y.grad = torch.ones_like(x), torch.ones_like(y)
    optimizer.param_groups[1][field] = torch.tensor(value) if as_tensor else value
    with pytest.raises(ValueError, match=f"{field} must be in"):
        optimizer.step()
    assert x.item() == 1.0


@pytest.mark.parametrize(("field", "value"), [("lr", None), ("gamma", "0.7")])
def test_what_is_no_number_is_refused_at_the_step(field, value):
    optimizer = QHM([parameter(1.0)], lr=0.1)
    optimizer.param_groups[0][field] = value
    with pytest.raises(ValueError, match=f"^{field} must be in .*, got {value!r}"):
        optimizer.step()


@pytest.mark.parametrize(
    "choice",
    [
        {"foreach": True, "fused": True},
        {"fused": True, "capturable": True},
        {"fused": True, "differentiable": True},
        {"foreach": True, "differentiable": True},
    ],
)
def test_options_that_exclude_each_other(choice):
    with pytest.raises(ValueError, match="must not"):
        QHM([parameter(1.0)], lr=0.1, **choice)
    with pytest.raises(ValueError, match="must not"):
        QHM([{"params": [parameter(1.0)], **choice}], lr=0.1)


def test_bounds_that_are_allowed():
    for values in ({"lr": 0}, {"beta": 0}, {"gamma": 0}, {"gamma": 1}, {"beta": 1 - 1e-16}):
        x = parameter(1.0)
        optimizer = QHM([x], **{"lr": 0.1, **values})
        x.grad = torch.ones_like(x)
        optimizer.step()
        group = optimizer.param_groups[0]
        assert x.item() == pytest.approx(
            after_one_step(group["lr"], group["beta"], group["gamma"]), rel=1e-15
        )


def test_numpy_numbers_are_taken_at_full_precision():
    x, y = parameter(1.0), parameter(1.0)
    for p, kind in ((x, np.float32), (y, lambda value: float(np.float32(value)))):
        p.grad = torch.ones_like(p)
        QHM([p], lr=kind(0.1), beta=kind(0.9), gamma=kind(0.7)).step()
    assert x.item() == y.item()


def test_numbers_of_other_kinds_become_floats(tmp_path):
    groups = [
        {"params": [parameter(1.0)]},
        {"params": [parameter(1.0)], "lr": np.float64(0.3), "weight_decay": Fraction(1, 2)},
    ]
    optimizer = QHM(groups, lr=np.float64(0.1), beta=np.float32(0.5), gamma=1)
    for group in optimizer.param_groups:
        assert {type(group[name]) for name in ("lr", "beta", "gamma", "weight_decay")} == {float}
    torch.save(optimizer.state_dict(), tmp_path / "state")
    optimizer.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.3]


@every_implementation
@pytest.mark.filterwarnings("ignore:Sparse")
def test_a_sparse_gradient_is_refused_before_any_group_moves(options):
    x, y = parameter(1.0, 2.0), parameter(1.0, 2.0)
    optimizer = QHM([{"params": [x]}, {"params": [y]}], lr=0.1, **options)
    x.grad, y.grad = torch.ones_like(x), torch.ones_like(y).to_sparse()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()
    assert x.tolist() == [1.0, 2.0]


@every_implementation
@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_gradients_are_refused(options):
    embedding = nn.Embedding(5, 2, sparse=True)
    optimizer = QHM(embedding.parameters(), lr=0.1, **options)
    embedding.weight.grad = torch.ones(5, 2)
    optimizer.step()  # so that the fused one has a layout
    before = embedding.weight.detach().clone()
    optimizer.zero_grad()
    embedding(torch.tensor([1, 2])).sum().backward()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="does not support sparse gradients") as error:
            optimizer.step()
    assert "\n" not in str(error.value)
    assert torch.equal(embedding.weight, before)


@every_implementation
@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_gradients_of_a_transposed_parameter_are_refused(options):
    x = nn.Parameter(torch.ones(3, 5).mT)
    optimizer = QHM([x], lr=0.1, **options)
    x.grad = torch.ones(3, 5).mT
    optimizer.step()
    x.grad = x.grad.to_sparse()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()


def test_a_capture_without_capturable_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True, raising=False)
    with pytest.raises(RuntimeError, match="capturable=True"):
        optim.qhm._refuse_capture()


# Groups, closures, hooks, schedulers


@every_implementation
def test_groups_step_with_their_own_values(options):
    params = [parameter(1.0) for _ in range(4)]
    groups = [
        {"params": params[0]},
        {"params": [params[1]], "lr": 0.5, "gamma": 0.1},
        {"params": [params[2]], "beta": 0.3, "maximize": True},
    ]
    optimizer = QHM(groups, lr=0.1, beta=0.9, gamma=0.7, **options)
    optimizer.add_param_group({"params": [params[3]], "weight_decay": 2.0})
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    expected = [
        after_one_step(0.1, 0.9, 0.7),
        after_one_step(0.5, 0.9, 0.1),
        after_one_step(0.1, 0.3, 0.7, grad=-1.0),
        after_one_step(0.1, 0.9, 0.7, grad=3.0),
    ]
    assert [p.item() for p in params] == pytest.approx(expected, rel=1e-14)


def test_a_group_added_in_mid_run_starts_its_own_d():
    x, y = parameter(1.0), parameter(1.0)
    optimizer = QHM([x], lr=0.1, gamma=1.0)
    x.grad, y.grad = torch.ones_like(x), torch.ones_like(y)
    optimizer.step()
    optimizer.add_param_group({"params": [y]})
    optimizer.step()
    assert y.item() == pytest.approx(after_one_step(0.1, 0.9, 1.0), rel=1e-14)
    assert x.item() == pytest.approx(1 - 0.1 * (0.1 + 0.19), rel=1e-14)


def test_named_parameters_and_the_keys_of_a_group():
    layer = nn.Linear(2, 1)
    group = QHM(layer.named_parameters(), lr=0.1).param_groups[0]
    fields = {"lr", "beta", "gamma", "weight_decay", "decoupled_weight_decay", "maximize"}
    assert fields | {"foreach", "fused", "capturable", "differentiable"} <= set(group)
    assert group["params"] == list(layer.parameters())


@every_implementation
def test_closure_is_called_once_with_gradients_on(options):
    x = parameter(3.0)
    optimizer = QHM([x], lr=0.1, gamma=0.0, **options)
    calls = []

    def closure():
        optimizer.zero_grad()
        loss = x.square().sum()
        loss.backward()
        calls.append(loss)
        return loss

    with torch.no_grad():
        assert optimizer.step(closure) is calls[0]
    assert len(calls) == 1
    assert x.item() == pytest.approx(3 - 0.1 * 6)
    assert optimizer.step() is None


@every_implementation
def test_step_hooks_run_around_the_step(options):
    x = parameter(1.0)
    x.grad = torch.ones_like(x)
    optimizer = QHM([x], lr=0.5, gamma=0.0, **options)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(x.item()))
    optimizer.register_step_post_hook(lambda *_: seen.append(x.item()))
    optimizer.step()
    assert seen == [1.0, 0.5]


def test_load_state_dict_hooks_run():
    x = parameter(1.0)
    optimizer = QHM([x], lr=0.5)
    optimizer.register_load_state_dict_pre_hook(
        lambda _, state: {**state, "param_groups": [{**state["param_groups"][0], "lr": 0.25}]}
    )
    seen = []
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append(o.param_groups[0]["lr"]))
    optimizer.load_state_dict(QHM([parameter(1.0)], lr=0.5).state_dict())
    assert seen == [0.25]


def test_torch_lr_scheduler_drives_a_tensor_lr_in_place():
    lr = torch.tensor(0.4, dtype=torch.float64)
    x = parameter(1.0)
    optimizer = QHM([x], lr=lr, gamma=0.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    for _ in range(2):
        x.grad = torch.ones_like(x)
        optimizer.step()
        scheduler.step()
    assert x.item() == pytest.approx(1 - 0.4 - 0.2)
    assert optimizer.param_groups[0]["lr"] is lr


@every_implementation
def test_nothing_to_do_is_no_error(options):
    optimizer = QHM([parameter(1.0)], lr=0.1, **options)
    optimizer.step()
    assert len(optimizer.state) == 0


# Mixed precision


@every_implementation
@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="torch has no grad_dtype")
def test_gradients_of_another_dtype_than_their_parameter(options):
    x, y = (nn.Parameter(torch.ones(40)) for _ in range(2))
    optimizer = QHM([x, y], lr=0.1, beta=0.5, gamma=1.0, **options)
    x.grad_dtype = torch.float64
    x.grad, y.grad = torch.full((40,), 2.0, dtype=torch.float64), torch.full((40,), 2.0)
    optimizer.step()
    assert x.grad.dtype == torch.float64
    torch.testing.assert_close(x.detach(), torch.full((40,), 0.9))
    torch.testing.assert_close(x, y)


@every_implementation
def test_grad_scaler_skips_a_step_with_an_infinite_gradient_wholly(options):
    torch.manual_seed(0)
    x, y = (nn.Parameter(torch.ones(40)) for _ in range(2))
    optimizer = QHM([x, y], lr=0.1, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

    def step(poison):
        optimizer.param_groups[0]["gamma"] = 0.2 + 0.1 * optimizer.param_groups[0]["gamma"]
        optimizer.zero_grad()
        scaler.scale((x * y).square().sum()).backward()
        if poison:
            y.grad[3] = float("inf")
        scaler.step(optimizer)
        scaler.update()

    step(poison=False)
    held = copy.deepcopy([(x.detach(), y.detach()), [dict(s) for s in optimizer.state.values()]])
    step(poison=True)
    now = [(x.detach(), y.detach()), [dict(s) for s in optimizer.state.values()]]
    torch.testing.assert_close(now, held, rtol=0, atol=0)
    assert scaler.get_scale() == 4.0
    step(poison=False)
    assert not torch.equal(x, held[0][0])


@every_implementation
def test_grad_scaler_takes_the_same_steps_as_without_it(options):
    ends = []
    for scale in (None, 1024.0):
        x = nn.Parameter(torch.linspace(-1, 1, 40))
        optimizer = QHM([x], lr=0.1, **options)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        for _ in range(5):
            optimizer.zero_grad()
            scaler.scale(x.square().sum()).backward()
            scaler.step(optimizer)
            scaler.update()
        ends.append(x.detach())
    assert torch.equal(*ends)


# Checkpoints


@every_implementation
def test_state_dict_round_trip(options):
    x, y = parameter(1.0, 2.0), parameter(1.0, 2.0)
    first = QHM([x], lr=0.1, **options)
    for k in range(3):
        first.param_groups[0]["beta"] = 0.5 + 0.1 * k
        x.grad = torch.ones_like(x) * k
        first.step()
    saved = copy.deepcopy(first.state_dict())
    assert list(saved["state"]) == [0]
    assert list(saved["state"][0]) == ["momentum_buffer", "scale"]
    assert saved["state"][0]["scale"] == 1.0
    with torch.no_grad():
        y.copy_(x)
    second = QHM([y], lr=0.9, gamma=0.1, **options)
    second.load_state_dict(saved)
    assert second.param_groups[0]["lr"] == 0.1
    assert second.param_groups[0]["beta"] == 0.7
    for p, optimizer in ((x, first), (y, second)):
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert torch.equal(x, y)


def train(model, optimizer, first, last):
    for k in range(first, last):
        optimizer.param_groups[0]["gamma"] = 0.3 + 0.1 * k
        torch.manual_seed(k)
        optimizer.zero_grad()
        model(torch.randn(4, 3)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
@pytest.mark.parametrize("steps_before_load", [0, 2])
@pytest.mark.parametrize(
    ("source", "target"),
    [
        pair.split("-")
        for pair in ["loop-loop", "foreach-foreach", "fused-fused", "loop-fused", "fused-loop"]
    ],
)
def test_distributed_checkpoint_state(source, target, steps_before_load, flat):
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    choice = StateDictOptions(flatten_optimizer_state_dict=flat)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    optimizer = QHM(model.parameters(), lr=0.1, **OPTIONS[source])
    train(model, optimizer, 0, 3)
    state = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=choice))
    names = {name for name, _ in model.named_parameters()}
    if flat:
        assert {f"state.{n}.{k}" for n in names for k in ("momentum_buffer", "scale")} <= set(state)
    else:
        assert set(state["state"]) == names
        assert all(s["scale"] == 1.0 for s in state["state"].values())

    twin = copy.deepcopy(model)
    other = QHM(twin.parameters(), lr=0.5, **OPTIONS[target])
    start = copy.deepcopy(twin.state_dict())
    train(twin, other, 0, steps_before_load)
    twin.load_state_dict(start)
    own = {k: other.param_groups[0][k] for k in ("foreach", "fused")}
    set_optimizer_state_dict(twin, other, state, options=choice)
    other.param_groups[0].update(own)
    train(model, optimizer, 3, 6)
    train(twin, other, 3, 6)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        if source == target:
            assert torch.equal(a, b)
        else:
            torch.testing.assert_close(a, b)


@every_implementation
def test_a_state_without_scale_or_later_options_is_loaded(options):
    x, y = parameter(1.0, 2.0), parameter(1.0, 2.0)
    first, second = QHM([x], lr=0.1, **options), QHM([y], lr=0.1, **options)
    x.grad = y.grad = torch.ones_like(x)
    first.step()
    saved = copy.deepcopy(first.state_dict())
    del saved["state"][0]["scale"]
    for name in set(saved["param_groups"][0]) - {"lr", "beta", "gamma", "params"}:
        del saved["param_groups"][0][name]
    second.load_state_dict(saved)
    assert second.state[y]["scale"] == 1.0
    with torch.no_grad():
        y.copy_(x)
    first.step()
    second.step()
    torch.testing.assert_close(x, y)


def test_states_of_other_optimizers_and_values_out_of_range_are_refused_at_load():
    x = parameter(1.0)
    x.grad = torch.ones_like(x)
    sgd, optimizer = torch.optim.SGD([x], lr=0.1, momentum=0.9), QHM([x], lr=0.2)
    sgd.step()
    with pytest.raises(ValueError, match="has no beta") as error:
        optimizer.load_state_dict(sgd.state_dict())
    assert "\n" not in str(error.value)
    for field, value in (("lr", -1.0), ("beta", 1.0), ("gamma", None), ("weight_decay", -1.0)):
        saved = optimizer.state_dict()
        saved["param_groups"][0][field] = value
        with pytest.raises(ValueError, match=f"^{field} must be in"):
            optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.2
    assert len(optimizer.state) == 0


@pytest.fixture
def mesh():
    pytest.importorskip("torch.distributed.tensor")
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:DTensor random operators")  # torch's own, before 2.9
@every_implementation
def test_dtensors(options, mesh):
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    plain = nn.Parameter(torch.arange(6.0).view(2, 3))
    sharded = nn.Parameter(distribute_tensor(plain.detach().clone(), mesh, [Shard(0)]))
    optimizers = [
        QHM([p], lr=0.1, weight_decay=0.1, **o)
        for p, o in ((plain, {"foreach": False}), (sharded, options))
    ]
    for k in range(4):
        plain.grad = torch.full((2, 3), float(k))
        sharded.grad = distribute_tensor(plain.grad.clone(), mesh, [Shard(0)])
        for optimizer in optimizers:
            optimizer.param_groups[0]["gamma"] = 0.2 * k
            optimizer.step()
    assert isinstance(optimizers[1].state[sharded]["momentum_buffer"], DTensor)
    torch.testing.assert_close(sharded.detach().to_local(), plain.detach())
