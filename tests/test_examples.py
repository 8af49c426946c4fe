"""Every example does what its first line says."""

import re
import runpy
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

from batchramp import Plan
from batchramp.experiments import from_file

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.name)
def test_a_file_gives_runs(path: Path) -> None:
    runs = from_file(path)
    assert runs
    assert {run.experiment for run in runs} == {path.stem}
    assert f"examples/{path.name}" in path.read_text(encoding="utf-8")


def test_there_are_four_files() -> None:
    assert len(list(EXAMPLES.glob("*.toml"))) == 4


def test_qhm_loop(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "qhm_loop.py"))
    lines = capsys.readouterr().out.splitlines()
    epochs = [line for line in lines if line.startswith("epoch ")]
    assert [int(line.split("batch size ")[1].split(",")[0]) for line in epochs] == [
        16, 16, 32, 32, 64, 64, 128, 128,
    ]  # fmt: skip
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in epochs]
    assert losses[-1] < losses[0] < 1.0


def test_adamw_loop(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "adamw_loop.py"))
    epochs = capsys.readouterr().out.splitlines()
    # 6,500 images: OneCycleLR raises when it is stepped more often than it was told
    assert [int(line.split(", ")[1].split()[0]) for line in epochs] == [204, 102, 51, 26, 13]
    assert float(epochs[-1].split("accuracy ")[1].split()[0]) > 70


README = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")


DIFFS = re.findall(r"```diff\n(.*?)```", README, re.DOTALL)
HOSTS = ("loop", "lightning", "transformers", "accelerate")


@pytest.mark.parametrize(("host", "diff"), list(zip(HOSTS, DIFFS, strict=True)))
def test_a_plan_takes_five_changed_lines_of_an_example(host: str, diff: str) -> None:
    lines = [(line[0], line[1:].strip()) for line in diff.splitlines()]
    changed = [text for sign, text in lines if sign == "+"]
    assert len(changed) <= 5
    example = (EXAMPLES / f"adamw_{host}.py").read_text(encoding="utf-8").splitlines()
    # What is shown stands there, in this order.
    rest = iter(example)
    for sign, text in lines:
        assert sign == "-" or any(text in line for line in rest), text
    # Nothing else of it is of a Plan, but imports and what is printed.
    of_a_plan = re.compile(r"\b(plan|PLAN|sampler|batch_sampler)\b")
    told = re.compile(r"print|f\"|size = |#|from |import |\"\"\"")
    more = [line.strip() for line in example if of_a_plan.search(line) and not told.search(line)]
    assert {line for line in more if not any(text in line for text in changed)} <= {
        "max_epochs=PLAN.epochs,"
    }


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_the_readmes_python_runs(block: str) -> None:
    model = torch.nn.Linear(2, 2)
    before = model.weight.detach().clone()
    dataset = TensorDataset(torch.ones(8, 2), torch.zeros(8))
    step = "optimizer.zero_grad(); model(inputs).sum().backward(); optimizer.step()"
    block = block.replace("...", step).replace(", num_workers=4, persistent_workers=True", "")
    names = {"torch": torch, "model": model, "dataset": dataset}
    exec(block, names)
    assert torch.equal(model.weight, before) == ("optimizer" not in block)
    plan = names["plan"]
    assert isinstance(plan, Plan)
    assert plan.at(plan.length - 1).batch_size > plan.at(0).batch_size
