"""log and log1p.

x = 2^k m, sqrt(1/2) <= m < sqrt(2);  log(x) = k ln 2 + log(1 + f), f = m - 1
log(1 + f) = f - (f^2 / 2 - s (f^2 / 2 + s^2 L(s^2))), s = f / (2 + f)
"""

from __future__ import annotations

import math
from typing import Final

from throughtime.compiler.llvm.coefficients import LOG
from throughtime.compiler.llvm.exponential import LN2, LN2_LOW
from throughtime.compiler.llvm.format import Format
from throughtime.compiler.llvm.instructions import copysign, fma, polynomial, where
from throughtime.compiler.llvm.vector import Bits, Vector

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
