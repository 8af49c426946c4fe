"""How a task computes: prepared inputs, memory format, bfloat16, compiled; off changes nothing."""

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from batchramp import Plan, store
from batchramp import schedules as s
from batchramp.batching import ScheduledBatchSampler
from batchramp.task import Task
from batchramp.training import fit

# torch's own compiler uses what torch has deprecated
_DEPRECATED = "ignore:.*torch.jit.script_method.*:DeprecationWarning"


def compiles(test: Any) -> Any:
    found = shutil.which("g++") is not None
    test = pytest.mark.skipif(not found, reason="torch.compile needs a C++ compiler, g++")(test)
    return pytest.mark.slow(pytest.mark.filterwarnings(_DEPRECATED)(test))


pytestmark = pytest.mark.usefixtures("one_thread")

# of 90 samples; what the last batch of an epoch is left with has 16 or more as well
SIZES = s.Piecewise(dict(enumerate((18, 24, 30, 33, 36, 45, 50, 60, 70, 90))))
PLAN = Plan(epochs=3, batch_size=s.Exponential(8, factor=2, every=1), lr=0.1, beta=0.9, gamma=0.7)


def halves(inputs: Tensor) -> Tensor:
    return inputs.float() / 128 - 1


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 6, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(24, 4),
    )  # fmt: skip


