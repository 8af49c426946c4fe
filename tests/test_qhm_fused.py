"""QHM through torch's fused SGD kernel: what that kernel gets wrong, and what QHM must not."""

import copy
import pickle
import random

import pytest
import torch
from torch import nn

from batchramp.optim import QHM, qhm

pytestmark = pytest.mark.usefixtures("one_thread")


def values_of(rng):
    return {
        "lr": rng.uniform(0.01, 0.2),
        "beta": rng.choice([rng.uniform(0.1, 0.99), 0.0]) if rng.random() < 0.2 else 0.9,
        "gamma": rng.choice([rng.uniform(0.1, 0.99), 0.0, 1.0]) if rng.random() < 0.5 else 0.7,
    }


def some_params(dtype=torch.float32):
    torch.manual_seed(0)
    return [
        nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in ((4, 3), (), (33,), (2, 3, 2, 2))
    ]


def steps(optimizer, params, first, last, absent=0.2):
    """Steps first..last-1 of one fixed sequence of gradients and values."""
    for k in range(first, last):
        rng = random.Random(k)
        generator = torch.Generator().manual_seed(k)
        for group in optimizer.param_groups:
            group.update(values_of(rng))
        for p in params:
            g = torch.randn(p.shape, dtype=p.dtype, generator=generator)
            p.grad = None if rng.random() < absent else g
        optimizer.step()


def assert_equal(some, others):
    for a, b in zip(some, others, strict=True):
        assert torch.equal(a, b)


def assert_close(some, others):
    for a, b in zip(some, others, strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=1e-5, atol=1e-5)


@pytest.fixture
def kernel_calls(monkeypatch):
    calls = []
    kernel = torch._fused_sgd_

    def spy(params, *args, **kwargs):
        calls.append(len(params))
        return kernel(params, *args, **kwargs)

    monkeypatch.setattr(torch, "_fused_sgd_", spy)
    return calls


def test_one_kernel_call_and_no_sweep_however_beta_and_gamma_change(kernel_calls, monkeypatch):
    params = some_params()
    optimizer = QHM(params, lr=0.1)
    for name in ("_foreach_mul_", "_foreach_lerp_"):
        monkeypatch.setattr(torch, name, lambda *_: pytest.fail("swept the buffers"))
    rng = random.Random(0)
    for _ in range(30):
        optimizer.param_groups[0].update(beta=rng.uniform(0.01, 0.99), gamma=rng.uniform(0.01, 1))
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
    assert kernel_calls[-30:] == [4] * 30
    scales = {optimizer.state[p]["scale"] for p in params}
    assert len(scales) == 1
    assert isinstance(scales.pop(), float)


def test_constant_values_use_their_own_scale_from_the_first_step():
    params = some_params()
    optimizer = QHM(params, lr=0.1, beta=0.9, gamma=0.7)
    for _ in range(3):
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
        assert optimizer.state[params[0]]["scale"] == pytest.approx(0.9 * 0.3 / 0.7, rel=1e-15)


def test_a_parameter_without_gradient_keeps_its_scale_and_its_d():
    x, y = params = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = QHM(params, lr=0.1, fused=True)
    for p in params:
        p.grad = torch.ones(3)
    optimizer.step()
    scale, buffer = optimizer.state[y]["scale"], optimizer.state[y]["momentum_buffer"].clone()
    y.grad = None
    optimizer.param_groups[0]["gamma"] = 0.2
    optimizer.step()
    assert optimizer.state[y]["scale"] == scale != optimizer.state[x]["scale"]
    assert torch.equal(optimizer.state[y]["momentum_buffer"], buffer)


# The kernel's hazards


def kernel_step(x, grad, buffer):
    torch._fused_sgd_(
        [x],
        [grad],
        [buffer],
        weight_decay=0.0,
        momentum=0.9,
        lr=0.1,
        dampening=0.0,
        nesterov=False,
        maximize=False,
        is_first_step=False,
    )


