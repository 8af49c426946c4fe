"""Recipes: every figure of the paper as a function that returns runs. Nothing is trained here.

Figures that show the same runs share one experiment: figure 2 is figure 1 with another quantity.
Every comparison of batch sizes has the opponents that the paper lacks: the constant batch of equal
steps, the constant batch that validation prefers, and batch 8 with a falling lr.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from batchramp.experiments.chosen import committed, lr_of
from batchramp.experiments.run import Run
from batchramp.experiments.scales import Setting, scale_named
from batchramp.plan import Plan
from batchramp.schedules import (
    Constant,
    Cosine,
    Delayed,
    Exponential,
    IncreasingBeta,
    Inverse,
    InverseSqrt,
    Linear,
    Polynomial,
    Product,
    Schedule,
    StepDecay,
)

__all__ = [
    "LRS",
    "PAPER",
    "POLICIES",
    "VARIANTS",
    "Cell",
    "a11",
    "baselines",
    "everything",
    "figure1",
    "figure3",
    "figure4",
    "figure5",
    "figure8",
    "figure10",
    "figure12",
]

PANELS = ("constant", "inverse-sqrt", "cosine", "polynomial")
MAIN_PANELS = ("constant", "cosine")
POLICIES = ("increasing", "small", "equal-steps", "best-constant", "large", "lr-decay-twin")
VARIANTS = ("paper", "released")
SMALL_BATCHES = (8, 256)  # the paper's figures say 8, its text 2^8

# The grids of the paper's section 4.
LRS = (0.05, 0.1, 0.25, 0.5)
HEAVY_BALL_LRS = tuple(round(lr * (1 - 0.9), 6) for lr in LRS)  # whose steps are 1/(1 - 0.9) longer
ADAPTIVE_LRS = (0.0003, 0.001, 0.003, 0.01)
_BETAS = (0.3, 0.5, 0.9)
_GAMMAS = (0.2, 0.4, 0.7)

START, _FACTOR, LARGE = 8, 2, 4096
_LR, _BETA, _GAMMA = 0.1, 0.9, 0.7
_BETA_MIN = 0.5  # that the remark after Theorem 4 pairs with lr 0.1
GRID_START = 32  # of A.10, doubling to 512
_UNTUNED = f"lr was not tuned: {_LR} everywhere, of the paper's grid"


@final
@dataclass(frozen=True)
class Cell:
    """A line of a figure, whose lr is still open.

    Attributes:
        experiment, panel, label: as in `Run`.
        setting: task, model and length.
        plan: the Plan by its lr.
        lrs: what lr is chosen from.
        optimizer, options, fields: as in `Run`.
    """

    experiment: str
    panel: str
    label: str
    setting: Setting
    plan: Callable[[float], Plan]
    lrs: tuple[float, ...] = LRS
    optimizer: str = "QHM"
    options: tuple[tuple[str, Any], ...] = ()
    fields: tuple[tuple[str, Any], ...] = ()

    def run(self, lr: float, seed: int, *, note: str = "") -> Run:
        """One run of it."""
        return Run(
            self.label,
            self.plan(lr),
            self.setting.task,
            seed,
            self.panel,
            self.experiment,
            model=self.setting.model,
            optimizer=self.optimizer,
            options=self.options,
            note=note,
            fields=self.fields,
        )


# --------------------------------------------------------------------------- what cells are made of


def lr_schedule(panel: str, lr: float, epochs: int, variant: str = "paper") -> Schedule:
    """The lr schedule that a panel is named for.

    >>> lr_schedule("polynomial", 0.1, 30)
    Polynomial(0.1, power=2)
    """
    released = variant == "released"
    if panel == "cosine":
        return Cosine(lr, span=epochs) if released else Cosine(lr)
    if panel == "polynomial":
        span = epochs - 1 if released else None
        return Polynomial(lr, power=2, span=span) if released else Polynomial(lr, power=2)
    return {"constant": Constant, "inverse-sqrt": InverseSqrt, "inverse": Inverse}[panel](lr)


def _late(schedule: Schedule, variant: str) -> Schedule:
    """The released code changes batch size, beta and gamma one epoch late."""
    return Delayed(schedule, by=1) if variant == "released" else schedule


def _growing(setting: Setting, variant: str = "paper", start: int = START) -> Schedule:
    return _late(Exponential(start, factor=_FACTOR, every=setting.every), variant)


def _halving(start: float, setting: Setting, variant: str = "paper") -> Schedule:
    return _late(StepDecay(start, factor=1 / _FACTOR, every=setting.every), variant)


def _plan(
    setting: Setting,
    batch_size: Schedule | int,
    lr: Schedule,
    beta: Schedule | float | None,
    gamma: Schedule | float | None,
) -> Plan:
    return Plan(epochs=setting.epochs, batch_size=batch_size, lr=lr, beta=beta, gamma=gamma)


def _steps(setting: Setting, batch_size: Schedule | int) -> int:
    return Plan(epochs=setting.epochs, batch_size=batch_size).total_steps(setting.n)


def equal_steps(setting: Setting) -> int:
    """The constant batch size whose steps are nearest to those of the increasing batch.

    >>> equal_steps(scale_named("quick").main), equal_steps(scale_named("paper").main)
    (40, 40)
    """
    steps = _steps(setting, _growing(setting))
    near = round(setting.n * setting.epochs / steps)
    sizes = range(max(1, near - 5), near + 6)
    return min(sizes, key=lambda size: abs(_steps(setting, size) - steps))


def equal_steps_increment(setting: Setting) -> float:
    """The increment an epoch of a linear growth from 8 whose steps are nearest to the same.

    To two digits: the Plan rounds batch sizes up, so that an increment below 1 grows too.

    >>> equal_steps_increment(scale_named("quick").main)
    4.0
    """
    steps = _steps(setting, _growing(setting))
    low, high = 0.01, float(LARGE)
    while high / low > 1.001:  # steps fall with the increment
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _grown(setting, middle) > steps else (low, middle)
    digits = 1 - math.floor(math.log10(low))
    near = [round(low, digits) + i * 10.0**-digits for i in (-1, 0, 1)]
    return min((round(x, digits) for x in near), key=lambda x: abs(_grown(setting, x) - steps))


def _grown(setting: Setting, increment: float) -> int:
    return _steps(setting, Linear(START, increment))


def constant_sizes(
    setting: Setting, panels: Sequence[str], small_batch: int = START
) -> dict[tuple[str, str], int]:
    """The batch size of the constant policies that need no tuning, by panel and policy."""
    own = {"small": small_batch, "equal-steps": equal_steps(setting), "large": LARGE}
    return {(panel, policy): size for panel in panels for policy, size in own.items()}


def policies(
    experiment: str,
    setting: Setting,
    sizes: Mapping[tuple[str, str], int],
    panels: Sequence[str],
    names: Sequence[str],
    variant: str,
) -> list[Cell]:
    """QHM with step-decay momentum under each batch policy, panel by panel.

    Args:
        experiment, setting: of the cells.
        sizes: the batch size of each constant policy, by panel and policy.
        panels, names: of the lr schedules and of the policies, in this order.
        variant: "paper" or "released".
    """

    def cell(panel: str, policy: str) -> Cell:
        def plan(lr: float) -> Plan:
            schedule = lr_schedule(panel, lr, setting.epochs, variant)
            size: Schedule | int = sizes.get((panel, policy), START)
            if policy == "increasing":
                size = _growing(setting, variant)
            elif policy == "linear":
                size = Linear(START, equal_steps_increment(setting))
            elif policy == "lr-decay-twin":
                schedule = Product(schedule, _halving(1.0, setting, variant))
            return _plan(
                setting,
                size,
                schedule,
                _halving(_BETA, setting, variant),
                _halving(_GAMMA, setting, variant),
            )

        return Cell(experiment, panel, policy, setting, plan)

    return [cell(panel, policy) for panel in panels for policy in names]


def momenta(
    experiment: str, setting: Setting, kinds: Sequence[tuple[str, str, str]], variant: str = "paper"
) -> list[Cell]:
    """The increasing batch under other momenta.

    Args:
        experiment, setting: of the cells.
        kinds: panel, label and momentum ("NSHB", "SGD", ...; see the code) of each cell.
        variant: "paper" or "released".
    """

    def cell(panel: str, label: str, momentum: str) -> Cell:
        def plan(lr: float) -> Plan:
            beta, gamma = {
                "QHM": (_halving(_BETA, setting, variant), _halving(_GAMMA, setting, variant)),
                "QHM constant": (_BETA, _GAMMA),
                "NSHB": (_halving(_BETA, setting, variant), 1.0),
                "NSHB constant": (_BETA, 1.0),
                "NSHB increasing": (
                    _late(IncreasingBeta(_BETA_MIN, every=setting.every), variant)
                    if variant == "released"
                    else IncreasingBeta(_BETA_MIN),
                    1.0,
                ),
                "SGD": (0.0, 0.0),
            }[momentum]
            schedule = lr_schedule(panel.partition(",")[0], lr, setting.epochs, variant)
            return _plan(setting, _growing(setting, variant), schedule, beta, gamma)

        return Cell(experiment, panel, label, setting, plan)

    return [cell(*kind) for kind in kinds]


# -------------------------------------------------------------------------------- cells by figure


def figure1_cells(
    scale: str = "quick",
    *,
    sizes: Mapping[tuple[str, str], int] | None = None,
    small_batch: int = START,
    variant: str = "paper",
    part: str = "all",
    vit: bool = False,
) -> list[Cell]:
    """The cells of figures 1, 2, 6 and 7, or with ``vit`` those of 10 and 11.

    Args:
        scale: a key of `SCALES`.
        sizes: the best constant batch size, by panel and "best-constant"; without any there is no
            such cell.
        small_batch: 8 or 256.
        variant: "paper" or "released".
        part: "all", or "main" for the panels constant and cosine alone.
        vit: with the transformer.
    """
    found = scale_named(scale)
    setting = found.vit if vit else found.main
    panels = PANELS if part == "all" else MAIN_PANELS
    names = tuple(p for p in POLICIES if p != "best-constant" or sizes)
    return policies(
        "figure10" if vit else "figure1",
        setting,
        {**constant_sizes(setting, panels, small_batch), **(sizes or {})},
        panels,
        names,
        variant,
    )


def figure4_cells(scale: str = "quick", *, variant: str = "paper") -> list[Cell]:
    """NSHB (gamma = 1) under six pairs of an lr schedule and a beta."""
    kinds = [(panel, "increasing", "NSHB") for panel in PANELS]
    kinds.append(("inverse-sqrt, constant beta", "increasing", "NSHB constant"))
    kinds.append(("inverse, increasing beta", "increasing", "NSHB increasing"))
    return momenta("figure4", scale_named(scale).main, kinds, variant)


def figure5_cells(scale: str = "quick", *, variant: str = "paper") -> list[Cell]:
    """The training loss of both networks under the increasing batch."""
    found = scale_named(scale)
    cells = []
    for setting in (found.residual, found.vit):
        (cell,) = policies("figure5", setting, {}, ("constant",), ("increasing",), variant)
        cells.append(dataclasses.replace(cell, panel=setting.model))
    return cells


def grid_cells(scale: str = "quick", *, variant: str = "paper") -> list[Cell]:
    """A.10: cosine lr, batch 32 to 512, and every lr, beta and gamma of the paper's grid."""
    setting = scale_named(scale).grid

    def cell(lr: float, beta: float, gamma: float) -> Cell:
        def plan(_: float) -> Plan:
            return _plan(
                setting,
                _growing(setting, variant, GRID_START),
                lr_schedule("cosine", lr, setting.epochs, variant),
                _halving(beta, setting, variant),
                _halving(gamma, setting, variant),
            )

        label = f"lr {lr} beta {beta} gamma {gamma}"
        return Cell("figure8", "cosine", label, setting, plan, lrs=(lr,))

    return list(itertools.starmap(cell, itertools.product(LRS, _BETAS, _GAMMAS)))


