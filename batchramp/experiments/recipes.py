"""Recipes: functions that return lists of runs. Nothing is trained here."""

import json
import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, final

from batchramp.experiments.tasks import MODELS, TASKS, training_samples
from batchramp.plan import Plan
from batchramp.schedules import (
    Constant,
    Cosine,
    Exponential,
    InverseSqrt,
    Polynomial,
    Product,
    Schedule,
    StepDecay,
)
from batchramp.store import ENDED, Record

__all__ = [
    "RECIPES",
    "Run",
    "choose_lr",
    "figure1",
    "figure1_tuning",
    "from_file",
    "plan_from_file",
    "task_from_file",
]

OPTIMIZERS = ("QHM", "SGD", "Adam", "AdamW", "RMSprop")


@final
@dataclass(frozen=True)
class Run:
    """One training run, as a value.

    Args:
        label: what it is called among the runs it is compared with, such as "increasing".
        plan: the Plan.
        task: a name of `batchramp.experiments.tasks`.
        seed: of initial weights and order of samples.
        panel: which comparison it belongs to, such as "cosine".
        experiment: the recipe's name.
        model: of the task; "" for its usual one.
        optimizer: one of QHM, SGD, Adam, AdamW, RMSprop.
        options: the optimizer's own arguments, beside what the Plan schedules.
        note: what reports say of it, such as how its lr was chosen.
        constants: whether it measures constants after every epoch; see `fit`.
        fields: what the optimizer calls what the Plan schedules, as pairs; see `ParamScheduler`.
        within: a folder above that of the panel, where several experiments share one folder.
        device, channels_last, autocast, compiled: see `Task`.

    Raises:
        ValueError: no such task, model or optimizer, or a seed out of range.
    """

    label: str
    plan: Plan
    task: str
    seed: int
    panel: str = ""
    experiment: str = ""
    model: str = ""
    optimizer: str = "QHM"
    options: tuple[tuple[str, Any], ...] = ()
    note: str = ""
    constants: bool = False
    fields: tuple[tuple[str, Any], ...] = ()
    within: str = ""
    device: str = "cpu"
    channels_last: bool = False
    autocast: bool = False
    compiled: bool = False

    def __post_init__(self) -> None:
        training_samples(self.task)
        if not self.model:
            object.__setattr__(self, "model", MODELS[self.task][0])
        if self.model not in MODELS[self.task]:
            allowed = ", ".join(MODELS[self.task])
            raise ValueError(
                f"model of task {self.task} must be one of {allowed}, got {self.model!r}"
            )
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(
                f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}"
            )
        if type(self.seed) is not int or not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be an integer >= 0 and below 2**32, got {self.seed!r}")
        for name, value in self.options:
            try:
                hash(value)
            except TypeError:
                raise ValueError(
                    f"optimizer.{name} must be a number, a text, true, false or a list of those, "
                    f"got {value!r}"
                ) from None

    @property
    def folder(self) -> Path:
        """Where the run's files go, below the experiment's folder."""
        parts = [_slug(part) for part in (self.within, self.panel, self.label) if part]
        return Path(*parts, f"seed-{self.seed}")

    @property
    def title(self) -> str:
        """For people."""
        return " / ".join(part for part in (self.panel, self.label, f"seed {self.seed}") if part)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.=_-]+", "-", text).strip("-.") or "run"


# ------------------------------------------------------------------------------------- figure 1

_LR_SCHEDULES: dict[str, Callable[[float], Schedule]] = {
    "constant": Constant,
    "inverse-sqrt": InverseSqrt,
    "cosine": Cosine,
    "polynomial": lambda lr: Polynomial(lr, power=2),
}
_LRS = (0.05, 0.1, 0.25, 0.5)
_MAIN_PANELS = ("constant", "cosine")

# Quick scale: a tenth of the paper's epochs, the same ten levels of the batch size.
_EPOCHS, _EVERY, _FACTOR = 30, 3, 2
_SMALL, _LARGE = 8, 4096
_EQUAL_STEPS = 40  # 163 steps an epoch over 6,500 samples, as many as the increasing run on average
_CONSTANTS = (8, 16, 32, 40, 64, 128, 256, 512, 4096)
_POLICIES = ("increasing", "small", "equal-steps", "best-constant", "large", "lr-decay-twin")

# Not those of the experiment: what was chosen on these seeds is judged on others.
_TUNING_SEEDS = (1000, 1001)
TUNING_RULE = (
    "for each lr schedule and batch policy, the lr of {0.05, 0.1, 0.25, 0.5} with the highest "
    "validation accuracy at the last epoch, mean of 2 seeds that are not among those reported; a "
    "collapsed or diverged run rules its lr out; ties go to the smaller lr. The best constant "
    "batch size is chosen in the same way, together with its lr, from {8, 16, 32, 40, 64, 128, "
    "256, 512, 4096}"
)


