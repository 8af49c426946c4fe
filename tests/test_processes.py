"""One run on several processes: the numbers of one process, and all end in the same way."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, distributed, nn

from batchramp import QHM, Plan, ScheduledBatchSampler, fit, store
from batchramp import schedules as s
from batchramp.experiments import tasks
from batchramp.task import Task

pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or not distributed.is_gloo_available(), reason="needs gloo and fork"
)

# On 47 samples: batches that two and three processes cannot deal evenly, and last ones of 2 and 1
# samples, of which a process has no share.
GROWING = Plan(
    epochs=11,
    batch_size=s.Piecewise({0: 3, 3: 4, 7: 7, 8: 16, 9: 23, 10: 46}),
    lr=s.Cosine(0.3),
    beta=s.StepDecay(0.9, factor=0.5, every=3),
    gamma=0.7,
)
FOUR = Plan(epochs=4, batch_size=s.Exponential(4, factor=2, every=1), lr=0.1, beta=0.9, gamma=0.7)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()


def noisy_net() -> nn.Module:
    parts = (nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
    return nn.Sequential(*parts).double()


def small(model: Callable[[], nn.Module] = net, n: int = 47, **changes: Any) -> Task:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 6, generator=generator, dtype=torch.float64)
    train = (x, x[:, :3].argmax(1))
    values = {"train": train, "test": None, "loss_fn": nn.functional.cross_entropy}
    return Task(model=model, **{**values, **changes})


# -------------------------------------------------------------------------- starting processes


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def child(work: Callable[..., Any], arguments: Any, environment: dict[str, str], pipe: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(environment)
    try:
        found = ("returned", work(*arguments))
    except Exception as error:
        found = (type(error).__name__, str(error))
    pipe.send(found)
    pipe.close()


class Started:
    """Processes in torchrun's environment, without its agent."""

    def __init__(self, world_size: int, work: Callable[..., Any], *arguments: Any) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["batchramp.training", "torch._dynamo", __name__])
        common = {
            "WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
        }
        self.processes, self.pipes = [], []
        for rank in range(world_size):
            ours, theirs = context.Pipe(duplex=False)
            given = (work, arguments, {**common, "RANK": str(rank)}, theirs)
            process = context.Process(target=child, args=given, daemon=True)
            process.start()
            theirs.close()
            self.processes.append(process)
            self.pipes.append(ours)

    def ended(self, seconds: float = 100) -> list[Any]:
        """What each sent, or ("died", its exit code)."""
        found = []
        until = time.monotonic() + seconds
        try:
            for process, pipe in zip(self.processes, self.pipes, strict=True):
                assert pipe.poll(max(0, until - time.monotonic())), "a process hangs"
                try:
                    found.append(pipe.recv())
                except EOFError:
                    process.join()
                    found.append(("died", process.exitcode))
        finally:
            for process in self.processes:
                process.join(5)
                process.kill()
        return found


