"""Every pointwise operation of a graph as vector code, its meaning that of torch.

`apply` is the way in. At most 4 units in the last place from the exact value (5 for gelu), where
that is a normal number; less may become zero. An infinity gives what the function tends to, but
NaN for silu and gelu at -inf, where torch has it too. NaN stays NaN, but for sign and the power 0,
where torch has numbers. A fused multiply-add is written as one: the bits are every machine's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

from throughtime.compiler.llvm.maths.exponential import (
    elu,
    erf,
    exp,
    expm1,
    gelu,
    log,
    log1p,
    logsigmoid,
    power,
    sigmoid,
    silu,
    softplus,
    tanh,
)
from throughtime.compiler.llvm.maths.trigonometric import atan, cos, sin
from throughtime.compiler.llvm.values import Mask, Vector, at_least, at_most, sqrt, where

Number = Vector | Mask


def _maximum(x: Vector, w: Vector) -> Vector:
    return where(x.is_nan() | (x > w), x, w)


def _minimum(x: Vector, w: Vector) -> Vector:
    return where(x.is_nan() | (x < w), x, w)


def _clamp(x: Vector, low: float, high: float) -> Vector:
    """At least low, then at most high: where the two are upside down, high."""
    if math.isnan(low) or math.isnan(high):
        return x.constant(math.nan)
    x = x if low == -math.inf else at_least(x, low)
    return x if high == math.inf else at_most(x, high)


def _sign(x: Vector) -> Vector:
    """1, -1, and 0 for what is neither above nor below 0, including NaN."""
    return where(x > 0, 1, where(x < 0, -1, x.constant(0)))


def _leaky_relu(x: Vector, slope: float) -> Vector:
    return where(x > 0, x, x * slope)


_NUMBERS: Final[dict[str, Callable[..., Vector]]] = {
    "add": lambda x, w: x + w,
    "sub": lambda x, w: x - w,
    "mul": lambda x, w: x * w,
    "div": lambda x, w: x / w,
    "neg": lambda x: -x,
    "abs": abs,
    "reciprocal": lambda x: 1 / x,
    "square": lambda x: x * x,
    "sqrt": sqrt,
    "rsqrt": lambda x: 1 / sqrt(x),
    "sign": _sign,
    "detach": lambda x: x,
    "relu": lambda x: at_least(x, 0),
    "leaky_relu": _leaky_relu,
    "hardtanh": _clamp,
    "clamp": _clamp,
    "maximum": _maximum,
    "minimum": _minimum,
    "pow": power,
    **{
        function.__name__: function
        for function in (
            exp, expm1, log, log1p, sigmoid, tanh, silu, softplus, logsigmoid, elu, erf, gelu,
            sin, cos, atan,
        )
    },
}  # fmt: skip
"""Operations on numbers alone, and their constants."""

_COMPARISONS: Final = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "eq": "==", "ne": "!="}

_TRUTHS: Final[dict[str, Callable[..., Mask]]] = {
    "and": lambda x, w: x & w,
    "or": lambda x, w: x | w,
    "not": lambda x: ~x,
    "gt": lambda x, w: x & ~w,
    "ge": lambda x, w: x | ~w,
    "lt": lambda x, w: w & ~x,
    "le": lambda x, w: w | ~x,
    "eq": lambda x, w: ~(x ^ w),
    "ne": lambda x, w: x ^ w,
}
"""Operations on truths alone."""

OPS: Final = frozenset({*_NUMBERS, *_COMPARISONS, *_TRUTHS, "where"})
"""Every operation that has code."""


def apply(op: str, values: Sequence[Number], constants: tuple[Any, ...] = ()) -> Any:
    """Writes one operation.

    Args:
        op: a name in OPS.
        values: of one length; truths count as 1 and 0 among numbers.
        constants: those of the graph's node.

    Returns:
        The result: a Mask of comparisons and what joins them, else a Vector.
    """
    if op == "where":
        mask, x, w = values
        assert isinstance(mask, Mask)
        return where(mask, *_numbers([x, w]))
    if all(isinstance(v, Mask) for v in values):
        return _TRUTHS[op](*values)
    numbers = _numbers(values)
    if op in _COMPARISONS:
        return numbers[0].compare(_COMPARISONS[op], numbers[1])
    return _NUMBERS[op](*numbers, *constants)


def _numbers(values: Sequence[Number]) -> list[Vector]:
    """The values as numbers, truths as 1 and 0."""
    like = next(v for v in values if isinstance(v, Vector))
    return [v if isinstance(v, Vector) else where(v, like.constant(1), 0) for v in values]
