"""The theory: whether a Plan converges, how fast, and what limits it."""

from batchramp.theory.bound import MEANINGS, Bound, Condition
from batchramp.theory.bounds import (
    Curve,
    auxiliary,
    best_bound,
    bound_curve,
    theorem2,
    theorem4,
)
from batchramp.theory.closed_forms import corollary3, corollary5
from batchramp.theory.comparison import (
    Change,
    Comparison,
    caveats,
    compare,
    what_would_change_it_most,
)
from batchramp.theory.critical_batch import (
    CriticalBatch,
    MaxLR,
    best_constant_batch,
    critical_batch_size,
    max_lr,
)
from batchramp.theory.layout import Segments, segments
from batchramp.theory.picture import draw_bound, draw_bound_as_text
from batchramp.theory.problem import Problem
from batchramp.theory.questions import Answer, epochs_to, steps_to
from batchramp.theory.summary import Summary, summary
from batchramp.theory.verdict import Judgement, Verdict, verdict

__all__ = [
    "MEANINGS",
    "Answer",
    "Bound",
    "Change",
    "Comparison",
    "Condition",
    "CriticalBatch",
    "Curve",
    "Judgement",
    "MaxLR",
    "Problem",
    "Segments",
    "Summary",
    "Verdict",
    "auxiliary",
    "best_bound",
    "best_constant_batch",
    "bound_curve",
    "caveats",
    "compare",
    "corollary3",
    "corollary5",
    "critical_batch_size",
    "draw_bound",
    "draw_bound_as_text",
    "epochs_to",
    "max_lr",
    "segments",
    "steps_to",
    "summary",
    "theorem2",
    "theorem4",
    "verdict",
    "what_would_change_it_most",
]
