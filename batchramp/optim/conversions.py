"""One method as another: the momentum methods that QHM contains, schedules included.

Every conversion here is exact: both methods visit the same points on the same gradients, at every
step and for any schedule. The methods, with g_k the gradient at the point of step k and all
buffers zero before step 0:

========  =========================================================================================
QHM       d_k = β_k d_{k-1} + (1 - β_k) g_k,  x_{k+1} = x_k - α_k ((1 - γ_k) g_k + γ_k d_k)
NSHB      QHM with γ_k = 1: normalised stochastic heavy ball
SHB       m_k = μ_k m_{k-1} + g_k,  x_{k+1} = x_k - ε_k m_k
SNAG      v_{k+1} = μ_k v_k - ε_k g(θ_k + μ_k v_k),  θ_{k+1} = θ_k + v_{k+1} (Sutskever's form)
SGD       torch.optim.SGD without dampening: SHB, or with ``nesterov`` its own form of Nesterov
========  =========================================================================================

Functions named ``a_to_b`` map sequences with one number a step to such sequences; `convert_plan`
maps Plans; those named ``from_*`` map constants to the arguments of QHM, and `to_sgd` maps them
back. A momentum buffer normalised by another weight is another buffer, so a change of β costs a
correction at the step of the change. That is why SHB and NSHB of constant β differ by a factor in
lr only, and why anything else is converted step by step.

Weight decay that is added to the gradient is part of g_k and converts with it; decoupled decay
does not.

Proposition 6 of Imaizumi and Iiduka (ACML 2025) prints β/(1 - β) for the momentum of the SHB that
equals an NSHB, and μ/(1 + μ) for the way back. Both are wrong, as they take the two methods'
buffers for equal where they differ by the factor 1 - β_{k-1}: for constant β the momentum is β
itself. The printed one reaches 1 at β = 1/2, beyond which SHB diverges even on a quadratic; it is 9
for β = 0.9.

    >>> nshb_to_shb([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
    ([0.25, 0.25, 0.25], [0.5, 0.5, 0.5])
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from numbers import Real
from typing import Any

from batchramp.plan import Plan
from batchramp.schedules import Constant, Piecewise, Product, Schedule

__all__ = [
    "convert_plan",
    "from_accsgd",
    "from_pid",
    "from_robust_momentum",
    "from_sgd",
    "from_synthesized_nesterov",
    "from_two_state_optimizer",
    "nshb_to_shb",
    "qhm_to_sgd",
    "sgd_to_qhm",
    "shb_to_nshb",
    "snag_to_qhm",
    "to_sgd",
]

# Rounding may put a converted value this far outside its closed range, or off a required value.
_ROUNDING = 1e-12
# The length to which a Plan is laid out step by step.
_CONVERTED_STEPS = 10_000_000

_ALLOWED: dict[str, tuple[str, Callable[[float], bool]]] = {
    "lr": ("a finite number >= 0", lambda value: value >= 0),
    "beta": ("in [0, 1)", lambda value: 0 <= value < 1),
    "gamma": ("in [0, 1]", lambda value: 0 <= value <= 1),
    "momentum": ("a finite number >= 0", lambda value: value >= 0),
    "beta0": ("in [0, 1)", lambda value: 0 <= value < 1),
}


# ------------------------------------------------------------------------- sequences, step by step


def nshb_to_shb(lr: Iterable[float], beta: Iterable[float]) -> tuple[list[float], list[float]]:
    """The SHB that visits the points of a given NSHB.

    ε_k = α_k (1 - β_k), μ_k = β_k (1 - β_{k-1}) / (1 - β_k), since m_k = d_k / (1 - β_k). μ_0
    multiplies a zero buffer; it is given as β_0, so that constants stay constants.

    Args:
        lr: α_k >= 0, one a step.
        beta: β_k in [0, 1), one a step.

    Returns:
        ε_k and μ_k. Where β rises, μ_k is above β_k and can exceed 1 for that one step.

    Raises:
        ValueError: an argument out of its range, or sequences of unequal length.

    Differs from `qhm_to_sgd`, which minds what torch does with a momentum of exactly zero.

    >>> nshb_to_shb([1.0, 1.0, 1.0], [0.5, 0.75, 0.75])
    ([0.5, 0.25, 0.25], [0.5, 1.5, 0.75])

    Source: substitution in Algorithm 1; Proposition 6 of the paper is wrong (see the module).
    """
    lr, beta = _sequences(lr=lr, beta=beta)
    return [a * (1 - b) for a, b in zip(lr, beta, strict=True)], _momentum(beta)


def shb_to_nshb(
    lr: Iterable[float], momentum: Iterable[float], *, beta0: float | None = None
) -> tuple[list[float], list[float]]:
    """The NSHB that visits the points of a given SHB: the inverse of `nshb_to_shb`.

    With c_k = 1 + μ_k c_{k-1}, the weight of all gradients so far: α_k = ε_k c_k,
    β_k = 1 - 1/c_k.

    Args:
        lr: ε_k >= 0, one a step.
        momentum: μ_k >= 0, one a step; 1 and more are allowed, if not for too long.
        beta0: β_0 in [0, 1), which is free: it multiplies a zero buffer, so that every c_0 =
            1/(1 - β_0) gives an NSHB with the same points. Left out it is μ_0, and constants stay
            constants. 0 starts with a true mean of the gradients (as bias correction does), so
            that β_k then rises to μ step by step.

    Returns:
        α_k and β_k.

    Raises:
        ValueError: an argument out of its range, μ_0 >= 1 and no ``beta0``, or a β_k that is 1 to
            the last digit.

    >>> shb_to_nshb([0.5, 0.25, 0.25], [0.5, 1.5, 0.75])
    ([1.0, 1.0, 1.0], [0.5, 0.75, 0.75])
    >>> shb_to_nshb([0.5, 0.5, 0.5], [1.0, 1.0, 1.0], beta0=0.0)[0]
    [0.5, 1.0, 1.5]

    Source: the proof of `nshb_to_shb` read backwards.
    """
    lr, momentum = _sequences(lr=lr, momentum=momentum)
    pairs = list(_weights(momentum, _first_beta(momentum, beta0)))
    return [e / fresh for e, (_, fresh) in zip(lr, pairs, strict=True)], [b for b, _ in pairs]


def snag_to_qhm(
    lr: Iterable[float], momentum: Iterable[float], *, beta0: float | None = None
) -> tuple[list[float], list[float], list[float]]:
    """The QHM that visits the points y_k = θ_k + μ_k v_k at which SNAG takes its gradients.

    Eliminating θ gives y_{k+1} = y_k - ε_k (g_k + μ_{k+1} m_k), m_k = (μ_k ε_{k-1}/ε_k) m_{k-1} +
    g_k. With c_0 = 1/(1 - β_0), c_k = 1 + (μ_k ε_{k-1}/ε_k) c_{k-1}: β_k = 1 - 1/c_k, α_k = ε_k (1
    + μ_{k+1} c_k), γ_k = μ_{k+1} c_k / (1 + μ_{k+1} c_k). Constant: β = γ = μ, α = ε/(1 - μ).

    Args:
        lr: ε_k > 0, one a step. A zero has no QHM, as SNAG then moves without any gradient.
        momentum: μ_k >= 0, one a step and, if wanted, the one after the last step, by which y_K
            looks ahead; left out it is the last one. At 0 the run ends in y_K = θ_K itself.
        beta0: β_0 in [0, 1), free as in `shb_to_nshb`; left out it is μ_0.

    Returns:
        α_k, β_k and γ_k.

    Raises:
        ValueError: an argument out of its range, μ_0 >= 1 and no ``beta0``, or a β_k that is 1 to
            the last digit.

    Differs from `sgd_to_qhm` with ``nesterov``: torch looks ahead by the present μ_k, and its lr
    stands outside the buffer.

    >>> snag_to_qhm([0.5, 0.5], [0.5, 0.5])
    ([1.0, 1.0], [0.5, 0.5], [0.5, 0.5])
    >>> snag_to_qhm([0.5, 0.5], [0.5, 0.5, 0.0])
    ([1.0, 0.5], [0.5, 0.5], [0.5, 0.0])

    Source: Sutskever, Martens, Dahl and Hinton, "On the importance of initialization and momentum
    in deep learning" (2013), (3) and (4), for SNAG; the elimination is written out above.
    """
    lr, momentum = list(lr), list(momentum)
    after = momentum.pop() if len(momentum) == len(lr) + 1 else None
    lr, momentum = _sequences(lr=lr, momentum=momentum)
    after = momentum[-1] if after is None else _checked("momentum", after, f" at step {len(lr)}")
    for k, e in enumerate(lr):
        if e == 0:
            raise ValueError(f"lr must be > 0 to convert SNAG, got {e!r} at step {k}")
    # SNAG's lr stands inside its buffer; taken out, it leaves the ratio of two lr in the momentum.
    ratios = [before / e for before, e in pairwise(lr)]
    outside = [momentum[0], *(mu * r for mu, r in zip(momentum[1:], ratios, strict=True))]
    weights = _weights(outside, _first_beta(momentum, beta0))
    return _lookahead(lr, [*momentum[1:], after], weights)


def sgd_to_qhm(
    lr: Iterable[float],
    momentum: Iterable[float],
    *,
    nesterov: bool = False,
    beta0: float | None = None,
) -> tuple[list[float], list[float], list[float]]:
    """The QHM that visits the points of torch.optim.SGD (``dampening=0``).

    With c_k = 1 + μ_k c_{k-1}, β_k = 1 - 1/c_k. Without ``nesterov`` α_k = ε_k c_k and γ_k = 1;
    with it α_k = ε_k (1 + μ_k c_k) and γ_k = μ_k c_k / (1 + μ_k c_k).

    Args:
        lr: ε_k >= 0, one a step.
        momentum: μ_k >= 0, one a step. Zeros may stand at the beginning and at the end only: at a
            momentum of exactly 0 torch leaves its buffer as it is, and a buffer that skips a
            gradient is none of QHM.
        nesterov: as in torch.optim.SGD.
        beta0: β_0 in [0, 1), free as in `shb_to_nshb`; left out it is μ_0. Where μ_0 = 0 it must be
            left out: torch then starts its buffer later, with one gradient.

    Returns:
        α_k, β_k and γ_k.

    Raises:
        ValueError: an argument out of its range, a zero between other momenta, μ_0 >= 1 and no
            ``beta0``, or a β_k that is 1 to the last digit.

    >>> sgd_to_qhm([0.5, 0.25], [0.5, 0.5])
    ([1.0, 0.5], [0.5, 0.5], [1.0, 1.0])
    >>> sgd_to_qhm([0.5, 0.25], [0.5, 0.5], nesterov=True)
    ([1.0, 0.5], [0.5, 0.5], [0.5, 0.5])

    Source: the update in the documentation of torch.optim.SGD, whose first buffer is the first
    gradient and so that of a zero buffer before it.
    """
    lr, momentum = _sequences(lr=lr, momentum=momentum)
    first, last = _nonzero_span(momentum)
    for k in range(first, last):
        if momentum[k] == 0:
            raise ValueError(
                f"momentum must be > 0 between its first and last nonzero step, got 0 at step {k}: "
                "torch's SGD keeps its buffer unchanged there, QHM cannot"
            )
    if first > 0 and beta0 is not None:
        raise ValueError(f"beta0 must be left out where momentum starts at 0, got {beta0!r}")
    # Torch starts a late buffer with the gradient alone: no weight on what came before.
    decay = [0.0 if 0 < k == first else mu for k, mu in enumerate(momentum)]
    weights = _weights(decay, _first_beta(decay, beta0))
    if nesterov:
        return _lookahead(lr, momentum, weights)
    pairs = list(weights)
    rates = [e / fresh for e, (_, fresh) in zip(lr, pairs, strict=True)]
    return rates, [b for b, _ in pairs], [1.0] * len(lr)


def qhm_to_sgd(
    lr: Iterable[float], beta: Iterable[float], gamma: Iterable[float], *, nesterov: bool = False
) -> tuple[list[float], list[float]]:
    """The torch.optim.SGD (``dampening=0``) that visits the points of a given QHM, if there is one.

    μ_k = β_k (1 - β_{k-1}) / (1 - β_k) as in `nshb_to_shb`. Without ``nesterov`` γ_k must be 1, and
    ε_k = α_k (1 - β_k). With it γ_k must be r_k / (1 + r_k), where r_k = μ_k / (1 - β_k), and ε_k =
    α_k (1 - γ_k): that is γ_k = β_k, but for the first step after a change of β. Step 0 is free, as
    d_0 and g_0 are parallel, and so is γ where β, lr or all of γ is 0.

    Args:
        lr: α_k >= 0, one a step.
        beta: β_k in [0, 1), one a step. Zeros may stand at the beginning and at the end only,
            unless all of γ is 0: see `sgd_to_qhm`.
        gamma: γ_k in [0, 1], one a step.
        nesterov: the form of SGD to convert to.

    Returns:
        ε_k and μ_k for the param groups' ``lr`` and ``momentum``. μ_k can exceed 1 where β rises.
        Where β starts at 0, μ of the last such step is that of the next: any number above 0
        makes torch start its buffer there.

    Raises:
        ValueError: an argument out of its range, a γ_k or a zero in β that this SGD cannot follow.

    >>> qhm_to_sgd([1.0, 0.5], [0.5, 0.5], [1.0, 1.0])
    ([0.5, 0.25], [0.5, 0.5])
    >>> qhm_to_sgd([1.0, 0.5], [0.5, 0.5], [0.5, 0.5], nesterov=True)
    ([0.5, 0.25], [0.5, 0.5])

    Source: `sgd_to_qhm` solved for ε and μ.
    """
    lr, beta, gamma = _sequences(lr=lr, beta=beta, gamma=gamma)
    if all(b * g == 0 for b, g in zip(beta, gamma, strict=True)):
        return lr, [0.0] * len(lr)
    nonzero, last = _nonzero_span(beta)
    start = max(nonzero - 1, 0)  # where torch makes its buffer: no gradient before it may count
    momentum = _momentum(beta)
    momentum[start] = momentum[start] or momentum[start + 1]
    rates = list(lr)
    for k in range(start, last + 1):
        if k == start:
            rates[k] = lr[k] * (1 - gamma[k] * beta[k]) / (1 + nesterov * momentum[k])
            continue
        if beta[k] == 0:
            raise ValueError(
                f"beta must be > 0 between its first and last nonzero step, got 0 at step {k}: "
                "torch's SGD keeps its buffer unchanged at momentum 0"
            )
        ahead = momentum[k] / (1 - beta[k])
        wanted = ahead / (1 + ahead) if nesterov else 1.0
        if lr[k] > 0 and not _close(gamma[k], wanted):
            raise ValueError(
                f"gamma must be {wanted:.6g} at step {k} for torch's SGD with nesterov={nesterov}, "
                f"got {gamma[k]!r}"
            )
        rates[k] = lr[k] * (1 - wanted if nesterov else 1 - beta[k])
    return rates, momentum


# ------------------------------------------------------------------------------------------- Plans


def convert_plan(
    plan: Plan,
    conversion: Callable[..., tuple[list[float], ...]],
    *,
    n: int | None = None,
    drop_last: bool = False,
    **options: Any,
) -> Plan:
    """A Plan for one method as the Plan for another that visits the same points.

    If the weights do not change, the new Plan counts what the old one counts and its lr is the
    old one times a factor. If they do, a correction falls due at single steps, which no Plan in
    epochs or samples can hold: the new Plan counts steps, and its schedules are `Piecewise` by
    step. It makes the same batches: an epoch ends with the data whatever the unit.

    Args:
        plan: lr and the weights of the method that ``conversion`` starts from. ``beta`` stands for
            the momentum of SHB, SNAG and SGD, which have no ``gamma``; NSHB's may be left out.
        conversion: `nshb_to_shb`, `shb_to_nshb`, `snag_to_qhm`, `sgd_to_qhm` or `qhm_to_sgd`.
        n: samples in the data set. Needed when the weights change and the Plan does not count
            steps; a new Plan in steps is right for this n only.
        drop_last: whether the loader drops the short last batch of an epoch.
        options: for the conversion: ``beta0``, ``nesterov``.

    Returns:
        A Plan for the same number of steps. Of a conversion to SHB or SGD its ``beta`` is to be
        mapped to ``momentum``, by name.

    Raises:
        ValueError: lr or beta is missing, gamma is missing or in the way, n is missing, or the
            result is no Plan: a momentum >= 1 where beta rises, among others.

    >>> from batchramp import schedules as s
    >>> plan = Plan(epochs=9, batch_size=8, lr=s.Cosine(1.0), beta=0.75)
    >>> convert_plan(plan, nshb_to_shb)
    Plan(epochs=9, batch_size=Constant(8), lr=Product(Cosine(1.0), Constant(0.25)),
         beta=Constant(0.75))
    >>> plan = Plan(epochs=2, batch_size=8, lr=1.0, beta=s.Piecewise({0: 0.75, 1: 0.5}))
    >>> shb = convert_plan(plan, nshb_to_shb, n=20)
    >>> shb.steps, shb.lr, shb.beta
    (6, Piecewise({0: 0.25, 3: 0.5}), Piecewise({0: 0.75, 3: 0.25, 4: 0.5}))
    """
    if conversion not in _CONVERSIONS:
        names = ", ".join(one.__name__ for one in _CONVERSIONS)
        raise ValueError(f"conversion must be one of {names}, got {conversion!r}")
    needed = _CONVERSIONS[conversion]
    for name in needed:
        if getattr(plan, name) is None:
            raise ValueError(f"{name} must be scheduled for {conversion.__name__}, got None")
    if "gamma" not in needed and plan.gamma is not None:
        normalised = conversion is nshb_to_shb
        if not (normalised and _is_one(plan)):
            allowed = "1 or None" if normalised else "None"
            raise ValueError(
                f"gamma must be {allowed} for {conversion.__name__}, got {plan.gamma!r}"
            )
    schedules = _convert_constants(plan, conversion, needed, options)
    if schedules is not None:
        batch_size, length = plan.batch_size, {plan.unit: plan.length}
    else:
        ticks, batch_size = _lay_out(plan, n, drop_last)
        values = [[getattr(plan, name)(tick, plan.length) for tick in ticks] for name in needed]
        schedules = [_piecewise(result) for result in conversion(*values, **options)]
        length = {"steps": len(ticks)}
    lr, beta, gamma = [*schedules, Constant(1.0) if conversion is shb_to_nshb else None][:3]
    return Plan(**length, batch_size=batch_size, lr=lr, beta=beta, gamma=gamma)


# What each conversion reads of a Plan, in the order of its arguments.
_CONVERSIONS: dict[Callable[..., tuple[list[float], ...]], tuple[str, ...]] = {
    nshb_to_shb: ("lr", "beta"),
    shb_to_nshb: ("lr", "beta"),
    snag_to_qhm: ("lr", "beta"),
    sgd_to_qhm: ("lr", "beta"),
    qhm_to_sgd: ("lr", "beta", "gamma"),
}


def _convert_constants(
    plan: Plan,
    conversion: Callable[..., tuple[list[float], ...]],
    needed: tuple[str, ...],
    options: dict[str, Any],
) -> list[Schedule] | None:
    """The schedules, if the conversion is a factor in lr and weights that never change.

    All but SNAG's use lr_k at step k only, as a factor, and carry one number from step to step,
    which their results determine. So if a few steps show one factor and one set of weights, all
    do. SNAG's mixes the lr of two steps: the probe changes lr where the Plan may.
    """
    weights = [getattr(plan, name) for name in needed[1:]]
    if plan.lr is None or not all(isinstance(weight, Constant) for weight in weights):
        return None
    lr = [1.0, 1.0, 1.0] if isinstance(plan.lr, Constant) else [1.0, 1.0, 2.0, 2.0, 1.0]
    rates, *others = conversion(lr, *([w.value] * len(lr) for w in weights), **options)
    factors = [new / old for new, old in zip(rates, lr, strict=True)]
    if not all(_close(v, values[0]) for values in (factors, *others) for v in values):
        return None
    scaled = plan.lr if factors[0] == 1 else Product(plan.lr, Constant(factors[0]))
    if isinstance(plan.lr, Constant):
        scaled = Constant(plan.lr.value * factors[0])
    return [scaled, *(Constant(values[0]) for values in others)]


def _lay_out(plan: Plan, n: int | None, drop_last: bool) -> tuple[Sequence[int], Schedule]:
    """The tick of every step, and the batch size as a schedule by step."""
    if plan.unit == "steps":
        if plan.length > _CONVERTED_STEPS:
            raise ValueError(
                f"steps must be <= {_CONVERTED_STEPS:,} to convert step by step, got {plan.length}"
            )
        return range(plan.length), plan.batch_size
    if n is None:
        raise ValueError(
            f"n must be given to convert changing weights of a plan in {plan.unit} step by step, "
            "got None"
        )
    if plan.unit == "epochs" and plan.total_steps(n, drop_last) > _CONVERTED_STEPS:
        raise ValueError(
            f"a plan must have <= {_CONVERTED_STEPS:,} steps to convert step by step, got "
            f"{plan.total_steps(n, drop_last)}"
        )
    ticks: list[int] = []
    taken = 0
    epochs = _batches(plan, n, drop_last)
    for epoch, batches in enumerate(epochs):
        for true_size in batches:
            ticks.append(plan.tick(epoch=epoch, step=len(ticks), samples=taken))
            taken += true_size
    # The scheduled sizes: the data cuts the last batch of an epoch in the new Plan as in the old.
    # Only the end of a Plan in samples cuts a batch in a way that steps do not know.
    size_at = {tick: plan.at(tick).batch_size for tick in set(ticks)}
    sizes = [size_at[tick] for tick in ticks]
    if plan.unit == "samples":
        sizes[-1] = epochs[-1][-1]
    batch_size = _piecewise(sizes)
    if drop_last and _batches(Plan(steps=len(ticks), batch_size=batch_size), n, True) != epochs:
        raise ValueError(
            f"drop_last must be False for {plan.batch_size!r}: a smaller batch of the next epoch "
            f"would fill what an epoch leaves over of {n} samples once the plan counts steps, got "
            "True"
        )
    return ticks, batch_size


def _batches(plan: Plan, n: int, drop_last: bool) -> list[list[int]]:
    epochs = range(plan.total_epochs(n, drop_last))
    return [plan.batch_sizes(epoch, n, drop_last) for epoch in epochs]


def _piecewise(values: Sequence[float]) -> Schedule:
    changes = {k: v for k, v in enumerate(values) if k == 0 or v != values[k - 1]}
    return Constant(values[0]) if len(changes) == 1 else Piecewise(changes)


def _is_one(plan: Plan) -> bool:
    assert plan.gamma is not None
    tick = 0
    while tick < plan.length:
        if plan.gamma(tick, plan.length) != 1:
            return False
        tick = max(plan.gamma.next_change(tick, plan.length), tick + 1)
    return True


# --------------------------------------------------------------------------------------- constants


def from_sgd(lr: float, momentum: float = 0.0, *, nesterov: bool = False) -> dict[str, float]:
    """The arguments of QHM for a torch.optim.SGD with constant momentum.

    α = ε / (1 - μ), β = μ, γ = 1, or γ = μ with ``nesterov``. The lr may be scheduled after that:
    the factor stays.

    Args:
        lr: ε >= 0.
        momentum: μ in [0, 1).
        nesterov: as in torch.optim.SGD.

    Returns:
        lr, beta and gamma, by name.

    Raises:
        ValueError: an argument out of its range.

    Differs from SGD with ``dampening=momentum``, whose first buffer is the undamped gradient.

    >>> from_sgd(0.25, 0.75, nesterov=True)
    {'lr': 1.0, 'beta': 0.75, 'gamma': 0.75}

    Source: Ma and Yarats, "Quasi-hyperbolic momentum and Adam for deep learning" (ICLR 2019),
    section 4; `sgd_to_qhm`.
    """
    _checked("lr", lr)
    if not 0 <= _checked("momentum", momentum) < 1:
        raise ValueError(f"momentum must be in [0, 1), got {momentum!r}")
    return _hyperparameters(lr / (1 - momentum), momentum, momentum if nesterov else 1.0)


def to_sgd(lr: float, beta: float, gamma: float) -> dict[str, Any]:
    """The arguments of torch.optim.SGD for a QHM of constants, where SGD can follow it.

    γ = 1: momentum β. γ = β: momentum β with ``nesterov``. Both have lr α (1 - β). β γ = 0: no
    momentum, lr α. The lr may be scheduled after that: the factor stays.

    Args:
        lr: α >= 0.
        beta: β in [0, 1).
        gamma: γ in [0, 1].

    Returns:
        lr, momentum and nesterov, by name.

    Raises:
        ValueError: an argument out of its range, or a γ that is none of 0, β and 1: then no SGD
            visits the same points.

    >>> to_sgd(1.0, 0.75, 0.75)
    {'lr': 0.25, 'momentum': 0.75, 'nesterov': True}

    Source: `from_sgd` read backwards; `qhm_to_sgd` for schedules.
    """
    for name, value in (("lr", lr), ("beta", beta), ("gamma", gamma)):
        _checked(name, value)
    if beta * gamma == 0:
        return {"lr": lr, "momentum": 0.0, "nesterov": False}
    if not (_close(gamma, 1) or _close(gamma, beta)):
        raise ValueError(
            f"gamma must be 0, beta ({beta!r}) or 1 for a torch.optim.SGD to follow QHM, "
            f"got {gamma!r}"
        )
    return {"lr": lr * (1 - beta), "momentum": beta, "nesterov": not _close(gamma, 1)}


def from_pid(k_p: float, k_i: float, k_d: float) -> dict[str, float]:
    """The arguments of QHM for gradient descent as a PID controller.

    With e_k = -g_k, w_k = w_{k-1} + e_k, v_k = β v_{k-1} + (1 - β)(e_k - e_{k-1}):
    x_{k+1} = x_0 + k_P e_k + k_I w_k + k_D v_k. The filter of the derivative is not free: only with
    β = k_D / (k_D - k_P) does e_{k-2} drop out of the update. Then α = k_I, γ = k_P² / (k_I k_D).

    Args:
        k_p: the proportional gain, < 0 (0 if k_d is 0 too: plain SGD).
        k_i: the integral gain, > 0.
        k_d: the derivative gain, > 0.

    Returns:
        lr, beta and gamma, by name.

    Raises:
        ValueError: a gain of the wrong sign, or gamma outside [0, 1].

    Differs from qhoptim, which computes on with any gains.

    >>> from_pid(k_p=-0.25, k_i=0.5, k_d=0.25)
    {'lr': 0.5, 'beta': 0.5, 'gamma': 0.5}

    Source: Recht, "The Best Things in Life Are Model Free" (2018); Ma and Yarats (2019), section 4.
    """
    k_p, k_i, k_d = _finite(k_p=k_p, k_i=k_i, k_d=k_d)
    if k_i <= 0:
        raise ValueError(f"k_i must be > 0, got {k_i!r}")
    if k_p == 0 and k_d == 0:
        return _hyperparameters(k_i, 0.0, 0.0)
    if k_p >= 0:
        raise ValueError(f"k_p must be < 0 (or k_p = k_d = 0), got {k_p!r}")
    if k_d <= 0:
        raise ValueError(f"k_d must be > 0 (or k_p = k_d = 0), got {k_d!r}")
    return _hyperparameters(k_i, k_d / (k_d - k_p), k_p * k_p / (k_i * k_d))


def from_synthesized_nesterov(alpha: float, beta1: float, beta2: float) -> dict[str, float]:
    """The arguments of QHM for the Nesterov method of two momenta.

    ξ_{k+1} = ξ_k + β_1 (ξ_k - ξ_{k-1}) - α g(y_k), y_k = ξ_k + β_2 (ξ_k - ξ_{k-1}). QHM visits
    the y_k, with lr α / (1 - β_1), beta β_1 and gamma 1 - β_2 (1 - β_1) / β_1. β_2 = 0 is heavy
    ball, β_2 = β_1 is Nesterov.

    Args:
        alpha: α >= 0.
        beta1: β_1 in (0, 1); 0 if beta2 is 0 too: plain SGD.
        beta2: β_2 in [0, β_1 / (1 - β_1)].

    Returns:
        lr, beta and gamma, by name.

    Raises:
        ValueError: beta1 or the gamma that results is out of its range.

    Differs from qhoptim, which computes on with any arguments, and divides by zero at beta1 = 0.

    >>> from_synthesized_nesterov(alpha=0.25, beta1=0.5, beta2=0.25)
    {'lr': 0.5, 'beta': 0.5, 'gamma': 0.75}

    Source: Lessard, Recht and Packard, "Analysis and Design of Optimization Algorithms via Integral
    Quadratic Constraints" (2016), section 6.
    """
    alpha, beta1, beta2 = _finite(alpha=alpha, beta1=beta1, beta2=beta2)
    if beta1 == 0 and beta2 == 0:
        return _hyperparameters(alpha, 0.0, 1.0)
    if not 0 < beta1 < 1:
        raise ValueError(f"beta1 must be in (0, 1) (or beta1 = beta2 = 0), got {beta1!r}")
    return _hyperparameters(alpha / (1 - beta1), beta1, 1 - (1 - beta1) / beta1 * beta2)


def from_robust_momentum(
    l: float,  # noqa: E741 - qhoptim's name
    kappa: float,
    rho: float | None = None,
) -> dict[str, float]:
    """The arguments of QHM for Robust Momentum and, without rho, Triple Momentum.

    The method of `from_synthesized_nesterov` with α = κ (1 - ρ)² (1 + ρ) / L,
    β_1 = κ ρ³ / (κ - 1) and β_2 = ρ³ / ((κ - 1)(1 - ρ)² (1 + ρ)).

    Args:
        l: L > 0, the Lipschitz constant of the gradient.
        kappa: κ = L / (strong convexity) > 1.
        rho: ρ, the rate of convergence without noise, from 1 - 1/√κ, the fastest (and the value
            when left out: Triple Momentum), to 1 - 1/κ, which is gradient descent with lr 1/L.

    Returns:
        lr, beta and gamma, by name.

    Raises:
        ValueError: an argument out of its range.

    Differs from qhoptim, which computes on with any arguments.

    >>> from_robust_momentum(l=1.0, kappa=4.0, rho=0.75)["gamma"]  # 1 - 1/κ: gradient descent
    0.0

    Source: Cyrus, Hu, Van Scoy and Lessard, "A Robust Accelerated Optimization Algorithm for
    Strongly Convex Functions" (2018); Van Scoy, Freeman and Lynch (2018).
    """
    l, kappa = _finite(l=l, kappa=kappa)  # noqa: E741
    if l <= 0:
        raise ValueError(f"l must be > 0, got {l!r}")
    if kappa <= 1:
        raise ValueError(f"kappa must be > 1, got {kappa!r}")
    fastest, slowest = 1 - 1 / math.sqrt(kappa), 1 - 1 / kappa
    (rho,) = _finite(rho=fastest if rho is None else rho)
    if not fastest - 1e-15 <= rho <= slowest + 1e-15:
        raise ValueError(f"rho must be in [{fastest:.6g}, {slowest:.6g}], got {rho!r}")
    if abs(rho - slowest) <= 1e-15:  # where the formulas below lose gamma = 0 to rounding
        return _hyperparameters(1 / l, slowest**2, 0.0)
    spread = (1 - rho) ** 2 * (1 + rho)
    return from_synthesized_nesterov(
        kappa * spread / l, kappa * rho**3 / (kappa - 1), rho**3 / ((kappa - 1) * spread)
    )


def from_accsgd(delta: float, kappa: float, xi: float, eps: float = 0.7) -> dict[str, float]:
    """The arguments of QHM for AccSGD.

    With a = 1 - ε² ξ / κ and w̄_0 = w_0: w̄_{k+1} = a w̄_k + (1 - a)(w_k - (κ δ / ε) g(w_k)),
    w_{k+1} = (ε (w_k - δ g(w_k)) + (1 - a) w̄_{k+1}) / (ε + 1 - a). QHM visits the w_k, with lr
    δ ε (1 + ξ) / (1 + ε), beta (κ - ε² ξ) / (κ + ε ξ) and gamma (ε ξ - 1) / (ε (1 + ξ)).

    Args:
        delta: δ > 0, the short step.
        kappa: κ > 0, the long step over the short one.
        xi: ξ, the statistical advantage, from 1/ε to κ/ε².
        eps: ε in (0, 1).

    Returns:
        lr, beta and gamma, by name.

    Raises:
        ValueError: an argument out of its range.

    Differs from qhoptim, which computes on with any arguments.

    >>> from_accsgd(delta=0.25, kappa=11.0, xi=5.0, eps=0.5)
    {'lr': 0.5, 'beta': 0.7222222222222222, 'gamma': 0.5}

    Source: Kidambi, Netrapalli, Jain and Kakade, "On the insufficiency of existing momentum schemes
    for Stochastic Optimization" (2018).
    """
    delta, kappa, xi, eps = _finite(delta=delta, kappa=kappa, xi=xi, eps=eps)
    if not 0 < eps < 1:
        raise ValueError(f"eps must be in (0, 1), got {eps!r}")
    if delta <= 0:
        raise ValueError(f"delta must be > 0, got {delta!r}")
    if kappa <= 0:
        raise ValueError(f"kappa must be > 0, got {kappa!r}")
    if not 1 / eps * (1 - _ROUNDING) <= xi <= kappa / eps**2 * (1 + _ROUNDING):
        raise ValueError(
            f"xi must be in [1/eps, kappa/eps^2] = [{1 / eps:.6g}, {kappa / eps**2:.6g}], got {xi}"
        )
    return _hyperparameters(
        delta * eps * (1 + xi) / (1 + eps),
        (kappa - eps * eps * xi) / (kappa + eps * xi),
        (eps * xi - 1) / (eps * (1 + xi)),
    )


def from_two_state_optimizer(
    h: float,
    k: float,
    l: float,  # noqa: E741 - qhoptim's name
    m: float,
    q: float,
    z: float,
) -> dict[str, float]:
    """The arguments of QHM for a linear optimizer of two states.

    a_{t+1} = h a_t + k θ_t + l g_t, θ_{t+1} = m a_t + q θ_t + z g_t. Eliminating a gives
    θ_{t+2} = (h + q) θ_{t+1} - (h q - k m) θ_t + z g_{t+1} + (m l - h z) g_t. QHM's
    own such equation has the characteristic roots 1 and β, so (1 - h)(1 - q) = k m is required;
    then β = h + q - 1, α = -(m l + (1 - h) z) / (1 - β), γ = (1 + z / α) / β.

    The points agree from the first step if nothing moves without gradients, m a_0 = (1 - q) θ_0:
    a_0 = 0 where q = 1.

    Args:
        h: weight of a in the next a.
        k: weight of θ in the next a.
        l: weight of g in the next a.
        m: weight of a in the next θ.
        q: weight of θ in the next θ.
        z: weight of g in the next θ.

    Returns:
        lr, beta and gamma, by name.

    Raises:
        ValueError: (1 - h)(1 - q) is not k m, or lr, beta or gamma would be out of its range: then
            no QHM visits the same points.

    Differs from qhoptim, whose formula goes through the roots and does not check them.

    >>> from_two_state_optimizer(h=0.5, k=0.0, l=0.5, m=-0.25, q=1.0, z=-0.25)
    {'lr': 0.5, 'beta': 0.5, 'gamma': 1.0}

    Source: Ma and Yarats (2019), section 4, for the class; the elimination is written out above.
    """
    h, k, l, m, q, z = _finite(h=h, k=k, l=l, m=m, q=q, z=z)  # noqa: E741
    drift = (1 - h) * (1 - q) - k * m
    if abs(drift) > _ROUNDING * max(1, abs(h * q), abs(k * m)):
        raise ValueError(
            f"(1 - h)(1 - q) - k m must be 0 for a point to rest without gradients, got {drift!r}"
        )
    beta = _rounded("beta", h + q - 1)
    lr = -(m * l + (1 - h) * z) / (1 - beta)
    if lr <= 0:
        raise ValueError(f"lr must be > 0, got {lr!r} after conversion")
    if beta == 0:
        # A gradient, and the one before it: QHM with beta 0 knows the first only.
        if not _close(-z / lr, 1):
            raise ValueError(f"z must be {-lr:.6g} where h + q = 1, got {z!r}")
        return _hyperparameters(lr, 0.0, 0.0)
    return _hyperparameters(lr, beta, (1 + z / lr) / beta)


# ------------------------------------------------------------------------------------ the algebra


def _momentum(beta: Sequence[float]) -> list[float]:
    """μ_k = β_k (1 - β_{k-1}) / (1 - β_k), with β_0 for the free μ_0."""
    changes = pairwise(beta)
    return [beta[0], *(b if b == a else b * (1 - a) / (1 - b) for a, b in changes)]


def _weights(momentum: Sequence[float], beta0: float) -> Iterator[tuple[float, float]]:
    """(β_k, 1 - β_k) of the normalised buffer of an SHB.

    1 - β_k = 1/c_k is the share of the newest gradient in the sum of weights c_k = 1 + μ_k c_{k-1}.
    Kept as the share s_k = s_{k-1} / (s_{k-1} + μ_k), which cannot overflow and of which
    s = 1 - μ is a fixed point to the last digit.
    """
    fresh = 1 - beta0
    yield beta0, fresh
    for k, mu in enumerate(momentum[1:], start=1):
        total = fresh + mu
        beta = _checked("beta", mu / total, f" at step {k} after conversion")
        fresh = fresh / total
        yield beta, fresh


def _lookahead(
    lr: list[float], ahead: Sequence[float], weights: Iterable[tuple[float, float]]
) -> tuple[list[float], list[float], list[float]]:
    """QHM's α, β, γ for x_{k+1} = x_k - ε_k (g_k + ahead_k m_k), m_k = d_k / (1 - β_k)."""
    rates, betas, gammas = [], [], []
    for e, mu, (beta, fresh) in zip(lr, ahead, weights, strict=True):
        rates.append(e * (fresh + mu) / fresh)
        betas.append(beta)
        gammas.append(mu / (fresh + mu))
    return rates, betas, gammas


