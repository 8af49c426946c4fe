"""Algorithm 1 in plain Python: the slow twin against which the fast one is tested."""

from collections.abc import Sequence


def reference_qhm(
    x: Sequence[float],
    gradients: Sequence[Sequence[float] | None],
    lr: Sequence[float],
    beta: Sequence[float],
    gamma: Sequence[float],
    *,
    weight_decay: float = 0.0,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
) -> list[list[float]]:
    """Run Algorithm 1 on one parameter, in Python floats (double precision).

    Args:
        x: the parameter's initial values.
        gradients: the gradient of each step; None leaves the parameter and its d untouched.
        lr, beta, gamma: their values at each step, as many as there are gradients.
        weight_decay, decoupled_weight_decay, maximize: as in :class:`~batchramp.optim.QHM`.

    Returns:
        The parameter before the first step and after each step: one list more than gradients.

    Example:
        >>> reference_qhm([1.0], [[1.0], [1.0]], lr=[0.5, 0.5], beta=[0.5, 0.5], gamma=[1.0, 1.0])
        [[1.0], [0.75], [0.375]]
    """
    x = [float(value) for value in x]
    d = [0.0] * len(x)
    iterates = [list(x)]
    for g, alpha, b, c in zip(gradients, lr, beta, gamma, strict=True):
        if g is not None:
            for i, gradient in enumerate(g):
                g_i = -gradient if maximize else gradient
                if decoupled_weight_decay:
                    x[i] *= 1 - alpha * weight_decay
                else:
                    g_i += weight_decay * x[i]
                d[i] = (1 - b) * g_i + b * d[i]
                m_i = (1 - c) * g_i + c * d[i]
                x[i] -= alpha * m_i
        iterates.append(list(x))
    return iterates
