"""Vectors of numbers while code is written: an operator emits its instruction, and no other.

No instruction carries a fast-math flag, so the results are those of IEEE arithmetic, in the order
and with the fused multiply-adds that the equations say.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from llvmlite import ir


class Format(NamedTuple):
    """A floating-point format: bits in all and of the fraction, and the exponent's offset."""

    bits: int
    fraction: int
    offset: int

    @property
    def integer(self) -> float:
        """Added to a small number and taken away again, it rounds to a whole number.

        What stands in the sum's lowest bits is that whole number.
        """
        return math.ldexp(1.5, self.fraction)

    def rounded(self, number: float) -> float:
        """The nearest number of this format."""
        if self.bits == 64 or not math.isfinite(number):
            return number
        try:
            return float(struct.unpack("f", struct.pack("f", number))[0])
        except OverflowError:
            return math.copysign(math.inf, number)

    def pattern(self, number: float) -> int:
        """The bits of a number, as a whole number."""
        codes = ("f", "I") if self.bits == 32 else ("d", "Q")
        return int(struct.unpack(codes[1], struct.pack(codes[0], number))[0])


SINGLE: Final = Format(32, 23, 127)
DOUBLE: Final = Format(64, 52, 1023)


def splat(kind: Any, pattern: str) -> Any:
    """A constant vector with this number in every lane."""
    constant = ir.FormattedConstant(kind, "zeroinitializer")
    constant.constant = f"splat ({kind.element} {pattern})"  # a vector's would be split into lanes
    return constant


@dataclass(frozen=True, eq=False)
class Value:
    """A vector of anything, and the builder that writes what is computed from it."""

    b: Any
    value: Any

    @property
    def kind(self) -> Any:
        """The vector's type."""
        return self.value.type

    @property
    def lanes(self) -> int:
        """How many numbers it holds."""
        return int(self.kind.count)


@dataclass(frozen=True, eq=False)
class Mask(Value):
    """Truths, one a lane."""

    def __and__(self, other: Mask) -> Mask:
        return Mask(self.b, self.b.and_(self.value, other.value))

    def __or__(self, other: Mask) -> Mask:
        return Mask(self.b, self.b.or_(self.value, other.value))

    def __xor__(self, other: Mask) -> Mask:
        return Mask(self.b, self.b.xor(self.value, other.value))

    def __invert__(self) -> Mask:
        return Mask(self.b, self.b.xor(self.value, splat(self.kind, "true")))

    def any(self) -> Any:
        """Whether one of them holds, as a truth value of LLVM."""
        whole = ir.IntType(self.lanes)
        return self.b.icmp_unsigned("!=", self.b.bitcast(self.value, whole), whole(0))


@dataclass(frozen=True, eq=False)
class Bits(Value):
    """Whole numbers as wide as the floating-point numbers whose bits they are."""

    def _with(self, write: Any, other: Bits | int) -> Bits:
        if isinstance(other, int):
            width = self.kind.element.width
            other = Bits(self.b, splat(self.kind, str(other % 2**width)))
        return Bits(self.b, write(self.value, other.value))

    def __add__(self, other: Bits | int) -> Bits:
        return self._with(self.b.add, other)

    def __sub__(self, other: Bits | int) -> Bits:
        return self._with(self.b.sub, other)

    def __rsub__(self, other: int) -> Bits:
        return self._with(lambda x, y: self.b.sub(y, x), other)

    def __and__(self, other: Bits | int) -> Bits:
        return self._with(self.b.and_, other)

    def __xor__(self, other: Bits | int) -> Bits:
        return self._with(self.b.xor, other)

    def __lshift__(self, other: int) -> Bits:
        return self._with(self.b.shl, other)

    def __rshift__(self, other: int) -> Bits:
        """Zeros come in from above."""
        return self._with(self.b.lshr, other)

    def odd(self) -> Mask:
        """In which lanes the lowest bit is 1."""
        return Mask(self.b, self.b.trunc(self.value, ir.VectorType(ir.IntType(1), self.lanes)))

    def number(self) -> Vector:
        """The floating-point numbers that have these bits."""
        element = ir.FloatType() if self.kind.element.width == 32 else ir.DoubleType()
        return Vector(self.b, self.b.bitcast(self.value, ir.VectorType(element, self.lanes)))


