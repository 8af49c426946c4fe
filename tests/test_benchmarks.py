"""The comparisons run at a tiny size, and their sides compute the same. No time is looked at."""

import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from batchramp import Plan, ScheduledBatchSampler, TensorLoader, fit
from batchramp import schedules as s
from batchramp.data import fashion_mini
from batchramp.experiments import tasks
from batchramp.measure import full_gradient_norm
from batchramp.models import MLP
from batchramp.optim.reference import reference_qhm
from benchmarks import (
    __main__,
    experiment,
    input,
    large_batch,
    machine,
    optimizer_step,
    released,
    results,
    start,
    training_step,
)
from benchmarks.timing import Aim, Case, measure, repeated

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = [(3, 2), (5,)]


def told(*seconds):
    """A side that takes so long, turn by turn."""
    times = iter(seconds)
    return lambda: next(times)


def section(**facts):
    case = Case(
        "a case",
        "step",
        "a",
        {"a": told(2.0, 1.0, 4.0), "b": told(3.0, 2.0, 2.0)},
        3,
        peers={"c": _not_there},
        aims=[Aim("b", "a", most=1.4), Aim("b", most=2.5)],
        warm_up=False,
    )
    return {
        "title": "A section", "note": "Of numbers.", "size": "full", "wait policy": "passive",
        "machine": {"processor": "p", "cores": 2}, "cases": [measure(case)], "date": "today",
        "seconds": 1, "others": 0.0, "busy": False, **facts,
    }  # fmt: skip


def _not_there():
    raise ImportError("no module named c\nand more")


# The harness


def test_a_ratio_is_the_median_of_ratios_of_one_round():
    (case,) = section()["cases"]
    a, b = case["rows"]
    assert (a["seconds"], a["ratio"]) == (2.0, 1.0)
    # 1.5, 2 and 0.5 of the rounds, not 2 / 2 of the medians.
    assert (b["seconds"], b["ratio"], b["ratio_low"], b["ratio_high"]) == (2.0, 1.5, 1.0, 1.75)
    over, seconds = case["aims"]
    assert (over["value"], over["reached"]) == (1.5, False)
    assert (seconds["value"], seconds["reached"]) == (2.0, True)
    assert case["missing"] == {"c": "ImportError: no module named c"}


def test_an_aim_has_one_limit():
    assert Aim("a", "b", most=1.0).reached(1.0)
    assert not Aim("a", "b", least=2.0).reached(1.9)
    for wrong in ({}, {"most": 1.0, "least": 1.0}):
        with pytest.raises(ValueError, match="exactly one of most and least"):
            Aim("a", "b", **wrong)


def test_a_side_that_fails_is_an_error_and_a_peer_that_fails_is_missing():
    def fails():
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        measure(Case("", "step", "a", {"a": fails}, 1))
    found = measure(Case("", "step", "a", {"a": told(1.0, 1.0)}, 1, peers={"b": lambda: fails}))
    assert found["missing"] == {"b": "RuntimeError: broken"}
    assert [row["side"] for row in found["rows"]] == ["a"]


def test_a_turn_divides_by_all_that_it_did():
    ticks = iter(range(100))
    calls = []
    turn = repeated(lambda: calls.append(1), 3.0, count=4, clock=lambda: next(ticks))
    # A call lasts one tick, by this clock: three calls a turn, of four each.
    assert turn() == 1 / 12
    assert len(calls) == 2 + 3
    assert turn() == 1 / 12
    assert len(calls) == 2 + 3 + 3


def test_results_are_kept_drawn_and_say_what_is_not_reached(tmp_path):
    results.keep(tmp_path, "one", section())
    results.keep(tmp_path, "two", section(title="Another", busy=True, others=1.5))
    results.keep(tmp_path, "two", section(title="Again", busy=True, others=1.5, size="quick"))
    results.write(tmp_path, ["one", "two", "three"])
    text = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert "**not reached**" in text
    assert "| at most 1.4 | 1.5 [1, 1.75] |" in text
    assert "cause not known" in text
    assert "## Again (busy machine: others used 1.50 cores; quick)" in text
    assert "Another" not in text
    assert "- c: `ImportError: no module named c`" in text
    assert "Not measured: three." in text
    pictures = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert pictures == {"one.svg", "two.svg"}
    assert set(results.load(tmp_path)) == {"one", "two"}


def test_a_change_since_the_last_measurement_is_said():
    before, now = section(), section()
    assert "was" not in results.as_text(now, before)
    for name, value in (("ratio", 0.5), ("ratio_low", 0.4), ("ratio_high", 0.6)):
        before["cases"][0]["rows"][1][name] = value
    assert results.as_text(now, before).count("was 0.5 x") == 1


