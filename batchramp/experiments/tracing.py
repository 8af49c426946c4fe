"""A step as the list of torch's calls that it makes, without those that do nothing.

At small batches most of a step's time goes into finding out which calls to make. They are the same
at every step of one batch size: they are written down once (`make_fx`), tidied, and repeated.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Interpreter, Node

try:
    from torch.fx.experimental.proxy_tensor import make_fx
except ImportError:  # torch calls it experimental: without it steps are vectorised, and not traced
    make_fx = None

__all__ = ["Traced", "can_trace", "traced"]

aten = torch.ops.aten
_Call = type(aten.add.Tensor)


def can_trace() -> bool:
    """Whether this torch has what `traced` needs."""
    return make_fx is not None


def traced(
    function: Callable[..., Any],
    parameters: Mapping[str, Tensor],
    rest: Mapping[str, Tensor],
    inputs: Tensor,
    targets: Tensor,
    gradients: Mapping[str, Tensor],
) -> "Traced":
    """``function`` as the list of torch's calls that it makes, without those that do nothing.

    Args:
        function: ``function(parameters, rest, inputs, targets)`` returns gradients and losses.
        parameters, rest: where they lie, to be read (and ``rest`` written) at every call.
        inputs, targets: a batch, of the shape and strides that all batches will have.
        gradients: where to write the gradients.

    Returns:
        Functions of inputs and targets that leave the gradients.
    """
    names = list(parameters), list(rest)
    count = len(parameters)

    def flat(*tensors: Tensor) -> list[Tensor]:
        own = dict(zip(names[0], tensors[:count], strict=True))
        held = dict(zip(names[1], tensors[count:-2], strict=True))
        found, losses = function(own, held, *tensors[-2:])
        return [*(found[name] for name in names[0]), losses]

    # Of copies: tracing runs what it traces, batch norms' running statistics included.
    given = (*parameters.values(), *(t.clone() for t in rest.values()), inputs, targets)
    assert make_fx is not None
    module = make_fx(flat)(*given)
    graph = module.graph
    with torch.no_grad():
        _Shapes(module).run(*given, enable_io_processing=False)
    places = [node for node in graph.nodes if node.op == "placeholder"]
    # Where in memory these lie never changes: neither do views of them.
    fixed = dict(zip(places, (*parameters.values(), *rest.values()), strict=False))
    if not any(_writes(node) for node in graph.nodes):
        _simplify(graph, fixed)
    graph.eliminate_dead_code()
    (output,) = (node for node in graph.nodes if node.op == "output")
    *found, losses = output.args[0]
    for node, where in zip(found, gradients.values(), strict=True):
        _write_into(graph, output, node, _place(graph, fixed, where))
    _make_views(graph, fixed)

    def returning(value: Node | None) -> Callable[..., Any]:
        output.args = (value,)
        own, kept = Graph(), {}
        own.output(own.graph_copy(graph, kept))
        own.eliminate_dead_code()
        for node in own.nodes:
            node.target = _DIRECT.get(node.target, node.target)
        used = []
        for node, lying in fixed.items():
            if kept[node].users:
                used.append(lying)
            else:
                own.erase_node(kept[node])
        return functools.partial(GraphModule(module, own).forward, *used)

    return Traced(returning(losses), returning(None))


class Traced(NamedTuple):
    """A step's gradients, with the losses that few steps are asked for and without."""

    with_losses: Callable[[Tensor, Tensor], Tensor]
    alone: Callable[[Tensor, Tensor], None]


class _Shapes(Interpreter):
    """Notes the shape of every value in a graph, and the values that are always the same."""

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        n.meta["shape"] = value.shape if isinstance(value, Tensor) else None
        given = n.all_input_nodes
        from_constants = given and all("constant" in node.meta for node in given)
        if n.op == "call_function" and (n.target in _CONSTANT or from_constants):
            n.meta["constant"] = value
        return value


