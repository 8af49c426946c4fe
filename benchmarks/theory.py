"""What a bound, a verdict and a curve cost: the paper's Plan of 300 epochs, and 10^12 steps of it.

Medians over calls that lay the Plan out anew each time.

    python benchmarks/theory.py
"""

import statistics
import time
from collections.abc import Callable
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

PLAN = Plan(
    epochs=300,
    batch_size=s.Exponential(8, factor=2, every=30),
    lr=s.Cosine(0.01),
    beta=s.StepDecay(0.9, factor=0.5, every=30),
    gamma=s.StepDecay(0.7, factor=0.5, every=30),
)
PROBLEM = Problem(initial_gap=5.0, smoothness=2.0, variance=1.0, gradient_bound=3.0)
# n, and steps of the Plan over so many samples.
SIZES = {50_000: "374,760 steps", 134_000_000_000: "10^12 steps"}
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


def milliseconds(call: Callable[..., Any], n: int) -> float:
    times = []
    for _ in range(9):
        layout._segments.cache_clear()
        started = time.perf_counter()
        call(PLAN, PROBLEM, n)
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times)


def main() -> None:
    assert PLAN.total_steps(134_000_000_000) > 10**12
    print(f"{'milliseconds':28}" + "".join(f"{words:>16}" for words in SIZES.values()))
    for name, call in CALLS.items():
        cells = (milliseconds(call, n) for n in SIZES)
        print(f"{name:28}" + "".join(f"{cell:16.2f}" for cell in cells))


if __name__ == "__main__":
    main()
