"""A batch of any size under a memory cap: the gradient of the whole from micro-batches."""

import copy
import gc
import math
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple, final
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

__all__ = ["Accumulated", "accumulate", "split_batch"]

Reduction = Literal["mean", "sum"] | Callable[..., float | Tensor]

# What allocators say that raise a plain RuntimeError: of CPU, MPS, a driver, cuBLAS.
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "MPS backend out of memory",
    "out of memory. Tried to allocate",
    "CUDA error: out of memory",
    "HIP error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)

# How a try ended, on the process where it ended worst.
_WELL, _RAN_OUT, _FAILED = range(3)

# The most samples whose gradient a DDP module is known to have room for. It says when a micro-batch
# must be tried before its gradient is averaged, and changes no number.
_FITTED: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


@final
@dataclass(frozen=True, eq=False)
class Accumulated:
    """What `accumulate` did with a batch.

    Attributes:
        loss: of the batch that was given, as its reduction has it, a detached tensor of one number;
            ``weight`` and other processes are not in it.
        micro_batch: the cap that held, ``max_micro_batch`` of the next call; a batch shorter than
            the cap leaves it as it is.
        micro_batches: how many the batch was cut into.
        out_of_memory: how often memory ran out and the batch was repeated.
    """

    loss: Tensor
    micro_batch: int
    micro_batches: int
    out_of_memory: int

    def __str__(self) -> str:
        times = f"; memory ran out {self.out_of_memory}x" if self.out_of_memory else ""
        parts = "micro-batch" if self.micro_batches == 1 else "micro-batches"
        return (
            f"loss {float(self.loss):.6g} from {self.micro_batches} {parts} of at most "
            f"{self.micro_batch} samples{times}"
        )


class _Run(NamedTuple):
    """A micro-batch: its samples' count, what its loss counts for in gradient and in the loss."""

    arguments: tuple[Any, ...]
    samples: int
    factor: float
    share: float


def split_batch(batch: Any, max_micro_batch: int) -> list[Any]:
    """Cuts a batch into micro-batches of ``max_micro_batch`` samples each, the last one shorter.

    Args:
        batch: a tensor with the samples first, or tuples, lists and dicts of such, nested in any
            way; of texts, which collating leaves alone, a list.
        max_micro_batch: an integer >= 1.

    Returns:
        The micro-batches in order, built as the batch is; tensors are views of the batch's.

    Raises:
        ValueError: a part of the batch is anything else, or no sample, or lengths differ.

    >>> import torch
    >>> for part in split_batch({"x": torch.arange(5), "name": list("abcde")}, 2):
    ...     print(part)
    {'x': tensor([0, 1]), 'name': ['a', 'b']}
    {'x': tensor([2, 3]), 'name': ['c', 'd']}
    {'x': tensor([4]), 'name': ['e']}
    """
    _check_whole("max_micro_batch", max_micro_batch)
    n, cap = _length(batch), int(max_micro_batch)
    return [_cut(batch, slice(start, start + cap)) for start in range(0, n, cap)]


