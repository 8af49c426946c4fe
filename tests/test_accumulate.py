"""Micro-batches against the whole batch in float64; what running out of memory may change."""

import copy
import json
import random
import traceback
import warnings
from collections import UserDict, namedtuple
from datetime import timedelta

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from batchramp import Plan
from batchramp import schedules as s
from batchramp.batching.accumulate import accumulate, split_batch
from batchramp.batching.ranks import share, weight

N, TOKENS, CLASSES = 13, 3, 4


class OutInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise torch.OutOfMemoryError("no room for the gradient")


class Room(nn.Module):
    """Lets at most ``limit`` samples through; more run out of memory where ``where`` says."""

    def __init__(self, limit=10**9, where="forward"):
        super().__init__()
        self.limit, self.where, self.seen = limit, where, []

    def forward(self, x):
        self.seen.append(len(x))
        if len(x) <= self.limit:
            return x
        if self.where == "backward":
            return OutInBackward.apply(x)
        if self.where == "allocator":
            torch.empty(1 << 50, dtype=torch.uint8)  # of the allocator's own words
        if self.where == "numpy":
            np.empty(1 << 60, dtype=np.uint8)
        if self.where == "mps":
            raise RuntimeError("MPS backend out of memory (MPS allocated: 17.00 GB)")
        if self.where == "bug":
            raise RuntimeError("no such image")
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def network(*layers, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), *layers, nn.Tanh(), nn.Linear(8, CLASSES)).double()