def a11_cells(scale: str = "quick", *, variant: str = "paper") -> list[Cell]:
    """A.11: exponential growth, and linear growth of equal steps and of equal last batch size."""
    setting = scale_named(scale).main
    cells = policies("a11", setting, {}, PANELS, ("increasing", "linear"), variant)
    to_the_same_end = -(-(LARGE - START) // (setting.epochs - 1))

    def steep(cell: Cell) -> Cell:
        def plan(lr: float) -> Plan:
            size = Linear(START, to_the_same_end, maximum=LARGE)
            return dataclasses.replace(cell.plan(lr), batch_size=size)

        return dataclasses.replace(cell, label="linear to the same end", plan=plan)

    return [*cells, *(steep(cell) for cell in cells if cell.label == "linear")]


def baseline_cells(scale: str = "quick", *, variant: str = "paper") -> list[Cell]:
    """The optimizers of the neighbouring papers under the increasing batch, torch's own.

    Momenta are constant: 0.9, and QHM's gamma 0.7.
    """
    setting = scale_named(scale).main
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("SGD", {"optimizer": "SGD"}),
        (
            "SHB",
            {
                "optimizer": "SGD",
                "options": (("momentum", _BETA),),
                "lrs": HEAVY_BALL_LRS,
            },
        ),
        ("NSHB", {}),
        ("QHM", {}),
        *(
            (name, {"optimizer": name, "lrs": ADAPTIVE_LRS})
            for name in ("Adam", "AdamW", "RMSprop")
        ),
    ]

    def cell(panel: str, label: str, given: dict[str, Any]) -> Cell:
        def plan(lr: float) -> Plan:
            own = {"NSHB": (_BETA, 1.0), "QHM": (_BETA, _GAMMA)}.get(label, (None, None))
            schedule = lr_schedule(panel, lr, setting.epochs, variant)
            return _plan(setting, _growing(setting, variant), schedule, *own)

        return Cell("baselines", panel, label, setting, plan, **given)

    return [cell(panel, *kind) for panel in MAIN_PANELS for kind in kinds]


