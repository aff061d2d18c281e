"""The parts of a model in order, for a compiled stream, or why it cannot be one.

A user's `forward` is traced, where it only passes rows from part to part.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from torch import Tensor, fx, nn
from torch.nn import functional

from throughtime.backends import cpu
from throughtime.backends.call import Call
from throughtime.backends.cpu.stream.layer import (
    LookupTable,
    Part,
    PartProduct,
    PartSum,
    Placed,
    RowFunction,
    like,
    output_width,
)
from throughtime.cell.contract import activation_function
from throughtime.layers.layer import Passage
from throughtime.layers.options import Readout
from throughtime.layers.stream.functions import make_row_function

Parts = list[Placed]

RAISED: Final = (
    TypeError, ValueError, RuntimeError, LookupError, AttributeError, AssertionError,
    ArithmeticError,
)  # fmt: skip
"""What a model may raise on an input of the wrong form."""

_SUMS: Final = frozenset({"add", "iadd", "add_"})


class NoParts(Exception):
    """The model is no plain stack of parts that compiled streams take; the text is the reason."""


class PartChain:
    """Parts that follow each other, while they are collected.

    Args:
        width: of the first part's input.

    Attributes:
        parts: so far.
        last: the place that the next part reads: 0 is the input, k + 1 the output of part k.
        with_state: whether that is (outputs, state), which few parts take.
        layers: the layers among the parts, in order.
        traced: whether a user's `forward` was traced.
    """

    def __init__(self, width: int | None) -> None:
        self.parts: Parts = []
        self.last = 0
        self.with_state = False
        self.layers: list[nn.Module] = []
        self.traced = False
        self._widths = [width]
        self._kinds: dict[Any, None] = {}

    @property
    def width(self) -> int:
        """How many numbers a row has at the last place."""
        width = self._widths[self.last]
        if width is None:
            raise NoParts("the model does not begin with a layer, a linear part or an embedding")
        return width

    def width_of(self, place: int) -> int | None:
        return self._widths[place]

    def add(self, part: Part, *sources: int) -> None:
        """Add a part that reads the last place, or these."""
        if self.with_state:
            raise NoParts("a layer that gives its state stands before a part that takes none")
        below = self._widths[self.last] if self.parts else None
        tensor = like(part)
        takes = self._widths[self.last]
        if tensor is not None:
            takes = tensor.shape[-1]
            if not isinstance(part, LookupTable) and below not in (None, takes):
                raise NoParts(f"a part takes {takes} numbers and the one before it gives {below}")
            self._hold(tensor)
        for v in part.vectors.values() if isinstance(part, RowFunction) else ():
            self._hold(v)
        assert takes is not None
        self.parts.append(Placed(part, sources or (self.last,)))
        self._widths.append(output_width(part, takes))
        self.last = len(self.parts)

    def _hold(self, tensor: Tensor) -> None:
        """Note the dtype and device of a tensor; `end` requires one of each."""
        self._kinds[tensor.dtype, tensor.device] = None

    def end(self) -> None:
        """Check the complete chain."""
        if self.last != len(self.parts):
            raise NoParts("the model returns something else than its last part does")
        if len(self._kinds) > 1:
            raise NoParts("the parts of the model have different dtypes or devices")


def find_parts(model: nn.Module) -> tuple[Parts | str, bool]:
    """The parts of a frozen model, each with its sources, or why there are none.

    Returns:
        The parts or the reason, and whether a user's `forward` was traced: then they must be tried.
    """
    chain = PartChain(_find_first_width(model))
    try:
        _add(chain, model)
        chain.end()
        direct = any(isinstance(p.part, Call) and p.part.inputs for p in chain.parts)
        if direct and not isinstance(model, Passage):
            raise NoParts(f"a layer in a {type(model).__name__} reads direct inputs")
        if chain.layers != [m for m in model.modules() if isinstance(m, Passage)]:
            raise NoParts("the model calls its layers in another order, or not once each")
        return chain.parts, chain.traced
    except NoParts as reason:
        return str(reason), chain.traced


def _find_first_width(model: nn.Module) -> int | None:
    """The input width of the first part that has one; the parts before it keep the width."""
    for module in model.modules():
        if isinstance(module, Passage):
            return module.input_size
        if type(module) is nn.Linear:
            return module.in_features
        if type(module) is nn.Embedding:
            return None
    return None


def _add(chain: PartChain, model: nn.Module) -> None:
    """Add the parts of a model to the chain."""
    if isinstance(model, Passage):
        _add_layers(chain, model)
        return
    kind = type(model)
    if model._forward_hooks or model._forward_pre_hooks:
        raise NoParts(f"a {kind.__name__} of the model has hooks")
    if "parametrizations" in model._modules:
        raise NoParts(f"a {kind.__name__} of the model computes its weights anew at each call")
    if type(model) is nn.Sequential:
        for child in model:
            _add(chain, child)
    elif isinstance(model, Readout):
        _add_readout(chain, model)
    elif kind in (nn.Dropout, nn.AlphaDropout, nn.Identity):
        pass  # in eval mode they give what they take, state too
    elif type(model) is nn.Linear:
        chain.add(PartProduct(model.weight, model.bias))
    elif type(model) is nn.Embedding and model.max_norm is None and not chain.last:
        chain.add(LookupTable(model.weight))
    elif model._modules and not kind.__module__.startswith(("torch.", "throughtime.")):
        chain.traced = True
        _follow(chain, model)
    else:
        _add_function(chain, model, kind.__name__)


def _add_readout(chain: PartChain, model: Readout) -> None:
    """Add its network, which takes outputs alone, and its activation; a state passes by."""
    state, chain.with_state = chain.with_state, False
    _add(chain, model.network)
    if model.activation is not activation_function("identity"):
        _add_function(chain, model.activation, "readout's activation")
    chain.with_state = state


def _add_layers(chain: PartChain, layer: Any) -> None:
    """Add the calls of its layers, each but the first with its residual."""
    for number, call in enumerate(_list_calls(layer)):
        below = chain.last
        chain.add(call)
        if layer.options.residual and number:
            chain.add(PartSum(), below, chain.last)
    chain.layers.append(layer)
    chain.with_state = bool(getattr(layer, "return_state", True))


def _list_calls(layer: Any) -> list[Call]:
    """The call of one step of each layer."""
    if type(layer).__module__.partition(".")[0] != "throughtime" or "parametrizations" in dict(
        layer.named_children()
    ):
        raise NoParts(f"{type(layer).__name__} is changed in your own code")
    if layer.backend not in ("auto", "cpu"):
        raise NoParts(f"a layer has backend={layer.backend!r}")
    calls = [layer._example(i) for i in range(len(layer.widths))]
    for call in calls:
        reason = cpu.refuses(call)
        if reason is not None:
            raise NoParts(reason)
    return calls


def _add_function(chain: PartChain, function: Callable[[Any], Any], name: str) -> None:
    """Add a function of each row alone, if the compiler knows its operations."""
    message = f"the model holds a {name}, which its own code computes"
    if chain.with_state or (isinstance(function, nn.Module) and function._modules):
        raise NoParts(message)
    part = make_row_function(function, name, chain.width)
    if isinstance(part, str):
        raise NoParts(f"{message}: {part}")
    chain.add(part)


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


def _follow(chain: PartChain, model: nn.Module) -> None:
    """Add what the model's forward computes.

    Args:
        chain: parts so far; its last place is the forward's input.
        model: whose forward is traced; the parts are then compared with it on random steps.

    Raises:
        NoParts: it does more than pass rows from part to part.
    """
    name = type(model).__name__
    twin = copy.deepcopy(model, {id(v): v for v in model.parameters()})  # it may keep proxies
    try:
        graph = _Tracer().trace(twin)
    except RAISED as error:
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
            values[node] = _add_node(chain, model, values, node)


def _add_node(
    chain: PartChain, model: nn.Module, values: dict[fx.Node, _Value], node: fx.Node
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
        _add(chain, model.get_submodule(str(node.target)))
    elif len(read) == 2 and _name_node(node) in _SUMS and not node.kwargs:
        _add_sum(chain, read)
    elif len(read) == 1 and not _is_idle(node):
        _add_function(chain, _make_function(node), _name_node(node))
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