@pytest.mark.parametrize("swapped", [False, True])
def test_the_kernel_is_wrong_on_mixed_strides_and_qhm_is_not(swapped):
    torch.manual_seed(0)
    start, grad = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
    if swapped:
        grad = grad.contiguous(memory_format=torch.channels_last)
    else:
        start = start.contiguous(memory_format=torch.channels_last)

    raw = start.clone()
    kernel_step(raw, grad, torch.zeros_like(raw))
    wrong = (raw - (start - 0.1 * grad)).abs().max()
    assert wrong > 0.1, "torch has mended its kernel: QHM need not look at strides any more"

    x = nn.Parameter(start.clone())
    optimizer = QHM([x], lr=0.1, beta=0.5, gamma=1, fused=True)
    x.grad = grad
    expected, d = start, torch.zeros_like(grad)
    for _ in range(3):
        optimizer.step()
        d = 0.5 * d + 0.5 * grad
        expected = expected - 0.1 * d
        torch.testing.assert_close(x.detach(), expected)
    assert x.grad is grad


def test_strides_that_change_between_steps_are_noticed():
    plain, last = torch.contiguous_format, torch.channels_last
    layouts = [(plain, plain), (plain, last), (last, plain), (last, last)]
    every_change = [layout for a in layouts for b in layouts for layout in (a, b)]

    torch.manual_seed(0)
    models = [nn.Conv2d(3, 4, 3) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [
        QHM(m.parameters(), lr=0.01, **o)
        for m, o in zip(models, ({"fused": True}, {"foreach": False}), strict=True)
    ]
    for of_parameter, of_gradient in every_change:
        grads = [torch.randn_like(p) for p in models[0].parameters()]
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            model.to(memory_format=of_parameter)  # the parameters, not their buffers
            for p, g in zip(model.parameters(), grads, strict=True):
                p.grad = g.contiguous(memory_format=of_gradient if p.dim() == 4 else plain)
            optimizer.step()
        assert_close(models[0].parameters(), models[1].parameters())


def test_a_state_of_other_strides_is_loaded_rightly():
    torch.manual_seed(0)
    plain = nn.Parameter(torch.randn(4, 3, 2, 2))
    last = nn.Parameter(plain.detach().contiguous(memory_format=torch.channels_last))
    source, target = QHM([plain], lr=0.1, fused=True), QHM([last], lr=0.1, fused=True)
    grads = torch.randn(3, 4, 3, 2, 2)
    plain.grad = grads[0]
    source.step()
    target.load_state_dict(copy.deepcopy(source.state_dict()))
    with torch.no_grad():
        last.copy_(plain)
    for grad in grads[1:]:
        plain.grad = grad
        last.grad = grad.contiguous(memory_format=torch.channels_last)
        source.step()
        target.step()
    assert target.state[last]["momentum_buffer"].stride() == last.stride()
    assert target.state[last]["scale"] != 1.0, "the kernel was not used"
    assert_close([plain], [last])


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 2e-12), (torch.float32, 2e-6)])
@pytest.mark.parametrize("beta", [0.99, 1 - 1e-4, 1 - 1e-7, 1 - 1e-10])
def test_d_keeps_its_digits_where_the_kernel_would_lose_them(beta, dtype, rtol):
    # x hardly shows it: a small gamma hides d, until gamma grows again.
    ds = []
    for options in ({"fused": True}, {"foreach": False}):
        params = some_params(dtype)
        optimizer = QHM(params, lr=0.1, beta=beta, gamma=0.01, **options)
        for k in range(5):
            torch.manual_seed(k)
            for p in params:
                p.grad = torch.rand_like(p) + 1
            optimizer.step()
        ds.append([s["momentum_buffer"] for s in optimizer.state_dict()["state"].values()])
    for a, b in zip(*ds, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=0)


# What cannot go through the kernel


def wrong_in_its_vectorised_part(params, *args, kernel=torch._fused_sgd_, **kwargs):
    """As the kernel is in half precision: right on few numbers and in float64."""
    kernel(params, *args, **kwargs)
    for p in params:
        if p.dtype is torch.float32 and p.numel() >= 16:
            p.view(-1)[:16] += 1


