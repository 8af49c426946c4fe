"""The runs that decide the paper's ten claims: ten seeds, eight batch policies, four lr schedules.

lr is tuned for every cell by the rules of `tuning`, on other seeds. Whoever decides must not have
looked at those seeds before: of the committed experiments, figure 1 was run on seeds 0 to 9.
Statements and tests are those of `batchramp.report`.
"""

import dataclasses
from collections.abc import Sequence

from batchramp.experiments import recipes
from batchramp.experiments.chosen import committed, lr_of
from batchramp.experiments.recipes import PANELS, Cell
from batchramp.experiments.run import Run
from batchramp.experiments.scales import scale_named

__all__ = ["SEEDS", "decide", "momentum_cells"]

SEEDS = range(10)
POLICIES = (
    "increasing",
    "small",
    "constant 256",
    "equal-steps",
    "best-constant",
    "large",
    "lr-decay-twin",
    "linear",
)
_MOMENTA = ("SGD", "QHM constant", "NSHB constant")


def decide(scale: str = "quick", seeds: Sequence[int] = SEEDS) -> list[Run]:
    """The runs for claims 1 to 10.

    Claims 1 to 4, 8 and 10: the policies; 5: also a decaying lr; 6: also NSHB and SGD, and constant
    momentum, for under step decay momentum is gone for nine tenths of a run; 7: linear growth of
    equal steps; 9: the grid of A.10.

    Args:
        scale: "quick"; another one needs tuning results of its own.
        seeds: of the runs; at least 8 decide.

    Raises:
        ValueError: a scale for which lr was not tuned.

    >>> len(decide(seeds=[0]))
    85
    """
    scale_named(scale)
    tuned = {}
    for name in ("figure1", "figure4", "a11", "decide"):
        result = committed(name, scale)
        if result is None:
            raise ValueError(f"scale must be one at which lr of {name} was tuned, got {scale!r}")
        tuned[name] = result
    sizes = {
        (panel, "best-constant"): tuned["figure1"]["cells"][panel]["best-constant"]["batch_size"]
        for panel in PANELS
    }
    cells = policy_cells(scale, sizes)
    momenta = momentum_cells(scale)
    found = [(cell, _source(cell.label)) for cell in cells]
    found += [(cell, ("decide", cell.label)) for cell in momenta]
    found += [(cell, ("figure4", "increasing")) for cell in nshb_cells(scale)]
    lrs = [lr_of(tuned[name], cell.panel, label) for cell, (name, label) in found]
    note = (
        f"how lr was chosen: {tuned['figure1']['rule']}; of other momenta and of linear growth: "
        f"{tuned['decide']['rule']}{recipes.at_edge([cell for cell, _ in found], lrs)}"
    )
    runs = [
        cell.run(lr, seed, note=note)
        for (cell, _), lr in zip(found, lrs, strict=True)
        for seed in seeds
    ]
    grid = recipes.figure8(scale, seeds)
    return [*runs, *(dataclasses.replace(run, within="grid") for run in grid)]


def policy_cells(scale: str, sizes: dict[tuple[str, str], int]) -> list[Cell]:
    """Eight batch policies by four lr schedules."""
    setting = scale_named(scale).main
    own = recipes.constant_sizes(setting, PANELS)
    own.update({(panel, "constant 256"): 256 for panel in PANELS})
    return recipes.policies("decide", setting, {**own, **sizes}, PANELS, POLICIES, "paper")


def nshb_cells(scale: str) -> list[Cell]:
    """NSHB with step-decay beta, whose lr was tuned for figure 4."""
    kinds = [(panel, "increasing NSHB", "NSHB") for panel in PANELS]
    return recipes.momenta("decide", scale_named(scale).main, kinds)


def momentum_cells(scale: str) -> list[Cell]:
    """The increasing batch under SGD and constant momentum, and under a decaying lr."""
    kinds = [
        (panel, f"increasing {momentum}", momentum) for panel in PANELS for momentum in _MOMENTA
    ]
    return recipes.momenta(
        "decide", scale_named(scale).main, [*kinds, ("inverse", "increasing", "QHM")]
    )


def _source(policy: str) -> tuple[str, str]:
    return ("a11" if policy == "linear" else "figure1", policy)
