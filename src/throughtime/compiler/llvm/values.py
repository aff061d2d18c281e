"""Numbers, truths and vectors while code is written: an operator emits its instruction.

No instruction carries a fast-math flag, so the results are those of IEEE arithmetic, in the order
and with the fused multiply-adds that the equations say.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Self, TypeVar, overload

from llvmlite import ir

I64: Final = ir.IntType(64)


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
    """What a piece of code computes, and the builder that writes what follows from it."""

    b: Any
    value: Any

    @property
    def kind(self) -> Any:
        return self.value.type

    @property
    def lanes(self) -> int:
        """How many numbers a vector holds."""
        return int(self.kind.count)

    def like(self, value: Any) -> Self:
        return type(self)(self.b, value)

    def of(self, other: Any) -> Any:
        """LLVM's value of a value, or of a number that is known now."""
        return other.value if isinstance(other, Value) else self.kind(other)


class Truth(Value):
    """Whether something holds."""

    def __and__(self, other: Self) -> Self:
        return self.like(self.b.and_(self.value, other.value))

    def __or__(self, other: Self) -> Self:
        return self.like(self.b.or_(self.value, other.value))


class Num(Value):
    """A whole number of 64 bits; addresses are numbers too."""

    def __add__(self, other: Num | int) -> Num:
        return self.like(self.b.add(self.value, self.of(other)))

    def __sub__(self, other: Num | int) -> Num:
        return self.like(self.b.sub(self.value, self.of(other)))

    def __mul__(self, other: Num | int) -> Num:
        return self.like(self.b.mul(self.value, self.of(other)))

    def __floordiv__(self, other: Num | int) -> Num:
        """The quotient of numbers that are not negative."""
        return self.like(self.b.udiv(self.value, self.of(other)))

    def __mod__(self, other: Num | int) -> Num:
        return self.like(self.b.urem(self.value, self.of(other)))

    def compare(self, how: str, other: Num | int) -> Truth:
        """Whether a comparison (`<`, `==`, ...) holds."""
        return Truth(self.b, self.b.icmp_signed(how, self.value, self.of(other)))

    def __lt__(self, other: Num | int) -> Truth:
        return self.compare("<", other)

    def __le__(self, other: Num | int) -> Truth:
        return self.compare("<=", other)

    def __gt__(self, other: Num | int) -> Truth:
        return self.compare(">", other)

    def __ge__(self, other: Num | int) -> Truth:
        return self.compare(">=", other)

    def least(self, other: Num | int) -> Num:
        return where(self < other, self, other)

    def most(self, other: Num | int) -> Num:
        return where(self > other, self, other)


class Mask(Truth):
    """Truths, one a lane."""

    def __xor__(self, other: Mask) -> Mask:
        return self.like(self.b.xor(self.value, other.value))

    def __invert__(self) -> Mask:
        return self.like(self.b.xor(self.value, splat(self.kind, "true")))

    def any(self) -> Truth:
        """Whether one of them holds."""
        whole = ir.IntType(self.lanes)
        return Truth(
            self.b, self.b.icmp_unsigned("!=", self.b.bitcast(self.value, whole), whole(0))
        )


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

    def __or__(self, other: Bits) -> Bits:
        return self._with(self.b.or_, other)

    def __xor__(self, other: Bits | int) -> Bits:
        return self._with(self.b.xor, other)

    def __lshift__(self, other: int) -> Bits:
        return self._with(self.b.shl, other)

    def __rshift__(self, other: int) -> Bits:
        """Zeros come in from above."""
        return self._with(self.b.lshr, other)

    def nonzero(self) -> Mask:
        """In which lanes a bit is 1."""
        return Mask(self.b, self.b.icmp_signed("!=", self.value, self.kind([0] * self.lanes)))

    def odd(self) -> Mask:
        """In which lanes the lowest bit is 1."""
        return Mask(self.b, self.b.trunc(self.value, ir.VectorType(ir.IntType(1), self.lanes)))

    def number(self) -> Vector:
        """The floating-point numbers that have these bits."""
        element = ir.FloatType() if self.kind.element.width == 32 else ir.DoubleType()
        return Vector(self.b, self.b.bitcast(self.value, ir.VectorType(element, self.lanes)))


