"""The lr that was chosen for every cell, as committed or as a user tuned it."""

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from batchramp.experiments.scales import scale_named

__all__ = ["committed", "lr_of"]


def lr_of(tuned: Mapping[str, Any], panel: str, label: str) -> float:
    """The lr chosen for a cell; for a candidate that is none, such as "constant 256", by the rule.

    Raises:
        ValueError: the result has neither.
    """
    cells = tuned["cells"].get(panel, {})
    if label in cells:
        return cells[label]["lr"]
    found = [
        (-entry["validation_accuracy"], entry["lr"])
        for entry in tuned.get("accuracies", ())
        if entry["panel"] == panel
        and entry["policy"] == label
        and entry["validation_accuracy"] is not None
    ]
    if not found:
        raise ValueError(f"tuned has no lr for {label} ({panel})")
    return min(found)[1]


def committed(experiment: str, scale: str) -> dict[str, Any] | None:
    """The committed result of an experiment's tuning at a scale; None if there is none."""
    scale_named(scale)
    file = resources.files("batchramp.experiments") / "tuned" / f"{experiment}-{scale}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
