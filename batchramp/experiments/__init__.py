"""Experiments: tasks by name, recipes that return runs, and what runs them."""

from batchramp.experiments.bounds_measured import BoundsExperiment, bounds
from batchramp.experiments.constants import Constants, measure_constants
from batchramp.experiments.recipes import (
    RECIPES,
    Run,
    choose_lr,
    figure1,
    figure1_tuning,
    from_file,
    plan_from_file,
    task_from_file,
)
from batchramp.experiments.runner import Outcome, run_all

__all__ = [
    "RECIPES",
    "BoundsExperiment",
    "Constants",
    "Outcome",
    "Run",
    "bounds",
    "choose_lr",
    "figure1",
    "figure1_tuning",
    "from_file",
    "measure_constants",
    "plan_from_file",
    "run_all",
    "task_from_file",
]
