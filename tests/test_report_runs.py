"""Runs as they could be, for the tests of the report; and the proof that the store holds them."""

import math
from pathlib import Path

import numpy as np

from batchramp import store
from batchramp.plan import Plan
from batchramp.schedules import (
    Constant,
    Cosine,
    Exponential,
    InverseSqrt,
    Polynomial,
    Product,
    StepDecay,
)
from batchramp.store import Record

N = 800
LRS = {
    "constant": Constant,
    "inverse-sqrt": InverseSqrt,
    "cosine": Cosine,
    "polynomial": lambda lr: Polynomial(lr, power=2),
}
ENVIRONMENT = {
    "threads": 2,
    "versions": {"batchramp": "0.1.0", "python": "3.11.7"},
    "machine": {"system": "Linux", "cpus": 2},
}


def plan_of(label, panel, epochs=12, lr=0.1):
    every = max(epochs // 4, 1)
    schedule = LRS.get(panel, Constant)(lr)
    size = {"equal-steps": 32, "best-constant": 16, "large": 64}.get(label, 8)
    if label == "increasing":
        return Plan(epochs=epochs, batch_size=Exponential(8, factor=2, every=every), lr=schedule)
    if label == "lr-decay-twin":
        schedule = Product(schedule, StepDecay(1, factor=0.5, every=every))
    return Plan(epochs=epochs, batch_size=size, lr=schedule)


def run(
    label="increasing",
    panel="constant",
    seed=0,
    *,
    epochs=12,
    norm=0.05,
    accuracy=70.0,
    status="finished",
    rows=None,
    plan=None,
    initial=True,
    noise=0.02,
    jump=True,
    loss=0.1,
    **identity,
):
    """A run as it could be: it ends near ``norm`` and ``accuracy``, the seed moves it a little.

    Norm and accuracy jump where the plan's batch grows.
    """
    plan = plan or plan_of(label, panel, epochs)
    rng = np.random.default_rng([seed, *(ord(c) for c in label + panel)])
    shift = noise * rng.standard_normal()
    kept, steps, least, at_least = [], 0, 2.0, 2.3
    growths = [m for m in range(1, plan.length)
               if plan.at(m).batch_size > plan.at(m - 1).batch_size]  # fmt: skip
    for epoch in range(plan.length if rows is None else rows):
        t = (epoch + 1) / plan.length
        if growths and jump:
            t = 0.5 * t + 0.5 * sum(m <= epoch for m in growths) / len(growths)
        value = 2.0 * (norm / 2.0) ** t * math.exp(shift * t + 0.3 * noise * rng.standard_normal())
        now = 2.3 * (loss / 2.3) ** t * math.exp(shift * t)
        if status == "collapsed" and epoch > 2:
            value, now = 0.0003, 2.31
        if status == "diverged" and epoch > 2:
            value = now = math.nan
        if value < least:
            least, at_least = value, now
        steps += math.ceil(N / plan.at(epoch).batch_size)
        percent = 10 + (accuracy - 10) * (1 - 0.02**t) / 0.98 + 10 * shift * t
        if status == "collapsed" and epoch > 2:
            percent = 10.0
        values = plan.at(epoch)
        numbers = {
            "epoch": epoch, "steps": steps, "samples": N * (epoch + 1),
            "seconds": steps * 0.002 + epoch * 0.05, "batch_size": values.batch_size,
            "lr": values.lr, "beta": values.beta, "gamma": values.gamma,
            "train_loss": now, "train_accuracy": percent + 5, "validation_loss": now * 1.1,
            "validation_accuracy": percent + 0.2, "test_loss": now * 1.2,
            "test_accuracy": percent, "full_gradient_norm": value,
            "min_full_gradient_norm": least, "loss_at_min_norm": at_least,
            "at_chance": status == "collapsed" and epoch > 2,
        }  # fmt: skip
        kept.append({k: None if v != v else v for k, v in numbers.items()})
    start = {
        "train_loss": 2.3, "train_accuracy": 10.0, "validation_loss": 2.3,
        "validation_accuracy": 10.0, "test_loss": 2.3, "test_accuracy": 10.0,
        "full_gradient_norm": 2.0,
    }  # fmt: skip
    return Record(
        **{
            "folder": Path(f"{panel}-{label}-{seed}"), "label": label, "panel": panel,
            "experiment": "figure1", "note": "", "task": "digits", "model": "cnn",
            "optimizer": "qhm", "plan": plan, "seed": seed, "status": status,
            "error": "out of memory" if status == "failed" else None,
            "initial": start if initial else {}, "rows": kept, "environment": ENVIRONMENT,
            **identity,
        }
    )  # fmt: skip


# What each policy ends at: norm and accuracy.
ENDS = {
    "increasing": (0.02, 73.0),
    "small": (0.05, 71.5),
    "equal-steps": (0.04, 71.0),
    "best-constant": (0.03, 72.4),
    "large": (0.6, 64.0),
    "lr-decay-twin": (0.021, 73.1),
}


def figure1(seeds=3, panels=("constant", "cosine"), labels=tuple(ENDS), ends=ENDS, **settings):
    return [
        run(label, panel, seed, norm=ends[label][0], accuracy=ends[label][1], **settings)
        for panel in panels
        for label in labels
        for seed in range(seeds)
    ]


def write_runs(folder, records):
    """The records as run folders, through the store."""
    for i, record in enumerate(records):
        at = folder / f"{i:03}"
        identity = {
            name: getattr(record, name)
            for name in (
                "label",
                "panel",
                "experiment",
                "note",
                "task",
                "model",
                "optimizer",
                "seed",
            )
        }
        store.create(at, {**identity, "plan": record.plan.to_dict()}, record.initial)
        for row in record.rows:
            store.append_row(at, row)
        if record.status != "running":
            store.finish(at, record.status, record.error)


def test_the_store_holds_the_runs(tmp_path):
    records = [run(seed=0), run("small", seed=1, status="failed", rows=2), run(status="diverged")]
    write_runs(tmp_path, records)
    found = store.read_all(tmp_path)
    for made, read in zip(records, found, strict=True):
        assert (made.label, made.plan, made.seed) == (read.label, read.plan, read.seed)
        assert (made.status, made.error) == (read.status, read.error)
        assert made.initial == read.initial
        assert list(made.rows) == list(read.rows)
