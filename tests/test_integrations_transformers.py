"""PlanTrainer trains as the plain loop does, batch for batch."""

import gc
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from batchramp import ParamScheduler, Plan, ScheduledBatchSampler
from batchramp import schedules as s
from batchramp.batching import stream
from batchramp.integrations.position import tick_of

N = 43  # odd, so that shares differ and a last batch may be of one sample
IGNORED = ["ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"]


def texts(n: int = N) -> list[dict[str, Any]]:
    """Of unequal numbers of tokens that count; the first token says which sample it is."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(50, 64, (n, 7), generator=generator)
    rows[:, 0] = torch.arange(n)
    labels = rows.clone()
    for i in range(n):
        labels[i, 2 + i % 5 :] = -100
    return [{"input_ids": r, "labels": y} for r, y in zip(rows, labels, strict=True)]


class Texts(IterableDataset):
    def __iter__(self) -> Any:
        return iter(texts())


def model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=8, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=16, attention_dropout=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).double()


def classifier() -> Any:
    """Takes no account of the number of items that Trainer hands it."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64, hidden_size=8, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertForSequenceClassification(config).double()


def labelled() -> list[dict[str, Any]]:
    return [{"input_ids": t["input_ids"], "labels": t["input_ids"][1] % 2} for t in texts()]


def arguments(folder: Path, **options: Any) -> Any:
    from transformers import TrainingArguments

    given = {
        "learning_rate": 0.01, "report_to": "none", "save_strategy": "no", "use_cpu": True,
        "disable_tqdm": True, "logging_strategy": "no", "max_grad_norm": 0.0, "seed": 3,
        "weight_decay": 0.1, "optim": "adamw_torch", "dataloader_pin_memory": False,
    }  # fmt: skip
    return TrainingArguments(output_dir=str(folder), **(given | options))


def trainer(folder: Path, plan: Plan, data: Any = None, net: Any = None, **options: Any) -> Any:
    from batchramp.integrations.transformers import PlanTrainer

    class Seen:
        def __init__(self, found: list[list[int]]) -> None:
            self.found = found

        def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
            self.found.append([int(row["input_ids"][0]) for row in rows])
            return torch.utils.data.default_collate(rows)

    seen: list[list[int]] = []
    made = PlanTrainer(
        net or model(),
        arguments(folder, **options),
        plan=plan,
        train_dataset=texts() if data is None else data,
        data_collator=Seen(seen),
    )
    made.seen = seen
    return made


def plain(plan: Plan, data: Any = None, net: Any = None) -> tuple[Any, Any]:
    """The loop as it is without Trainer, on one process: AdamW, and HF's linear decay by step."""
    net = net or model()
    data = texts() if data is None else data
    if isinstance(data, IterableDataset):
        batches: Any = stream(data, plan)
        loader = DataLoader(batches, batch_size=None, generator=torch.Generator())
    else:
        batches = ScheduledBatchSampler(plan, data, seed=3, rank=0, world_size=1)
        loader = DataLoader(data, batch_sampler=batches, generator=torch.Generator())
    decayed = [p for name, p in net.named_parameters() if "norm" not in name.lower()]
    decayed = [p for p in decayed if p.dim() > 1 or not _is_bias(net, p)]
    rest = [p for p in net.parameters() if not any(p is each for each in decayed)]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    planned = ParamScheduler(optimizer, plan) if plan.lr is not None else None
    decay = None
    if planned is None:
        total = plan.length if isinstance(data, IterableDataset) else plan.total_steps(len(data))
        decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (total - step) / total)
    seen = []
    net.train()
    torch.manual_seed(3)
    epoch = 0
    while not (batches.ended if isinstance(data, IterableDataset) else epoch == batches.epochs):
        batches.set_epoch(epoch)
        for k, batch in enumerate(loader):
            if planned is not None:
                planned.set_epoch(tick_of(batches, k))
            seen.append(batch["input_ids"][:, 0].tolist())
            optimizer.zero_grad()
            net(**batch).loss.backward()
            optimizer.step()
            if decay is not None:
                decay.step()
        epoch += 1
    return net, seen


def _is_bias(net: Any, parameter: Any) -> bool:
    return any(parameter is p for name, p in net.named_parameters() if name.endswith("bias"))


def equal(one: Any, other: Any, tolerance: float = 0.0) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all((a - b).abs().max() <= tolerance for a, b in pairs)


GROWING = Plan(epochs=3, batch_size=s.Piecewise({0: 4, 1: 7, 2: 20}))
SHRINKING = Plan(epochs=3, batch_size=s.Piecewise({0: 20, 1: 7, 2: 4}))
WITH_LR = Plan(samples=100, batch_size=s.Piecewise({0: 4, 30: 9}), lr=s.Cosine(0.05))
STEPS = Plan(steps=13, batch_size=s.Piecewise({0: 4, 5: 12}))

pytestmark = [pytest.mark.slow, *(pytest.mark.filterwarnings(each) for each in IGNORED)]