def data(n=N, seed=0):
    """Sequences of tokens, of which some, and all of some samples, have no target."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, TOKENS, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(CLASSES, (n, TOKENS), generator=generator)
    y[torch.rand(n, TOKENS, generator=generator) < 0.4] = -100
    y[1::4] = -100
    y[0, 0] = 1
    return x, y


def images(n=N, seed=0):
    x, y = data(n, seed)
    return x[:, 0].contiguous(), y[:, 0].clamp(min=0)


def token_loss(reduction):
    return lambda model, x, y: F.cross_entropy(model(x).flatten(0, 1), y.flatten(), **reduction)


def count_tokens(x, y):
    return (y != -100).sum()


# What a loss does -> how it is called over a whole batch, and what accumulate is told.
LOSSES = {
    "mean": (lambda model, x, y: model(x).square().mean(), "mean"),
    "sum": (token_loss({"reduction": "sum"}), "sum"),
    "tokens": (token_loss({}), count_tokens),
    "masked": (
        lambda model, x, y: (model(x)[..., 0] * (y >= 0)).sum() / (y >= 0).sum(),
        count_tokens,
    ),
}


def gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def whole(model, loss, batch):
    """The gradient and the loss of the whole batch, on a copy."""
    model = copy.deepcopy(model)
    value = loss(model, *batch)
    value.backward()
    return gradient(model), value.item()


def agrees(found, expected, rel=1e-12):
    return (found - expected).norm() <= rel * expected.norm()


def cross_entropy(model):
    return lambda x, y: F.cross_entropy(model(x), y)


# Cutting


def test_micro_batches_have_the_size_and_the_last_what_is_left():
    batch = torch.arange(10)
    assert [len(part) for part in split_batch(batch, 4)] == [4, 4, 2]
    assert [len(part) for part in split_batch(batch, 5)] == [5, 5]
    assert [len(part) for part in split_batch(batch, 99)] == [10]
    assert split_batch(batch, 4)[1].untyped_storage().data_ptr() == batch.data_ptr()


def test_a_batch_is_cut_as_it_is_nested():
    Pair = namedtuple("Pair", "a b")
    ids = UserDict({"ids": torch.arange(3), "more": [torch.arange(6).view(3, 2)]})
    batch = [ids, Pair(torch.zeros(3), ("x", "y", "z")), {"s": torch.ones(3, 1)}]
    first, second = split_batch(batch, 2)
    assert [type(part) for part in (first, *first)] == [list, UserDict, Pair, dict]
    assert first[0]["more"][0].tolist() == [[0, 1], [2, 3]]
    assert (first[1].b, second[1].b) == (("x", "y"), ("z",))
    assert second[0]["ids"].tolist() == [2]
    assert second[2]["s"].shape == (1, 1)
    assert len(batch[0]["ids"]) == 3


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((torch.zeros(3), torch.zeros(4)), r"one length >= 1, got 3 samples and 4 in batch\[1\]"),
        (torch.zeros(0, 2), "got 0 samples"),
        ({"x": torch.zeros(3), "n": 3}, r"got int in batch\['n'\]"),
        ([torch.zeros(3), torch.tensor(1.0)], r"a tensor of no dimension in batch\[1\]"),
        ([], "must hold a tensor, got none"),
    ],
)
def test_a_batch_that_cannot_be_cut_is_refused(batch, message):
    with pytest.raises(ValueError, match=message):
        split_batch(batch, 2)


# The gradient


@given(
    n=st.integers(1, 17),
    cap=st.integers(1, 20),
    kind=st.sampled_from(sorted(LOSSES)),
    factor=st.sampled_from([1.0, 0.75]),
    normalised=st.booleans(),
    before=st.booleans(),
    seed=st.integers(0, 5),
)
def test_the_gradient_is_the_whole_batchs(n, cap, kind, factor, normalised, before, seed):
    model = network(*[nn.BatchNorm1d(TOKENS)] * normalised, seed=seed).eval()
    loss, reduction = LOSSES[kind]
    batch = data(n, seed)
    expected, value = whole(model, loss, batch)
    expected = factor * expected
    if before:
        for p in model.parameters():
            p.grad = torch.full_like(p, 0.5)
        expected = expected + 0.5
    held = [p.grad for p in model.parameters()]
    done = accumulate(
        lambda x, y: loss(model, x, y),
        batch,
        model=model,
        max_micro_batch=cap,
        reduction=reduction,
        weight=factor,
    )
    assert agrees(gradient(model), expected)
    assert done.loss.item() == pytest.approx(value, rel=1e-12)
    assert (done.micro_batch, done.micro_batches) == (cap, -(-n // cap))
    if before:
        assert all(p.grad is g for p, g in zip(model.parameters(), held, strict=True))


def test_a_mean_of_means_would_be_seen():
    model, batch = network(), images()
    expected, _ = whole(model, lambda model, x, y: F.cross_entropy(model(x), y), batch)
    for x, y in split_batch(batch, 4):
        (F.cross_entropy(model(x), y) / 4).backward()
    assert not agrees(gradient(model), expected, rel=1e-3)


def test_a_total_divides_instead_of_the_batchs_own_count():
    model, (loss, count), batch = network(), LOSSES["tokens"], data(20)
    expected, _ = whole(model, loss, batch)
    total = float(count(*batch))
    for part in split_batch(batch, 7):  # batches of a loader that make one step together
        accumulate(
            lambda x, y: loss(model, x, y),
            part,
            model=model,
            max_micro_batch=3,
            reduction=count,
            total=total,
        )
    assert agrees(gradient(model), expected)


def test_a_dict_comes_as_one_argument():
    model, (x, y) = network(), images()
    expected, _ = whole(model, lambda model, x, y: F.cross_entropy(model(x), y), (x, y))
    accumulate(
        lambda batch: F.cross_entropy(model(batch["x"]), batch["y"]),
        {"x": x, "y": y},
        model=model,
        max_micro_batch=5,
    )
    assert agrees(gradient(model), expected)


def test_the_backward_of_a_loss_scaler_is_called():
    model, batch = network(), images()
    expected, value = whole(model, lambda model, x, y: F.cross_entropy(model(x), y), batch)
    done = accumulate(
        cross_entropy(model),
        batch,
        model=model,
        max_micro_batch=5,
        backward=lambda loss: (loss * 1024).backward(),
    )
    assert agrees(gradient(model), 1024 * expected)
    assert done.loss.item() == pytest.approx(value, rel=1e-12)


# Memory


@pytest.mark.parametrize("where", ["forward", "backward", "allocator", "numpy", "mps"])
@pytest.mark.parametrize("held", [False, True])
def test_a_batch_that_does_not_fit_is_repeated_with_half(where, held):
    room = Room(3, where)
    model, batch = network(room), images()
    expected, value = whole(network(), lambda model, x, y: F.cross_entropy(model(x), y), batch)
    if held:
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        expected = expected + 1
    gradients = [p.grad for p in model.parameters()]
    with pytest.warns(UserWarning, match=r"of (6|12) samples: .* max_micro_batch=(6|3)") as seen:
        done = accumulate(cross_entropy(model), batch, model=model, max_micro_batch=12)
    assert [w.filename for w in seen] == [__file__] * 2
    assert agrees(gradient(model), expected)
    assert done.loss.item() == pytest.approx(value, rel=1e-12)
    assert (done.micro_batch, done.micro_batches, done.out_of_memory) == (3, 5, 2)
    assert room.seen == [12, 6, 3, 3, 3, 3, 1]
    assert "from 5 micro-batches of at most 3 samples; memory ran out 2x" in str(done)
    if held:
        assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    again = accumulate(cross_entropy(model), batch, model=model, max_micro_batch=done.micro_batch)
    assert again.out_of_memory == 0


def test_a_cap_above_the_batch_is_halved_from_the_batch_and_else_stays():
    room = Room(7)
    model = network(room)
    with pytest.warns(UserWarning, match="of 13 samples: the batch is repeated with 6"):
        done = accumulate(cross_entropy(model), images(13), model=model, max_micro_batch=1000)
    assert done.micro_batch == 6
    done = accumulate(cross_entropy(model), images(2), model=model, max_micro_batch=6)
    assert (done.micro_batch, done.micro_batches) == (6, 1)


def test_a_repeated_batch_draws_and_counts_as_a_first_try_would():
    """Dropout of torch, NumPy's and Python's randomness, running statistics."""

    def trained(room, cap):
        model = network(nn.BatchNorm1d(8), room, nn.Dropout(0.5))
        torch.manual_seed(3), np.random.seed(3), random.seed(3)

        def forward(x, y):
            x = x + np.random.rand() + random.random()
            return F.cross_entropy(model(x), y)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            done = accumulate(forward, images(), model=model, max_micro_batch=cap)
        drawn = torch.rand(1).item(), np.random.rand(), random.random()
        return done, gradient(model), model.state_dict(), drawn

    first = trained(Room(), 5)
    for where in ("forward", "backward"):
        again = trained(Room(5, where), 10)
        assert again[0].out_of_memory == 1
        assert torch.equal(again[1], first[1])
        assert all(torch.equal(again[2][name], first[2][name]) for name in first[2])
        assert again[3] == first[3]


def test_what_did_not_fit_is_let_go():
    """The error holds frames, and they the tensors: none may live on in the next try."""
    import weakref

    held, alive = [], []
    model = network()

    def forward(x, y):
        alive.append(sum(ref() is not None for ref in held))
        activations = model(x)
        if len(x) > 4:
            held.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("full")
        return F.cross_entropy(activations, y)

    with pytest.warns(UserWarning, match="memory ran out"):
        accumulate(forward, images(8), model=model, max_micro_batch=8)
    assert len(held) == 1
    assert alive == [0, 0, 0]


def test_a_single_sample_that_does_not_fit_ends_it():
    model, ran_out = network(Room(0)), pytest.warns(UserWarning, match="memory ran out")
    with pytest.raises(torch.OutOfMemoryError, match=r"2\.00 GiB"), ran_out:
        accumulate(cross_entropy(model), images(), model=model, max_micro_batch=4)


def test_another_error_is_not_taken_for_memory():
    room = Room(3, "bug")
    model = network(room)
    with pytest.raises(RuntimeError, match="no such image"):
        accumulate(cross_entropy(model), images(), model=model, max_micro_batch=8)
    assert room.seen == [8]


def test_an_error_leaves_gradients_as_they_were():
    model, batch = network(nn.BatchNorm1d(8)), images()
    before = copy.deepcopy(model.state_dict())
    model[0].weight.grad = torch.ones_like(model[0].weight)

    def forward(x, y):
        if len(x) == 1:
            raise KeyError("the last one")
        return F.cross_entropy(model(x), y)

    with pytest.raises(KeyError):
        accumulate(forward, batch, model=model, max_micro_batch=4)
    assert model[0].weight.grad.eq(1).all()
    assert model[0].bias.grad is None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# Batch normalisation


def normalised():
    model = network(nn.BatchNorm1d(8))
    with torch.no_grad():  # running statistics of some past
        model[1].running_mean.fill_(0.3)
        model[1].running_var.fill_(2.0)
    return model.train()


def test_micro_batches_have_their_own_statistics():
    model, batch = normalised(), images()
    expected = copy.deepcopy(model)
    for x, y in split_batch(batch, 4)[:3]:
        (F.cross_entropy(expected(x), y) / 3).backward()
    accumulate(
        cross_entropy(model), tuple(part[:12] for part in batch), model=model, max_micro_batch=4
    )
    assert agrees(gradient(model), gradient(expected))
    assert torch.equal(model[1].running_mean, expected[1].running_mean)
    assert model[1].num_batches_tracked == 3


@pytest.mark.parametrize("cap", [1, 4, 13, 100])
def test_excluded_layers_normalise_as_in_eval_mode_and_train(cap):
    model, batch = normalised(), images()
    before = copy.deepcopy(model.state_dict())
    expected, _ = whole(
        copy.deepcopy(model).eval(), lambda model, x, y: F.cross_entropy(model(x), y), batch
    )
    accumulate(cross_entropy(model), batch, model=model, max_micro_batch=cap, batch_norm="exclude")
    assert agrees(gradient(model), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model[1].training
    assert model[1].weight.grad.norm() > 0


class Ghosts(nn.Module):
    """Ghost batch normalisation written out."""

    def __init__(self, layer, samples):
        super().__init__()
        self.layer, self.samples = layer, samples

    def forward(self, x):
        parts = []
        for start in range(0, len(x), self.samples):
            part = x[start : start + self.samples]
            mean, var = part.mean(0), part.var(0, unbiased=False)
            with torch.no_grad():
                self.layer.running_mean.lerp_(mean, 0.1)
                self.layer.running_var.lerp_(part.var(0), 0.1)
            parts.append((part - mean) / (var + 1e-5).sqrt() * self.layer.weight + self.layer.bias)
        return torch.cat(parts)


@pytest.mark.parametrize("cap", [3, 5, 7, 12, 100])
def test_ghost_batches_are_the_same_under_every_cap(cap):
    model, batch = normalised(), images(14)
    twin = copy.deepcopy(model)
    twin[1] = Ghosts(twin[1], 3)
    F.cross_entropy(twin(batch[0]), batch[1]).backward()
    done = accumulate(cross_entropy(model), batch, model=model, max_micro_batch=cap, batch_norm=3)
    assert done.micro_batch == cap // 3 * 3
    assert agrees(gradient(model), gradient(twin), rel=1e-11)  # variances of 2 and 3 samples
    assert torch.allclose(model[1].running_mean, twin[1].layer.running_mean, rtol=1e-12)
    assert torch.allclose(model[1].running_var, twin[1].layer.running_var, rtol=1e-12)
    assert "forward" not in vars(model[1])


@pytest.mark.parametrize(("batch_norm", "said"), [("micro", "micro-batches"), (4, "ghost batches")])
def test_a_single_sample_has_no_statistics(batch_norm, said):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with pytest.raises(ValueError, match=f"single sample, which is what {said} of 4 leave of a ba"):
        accumulate(
            lambda x: model(x).sum(), (torch.ones(13, 3),),
            model=model, max_micro_batch=4, batch_norm=batch_norm,
        )  # fmt: skip


def test_a_weight_of_0_is_no_count_of_0():
    model = nn.Linear(3, 1)
    done = accumulate(
        lambda x: model(x).mean(), (torch.ones(8, 3),),
        model=model, max_micro_batch=4, reduction=len, weight=0.0,
    )  # fmt: skip
    assert done.micro_batches == 2
    assert not model.weight.grad.any()


def test_memory_is_halved_in_whole_ghost_batches():
    model = network(nn.BatchNorm1d(8), Room(5))
    with pytest.warns(UserWarning, match="repeated with 3"):
        done = accumulate(
            cross_entropy(model), images(12), model=model, max_micro_batch=9, batch_norm=3
        )
    assert (done.micro_batch, done.out_of_memory) == (3, 1)
    model, ran_out = network(nn.BatchNorm1d(8), Room(2)), pytest.warns(UserWarning, match="with 3")
    with pytest.raises(torch.OutOfMemoryError), ran_out:
        accumulate(cross_entropy(model), images(12), model=model, max_micro_batch=9, batch_norm=3)
    assert "forward" not in vars(model[1])


# Refusals


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"max_micro_batch": 0}, "max_micro_batch must be an integer >= 1, got 0"),
        ({"max_micro_batch": 2.0}, "max_micro_batch must be an integer >= 1, got 2.0"),
        ({"reduction": "none"}, "reduction must be 'mean', 'sum' or a function, got 'none'"),
        ({"reduction": lambda x, y: 0}, "reduction must count more than 0 in a batch"),
        ({"reduction": lambda x, y: -1}, "finite numbers >= 0, got -1"),
        ({"reduction": lambda x, y: 1}, "the same in a batch as in its parts, got 1 and 3"),
        ({"weight": float("nan")}, "weight must be a finite number >= 0, got nan"),
        ({"total": 3.0}, "total goes with a reduction that counts, got 'mean'"),
        ({"total": 0, "reduction": count_tokens}, "total must be a finite number > 0, got 0"),
        ({"batch_norm": "eval"}, "batch_norm must be 'micro', 'exclude' or"),
        ({"batch_norm": 6}, "max_micro_batch must hold a ghost batch of 6 samples, got 5"),
        ({"batch": torch.zeros(0)}, "got 0 samples"),
        ({"forward": lambda x, y: x}, r"forward must return the loss .* shape \(5, 5\)"),
        ({"forward": lambda x, y: x.sum()}, "depends on the model's parameters"),
        (
            {"model": nn.BatchNorm1d(5, track_running_stats=False), "batch_norm": "exclude"},
            "needs layers with running statistics",
        ),
    ],
)
def test_what_cannot_be_is_refused(changed, message):
    model = network()
    options = {
        "forward": cross_entropy(model),
        "batch": images(),
        "model": model,
        "max_micro_batch": 5,
        **changed,
    }
    with pytest.raises(ValueError, match=message):
        accumulate(**options)


# Compiled models


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_compiled_model_compiles_at_most_twice_over_a_whole_schedule():
    compiled = []

    def backend(graph, example_inputs):
        compiled.append(graph)
        return graph.forward

    n, cap = 1200, 48
    plan = Plan(epochs=9, batch_size=s.Exponential(8, factor=1.5, every=1))
    sizes = {size for epoch in range(9) for size in _sizes(n, plan.at(epoch).batch_size)}
    remainders = {size % cap for size in sizes if size > cap}
    assert len(sizes) > 12
    assert len(remainders) > 3
    assert 1 not in sizes | remainders
    torch._dynamo.reset()
    model = network()
    called = torch.compile(model, backend=backend)
    for size in sorted(sizes):
        batch = images(size)
        model.zero_grad()
        accumulate(cross_entropy(called), batch, model=model, max_micro_batch=cap)
        expected, _ = whole(model, lambda model, x, y: F.cross_entropy(model(x), y), batch)
        assert agrees(gradient(model), expected)
    assert 1 <= len(compiled) <= 2


def _sizes(n, batch_size):
    return [batch_size, n % batch_size or batch_size]


# Processes


WORLD = 2


def spread(rank, n, loss, reduction, cap, make=network, steps=1, **options):
    """Steps of DDP in micro-batches, each compared with the whole global batch."""
    model = make()
    ddp = DistributedDataParallel(model, **options)
    found = []
    for k in range(steps):
        batch = data(n, k)
        expected, _ = whole(plain(model), loss, batch)
        mine = tuple(part[share(n, rank, WORLD)] for part in batch)
        model.zero_grad()
        done = accumulate(
            lambda x, y: loss(ddp, x, y),
            mine,
            model=ddp,
            max_micro_batch=cap,
            reduction=reduction,
            weight=weight(n, rank, WORLD),
        )
        assert agrees(gradient(model), expected), (gradient(model) - expected).abs().max()
        cap = done.micro_batch
        found.append(done)
        with torch.no_grad():
            for p in model.parameters():
                p.sub_(0.1 * p.grad)
    return found


def plain(model):
    """A copy with room for everything."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, Room):
            module.limit = 10**9
    return model


