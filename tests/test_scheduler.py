"""ParamScheduler: what it writes, what it leaves alone, what it refuses."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

from batchramp import QHM, ParamScheduler, Plan, ScheduledBatchSampler
from batchramp import schedules as s

PLAN = Plan(
    epochs=6,
    batch_size=s.Exponential(2, factor=2, every=2),
    lr=s.Cosine(0.1),
    beta=s.StepDecay(0.9, factor=0.5, every=2),
    gamma=s.StepDecay(0.7, factor=0.5, every=3),
)
LR_ONLY = Plan(epochs=4, batch_size=8, lr=s.Inverse(0.1))
BATCH_ONLY = Plan(epochs=4, batch_size=s.Exponential(2, factor=2, every=1))


def parameter(size=2):
    return nn.Parameter(torch.ones(size, dtype=torch.float64))


def two_groups(optimizer=torch.optim.SGD, first=(), second=(), **common):
    return optimizer(
        [{"params": [parameter()], **dict(first)}, {"params": [parameter()], **dict(second)}],
        **common,
    )


def lrs(optimizer):
    return [float(group["lr"]) for group in optimizer.param_groups]


def refused(message, *args, **kwargs):
    with pytest.raises(ValueError, match=message) as error:
        ParamScheduler(*args, **kwargs)
    assert "\n" not in str(error.value)


# What it writes


def test_every_tick_has_the_plans_values():
    optimizer = QHM([parameter()], **PLAN.at(0).hyperparameters)
    scheduler = ParamScheduler(optimizer, PLAN)
    for epoch in range(PLAN.length):
        (group,) = optimizer.param_groups
        assert {name: group[name] for name in ("lr", "beta", "gamma")} == PLAN.at(
            epoch
        ).hyperparameters
        assert scheduler.last_epoch == epoch
        assert scheduler.get_last_lr() == scheduler.get_lr() == [PLAN.at(epoch).lr]
        scheduler.step()


def test_tick_0_is_written_at_construction_over_whatever_was_there():
    optimizer = torch.optim.SGD([parameter()], lr=123.0)
    scheduler = ParamScheduler(optimizer, LR_ONLY)
    assert lrs(optimizer) == [0.1]
    assert scheduler.base_lrs == [0.1]


@pytest.mark.parametrize("plan", [Plan(steps=5, batch_size=2, lr=s.Inverse(1.0)), LR_ONLY])
def test_after_the_last_tick_the_last_values_are_held_and_then_it_refuses(plan):
    optimizer = torch.optim.SGD([parameter()], lr=1.0)
    scheduler = ParamScheduler(optimizer, plan)
    for _ in range(plan.length):
        scheduler.step()
    assert scheduler.last_epoch == plan.length
    assert lrs(optimizer) == [plan.at(plan.length - 1).lr]
    with pytest.raises(ValueError, match=f"ends after {plan.length} {plan.unit}.*too often"):
        scheduler.step()
    assert scheduler.last_epoch == plan.length
    assert lrs(optimizer) == [plan.at(plan.length - 1).lr]


def test_an_outside_edit_does_not_drift():
    optimizer = torch.optim.SGD([parameter()], lr=0.1)
    scheduler = ParamScheduler(optimizer, LR_ONLY)
    scheduler.step()
    optimizer.param_groups[0]["lr"] *= 7
    with pytest.warns(UserWarning, match=r"lr of a param group is 0.35.*another scheduler writes"):
        scheduler.step()
    assert lrs(optimizer) == [LR_ONLY.at(2).lr]


def test_two_schedulers_of_one_field_are_told_apart():
    optimizer = torch.optim.AdamW([parameter()], lr=0.1)
    plan = Plan(epochs=4, batch_size=8, beta=s.Linear(0.5, 0.1))
    scheduler = ParamScheduler(optimizer, plan, fields={"beta": ["betas", 0]})  # as out of JSON
    other = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=4)
    optimizer.step()
    with pytest.warns(UserWarning, match="beta of a param group is 0.95, where the plan wrote 0.5"):
        scheduler.step()
    other.step()
    with pytest.warns(UserWarning, match="beta of a param group"):
        scheduler.step()


def test_a_loaded_optimizer_is_nobodys_edit():
    optimizer = torch.optim.SGD([parameter()], lr=0.1)
    scheduler = ParamScheduler(optimizer, LR_ONLY)
    saved = optimizer.state_dict()
    scheduler.step()
    optimizer.load_state_dict(saved)
    scheduler.step()
    assert lrs(optimizer) == [LR_ONLY.at(2).lr]


def test_what_lacks_beta_is_told_where_it_may_go():
    for make, to in ((torch.optim.Adam, r"\('betas', 0\)"), (torch.optim.SGD, "'momentum'")):
        with pytest.raises(ValueError, match=f"as in fields={{'beta': {to}}}"):
            ParamScheduler(make([parameter()], lr=0.1), Plan(epochs=4, batch_size=8, beta=0.5))


def test_set_epoch_goes_back_and_takes_numpy_integers():
    optimizer = torch.optim.SGD([parameter()], lr=0.1)
    scheduler = ParamScheduler(optimizer, LR_ONLY)
    scheduler.set_epoch(3)
    scheduler.set_epoch(np.int64(1))
    assert lrs(optimizer) == [LR_ONLY.at(1).lr]
    scheduler.step(2)
    assert scheduler.last_epoch == 2
    assert type(scheduler.state_dict()["last_epoch"]) is int


@pytest.mark.parametrize("epoch", [-1, 1.0, True, "1", 5])
def test_a_tick_outside_the_plan_is_refused_and_nothing_moves(epoch):
    optimizer = torch.optim.SGD([parameter()], lr=0.1)
    scheduler = ParamScheduler(optimizer, LR_ONLY)
    scheduler.step()
    with pytest.raises(ValueError, match=r"epoch|ends after"):
        scheduler.set_epoch(epoch)
    assert scheduler.last_epoch == 1
    assert lrs(optimizer) == [LR_ONLY.at(1).lr]


def test_a_plan_in_samples_is_moved_by_position_only():
    plan = Plan(samples=100, batch_size=4, lr=s.Inverse(1.0))
    optimizer = torch.optim.SGD([parameter()], lr=1.0)
    scheduler = ParamScheduler(optimizer, plan)
    with pytest.raises(ValueError, match=r"set_epoch\(samples\)"):
        scheduler.step()
    scheduler.set_epoch(40)
    assert lrs(optimizer) == [plan.at(40).lr]


# A citizen of torch


def test_it_is_an_lr_scheduler_that_wraps_nothing():
    optimizer = torch.optim.SGD([parameter()], lr=0.1)
    before = set(vars(optimizer))
    step = type(optimizer).step
    scheduler = ParamScheduler(optimizer, LR_ONLY)
    assert isinstance(scheduler, LRScheduler)
    assert optimizer.step.__func__ is step
    assert set(vars(optimizer)) == before
    assert set(optimizer.param_groups[0]) == set(torch.optim.SGD([parameter()]).param_groups[0])
    scheduler.step()  # before any optimizer.step(): torch's own would warn, and that is an error


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, QHM])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_training_under_it_equals_training_by_hand(optimizer, as_tensor):
    kwargs = {"lr": torch.tensor(0.1, dtype=torch.float64) if as_tensor else 0.1}
    x, y = parameter(), parameter()
    ours = optimizer([x], foreach=False, **kwargs)
    theirs = optimizer([y], foreach=False, **copy.deepcopy(kwargs))
    scheduler = ParamScheduler(ours, LR_ONLY)
    for epoch in range(4):
        theirs.param_groups[0]["lr"] = LR_ONLY.at(epoch).lr
        for p, opt in ((x, ours), (y, theirs)):
            p.grad = torch.cos(p.detach() + epoch)
            opt.step()
        scheduler.step()
    assert not torch.equal(x, torch.ones_like(x))
    torch.testing.assert_close(x, y, rtol=1e-12, atol=0)


def test_a_tensor_is_filled_in_place():
    lr = torch.tensor(0.5)
    optimizer = torch.optim.Adam([parameter()], lr=lr, foreach=False)
    scheduler = ParamScheduler(optimizer, LR_ONLY)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] is lr
    assert float(lr) == pytest.approx(0.05, rel=1e-7)
    assert all(type(value) is float for value in scheduler.get_last_lr())


def test_groups_that_share_one_tensor_get_their_own_lr():
    shared = torch.tensor(0.5)
    optimizer = two_groups(
        torch.optim.Adam, {"lr_scale": 1.0}, {"lr_scale": 0.1}, lr=shared, foreach=False
    )
    scheduler = ParamScheduler(optimizer, LR_ONLY)
    assert lrs(optimizer) == pytest.approx([0.1, 0.01])
    held = [group["lr"] for group in optimizer.param_groups]
    scheduler.step()
    assert lrs(optimizer) == pytest.approx([0.05, 0.005])
    assert all(a is g["lr"] for a, g in zip(held, optimizer.param_groups, strict=True))


def test_torchs_own_scheduler_goes_on_when_only_the_batch_size_is_planned():
    def trace(with_ours):
        optimizer = torch.optim.AdamW([parameter()], lr=0.1)
        theirs = CosineAnnealingLR(optimizer, T_max=4)
        sampler = ScheduledBatchSampler(BATCH_ONLY, 8)
        ours = ParamScheduler(optimizer, BATCH_ONLY, sampler=sampler) if with_ours else None
        seen = []
        for _ in range(4):
            seen.append((lrs(optimizer), len(sampler)))
            optimizer.step()
            theirs.step()
            if ours:
                ours.step()
        return seen

    alone, together = trace(False), trace(True)
    assert [lr for lr, _ in alone] == [lr for lr, _ in together]
    assert [batches for _, batches in together] == [4, 2, 1, 1]


def test_an_optimizer_without_lr_serves_a_plan_without_lr():
    class NoLr(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {"rho": 0.5})

    optimizer = NoLr([parameter()])
    scheduler = ParamScheduler(optimizer, BATCH_ONLY)
    scheduler.step()
    assert scheduler.get_last_lr() == []
    refused("no 'lr'", NoLr([parameter()]), LR_ONLY)


# Param groups


def test_lr_scale_keeps_the_ratio_of_groups_for_lr_alone():
    optimizer = two_groups(QHM, {}, {"lr": 0.03, "lr_scale": 0.25}, lr=0.1, beta=0.9, gamma=0.7)
    scheduler = ParamScheduler(optimizer, PLAN)
    for epoch in range(6):
        values = PLAN.at(epoch)
        assert lrs(optimizer) == [values.lr, values.lr * 0.25]
        assert [group["beta"] for group in optimizer.param_groups] == [values.beta] * 2
        scheduler.step()


@pytest.mark.parametrize(("name", "scale"), [("lr", ".*lr_scale"), ("beta", ""), ("gamma", "")])
def test_groups_that_differ_are_refused(name, scale):
    optimizer = two_groups(QHM, {}, {name: 0.5}, lr=0.1, beta=0.9, gamma=0.7)
    refused(f"^{name} must be the same in all param groups.*0.5{scale}", optimizer, PLAN)
    assert optimizer.param_groups[0]["lr"] == 0.1
    ParamScheduler(optimizer, BATCH_ONLY)  # which writes none of them


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf"), "2", True, None])
def test_a_bad_lr_scale_is_refused(scale):
    refused("lr_scale must be", two_groups(torch.optim.SGD, {"lr_scale": scale}, lr=0.1), LR_ONLY)


def test_a_group_added_later_joins_and_is_not_flattened():
    optimizer = torch.optim.SGD([parameter()], lr=0.1)
    scheduler = ParamScheduler(optimizer, LR_ONLY)
    scheduler.step()
    optimizer.add_param_group({"params": [parameter()]})
    optimizer.add_param_group({"params": [parameter()], "lr": 0.05})
    optimizer.add_param_group({"params": [parameter()], "lr": 3.0, "lr_scale": 2.0})
    scheduler.step()
    now = LR_ONLY.at(2).lr
    assert lrs(optimizer) == [now, now, now, 2 * now]
    optimizer.add_param_group({"params": [parameter()], "lr": 0.007})
    with pytest.raises(ValueError, match=r"lr must be the same.*0\.007.*lr_scale"):
        scheduler.step()
    assert scheduler.last_epoch == 2
    optimizer.param_groups[-1]["lr_scale"] = 0.5
    scheduler.step()
    assert lrs(optimizer)[-1] == LR_ONLY.at(3).lr / 2


# Fields


def test_fields_map_to_what_another_optimizer_calls_it():
    plan = Plan(epochs=4, batch_size=2, lr=0.1, beta=s.StepDecay(0.8, factor=0.5, every=2))
    optimizer = torch.optim.SGD([parameter()], lr=0.1, momentum=0.3, nesterov=True)
    scheduler = ParamScheduler(optimizer, plan, fields={"beta": "momentum"})
    assert optimizer.param_groups[0]["momentum"] == 0.8
    scheduler.set_epoch(2)
    assert optimizer.param_groups[0]["momentum"] == 0.4
    assert "beta" not in optimizer.param_groups[0]


def test_a_plan_writes_only_what_it_schedules():
    optimizer = QHM([parameter()], lr=0.3, beta=0.25, gamma=0.75)
    scheduler = ParamScheduler(optimizer, Plan(epochs=3, batch_size=1, beta=0.5))
    scheduler.step()
    (group,) = optimizer.param_groups
    assert (group["lr"], group["beta"], group["gamma"]) == (0.3, 0.5, 0.75)


@pytest.mark.parametrize(
    ("plan", "fields", "message"),
    [
        (PLAN, None, "schedules beta, but SGD's param groups have no 'beta'"),
        (LR_ONLY, {"beta": "momentum"}, "fields maps beta, but the plan does not schedule"),
        (LR_ONLY, {"momentum": "beta"}, "fields maps lr, beta or gamma, got 'momentum'"),
        (LR_ONLY, {"lr": "nesterov"}, "lr must go to a single number, but 'nesterov' is False"),
        (LR_ONLY, {"lr": "rate"}, "no 'rate'"),
        (LR_ONLY, {"lr": "foreach"}, "lr must go to a single number, but 'foreach' is None"),
        (LR_ONLY, [("lr", "lr")], "fields must map"),
        (PLAN, {"beta": "momentum", "gamma": "momentum"}, "a field of its own"),
    ],
)
def test_bad_fields_are_refused(plan, fields, message):
    refused(message, torch.optim.SGD([parameter()], lr=0.5), plan, fields=fields)


def test_adams_two_betas_are_refused():
    plan = Plan(epochs=3, batch_size=1, beta=0.5)
    optimizer = torch.optim.Adam([parameter()])
    refused("single number, but 'betas' is", optimizer, plan, fields={"beta": "betas"})


def test_what_is_no_optimizer_plan_or_sampler_is_refused():
    optimizer = torch.optim.SGD([parameter()], lr=0.5)
    sampler = ScheduledBatchSampler(BATCH_ONLY, 8)
    refused("optimizer must be", nn.Linear(1, 1).weight, LR_ONLY)
    refused("plan must be", optimizer, 0.1)
    refused("sampler must be", optimizer, LR_ONLY, sampler=object())
    refused("same plan", optimizer, LR_ONLY, sampler=sampler)
    steps = Plan(steps=10, batch_size=2)
    refused("plan in epochs", optimizer, steps, sampler=ScheduledBatchSampler(steps, 8))


# The sampler


def test_one_step_moves_the_sampler_too():
    sampler = ScheduledBatchSampler(BATCH_ONLY, 8)
    scheduler = ParamScheduler(torch.optim.SGD([parameter()], lr=1.0), BATCH_ONLY, sampler=sampler)
    seen = []
    for _ in range(4):
        seen.append([len(batch) for batch in sampler])
        scheduler.step()
    assert seen == [[2] * 4, [4] * 2, [8], [8]]
    assert (sampler.epoch, len(sampler)) == (4, 0)
    with pytest.raises(ValueError, match="ends after 4 epochs"):
        list(sampler)


@pytest.mark.parametrize("sampler_first", [True, False])
def test_resume_in_the_middle_of_an_epoch_keeps_the_samplers_place(sampler_first):
    def parts():
        sampler = ScheduledBatchSampler(PLAN, 9, seed=3)
        optimizer = QHM([parameter()], **PLAN.at(0).hyperparameters)
        return sampler, ParamScheduler(optimizer, PLAN, sampler=sampler)

    sampler, scheduler = parts()
    scheduler.step()
    batches = list(sampler)
    saved = [scheduler.state_dict(), sampler.state_dict(batches_done=2)]
    sampler, scheduler = parts()
    loads = [lambda: scheduler.load_state_dict(saved[0]), lambda: sampler.load_state_dict(saved[1])]
    for load in reversed(loads) if sampler_first else loads:
        load()
    assert list(sampler) == batches[2:]
    scheduler.step()
    assert [len(batch) for batch in sampler] == PLAN.batch_sizes(2, 9)


# State


def test_state_is_plain_and_resume_equals_uninterrupted(tmp_path):
    whole = QHM([parameter()], **PLAN.at(0).hyperparameters)
    scheduler = ParamScheduler(whole, PLAN)
    for _ in range(3):
        scheduler.step()
    torch.save(scheduler.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state == {"last_epoch": 3, "plan": PLAN.to_dict()}

    fresh = QHM([parameter()], **PLAN.at(0).hyperparameters)
    resumed = ParamScheduler(fresh, PLAN)
    resumed.load_state_dict(state)
    for _ in range(2):
        names = ("lr", "beta", "gamma")
        assert [fresh.param_groups[0][n] for n in names] == [
            whole.param_groups[0][n] for n in names
        ]
        scheduler.step()
        resumed.step()


def test_another_plan_is_refused_unless_asked_for():
    longer = Plan(epochs=8, batch_size=8, lr=s.Inverse(0.1))
    scheduler = ParamScheduler(torch.optim.SGD([parameter()], lr=0.1), LR_ONLY)
    scheduler.set_epoch(4)
    state = scheduler.state_dict()
    optimizer = torch.optim.SGD([parameter()], lr=0.1)
    extended = ParamScheduler(optimizer, longer)
    with pytest.raises(ValueError, match=r"plan differs.*epochs=4.*epochs=8.*strict=False"):
        extended.load_state_dict(state)
    assert extended.last_epoch == 0
    extended.load_state_dict(state, strict=False)
    assert lrs(optimizer) == [longer.at(4).lr]
    state = extended.state_dict() | {"last_epoch": 7}
    with pytest.raises(ValueError, match="ends after 4 epochs, got 7"):
        scheduler.load_state_dict(state, strict=False)


@pytest.mark.parametrize("state", [{}, {"last_epoch": 1}, None, {"plan": LR_ONLY.to_dict()}])
def test_a_state_of_something_else_is_refused(state):
    scheduler = ParamScheduler(torch.optim.SGD([parameter()], lr=0.1), LR_ONLY)
    with pytest.raises(ValueError, match="state_dict must have last_epoch and plan"):
        scheduler.load_state_dict(state)


# In the company of torch


def test_the_first_of_adams_betas_is_scheduled_and_the_second_stays():
    optimizer = torch.optim.AdamW([parameter()], lr=0.1, betas=(0.9, 0.95))
    plan = Plan(epochs=3, batch_size=8, beta=s.Piecewise({0: 0.5, 1: 0.75}))
    scheduler = ParamScheduler(optimizer, plan, fields={"beta": ("betas", 0)})
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.95)
    scheduler.step()
    assert optimizer.param_groups[0]["betas"] == (0.75, 0.95)
    assert optimizer.param_groups[0]["lr"] == 0.1
    refused("place that exists", optimizer, plan, fields={"beta": ("betas", 2)})
    refused("place that exists", optimizer, plan, fields={"beta": ("lr", 0)})


@pytest.mark.filterwarnings("ignore:The epoch parameter")  # torch's own, before 2.9
@pytest.mark.parametrize("planned_first", [False, True])
def test_torchs_sequential_scheduler_starts_it_at_its_first_tick(planned_first):
    optimizer = QHM([parameter()], lr=1.0)
    plan = Plan(epochs=4, batch_size=4, lr=s.Inverse(1.0), beta=s.Inverse(0.8))
    other = torch.optim.lr_scheduler.ConstantLR(optimizer, 0.125, total_iters=4)
    planned = ParamScheduler(optimizer, plan)
    both = [planned, other] if planned_first else [other, planned]
    sequence = torch.optim.lr_scheduler.SequentialLR(optimizer, both, milestones=[2])
    seen = []
    for _ in range(5):
        seen.append((lrs(optimizer)[0], optimizer.param_groups[0]["beta"]))
        optimizer.step()
        sequence.step()
    first = [(1.0, 0.8), (0.5, 0.4)]
    if planned_first:
        assert seen[:2] == first
        assert [beta for _, beta in seen[2:]] == [0.4] * 3
    else:
        assert [lr for lr, _ in seen[:2]] == [0.125, 0.125]
        assert seen[2:4] == first


def test_a_loaded_state_with_other_values_is_refused_and_not_flattened():
    plan = Plan(epochs=4, batch_size=8, lr=s.Inverse(0.1))
    optimizer = two_groups(lr=0.1, first={"lr_scale": 1.0}, second={"lr_scale": 10.0})
    scheduler = ParamScheduler(optimizer, plan)
    assert lrs(optimizer) == [0.1, 1.0]
    old = two_groups(lr=0.1, second={"lr": 1.0})  # its groups know no lr_scale
    optimizer.load_state_dict(old.state_dict())
    with pytest.raises(ValueError, match=r"lr must be the same .* \[0.1, 1.0\].*lr_scale"):
        scheduler.step()
    same = two_groups(lr=0.025)  # as of a later tick
    optimizer.load_state_dict(same.state_dict())
    scheduler.set_epoch(1)
    assert lrs(optimizer) == [0.05, 0.05]


def test_a_group_put_in_place_of_another_is_not_flattened():
    optimizer = two_groups(lr=0.1)
    scheduler = ParamScheduler(optimizer, LR_ONLY)
    optimizer.param_groups.pop()
    optimizer.add_param_group({"params": [parameter()], "lr": 5.0})
    with pytest.raises(ValueError, match=r"lr must be the same .*5.0"):
        scheduler.step()


def test_one_that_was_resumed_without_the_other_is_refused():
    plan = Plan(epochs=5, batch_size=2, lr=0.1)
    sampler = ScheduledBatchSampler(plan, 8)
    sampler.set_epoch(3)
    scheduler = ParamScheduler(torch.optim.SGD([parameter()], lr=0.1), plan, sampler=sampler)
    with pytest.raises(ValueError, match="sampler stands at epoch 3, the scheduler at 0"):
        scheduler.step()
    assert sampler.epoch == 3
    scheduler.set_epoch(3)
    scheduler.step()
    assert sampler.epoch == scheduler.last_epoch == 4