def figure1(
    scale: str = "quick",
    seeds: Sequence[int] = range(3),
    *,
    part: str = "all",
    tuned: Mapping[str, Any] | None = None,
) -> list[Run]:
    """Figure 1 and 2: QHM with step-decay momentum under an increasing batch size and its rivals.

    Four lr schedules (panels) by six batch policies: increasing 8 to 4096, doubling every 3 epochs;
    small 8; the constant of equal steps, 40; the best constant; large 4096; and batch 8 with lr
    halved whenever the batch would double (the lr-decay twin; Smith et al., 2018).

    Args:
        scale: "quick": `fashion-mini`, MLP 784-128-128-10, 30 epochs.
        seeds: of the runs.
        part: "all", or "main" for the panels constant and cosine alone.
        tuned: the lr of every cell, as `choose_lr` returns; None for the committed result of
            `figure1_tuning`.

    Raises:
        ValueError: another scale or part.

    >>> runs = figure1(seeds=[0])
    >>> len(runs), runs[0].title, runs[0].plan.total_steps(6_500)
    (24, 'constant / increasing / seed 0', 4887)
    """
    _check_scale(scale)
    if part not in ("all", "main"):
        raise ValueError(f"part must be 'all' or 'main', got {part!r}")
    chosen = _committed() if tuned is None else tuned
    cells = chosen["cells"]
    panels = tuple(_LR_SCHEDULES) if part == "all" else _MAIN_PANELS
    note = f"how lr was chosen: {chosen['rule']}" if "rule" in chosen else ""
    at_edge = [
        f"{policy} ({panel}, {cells[panel][policy]['lr']})"
        for panel in panels
        for policy in _POLICIES
        if cells[panel][policy]["lr"] in (min(_LRS), max(_LRS))
    ]
    if note and at_edge:
        note += f"; at an edge of that grid, perhaps better beyond it: {', '.join(at_edge)}"
    return [
        _run("figure1", panel, policy, seed, note=note, **cells[panel][policy])
        for panel in panels
        for policy in _POLICIES
        for seed in seeds
    ]


def figure1_tuning(scale: str = "quick", seeds: Sequence[int] = _TUNING_SEEDS) -> list[Run]:
    """The runs from which `choose_lr` chooses the lr of every cell of `figure1`.

    >>> len(figure1_tuning())
    352
    """
    _check_scale(scale)
    candidates = [
        ("increasing", _SMALL),
        ("lr-decay-twin", _SMALL),
        *((f"constant {size}", size) for size in _CONSTANTS),
    ]
    return [
        _run("figure1-tuning", panel, policy, seed, lr=lr, batch_size=size, suffix=f" lr {lr}")
        for panel in _LR_SCHEDULES
        for policy, size in candidates
        for lr in _LRS
        for seed in seeds
    ]


def choose_lr(records: Sequence[Record]) -> dict[str, Any]:
    """Applies `TUNING_RULE` to the runs of `figure1_tuning`.

    Returns:
        The rule, the cells (panel -> policy -> lr and batch size) and the mean validation accuracy
        of every candidate (None where it is ruled out).

    Raises:
        ValueError: the records are not those of `figure1_tuning`, each ended, or a cell has no lr
            that is not ruled out.
    """
    measured: dict[str, dict[_Candidate, list[float]]] = {}
    for record in records:
        if record.experiment != "figure1-tuning":
            raise ValueError(f"records must be of figure1-tuning, got the run in {record.folder}")
    ended = {(r.panel, r.label, r.seed) for r in records if r.status in ENDED}
    expected = {(run.panel, run.label, run.seed) for run in figure1_tuning()}
    if wrong := sorted(ended ^ expected):
        raise ValueError(
            f"records must be all runs of figure1-tuning and no others, ended: {len(wrong)} are "
            f"missing or too many, such as {' / '.join(map(str, wrong[0]))}"
        )
    for record in records:
        policy, lr = record.label.split(" lr ")
        candidate = _Candidate(policy, record.plan.at(0).batch_size, float(lr))
        score = record.rows[-1]["validation_accuracy"] if record.status == "finished" else -math.inf
        measured.setdefault(record.panel, {}).setdefault(candidate, []).append(score)
    # Rounded, so that a tie is a tie in whatever order its terms were added.
    scores = {
        panel: {candidate: round(fmean(of), 6) for candidate, of in found.items()}
        for panel, found in measured.items()
    }
    constants = [f"constant {size}" for size in _CONSTANTS]
    cells = {
        panel: {
            "increasing": _best(found, ["increasing"]),
            "small": _best(found, [f"constant {_SMALL}"]),
            "equal-steps": _best(found, [f"constant {_EQUAL_STEPS}"]),
            "best-constant": _best(found, constants),
            "large": _best(found, [f"constant {_LARGE}"]),
            "lr-decay-twin": _best(found, ["lr-decay-twin"]),
        }
        for panel, found in scores.items()
    }
    accuracies = [
        {
            "panel": panel,
            "policy": candidate.policy,
            "lr": candidate.lr,
            "validation_accuracy": score if math.isfinite(score) else None,
        }
        for panel, found in scores.items()
        for candidate, score in found.items()
    ]
    return {"rule": TUNING_RULE, "cells": cells, "accuracies": accuracies}