# ---------------------------------------------------------------------------------------- recipes


def figure1(
    scale: str = "quick",
    seeds: Sequence[int] = range(3),
    *,
    part: str = "all",
    small_batch: int = START,
    variant: str = "paper",
    tuned: Mapping[str, Any] | None = None,
) -> list[Run]:
    """Figures 1, 2, 6 and 7: QHM with step-decay momentum, an increasing batch and its rivals.

    Four lr schedules (panels) by six batch policies: increasing 8 to 4096; small 8; the constant of
    equal steps, 40; the best constant; large 4096; and batch 8 with lr halved whenever the batch
    would double (the lr-decay twin; Smith et al., 2018).

    Args:
        scale: "paper", "small" or "quick" (`fashion-mini`, MLP 784-128-128-10, 30 epochs).
        seeds: of the runs.
        part: "all", or "main" for the panels constant and cosine alone.
        small_batch: of the policy "small": 8 as in the paper's figures, or 256 as in its text.
        variant: "paper", or "released" for the schedules of the authors' code.
        tuned: the lr of every cell, as `choose_lr` returns; None for the committed result of the
            tuning at this scale. Where there is none, lr is 0.1 and the best constant is left out.

    Raises:
        ValueError: another scale, part, small_batch or variant.

    >>> runs = figure1(seeds=[0])
    >>> len(runs), runs[0].title, runs[0].plan.total_steps(6_500)
    (24, 'constant / increasing / seed 0', 4887)
    """
    return _figure1(scale, seeds, part, small_batch, variant, tuned, vit=False)