@pytest.mark.parametrize(
    "break_it",
    [
        lambda patch: patch.delattr(torch, "_fused_sgd_"),
        lambda patch: patch.setattr(torch, "_fused_sgd_", lambda a, b: None),
        lambda patch: patch.setattr(torch, "_fused_sgd_", lambda *args, **kwargs: None),
        lambda patch: patch.setattr(torch, "_fused_sgd_", wrong_in_its_vectorised_part),
    ],
    ids=["no kernel", "another signature", "other numbers", "other numbers in float32"],
)
def test_without_a_kernel_that_works_fused_falls_back(break_it, monkeypatch):
    expected = some_params()
    steps(QHM(expected, lr=0.1, foreach=True), expected, 0, 20)
    break_it(monkeypatch)
    qhm._kernel_works.cache_clear()
    try:
        params = some_params()
        optimizer = QHM(params, lr=0.1, fused=True)
        steps(optimizer, params, 0, 20)
        assert all(state["scale"] == 1.0 for state in optimizer.state.values())
    finally:
        qhm._kernel_works.cache_clear()
    assert_equal(params, expected)


def test_mixed_dtypes_each_go_their_way(kernel_calls):
    def make():
        torch.manual_seed(0)
        dtypes = (torch.float32, torch.float16, torch.float64, torch.bfloat16, torch.complex64)
        return [nn.Parameter(torch.randn(5, 4).to(dtype)) for dtype in dtypes * 2]

    results = []
    for options in ({"fused": True}, {"foreach": False}):
        params = make()
        optimizer = QHM(params, lr=0.1, **options)
        kernel_calls.clear()
        for k in range(6):
            torch.manual_seed(k)
            optimizer.param_groups[0]["gamma"] = 0.1 + 0.1 * k
            for p in params:
                p.grad = torch.randn(5, 4).to(p.dtype)
            optimizer.step()
        results.append((params, list(kernel_calls)))
    (fused, calls), (loop, none) = results
    assert calls[-12:] == [2, 2] * 6
    assert none == []
    for a, b in zip(fused, loop, strict=True):
        # lerp and the kernel round each step on their own: a few units in the last place.
        eps = torch.finfo(a.dtype).eps
        torch.testing.assert_close(a.detach(), b.detach(), rtol=20 * eps, atol=20 * eps)


class _OwnTensor(torch.Tensor):
    pass


def test_tensor_subclasses_are_left_to_the_loop(kernel_calls):
    x = torch.ones(3).as_subclass(_OwnTensor).requires_grad_()
    optimizer = QHM([x], lr=0.5, gamma=0.0)
    x.grad = torch.ones(3)
    kernel_calls.clear()
    optimizer.step()
    assert x.tolist() == [0.5] * 3
    assert len(kernel_calls) <= 1, "only the trial of the kernel"
    assert optimizer.state[x]["scale"] == 1.0


# d leaves, with scale 1


@pytest.mark.parametrize("absent", [0.0, 0.3])
def test_a_run_that_saves_and_a_run_resumed_from_it_are_equal_bit_for_bit(absent, tmp_path):
    saving = some_params()
    optimizer = QHM(saving, lr=0.1, fused=True, weight_decay=0.01)
    steps(optimizer, saving, 0, 100, absent)
    assert any(s["scale"] != 1.0 for s in optimizer.state.values()), "nothing to fold"
    torch.save(([p.detach() for p in saving], optimizer.state_dict()), tmp_path / "state")
    steps(optimizer, saving, 100, 200, absent)

    tensors, state = torch.load(tmp_path / "state", weights_only=True)
    resumed = [nn.Parameter(t) for t in tensors]
    fresh = QHM(resumed, lr=0.5, fused=True)
    fresh.load_state_dict(state)
    steps(fresh, resumed, 100, 200, absent)
    assert_equal(saving, resumed)
    assert_equal(
        [s["momentum_buffer"] for s in optimizer.state_dict()["state"].values()],
        [s["momentum_buffer"] for s in fresh.state_dict()["state"].values()],
    )


