"""PlanCallback trains as the plain loop does, batch for batch."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from batchramp import ParamScheduler, Plan, ScheduledBatchSampler, TensorLoader
from batchramp import schedules as s
from batchramp.batching import stream
from batchramp.integrations.lightning import PlanCallback
from batchramp.integrations.position import tick_of

try:
    import lightning.pytorch as L
except ImportError:
    L = None
Base: Any = L.LightningModule if L else object
Hooks: Any = L.Callback if L else object

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
needs_lightning = pytest.mark.skipif(L is None, reason="Lightning is missing")

N = 43
GROWING = Plan(epochs=3, batch_size=s.Piecewise({0: 5, 1: 10, 2: 25}), lr=s.Cosine(0.05))
SHRINKING = Plan(epochs=3, batch_size=s.Piecewise({0: 25, 1: 10, 2: 5}), lr=s.Cosine(0.05))
STEPS = Plan(steps=25, batch_size=s.Piecewise({0: 3, 10: 9}), lr=s.Cosine(0.05))
SAMPLES = Plan(samples=130, batch_size=s.Piecewise({0: 12, 40: 5}), lr=s.Cosine(0.05))
ONLY_SIZES = Plan(epochs=3, batch_size=s.Piecewise({0: 25, 1: 10, 2: 5}))


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(N, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(N, 1, generator=generator, dtype=torch.float64)
    return TensorDataset(inputs, inputs.sum(1, keepdim=True) + noise)


def loader(plan: Plan, kind: str, **ranks: int) -> Any:
    if kind == "sampler":
        return DataLoader(data(), batch_sampler=ScheduledBatchSampler(plan, data(), **ranks))
    samples = list(data()) if kind == "list" else lambda: iter(data())
    return DataLoader(stream(samples, plan, **ranks), batch_size=None)


class Module(Base):
    def __init__(self, plan: Plan, kind: str = "sampler", folder: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(3, 1, dtype=torch.float64)
        self.plan, self.kind, self.folder = plan, kind, folder
        self.seen: list[list[float]] = []
        self.totals: list[float] = []

    def loss(self, batch: Any) -> torch.Tensor:
        self.seen.append(batch[0][:, 0].tolist())
        return (self.linear(batch[0]) - batch[1]).square().mean()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.totals.append(self.trainer.num_training_batches)
        return self.loss(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.01)

    def train_dataloader(self) -> Any:
        return loader(self.plan, self.kind)

    def on_fit_end(self) -> None:
        if self.folder:
            held = (self.seen, self.linear.weight.detach())
            torch.save(held, f"{self.folder}/{self.global_rank}.pt")


class Validated(Module):
    def val_dataloader(self) -> Any:
        return DataLoader(data(), batch_size=25)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass


class Save(Hooks):
    """One checkpoint, at the given time that a hook is called."""

    def __init__(self, path: Path, hook: str, time: int) -> None:
        self.path, self.left, self.seen = path, time, 0
        setattr(self, hook, self._save)

    def _save(self, trainer: Any, module: Any, *rest: Any) -> None:
        self.left -= 1
        if self.left == 0:
            trainer.save_checkpoint(self.path)
            self.seen = len(module.seen)


def fit(
    module: Any, plan: Plan, *more: Any, max_epochs: int = -1, path: Any = None, **options: Any
) -> Any:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    trainer = L.Trainer(
        max_epochs=max_epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
        callbacks=[PlanCallback(plan), *more], **options,
    )  # fmt: skip
    trainer.fit(module, ckpt_path=path)
    return trainer


def plain(plan: Plan, kind: str) -> Any:
    """The loop without Lightning, on one process."""
    module = Module(plan, kind)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    scheduler = ParamScheduler(optimizer, plan)
    batched = loader(plan, kind, rank=0, world_size=1)
    batches = batched.batch_sampler if kind == "sampler" else batched.dataset
    epoch = 0
    while not (epoch == batches.epochs if kind == "sampler" else batches.ended):
        batches.set_epoch(epoch)
        for k, batch in enumerate(batched):
            scheduler.set_epoch(tick_of(batches, k))
            optimizer.zero_grad()
            module.loss(batch).backward()
            optimizer.step()
        epoch += 1
    return module


@needs_lightning
@pytest.mark.parametrize("plan", [GROWING, SHRINKING, ONLY_SIZES, STEPS, SAMPLES], ids=str)
@pytest.mark.parametrize("kind", ["sampler", "list", "function"])
def test_as_the_plain_loop(plan: Plan, kind: str) -> None:
    if plan.unit == "epochs" and kind == "function":
        return
    module, expected = Module(plan, kind), plain(plan, kind)
    trainer = fit(module, plan)
    assert module.seen == expected.seen
    assert torch.equal(module.linear.weight, expected.linear.weight)
    assert trainer.global_step == len(expected.seen)
    if kind != "function":  # what the progress bar shows
        lengths = [len(plan.batch_sizes(epoch, N)) for epoch in range(plan.total_epochs(N))]
        assert module.totals == [length for length in lengths for _ in range(length)]


@needs_lightning
@pytest.mark.parametrize("kind", ["sampler", "list", "function"])
@pytest.mark.parametrize("plan", [GROWING, SHRINKING, STEPS], ids=["growing", "shrinking", "steps"])
def test_resumed_is_uninterrupted(plan: Plan, kind: str, tmp_path: Path) -> None:
    if plan.unit == "epochs" and kind == "function":
        return
    sizes = [plan.batch_sizes(epoch, N) for epoch in range(plan.total_epochs(N))]
    steps, ends = sum(map(len, sizes)), [len(sizes[0]), len(sizes[0]) + len(sizes[1])]
    times = [("on_train_batch_end", k) for k in sorted({1, *ends, ends[0] + 1, steps - 1, steps})]
    times += [("on_train_epoch_end", 1), ("on_train_epoch_end", len(sizes))]
    times += [("on_validation_end", 2), ("on_validation_end", 3)] if kind == "sampler" else []
    for hook, time in times:
        made = Validated if "valid" in hook else Module
        options = {"val_check_interval": 0.5} if "valid" in hook else {}
        whole, save = made(plan, kind), Save(tmp_path / "saved", hook, time)
        fit(whole, plan, save, **options)
        rest = made(plan, kind)
        trainer = fit(rest, plan, path=tmp_path / "saved", **options)
        assert rest.seen == whole.seen[save.seen :], (hook, time)
        assert torch.equal(rest.linear.weight, whole.linear.weight), (hook, time)
        assert trainer.global_step == steps


@needs_lightning
@pytest.mark.parametrize("kind", ["sampler", "list"])
def test_two_processes_are_one(kind: str, tmp_path: Path) -> None:
    plan = Plan(epochs=2, batch_size=s.Piecewise({0: 7, 1: 25}), lr=s.Cosine(0.05))
    module = Module(plan, kind, str(tmp_path))
    fit(module, plan, devices=2, strategy="ddp_spawn", use_distributed_sampler=False)
    expected = plain(plan, kind)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    together = [
        a if len(whole) == 1 else a + b
        for a, b, whole in zip(first[0], second[0], expected.seen, strict=True)
    ]
    assert together == expected.seen
    assert min(map(len, expected.seen)) == 1  # of which the second process has no share
    assert torch.equal(first[1], second[1])
    torch.testing.assert_close(first[1], expected.linear.weight, rtol=1e-12, atol=1e-12)


class OneCycle(Module):
    total = 0

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        total = self.total or int(self.trainer.estimated_stepping_batches)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=total)
        return [optimizer], [{"scheduler": cycle, "interval": "step"}]


@needs_lightning
def test_a_scheduler_of_the_module(tmp_path: Path) -> None:
    module = OneCycle(ONLY_SIZES)
    with pytest.raises(ValueError, match=r"total_steps=6, but the plan has 16 steps"):
        fit(module, ONLY_SIZES, max_epochs=3)
    module = OneCycle(ONLY_SIZES)
    module.total = ONLY_SIZES.total_steps(N)
    assert fit(module, ONLY_SIZES).global_step == 16
    module = OneCycle(GROWING)
    module.total = GROWING.total_steps(N)
    with pytest.raises(ValueError, match="the plan schedules lr, and so does the module's OneC"):
        fit(module, GROWING)


class Other(Module):
    given: Any = None

    def train_dataloader(self) -> Any:
        return self.given


@needs_lightning
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate_grad_batches": 2}, "accumulate_grad_batches must be 1, got 2"),
        ({"limit_train_batches": 3}, "limit_train_batches must be 1.0, got 3"),
        ({"overfit_batches": 2}, "overfit_batches must be 0, got 2"),
        ({"reload_dataloaders_every_n_epochs": 1}, "reload_dataloaders_every_n_epochs must be 0"),
        ({"max_epochs": 4}, "max_epochs must be at most the plan's 3 epochs"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(Module(GROWING), GROWING, **options)


@needs_lightning
def test_other_loaders_are_refused(tmp_path: Path) -> None:
    sampler = ScheduledBatchSampler(GROWING, N)
    for given, message in (
        (DataLoader(data(), batch_size=8), "must have batch_sampler=ScheduledBatchSampler"),
        (TensorLoader(data().tensors, sampler), "must come from one torch DataLoader"),
        (loader(SHRINKING, "sampler"), "plan differs"),
        (loader(GROWING, "sampler", rank=1, world_size=2), "process 1 of 2, this is 0 of 1"),
    ):
        module = Other(GROWING)
        module.given = given
        with pytest.raises(ValueError, match=message):
            fit(module, GROWING)
    with pytest.raises(ValueError, match="max_epochs must be -1 for a stream without a length"):
        fit(Module(STEPS, "function"), STEPS, max_epochs=3)
    bare = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    bare.fit(Module(GROWING))
    bare.save_checkpoint(tmp_path / "bare")
    module = Module(GROWING)
    with pytest.raises(ValueError, match="has no position of the plan"):
        fit(module, GROWING, path=tmp_path / "bare")
    assert module.seen == []
