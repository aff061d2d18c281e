"""The arc tangent. sin and cos are left to torch: arguments of any size need many more digits."""

from __future__ import annotations

import math

from throughtime.compiler.llvm.coefficients import ATAN
from throughtime.compiler.llvm.instructions import copysign, fma, polynomial, where
from throughtime.compiler.llvm.vector import Vector


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
