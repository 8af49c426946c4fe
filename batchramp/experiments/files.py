"""Experiment files: a user's own runs, as TOML."""

import tomllib
from pathlib import Path
from typing import Any

from batchramp.experiments.run import Run
from batchramp.experiments.tasks import TASKS, training_samples
from batchramp.plan import Plan

__all__ = ["from_file", "plan_from_file", "task_from_file"]


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
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from None