@pytest.mark.parametrize("leave", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_deepcopy_and_pickle_continue_bit_for_bit(leave):
    params = some_params()
    optimizer = QHM(params, lr=0.1)
    steps(optimizer, params, 0, 15)
    others, other = leave((params, optimizer))
    assert all(state["scale"] == 1.0 for state in other.state.values())
    steps(optimizer, params, 15, 40)
    steps(other, others, 15, 40)
    assert others[0] is not params[0]
    assert_equal(params, others)


def test_every_way_out_holds_d_itself():
    expected = some_params(torch.float64)
    loop = QHM(expected, lr=0.1, foreach=False)
    steps(loop, expected, 0, 15)
    d = [loop.state[p]["momentum_buffer"] for p in expected]

    def after_15_steps():
        params = some_params(torch.float64)
        optimizer = QHM(params, lr=0.1, fused=True)
        steps(optimizer, params, 0, 15)
        raw = [optimizer.state[p]["momentum_buffer"] for p in params]
        assert not any(torch.allclose(a, b, rtol=1e-3) for a, b in zip(raw, d, strict=True))
        return optimizer

    optimizer = after_15_steps()
    states = [optimizer.state_dict()["state"], copy.deepcopy(after_15_steps()).state]
    states.append(pickle.loads(pickle.dumps(after_15_steps())).state)
    for state in states:
        assert [set(s) for s in state.values()] == [{"momentum_buffer", "scale"}] * 4
        assert [s["scale"] for s in state.values()] == [1.0] * 4
    in_order = [[states[0][i]["momentum_buffer"] for i in range(4)]]
    for state in states[1:]:
        order = [s["momentum_buffer"] for s in state.values()]
        in_order.append(sorted(order, key=lambda t: [x.numel() for x in d].index(t.numel())))
    for buffers in in_order:
        for a, b in zip(buffers, d, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    live = [state["momentum_buffer"] for state in optimizer.state.values()]
    saved = [state["momentum_buffer"] for state in optimizer.state_dict()["state"].values()]
    assert {id(t) for t in live} == {id(t) for t in saved}, (
        "as in torch, saved state is the live one"
    )


def test_state_dict_hooks_see_d():
    x = nn.Parameter(torch.ones(3))
    optimizer = QHM([x], lr=0.1, fused=True)
    x.grad = torch.ones(3)
    optimizer.step()
    seen = []
    optimizer.register_state_dict_pre_hook(
        lambda o: seen.append(o.state[x]["momentum_buffer"].tolist())
    )
    optimizer.register_state_dict_post_hook(lambda _, state: {**state, "extra": 1})
    assert optimizer.state_dict()["extra"] == 1
    assert seen == [pytest.approx([0.1] * 3)]


@pytest.mark.parametrize("names", [("fused", "loop"), ("loop", "fused"), ("fused", "foreach")])
def test_a_state_can_be_loaded_by_another_implementation(names):
    kinds = {"fused": {"fused": True}, "loop": {"foreach": False}, "foreach": {"foreach": True}}
    first, second = (kinds[name] for name in names)
    expected = some_params()
    steps(QHM(expected, lr=0.1, foreach=False), expected, 0, 40)

    params = some_params()
    source = QHM(params, lr=0.1, **first)
    steps(source, params, 0, 20)
    target = QHM(params, lr=0.1, **second)
    choice = {k: v for k, v in target.param_groups[0].items() if k in ("foreach", "fused")}
    target.load_state_dict(source.state_dict())
    target.param_groups[0].update(choice)
    steps(target, params, 20, 40)
    assert_close(params, expected)


def test_a_state_loaded_in_mid_run_replaces_the_present_one():
    params, expected = some_params(), some_params()
    optimizers = [QHM(params, lr=0.1, fused=True), QHM(expected, lr=0.1, foreach=False)]
    for p, optimizer in zip((params, expected), optimizers, strict=True):
        steps(optimizer, p, 0, 5, absent=0)
        saved = copy.deepcopy(optimizer.state_dict())
        steps(optimizer, p, 5, 10, absent=0)
        optimizer.load_state_dict(saved)
        steps(optimizer, p, 10, 15, absent=0)
    assert_close(params, expected)


def test_the_implementation_may_change_in_mid_run():
    expected, params = some_params(), some_params()
    steps(QHM(expected, lr=0.1, foreach=False), expected, 0, 40)
    optimizer = QHM(params, lr=0.1)
    for k, choice in enumerate(
        ({"fused": True}, {"foreach": True}, {"fused": True}, {"foreach": False})
    ):
        optimizer.param_groups[0].update({"foreach": None, "fused": None} | choice)
        steps(optimizer, params, 10 * k, 10 * k + 10)
    assert_close(params, expected)


# What is kept between steps must not outlive its truth


def tampered(tamper):
    """Run fused and loop alike, tampering with the optimizer in between, and compare."""
    results = []
    for options in ({"fused": True}, {"foreach": False}):
        params = some_params()
        optimizer = QHM(params, lr=0.1, **options)
        steps(optimizer, params, 0, 10, absent=0)
        params = tamper(optimizer, params) or params
        steps(optimizer, params, 10, 20, absent=0)
        results.append(params)
    assert_close(*results)
    return results[0]


def test_a_state_reset_from_outside_is_noticed():
    untouched = tampered(lambda *_: None)
    after = [
        tampered(lambda o, _: o.state.clear()),
        tampered(lambda o, _: setattr(o, "state", type(o.state)(dict))),
        tampered(lambda o, p: o.state.update({q: {} for q in p})),
    ]
    for params in after:
        assert not torch.allclose(params[0], untouched[0])
        assert_close(params, after[0])


def test_a_buffer_replaced_from_outside_is_noticed():
    def replace(optimizer, params):
        for p in params:
            state = optimizer.state[p]
            state["momentum_buffer"] = torch.full_like(p, 3.0) / state.get("scale", 1.0)

    assert not torch.allclose(tampered(replace)[0], tampered(lambda *_: None)[0])


def test_parameters_appended_or_taken_from_a_group_are_noticed():
    def swap(optimizer, params):
        members = optimizer.param_groups[0]["params"]
        members.append(nn.Parameter(torch.ones(5)))
        members.reverse()
        members.pop()
        return [*params[1:], members[0]]

    swapped = tampered(swap)
    assert not torch.equal(swapped[-1], torch.ones(5))


def test_weight_decay_in_the_kernel_leaves_the_gradient_alone():
    x = nn.Parameter(torch.ones(1000))
    x.grad = torch.ones(1000)
    QHM([x], lr=0.1, weight_decay=0.5, maximize=True, fused=True).step()
    assert torch.equal(x.grad, torch.ones(1000))


# Tensors that change under way: the kernel would write past the end of the shorter ones


OPTIONS = {"loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {}}
every_implementation = pytest.mark.parametrize("options", OPTIONS.values(), ids=[*OPTIONS])


def stepped(p, count=3, **options):
    optimizer = QHM([p], lr=0.5, **options)
    for _ in range(count):
        p.grad = torch.ones_like(p)
        optimizer.step()
    return optimizer


@every_implementation
@pytest.mark.parametrize(("before", "after"), [((10,), (20000,)), ((1,), (3, 4)), ((4, 3), (3, 4))])
def test_a_state_of_another_shape_is_refused_at_load(options, before, after):
    saved = stepped(nn.Parameter(torch.ones(before)), **options).state_dict()
    p = nn.Parameter(torch.ones(after))
    optimizer = QHM([p], lr=0.25, **options)
    with pytest.raises(ValueError, match=r"^momentum_buffer has shape .*, its parameter") as error:
        optimizer.load_state_dict(saved)
    assert str(after) in str(error.value)
    assert "\n" not in str(error.value)
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert len(optimizer.state) == 0


@every_implementation
@pytest.mark.parametrize("what", ["data", "gradient", "buffer", "buffer's data"])
@pytest.mark.parametrize("shape", [(14,), (1,), (9,), (2, 5), (5, 2)])
def test_another_shape_in_mid_run_is_refused_before_anything_moves(options, what, shape):
    x, p = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(5, 2))
    optimizer = stepped(p, **options)
    optimizer.param_groups.insert(0, {**optimizer.param_groups[0], "params": [x]})
    x.grad = torch.ones(3)
    optimizer.step()
    if what == "data":
        p.data = torch.ones(shape)
        if shape != (5, 2):
            p.grad = torch.ones(shape)
    elif what == "gradient":
        p.grad.data = torch.ones(shape)
    elif what == "buffer":
        optimizer.state[p]["momentum_buffer"] = torch.ones(shape)
    else:
        optimizer.state[p]["momentum_buffer"].data = torch.ones(shape)
    before = x.detach().clone(), p.detach().clone()
    if shape == (5, 2):
        optimizer.step()
        return
    name = "gradient" if what == "gradient" else "momentum_buffer"
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"^{name} has shape .*, its parameter"):
            optimizer.step()
    assert_equal((x, p), before)


@every_implementation
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_model_converted_in_mid_run_goes_on(options, dtype):
    torch.manual_seed(0)
    model, expected = nn.Linear(20, 5), nn.Linear(20, 5).double()
    expected.load_state_dict(model.state_dict())
    optimizers = [
        QHM(m.parameters(), lr=0.5, **o)
        for m, o in ((model, options), (expected, {"foreach": False}))
    ]
    for k in range(9):
        if k in (3, 6):
            model.to(dtype if k == 3 else torch.float32)
        grads = [torch.randn_like(p) for p in model.parameters()]
        for m, optimizer in zip((model, expected), optimizers, strict=True):
            for p, g in zip(m.parameters(), grads, strict=True):
                p.grad = g.to(p.dtype)
            optimizer.step()
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        assert optimizers[0].state[p]["momentum_buffer"].dtype == p.dtype
        torch.testing.assert_close(p.double(), q, rtol=0, atol=20 * torch.finfo(dtype).eps + 1e-5)
    scales = {state["scale"] for state in optimizers[0].state.values()}
    assert (scales != {1.0}) == ("foreach" not in options), "the kernel takes over again"


@every_implementation
@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="torch has no grad_dtype")
def test_a_gradient_of_another_dtype_in_mid_run(options):
    x, y = nn.Parameter(torch.ones(40)), nn.Parameter(torch.ones(40))
    optimizers = [stepped(x, **options), stepped(y, foreach=False)]
    x.grad = None
    x.grad_dtype = torch.float64
    x.grad, y.grad = torch.ones(40, dtype=torch.float64), torch.ones(40)
    for optimizer in optimizers:
        optimizer.step()
    assert_close([x], [y])


