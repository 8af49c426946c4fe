"""How lr is chosen for every cell of every experiment: by one rule, on validation, beforehand."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from batchramp.experiments import recipes
from batchramp.experiments.decisions import momentum_cells
from batchramp.experiments.recipes import Cell
from batchramp.experiments.run import Run
from batchramp.experiments.scales import SCALES, scale_named
from batchramp.experiments.trading import trade_decay_cells
from batchramp.store import ENDED, Record

__all__ = [
    "TUNINGS",
    "TUNING_RULE",
    "choose_lr",
    "figure1_tuning",
    "tuning_runs",
]

# Not those of the experiments: what was chosen on these seeds is judged on others. The transformer
# draws random numbers, so that its runs cannot be trained together: one seed has to do.
TUNING_SEEDS = (1000, 1001)
_SEEDS = {"figure10": (1000,)}
CONSTANTS = (8, 16, 32, 40, 64, 128, 256, 512, 4096)
_CONSTANTS_VIT = (8, 40, 256, 4096)

TUNING_RULE = (
    "for each lr schedule and batch policy, the lr of {0.05, 0.1, 0.25, 0.5} with the highest "
    "validation accuracy at the last epoch, mean of 2 seeds that are not among those reported; a "
    "collapsed or diverged run rules its lr out; ties go to the smaller lr. The best constant "
    "batch size is chosen in the same way, together with its lr, from {8, 16, 32, 40, 64, 128, "
    "256, 512, 4096}"
)
_RULES = {
    "figure1": TUNING_RULE,
    "figure10": TUNING_RULE.replace("16, 32, 40, 64, 128, 256, 512", "40, 256").replace(
        "mean of 2 seeds that are not", "of a seed that is not"
    ),
}
_OTHER_RULE = (
    "for each cell, the lr of its grid ({0.05, 0.1, 0.25, 0.5}; a tenth of it for SHB; {0.0003, "
    "0.001, 0.003, 0.01} for Adam, AdamW and RMSprop) with the highest validation accuracy at the "
    "last epoch, mean of 2 seeds that are not among those reported; a collapsed or diverged run "
    "rules its lr out; ties go to the smaller lr"
)


def candidates(experiment: str, scale: str) -> list[Cell]:
    """The cells whose lr is tuned for an experiment."""
    if experiment in ("figure1", "figure10"):
        vit = experiment == "figure10"
        found = scale_named(scale)
        setting = found.vit if vit else found.main
        sizes = _CONSTANTS_VIT if vit else CONSTANTS
        constants = {f"constant {size}": size for size in sizes}
        return recipes.policies(
            experiment,
            setting,
            {(panel, name): size for panel in recipes.PANELS for name, size in constants.items()},
            recipes.PANELS,
            ("increasing", "lr-decay-twin", *constants),
            "paper",
        )
    if experiment == "a11":
        return recipes.a11_cells(scale)
    if experiment == "figure4":
        return recipes.figure4_cells(scale)
    if experiment == "baselines":
        return recipes.baseline_cells(scale)
    if experiment == "trade-decay":  # what it is traded for takes its lr
        return [cell for cell in trade_decay_cells(scale) if cell.label != "growth"]
    return momentum_cells(scale)


def tuning_runs(
    experiment: str, scale: str = "quick", seeds: Sequence[int] | None = None
) -> list[Run]:
    """The runs from which `choose_lr` chooses the lr of every cell of an experiment.

    Args:
        experiment: "figure1", "figure4", "a11", "figure10", "baselines", "decide" or
            "trade-decay".
        scale: a key of `SCALES`.
        seeds: of the runs; None for those of the rule.

    Raises:
        ValueError: no such experiment or scale.

    >>> len(tuning_runs("figure1")), tuning_runs("a11")[0].title
    (352, 'constant / increasing lr 0.05 / seed 1000')
    """
    if experiment not in _TUNED:
        raise ValueError(f"experiment must be one of {', '.join(_TUNED)}, got {experiment!r}")
    runs = []
    seeds = _SEEDS.get(experiment, TUNING_SEEDS) if seeds is None else seeds
    for cell in candidates(experiment, scale):
        task = cell.setting.tuning_task or cell.setting.task
        for lr in cell.lrs:
            named = dataclasses.replace(
                cell,
                experiment=f"{experiment}-tuning",
                label=f"{cell.label} lr {lr}",
                setting=dataclasses.replace(cell.setting, task=task),
            )
            runs += [named.run(lr, seed) for seed in seeds]
    return runs


_TUNED = ("figure1", "figure4", "a11", "figure10", "baselines", "decide", "trade-decay")


def _recipe(experiment: str) -> Callable[..., list[Run]]:
    def recipe(scale: str = "quick", seeds: Sequence[int] | None = None) -> list[Run]:
        return tuning_runs(experiment, scale, seeds)

    return recipe


TUNINGS: dict[str, Callable[..., list[Run]]] = {
    f"{experiment}-tuning": _recipe(experiment) for experiment in _TUNED
}
figure1_tuning = TUNINGS["figure1-tuning"]


def choose_lr(records: Sequence[Record]) -> dict[str, Any]:
    """Applies the rule to the runs of `tuning_runs`.

    Returns:
        The rule, the cells (panel -> label -> lr and first batch size) and the mean validation
        accuracy of every candidate (None where it is ruled out).

    Raises:
        ValueError: the records are not those of one tuning, each ended, or a cell has no lr that is
            not ruled out.
    """
    experiments = {record.experiment for record in records}
    name = min(experiments, default="")
    if len(experiments) != 1 or name not in TUNINGS:
        allowed = ", ".join(TUNINGS)
        raise ValueError(
            f"records must be of one of {allowed}, got {', '.join(experiments) or 'none'}"
        )
    ended = {(r.panel, r.label, r.seed, r.plan) for r in records if r.status in ENDED}
    wrong = min(
        (ended ^ {(run.panel, run.label, run.seed, run.plan) for run in TUNINGS[name](scale)}
         for scale in SCALES),
        key=len,
    )  # fmt: skip
    if wrong:
        shown = " / ".join(map(str, min(key[:3] for key in wrong)))
        raise ValueError(
            f"records must be all runs of {name} and no others, ended: {len(wrong)} are missing "
            f"or too many, such as {shown}"
        )
    scores = _scores(records)
    experiment = name.removesuffix("-tuning")
    cells: dict[str, dict[str, Any]] = {}
    for panel in dict.fromkeys(r.panel for r in sorted(records, key=lambda r: r.panel)):
        policies = list(dict.fromkeys(key[1] for key in scores if key[0] == panel))
        groups = {policy: [policy] for policy in policies}
        if experiment in ("figure1", "figure10"):
            constants = [policy for policy in policies if policy.startswith("constant ")]
            groups = {
                "increasing": ["increasing"],
                "small": ["constant 8"],
                "equal-steps": ["constant 40"],
                "best-constant": constants,
                "large": ["constant 4096"],
                "lr-decay-twin": ["lr-decay-twin"],
            }
        cells[panel] = {label: _best(scores, panel, of) for label, of in groups.items()}
    accuracies = [
        {
            "panel": panel,
            "policy": policy,
            "lr": lr,
            "validation_accuracy": score if math.isfinite(score) else None,
        }
        for (panel, policy, lr, _), score in scores.items()
    ]
    rule = _RULES.get(experiment, _OTHER_RULE)
    return {"rule": rule, "cells": cells, "accuracies": accuracies}


_Candidate = tuple[str, str, float, int]  # panel, policy, lr, first batch size


def _scores(records: Sequence[Record]) -> dict[_Candidate, float]:
    measured: dict[_Candidate, list[float]] = {}
    for record in records:
        policy, lr = record.label.split(" lr ")
        candidate = (record.panel, policy, float(lr), record.plan.at(0).batch_size)
        score = record.rows[-1]["validation_accuracy"] if record.status == "finished" else -math.inf
        measured.setdefault(candidate, []).append(score)
    # Rounded, so that a tie is a tie in whatever order its terms were added.
    return {candidate: round(fmean(of), 6) for candidate, of in measured.items()}


def _best(
    scores: Mapping[_Candidate, float], panel: str, policies: Sequence[str]
) -> dict[str, Any]:
    found = [c for c in scores if c[0] == panel and c[1] in policies and math.isfinite(scores[c])]
    if not found:
        raise ValueError(f"policy {policies[0]} ({panel}) has no lr at which all its runs finished")
    _, _, lr, size = min(found, key=lambda c: (-scores[c], c[2], c[3]))
    return {"lr": lr, "batch_size": size}
