"""Experiments: tasks by name, recipes that return runs, and what runs them."""

from batchramp.experiments.bounds_measured import BoundsExperiment, bounds
from batchramp.experiments.constants import Constants, measure_constants
from batchramp.experiments.decisions import decide
from batchramp.experiments.files import from_file, plan_from_file, task_from_file
from batchramp.experiments.recipes import (
    PAPER,
    a11,
    baselines,
    everything,
    figure1,
    figure3,
    figure4,
    figure5,
    figure8,
    figure10,
    figure12,
)
from batchramp.experiments.run import Run
from batchramp.experiments.runner import Outcome, run_all
from batchramp.experiments.scales import SCALES
from batchramp.experiments.trading import trade_decay
from batchramp.experiments.tuning import TUNINGS, choose_lr, figure1_tuning, tuning_runs

__all__ = [
    "RECIPES",
    "SCALES",
    "TUNINGS",
    "BoundsExperiment",
    "Constants",
    "Outcome",
    "Run",
    "a11",
    "baselines",
    "bounds",
    "choose_lr",
    "decide",
    "everything",
    "figure1",
    "figure1_tuning",
    "figure3",
    "figure4",
    "figure5",
    "figure8",
    "figure10",
    "figure12",
    "from_file",
    "measure_constants",
    "plan_from_file",
    "run_all",
    "task_from_file",
    "trade_decay",
    "tuning_runs",
]

RECIPES = {**PAPER, "trade-decay": trade_decay}