def accumulate(
    forward: Callable[..., Tensor],
    batch: Any,
    *,
    model: nn.Module,
    max_micro_batch: int,
    reduction: Reduction = "mean",
    weight: float = 1.0,
    total: float | None = None,
    backward: Callable[[Tensor], Any] = Tensor.backward,
    batch_norm: Literal["micro", "exclude"] | int = "micro",
) -> Accumulated:
    """Adds the gradient of a whole batch to ``.grad``, taken in micro-batches that fit in memory.

    With micro-batches i of c_i samples (or of what ``reduction`` counts) and losses f_i,

        ∇f = Σ_i c_i ∇f_i / Σ_i c_i,   and Σ_i ∇f_i for a sum:

    the whole batch's but for rounding, whatever the cap. What was in ``.grad`` is added to.

    When memory runs out, also in backward, the batch is repeated from its start with micro-batches
    of half the size: gradients, buffers and random states (of torch, NumPy and Python) are put back
    before. A warning names both sizes; pass ``result.micro_batch`` to the next call, which then
    starts there. A copy of gradients is kept meanwhile, but where ``.grad`` is None. With one
    sample the error goes through; that and every other error leave gradients as they were.

    Args:
        forward: a micro-batch's loss, of one number: ``forward(*batch)`` for a tuple or a list,
            ``forward(batch)`` for anything else. It is called again when memory runs out.
        batch: as `split_batch` takes it; this process's share of the global batch.
        model: whose parameters the loss depends on; several in an ``nn.ModuleList``. The DDP module
            itself where there is one, or a wrapper around it.
        max_micro_batch: the most samples at a time, an integer >= 1.
        reduction: what ``forward`` does over a micro-batch: "mean" over its samples, "sum", or, for
            a mean over something else, the function that counts it, called as ``forward`` is:
            ``lambda inputs, targets: (targets != -100).sum()``.
        weight: ``sampler.weight(k)`` where processes share a batch, else a factor. See below.
        total: of a counting ``reduction``: the count to divide by, if it is not this batch's own.
        backward: called with each micro-batch's weighted loss instead of ``loss.backward()``:
            ``accelerator.backward``, or ``lambda loss: scaler.scale(loss).backward()``.
        batch_norm: what layers of batch normalisation in train mode do.
            "micro": each micro-batch is normalised with its own statistics, and running statistics
            move once per micro-batch. The gradient is then *not* the whole batch's, and the cap is
            part of what is trained.
            "exclude": they take no statistics of the batch: their running ones normalise, and
            stay; weight and bias train. Exact.
            An integer g: statistics are those of ghost batches of g samples (Hoffer, Hubara and
            Soudry, NeurIPS 2017), which running statistics follow one by one. The cap is rounded
            down to a multiple of g, and changes nothing then. Exact; not for compiled models.

    Returns:
        An `Accumulated`.

    Raises:
        ValueError: an argument out of range; a loss of more than one number or without a gradient;
            a count that is not finite and >= 0, or is 0 over the whole batch; "exclude" without
            running statistics; a model in FSDP, or SyncBatchNorm over several processes, whose
            forward passes wait for one another.

    Processes. Under DDP gradients are averaged in the backward pass of the last micro-batch alone
    (``no_sync`` in the others). What is left in ``.grad`` is the global batch's gradient: with
    "mean" by ``weight=sampler.weight(k)``; with "sum" and with counts by what the processes tell
    each other, and of ``weight`` it only matters that 0 leaves this process's samples out. If no
    DDP module is there, ``weight`` is a factor in all three, and averaging is the caller's:
    ``weight`` is then ``world_size`` for "sum", and for counts too, with ``total`` the global one.

    Processes agree on running out of memory before anything is averaged: whichever of them fails,
    in any micro-batch or in the forward pass of the last, all repeat with the same size, and one
    that fails in another way ends them all. Only the last backward pass cannot be taken back: its
    error ends the process. So that it does not run out of memory, it comes after the gradient of as
    many samples or more has been taken unaveraged: in this batch, or in an earlier one, or, the
    first time that a length comes alone, once more for that. ``forward`` must hold no collective
    operation but DDP's own, which are done before. Buffers are broadcast once a batch.

    >>> import torch
    >>> model = torch.nn.Linear(3, 1)
    >>> x, y = torch.randn(10, 3), torch.randn(10, 1)
    >>> done = accumulate(
    ...     lambda inputs, targets: torch.nn.functional.mse_loss(model(inputs), targets),
    ...     (x, y),
    ...     model=model,
    ...     max_micro_batch=4,
    ... )
    >>> done.micro_batches, done.micro_batch, done.out_of_memory
    (3, 4, 0)
    >>> whole = torch.autograd.grad(torch.nn.functional.mse_loss(model(x), y), model.weight)[0]
    >>> torch.allclose(model.weight.grad, whole)
    True
    """
    _check(max_micro_batch, reduction, weight, total, batch_norm)
    ddp = _data_parallel(model)
    _check_model(model, ddp, batch_norm)
    n, ghost = _length(batch), 1 if isinstance(batch_norm, str) else int(batch_norm)
    cap = int(max_micro_batch) // ghost * ghost
    weighing = _weighing(batch, reduction, weight, total, ddp)
    ran_out = 0
    with _normalising(model, batch_norm), _quiet(ddp):
        before = _Before(model)
        while True:
            loss, last, trouble = torch.zeros(()), None, None
            micros = split_batch(batch, cap)
            try:
                runs = weighing.runs(micros, takes_part=ddp is not None)
                for run in runs if ddp is None else runs[:-1]:
                    loss = loss + _added(run, forward, backward, before.parameters, ddp)
                if ddp is not None:
                    if len(runs) == 1 and runs[0].samples > _FITTED.get(ddp, 0):
                        _added(runs[0], forward, backward, before.parameters, ddp)
                        before.restore()
                    last = _checked(forward(*runs[-1].arguments))
            except Exception as error:
                trouble = _plainer(error, n, cap, ghost)
            ended, used = _agreed(ddp, trouble, min(cap, n))
            if ended == _WELL:
                break
            before.restore()
            ghosts = math.ceil(used / ghost)
            if ended == _FAILED or ghosts == 1:
                how = "failed" if ended == _FAILED else f"ran out of memory with {used} samples"
                raise trouble or RuntimeError(f"another process {how} in this batch")
            # The error holds frames, and those hold the tensors of what did not fit.
            trouble = last = loss = None
            before.free()
            if ddp is not None:
                _FITTED.pop(ddp, None)
                ddp.reducer._reset_state()  # it awaits the backward pass of a forward pass
            cap = ghosts // 2 * ghost
            ran_out += 1
            if ddp is None or distributed.get_rank(ddp.process_group) == 0:
                warnings.warn(
                    f"memory ran out with micro-batches of {used} samples: the batch is repeated "
                    f"with {cap}; from now on pass max_micro_batch={cap}, the result's micro_batch",
                    stacklevel=2,
                )
        if last is not None:
            loss = loss + _backward(last, runs[-1], backward, before.parameters)
    return Accumulated(loss, cap, len(micros), ran_out)


