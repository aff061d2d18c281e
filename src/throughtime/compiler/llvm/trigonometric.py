"""Sine and cosine of angles of any size, and the arc tangent."""

from __future__ import annotations

import math

from throughtime.compiler.llvm.angle import in_quarters
from throughtime.compiler.llvm.coefficients import ATAN, COS, SIN
from throughtime.compiler.llvm.instructions import copysign, fma, polynomial, where
from throughtime.compiler.llvm.vector import Vector


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
