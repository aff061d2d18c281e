"""What belongs to the normal distribution: erf and gelu."""

from __future__ import annotations

from typing import Final

from throughtime.compiler.llvm.coefficients import ERF, NORMAL
from throughtime.compiler.llvm.exponential import LIFT, below_one, exp_of_negative
from throughtime.compiler.llvm.instructions import at_most, copysign, fma, polynomial, where
from throughtime.compiler.llvm.vector import Vector

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