@final
@dataclass(frozen=True)
class _Weighing:
    """What the micro-batches of a batch count for.

    Attributes:
        count: of a micro-batch.
        whole: the count of this process's batch, by which its loss is divided.
        scale: times count is the factor of a micro-batch's gradient.
    """

    count: Callable[[Any], float]
    whole: float
    scale: float

    def runs(self, micros: list[Any], *, takes_part: bool) -> list[_Run]:
        """The micro-batches that count; of none the last, for nothing, if it takes part."""
        counts = [self.count(micro) for micro in micros]
        if self.count is not _one and not math.isclose(math.fsum(counts), self.whole):
            raise ValueError(
                f"reduction must count the same in a batch as in its parts, got {self.whole:g} and "
                f"{math.fsum(counts):g}"
            )
        # A mean over nothing is not a number, and 0 times that is none either: such are left out.
        runs = [
            _Run(_arguments(micro), _length(micro), self.scale * count, count / self.whole)
            for micro, count in zip(micros, counts, strict=True)
            if count
        ]
        if not runs and takes_part:
            runs = [_Run(_arguments(micros[-1]), _length(micros[-1]), 0.0, 0.0)]
        return runs


def _weighing(
    batch: Any,
    reduction: Reduction,
    weight: float,
    total: float | None,
    ddp: DistributedDataParallel | None,
) -> _Weighing:
    if reduction == "mean":
        n = float(_length(batch))
        return _Weighing(_length, n, weight / n)
    if ddp is not None:  # DDP's mean is to be a sum
        weight = float(distributed.get_world_size(ddp.process_group)) if weight else 0.0
    if reduction == "sum":
        return _Weighing(_one, 1.0, weight)
    assert callable(reduction)
    count = partial(_counted, reduction)
    # A process that fails says so to the others, by a sum that is not a number.
    whole, trouble = math.nan, None
    try:
        whole = count(batch)
    except Exception as error:
        trouble = error
    divisor = whole
    if ddp is not None:
        divisor = whole if weight or trouble else 0.0
        divisor = float(_of_all(ddp, [divisor], distributed.ReduceOp.SUM)[0])
    if trouble is not None or math.isnan(divisor):
        raise trouble or RuntimeError("another process failed in counting this batch")
    if total is None and not divisor:
        raise ValueError("reduction must count more than 0 in a batch, got 0")
    return _Weighing(count, whole, weight / (divisor if total is None else total))