def every_loss(rank):
    # Shares of 7 and 6: of unequal last micro-batches, of unequal numbers of them, of one each.
    for kind, cap in (("mean", 4), ("mean", 6), ("sum", 3), ("tokens", 3), ("masked", 9)):
        done = spread(rank, 13, *LOSSES[kind], cap)[0]
        assert done.micro_batches == -(-(6 if rank else 7) // cap), kind


def no_sample_on_one(rank):
    for loss, reduction in LOSSES.values():
        spread(rank, 1, loss, reduction, 4)


def no_token_on_one(rank):
    def tokens(n, k):
        x, y = data(n, k)
        y[share(n, 1, WORLD)] = -100
        return x, y

    for kind in ("tokens", "masked"):
        loss, count = LOSSES[kind]
        model = network()
        ddp = DistributedDataParallel(model)
        batch = tokens(9, 0)
        expected, _ = whole(model, loss, batch)
        mine = tuple(part[share(9, rank, WORLD)] for part in batch)
        done = accumulate(
            lambda x, y, loss=loss, ddp=ddp: loss(ddp, x, y),
            mine,
            model=ddp,
            max_micro_batch=2,
            reduction=count,
        )
        assert agrees(gradient(model), expected)
        assert torch.isfinite(done.loss)


def gradients_are_averaged_once(rank):
    model = network()
    ddp = DistributedDataParallel(model)
    reduced = []

    def hook(state, bucket):
        reduced.append(bucket.index())
        handle = distributed.all_reduce(bucket.buffer().div_(WORLD), async_op=True)
        return handle.get_future().then(lambda future: future.value()[0])

    ddp.register_comm_hook(None, hook)
    mine = tuple(part[share(N, rank, WORLD)] for part in images())
    for step in range(1, 4):
        accumulate(
            cross_entropy(ddp), mine, model=ddp, max_micro_batch=2, weight=weight(N, rank, WORLD)
        )
        assert reduced == [0] * step


def out_of_memory_on_one(rank):
    """Wherever it happens, both repeat with the same size, and go on for three more steps."""
    for where, limit, cap, layers in (
        ("forward", 2, 4, []),
        ("backward", 2, 4, [nn.BatchNorm1d(TOKENS)]),
        ("forward", 6, 7, [nn.BatchNorm1d(TOKENS)]),  # in the only micro-batch
        ("backward", 6, 7, []),
    ):
        room = Room(limit if rank else 10**9, where)
        model = network(*layers, room).eval()
        done = spread(rank, 14, *LOSSES["mean"], cap, make=lambda model=model: model, steps=3)
        assert [d.micro_batch for d in done] == [cap // 2] * 3, (where, limit)
        assert [d.out_of_memory for d in done] == [1, 0, 0], (where, limit)
        assert max(room.seen) == cap


def out_of_memory_before_the_model(rank):
    """Rank 1 fails before DDP's forward pass, in which rank 0 would wait for it."""
    model = network(nn.BatchNorm1d(3)).train()
    ddp = DistributedDataParallel(model)
    calls = []

    def forward(x, y):
        calls.append(len(x))
        if rank and len(x) > 2:
            raise torch.OutOfMemoryError("no room for the images")
        return ddp(x).square().mean()

    for _ in range(3):
        mine = tuple(part[share(12, rank, WORLD)] for part in data(12))
        done = accumulate(forward, mine, model=ddp, max_micro_batch=4, batch_norm="exclude")
        assert (done.micro_batch, done.out_of_memory) == (2, 1)
    assert calls == ([4, 2, 2, 2] if rank else [4, 2, 2, 2, 2]) * 3


def out_of_memory_in_the_last_forward(rank):
    """It has DDP's reducer wait for a backward pass on the other process."""
    model = network()
    ddp = DistributedDataParallel(model)
    expected, _ = whole(model, LOSSES["mean"][0], data(16))
    tries = []

    def forward(x, y):
        tries.append(len(x))
        if rank and tries == [4, 4]:
            raise torch.OutOfMemoryError("full")
        return ddp(x).square().mean()

    mine = tuple(part[share(16, rank, WORLD)] for part in data(16))
    for step in range(3):
        model.zero_grad()
        tries = [] if step == 0 else [0]
        done = accumulate(forward, mine, model=ddp, max_micro_batch=4 if step == 0 else 2)
        assert agrees(gradient(model), expected)
        assert (done.micro_batch, done.out_of_memory) == (2, int(step == 0))


def one_failure_ends_both(rank):
    model = network(Room(2 if rank else 10**9, "bug"))
    ddp = DistributedDataParallel(model)
    with pytest.raises(RuntimeError) as caught:
        accumulate(cross_entropy(ddp), images(), model=ddp, max_micro_batch=4)
    assert str(caught.value) == (
        "no such image" if rank else "another process failed in this batch"
    )

    def count(x, y):
        if rank:
            raise KeyError("lengths")
        return len(y)

    with pytest.raises(KeyError if rank else RuntimeError, match=r"lengths|in counting"):
        accumulate(cross_entropy(ddp), images(), model=ddp, max_micro_batch=2, reduction=count)
    model = network(Room(0 if rank else 10**9))
    ddp = DistributedDataParallel(model)
    with pytest.raises(RuntimeError) as caught:
        accumulate(cross_entropy(ddp), images(), model=ddp, max_micro_batch=2)
    assert ("GiB" if rank else "another process ran out of memory with 1 samples") in str(
        caught.value
    )


def no_gradient_counts_anywhere(rank):
    ddp = DistributedDataParallel(network())
    with pytest.raises(ValueError, match="more than 0"):
        accumulate(
            cross_entropy(ddp), images(), model=ddp, max_micro_batch=2, reduction=lambda x, y: 0
        )


def parameters_that_one_does_not_use(rank):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = network(seed=1), network(seed=2)

        def forward(self, x):
            return self.a(x) + (self.b(x) if x[0, 0, 0] > 0 else 0)

    def loss(model, x, y):  # sample by sample, for a sample decides what is used
        return torch.stack([model(x[i : i + 1]).square().mean() for i in range(len(x))]).mean()

    assert min(data(6, k)[0][i, 0, 0] for k in range(3) for i in (2, 5)) <= 0  # the last ones
    spread(
        rank, 6, loss, "mean", 1, make=Two, steps=3, find_unused_parameters=True,
        gradient_as_bucket_view=True,
    )  # fmt: skip


def what_waits_in_forward_is_refused(rank):
    model = network(nn.BatchNorm1d(8))
    ddp = DistributedDataParallel(model)  # which refuses the layer itself where there is no GPU
    model[1] = nn.SyncBatchNorm.convert_sync_batchnorm(model[1])
    with pytest.raises(ValueError, match="SyncBatchNorm in train mode"):
        accumulate(cross_entropy(ddp), images(), model=ddp, max_micro_batch=2)
    accumulate(cross_entropy(ddp), images(), model=ddp, max_micro_batch=2, batch_norm="exclude")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    sharded = fully_shard(network(), mesh=init_device_mesh("cpu", (WORLD,)))
    with pytest.raises(ValueError, match="whole on each process, for those of FSDP"):
        accumulate(cross_entropy(sharded), images(), model=sharded, max_micro_batch=2)


TOGETHER = {
    f.__name__: f
    for f in (
        every_loss,
        no_sample_on_one,
        no_token_on_one,
        gradients_are_averaged_once,
        out_of_memory_on_one,
        out_of_memory_before_the_model,
        out_of_memory_in_the_last_forward,
        one_failure_ends_both,
        no_gradient_counts_anywhere,
        parameters_that_one_does_not_use,
        what_waits_in_forward_is_refused,
    )
}


def work(rank, folder):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/met",
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=60),
    )
    for name, f in TOGETHER.items():
        try:
            f(rank)
            found = ""
        except Exception:
            found = traceback.format_exc()
        (folder / f"{name}-{rank}").write_text(json.dumps(found))
        distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What each of the functions above said on each of two processes, which run them all."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.start_processes(work, (folder,), nprocs=WORLD, start_method="spawn")
    return folder


@pytest.mark.timeout(600)  # on a busy machine two processes wait long for each other
@pytest.mark.parametrize("name", TOGETHER)
def test_two_processes(together, name):
    found = [json.loads((together / f"{name}-{rank}").read_text()) for rank in range(WORLD)]
    assert found == ["", ""], "\n".join(found)