@pytest.fixture(autouse=True)
def _framework() -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")


@pytest.mark.parametrize("plan", [GROWING, SHRINKING, WITH_LR, STEPS], ids=str)
def test_as_the_plain_loop(plan: Plan, tmp_path: Path) -> None:
    host = trainer(tmp_path, plan, lr_scheduler_type="linear" if plan.lr is None else "constant")
    host.train()
    net, seen = plain(plan)
    assert host.seen == seen
    assert host.state.global_step == host.state.max_steps == plan.total_steps(N)
    assert equal(host.model, net)


def test_a_stream_as_the_plain_loop(tmp_path: Path) -> None:
    host = trainer(tmp_path, STEPS, Texts())
    host.train()
    net, seen = plain(STEPS, Texts())
    assert host.seen == seen
    assert host.state.global_step == 13
    assert equal(host.model, net)


@pytest.mark.parametrize("streamed", [False, True])
def test_resumed_is_uninterrupted(streamed: bool, tmp_path: Path) -> None:
    plan, data = (STEPS, Texts()) if streamed else (GROWING, texts())
    steps = plan.total_steps(N)
    whole = trainer(tmp_path / "a", plan, data, save_strategy="steps", save_steps=1)
    whole.train()
    ends = [11, 18] if not streamed else [8]
    for done in sorted({1, steps // 2, steps - 1, steps, *ends}):
        rest = trainer(tmp_path / "b", plan, data)
        rest.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{done}"))
        assert rest.seen == whole.seen[done:], done
        assert rest.state.global_step == steps
        assert equal(rest.model, whole.model), done
    other = Plan(steps=steps, batch_size=5)
    with pytest.raises(ValueError, match="plan differs from the one that was saved"):
        trainer(tmp_path / "b", other, data).train(
            resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-1")
        )
    (tmp_path / "a" / "checkpoint-1" / "plan.pt").unlink()
    with pytest.raises(ValueError, match="was written without PlanTrainer"):
        trainer(tmp_path / "b", plan, data).train(
            resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-1")
        )


CASES = ["tokens", "classes", "streamed"]


def _case(case: str) -> tuple[Plan, Any, Any]:
    plan = Plan(epochs=3, batch_size=s.Piecewise({0: 3, 1: 7, 2: 20}))  # the first leaves one over
    if case == "streamed":
        return Plan(steps=20, batch_size=s.Piecewise({0: 3, 16: 11})), Texts(), no_dropout()
    return (plan, texts(), no_dropout()) if case == "tokens" else (plan, labelled(), classifier())


def no_dropout() -> Any:
    net = model()
    for module in net.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    return net


def process(rank: int, folder: str, port: int) -> None:
    warnings.simplefilter("ignore")
    here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    here |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in here.items()})
    torch.set_num_threads(1)
    for case in CASES:
        plan, data, net = _case(case)
        host = trainer(Path(folder) / case, plan, data, net, ddp_backend="gloo")
        host.train()
        state = host.model.state_dict()
        torch.save({"seen": host.seen, "model": state}, f"{folder}/{case}{rank}.pt")
    del host  # DDP holds the group, whose threads would outlive this process
    gc.collect()
    torch.distributed.destroy_process_group()


def test_two_processes_are_one(tmp_path: Path) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(process, (str(tmp_path), port), nprocs=2)
    for case in CASES:
        first, second = (torch.load(tmp_path / f"{case}{rank}.pt") for rank in range(2))
        net, seen = plain(*_case(case))
        together = [
            a if len(whole) == 1 else a + b
            for a, b, whole in zip(first["seen"], second["seen"], seen, strict=True)
        ]
        assert together == seen
        assert min(map(len, seen)) == 1
        for name, value in net.state_dict().items():
            assert torch.equal(first["model"][name], second["model"][name])
            # Llama's norms compute in float32 whatever the model's dtype. Without the weights it
            # would be some 0.1 in each case.
            near = 1e-12 if case == "classes" else 1e-6
            torch.testing.assert_close(first["model"][name], value, rtol=0, atol=near)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps must be 1, got 2"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size must be False"),
        ({"ignore_data_skip": True}, "ignore_data_skip must be False"),
        ({"train_sampling_strategy": "group_by_length"}, "must be random or sequential"),
        ({"num_train_epochs": 5}, "num_train_epochs must be the plan's 2, or be left out, got 5"),
        ({"max_steps": 7}, "max_steps must be the plan's 22, or -1, got 7"),
        ({"lr_scheduler_type": "linear"}, "give it lr_scheduler_type='constant'"),
        ({"lr_scheduler_type": "constant", "warmup_steps": 3}, "without warmup_steps"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    plan = Plan(epochs=2, batch_size=4, lr=0.1 if "lr_scheduler_type" in changes else None)
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, plan, **changes)


def test_a_stream_of_unknown_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train_dataset has no length"):
        trainer(tmp_path, GROWING, Texts())
