"""Quasi-hyperbolic momentum (QHM): the optimizer and its three implementations, side by side.

The loop is Algorithm 1 read aloud; foreach is the same over lists of tensors; fused is one call of
torch's SGD kernel for all the tensors of a kind. The notes above `_kernel_arguments` say why that
kernel, meant for something else, computes QHM.
"""

# torch's lists of tensors and its fused kernels are public in all but their names.
# pyright: reportPrivateImportUsage=false

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from numbers import Real
from operator import attrgetter, is_
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from batchramp.optim.conversions import from_sgd

# Other subclasses of Tensor may not know foreach's functions: torch's default leaves them to the
# loop, and so does this one.
try:  # torch adds DTensor to this list when DTensor is first imported
    from torch.optim.optimizer import _foreach_supported_types as _FOREACH_TYPES
except ImportError:
    _FOREACH_TYPES = [Tensor, torch.nn.Parameter]

Number = float | Tensor

_GRADIENT = attrgetter("grad")

_DEFAULTS = {
    "weight_decay": 0.0,
    "decoupled_weight_decay": False,
    "maximize": False,
    "foreach": None,
    "fused": None,
    "capturable": False,
    "differentiable": False,
}


class QHM(Optimizer):
    r"""Quasi-hyperbolic momentum, whose lr, beta and gamma may all change at every step.

    Algorithm 1, for the gradient :math:`g_k` and :math:`d_{-1} = 0`:

    .. math::
        d_k &= (1 - \beta_k)\, g_k + \beta_k\, d_{k-1} \\
        m_k &= (1 - \gamma_k)\, g_k + \gamma_k\, d_k \\
        x_{k+1} &= x_k - \alpha_k\, m_k

    .. warning::
        The gradient enters d with weight 1 - beta, so ``lr`` does not mean what it means in
        ``torch.optim.SGD``: ``QHM(lr=0.1, beta=0.9, gamma=1)`` is ``SGD(lr=0.01, momentum=0.9)``,
        **a factor of ten** that nothing will report. :meth:`from_sgd` does the conversion.

    =============================  =================================================================
    gamma = 0, or beta = 0         SGD (with gamma = 0, d is kept up to date all the same)
    gamma = 1                      normalised heavy ball (NSHB)
    gamma = 1, lr = a / (1-beta)   heavy ball (SHB) with lr a, for a constant beta
    gamma = beta, likewise         Nesterov's momentum (SNAG) with lr a, for a constant beta
    =============================  =================================================================

    Args:
        params: parameters, named parameters, or dicts defining parameter groups; a group may set
            its own value of any option below.
        lr: learning rate alpha, in [0, inf).
        beta: decay of d from one step to the next, in [0, 1).
        gamma: weight of d in the update, in [0, 1].
        weight_decay: in [0, inf). It adds ``weight_decay * x`` to the gradient, or, decoupled, it
            multiplies x by ``1 - lr * weight_decay`` before the step.
        decoupled_weight_decay: which of these two.
        maximize: ascend instead of descending.
        foreach: use lists of tensors. With both ``foreach`` and ``fused`` None the fastest
            implementation that can serve is used; one of them False and the other unset means the
            loop.
        fused: use one call of torch's fused SGD kernel for the tensors of each device and dtype.
            Tensors that the kernel cannot serve are stepped by foreach, to the same numbers:
            float16, complex, half precision on a CPU (where the kernel of torch 2.13 is wrong),
            DTensors, tensors with gaps in memory, and all of them where torch has no such kernel
            or where a value of beta or gamma is so near its limit that the kernel would lose
            digits. Code that ``torch.compile`` traces goes through foreach.
        capturable: never read lr, beta or gamma back from a device: a captured CUDA graph follows
            these tensors as they are filled in place. Goes through foreach. Without it, tensors
            are read at each step.
        differentiable: let autograd pass through the step. Goes through the loop.

    Raises:
        ValueError: when a value is outside its range or a tensor's shape is not its parameter's,
            here, at loading or, for what others have written, at the step before anything moves;
            when two options exclude each other; when a loaded state lacks lr, beta or gamma.
        RuntimeError: at the step, before anything moves, when a gradient is sparse.

    ``state[p]["momentum_buffer"]`` holds ``d / state[p]["scale"]``. The scale is 1.0 unless a fused
    step set it, and 1.0 in all that leaves the optimizer (``state_dict()``, a pickle, a deep copy),
    so that one implementation can load what another has saved. To that end saving multiplies the
    live buffers by their scales: a run that saves at some step and a run resumed from that file go
    on bit for bit alike, but as this rounds once, a run that was looked at by ``state_dict()`` may
    differ in the last digits from one that was not. As in torch, what ``state_dict()`` returns
    holds the live tensors, which the next step changes: deepcopy it to keep it.

    torch's OneCycleLR and CyclicLR need ``cycle_momentum=False``: there is no ``momentum`` here.

    Example:
        >>> import torch
        >>> x = torch.tensor([1.0, -2.0], requires_grad=True)
        >>> optimizer = QHM([x], lr=0.1, beta=0.9, gamma=0.7)
        >>> for _ in range(100):
        ...     optimizer.zero_grad()
        ...     x.square().sum().backward()
        ...     optimizer.step()
        >>> bool(x.detach().abs().max() < 1e-3)
        True

        The factor of ten:

        >>> def after_three_steps(make):
        ...     x = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
        ...     optimizer = make([x])
        ...     for _ in range(3):
        ...         optimizer.zero_grad()
        ...         x.square().sum().backward()
        ...         optimizer.step()
        ...     return round(x.item(), 10)
        >>> after_three_steps(lambda x: QHM(x, lr=0.1, beta=0.9, gamma=1))
        0.889712
        >>> after_three_steps(lambda x: torch.optim.SGD(x, lr=0.01, momentum=0.9))
        0.889712

    Differs from ``torch.optim.SGD``: the factor above; d starts at zero, where SGD's buffer
    starts at the first gradient, undamped. Differs from Facebook's ``qhoptim``: there
    ``momentum`` is beta and ``nu`` is gamma, with the same numbers.

    Sources: Imaizumi and Iiduka, "Both Asymptotic and Non-Asymptotic Convergence of
    Quasi-Hyperbolic Momentum using Increasing Batch Size", ACML 2025, Algorithm 1; Ma and Yarats,
    "Quasi-hyperbolic momentum and Adam for deep learning", ICLR 2019.
    """

    # GradScaler's `_step_supports_amp_scaling` stays undeclared: the kernel would then skip an
    # overflown step by itself while the scales kept here moved on. GradScaler does both instead.

    def __init__(
        self,
        params: ParamsT,
        lr: Number,
        beta: Number = 0.9,
        gamma: Number = 0.7,
        *,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "beta": beta,
            "gamma": gamma,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "fused": fused,
            "capturable": capturable,
            "differentiable": differentiable,
        }
        self._layouts: dict[int, _Layout] = {}
        self._states: list[Any] = []
        super().__init__(params, _checked(defaults))

    @classmethod
    def from_sgd(
        cls,
        params: ParamsT,
        lr: float,
        momentum: float,
        *,
        nesterov: bool = False,
        **options: Any,
    ) -> "QHM":
        """Make the QHM that takes the steps of ``torch.optim.SGD(params, lr, momentum)``.

        lr becomes lr / (1 - momentum), beta becomes momentum, and gamma is 1, or momentum for
        Nesterov's form. Parameter groups may hold their own lr, momentum and nesterov. The steps
        are the same under any schedule of lr (divide its values by 1 - momentum as well), but not
        under a schedule of momentum, which changes the factor.

        Args:
            params: as for :class:`QHM`.
            lr: SGD's learning rate, a number in [0, inf).
            momentum: SGD's momentum, in [0, 1), with its dampening 0.
            nesterov: whether SGD's momentum is Nesterov's.
            options: any keyword option of :class:`QHM`.

        Example:
            >>> x = torch.zeros(3, requires_grad=True)
            >>> group = QHM.from_sgd([x], lr=0.01, momentum=0.9, nesterov=True).param_groups[0]
            >>> round(group["lr"], 10), group["beta"], group["gamma"]
            (0.1, 0.9, 0.9)
        """
        entries = list(cast("Iterable[Any]", params))
        if entries and isinstance(entries[0], dict):
            entries = [_group_from_sgd(group, lr, momentum, nesterov) for group in entries]
        return cls(entries, **from_sgd(lr, momentum, nesterov=nesterov), **options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, after checking the values that it sets for itself."""
        if isinstance(param_group, dict):
            param_group.update(_checked({**self.defaults, **param_group}))
        super().add_param_group(param_group)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step with each group's present lr, beta and gamma.

        Args:
            closure: reevaluates the model and returns the loss.

        Returns:
            The closure's loss, or None without a closure.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        present = _same(self._states, self.state.values())
        if not present:  # reset or replaced from outside
            self._layouts.clear()
        values = [_read(group) for group in self.param_groups]
        work = []
        for index, group in enumerate(self.param_groups):  # all, before anything moves
            with torch.set_grad_enabled(group["differentiable"]):
                work.append(self._prepare(index, group, values[index]))
        if not present or len(self._states) != len(self.state):
            self._states = list(self.state.values())
        for group, own in zip(self.param_groups, work, strict=True):
            with torch.set_grad_enabled(group["differentiable"]):
                for take_step in own:
                    take_step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the state as torch's optimizers do; every momentum_buffer is d itself."""
        self._fold()
        return super().state_dict()

    def __getstate__(self) -> dict[str, Any]:  # pickle and deepcopy come by here
        self._fold()
        return super().__getstate__()

    def __setstate__(self, state: dict[str, Any]) -> None:  # and so does load_state_dict
        for group in state.get("param_groups", ()):
            for field in ("lr", "beta", "gamma"):
                if field not in group:
                    raise ValueError(f"the state's parameter group has no {field}: not QHM's?")
            group.update(_checked({**_DEFAULTS, **group}))
        for p, own in state.get("state", {}).items():
            if isinstance(p, Tensor) and own.get("momentum_buffer") is not None:
                _check_shape("momentum_buffer", own["momentum_buffer"], p)
                own["scale"] = float(own.get("scale", 1.0))
        super().__setstate__(state)
        self._layouts, self._states = {}, []

    @torch.no_grad()
    def _fold(self) -> None:
        """Multiply every buffer by its scale, so that it is d itself."""
        _rescale([s for s in self.state.values() if isinstance(s, dict) and "scale" in s], 1.0)

    def _prepare(
        self, index: int, group: dict[str, Any], values: "_Values"
    ) -> list[Callable[[], None]]:
        """Check a group's tensors, bring their states in order, and return what steps them."""
        # A layout lives from one step of its group to the next. Guards cannot be traced.
        layout = self._layouts.pop(index, None)
        tracing = torch.compiler.is_compiling()
        params: list[Tensor] = group["params"]
        if params and not group["capturable"] and params[0].is_cuda:
            _refuse_capture()
        implementation = _implementation(group)
        grads: list[Tensor] = [] if tracing or layout is None else list(map(_GRADIENT, params))
        # A gradient that is missing is not like the one that was there.
        if tracing or layout is None or not layout.holds(implementation, params, grads):
            grads = [g for p in params if (g := p.grad) is not None]
            if len(grads) != len(params):
                params = [p for p in params if p.grad is not None]
            if not params:
                return []
            if group["differentiable"]:
                states = self._unscaled_states(params, grads)
                return [partial(_differentiable_step, params, grads, states, values)]
            if tracing:
                buffers = [s["momentum_buffer"] for s in self._unscaled_states(params, grads)]
                take_step = _loop_step if implementation == "loop" else _foreach_steps
                return [partial(take_step, params, grads, buffers, values)]
            layout = self._make_layout(implementation, params, grads, values)
        self._layouts[index] = layout
        work = [partial(_fused_step, bucket, grads, values) for bucket in layout.buckets]
        if layout.rest is not None:
            work.append(partial(_rest_step, layout.rest, grads, values))
        return work

    def _unscaled_states(
        self, params: Sequence[Tensor], grads: Sequence[Tensor]
    ) -> list[dict[str, Any]]:
        """Return the parameters' states, their momentum buffers made or brought back to d."""
        self._check_tensors(params, grads)
        states = [self._fitting_state(p, 1.0) for p in params]
        _rescale(states, 1.0)
        return states

    def _check_tensors(self, params: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
        for p, g in zip(params, grads, strict=True):
            if g.layout is not torch.strided:
                raise RuntimeError(f"QHM does not support sparse gradients, got layout {g.layout}")
            _check_shape("gradient", g, p)
            buffer = self.state[p].get("momentum_buffer") if p in self.state else None
            if buffer is not None:
                _check_shape("momentum_buffer", buffer, p)

    def _fitting_state(self, p: Tensor, scale: float) -> dict[str, Any]:
        """Return p's state with a buffer of p's dtype and device; a new one has the given scale."""
        state = self.state[p]
        buffer = state.get("momentum_buffer")
        if buffer is None:
            state["momentum_buffer"] = torch.zeros_like(p)  # d = 0, and so any scale is right
            state["scale"] = scale
            return state
        state.setdefault("scale", 1.0)
        if buffer.dtype != p.dtype or buffer.device != p.device:
            _rescale([state], 1.0)  # the other dtype may not hold d / scale
            state["momentum_buffer"] = buffer.to(p.device, p.dtype)
        return state

    def _make_layout(
        self, implementation: str, params: list[Tensor], grads: list[Tensor], values: "_Values"
    ) -> "_Layout":
        """Find out which tensors the kernel can serve, and how they lie in memory."""
        self._check_tensors(params, grads)
        served, others = [], list(range(len(params)))
        start = 1.0
        if implementation == "fused":
            start = _settled_scale(values.beta, values.gamma)
            served, others = [], []
            for i, (p, g) in enumerate(zip(params, grads, strict=True)):
                can = _kernel_serves(p, g) and _lies_as(p, self._fitting_state(p, start))
                (served if can else others).append(i)
        buckets = []
        for kind in _by_kind([params[i] for i in served]).values():
            indices = [served[i] for i in kind]
            members = [params[i] for i in indices]
            states = [self.state[p] for p in members]
            if len({state["scale"] for state in states}) > 1:
                # Parameters that had no gradient at some step, or that are new. One sweep brings
                # them to the scale to which beta and gamma lead anyway, where they stay.
                _rescale(states, start)
            buffers = [state["momentum_buffer"] for state in states]
            mismatched = [
                j for j, i in enumerate(indices) if grads[i].stride() != params[i].stride()
            ]
            whole = len(indices) == len(params)
            buckets.append(
                _Bucket(members, states, buffers, None if whole else indices, mismatched)
            )
        rest = None
        if others:
            members = [params[i] for i in others]
            states = self._unscaled_states(members, [grads[i] for i in others])
            # What fused leaves may be of a kind that foreach does not know.
            lists = implementation == "foreach" or (
                implementation == "fused" and all(type(p) in _FOREACH_TYPES for p in members)
            )
            rest = _Rest(
                _foreach_steps if lists else _loop_step,
                members,
                states,
                [state["momentum_buffer"] for state in states],
                None if len(others) == len(params) else others,
            )
        states, buffers = [], []
        for part in (*buckets, *([] if rest is None else [rest])):
            states += part.states
            buffers += part.buffers
        unchanged = _watch([*params, *grads, *buffers])
        return _Layout(implementation, list(params), states, buffers, buckets, rest, unchanged)


# Options and values


class _Values(NamedTuple):
    """What one step of one group needs to know."""

    lr: Any  # a number, or with capturable or differentiable perhaps a tensor
    beta: Any
    gamma: Any
    weight_decay: float
    decoupled: bool
    maximize: bool


# Field -> the test of its range, and the range in words.
_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "lr": (lambda value: 0 <= value < math.inf, "[0, inf)"),
    "beta": (lambda value: 0 <= value < 1, "[0, 1)"),
    "gamma": (lambda value: 0 <= value <= 1, "[0, 1]"),
    "weight_decay": (lambda value: 0 <= value < math.inf, "[0, inf)"),
}


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    """Return options with plain floats for numbers of other kinds, refusing what cannot be."""
    for field in _RANGES:
        _check(field, options[field])
    if isinstance(options["weight_decay"], Tensor):
        raise ValueError("weight_decay must be a number in [0, inf), got a tensor")
    if options["foreach"] and options["fused"]:
        raise ValueError("foreach and fused must not both be True")
    if options["fused"]:
        for field in ("capturable", "differentiable"):
            if options[field]:
                raise ValueError(f"fused must not be True with {field}=True")
    if options["foreach"] and options["differentiable"]:
        raise ValueError("foreach must not be True with differentiable=True")
    numbers = {f: options[f] for f in _RANGES if not isinstance(options[f], Tensor)}
    return {**options, **{field: float(value) for field, value in numbers.items()}}


def _check(field: str, value: Any) -> None:
    in_range, text = _RANGES[field]
    number = value
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{field} must have one element, got shape {tuple(value.shape)}")
        number = value.item()
    if not isinstance(number, Real) or not in_range(cast("float", number)):
        raise ValueError(f"{field} must be in {text}, got {number!r}")


def _read(group: dict[str, Any]) -> _Values:
    """Read a group's values, refusing what a scheduler should not have written."""
    fixed = not (group["capturable"] or group["differentiable"])
    numbers = []
    for field, (in_range, _) in _RANGES.items():
        value = group[field]
        if isinstance(value, Tensor):
            # A read back from a device would stop a capture, and break autograd's graph.
            value = value.item() if fixed else value.squeeze()
        if not isinstance(value, Tensor):
            if type(value) is not float or not in_range(value):
                _check(field, value)
            value = float(value)
        numbers.append(value)
    lr, beta, gamma, weight_decay = numbers
    return _Values(
        lr, beta, gamma, weight_decay, group["decoupled_weight_decay"], group["maximize"]
    )


def _implementation(group: dict[str, Any]) -> str:
    foreach, fused = group["foreach"], group["fused"]
    if group["differentiable"]:
        return "loop"
    if group["capturable"]:
        return "loop" if foreach is False else "foreach"
    if fused or (fused is None and foreach is None):  # the kernel cannot be traced
        return "foreach" if torch.compiler.is_compiling() else "fused"
    return "foreach" if foreach else "loop"


def _group_from_sgd(
    group: dict[str, Any], lr: float, momentum: float, nesterov: bool
) -> dict[str, Any]:
    group = dict(group)
    for field in ("beta", "gamma"):
        if field in group:
            raise ValueError(f"a group of SGD must not set {field}: set momentum and nesterov")
    if group.pop("dampening", 0) != 0:
        raise ValueError("dampening must be 0: SGD's first step is undamped, QHM's is not")
    own = [
        group.pop("lr", lr),
        group.pop("momentum", momentum),
        group.pop("nesterov", nesterov),
    ]
    lr, momentum, nesterov = own
    return {**group, **from_sgd(lr, momentum, nesterov=nesterov)}


def _check_shape(name: str, tensor: Tensor, p: Tensor) -> None:
    if tensor.shape != p.shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, its parameter {tuple(p.shape)}")


def _refuse_capture() -> None:
    # The numbers would be frozen into the graph, and every schedule with them.
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError("capturing QHM.step() in a CUDA graph needs capturable=True")


# Tensors in lists


def _same(some: Sequence[Any], others: Any) -> bool:
    """Tell whether two collections hold the very same objects (== on tensors is elementwise)."""
    return len(some) == len(others) and all(map(is_, some, others))


def _by_kind(params: Sequence[Tensor]) -> dict[tuple[torch.device, torch.dtype], list[int]]:
    kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, p in enumerate(params):
        kinds.setdefault((p.device, p.dtype), []).append(i)
    return kinds


def _rescale(states: list[dict[str, Any]], scale: float) -> None:
    """Bring every buffer to the given scale."""
    swept = [state for state in states if state["scale"] != scale]
    if swept:
        buffers = [state["momentum_buffer"] for state in swept]
        torch._foreach_mul_(buffers, [state["scale"] / scale for state in swept])
        for state in swept:
            state["scale"] = scale


def _watch(tensors: list[Tensor]) -> Callable[..., bool]:
    """Return what tells whether tensors have the shapes, strides, dtypes and devices of these.

    It may be asked of None, which is no such tensor.
    """
    if _guards_work():
        return _guards(tensors)
    facts = _facts(*tensors)
    return lambda *others: all(t is not None for t in others) and _facts(*others) == facts


def _facts(*tensors: Tensor) -> list[tuple[Any, ...]]:
    plain = torch.strided
    return [
        (type(t), t.dtype, t.device, t.shape, t.stride() if t.layout is plain else t.layout)
        for t in tensors
    ]


def _guards(tensors: list[Tensor]) -> Callable[..., bool]:
    # torch.compile's guards compare in C++, some ten times faster than Python can.
    make = cast("Any", torch._C)._dynamo.guards.TensorGuards
    return make(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None).check


@functools.cache
def _guards_work() -> bool:
    """Try the guards, which are private to torch, on one tensor."""
    x = torch.ones(2, 2, device="cpu")
    others = [x.mT, x[:1], x.new_ones(4), x.double(), x.to_sparse(), x.to("meta"), None]
    try:
        holds = _guards([x])
        return holds(torch.zeros_like(x)) and not any(map(holds, others))
    except (AttributeError, TypeError, RuntimeError):
        return False


# Loop


def _loop_step(
    params: Sequence[Tensor], grads: Sequence[Tensor], buffers: Sequence[Tensor], values: _Values
) -> None:
    lr, to_g, to_d = values.lr, 1 - values.beta, values.gamma
    numbers = _are_numbers(values)
    for p, grad, d in zip(params, grads, buffers, strict=True):
        g = grad if grad.dtype == p.dtype else _of_dtype(p, grad)
        if values.maximize:
            g = -g
        if values.weight_decay != 0:
            if values.decoupled:
                p.mul_(_on(1 - lr * values.weight_decay, p.device))
            else:
                g = g.add(p, alpha=values.weight_decay)
        if numbers and p.dtype in _WIDE:
            d.lerp_(g, to_g)
            p.add_(g, alpha=-lr * (1 - to_d)).add_(d, alpha=-lr * to_d)
            continue
        d.lerp_(g, _weight(to_g, p))
        m = g.lerp(d, _weight(to_d, p))
        if isinstance(lr, Tensor):
            p.addcmul_(m, _on(lr, p.device), value=-1)
        else:
            p.add_(m, alpha=-lr)


def _differentiable_step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    states: Sequence[dict[str, Any]],
    values: _Values,
) -> None:
    """The loop for autograd, which may still need the d of the step before."""
    for p, grad, state in zip(params, grads, states, strict=True):
        g = _of_dtype(p, grad)
        g = -g if values.maximize else g
        if values.weight_decay != 0:
            if values.decoupled:
                p.mul_(_on(1 - values.lr * values.weight_decay, p.device))
            else:
                g = g.add(p, alpha=values.weight_decay)
        d = state["momentum_buffer"].lerp(g, _weight(1 - values.beta, p))
        m = g.lerp(d, _weight(values.gamma, p))
        if isinstance(values.lr, Tensor):
            p.addcmul_(m, _on(values.lr, p.device), value=-1)
        else:
            p.add_(m, alpha=-values.lr)
        state["momentum_buffer"] = d