def images(n: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randint(0, 256, (n, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return inputs, inputs[:, 0].flatten(1).double().mean(1).mul(4).long() % 4


def task(**changes: Any) -> Task:
    values: dict[str, Any] = {
        "model": net, "train": images(90, 0), "test": images(30, 1), "prepare": halves,
        "loss_fn": nn.functional.cross_entropy,
    }  # fmt: skip
    return Task(**{**values, **changes})


def timeless(rows: Any) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def norms(rows: Any) -> list[float]:
    return [row["full_gradient_norm"] for row in rows]


def losses(rows: Any) -> list[float]:
    return [row[f"{part}_loss"] for row in rows for part in ("train", "test")]


def test_bytes_that_are_prepared_train_as_floats_do_to_the_last_bit() -> None:
    ready = {part: (halves(x), y) for part, (x, y) in
             (("train", images(90, 0)), ("test", images(30, 1)))}  # fmt: skip
    bytes_, floats = fit(task(), PLAN, seed=0), fit(task(prepare=None, **ready), PLAN, seed=0)
    assert bytes_.initial == floats.initial
    assert timeless(bytes_.rows) == timeless(floats.rows)


def test_augment_sees_bytes_and_comes_before_prepare() -> None:
    seen: list[tuple[str, torch.dtype, int]] = []

    def augment(inputs: Tensor, generator: torch.Generator) -> Tensor:
        seen.append(("augment", inputs.dtype, len(inputs)))
        return inputs.flip(3)

    def prepare(inputs: Tensor) -> Tensor:
        seen.append(("prepare", inputs.dtype, len(inputs)))
        return halves(inputs)

    plan = Plan(epochs=1, batch_size=45, lr=0.1, beta=0.9, gamma=0.7)
    fit(task(augment=augment, prepare=prepare), plan, seed=0)
    # measured before and after (train, with its gradient in the same pass, and test), two steps
    # between
    measuring = [("prepare", torch.uint8, n) for n in (90, 30)]
    step = [(name, torch.uint8, 45) for name in ("augment", "prepare")]
    assert seen == [*measuring, *step, *step, *measuring]


def test_big_samples_are_measured_fewer_at_a_time() -> None:
    def chunks(*shape: int) -> list[int]:
        data = torch.zeros(shape, dtype=torch.uint8), torch.zeros(shape[0])
        held = Task(net, data, None, nn.functional.mse_loss)
        return [len(inputs) for inputs, _ in held.in_order("train") or ()]

    assert chunks(2100, 1, 28, 28) == [1000, 1000, 100]
    assert chunks(300, 3, 32, 32) == [128, 128, 44]


def test_channels_last_is_the_same_computation() -> None:
    layouts: list[bool] = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, images: Tensor) -> Tensor:
            layouts.append(images.is_contiguous(memory_format=torch.channels_last))
            return self.net(images)

    plain = fit(task(), PLAN, seed=0)
    assert not any(layouts)
    last = fit(task(model=Watched, channels_last=True), PLAN, seed=0)
    assert layouts
    assert all(layouts)
    # float32 summed in another order; measured 3e-6 at most
    assert losses(last.rows) == pytest.approx(losses(plain.rows), rel=1e-4)
    assert norms(last.rows) == pytest.approx(norms(plain.rows), rel=1e-3)
    weight = last.model.state_dict()["net.0.weight"]
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_channels_last_leaves_what_is_no_image_alone() -> None:
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    make = functools.partial(
        Task, lambda: nn.Linear(5, 1), (x, x[:, :1]), None, nn.functional.mse_loss
    )
    plain, last = (fit(make(channels_last=on), PLAN, seed=0) for on in (False, True))
    assert timeless(plain.rows) == timeless(last.rows)


def test_autocast_is_for_training_steps_only() -> None:
    seen: set[tuple[bool, torch.dtype]] = set()

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        measuring = len(targets) in (30, 90)
        seen.add((measuring, outputs.dtype))
        return nn.functional.cross_entropy(outputs, targets)

    plain = fit(task(), PLAN, seed=0)
    cast = fit(task(autocast=True, loss_fn=loss_fn), PLAN, seed=0)
    assert seen == {(True, torch.float32), (False, torch.bfloat16)}
    assert cast.initial == plain.initial
    assert {p.dtype for p in cast.model.parameters()} == {torch.float32}
    # 8 bits of mantissa in each product, over 22 steps
    assert losses(cast.rows) == pytest.approx(losses(plain.rows), rel=0.03)
    assert losses(cast.rows) != losses(plain.rows)


@compiles
def test_compiled_is_the_same_computation() -> None:
    plan = Plan(
        epochs=4, batch_size=s.Piecewise({0: 4, 2: 11, 3: 30}), lr=0.05, beta=0.9, gamma=0.7
    )
    plain, compiled = (fit(task(compiled=on), plan, seed=0) for on in (False, True))
    assert compiled.initial == plain.initial
    # float32 summed in another order
    assert losses(compiled.rows) == pytest.approx(losses(plain.rows), rel=1e-3)
    assert set(compiled.model.state_dict()) == set(plain.model.state_dict())


@compiles
def test_ten_batch_sizes_are_compiled_for_once() -> None:
    compilations: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compilations.append(len(inputs))
        return graph.forward

    torch.compiler.reset()
    held = task(compiled=True)
    network = torch.compile(held.make(), backend=backend)
    network.train()
    plan = Plan(epochs=10, batch_size=SIZES, lr=0.1)
    sampler = ScheduledBatchSampler(plan, 90)
    seen: set[int] = set()
    for epoch in range(10):
        sampler.set_epoch(epoch)
        for inputs, targets in held.batches(sampler):
            held.loss(network, inputs, targets).backward()
            seen.add(len(targets))
    assert len(seen) >= 10
    assert min(seen) >= 16
    assert len(compilations) == 1
    # From 16 down torch's convolution takes another way on a CPU; and 1 is compiled for apart
    inputs, targets = images(15, 2)
    for b in (15, 9, 3, 2):
        held.loss(network, inputs[:b], targets[:b])
    assert len(compilations) == 2
    held.loss(network, inputs[:1], targets[:1])
    assert len(compilations) == 3


@compiles
def test_a_compiled_run_goes_on_as_if_never_interrupted(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(row: dict[str, Any]) -> None:
        raise Stop

    held = task(compiled=True)
    whole = fit(held, PLAN, seed=0, out=tmp_path / "whole")
    with pytest.raises(Stop):
        fit(held, PLAN, seed=0, out=tmp_path / "parts", on_epoch=stop)
    parts = fit(held, PLAN, seed=0, out=tmp_path / "parts")
    assert timeless(parts.rows) == timeless(whole.rows)


def test_a_run_with_other_options_is_refused(tmp_path: Path) -> None:
    fit(task(), PLAN, seed=0, out=tmp_path / "plain")
    fit(task(channels_last=True), PLAN, seed=0, out=tmp_path / "last")
    assert store.read(tmp_path / "plain").options == {}
    assert store.read(tmp_path / "last").options == {"channels_last": True}
    for name, changes, shown in (
        ("plain", {"autocast": True}, r"there \{\}, here \{'autocast': True\}"),
        ("last", {}, r"there \{'channels_last': True\}, here \{\}"),
    ):
        before = (tmp_path / name / "run.json").read_bytes()
        with pytest.raises(ValueError, match=f"^options differs .*{shown}") as raised:
            fit(task(**changes), PLAN, seed=0, out=tmp_path / name)
        assert "\n" not in str(raised.value)
        assert (tmp_path / name / "run.json").read_bytes() == before


def test_a_folder_from_before_options_were_kept_goes_on(tmp_path: Path) -> None:
    whole = fit(task(), PLAN, seed=0, out=tmp_path)
    path = tmp_path / "run.json"
    run = json.loads(path.read_text())
    del run["options"], run["crc32"]
    path.write_text(json.dumps(run))
    assert timeless(fit(task(), PLAN, seed=0, out=tmp_path).rows) == timeless(whole.rows)
    with pytest.raises(ValueError, match=r"^options differs"):
        fit(task(channels_last=True), PLAN, seed=0, out=tmp_path)
    for options in ([], {"autocast": 1}, {"autocast": "yes"}, None):
        path.write_text(json.dumps({**run, "options": options}))
        with pytest.raises(ValueError, match="damaged: options is"):
            store.read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"prepare": 3}, "^prepare must be callable, got int$"),
        ({"autocast": 1}, "^autocast must be True or False, got 1$"),
        ({"channels_last": None}, "^channels_last must be True or False, got None$"),
        ({"compiled": "yes"}, "^compiled must be True or False, got 'yes'$"),
    ],
    ids=str,
)
def test_wrong_options_are_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        task(**changes)
