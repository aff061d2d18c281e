"""What happens when `step` calls torch on symbols: a node, a refusal, or an opaque node."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from torch import Tensor

from throughtime.compiler.graph import Builder, Untraceable
from throughtime.compiler.heads.over import over
from throughtime.compiler.heads.parts import is_parts, pointwise
from throughtime.compiler.heads.views import view
from throughtime.compiler.operations import OPERATIONS, ROWS
from throughtime.compiler.symbols import (
    Named,
    NoRule,
    Symbol,
    answers,
    builder_of,
    lift,
    value_asked,
)

_SIZES: Final = {"B": 13, "1": 1}
_WRITES: Final = frozenset("setitem iadd isub imul idiv ifloordiv imod iand ior ixor".split())
_ASKS: Final = frozenset({"item", "tolist", "numpy", "equal", "allclose", "is_nonzero"})


def call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of torch's `function` on arguments with symbols among them."""
    name = function.__name__
    name = name[2:-2] if name.startswith("__") else name
    builder = builder_of(*_symbols((args, kwargs)))
    _refuse_writing(builder, name, kwargs)
    if name in _ASKS:
        raise value_asked(builder, f"{name}()")
    if name in ("dim", "ndimension"):
        return args[0].ndim
    if name == "size":
        return _size(*args, **kwargs)
    for value in (*args, *kwargs.values()):
        if isinstance(value, Named):
            lift(builder, value)  # refuses it
    if builder.H is not None and builder.tracing:
        result = _headed(builder, name, function, args, kwargs)
        if result is not NotImplemented:
            return result
    reason = _hidden_from_autograd(builder) if builder.tracing else None
    if reason is None and name in OPERATIONS:
        try:
            return OPERATIONS[name](*_lifted(builder, args), **_lifted(builder, kwargs))
        except NoRule:
            pass
        except TypeError as error:  # the rule does not know these arguments; or a refusal
            if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
                raise
    return opaque(builder, reason or name, function, args, kwargs)


def _headed(
    builder: Builder, name: str, function: Callable[..., Any], args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:  # fmt: skip
    """What a step written at known sizes may do with tensors of heads; else NotImplemented."""
    if _hidden_from_autograd(builder):
        raise Untraceable("an operation hidden from autograd")
    for rule in (view, over):
        result = rule(name, args, kwargs)
        if result is not NotImplemented:
            return result
    if not any(is_parts(v) for v in (*args, *kwargs.values())):
        return NotImplemented
    if name not in OPERATIONS or name in ROWS:
        raise Untraceable(name)
    names = list(kwargs)

    def write(*given: Any) -> Any:
        named = dict(zip(names, given[len(args) :], strict=True))
        return call(function, given[: len(args)], named)

    return pointwise(builder, write, [*args, *kwargs.values()])


def shape(symbol: Symbol) -> tuple[Any, ...]:
    """The shape, each size a number that is known when the step runs; with H, all but B now."""
    builder = symbol.builder
    return tuple(
        Symbol(builder, builder.node("width", (), (w,), ()))
        if builder.H is None or w == "B"
        else builder.number_of(w)
        for w in symbol.symbolic_shape
    )


def _size(symbol: Any, dim: int | None = None) -> Any:
    sizes = symbol.shape
    return sizes if dim is None else sizes[dim]


def attribute(symbol: Symbol, name: str) -> Any:
    """What torch says of an attribute of a tensor, as of an example: a graph cannot know it."""
    return opaque(symbol.builder, f"Tensor.{name}", lambda v: getattr(v, name), (symbol,), {})


def opaque(
    builder: Builder, operation: str, function: Callable[..., Any], args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:  # fmt: skip
    """Opaque nodes for the tensors that `function` gives, their shapes found on examples."""
    inputs = tuple(s.index for s in _symbols((args, kwargs)))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        result = function(*_examples(args), **_examples(kwargs))
    names = {size: width for width, size in _sizes(builder).items()}

    def wrap(value: Any) -> Any:
        if isinstance(value, Tensor):
            sizes = tuple(names.get(n, str(n)) for n in value.shape)
            return Symbol(builder, builder.opaque(operation, inputs, sizes))
        if isinstance(value, tuple | list):
            items = tuple(wrap(v) for v in value)
            return items if type(value) in (tuple, list) else type(value)(items)
        builder.mark(inputs[0], operation)
        return value

    return wrap(result)


def _refuse_writing(builder: Builder, name: str, kwargs: dict[str, Any]) -> None:
    """A step that writes into its inputs would change what autograd and the caller hold."""
    if (
        name in _WRITES
        or name.endswith("_")
        or kwargs.get("inplace")
        or kwargs.get("out") is not None
    ):
        raise builder.refuse(
            f"step writes into a tensor in place ({name}), which would change the state or input "
            f"of the caller; compute a new value instead, as in x = x + y"
        )


def _hidden_from_autograd(builder: Builder) -> str | None:
    """Why the derivative that torch would take here is not that of the operations seen."""
    if builder.inside_autograd_function():
        return "a torch.autograd.Function"
    if not torch.is_grad_enabled():
        return "an operation under no_grad"
    return None


def _symbols(value: Any) -> Iterator[Symbol]:
    """The symbols in arguments, also inside tuples, lists and dictionaries."""
    if type(value) is Symbol:
        yield value
    elif is_parts(value):
        yield Symbol(value.builder, 0)
    elif type(value) is dict:
        yield from _symbols(tuple(value.values()))
    elif type(value) in (tuple, list):
        for v in value:
            yield from _symbols(v)


def _lifted(builder: Builder, value: Any) -> Any:
    """Arguments with tensors of no dimension as constants of the graph."""
    if type(value) is dict:
        return {k: _lifted(builder, v) for k, v in value.items()}
    if type(value) is tuple:
        return tuple(_lifted(builder, v) for v in value)
    return lift(builder, value) if isinstance(value, Tensor) else value


def _examples(value: Any) -> Any:
    """Arguments with a real tensor (or a size) in the place of each symbol."""
    if type(value) is Symbol:
        return _example(value)
    if type(value) is dict:
        return {k: _examples(v) for k, v in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_examples(v) for v in value)
    return value


def _example(symbol: Symbol) -> Any:
    """A tensor of the symbol's shape; for a size, a number."""
    node = symbol.builder.nodes[symbol.index]
    sizes = _sizes(symbol.builder)
    if node.op == "width":
        return sizes[str(node.constants[0])]
    if node.op == "number":
        return node.constants[0]
    dtype = torch.bool if symbol.is_boolean else None
    return torch.ones([sizes[w] for w in node.shape], dtype=dtype, device="cpu")


def _sizes(builder: Builder) -> dict[str, int]:
    """A number for every width in sight: different names, numbers no cell declares."""
    sizes = dict(_SIZES)
    for width in dict.fromkeys(w for node in builder.nodes for w in node.shape):
        sizes.setdefault(width, int(width) if width.isdigit() else 840 * len(sizes))
    return sizes


answers.call, answers.shape, answers.attribute = call, shape, attribute