def figure3(
    scale: str = "quick",
    seeds: Sequence[int] = range(3),
    *,
    variant: str = "paper",
    tuned: Mapping[str, Any] | None = None,
) -> list[Run]:
    """Figure 3: the increasing batch of figure 1 alone, under its four lr schedules.

    >>> len(figure3(seeds=[0]))
    4
    """
    runs = figure1(scale, seeds, variant=variant, tuned=tuned)
    return [run for run in runs if run.label == "increasing"]


def figure4(
    scale: str = "quick",
    seeds: Sequence[int] = range(3),
    *,
    variant: str = "paper",
    tuned: Mapping[str, Any] | None = None,
) -> list[Run]:
    """Figure 4: NSHB under the increasing batch; also a constant and an increasing beta.

    >>> len(figure4(seeds=[0]))
    6
    """
    _check(variant)
    return _with_lr(figure4_cells(scale, variant=variant), "figure4", scale, seeds, tuned)


def figure5(
    scale: str = "quick",
    seeds: Sequence[int] = range(3),
    *,
    variant: str = "paper",
    tuned: Mapping[str, Any] | None = None,
) -> list[Run]:
    """Figure 5 (A.8): is the loss bounded? Both networks under the increasing batch, lr 0.1.

    At quick scale the first seed also measures the extremes over single samples, which take as long
    as a few epochs each time.

    >>> sorted(run.model for run in figure5(seeds=[0]))
    ['small_resnet', 'vit_micro']
    """
    _check(variant)
    runs = _with_lr(figure5_cells(scale, variant=variant), "figure5", scale, seeds, tuned)
    return [
        dataclasses.replace(run, constants=scale == "quick" and run.seed == next(iter(seeds)))
        for run in runs
    ]


