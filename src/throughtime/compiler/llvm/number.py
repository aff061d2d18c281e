"""Whole numbers of a function that is being written: they add, multiply and compare."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

I64 = ir.IntType(64)


class Num:
    """A whole number of 64 bits, known when the function runs; addresses are numbers too."""

    __slots__ = ("b", "value")

    def __init__(self, b: ir.IRBuilder, value: Any) -> None:
        self.b = b
        self.value = value

    def _other(self, other: Num | int) -> Any:
        return other.value if isinstance(other, Num) else I64(other)

    def __add__(self, other: Num | int) -> Num:
        return Num(self.b, self.b.add(self.value, self._other(other)))

    def __sub__(self, other: Num | int) -> Num:
        return Num(self.b, self.b.sub(self.value, self._other(other)))

    def __mul__(self, other: Num | int) -> Num:
        return Num(self.b, self.b.mul(self.value, self._other(other)))

    def __floordiv__(self, other: Num | int) -> Num:
        """The quotient of numbers that are not negative."""
        return Num(self.b, self.b.udiv(self.value, self._other(other)))

    def __mod__(self, other: Num | int) -> Num:
        return Num(self.b, self.b.urem(self.value, self._other(other)))

    def compare(self, how: str, other: Num | int) -> Any:
        """A truth value of LLVM: how is <, <=, ==, !=, >= or >."""
        return self.b.icmp_signed(how, self.value, self._other(other))

    def choose(self, how: str, other: Num | int, yes: Num | int, no: Num | int) -> Num:
        """`yes` where the comparison holds, `no` elsewhere."""
        held = self.compare(how, other)
        return Num(self.b, self.b.select(held, self._other(yes), self._other(no)))

    def least(self, other: Num | int) -> Num:
        """The smaller of two."""
        return self.choose("<", other, self, other)

    def most(self, other: Num | int) -> Num:
        """The greater of two."""
        return self.choose(">", other, self, other)