def _one(_: Any) -> float:
    return 1.0


def _counted(reduction: Callable[..., float | Tensor], micro: Any) -> float:
    count = float(reduction(*_arguments(micro)))
    if not 0 <= count < math.inf:
        raise ValueError(f"reduction must count finite numbers >= 0, got {count}")
    return count


def _added(
    run: _Run,
    forward: Callable[..., Tensor],
    backward: Callable[[Tensor], Any],
    parameters: list[nn.Parameter],
    ddp: DistributedDataParallel | None,
) -> Tensor:
    """Adds a micro-batch's gradient to this process's alone. Returns its part of the loss."""
    with nullcontext() if ddp is None else ddp.no_sync():
        part = _backward(_checked(forward(*run.arguments)), run, backward, parameters)
    if ddp is not None:
        _FITTED[ddp] = max(run.samples, _FITTED.get(ddp, 0))
    return part


def _backward(
    loss: Tensor, run: _Run, backward: Callable[[Tensor], Any], parameters: list[nn.Parameter]
) -> Tensor:
    """Adds a micro-batch's gradient, as DDP is set. Returns its part of the loss."""
    # What counts for nothing may be not finite, and 0 times that is not 0.
    shown = loss.detach() if run.share else torch.zeros_like(loss)
    shown = shown.to(torch.promote_types(loss.dtype, torch.float32)) * run.share
    hooks = [] if run.factor else [p.register_hook(torch.zeros_like) for p in parameters]
    try:
        backward(loss * run.factor)
    finally:
        for hook in hooks:
            hook.remove()
    return shown


def _checked(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        shown = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
        raise ValueError(f"forward must return the loss of a micro-batch, one number, got {shown}")
    if not loss.requires_grad:
        raise ValueError(
            "forward must return a loss that depends on the model's parameters, got one without a "
            "gradient"
        )
    return loss.reshape(())


def _agreed(
    ddp: DistributedDataParallel | None, trouble: Exception | None, used: int
) -> tuple[int, int]:
    """How the try ended where it ended worst, and the most samples that a micro-batch had."""
    ended = _WELL
    if trouble is not None:
        ended = _RAN_OUT if _is_out_of_memory(trouble) else _FAILED
    if ddp is None:
        return ended, used
    worst, most = _of_all(ddp, [ended, used], distributed.ReduceOp.MAX).tolist()
    return int(worst), int(most)


def _of_all(ddp: DistributedDataParallel, values: list[Any], op: Any) -> Tensor:
    there = torch.tensor(values, dtype=torch.float64, device=next(ddp.parameters()).device)
    distributed.all_reduce(there, op, group=ddp.process_group)
    return there


def _plainer(error: Exception, n: int, cap: int, ghost: int) -> Exception:
    """What torch says of a single sample under batch normalisation, with what to change."""
    if not isinstance(error, ValueError) or "more than 1 value per channel" not in str(error):
        return error
    parts = f"ghost batches of {ghost}" if ghost > 1 else f"micro-batches of {cap}"
    return ValueError(
        f"batch_norm has no statistics of a single sample, which is what {parts} leave of a batch "
        f"of {n}: choose another size, or batch_norm='exclude'"
    )


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)


