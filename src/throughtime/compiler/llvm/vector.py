"""Vectors of numbers while code is written: an operator emits its instruction, and no other.

No instruction carries a fast-math flag, so the results are those of IEEE arithmetic, in the order
and with the fused multiply-adds that the equations say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from throughtime.compiler.llvm.format import DOUBLE, SINGLE, Format


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
