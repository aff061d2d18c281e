"""exp, and what is made of it: expm1, sigmoid, tanh, silu, softplus, elu, erf, gelu.

    x = n ln 2 + r, |r| <= ln 2 / 2;  exp(x) = s (1 + v), s = 2^n, v = r + r^2 P(r)

n comes from adding a number so large that the sum has no room for a fraction; its lowest bits are
then n, and shifted into the place of the exponent they are s. Every lane takes the same path.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from throughtime.compiler.llvm.maths.coefficients import ERF, EXP, LOG1P, NORMAL
from throughtime.compiler.llvm.values import (
    Bits,
    Format,
    Vector,
    at_least,
    at_most,
    copysign,
    fma,
    polynomial,
    where,
)

LN2: Final = math.log(2)
LN2_LOW: Final = 2.3190468138462996e-17
"""ln 2 less the double before it."""

LIFT: Final = 12
"""Powers of two by which a tiny exponential is lifted while a product of it is still to come."""

_LARGEST: Final = {32: 88.72283172607422, 64: 709.782712893384}
_SMALLEST: Final = {32: -87.33654022216797, 64: -708.3964185322641}


class ExpParts(NamedTuple):
    """exp(scale x) = s (1 + scale v): the bits of s, and v."""

    field: Bits
    v: Vector


def parts(x: Vector, scale: float, offset: int, low: Vector | None = None) -> ExpParts:
    """exp(scale (x + low)) in parts.

    Args:
        scale: 1 or a small power of two, with its sign; r and v are those over it.
        offset: of n in the bits of s; with the format's own, s is 2^n. The bits are right while
            n + offset is in an exponent's range; at zero s is 0.
    """
    f = x.format
    big = f.integer + offset
    t = fma(x, scale / LN2, big)
    n = t - big
    high = f.rounded(LN2 / scale)
    r = fma(n, -high, x)
    r = fma(n, -(LN2 / scale - high + LN2_LOW / scale), r if low is None else r + low)
    P = polynomial(r, [scale ** (k + 1) * c for k, c in enumerate(EXP[f.bits])])
    return ExpParts(t.bits() << f.fraction, fma(r * r, P, r))


def exp(x: Vector, low: Vector | None = None) -> Vector:
    """exp(x + low); less than the smallest normal number is 0."""
    bits = x.format.bits
    field, v = parts(x, 1, 0, low)
    y = ((v + 1).bits() + field).number()
    y = where(x < _SMALLEST[bits], 0, y)
    return where(x <= _LARGEST[bits], y, x * math.ldexp(1, x.format.offset))


def exp_of_negative(a: Vector, lift: int = 0, low: Vector | None = None) -> Vector:
    """2^lift exp(-a - low) for a >= 0: s - s v."""
    offset = a.format.offset + lift
    most = offset * LN2  # there s is 0
    low = low if low is None else where(a < most, low, 0)
    field, v = parts(at_most(a, most), -1, offset, low)
    s = field.number()
    return fma(s, -v, s)


def expm1(x: Vector) -> Vector:
    """exp(x) - 1 = 2 (s / 2 - 1 / 2 + s / 2 v), so that s / 2 is finite for all x."""
    f = x.format
    inside = at_most(at_least(x, -(f.fraction + 3) * LN2), (f.offset + 1.2) * LN2)
    field, v = parts(inside, 1, f.offset - 1)
    s = field.number()
    y = fma(s, v, s - 0.5)
    return where(abs(x) < math.ldexp(1, -f.fraction - 3), x, y + y)  # half of it may be no normal


def sigmoid(x: Vector) -> Vector:
    """1 / (1 + e) for x >= 0, e / (1 + e) below; e = exp(-|x|)."""
    e = exp_of_negative(abs(x))
    return where(x < 0, e, 1) / (e + 1)


def below_one(a: Vector, scale: int) -> Vector:
    """1 - exp(-scale a) = 1 - s + S v, S = scale s, for a >= 0: at most 1, and right near 0.

    Args:
        scale: 1 or 2.
    """
    f = a.format
    a = at_most(a, (f.fraction + 3) * LN2 / scale)
    field, v = parts(a, -scale, f.offset + scale - 1)
    S = field.number()
    return fma(S, v, 1 - S if scale == 1 else fma(S, -0.5, 1))


def tanh(x: Vector) -> Vector:
    """m / (2 - m) with the sign of x; m = 1 - exp(-2 |x|)."""
    m = below_one(abs(x), 2)
    return copysign(m / (2 - m), x)


def silu(x: Vector) -> Vector:
    """x sigmoid(x), where e and sigmoid(x) may be too small for a normal number."""
    e = exp_of_negative(abs(x), LIFT)
    below = x * e * 2.0**-LIFT
    return where(x < 0, below, x) / fma(e, 2.0**-LIFT, 1)


def log1p_of_small(e: Vector, lift: int = 0) -> Vector:
    """2^lift log(1 + e / 2^lift) for e / 2^lift from 0 to 1.

    Without the lift: s + s^3 (1 / 12 + ...), s = 2 e / (2 + e).
    """
    s = (e + e) / fma(e, math.ldexp(1, -lift), 2)
    small = s * math.ldexp(1, -lift) if lift else s
    z = small * small
    return fma(s * z, polynomial(z, LOG1P[e.format.bits]), s)


def softplus(x: Vector, beta: float, threshold: float) -> Vector:
    """log(1 + exp(z)) / beta = max(z, 0) / beta + log(1 + exp(-|z|)) / beta; z = x beta.

    What rounding takes from z goes into the exponential too; a small beta makes it normal again.
    """
    beta = x.format.rounded(beta)
    if beta == 1:
        y = at_least(x, 0) + log1p_of_small(exp_of_negative(abs(x)))
        return where(x > threshold, x, y)
    z = x * beta
    low = fma(x, beta, -z) * copysign(x.constant(1), z)
    lift = min(64, max(0, 1 - math.frexp(beta)[1]))
    y = log1p_of_small(exp_of_negative(abs(z), lift, low), lift) / beta
    y = y * math.ldexp(1, -lift) if lift else y
    return where(z > threshold, x, where(z > 0, x, 0) + y)


def logsigmoid(x: Vector) -> Vector:
    """min(x, 0) - log(1 + exp(-|x|))."""
    return at_most(x, 0) - log1p_of_small(exp_of_negative(abs(x)))


def elu(x: Vector, alpha: float, scale: float, inner: float) -> Vector:
    """scale x for x > 0, else scale alpha (exp(inner x) - 1)."""
    f: Format = x.format
    factor = f.rounded(f.rounded(alpha) * f.rounded(scale))
    return where(x <= 0, expm1(x * inner) * factor, x * scale)


_ONE: Final = {32: 4.0, 64: 6.0}
"""From here on erf is 1."""

_FAR: Final = {32: 14.0, 64: 38.0}
"""From here on gelu(-a) is no normal number."""


def erf(x: Vector) -> Vector:
    """1 - exp(-a G(a)) with the sign of x; a = |x|, G a polynomial."""
    a = at_most(abs(x), _ONE[x.format.bits])
    w = a * polynomial(a, ERF[x.format.bits])
    return copysign(below_one(w, 1), x)


def gelu(x: Vector) -> Vector:
    """x p below 0 and x (1 - p) above; p = exp(-a^2 / 2) H(t) / (a + 4), the normal tail.

    a = |x|, t = (a - 2) / (a + 4). The square's rounding goes into the exponential too.
    """
    a = at_most(abs(x), _FAR[x.format.bits])
    square = a * a
    e = exp_of_negative(square * 0.5, LIFT, fma(a, a, -square) * 0.5)
    d = a + 4
    p = e * polynomial((a - 2) / d, NORMAL[x.format.bits]) / d
    return where(x < 0, x * p * 2.0**-LIFT, x * fma(-p, 2.0**-LIFT, 1))