@dataclass(frozen=True, eq=False)
class Vector(Value):
    """Floating-point numbers. Comparisons with NaN are false, but for `!=`."""

    @property
    def format(self) -> Format:
        """The format of each number."""
        return SINGLE if isinstance(self.kind.element, ir.FloatType) else DOUBLE

    def constant(self, number: float) -> Vector:
        """A number in every lane, rounded to this format."""
        pattern = DOUBLE.pattern(self.format.rounded(number))
        return Vector(self.b, splat(self.kind, f"0x{pattern:016X}"))

    def _of(self, other: Vector | float) -> Any:
        return (other if isinstance(other, Vector) else self.constant(other)).value

    def __add__(self, other: Vector | float) -> Vector:
        return Vector(self.b, self.b.fadd(self.value, self._of(other)))

    def __sub__(self, other: Vector | float) -> Vector:
        return Vector(self.b, self.b.fsub(self.value, self._of(other)))

    def __rsub__(self, other: float) -> Vector:
        return self.constant(other) - self

    def __mul__(self, other: Vector | float) -> Vector:
        return Vector(self.b, self.b.fmul(self.value, self._of(other)))

    def __truediv__(self, other: Vector | float) -> Vector:
        return Vector(self.b, self.b.fdiv(self.value, self._of(other)))

    def __rtruediv__(self, other: float) -> Vector:
        return self.constant(other) / self

    def __neg__(self) -> Vector:
        return Vector(self.b, self.b.fneg(self.value))

    def __abs__(self) -> Vector:
        return intrinsic("llvm.fabs", self)

    def compare(self, how: str, other: Vector | float) -> Mask:
        """In which lanes a comparison (`<`, `==`, ...) holds."""
        write = self.b.fcmp_unordered if how == "!=" else self.b.fcmp_ordered
        return Mask(self.b, write(how, self.value, self._of(other)))

    def __lt__(self, other: Vector | float) -> Mask:
        return self.compare("<", other)

    def __le__(self, other: Vector | float) -> Mask:
        return self.compare("<=", other)

    def __gt__(self, other: Vector | float) -> Mask:
        return self.compare(">", other)

    def __ge__(self, other: Vector | float) -> Mask:
        return self.compare(">=", other)

    def widened(self) -> Vector:
        """The same numbers in double precision."""
        kind = ir.VectorType(ir.DoubleType(), self.lanes)
        return Vector(self.b, self.b.fpext(self.value, kind))

    def narrowed(self) -> Vector:
        """The nearest numbers of single precision."""
        kind = ir.VectorType(ir.FloatType(), self.lanes)
        return Vector(self.b, self.b.fptrunc(self.value, kind))

    def is_nan(self) -> Mask:
        """In which lanes there is no number."""
        return self.compare("!=", self)

    def bits(self) -> Bits:
        """The bits of each number."""
        kind = ir.VectorType(ir.IntType(self.format.bits), self.lanes)
        return Bits(self.b, self.b.bitcast(self.value, kind))


def intrinsic(name: str, *values: Vector) -> Vector:
    """One of LLVM's own functions that is one instruction on every machine here."""
    b, kind = values[0].b, values[0].kind
    name = f"{name}.v{kind.count}f{values[0].format.bits}"
    function = b.module.globals.get(name)
    if function is None:
        function = ir.Function(b.module, ir.FunctionType(kind, [kind] * len(values)), name)
    return Vector(b, b.call(function, [v.value for v in values]))


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