@final
class _Before:
    """What a batch that is repeated must find again."""

    def __init__(self, model: nn.Module) -> None:
        parameters, buffers = list(model.parameters()), list(model.buffers())
        self.parameters = [p for p in parameters if p.requires_grad]
        # The gradient stays the tensor that the caller may hold.
        self.gradients = [
            (p, p.grad, None if p.grad is None else p.grad.clone()) for p in self.parameters
        ]
        self.buffers = [(buffer, buffer.detach().clone()) for buffer in buffers]
        devices = {tensor.device for tensor in (*parameters, *buffers)}
        self.kinds = {device.type for device in devices} - {"cpu", "meta"}
        self.random = random.getstate(), np.random.get_state(), torch.get_rng_state()
        self.on_devices = [
            (device, _random_state_of(device)) for device in devices if device.type in self.kinds
        ]

    def restore(self) -> None:
        with torch.no_grad():
            for p, gradient, values in self.gradients:
                p.grad = gradient
                if gradient is not None and values is not None:
                    gradient.copy_(values)
            for buffer, values in self.buffers:
                buffer.copy_(values)
        of_python, of_numpy, of_torch = self.random
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        torch.set_rng_state(of_torch)
        for device, state in self.on_devices:
            where = () if device.type == "mps" else (device,)
            getattr(torch, device.type).set_rng_state(state, *where)

    def free(self) -> None:
        gc.collect()
        for kind in self.kinds:
            getattr(torch, kind).empty_cache()


def _random_state_of(device: torch.device) -> Tensor:
    where = () if device.type == "mps" else (device,)  # of which there is one
    return getattr(torch, device.type).get_rng_state(*where)


@contextmanager
def _quiet(ddp: DistributedDataParallel | None) -> Iterator[None]:
    """Forward passes without collective operations: those that are due are done before.

    A process that fails before its model is called would leave the others waiting in them.
    """
    if ddp is None:
        yield
        return
    if torch.is_grad_enabled():
        ddp.reducer._rebuild_buckets()
    if ddp.will_sync_module_buffers():
        ddp._sync_buffers()
    broadcast = ddp.broadcast_buffers
    ddp.broadcast_buffers = False
    try:
        yield
    finally:
        ddp.broadcast_buffers = broadcast


@contextmanager
def _normalising(model: nn.Module, batch_norm: str | int) -> Iterator[None]:
    layers = [layer for layer in _batch_norms(model) if layer.training]
    own = [vars(layer).get("forward") for layer in layers]  # of its class, where there is none
    try:
        for layer in layers:
            if batch_norm == "exclude":
                layer.training = False
            elif batch_norm != "micro":
                vars(layer)["forward"] = partial(_in_ghosts, layer.forward, int(batch_norm))
        yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            layer.training = True
            vars(layer).pop("forward", None)
            if forward is not None:
                vars(layer)["forward"] = forward


def _in_ghosts(normalise: Callable[[Tensor], Tensor], samples: int, inputs: Tensor) -> Tensor:
    return torch.cat([normalise(ghost) for ghost in inputs.split(samples)])


def _batch_norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def _data_parallel(model: nn.Module) -> DistributedDataParallel | None:
    found = [module for module in model.modules() if isinstance(module, DistributedDataParallel)]
    if len(found) > 1:
        raise ValueError(f"model must hold one DistributedDataParallel at most, got {len(found)}")
    return found[0] if found else None