def figure8(
    scale: str = "quick",
    seeds: Sequence[int] = range(3),
    *,
    variant: str = "paper",
) -> list[Run]:
    """Figures 8 and 9 (A.10): the grid of lr, beta and gamma; cosine lr, batch 32 to 512.

    >>> len(figure8(seeds=[0]))
    36
    """
    _check(variant)
    cells = grid_cells(scale, variant=variant)
    return [cell.run(cell.lrs[0], seed) for cell in cells for seed in seeds]


def figure10(
    scale: str = "quick",
    seeds: Sequence[int] = range(3),
    *,
    small_batch: int = START,
    variant: str = "paper",
    tuned: Mapping[str, Any] | None = None,
) -> list[Run]:
    """Figures 10 and 11 (A.12): as figure 1, with a vision transformer."""
    return _figure1(scale, seeds, "all", small_batch, variant, tuned, vit=True)


def figure12(
    scale: str = "quick",
    seeds: Sequence[int] = range(3),
    *,
    variant: str = "paper",
    tuned: Mapping[str, Any] | None = None,
) -> list[Run]:
    """Figure 12: the increasing batch of figure 10 alone."""
    runs = figure10(scale, seeds, variant=variant, tuned=tuned)
    return [run for run in runs if run.label == "increasing"]


def a11(
    scale: str = "quick",
    seeds: Sequence[int] = range(3),
    *,
    variant: str = "paper",
    tuned: Mapping[str, Any] | None = None,
) -> list[Run]:
    """A.11: exponential against linear growth of the batch, under four lr schedules.

    The paper's increment is not known: one linear growth takes as many steps as the exponential
    one, the other ends at its batch size.

    >>> len(a11(seeds=[0]))
    12
    """
    _check(variant)
    return _with_lr(a11_cells(scale, variant=variant), "a11", scale, seeds, tuned)


def baselines(
    scale: str = "quick",
    seeds: Sequence[int] = range(3),
    *,
    variant: str = "paper",
    tuned: Mapping[str, Any] | None = None,
) -> list[Run]:
    """SGD, SHB, NSHB, QHM, Adam, AdamW and RMSprop under the increasing batch.

    >>> len(baselines(seeds=[0]))
    14
    """
    _check(variant)
    return _with_lr(baseline_cells(scale, variant=variant), "baselines", scale, seeds, tuned)