def _nonzero_span(values: Sequence[float]) -> tuple[int, int]:
    """The first and the last index of a value above 0; (0, 0) if there is none."""
    where = [k for k, value in enumerate(values) if value > 0] or [0]
    return where[0], where[-1]


def _first_beta(momentum: Sequence[float], beta0: float | None) -> float:
    if beta0 is not None:
        return _checked("beta0", beta0)
    if momentum[0] >= 1:
        raise ValueError(f"beta0 must be given where momentum starts at >= 1, got {momentum[0]!r}")
    return momentum[0]


# ----------------------------------------------------------------------------------------- checks


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=_ROUNDING, abs_tol=_ROUNDING)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan


def _checked(field: str, value: Any, where: str = "") -> float:
    allowed, ok = _ALLOWED[field]
    number = _number(value)
    if not (math.isfinite(number) and ok(number)):
        raise ValueError(f"{field} must be {allowed}, got {value!r}{where}")
    return number


def _sequences(**given: Iterable[float]) -> list[list[float]]:
    kept = [
        [_checked(field, value, f" at step {k}") for k, value in enumerate(values)]
        for field, values in given.items()
    ]
    lengths = [len(values) for values in kept]
    if min(lengths) < 1 or len(set(lengths)) > 1:
        raise ValueError(
            f"{', '.join(given)} must have one value a step, and at least one, got {lengths} values"
        )
    return kept


def _finite(**given: Any) -> list[float]:
    for field, value in given.items():
        if not math.isfinite(_number(value)):
            raise ValueError(f"{field} must be a finite number, got {value!r}")
    return [float(value) for value in given.values()]


def _rounded(field: str, value: float) -> float:
    """``value``, checked; a closed end of its range if it is that but for rounding."""
    for end in (0.0, 1.0):
        if value != end and abs(value - end) <= _ROUNDING and _ALLOWED[field][1](end):
            return end
    return _checked(field, value, " after conversion")


def _hyperparameters(lr: float, beta: float, gamma: float) -> dict[str, float]:
    return {
        "lr": _checked("lr", lr, " after conversion"),
        "beta": _rounded("beta", beta),
        "gamma": _rounded("gamma", gamma),
    }
