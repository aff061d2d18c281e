"""How torch's functions over the units of a row become nodes: sums, means, normalisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from throughtime.compiler.arguments import NoRule, builder_of, left_out, number, write
from throughtime.compiler.graph import Shape
from throughtime.compiler.symbol import Symbol, lift


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
        found: Symbol = value.reshaped("row_max", _one_a_row(input, dim), ("even",))
        return found if sign > 0 else write("neg", found)

    return rule


def _norm(
    input: Any, p: Any = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> Symbol:
    left_out(dtype)
    if p not in (2, "fro", None) or not keepdim:
        raise NoRule
    found: Symbol = input.reshaped("row_norm", _one_a_row(input, dim))
    return found


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