def everything(
    scale: str = "quick",
    seeds: Sequence[int] = range(3),
    *,
    small_batch: int = START,
    variant: str = "paper",
) -> list[Run]:
    """All of the above, each experiment in a folder of its own."""
    runs = [
        *figure1(scale, seeds, small_batch=small_batch, variant=variant),
        *figure10(scale, seeds, small_batch=small_batch, variant=variant),
    ]
    for recipe in (figure4, figure5, figure8, a11, baselines):
        runs += recipe(scale, seeds, variant=variant)
    return [dataclasses.replace(run, within=run.experiment) for run in runs]


PAPER: dict[str, Callable[..., list[Run]]] = {
    "figure1": figure1,
    "figure2": figure1,
    "figure3": figure3,
    "figure4": figure4,
    "figure5": figure5,
    "figure6": figure1,
    "figure7": figure1,
    "figure8": figure8,
    "figure9": figure8,
    "figure10": figure10,
    "figure11": figure10,
    "figure12": figure12,
    "a11": a11,
    "baselines": baselines,
    "all": everything,
}


# ------------------------------------------------------------------------------ from cells to runs


def _figure1(
    scale: str,
    seeds: Sequence[int],
    part: str,
    small_batch: int,
    variant: str,
    tuned: Mapping[str, Any] | None,
    *,
    vit: bool,
) -> list[Run]:
    _check(variant, small_batch)
    if part not in ("all", "main"):
        raise ValueError(f"part must be 'all' or 'main', got {part!r}")
    experiment = "figure10" if vit else "figure1"
    chosen = _chosen(experiment, scale, tuned)
    sizes = {
        (panel, "best-constant"): cells["best-constant"]["batch_size"]
        for panel, cells in (chosen["cells"] if chosen else {}).items()
        if "best-constant" in cells
    }
    cells = figure1_cells(
        scale, sizes=sizes, small_batch=small_batch, variant=variant, part=part, vit=vit
    )
    # The lr of a small batch of 256 is that of the constant batch 256.
    names = {"small": f"constant {small_batch}"} if small_batch != START else {}
    return _with_lr(cells, experiment, scale, seeds, tuned, names)


def _with_lr(
    cells: Sequence[Cell],
    experiment: str,
    scale: str,
    seeds: Sequence[int],
    tuned: Mapping[str, Any] | None,
    names: Mapping[str, str] | None = None,
) -> list[Run]:
    chosen = _chosen(experiment, scale, tuned)
    if chosen is None:
        lrs = [_LR if _LR in cell.lrs else cell.lrs[1] for cell in cells]
        note = _UNTUNED
    else:
        lrs = [
            lr_of(chosen, cell.panel, (names or {}).get(cell.label, cell.label)) for cell in cells
        ]
        note = ""
        if "rule" in chosen:
            note = f"how lr was chosen: {chosen['rule']}{at_edge(cells, lrs)}"
    return [
        cell.run(lr, seed, note=note) for cell, lr in zip(cells, lrs, strict=True) for seed in seeds
    ]


def at_edge(cells: Sequence[Cell], lrs: Sequence[float]) -> str:
    """Of which cells the lr that was chosen is the least or the greatest there was; "" if none."""
    found = [
        f"{cell.label} ({cell.panel}, {lr})"
        for cell, lr in zip(cells, lrs, strict=True)
        if len(cell.lrs) > 1 and lr in (cell.lrs[0], cell.lrs[-1])
    ]
    return f"; at an edge of that grid, perhaps better beyond it: {', '.join(found)}" * bool(found)


def _chosen(
    experiment: str, scale: str, tuned: Mapping[str, Any] | None
) -> Mapping[str, Any] | None:
    return committed(experiment, scale) if tuned is None else tuned


def _check(variant: str, small_batch: int = START) -> None:
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
    if small_batch not in SMALL_BATCHES:
        raise ValueError(f"small_batch must be 8 or 256, got {small_batch!r}")
