"""log, log1p, and pow with a constant exponent.

x = 2^k m, sqrt(1/2) <= m < sqrt(2);  log(x) = k ln 2 + log(1 + f), f = m - 1
log(1 + f) = f - (f^2 / 2 - s (f^2 / 2 + s^2 L(s^2))), s = f / (2 + f)
"""

from __future__ import annotations

import math
from typing import Final

from throughtime.compiler.llvm.maths.coefficients import LOG, LOG_REST
from throughtime.compiler.llvm.maths.exponential import LN2, LN2_LOW, exp
from throughtime.compiler.llvm.values import (
    Bits,
    Format,
    Vector,
    copysign,
    fma,
    polynomial,
    sqrt,
    where,
)

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
    """The natural logarithm."""
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
