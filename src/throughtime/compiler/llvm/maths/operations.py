"""Every pointwise operation of a graph as vector code, its meaning that of torch.

`apply` is the way in. At most 4 units in the last place from the exact value (5 for gelu), where
that is a normal number; less may become zero. An infinity gives what the function tends to, but
NaN for silu and gelu at -inf, where torch has it too. NaN stays NaN, but for sign and the power 0,
where torch has numbers. A fused multiply-add is written as one: the bits are every machine's.

Sine and cosine of angles of any size, and the arc tangent, are here; exponentials and logarithms in
exponential.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

from llvmlite import ir

from throughtime.compiler.llvm.maths import ATAN, COS, SIN, exponential
from throughtime.compiler.llvm.values import (
    I64,
    Bits,
    Mask,
    Vector,
    at_least,
    at_most,
    copysign,
    fma,
    polynomial,
    sqrt,
    where,
)

PARTS: Final = (1.5707963267948966, 6.123233995736766e-17, -1.4973849048591698e-33)
"""pi / 2 as a sum, each the double next to what those before it leave."""

FAR: Final = 2.0**30
"""From here on the parts of pi / 2 are too few digits."""

TWO_OVER_PI: Final = int(
    """
    a2f9836e4e441529fc2757d1f534ddc0db6295993c439041fe5163abdebbc561b7246e3a424d
    d2e006492eea09d1921cfe1deb1cb129a73ee88235f52ebb4484e99c7026b45f7e413991d639
    835339f49c845f8bbdf9283b1ff897ffde05980fef2f118b5a0a6d1f6d367ecf27cb09b74f46
    3f669e5fea2d7527bac7ebe5f17b3d0739f78a5292ea6bfb5fb11f8d5d0856033046fc7b6bab
    """.replace("\n", "").replace(" ", ""),
    16,
)
"""2 / pi times 2^1216, rounded down: all that a number of double precision has to do with."""

_PLACES: Final = 1216
_WIDE, _PRODUCT = ir.IntType(_PLACES), ir.IntType(192)
_PIECE: Final = 48
"""Bits of a fraction that become a number at once."""


def in_quarters(a: Vector) -> tuple[Bits, Vector]:
    """n, of which the lowest two bits are right, and r, for doubles a >= 0.

    if any a is far: for lanes: as `_turned` does
    """
    b = a.b
    t = fma(a, 2 / math.pi, a.format.integer)
    n, r = t - a.format.integer, a
    for part in PARTS:
        r = fma(n, -part, r)
    far = (a >= FAR) & (a < math.inf)
    held, before = far.any().value, b.block
    with b.if_then(held, likely=False):
        reduced = [where(far, y, x) for x, y in zip((t, r), _far(where(far, a, FAR)), strict=True)]
        inside = b.block
    joined = []
    for x, y in zip((t, r), reduced, strict=True):
        phi = b.phi(x.kind)
        phi.add_incoming(x.value, before)
        phi.add_incoming(y.value, inside)
        joined.append(Vector(b, phi))
    return joined[0].bits(), joined[1]


def _far(a: Vector) -> tuple[Vector, Vector]:
    """A number with the lowest bits of n, and r, where every a is far.

    for lanes: n, r / (pi / 2)
    """
    b, bits = a.b, a.bits()
    before = b.block
    lane, after = (b.append_basic_block(name) for name in ("lane", "after"))
    b.branch(lane)
    b.position_at_end(lane)
    i, n, part = (b.phi(kind) for kind in (I64, bits.kind, a.kind))
    one, fraction = _turned(b, b.extract_element(bits.value, i))
    following = b.add(i, I64(1))
    n_next, part_next = b.insert_element(n, one, i), b.insert_element(part, fraction, i)
    starts = (I64(0), ir.Constant(bits.kind, None), ir.Constant(a.kind, None))
    for phi, start, value in zip((i, n, part), starts, (following, n_next, part_next), strict=True):
        phi.add_incoming(start, before)
        phi.add_incoming(value, lane)
    b.cbranch(b.icmp_unsigned("<", following, I64(a.lanes)), lane, after)
    b.position_at_end(after)
    turns = Vector(b, part_next)
    return Bits(b, n_next).number(), fma(turns, PARTS[0], turns * PARTS[1])


def _turned(b: Any, bits: Any) -> tuple[Any, Any]:
    """n mod 4 and r / (pi / 2) of one far number m 2^e, from the bits of 2 / pi that matter.

    m (2 / pi 2^(e + 190) mod 2^192): the bits above would add whole turns, those below nothing.

    Source: Payne and Hanek (1983), Radian reduction for trigonometric functions.
    """
    m = b.or_(b.and_(bits, I64(2**52 - 1)), I64(2**52))
    down = b.sub(I64(_PLACES - 190 + 1075), b.lshr(bits, I64(52)))
    digits = b.trunc(b.lshr(_WIDE(TWO_OVER_PI), b.zext(down, _WIDE)), _PRODUCT)
    turns = b.mul(digits, b.zext(m, _PRODUCT))  # the point is two bits below the top
    n = b.lshr(b.add(b.trunc(b.lshr(turns, _PRODUCT(189)), I64), I64(1)), I64(1))
    signed = b.shl(turns, _PRODUCT(2))
    below = b.icmp_signed("<", signed, _PRODUCT(0))
    size = b.select(below, b.neg(signed), signed)
    whole = ir.DoubleType()(0.0)
    for k in (3, 2, 1):
        piece = b.trunc(b.lshr(size, _PRODUCT(192 - k * _PIECE)), I64)
        real = b.sitofp(b.and_(piece, I64(2**_PIECE - 1)), ir.DoubleType())
        whole = b.fadd(b.fmul(real, ir.DoubleType()(2.0 ** (-k * _PIECE))), whole)
    return n, b.select(below, b.fneg(whole), whole)


def sin(x: Vector) -> Vector:
    """The sine, an odd function: that of |x| with the sign of x."""
    return _wave(x, 0) * copysign(x.constant(1), x)


def cos(x: Vector) -> Vector:
    """The cosine: the sine a quarter turn on."""
    return _wave(x, 1)


def _wave(x: Vector, on: int) -> Vector:
    """sin(|x| + on pi / 2) = +-sin(r) or +-cos(r), |x| = n pi / 2 + r; always in doubles.

    sin(r) = r + r^3 S(r^2);  cos(r) = 1 - r^2 / 2 + r^4 C(r^2)
    """
    bits = x.format.bits
    a = abs(x.widened() if bits == 32 else x)
    n, r = in_quarters(a)
    n = n + on
    z = r * r
    s = fma(r * z, polynomial(z, SIN[bits]), r)
    c = fma(z * z, polynomial(z, COS[bits]), fma(z, -0.5, 1))
    y = (where(n.odd(), c, s).bits() ^ ((n & 2) << 62)).number()
    return y.narrowed() if bits == 32 else y


def atan(x: Vector) -> Vector:
    """t + t^3 T(t^2) for a = |x| <= 1, t = a; above, pi / 2 more, t = -1 / a. The sign is x's."""
    a = abs(x)
    above = a > 1
    t = where(above, -1, a) / where(above, a, 1)
    z = t * t
    y = fma(t * z, polynomial(z, ATAN[x.format.bits]), t)
    high = x.format.rounded(math.pi / 2)
    low = math.pi / 2 - high + 6.123233995736766e-17
    turned = x.constant(high) + (y + low)
    return copysign(where(above, turned, y), x)


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
    "sign": lambda x: where(x > 0, 1, where(x < 0, -1, x.constant(0))),  # of NaN too it is 0
    "detach": lambda x: x,
    "relu": lambda x: at_least(x, 0),
    "leaky_relu": lambda x, slope: where(x > 0, x, x * slope),
    "hardtanh": _clamp,
    "clamp": _clamp,
    "maximum": _maximum,
    "minimum": _minimum,
    "pow": exponential.power,
    **{
        function.__name__: function
        for function in (
            exponential.exp, exponential.expm1, exponential.log, exponential.log1p,
            exponential.sigmoid, exponential.tanh, exponential.silu, exponential.softplus,
            exponential.logsigmoid, exponential.elu, exponential.erf, exponential.gelu,
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
