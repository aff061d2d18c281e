"""What vectors are computed with beside operators: fused multiply-adds, choices, polynomials."""

from __future__ import annotations

from collections.abc import Sequence

from throughtime.compiler.llvm.vector import Mask, Vector, intrinsic


def fma(x: Vector, y: Vector | float, z: Vector | float) -> Vector:
    """x y + z, rounded once."""
    others = (v if isinstance(v, Vector) else x.constant(v) for v in (y, z))
    return intrinsic("llvm.fma", x, *others)


def sqrt(x: Vector) -> Vector:
    """The square root, rounded once."""
    return intrinsic("llvm.sqrt", x)


def copysign(x: Vector, sign: Vector) -> Vector:
    """x with the sign bit of another."""
    return intrinsic("llvm.copysign", x, sign)


def where(mask: Mask, x: Vector | float, y: Vector | float) -> Vector:
    """x where the mask holds, else y; one of them is a vector."""
    like = x if isinstance(x, Vector) else y
    assert isinstance(like, Vector)
    return Vector(like.b, like.b.select(mask.value, like._of(x), like._of(y)))


def at_most(x: Vector, high: Vector | float) -> Vector:
    """The smaller one; NaN in x stays."""
    return where(x > high, high, x)


def at_least(x: Vector, low: Vector | float) -> Vector:
    """The larger one; NaN in x stays."""
    return where(x < low, low, x)


def polynomial(x: Vector, coefficients: Sequence[float]) -> Vector:
    """c_0 + c_1 x + c_2 x^2 + ..., in pairs, and pairs of pairs, so that the chain is short."""
    terms: list[Vector | float] = list(coefficients)
    while len(terms) > 3:
        pairs = zip(terms[::2], terms[1::2], strict=False)
        joined: list[Vector | float] = [fma(x, high, low) for low, high in pairs]
        terms = joined + terms[len(terms) - len(terms) % 2 :]
        x = x * x
    result = terms.pop()
    while terms:
        result = fma(x, result, terms.pop())
    assert isinstance(result, Vector)
    return result