def test_without_torch_compile_s_guards_changes_are_seen_as_well(monkeypatch):
    monkeypatch.delattr(torch._C._dynamo.guards, "TensorGuards")
    qhm._guards_work.cache_clear()
    try:
        params, expected = some_params(), some_params()
        steps(QHM(params, lr=0.1), params, 0, 20)
        steps(QHM(expected, lr=0.1, foreach=False), expected, 0, 20)
        assert_close(params, expected)
        p = nn.Parameter(torch.ones(10))
        optimizer = stepped(p)
        layout = optimizer._layouts[0]
        optimizer.step()
        assert optimizer._layouts[0] is layout
        p.data = p.grad = torch.ones(14)
        with pytest.raises(ValueError, match="has shape"):
            optimizer.step()
        embedding = nn.Parameter(torch.ones(10, 2))
        optimizer = stepped(embedding)
        embedding.grad = torch.ones(10, 2).to_sparse()
        with pytest.raises(RuntimeError, match="sparse"):
            optimizer.step()
    finally:
        qhm._guards_work.cache_clear()
    monkeypatch.undo()
    assert qhm._guards_work()
    qhm._guards_work.cache_clear()


def test_a_layout_is_made_once(monkeypatch):
    made = []
    make = QHM._make_layout
    monkeypatch.setattr(QHM, "_make_layout", lambda *args: made.append(1) or make(*args))
    params = some_params()
    optimizer = QHM([{"params": params[:2]}, {"params": params[2:]}], lr=0.1)
    for k in range(6):
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
        optimizer.param_groups[0]["beta"] = 0.1 * k
        optimizer.state_dict()
    assert len(made) == 2


def test_a_group_stepped_otherwise_in_between():
    results = []
    for fused in (True, False):
        params = some_params()
        optimizer = QHM(params, lr=0.1, fused=fused, foreach=False)
        steps(optimizer, params, 0, 3, absent=0)
        optimizer.param_groups[0]["fused"] = False
        params[0].grad = None
        optimizer.step()
        optimizer.param_groups[0]["fused"] = fused
        steps(optimizer, params, 4, 6, absent=0)
        results.append(params)
    assert_close(*results)


@every_implementation
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_step(options, backend):
    results = []
    for compiled in (True, False):
        torch._dynamo.reset()
        params = some_params()
        optimizer = QHM(params, lr=0.1, **options)
        steps(optimizer, params, 0, 3, absent=0)
        take_step = torch.compile(optimizer.step, backend=backend) if compiled else optimizer.step
        for k in range(4):
            optimizer.param_groups[0]["beta"] = 0.5 + 0.1 * k
            for p in params:
                p.grad = torch.full_like(p, k - 1.0)
            take_step()
        steps(optimizer, params, 3, 6, absent=0)
        results.append(params)
    assert_close(*results)