def test_a_busy_machine_is_refused_or_marked(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(__main__, "look", lambda: 1.9)
    monkeypatch.setattr(machine, "adopt_orphans", lambda: None)
    monkeypatch.setattr(__main__, "in_process", lambda name, size: section(size=size, busy=True))
    arguments = ["benchmarks", "--only", "theory", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as refused:
        __main__.main()
    assert refused.value.code == 2
    assert "others use 1.9 of" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("sys.argv", [*arguments, "--anyway"])
    __main__.main()
    assert "busy machine" in (tmp_path / "RESULTS.md").read_text(encoding="utf-8")


@pytest.mark.skipif(machine.Others().cores() is None, reason="only Linux tells")
def test_own_work_is_not_that_of_others():
    others = machine.Others()
    begin = machine._own()
    while machine._own() - begin < 0.1:
        pass
    own = machine._own() - begin
    taken = machine._busy() - others._machine
    # The machine counts in hundredths of a second, each core for itself.
    assert taken >= own - 0.05
    assert others.cores() >= 0


@pytest.mark.parametrize("name", ["optimizer_step", "augmentation", "theory", "input"])
def test_comparisons_run(name):
    found = __main__.run(name, "tiny")
    json.dumps(found)
    for case in found["cases"]:
        assert case["base"] in [row["side"] for row in case["rows"]]
        assert all(row["seconds"] > 0 and math.isfinite(row["ratio"]) for row in case["rows"])
    assert results.as_text({**found, "busy": False, "others": 0.0})


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "name",
    ["training_step", "large_batch", "experiment", "vectorised", "distributed", "start"],
)
def test_comparisons_that_start_processes_run(name, tmp_path):
    section = __main__.in_process(name, "tiny")
    assert section is not None
    results.keep(tmp_path, name, section)
    results.write(tmp_path, __main__.COMPARISONS)
    assert section["title"] in (tmp_path / "RESULTS.md").read_text(encoding="utf-8")


def test_every_comparison_is_listed():
    here = __main__._HERE
    named = {path.stem for path in here.glob("*.py") if "def cases(" in path.read_text("utf-8")}
    assert named == set(__main__.COMPARISONS)


# The sides compute the same


def test_all_qhm_take_the_same_steps():
    sides = {n: side for n, side in optimizer_step.ours(SHAPES).items() if "QHM" in n}
    for name, make in optimizer_step.peers(SHAPES).items():
        package = "qhoptim" if name.startswith("qhoptim") else "pytorch_optimizer"
        try:
            __import__(package)
        except ImportError:
            continue
        sides[name] = make()
    ends = {}
    for name, side in sides.items():
        for _ in range(20):
            side()
        ends[name] = side.params
    for params in ends.values():
        for p, q in zip(params, ends["QHM loop"], strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_all_sgd_take_the_same_first_step():
    # From the second on, foreach has added the momentum to the very gradients that stay.
    sides = [side for n, side in optimizer_step.ours(SHAPES).items() if "SGD" in n]
    for side in sides:
        side()
    for side in sides[1:]:
        for p, q in zip(side.params, sides[0].params, strict=True):
            torch.testing.assert_close(p, q)


def test_the_shapes_are_the_models():
    from batchramp import models

    shapes = [tuple(p.shape) for p in models.resnet18(classes=100).parameters()]
    assert sorted(shapes) == sorted(optimizer_step.resnet18_shapes())
    vit = optimizer_step.vit_tiny_shapes()
    assert (len(vit), round(sum(map(math.prod, vit)) / 1e6, 1)) == (118, 2.7)


def test_the_released_optimizer_is_algorithm_1():
    rng = np.random.default_rng(0)
    x0, gradients = rng.standard_normal(3), rng.standard_normal((12, 3))
    lr, beta, gamma = rng.uniform(0.01, 0.5, 12), rng.uniform(0, 0.99, 12), rng.uniform(0, 1, 12)
    x = torch.tensor(x0, requires_grad=True)
    optimizer = released.ReleasedQHM([x], lr=1.0)
    values = (list(map(float, each)) for each in (lr, beta, gamma))
    expected = reference_qhm(list(x0), gradients.tolist(), *values)
    for k, gradient in enumerate(gradients):
        optimizer.param_groups[0].update(lr=lr[k], beta=beta[k], gamma=gamma[k])
        x.grad = torch.tensor(gradient)
        optimizer.step()
        np.testing.assert_allclose(x.detach(), expected[k + 1], rtol=1e-13, atol=1e-13)


def test_the_released_loop_reads_the_very_images():
    inputs, targets = fashion_mini().validation
    pictures = released.Pictures(inputs[:30], targets[:30])
    for k in range(30):
        image, target = pictures[k]
        assert torch.equal(image, inputs[k])
        assert target == targets[k]


def test_the_released_full_gradient_is_the_full_gradient():
    inputs, targets = (part[:70] for part in fashion_mini().validation)
    torch.manual_seed(0)
    model = MLP()
    loader = DataLoader(released.Pictures(inputs, targets), batch_size=32)
    norm = released.full_gradient_norm(model, loader)
    expected = full_gradient_norm(model, cross_entropy, [(inputs, targets)]).norm
    assert norm == pytest.approx(expected, rel=1e-5)


def test_the_released_loop_takes_the_plan_s_steps(monkeypatch):
    train, test = (tuple(part[:50] for part in which) for which in fashion_mini()[::2])
    plan = Plan(epochs=3, batch_size=s.Piecewise({0: 8, 2: 16}), lr=0.1, beta=0.9, gamma=0.7)
    steps = []
    step = released.ReleasedQHM.step
    monkeypatch.setattr(released.ReleasedQHM, "step", lambda self: steps.append(1) or step(self))
    rows = released.train(plan, train, test, seed=0, workers=0)
    assert len(rows) == 3
    assert len(steps) == plan.total_steps(50)
    assert all(map(math.isfinite, (value for row in rows for value in row.values())))
    assert rows[-1]["train_loss"] != rows[0]["train_loss"]


def test_the_experiment_is_the_paper_s_three_policies():
    runs = [run for seed in range(3) for run in experiment.runs_of(seed)]
    assert len(runs) == 36
    assert {run.label for run in runs} == {"increasing", "small", "large"}
    assert len({run.panel for run in runs}) == 4
    short = experiment.runs_of(0, epochs=4, panels=2)
    assert [run.plan.epochs for run in short] == [4] * 6


def test_loaders_yield_every_image_once():
    data = torch.arange(20.0).view(20, 1, 1, 1), torch.arange(20)
    for name, loader in input.loaders(data, 8, workers=0).items():
        for _ in range(2):
            batches = list(loader)
            assert [len(y) for _, y in batches] == [8, 8, 4], name
            assert sorted(torch.cat([y for _, y in batches]).tolist()) == list(range(20)), name
            assert all(torch.equal(x.flatten().long(), y) for x, y in batches), name


def test_growing_passes_see_every_image_in_every_epoch():
    data = input.images(40)
    works = input.growing(data, workers=0)
    try:
        import bs_scheduler  # noqa: F401

        works["bs-scheduler"] = partial(input.bs_scheduler, data)
    except ImportError:
        pass
    assert {name: work() for name, work in works.items()} == dict.fromkeys(works, 160)


def test_a_thread_ahead_yields_the_same_batches():
    data = input.images(40)
    sampler = ScheduledBatchSampler(Plan(epochs=1, batch_size=16), 40)
    loader = TensorLoader(data, sampler)
    plain = list(loader)
    sampler.set_epoch(0)
    for ours, theirs in zip(plain, input.ahead(loader), strict=True):
        assert all(map(torch.equal, ours, theirs))


def test_the_plain_loop_measures_what_fit_measures():
    small = type(fashion_mini())(*((x[:60], y[:60]) for x, y in fashion_mini()))
    torch.manual_seed(0)
    model = MLP()
    task = tasks.load("fashion-mini", "mlp")
    task = training_step.replace(
        task, train=small.train, validation=small.validation, test=small.test
    )
    ours = task.measure(model)
    columns = [f"{part}_{what}" for part in ("train", "validation", "test")
               for what in ("loss", "accuracy")]  # fmt: skip
    theirs = training_step.measured(model, small)
    found = [ours[column] for column in [*columns, "full_gradient_norm"]]
    assert found == pytest.approx(theirs, rel=1e-5)
    plan = training_step.planned(2)
    assert len(training_step.plain(small, 2)) - 1 == len(fit(task, plan, seed=0).rows) == 2


def test_micro_batches_of_the_large_batch_are_the_whole_gradient():
    ends = []
    for way in ("given back", "micro-batches"):
        step = large_batch.stepped("MLP 784-128-128-10", 600, way)
        step()
        ends.append([p for p in step.__closure__ for p in _parameters(p.cell_contents)])
    for p, q in zip(*ends, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def _parameters(held):
    return list(held.parameters()) if isinstance(held, torch.nn.Module) else []


def test_made_up_runs_are_runs(tmp_path):
    from batchramp import store

    start.write_runs(tmp_path, 3)
    records = store.read_all(tmp_path)
    assert [len(record.rows) for record in records] == [30] * 3
    assert {record.status for record in records} == {"finished"}
