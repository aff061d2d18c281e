"""How torch's functions become nodes: one line each, their arguments named as in torch."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any, Final

from throughtime.compiler.graph import Shape
from throughtime.compiler.symbols import NoRule, Symbol, builder_of, left_out, lift, number, write

Operation = Callable[..., Symbol]


def _unary(op: str) -> Operation:
    return lambda input, inplace=False: write(op, input)


def _fixed(op: str, input: Any, *constants: float) -> Symbol:
    return write(op, input, constants=tuple(map(float, constants)))


def _gelu(input: Any, approximate: str = "none") -> Symbol:
    left_out(None if approximate == "none" else approximate)
    return write("gelu", input)


_SELU: Final = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946, 1.0

_ACTIVATIONS: Final[dict[str, Operation]] = {
    "gelu": _gelu,
    "hardtanh": lambda input, min_val=-1, max_val=1, inplace=False: _fixed(
        "hardtanh", input, min_val, max_val
    ),
    "relu6": lambda input, inplace=False: _fixed("hardtanh", input, 0, 6),
    "softplus": lambda input, beta=1, threshold=20: _fixed("softplus", input, beta, threshold),
    "elu": lambda input, alpha=1, inplace=False: _fixed("elu", input, alpha, 1, 1),
    "selu": lambda input, inplace=False: _fixed("elu", input, *_SELU),
    "celu": lambda input, alpha=1, inplace=False: _fixed("elu", input, alpha, 1, 1 / alpha),
    "leaky_relu": lambda input, negative_slope=0.01, inplace=False: _fixed(
        "leaky_relu", input, negative_slope
    ),
    "mish": lambda input, inplace=False: write(
        "mul", input, write("tanh", _fixed("softplus", input, 1, 20))
    ),
    "softsign": lambda input: write("div", input, write("add", write("abs", input), 1)),
    "tanhshrink": lambda input: write("sub", input, write("tanh", input)),
}


def _one_a_row(input: Any, dim: Any) -> Shape:
    """The shape with the last width gone to 1, if `dim` says the last."""
    shape: Shape = input.symbolic_shape
    dims = dim if isinstance(dim, tuple | list) else (dim,)
    if len(shape) != 2 or input.is_boolean or len(dims) != 1 or dims[0] not in (-1, 1):
        raise NoRule
    return (*shape[:-1], "1")


def _reduction(op: str) -> Operation:
    """A sum or mean over the units of each row."""

    def rule(input: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Symbol:
        left_out(dtype)
        if not keepdim:
            raise NoRule
        return lift(builder_of(input), input).reshaped(op, _one_a_row(input, dim))

    return rule


def _greatest(sign: int) -> Operation:
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
    input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Symbol:  # fmt: skip
    _check_units(input, normalized_shape)
    return _affine(write("normalise", input, constants=(float(eps),)), weight, bias)


def _rms_norm(input: Any, normalized_shape: Any, weight: Any = None, eps: Any = None) -> Symbol:
    _check_units(input, normalized_shape)
    squares = write("square", input).reshaped("row_mean", _one_a_row(input, -1))
    builder = squares.builder
    if eps is not None:
        least = lift(builder, number(eps))
    else:  # the distance from 1 to the next number, as torch has it
        least = Symbol(builder, builder.node("epsilon", (), (), ()))
    scale = write("rsqrt", write("add", squares, least))
    return _affine(write("mul", input, scale), weight, None)


ROWS: Final[dict[str, Operation]] = {
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
"""Functions over the units of a row."""


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


def _scaled(value: Any, alpha: float) -> Any:
    return value if alpha == 1 else write("mul", value, alpha)


def _add(input: Any, other: Any, *, alpha: float = 1) -> Symbol:
    return write("add", input, _scaled(other, alpha))


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


def _same(input: Any, memory_format: Any = None) -> Symbol:
    left_out(memory_format)
    return lift(builder_of(input), input)


def _like(value: float | None) -> Operation:
    """A tensor of one number, in the shape of another."""

    def rule(input: Symbol, *fill_value: Any) -> Symbol:
        return input.filled(number(*fill_value) if value is None else value)

    return rule


_UNARY: Final = (
    "neg reciprocal exp log log1p expm1 sqrt rsqrt square abs sin cos atan erf sign detach "
    "sigmoid tanh relu silu logsigmoid"
).split()
_ALIASES: Final = {
    "gt": "greater", "ge": "greater_equal", "lt": "less", "le": "less_equal", "ne": "not_equal",
    "neg": "negative", "abs": "absolute", "atan": "arctan", "sign": "sgn", "erf": "special_erf",
    "sigmoid": "special_expit", "logsigmoid": "log_sigmoid", "sub": "subtract", "mul": "multiply",
    "div": "divide true_divide truediv", "clamp": "clip", "and": "bitwise_and logical_and",
    "or": "bitwise_or logical_or", "invert": "bitwise_not logical_not",
    "positive": "clone contiguous",
}  # fmt: skip
"""Other names of operations, as torch has them."""

_TABLE: Final[dict[str, Operation]] = {
    **ROWS,
    **_ACTIVATIONS,
    **{name: _unary(name) for name in _UNARY},
    **{name: _compare(name) for name in ("gt", "ge", "lt", "le", "eq", "ne")},
    **{name: _binary(name) for name in ("mul", "maximum", "minimum")},
    **{f"r{name}": _swapped(name) for name in ("add", "mul", "div")},
    **{name: _logical(name) for name in ("and", "or")},
    "invert": _logical("not"),
    "add": _add,
    "sub": lambda input, other, *, alpha=1: write("sub", input, _scaled(other, alpha)),
    "rsub": lambda input, other, *, alpha=1: write("sub", other, _scaled(input, alpha)),
    "div": _div,
    "pow": _pow,
    "lerp": lambda input, end, weight: _add(input, write("mul", weight, write("sub", end, input))),
    "addcmul": lambda input, tensor1, tensor2, *, value=1: _add(
        input, write("mul", tensor1, tensor2), alpha=value
    ),
    "addcdiv": lambda input, tensor1, tensor2, *, value=1: _add(
        input, write("div", tensor1, tensor2), alpha=value
    ),
    "where": _where,
    "clamp": _clamp,
    "max": _of_two("maximum"),
    "min": _of_two("minimum"),
    "clamp_min": lambda input, min: _clamp(input, min),
    "clamp_max": lambda input, max: _clamp(input, None, max),
    "positive": _same,
    "zeros_like": _like(0.0),
    "ones_like": _like(1.0),
    "full_like": _like(None),
}  # fmt: skip

OPERATIONS: Final[dict[str, Operation]] = _TABLE | {
    alias: _TABLE[name] for name, aliases in _ALIASES.items() for alias in aliases.split()
}
"""Every function of torch that has a rule, by its name."""
