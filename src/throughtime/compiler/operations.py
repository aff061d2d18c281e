"""How torch's functions become nodes: one line each, their arguments named as in torch."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any, Final

from throughtime.compiler.activations import ACTIVATIONS
from throughtime.compiler.graph import Shape
from throughtime.compiler.symbols import NoRule, Symbol, builder_of, left_out, lift, number, write


def _one_a_row(input: Any, dim: Any) -> Shape:
    """The shape with the last width gone to 1, if `dim` says the last."""
    shape: Shape = input.symbolic_shape
    dims = dim if isinstance(dim, tuple | list) else (dim,)
    if len(shape) != 2 or input.is_boolean or len(dims) != 1 or dims[0] not in (-1, 1):
        raise NoRule
    return (*shape[:-1], "1")


def _reduction(op: str) -> Callable[..., Symbol]:
    """A sum or mean over the units of each row."""

    def rule(input: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Symbol:
        left_out(dtype)
        if not keepdim:
            raise NoRule
        return lift(builder_of(input), input).reshaped(op, _one_a_row(input, dim))

    return rule


def _greatest(sign: int) -> Callable[..., Symbol]:
    def rule(input: Any, dim: Any = None, keepdim: bool = False) -> Symbol:
        if not keepdim:
            raise NoRule
        value = input if sign > 0 else write("neg", input)
        greatest: Symbol = value.reshaped("row_max", _one_a_row(input, dim), ("even",))
        return greatest if sign > 0 else write("neg", greatest)

    return rule


def _norm(
    input: Any, p: Any = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> Symbol:
    left_out(dtype)
    if p not in (2, "fro", None) or not keepdim:
        raise NoRule
    norm: Symbol = input.reshaped("row_norm", _one_a_row(input, dim))
    return norm


def _cumsum(input: Any, dim: Any, *, dtype: Any = None) -> Symbol:
    left_out(dtype)
    _one_a_row(input, dim)
    return write("cumsum", input)


def _softmax(input: Any, dim: Any = None, dtype: Any = None, _stacklevel: int = 3) -> Symbol:
    left_out(dtype)
    _one_a_row(input, dim)
    return write("softmax", input)


def _check_units(input: Any, normalized_shape: Any) -> None:
    """The normalised shape is the width of a row."""
    shape = tuple(normalized_shape)
    if len(input.symbolic_shape) != 2 or len(shape) != 1:
        raise NoRule
    width = shape[0]
    if input.builder.H is not None and isinstance(width, int):
        width = input.builder.width_name(width)
    if type(width) is Symbol:
        node = width.builder.nodes[width.index]
        width = node.constants[0] if node.op == "width" else None
    if str(width) != input.symbolic_shape[-1]:
        raise NoRule


def _affine(value: Symbol, weight: Any, bias: Any) -> Symbol:
    value = value if weight is None else write("mul", value, weight)
    return value if bias is None else write("add", value, bias)


def _layer_norm(
    input: Any,
    normalized_shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Symbol:
    _check_units(input, normalized_shape)
    return _affine(write("normalise", input, constants=(float(eps),)), weight, bias)


def _rms_norm(input: Any, normalized_shape: Any, weight: Any = None, eps: Any = None) -> Symbol:
    _check_units(input, normalized_shape)
    squares = write("square", input).reshaped("row_mean", _one_a_row(input, -1))
    least = lift(squares.builder, number(eps)) if eps is not None else _epsilon(squares)
    scale = write("rsqrt", write("add", squares, least))
    return _affine(write("mul", input, scale), weight, None)


def _epsilon(like: Symbol) -> Symbol:
    """What torch adds where nothing is said: the distance from 1 to the next number."""
    return Symbol(like.builder, like.builder.node("epsilon", (), (), ()))


ROWS: Final[dict[str, Callable[..., Symbol]]] = {
    "sum": _reduction("row_sum"),
    "mean": _reduction("row_mean"),
    "amax": _greatest(1),
    "amin": _greatest(-1),
    "norm": _norm,
    "linalg_vector_norm": lambda input, ord=2, dim=None, keepdim=False, **named: _norm(
        input, ord, dim, keepdim, **named
    ),
    "cumsum": _cumsum,
    "softmax": _softmax,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
}


Operation = Callable[..., Symbol]


def _unary(op: str) -> Operation:
    return lambda input, inplace=False: write(op, input)


def _binary(op: str) -> Operation:
    return lambda input, other: write(op, input, other)


def _swapped(op: str) -> Operation:
    return lambda input, other: write(op, other, input)


def _of_two(op: str) -> Operation:
    """torch.max and torch.min of two tensors; with a number they reduce over a dimension."""

    def rule(input: Any, other: Any) -> Symbol:
        if type(other) is not Symbol:
            raise NoRule
        return write(op, input, other)

    return rule


def _add(input: Any, other: Any, *, alpha: float = 1) -> Symbol:
    return write("add", input, other if alpha == 1 else write("mul", other, alpha))


def _sub(input: Any, other: Any, *, alpha: float = 1) -> Symbol:
    return write("sub", input, other if alpha == 1 else write("mul", other, alpha))


def _rsub(input: Any, other: Any, *, alpha: float = 1) -> Symbol:
    return write("sub", other, input if alpha == 1 else write("mul", input, alpha))


def _div(input: Any, other: Any, rounding_mode: str | None = None) -> Symbol:
    left_out(rounding_mode)
    return write("div", input, other)


def _pow(input: Any, exponent: Any) -> Symbol:
    e = number(exponent)
    return write("square", input) if e == 2 else write("pow", input, constants=(e,))


def _compare(op: str) -> Operation:
    return lambda input, other: lift(builder_of(input, other), input).write(op, other)


def _logical(op: str) -> Operation:
    def rule(input: Any, *other: Any) -> Symbol:
        values = [lift(builder_of(input, *other), v) for v in (input, *other)]
        if not all(v.is_boolean for v in values):
            raise NoRule
        return values[0].write(op, *values[1:])

    return rule


def _where(condition: Any, input: Any = None, other: Any = None) -> Symbol:
    if type(condition) is not Symbol or not condition.is_boolean or input is None or other is None:
        raise NoRule
    branches = [lift(condition.builder, v) for v in (input, other)]
    if any(v.is_boolean for v in branches):
        raise NoRule
    if all(v.is_number for v in branches):
        for v in branches:  # torch makes them float32, whatever the precision of the step
            if struct.unpack("f", struct.pack("f", number(v)))[0] != number(v):
                raise NoRule
    return condition.write("where", *branches)


def _clamp(input: Any, min: Any = None, max: Any = None) -> Symbol:
    low = -math.inf if min is None else number(min)
    high = math.inf if max is None else number(max)
    return write("clamp", input, constants=(low, high))


def _lerp(input: Any, end: Any, weight: Any) -> Symbol:
    return write("add", input, write("mul", weight, write("sub", end, input)))


def _addcmul(input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> Symbol:
    return _add(input, write("mul", tensor1, tensor2), alpha=value)


def _addcdiv(input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> Symbol:
    return _add(input, write("div", tensor1, tensor2), alpha=value)


def _same(input: Any, memory_format: Any = None) -> Symbol:
    left_out(memory_format)
    return lift(builder_of(input), input)


def _like(value: float | None) -> Operation:
    """A tensor of one number, in the shape of another."""

    def rule(input: Symbol, *fill_value: Any) -> Symbol:
        return input.filled(number(*fill_value) if value is None else value)

    return rule


_COMPARISONS: Final = {
    "greater": "gt",
    "greater_equal": "ge",
    "less": "lt",
    "less_equal": "le",
    "not_equal": "ne",
}
_UNARY: Final = (
    "neg reciprocal exp log log1p expm1 sqrt rsqrt square abs sin cos atan erf sign detach"
).split()

OPERATIONS: Final[dict[str, Operation]] = {
    **ROWS,
    **ACTIVATIONS,
    **{name: _unary(name) for name in _UNARY},
    **{name: _compare(name) for name in ("gt", "ge", "lt", "le", "eq", "ne")},
    **{alias: _compare(name) for alias, name in _COMPARISONS.items()},
    "add": _add,
    "radd": _swapped("add"),
    "sub": _sub,
    "subtract": _sub,
    "rsub": _rsub,
    "mul": _binary("mul"),
    "multiply": _binary("mul"),
    "rmul": _swapped("mul"),
    "div": _div,
    "divide": _div,
    "true_divide": _binary("div"),
    "truediv": _binary("div"),
    "rdiv": _swapped("div"),
    "pow": _pow,
    "negative": _unary("neg"),
    "absolute": _unary("abs"),
    "arctan": _unary("atan"),
    "sgn": _unary("sign"),
    "special_erf": _unary("erf"),
    "maximum": _binary("maximum"),
    "minimum": _binary("minimum"),
    "max": _of_two("maximum"),
    "min": _of_two("minimum"),
    "clamp": _clamp,
    "clip": _clamp,
    "clamp_min": lambda input, min: _clamp(input, min),
    "clamp_max": lambda input, max: _clamp(input, None, max),
    "lerp": _lerp,
    "addcmul": _addcmul,
    "addcdiv": _addcdiv,
    "where": _where,
    "and": _logical("and"),
    "bitwise_and": _logical("and"),
    "logical_and": _logical("and"),
    "or": _logical("or"),
    "bitwise_or": _logical("or"),
    "logical_or": _logical("or"),
    "invert": _logical("not"),
    "bitwise_not": _logical("not"),
    "logical_not": _logical("not"),
    "positive": _same,
    "clone": _same,
    "contiguous": _same,
    "zeros_like": _like(0.0),
    "ones_like": _like(1.0),
    "full_like": _like(None),
}