# Where x - lr (1 - gamma) g - lr gamma d, which rounds x twice but needs no m, is exact enough:
# narrower numbers could lose both parts where they would keep their sum.
_WIDE = (torch.float32, torch.float64, torch.complex64, torch.complex128)


def _are_numbers(values: _Values) -> bool:
    return not any(isinstance(v, Tensor) for v in (values.lr, values.beta, values.gamma))


def _of_dtype(p: Tensor, g: Tensor) -> Tensor:
    # They differ only by the user's wish, where torch has Tensor.grad_dtype.
    return g if g.dtype == p.dtype else g.to(p.dtype)


def _on(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _weight(value: Any, like: Tensor) -> Any:
    # lerp takes a number in full precision, but a tensor in its operands' dtype only.
    return value.to(like.device, like.dtype) if isinstance(value, Tensor) else value


# Foreach


def _foreach_steps(
    params: Sequence[Tensor], grads: Sequence[Tensor], buffers: Sequence[Tensor], values: _Values
) -> None:
    for indices in _by_kind(params).values():
        _foreach_step(
            [params[i] for i in indices],
            [_of_dtype(params[i], grads[i]) for i in indices],
            [buffers[i] for i in indices],
            values,
        )


def _foreach_step(
    params: list[Tensor], grads: list[Tensor], buffers: list[Tensor], values: _Values
) -> None:
    """Step tensors of one device and dtype."""
    if params[0].is_complex():
        params, grads, buffers = _as_real(params), _as_real(grads), _as_real(buffers)
    if values.maximize:
        grads = list(torch._foreach_neg(grads))
    if values.weight_decay != 0:
        if values.decoupled:
            factor = _on(1 - values.lr * values.weight_decay, params[0].device)
            torch._foreach_mul_(params, factor)
        else:
            grads = list(torch._foreach_add(grads, params, alpha=values.weight_decay))
    torch._foreach_lerp_(buffers, grads, _weights(1 - values.beta, params))
    if params[0].dtype in _WIDE and _are_numbers(values):
        torch._foreach_add_(params, grads, alpha=-values.lr * (1 - values.gamma))
        torch._foreach_add_(params, buffers, alpha=-values.lr * values.gamma)
        return
    m = torch._foreach_lerp(grads, buffers, _weights(values.gamma, params))
    if isinstance(values.lr, Tensor):
        torch._foreach_mul_(m, _on(values.lr, params[0].device))
        torch._foreach_sub_(params, m)
    else:
        torch._foreach_add_(params, m, alpha=-values.lr)


def _as_real(tensors: list[Tensor]) -> list[Tensor]:
    return [torch.view_as_real(t.resolve_conj()) for t in tensors]


def _weights(value: Any, params: list[Tensor]) -> Any:
    # Given a lone tensor, foreach would read it back as a number; a list it leaves on the device.
    if isinstance(value, Tensor):
        return [_weight(value, params[0])] * len(params)
    return value


# Fused
#
# The kernel of torch.optim.SGD does, for its arguments lr, momentum and dampening,
#
#     buf <- momentum * buf + (1 - dampening) * g
#     x   <- x - lr * (g + momentum * buf)        (nesterov)      or       x <- x - lr * buf
#
# Let d = s * buf. Algorithm 1 with a new scale s' is d' = beta s buf + (1 - beta) g = s' buf', or
#
#     buf' = (beta s / s') buf + ((1 - beta) / s') g
#     x'   = x - alpha (1 - gamma) (g + (gamma s' / (1 - gamma)) buf')
#
# and the two factors of buf are one and the same momentum when s'^2 = s s*, where
# s* = beta (1 - gamma) / gamma is the scale to which constant beta and gamma lead. So no change of
# beta or gamma ever needs a sweep over the buffer: the change is in the scale, which is one number.

# Beyond these bounds of the scale float32 could overflow, or lose small values.
_SCALES = (2.0**-24, 2.0**24)

# The kernel forms 1 - dampening, in double precision. The weight of g that comes out has an error
# of 2^-53 divided by itself, which these least weights keep below a tensor's own rounding (and,
# for float64, below 5e-13).
_LEAST_WEIGHT = {torch.float64: 2.0**-12}
_LEAST_WEIGHT_ELSE = 2.0**-28


class _Arguments(NamedTuple):
    scale: float  # s', the scale after the call
    lr_factor: float  # the kernel's lr is alpha times this
    momentum: float
    dampening: float
    nesterov: bool
    overwrite: bool  # buf <- g, which the kernel calls the first step


def _settled_scale(beta: float, gamma: float) -> float:
    """Return s*, or 1 where there is none that is fit for use."""
    scale = beta * (1 - gamma) / gamma if gamma > 0 else math.inf
    return scale if _SCALES[0] <= scale <= _SCALES[1] else 1.0


def _kernel_arguments(scale: float, values: _Values, dtype: torch.dtype) -> _Arguments | None:
    """Return the kernel's arguments for a QHM step, or None where it would lose digits."""
    beta, gamma = values.beta, values.gamma
    if beta == 0:  # d = m = g, and the kernel will not take a buffer with momentum 0
        return _Arguments(1.0, 1.0, 0.5, 0.0, nesterov=False, overwrite=True)
    if gamma == 0:
        return None
    new, lr_factor, momentum, nesterov = scale, scale, beta, False
    if gamma < 1:
        settled = beta * (1 - gamma) / gamma
        if not _SCALES[0] <= settled <= _SCALES[1]:
            return None
        new = math.sqrt(scale * settled)
        lr_factor, momentum, nesterov = 1 - gamma, beta * scale / new, True
    weight = (1 - beta) / new
    if weight < _LEAST_WEIGHT.get(dtype, _LEAST_WEIGHT_ELSE):
        return None
    return _Arguments(new, lr_factor, momentum, 1 - weight, nesterov, overwrite=False)


def _fused_step(bucket: "_Bucket", grads: list[Tensor], values: _Values) -> None:
    grads = bucket.gradients(grads)
    arguments = _kernel_arguments(bucket.scale, values, bucket.params[0].dtype)
    if arguments is None:
        _rescale(bucket.states, 1.0)
        _foreach_step(bucket.params, grads, bucket.buffers, values)
        return
    weight_decay = values.weight_decay
    if values.decoupled and weight_decay != 0:
        torch._foreach_mul_(bucket.params, 1 - values.lr * weight_decay)
        weight_decay = 0.0
    torch._fused_sgd_(
        bucket.params,
        grads,
        bucket.buffers,
        weight_decay=weight_decay,
        momentum=arguments.momentum,
        lr=values.lr * arguments.lr_factor,
        dampening=arguments.dampening,
        nesterov=arguments.nesterov,
        maximize=values.maximize,
        is_first_step=arguments.overwrite,
    )
    if arguments.scale != bucket.scale:
        for state in bucket.states:
            state["scale"] = arguments.scale


# The kernel's results on a CPU are wrong for half precision (torch 2.13); float16 cannot hold the
# buffer's scale.
_KERNEL_DTYPES = {
    "cpu": (torch.float32, torch.float64),
    "cuda": (torch.float32, torch.float64, torch.bfloat16),
}


def _kernel_serves(p: Tensor, g: Tensor) -> bool:
    return (
        type(p) in (Tensor, torch.nn.Parameter)
        and type(g) in (Tensor, torch.nn.Parameter)
        and p.dtype in _KERNEL_DTYPES.get(p.device.type, ())
        and g.dtype == p.dtype
        and _kernel_works()
    )


@functools.cache
def _kernel_works() -> bool:
    """Try the kernel, which is private to torch, in both of the types that it serves here.

    On more numbers than fill a vector register, so that the vectorised part is tried as well as
    what is left over; all of them are exact in either type.
    """
    for dtype in (torch.float32, torch.float64):
        x, g, buf = (
            torch.full((37,), value, dtype=dtype, device="cpu") for value in (1.0, 2.0, 4.0)
        )
        try:
            torch._fused_sgd_(
                [x],
                [g],
                [buf],
                weight_decay=0.5,
                momentum=0.5,
                lr=0.25,
                dampening=0.5,
                nesterov=True,
                maximize=False,
                is_first_step=False,
            )
        except (AttributeError, TypeError, RuntimeError):
            return False
        for found, value in ((x, 1 - 0.25 * (2.5 + 0.5 * 3.25)), (g, 2.0), (buf, 3.25)):
            if not bool((found == value).all()):
                return False
    return True


@dataclass(eq=False, slots=True)
class _Bucket:
    """Tensors that one call of the kernel serves: of one device, dtype and scale."""

    params: list[Tensor]
    states: list[dict[str, Any]]
    buffers: list[Tensor]
    indices: list[int] | None  # places in the list of the group's gradients; None: all of it
    mismatched: list[int]  # gradients that lie otherwise than their parameters

    @property
    def scale(self) -> float:
        """The scale that all of the buffers have."""
        return self.states[0]["scale"]

    def gradients(self, grads: list[Tensor]) -> list[Tensor]:
        """Pick the bucket's gradients from the group's, lying in memory as their parameters do."""
        if self.indices is not None:
            grads = [grads[i] for i in self.indices]
        if self.mismatched:
            grads = list(grads)
            for i in self.mismatched:
                grads[i] = _laid_out_as(self.params[i], grads[i])
        return grads


def _lies_as(p: Tensor, state: dict[str, Any]) -> bool:
    """Make p's buffer lie in memory as p does; say whether it can (p may have gaps)."""
    if state["momentum_buffer"].stride() != p.stride():
        state["momentum_buffer"] = torch.empty_like(p).copy_(state["momentum_buffer"])
    return state["momentum_buffer"].stride() == p.stride()


def _laid_out_as(p: Tensor, g: Tensor) -> Tensor:
    """Return g with p's strides: a copy, or a view where only strides of size 1 differ."""
    facts = zip(p.shape, p.stride(), g.stride(), strict=True)
    if all(size == 1 or own == other for size, own, other in facts):
        return g.as_strided(p.shape, p.stride())
    return torch.empty_like(p).copy_(g)


class _Rest(NamedTuple):
    """Tensors that the kernel does not serve; the scales of their buffers are 1."""

    take_step: Callable[..., None]
    params: list[Tensor]
    states: list[dict[str, Any]]
    buffers: list[Tensor]
    indices: list[int] | None  # as of a bucket


def _rest_step(rest: _Rest, grads: list[Tensor], values: _Values) -> None:
    if rest.indices is not None:
        grads = [grads[i] for i in rest.indices]
    _rescale(rest.states, 1.0)
    rest.take_step(rest.params, grads, rest.buffers, values)


@dataclass(eq=False, slots=True)
class _Layout:
    """How to step one group's tensors, found out once and kept while nothing has changed.

    The kernel on a CPU takes parameter, gradient and buffer for flat arrays of the parameter's
    length, whatever their shapes and strides: where strides differ it is silently wrong, and so is
    torch's own SGD(fused=True); where lengths differ it writes past the end. So every step asks
    whether parameters and buffers are the same objects, and all tensors still alike.
    """

    implementation: str
    params: list[Tensor]
    states: list[dict[str, Any]]
    buffers: list[Tensor]
    buckets: list[_Bucket]
    rest: _Rest | None
    unchanged: Callable[..., bool]  # asked of parameters, gradients and buffers

    def holds(self, implementation: str, params: list[Tensor], grads: list[Any]) -> bool:
        """Tell whether the layout still describes these tensors; a gradient may be None."""
        present = map(dict.get, self.states, repeat("momentum_buffer"))
        return (
            self.implementation == implementation
            and _same(self.params, params)
            and all(map(is_, self.buffers, present))
            and self.unchanged(*params, *grads, *self.buffers)
        )
