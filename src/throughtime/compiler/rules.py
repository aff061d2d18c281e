"""The derivative of every operation, one line each; conventions at kinks and ties as autograd's.

d is the gradient of the loss by the result y; a rule gives the gradients by the inputs. For NaN
autograd has two answers in hardtanh and elu, one in its vector code and one in the rest of a row
that fills no vector; these are the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from throughtime.compiler.symbol import Symbol

Rule = Callable[..., tuple[Any, ...]]


def _op(name: str) -> Callable[..., Any]:
    """The operation of this name on a value and others."""
    return lambda x, *others: x.write(name, *others)


exp, log, sigmoid, erf, sign = map(_op, ("exp", "log", "sigmoid", "erf", "sign"))
square, where = _op("square"), _op("where")


def _power(x: Symbol, e: float) -> Any:
    return 1 if e == 0 else x if e == 1 else x.write("pow", constants=(e,))


def _mean(x: Symbol) -> Symbol:
    return x.reshaped("row_mean", (*x.symbolic_shape[:-1], "1"))


def _sum(x: Symbol) -> Symbol:
    return x.reshaped("row_sum", (*x.symbolic_shape[:-1], "1"))


def _spread(d: Symbol, x: Symbol) -> Symbol:
    """One number a row, for every unit of x."""
    return d.reshaped("spread", x.symbolic_shape)


def _units(x: Any) -> Any:
    return x.shape[-1]


def _row_scale(x: Symbol, eps: float) -> Symbol:
    """1 / sqrt(variance + eps) of each row."""
    return x.reshaped("row_scale", (*x.symbolic_shape[:-1], "1"), (eps,))


def _maximum(d: Any, y: Any, x: Any, w: Any) -> tuple[Any, ...]:
    half = where(x == w, d / 2, d)
    return where(x < w, 0, half), where(x > w, 0, half)


def _minimum(d: Any, y: Any, x: Any, w: Any) -> tuple[Any, ...]:
    half = where(x == w, d / 2, d)
    return where(x > w, 0, half), where(x < w, 0, half)


def _normalise(d: Any, y: Any, x: Any, eps: float) -> tuple[Any, ...]:
    return (_row_scale(x, eps) * (d - _mean(d) - y * _mean(d * y)),)


def _elu(d: Any, y: Any, x: Any, alpha: float, scale: float, inner: float) -> tuple[Any, ...]:
    return (where(x > 0, d * scale, d * inner * alpha * scale * exp(x * inner)),)


def _softplus(d: Any, y: Any, x: Any, beta: float, threshold: float) -> tuple[Any, ...]:
    z = exp(x * beta)
    return (where(x * beta > threshold, d, d * z / (z + 1)),)


def _silu(d: Any, y: Any, x: Any) -> tuple[Any, ...]:
    s = sigmoid(x)
    return (d * s * (1 + x * (1 - s)),)


def _gelu(d: Any, y: Any, x: Any) -> tuple[Any, ...]:
    below = (1 + erf(x * math.sqrt(0.5))) * 0.5
    density = exp(square(x) * -0.5) * (1 / math.sqrt(2 * math.pi))
    return (d * (below + x * density),)


def _cat(d: Any, y: Any, *inputs: Any) -> tuple[Any, ...]:
    """Each part's own units of d; behind the inputs stand where they begin, and the end."""
    count = len(inputs) // 2  # there is one end more than there are parts
    values, ends = inputs[:count], inputs[count:]
    return tuple(
        d.reshaped("slice", ("B", v.symbolic_shape[-1]), (start, stop))
        for v, start, stop in zip(values, ends, ends[1:], strict=False)
    )


def _row_max(d: Any, y: Any, x: Any, ties: str) -> tuple[Any, ...]:
    """To the greatest, all of them alike or the first alone."""
    equal = where(x == y, 1, 0)
    if ties == "first":
        return (where((equal.write("cumsum") == 1) & (x == y), _spread(d, x), 0),)
    return (equal * _spread(d / _sum(equal), x),)


def _row_norm(d: Any, y: Any, x: Any) -> tuple[Any, ...]:
    return (_spread(d, x) * where(y == 0, 0, x / y),)


RULES: Final[dict[str, Rule]] = {
    "add": lambda d, y, x, w: (d, d),
    "sub": lambda d, y, x, w: (d, -d),
    "mul": lambda d, y, x, w: (d * w, d * x),
    "div": lambda d, y, x, w: (d / w, -d * ((x / w) / w)),
    "neg": lambda d, y, x: (-d,),
    "reciprocal": lambda d, y, x: (-d * (y * y),),
    "square": lambda d, y, x: (d * (2 * x),),
    "pow": lambda d, y, x, e: (d * (e * _power(x, e - 1)),) if e else (None,),
    "sqrt": lambda d, y, x: (d / (2 * y),),
    "rsqrt": lambda d, y, x: (-0.5 * d * (y * y * y),),
    "exp": lambda d, y, x: (d * y,),
    "expm1": lambda d, y, x: (d * (y + 1),),
    "log": lambda d, y, x: (d / x,),
    "log1p": lambda d, y, x: (d / (x + 1),),
    "sin": lambda d, y, x: (d * x.cos(),),
    "cos": lambda d, y, x: (d * -x.sin(),),
    "atan": lambda d, y, x: (d / (x * x + 1),),
    "erf": lambda d, y, x: (2 / math.sqrt(math.pi) * exp(-square(x)) * d,),
    "abs": lambda d, y, x: (d * sign(x),),
    "sigmoid": lambda d, y, x: (d * (1 - y) * y,),
    "tanh": lambda d, y, x: (d * (1 - y * y),),
    "relu": lambda d, y, x: (where(y <= 0, 0, d),),
    "leaky_relu": lambda d, y, x, slope: (where(x > 0, d, d * slope),),
    "elu": _elu,
    "softplus": _softplus,
    "logsigmoid": lambda d, y, x: (d * sigmoid(-x),),
    "silu": _silu,
    "gelu": _gelu,
    "hardtanh": lambda d, y, x, low, high: (where((x > low) & (x < high), d, 0),),
    "clamp": lambda d, y, x, low, high: (where((x >= low) & (x <= high), d, 0),),
    "maximum": _maximum,
    "minimum": _minimum,
    "where": lambda d, y, c, x, w: (None, where(c, d, 0), where(c, 0, d)),
    "row_sum": lambda d, y, x: (_spread(d, x),),
    "row_mean": lambda d, y, x: (_spread(d / _units(x), x),),
    "softmax": lambda d, y, x: (y * (d - _sum(d * y)),),
    "normalise": _normalise,
    "row_max": _row_max,
    "row_norm": _row_norm,
    "cat": _cat,
    "cumsum": lambda d, y, x: (d.write("cumsum_back"),),
}

_FLAT: Final = "gt ge lt le eq ne and or not sign detach full number width epsilon"
FLAT: Final = frozenset(_FLAT.split())
"""Operations through which no gradient passes."""