def on(world_size: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What ``work`` returns on each of so many processes."""
    found = Started(world_size, work, *arguments).ended()
    assert [kind for kind, _ in found] == ["returned"] * world_size, found
    return [value for _, value in found]


def flat(tensors: Any) -> np.ndarray:
    return torch.cat([t.detach().double().reshape(-1) for t in tensors]).numpy()


def timeless(rows: Any) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


class Traced(QHM):
    """Keeps the parameters after every step."""

    def __init__(self, *arguments: Any, trace: list[np.ndarray], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.trace = trace

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        self.trace.append(flat(p for group in self.param_groups for p in group["params"]))
        return loss


def traced(plan: Plan) -> tuple[list[np.ndarray], list[dict[str, Any]], np.ndarray]:
    trace: list[np.ndarray] = []
    result = fit(small(), plan, seed=3, optimizer=lambda p, **o: Traced(p, trace=trace, **o))
    return trace, result.rows, flat(result.model.parameters())


def alike(row: dict[str, Any], other: dict[str, Any]) -> bool:
    """Equal to rounding, seconds aside."""
    return all(
        other[key] == (value if value is None else pytest.approx(value, rel=1e-9))
        for key, value in row.items()
        if key != "seconds"
    )


def close(ours: np.ndarray, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10 * np.abs(theirs).max())


# -------------------------------------------------------------------------- the same as one


STEPS = Plan(steps=105, batch_size=s.Piecewise({0: 3, 60: 9, 90: 46}), lr=0.1, beta=0.9, gamma=0.7)


@pytest.mark.parametrize(
    ("plan", "world_size"), [(GROWING, 2), (GROWING, 3), (STEPS, 3)], ids=["two", "three", "steps"]
)
def test_each_step_is_that_of_one_process(plan: Plan, world_size: int) -> None:
    trace, rows, _ = traced(plan)
    found = on(world_size, traced, plan)
    for theirs, their_rows, last in found:
        assert len(theirs) == len(trace) == rows[-1]["steps"] >= 100
        for ours, other in zip(trace, theirs, strict=True):
            close(other, ours)
        assert last.tolist() == found[0][2].tolist()
        assert their_rows == found[0][1]
        assert all(map(alike, rows, their_rows))


def own_group() -> list[Any]:
    """A group of the caller's, which `fit` joins and leaves as it is."""
    distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank = distributed.get_rank()
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        del os.environ[name]
    sampler = ScheduledBatchSampler(FOUR, 47)
    result = fit(small(), FOUR, seed=0)
    assert distributed.is_initialized()
    distributed.destroy_process_group()
    return [rank, (sampler.rank, sampler.world_size), flat(result.model.parameters())]


def test_the_callers_group_is_joined_by_fit_and_sampler() -> None:
    found = on(2, own_group)
    assert [(rank, shown) for rank, shown, _ in found] == [(0, (0, 2)), (1, (1, 2))]
    close(found[0][2], flat(fit(small(), FOUR, seed=0).model.parameters()))


def with_batch_norm() -> Any:
    result = fit(small(noisy_net, n=48), FOUR, seed=0)
    state = result.model.state_dict()
    return {name: value.tolist() for name, value in state.items()}, result.rows


def test_batch_norm_keeps_the_first_processs_statistics_and_all_return_them() -> None:
    first, second = on(2, with_batch_norm)
    assert first == second
    alone = with_batch_norm()[0]
    assert alone["1.num_batches_tracked"] == first[0]["1.num_batches_tracked"]
    assert alone["1.running_mean"] != first[0]["1.running_mean"]  # each saw its share


# ------------------------------------------------------------------------------------ resuming


class Stop(Exception):
    pass


def trained(folder: Path, stop: int | None = None, noisy: bool = False) -> Any:
    """Rows and parameters of a run in ``folder``, or what is left when it stops after an epoch."""

    def on_epoch(row: dict[str, Any]) -> None:
        if row["epoch"] == stop:
            raise Stop

    task = small(noisy_net, n=48) if noisy else small()
    try:
        result = fit(task, GROWING if not noisy else FOUR, seed=0, out=folder, on_epoch=on_epoch)
    except Stop:
        return None
    state = {name: value.tolist() for name, value in result.model.state_dict().items()}
    return timeless(result.rows), state


def left_by(folder: Path) -> Any:
    record = store.read(folder)
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    return record.status, timeless(record.rows), record.initial, saved["model"]


def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    trained(tmp_path / "one")
    for stop, world_size in enumerate((2, 1, 3), start=1):
        assert on(world_size, trained, tmp_path / "many", stop) == [None] * world_size
    assert len(store.read(tmp_path / "many").rows) == 4
    found = on(2, trained, tmp_path / "many")
    assert found[0] == found[1]
    one, many = left_by(tmp_path / "one"), left_by(tmp_path / "many")
    assert (many[0], many[2]) == (one[0], one[2])
    assert len(many[1]) == len(one[1])
    assert all(map(alike, one[1], many[1]))
    close(flat(many[3].values()), flat(one[3].values()))
    assert sorted(os.listdir(tmp_path / "one")) == sorted(os.listdir(tmp_path / "many"))


def test_a_resumed_run_of_as_many_processes_is_the_same_to_the_last_bit(tmp_path: Path) -> None:
    whole = on(2, trained, tmp_path / "whole", None, True)
    on(2, trained, tmp_path / "parts", 1, True)
    assert on(2, trained, tmp_path / "parts", None, True) == whole
    ours, theirs = left_by(tmp_path / "whole"), left_by(tmp_path / "parts")
    assert ours[:3] == theirs[:3]
    assert all(torch.equal(ours[3][name], theirs[3][name]) for name in ours[3])


# -------------------------------------------------------------------------- endings and refusals


def bad(kind: str, folder: Path) -> Any:
    rank = int(os.environ["RANK"])
    changes: dict[str, Any] = {"task": small(), "plan": FOUR, "seed": 0}

    def fails(*_: Any) -> Any:
        raise ZeroDivisionError(f"on process {rank}")

    if kind == "seed":
        changes["seed"] = -1
    elif kind == "folder":
        changes |= {"seed": 5, "out": folder}
    elif kind == "batch size":
        changes["plan"] = Plan(epochs=4, batch_size=1, lr=0.1, beta=0, gamma=0)
    elif kind == "optimizer":
        changes["plan"] = Plan(epochs=4, batch_size=4)
    elif kind == "seeds":
        changes["seed"] = rank
    elif kind == "data":
        changes["task"] = small(n=47 + rank)
    elif kind == "model":
        changes["task"] = small(net if rank == 0 else fails)
    elif kind == "measure":
        loss = nn.functional.cross_entropy
        changes["task"] = small(loss_fn=lambda o, t: loss(o, t) if len(t) < 47 else fails())
    elif kind == "on_epoch":
        changes["on_epoch"] = fails
    fit(**changes)


REFUSED = {
    "seed": ("ValueError", "seed must be an integer >= 0"),
    "folder": ("ValueError", "seed differs from that of the run in"),
    "batch size": ("ValueError", "batch_size must be >= the 2 processes"),
    "optimizer": ("ValueError", "optimizer QHM cannot be made"),
    "seeds": ("ValueError", "seed must be the same on every process, got 0 on process 0 and 1"),
    "data": ("ValueError", "n must be the same on every process, got 47 on process 0 and 48"),
    "model": ("ZeroDivisionError", "on process 1"),
    "measure": ("ZeroDivisionError", "on process 0"),
    "on_epoch": ("ZeroDivisionError", "on process 0"),
}


def all_bad(folder: Path) -> dict[str, tuple[str, str]]:
    found = {}
    for kind in REFUSED:
        try:
            bad(kind, folder)
        except Exception as error:
            found[kind] = (type(error).__name__, str(error))
    fit(small(), FOUR, seed=0)  # no refusal has left a process waiting
    return found


def test_what_one_process_refuses_all_refuse(tmp_path: Path) -> None:
    fit(small(), FOUR, seed=0, out=tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    first, second = on(2, all_bad, tmp_path / "run")
    assert first == second
    assert first.keys() == REFUSED.keys()
    for kind, (error, message) in REFUSED.items():
        assert first[kind][0] == error
        assert message in first[kind][1]
        assert "\n" not in first[kind][1]
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def fails_alone() -> str:
    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        if outputs.requires_grad and os.environ["RANK"] == "1":
            raise ZeroDivisionError("in the midst")
        return nn.functional.cross_entropy(outputs, targets)

    with pytest.raises(ZeroDivisionError, match="in the midst"):
        fit(small(loss_fn=loss_fn), FOUR, seed=0)
    with pytest.raises(ConnectionError, match="has failed while others waited: ZeroDivisionError"):
        fit(small(), FOUR, seed=0)
    os._exit(3)  # as it should, and the other one hears of it


def test_what_fails_on_one_process_in_the_midst_ends_all() -> None:
    first, second = Started(2, fails_alone).ended()
    assert second == ("died", 3)
    assert first[0] == "ConnectionError"
    assert "another process of this run has ended" in first[1]


def explodes_on_the_second() -> Any:
    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(outputs, targets)
        shared = outputs.requires_grad and len(targets) < 47 and os.environ["RANK"] == "1"
        return loss + float("inf") if shared else loss

    plan = Plan(steps=300, batch_size=4, lr=1e-3, beta=0, gamma=0)
    result = fit(small(loss_fn=loss_fn), plan, seed=0)
    return result.status, [row["steps"] for row in result.rows]


def test_a_loss_that_is_not_finite_on_one_process_ends_the_run_on_all() -> None:
    first, second = on(2, explodes_on_the_second)
    assert first == second
    assert first[0] == "diverged"
    assert first[1][-1] == 100  # where it is looked at, inside the ninth epoch of twelve steps


def sleeps(folder: Path, victim: int) -> Any:
    """A run whose ``victim`` says where it is and then waits to be killed, in its second epoch."""
    rank = int(os.environ["RANK"])

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        if rank == victim and outputs.requires_grad and len(store_rows(folder)) == 1:
            (folder / "here").write_text(str(os.getpid()))
            time.sleep(600)
        return nn.functional.cross_entropy(outputs, targets)

    fit(small(loss_fn=loss_fn), FOUR, seed=0, out=folder)


def store_rows(folder: Path) -> list[str]:
    path = folder / "epochs.jsonl"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others_soon_and_says_so(victim: int, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    started = Started(2, sleeps, folder, victim)
    until = time.monotonic() + 100
    while not (folder / "here").exists():
        assert time.monotonic() < until
        time.sleep(0.05)
    os.kill(started.processes[victim].pid, signal.SIGKILL)
    killed = time.monotonic()
    found = started.ended()
    assert time.monotonic() - killed < 60
    assert found[victim] == ("died", -signal.SIGKILL)
    kind, message = found[1 - victim]
    assert kind == "ConnectionError"
    assert message.startswith("another process of this run has ended or does not answer")
    assert "\n" not in message
    # What is left goes on, on as many processes as there are.
    (folder / "here").unlink()
    fit(small(), FOUR, seed=0, out=folder)
    fit(small(), FOUR, seed=0, out=tmp_path / "whole")
    assert store.read(folder).status == "finished"
    assert all(map(alike, store.read(tmp_path / "whole").rows, store.read(folder).rows))


SCRIPT = """
import os, signal, sys
import torch
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_processes import FOUR, small
from batchramp import fit

torch.set_num_threads(1)
folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
restart = int(os.environ["TORCHELASTIC_RESTART_COUNT"])

def on_epoch(row):
    (folder / f"seen-{restart}-{row['epoch']}").touch()

def make():
    if restart == 0 and rank == 1:  # killed in the second epoch, when the first is on disk
        def loss_fn(outputs, targets):
            if (folder / "seen-0-0").exists():
                os.kill(os.getpid(), signal.SIGKILL)
            return torch.nn.functional.cross_entropy(outputs, targets)
        return small(loss_fn=loss_fn)
    return small()

fit(make(), FOUR, seed=0, out=folder / "run", on_epoch=on_epoch)
"""


@pytest.mark.slow
def test_torchruns_elastic_restart_goes_on_from_the_last_checkpoint(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    done = torchrun(
        "--max-restarts", "1", str(script), str(tmp_path), str(Path(__file__).parent)
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = sorted(path.name for path in tmp_path.glob("seen-*"))
    assert seen == ["seen-0-0", "seen-1-1", "seen-1-2", "seen-1-3"]
    fit(small(), FOUR, seed=0, out=tmp_path / "whole")
    record = store.read(tmp_path / "run")
    assert record.status == "finished"
    assert all(map(alike, store.read(tmp_path / "whole").rows, record.rows))


FILE = """
task = "quadratic"
seeds = [0, 1]

[plan]
epochs = 3
batch_size = 24
lr = 0.05
beta = 0.9
gamma = 0.7
"""


def torchrun(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*command, "--nproc-per-node", "2", *arguments],
        capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_command_line_under_torchrun_trains_and_reports_once(tmp_path: Path) -> None:
    file, out = tmp_path / "file.toml", tmp_path / "out"
    file.write_text(FILE)
    done = torchrun("-m", "batchramp", "run", str(file), "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr
    assert [run["status"] for run in json.loads(done.stdout)["runs"]] == ["finished"] * 2
    records = store.read_all(out)
    assert [(r.status, len(r.rows)) for r in records] == [("finished", 3)] * 2
    task = tasks.load("quadratic")
    for record in records:
        alone = fit(task, record.plan, seed=record.seed)
        assert all(map(alike, alone.rows, record.rows))
    # Refused by both, in one line each, before anything is written.
    file.write_text(FILE.replace("batch_size = 24", "batch_size = 1"))
    done = torchrun("-m", "batchramp", "run", str(file), "--out", str(tmp_path / "other"))
    assert done.returncode != 0
    assert "exitcode  : 2" in done.stderr
    assert "batchramp: batch_size must be >= the 2 processes" in done.stderr
    assert not (tmp_path / "other").exists()


# ------------------------------------------------------------------------ sharded parameters


# What the fused kernel cannot serve goes through foreach, without a word.
IMPLEMENTATIONS = ({}, {"fused": True}, {"foreach": True}, {"foreach": False})


def sharded() -> list[list[np.ndarray]]:
    """Parameters after each step of a model under FSDP2, put together again."""
    from torch.distributed.fsdp import fully_shard

    distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
    found = []
    task = small()
    for implementation in IMPLEMENTATIONS:
        torch.manual_seed(0)
        model = task.make()
        assert isinstance(model, nn.Sequential)
        for layer in (model[0], model[2]):
            fully_shard(layer)
        fully_shard(model)
        found.append(steps_of(model, task, QHM, {"weight_decay": 0.1, **implementation}))
        assert all(type(p).__name__ == "DTensor" for p in model.parameters())
    distributed.destroy_process_group()
    return found


def steps_of(model: nn.Module, task: Task, make: Any, options: dict[str, Any]) -> list[np.ndarray]:
    optimizer = make(model.parameters(), **FOUR.at(0).hyperparameters, **options)
    sampler = ScheduledBatchSampler(FOUR, task.n, seed=0)
    found = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for k, (inputs, targets) in enumerate(task.batches(sampler)):
            loss = task.loss(model, inputs, targets) * sampler.weight(k)
            optimizer.zero_grad()
            loss.backward()
            optimizer.param_groups[0]["beta"] = 0.9 / (1 + k % 3)
            optimizer.step()
            whole = (
                p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()
            )
            found.append(flat(whole))
    return found


def test_qhms_step_on_sharded_parameters_is_the_unsharded_one() -> None:
    torch.manual_seed(0)
    task = small()
    expected = steps_of(task.make(), task, QHM, {"weight_decay": 0.1, "foreach": False})
    for by_process in on(2, sharded):
        assert len(by_process) == len(IMPLEMENTATIONS)
        for found in by_process:
            assert len(found) == len(expected) == 18
            for ours, theirs in zip(found, expected, strict=True):
                close(ours, theirs)
