"""A user's `forward` as parts, where it only passes rows from part to part."""

from __future__ import annotations

import copy
import operator
from typing import Any, Final, NamedTuple

from torch import fx, nn
from torch.nn import functional

from throughtime.backends.cpu.stream.part import PartSum
from throughtime.layers.layer import Passage
from throughtime.layers.readout import Readout
from throughtime.layers.stream.chain import NoParts, PartChain, add_function

_SUMS: Final = frozenset({"add", "iadd", "add_"})
_RAISED: Final = (TypeError, ValueError, RuntimeError, AttributeError, LookupError, AssertionError)


class _Value(NamedTuple):
    """The value of a node of the graph.

    Attributes:
        place: in the chain; None for a layer's state.
        with_state: whether it is a layer's (outputs, state).
    """

    place: int | None
    with_state: bool = False


class _Tracer(fx.Tracer):
    """Traces into modules that hold others, except torch's and this package's."""

    def is_leaf_module(self, m: nn.Module, name: str) -> bool:
        """Whether a module is a part by itself."""
        library = type(m).__module__.startswith(("torch.", "throughtime."))
        return library or isinstance(m, Passage | Readout) or not m._modules


def follow(chain: PartChain, model: nn.Module, add: Any) -> None:
    """Add what the model's forward computes.

    Args:
        chain: parts so far; its last place is the forward's input.
        model: whose forward is traced; the parts are then compared with it on random steps.
        add: adds a module's parts.

    Raises:
        NoParts: it does more than pass rows from part to part.
    """
    name = type(model).__name__
    twin = copy.deepcopy(model, {id(v): v for v in model.parameters()})  # it may keep proxies
    try:
        graph = _Tracer().trace(twin)
    except _RAISED as error:
        raise NoParts(
            f"the model holds a {name}, whose forward cannot be followed ({error})"
        ) from error
    values: dict[fx.Node, _Value] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            if not values:
                values[node] = _Value(chain.last, chain.with_state)
            elif not node.args and node.users:
                raise NoParts(f"the model holds a {name}, whose forward takes more than x")
        elif node.op == "output":
            _end(chain, values, node.args[0], name)
        else:
            values[node] = _add_node(chain, model, values, node, add)


def _add_node(
    chain: PartChain, model: nn.Module, values: dict[fx.Node, _Value], node: fx.Node, add: Any
) -> _Value:
    """Add what a node computes; returns its value."""
    read = [values[n] for n in node.all_input_nodes if n in values]
    if not read or len(read) < len(node.all_input_nodes):
        raise NoParts(f"the model's forward holds {node.name}, which its own code computes")
    first = read[0]
    if node.op == "call_function" and node.target is operator.getitem:
        return _take_item(first, node)
    if first.place is None:
        raise NoParts(f"the model's forward computes {node.name} from a layer's state")
    chain.last, chain.with_state = first.place, first.with_state
    if node.op == "call_module" and len(node.args) == 1 and not node.kwargs:
        add(chain, model.get_submodule(str(node.target)))
    elif len(read) == 2 and _name_node(node) in _SUMS and not node.kwargs:
        _add_sum(chain, read)
    elif len(read) == 1 and not _is_idle(node):
        add_function(chain, _make_function(node), _name_node(node))
    elif len(read) > 1:
        raise NoParts(f"the model's forward joins values in {node.name}, by its own code")
    return _Value(chain.last, chain.with_state)


def _take_item(value: _Value, node: fx.Node) -> _Value:
    """Outputs or state of a layer's pair."""
    if value.with_state and node.args[1] == 0:
        return _Value(value.place)
    if value.place is None or (value.with_state and node.args[1] == 1):
        return _Value(None)
    raise NoParts(f"the model's forward indexes a part's output, in {node.name}")


def _add_sum(chain: PartChain, read: list[_Value]) -> None:
    places = [v.place for v in read if v.place is not None and not v.with_state]
    if len(places) < 2 or chain.width_of(places[0]) != chain.width_of(places[1]):
        raise NoParts("the model's forward adds what is not two rows of one width")
    chain.add(PartSum(), *places)


def _end(chain: PartChain, values: dict[fx.Node, _Value], result: Any, name: str) -> None:
    """End the chain at what the forward returns, without the layers' states."""
    results = list(result) if isinstance(result, tuple | list) else [result]
    rest = [values[n] if isinstance(n, fx.Node) and n in values else None for n in results]
    first = rest[0] if rest else None
    states = all(v is not None and v.place is None for v in rest[1:])
    if first is None or first.place is None or not states or isinstance(result, list):
        raise NoParts(f"the model holds a {name}, which returns more than one tensor")
    chain.last, chain.with_state = first.place, first.with_state


def _name_node(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _is_idle(node: fx.Node) -> bool:
    """Whether it is a dropout outside training."""
    arguments = dict(zip(("input", "p", "training"), node.args, strict=False)) | node.kwargs
    return node.target is functional.dropout and arguments.get("training", True) is False


def _make_function(node: fx.Node) -> Any:
    """The node as a function of one row."""

    def run(x: Any) -> Any:
        args = fx.node.map_arg(node.args, lambda _: x)
        kwargs = fx.node.map_arg(node.kwargs, lambda _: x)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.op == "call_function" and callable(node.target):
            return node.target(*args, **kwargs)
        raise TypeError(f"{node.op} is no function of a row")

    return run