class Real(Value):
    """A floating-point number. Comparisons with NaN are false, but for `!=`."""

    @property
    def format(self) -> Format:
        """The format of each number."""
        element = getattr(self.kind, "element", self.kind)
        return SINGLE if isinstance(element, ir.FloatType) else DOUBLE

    def constant(self, number: float) -> Self:
        """A number, in every lane of a vector, rounded to this format."""
        return self.like(self.kind(self.format.rounded(number)))

    def of(self, other: Any) -> Any:
        """LLVM's value of a value, or of a number that is known now."""
        return (other if isinstance(other, Value) else self.constant(other)).value

    def __add__(self, other: Self | float) -> Self:
        return self.like(self.b.fadd(self.value, self.of(other)))

    def __sub__(self, other: Self | float) -> Self:
        return self.like(self.b.fsub(self.value, self.of(other)))

    def __rsub__(self, other: float) -> Self:
        return self.constant(other) - self

    def __mul__(self, other: Self | float) -> Self:
        return self.like(self.b.fmul(self.value, self.of(other)))

    def __truediv__(self, other: Self | float) -> Self:
        return self.like(self.b.fdiv(self.value, self.of(other)))

    def __rtruediv__(self, other: float) -> Self:
        return self.constant(other) / self

    def __neg__(self) -> Self:
        return self.like(self.b.fneg(self.value))

    def __gt__(self, other: Self | float) -> Truth:
        return Truth(self.b, self._compared(">", other))

    def _compared(self, how: str, other: Self | float) -> Any:
        write = self.b.fcmp_unordered if how == "!=" else self.b.fcmp_ordered
        return write(how, self.value, self.of(other))

    def _kind(self, element: Any) -> Any:
        """A type of as many numbers."""
        return element

    def widened(self) -> Self:
        """The same in double precision."""
        wide = self.format is DOUBLE
        return self if wide else self.like(self.b.fpext(self.value, self._kind(ir.DoubleType())))

    def narrowed(self) -> Self:
        """The nearest in single precision."""
        return self.like(self.b.fptrunc(self.value, self._kind(ir.FloatType())))


class Vector(Real):
    """Floating-point numbers, as many as a register holds or, on the way, fewer or wider ones."""

    def constant(self, number: float) -> Vector:
        """A number in every lane, rounded to this format."""
        pattern = DOUBLE.pattern(self.format.rounded(number))
        return self.like(splat(self.kind, f"0x{pattern:016X}"))

    def compare(self, how: str, other: Vector | float) -> Mask:
        """In which lanes a comparison (`<`, `==`, ...) holds."""
        return Mask(self.b, self._compared(how, other))

    def __abs__(self) -> Vector:
        return intrinsic("llvm.fabs", self)

    def __lt__(self, other: Vector | float) -> Mask:
        return self.compare("<", other)

    def __le__(self, other: Vector | float) -> Mask:
        return self.compare("<=", other)

    def __gt__(self, other: Vector | float) -> Mask:
        return self.compare(">", other)

    def __ge__(self, other: Vector | float) -> Mask:
        return self.compare(">=", other)

    def _kind(self, element: Any) -> Any:
        return ir.VectorType(element, self.lanes)

    def is_nan(self) -> Mask:
        """In which lanes there is no number."""
        return self.compare("!=", self)

    def bits(self) -> Bits:
        """The bits of each number."""
        kind = ir.VectorType(ir.IntType(self.format.bits), self.lanes)
        return Bits(self.b, self.b.bitcast(self.value, kind))

    def first(self) -> Real:
        """The number of the first lane."""
        return Real(self.b, self.b.extract_element(self.value, ir.IntType(32)(0)))

    def shuffled(self, places: Sequence[int], other: Vector | None = None) -> Vector:
        """The numbers of these places, those of the other vector counted on from this one's."""
        mask = ir.VectorType(ir.IntType(32), len(places))(list(places))
        second = self.value if other is None else other.value
        return self.like(self.b.shuffle_vector(self.value, second, mask))


Numbers = TypeVar("Numbers", Vector, Real)


def intrinsic(name: str, *values: Numbers) -> Numbers:
    """One of LLVM's own functions that is one instruction on every machine here."""
    b, kind, bits = values[0].b, values[0].kind, values[0].format.bits
    name = f"{name}.v{kind.count}f{bits}" if isinstance(values[0], Vector) else f"{name}.f{bits}"
    function = b.module.globals.get(name)
    if function is None:
        function = ir.Function(b.module, ir.FunctionType(kind, [kind] * len(values)), name)
    return values[0].like(b.call(function, [v.value for v in values]))


def fma(x: Vector, y: Vector | float, z: Vector | float) -> Vector:
    """x y + z, rounded once."""
    others = (v if isinstance(v, Vector) else x.constant(v) for v in (y, z))
    return intrinsic("llvm.fma", x, *others)


def sqrt(x: Numbers) -> Numbers:
    return intrinsic("llvm.sqrt", x)


def copysign(x: Vector, sign: Vector) -> Vector:
    """x with the sign bit of another."""
    return intrinsic("llvm.copysign", x, sign)


Some = TypeVar("Some", Num, Vector, Real)


@overload
def where(held: Truth, x: Some, y: Some | float) -> Some: ...


@overload
def where(held: Truth, x: float, y: Some) -> Some: ...


def where(held: Truth, x: Any, y: Any) -> Any:
    """x where it holds, else y; one of them is a value, the other may be a number."""
    like = x if isinstance(x, Value) else y
    return like.like(held.b.select(held.value, like.of(x), like.of(y)))


def at_most(x: Numbers, high: Numbers | float) -> Numbers:
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
