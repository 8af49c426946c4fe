"""What a bound, a verdict and a curve cost: the paper's Plan of 300 epochs, and 10^12 steps."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from batchramp import Plan
from batchramp import schedules as s
from batchramp.theory import (
    Problem,
    auxiliary,
    best_bound,
    bound_curve,
    corollary3,
    layout,
    steps_to,
    theorem2,
    theorem4,
    verdict,
    what_would_change_it_most,
)
from benchmarks.timing import Case, Size, repeated

TITLE = "Theory"
NOTE = """Each call lays the Plan out anew: batch 8 doubled every 30 of 300 epochs, cosine lr, beta
and gamma halved, on 50,000 samples and on so many that it makes 10^12 steps."""

PLAN = Plan(
    epochs=300,
    batch_size=s.Exponential(8, factor=2, every=30),
    lr=s.Cosine(0.01),
    beta=s.StepDecay(0.9, factor=0.5, every=30),
    gamma=s.StepDecay(0.7, factor=0.5, every=30),
)
PROBLEM = Problem(initial_gap=5.0, smoothness=2.0, variance=1.0, gradient_bound=3.0)
PAPER, HUGE = "theory: 300 epochs, 374,760 steps", "theory: 300 epochs, 10^12 steps"
SAMPLES = {PAPER: 50_000, HUGE: 134_000_000_000}
CALLS: dict[str, Callable[..., Any]] = {
    "theorem2, per step": theorem2,
    "theorem2, printed": partial(theorem2, form="printed"),
    "theorem4, safe": theorem4,
    "theorem4, printed": partial(theorem4, form="printed"),
    "auxiliary": auxiliary,
    "auxiliary, best split": partial(auxiliary, split="best"),
    "corollary3": corollary3,
    "best_bound": best_bound,
    "bound_curve": bound_curve,
    "steps_to": lambda plan, problem, n: steps_to(0.02, plan, problem, n),
    "what_would_change_it_most": what_would_change_it_most,
    "verdict": lambda plan, problem, n: verdict(plan, problem=problem, n=n),
}


def called(name: str, n: int) -> Any:
    """The answer, with nothing kept from an earlier call."""
    layout._segments.cache_clear()
    return CALLS[name](PLAN, PROBLEM, n)


def cases(size: Size) -> Iterator[Case]:
    rounds, seconds = {"tiny": (1, 0.0), "quick": (5, 0.0), "full": (21, 0.02)}[size]
    assert PLAN.total_steps(SAMPLES[PAPER]) == 374_760
    assert PLAN.total_steps(SAMPLES[HUGE]) > 10**12
    for name in list(CALLS)[: 3 if size == "tiny" else None]:
        yield Case(
            name=name,
            per="call",
            base=PAPER,
            sides={
                side: repeated(partial(called, name, n), seconds) for side, n in SAMPLES.items()
            },
            rounds=rounds,
        )
