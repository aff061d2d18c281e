"""exp, and what is made of it: expm1, sigmoid, tanh, silu, softplus, elu, erf, gelu; log and pow.

    x = n ln 2 + r, |r| <= ln 2 / 2;  exp(x) = s (1 + v), s = 2^n, v = r + r^2 P(r)

n comes from adding a number so large that the sum has no room for a fraction; its lowest bits are
then n, and shifted into the place of the exponent they are s. Every lane takes the same path.

    x = 2^k m, sqrt(1/2) <= m < sqrt(2);  log(x) = k ln 2 + log(1 + f), f = m - 1
    log(1 + f) = f - (f^2 / 2 - s (f^2 / 2 + s^2 L(s^2))), s = f / (2 + f)
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from throughtime.compiler.llvm.maths import ERF, EXP, LOG, LOG1P, LOG_REST, NORMAL
from throughtime.compiler.llvm.values import (
    Bits,
    Format,
    Vector,
    at_least,
    at_most,
    copysign,
    fma,
    polynomial,
    sqrt,
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


_ROOT: Final = math.sqrt(0.5)


def exponent(x: Vector) -> tuple[Bits, Vector]:
    """k + offset as a whole number, and k, for a normal x > 0."""
    f = x.format
    field = x.bits() + (f.pattern(1) - f.pattern(_ROOT)) >> f.fraction
    big = f.integer + f.offset
    return field, (field + f.pattern(f.integer)).number() - big


def without_exponent(x: Vector, field: Bits) -> Vector:
    """x / 2^k."""
    f = x.format
    return (x.bits() - (field << f.fraction) + f.pattern(1)).number()


def lifted_to_normal(x: Vector) -> tuple[Vector, Vector]:
    """x, lifted to a normal number where it is none, and the power of two it was lifted by."""
    f = x.format
    tiny = x < math.ldexp(1, 1 - f.offset)
    lift = f.fraction + 2
    return where(tiny, x * math.ldexp(1, lift), x), where(tiny, lift, x.constant(0))


def _log(k: Vector, f: Vector) -> Vector:
    """k ln 2 + log(1 + f)."""
    high = f.format.rounded(LN2)
    s = f / (f + 2)
    z = s * s
    half = f * 0.5 * f
    low = fma(k, LN2 - high + LN2_LOW, s * fma(z, polynomial(z, LOG[f.format.bits]), half))
    return fma(k, high, f - (half - low))


def at_the_ends(y: Vector, x: Vector) -> Vector:
    """The logarithm of zero, of what is below, and of what is no finite number."""
    y = where(x < math.inf, y, x)
    y = where(x.compare("==", 0), -math.inf, y)
    return where(x < 0, math.nan, y)


def log(x: Vector) -> Vector:
    lifted, lift = lifted_to_normal(x)
    field, k = exponent(lifted)
    y = _log(k - lift, without_exponent(lifted, field) - 1)
    return at_the_ends(y, x)


def log1p(x: Vector) -> Vector:
    """log(1 + x): k from 1 + x, and f = x / 2^k + (1 / 2^k - 1), which loses nothing of x."""
    f: Format = x.format
    u = x + 1
    field, k = exponent(u)
    power = ((2 * f.offset - field) << f.fraction).number()
    power = where(k > f.offset - 2, 0, power)
    y = _log(k, without_exponent(x, field) + (power - 1))
    return copysign(at_the_ends(y, u), x)


_LN2_SHORT: Final = math.ldexp(math.floor(math.ldexp(LN2, 42)), -42)
"""The first 42 bits of ln 2: times a power of two's exponent it is exact."""

_THIRDS: Final = (2 / 3, math.ldexp(1, -54) * 2 / 3)
"""2 / 3 as a double, and what that leaves over."""


def power(x: Vector, to: float) -> Vector:
    """x to a constant exponent: small whole ones by products, halves by a root, others by log."""
    e = x.format.rounded(float(to))
    if e == 0:
        return x.constant(1)
    if abs(e) == 0.5:
        return sqrt(x) if e > 0 else 1 / sqrt(x)
    if e in (-3, -2, -1):
        return _product(1 / x, int(-e))
    if e in range(1, 7):
        return _product(x, int(e))
    return _by_logarithm(x, e)


def _product(x: Vector, n: int) -> Vector:
    """x^n = (x^2)^(n // 2), once more x if n is odd."""
    if n == 1:
        return x
    y = _product(x * x, n // 2)
    return y * x if n % 2 else y


def _by_logarithm(x: Vector, e: float) -> Vector:
    """exp(e log |x|), with the sign of x for odd e and NaN below 0 for a broken e."""
    a = abs(x)
    if x.format.bits == 32:
        y = exp(log(a.widened()) * e).narrowed()
    else:
        y = _in_pairs(a, e)
    if not math.isfinite(e):
        return where((x if math.isnan(e) else a).compare("==", 1), 1, y)
    if not e.is_integer():
        return where((x < 0) & (a < math.inf), math.nan, y)
    return copysign(y, x) if e % 2 else y


def _in_pairs(a: Vector, e: float) -> Vector:
    """exp(e log a), the logarithm and its product with e kept as sums of two numbers."""
    high, low = _log_pair(a)
    y = high * e
    rest = fma(low, e, fma(high, e, -y))
    return exp(y, where(abs(y) < math.inf, rest, 0))


def _log_pair(a: Vector) -> tuple[Vector, Vector]:
    """log(a) = k ln 2 + 2 s + 2 s^3 / 3 + s^5 (2 / 5 + ...), all but the last term in pairs."""
    lifted, lift = lifted_to_normal(a)
    field, k = exponent(lifted)
    k = k - lift
    f = without_exponent(lifted, field) - 1
    d = f + 2
    s = f / d
    s_low = fma(-s, f - (d - 2), fma(-s, d, f)) / d
    z = s * s
    z_low = fma(s + s, s_low, fma(s, s, -z))
    c = s * z
    c_low = fma(s_low, z, fma(s, z_low, fma(s, z, -c)))
    third = c * _THIRDS[0]
    third_low = fma(c_low, _THIRDS[0], fma(c, _THIRDS[1], fma(c, _THIRDS[0], -third)))
    rest = fma(c * z, polynomial(z, LOG_REST[64]), third_low)
    whole = k * _LN2_SHORT
    one = whole + (s + s)
    high = one + third
    rest = rest + (third - (high - one)) + ((s + s) - (one - whole))
    rest = rest + fma(k, LN2 - _LN2_SHORT + LN2_LOW, s_low + s_low)
    return at_the_ends(high, a), rest