class _Candidate(NamedTuple):
    policy: str
    batch_size: int
    lr: float


def _best(scores: Mapping[_Candidate, float], policies: Sequence[str]) -> dict[str, Any]:
    candidates = [c for c in scores if c.policy in policies and math.isfinite(scores[c])]
    if not candidates:
        raise ValueError(f"policy {policies[0]} has no lr at which all its runs finished")
    best = min(candidates, key=lambda c: (-scores[c], c.lr, c.batch_size))
    return {"lr": best.lr, "batch_size": best.batch_size}


def _run(
    experiment: str,
    panel: str,
    policy: str,
    seed: int,
    *,
    lr: float,
    batch_size: int,
    suffix: str = "",
    note: str = "",
) -> Run:
    schedule = _LR_SCHEDULES[panel](lr)
    size: Schedule | int = batch_size
    if policy == "increasing":
        size = Exponential(batch_size, factor=_FACTOR, every=_EVERY)
    elif policy == "lr-decay-twin":
        schedule = Product(schedule, StepDecay(1.0, factor=1 / _FACTOR, every=_EVERY))
    plan = Plan(
        epochs=_EPOCHS,
        batch_size=size,
        lr=schedule,
        beta=StepDecay(0.9, factor=0.5, every=_EVERY),
        gamma=StepDecay(0.7, factor=0.5, every=_EVERY),
    )
    return Run(policy + suffix, plan, "fashion-mini", seed, panel, experiment, note=note)


def _check_scale(scale: str) -> None:
    if scale != "quick":
        raise ValueError(f"scale must be 'quick' (the only one so far), got {scale!r}")


def _committed() -> dict[str, Any]:
    file = resources.files("batchramp.experiments") / "tuned" / "figure1-quick.json"
    return json.loads(file.read_text(encoding="utf-8"))


RECIPES: dict[str, Callable[..., list[Run]]] = {
    "figure1": figure1,
    "figure1-tuning": figure1_tuning,
}


# --------------------------------------------------------------------------- a user's own file


def from_file(path: Path) -> list[Run]:
    """The runs of an experiment file: one for each seed.

    The file is TOML: ``task``, and optionally ``model``, ``seeds`` (a list), ``label``, ``panel``,
    ``constants`` (true to measure them after every epoch); a table ``[plan]`` as `Plan.to_dict`
    writes it; and optionally a table ``[optimizer]`` with a ``kind`` and that optimizer's own
    arguments.

    Raises:
        ValueError: not TOML, an unknown key, or a value that is refused further in.
        FileNotFoundError: there is no such file.
    """
    content = _toml(path)
    allowed = ("task", "model", "seeds", "label", "panel", "constants", "plan", "optimizer")
    for key in content:
        if key not in allowed:
            raise ValueError(f"{path}: {key} is not a key of it: allowed are {', '.join(allowed)}")
    for key in ("task", "plan"):
        if key not in content:
            raise ValueError(f"{path}: {key} is missing; tasks are {', '.join(TASKS)}")
    seeds = content.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or any(seeds.count(seed) > 1 for seed in seeds):
        raise ValueError(f"{path}: seeds must be a list of different integers, got {seeds!r}")
    tables = {key: content.get(key, {}) for key in ("plan", "optimizer")}
    for key, table in tables.items():
        if not isinstance(table, dict):
            raise ValueError(f"{path}: {key} must be a table [{key}], got {table!r}")
    for key in ("task", "model", "label", "panel"):
        if not isinstance(content.get(key, ""), str):
            raise ValueError(f"{path}: {key} must be a text, got {content[key]!r}")
    constants = content.get("constants", False)
    if not isinstance(constants, bool):
        raise ValueError(f"{path}: constants must be true or false, got {constants!r}")
    try:
        plan = Plan.from_dict(tables["plan"])
        kind = tables["optimizer"].pop("kind", "QHM")
        options = tuple(
            (key, tuple(value) if isinstance(value, list) else value)
            for key, value in sorted(tables["optimizer"].items())
        )
        return [
            Run(
                label=content.get("label", path.stem),
                plan=plan,
                task=content["task"],
                seed=seed,
                panel=content.get("panel", ""),
                experiment=path.stem,
                model=content.get("model", ""),
                optimizer=kind,
                options=options,
                constants=constants,
            )
            for seed in seeds
        ]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def plan_from_file(path: Path) -> tuple[Plan, int | None]:
    """The plan of an experiment file or of a file that is a plan alone, and n if a task is named.

    Raises:
        ValueError, FileNotFoundError: as `from_file`.
    """
    content = _toml(path)
    if "task" in content:
        run = from_file(path)[0]
        return run.plan, training_samples(run.task)
    try:
        return Plan.from_dict(content.get("plan", content)), None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def task_from_file(path: Path) -> tuple[str, str] | None:
    """The task and the model of an experiment file; None for a file that is a plan alone."""
    if "task" not in _toml(path):
        return None
    run = from_file(path)[0]
    return run.task, run.model


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from None