_CONSTANT = (
    aten.scalar_tensor.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.new_zeros.default,
)
_VIEWS = (aten.view.default, aten.transpose.int, aten.unsqueeze.default, aten.expand.default)
# What can write its result where it is told.
_INTO: dict[Any, Any] = {
    aten.bmm.default: aten.bmm.out,
    aten.sum.dim_IntList: aten.sum.IntList_out,
}
# The same calls by a shorter way: 1 microsecond less each.
_DIRECT: dict[Any, Callable[..., Any]] = {
    aten.add.Tensor: torch.add,
    aten.bmm.default: torch.bmm,
    aten.bmm.out: torch.bmm,
    aten.mul.Tensor: torch.mul,
    aten.relu.default: torch.relu,
    aten.sum.IntList_out: torch.sum,
    aten.transpose.int: torch.transpose,
    aten.unsqueeze.default: torch.unsqueeze,
    aten.view.default: Tensor.view,
}


def _writes(node: Node) -> bool:
    """Whether a node writes into what it is given."""
    if not isinstance(node.target, _Call):
        return False
    # Batch norms write their running statistics, and do not say so.
    return node.target._schema.is_mutable or "batch_norm" in str(node.target)


def _place(graph: Graph, fixed: dict[Node, Tensor], value: Tensor) -> Node:
    """A new argument of the graph, that will always be ``value``."""
    last = list(fixed)[-1]
    with graph.inserting_after(last):
        node = graph.placeholder(f"fixed_{len(fixed)}")
    node.meta["shape"] = value.shape
    fixed[node] = value
    return node


def _simplify(graph: Graph, fixed: dict[Node, Tensor]) -> None:
    """Leaves out calls that return what they are given, always the same, or what another has."""
    known: dict[Any, Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        same = _same_as(node)
        if "constant" in node.meta:
            same = _place(graph, fixed, node.meta["constant"])
        if same is None:
            key = (node.target, repr(node.args), repr(node.kwargs))
            same = known.setdefault(key, node)
        if same is not node:
            node.replace_all_uses_with(same)
            graph.erase_node(node)


def _make_views(graph: Graph, fixed: dict[Node, Tensor]) -> None:
    """Takes views of what lies where it lies, once and for all."""
    for node in list(graph.nodes):
        first = node.args[0] if node.args else None
        if node.target in _VIEWS and first in fixed:
            with torch.no_grad():
                view = cast("Any", node.target)(fixed[cast("Node", first)], *node.args[1:])
            node.replace_all_uses_with(_place(graph, fixed, view))
            graph.erase_node(node)


def _same_as(node: Node) -> Node | None:
    """What a node returns unchanged, if it does."""
    first = node.args[0] if node.args else None
    if not isinstance(first, Node):
        return None
    if node.target in (aten.view.default, aten._unsafe_view.default, aten.expand.default):
        return first if node.meta["shape"] == first.meta["shape"] else None
    if node.target is aten.mul.Scalar:
        return first if node.args[1] == 1 else None
    if node.target is aten.transpose.int and first.target is aten.transpose.int:
        rank = len(node.meta["shape"])
        swaps = [{cast("int", dim) % rank for dim in each.args[1:]} for each in (node, first)]
        before = first.args[0]
        return before if swaps[0] == swaps[1] and isinstance(before, Node) else None
    return None


def _write_into(graph: Graph, output: Node, node: Node, place: Node) -> None:
    """Has ``node`` leave its value in ``place``: computed there if it can be, or else copied."""
    maker = node
    while maker.target is aten.view.default and len(maker.users) == 1:
        assert isinstance(maker.args[0], Node)
        maker = maker.args[0]
    if maker.target in _INTO and len(maker.users) == 1:
        with graph.inserting_before(maker):
            out = graph.call_function(aten.view.default, (place, list(maker.meta["shape"])))
            graph.call_function(_INTO[maker.target], maker.args, {**maker.kwargs, "out": out})
        return
    with graph.inserting_before(output):
        graph.call_function(aten.copy_.default, (place, node))