def _check(max_micro_batch: Any, reduction: Any, weight: Any, total: Any, batch_norm: Any) -> None:
    _check_whole("max_micro_batch", max_micro_batch)
    if not callable(reduction) and reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean', 'sum' or a function, got {reduction!r}")
    if not _finite(weight) or weight < 0:
        raise ValueError(f"weight must be a finite number >= 0, got {weight!r}")
    if total is not None and not callable(reduction):
        raise ValueError(f"total goes with a reduction that counts, got {reduction!r}")
    if total is not None and (not _finite(total) or total <= 0):
        raise ValueError(f"total must be a finite number > 0, got {total!r}")
    if isinstance(batch_norm, str) and batch_norm not in ("micro", "exclude"):
        raise ValueError(
            f"batch_norm must be 'micro', 'exclude' or the samples of a ghost batch, got "
            f"{batch_norm!r}"
        )
    if not isinstance(batch_norm, str):
        _check_whole("batch_norm", batch_norm)
        if batch_norm > max_micro_batch:
            raise ValueError(
                f"max_micro_batch must hold a ghost batch of {batch_norm} samples, got "
                f"{max_micro_batch}"
            )


def _check_model(
    model: nn.Module, ddp: DistributedDataParallel | None, batch_norm: str | int
) -> None:
    kinds = {kind.__name__ for module in model.modules() for kind in type(module).__mro__}
    if kinds & {"FSDPModule", "FullyShardedDataParallel"}:
        raise ValueError(
            "model must be whole on each process, for those of FSDP wait for one another in every "
            "forward pass, and a try that fails on one would never end"
        )
    layers = [layer for layer in _batch_norms(model) if layer.training]
    if batch_norm == "exclude":
        if any(layer.running_mean is None for layer in layers):
            raise ValueError("batch_norm='exclude' needs layers with running statistics, got none")
        return
    if ddp is not None and any(isinstance(layer, nn.SyncBatchNorm) for layer in layers):
        raise ValueError(
            "model must not hold SyncBatchNorm in train mode, whose forward passes wait for one "
            "another: choose batch_norm='exclude', or plain batch normalisation"
        )
    if batch_norm != "micro" and any(hasattr(module, "_orig_mod") for module in model.modules()):
        raise ValueError(f"batch_norm={batch_norm} changes layers: model must not be compiled")


def _check_whole(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} must be an integer >= 1, got {value!r}")


def _finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _arguments(batch: Any) -> tuple[Any, ...]:
    return tuple(batch) if isinstance(batch, tuple | list) and not _texts(batch) else (batch,)


def _length(batch: Any) -> int:
    lengths = dict(_lengths(batch, "batch"))
    if not lengths:
        raise ValueError("batch must hold a tensor, got none")
    n = next(iter(lengths.values()))
    for where, length in lengths.items():
        if length != n or not n:
            raise ValueError(
                f"batch must hold tensors of one length >= 1, got {n} samples and {length} in "
                f"{where}"
            )
    return n


def _lengths(part: Any, where: str) -> Iterator[tuple[str, int]]:
    """The samples in each tensor or list of texts, by its place in the batch."""
    if _texts(part) or (isinstance(part, Tensor) and part.ndim):
        yield where, len(part)
    elif isinstance(part, Mapping):
        for key, value in part.items():
            yield from _lengths(value, f"{where}[{key!r}]")
    elif isinstance(part, tuple | list):
        for place, value in enumerate(part):
            yield from _lengths(value, f"{where}[{place}]")
    else:
        found = "a tensor of no dimension" if isinstance(part, Tensor) else type(part).__name__
        raise ValueError(
            f"batch must be made of tensors with the samples first, got {found} in {where}"
        )


def _cut(part: Any, samples: slice) -> Any:
    if _texts(part) or isinstance(part, Tensor):
        return part[samples]
    if isinstance(part, MutableMapping):  # of its own class, as a tokenizer's is
        made = copy.copy(part)
        made.update({key: _cut(value, samples) for key, value in part.items()})
        return made
    if isinstance(part, Mapping):
        return {key: _cut(value, samples) for key, value in part.items()}
    values = [_cut(value, samples) for value in part]
    return type(part)(*values) if hasattr(part, "_fields") else type(part)(values)


def _texts(part: Any) -> bool:
    texts = isinstance(part, tuple | list) and len(part) > 0
    return texts and all(isinstance(value, str | bytes) for value in part)
