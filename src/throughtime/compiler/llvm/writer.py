"""LLVM functions while they are written: loops, branches, memory and calls, on values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from llvmlite import ir

from throughtime.compiler.llvm.abi import COMMON, DIRECTION, Kind
from throughtime.compiler.llvm.values import I64, Bits, Num, Real, Truth, Value, Vector

POINTER = ir.PointerType()
VOID = ir.VoidType()
NEAREST, SECOND = 3, 2
"""Caches, as LLVM's prefetch numbers them."""


class _Function:
    """An address with the type that llvmlite asks of what is called."""

    def __init__(self, pointer: Any, function_type: ir.FunctionType) -> None:
        self.type, self.function_type = pointer.type, function_type
        self.get_reference = pointer.get_reference


class Loop:
    """A loop being written: its index, the values it carries, and what they become."""

    def __init__(self, index: Num, values: list[Any]) -> None:
        self.index = index
        self.values = values
        self.next: list[Any] = values


Some = TypeVar("Some", bound=Value)


class Emit:
    """One function while it is written.

    Args:
        module: where it goes.
        name: its name there.
        kind: the numbers it computes with.
        arguments: names of its arguments, whole numbers all; `self.args` holds them by name.
        internal: whether only functions of the module call it.
        gives: whether it returns a whole number.
    """

    def __init__(
        self, module: ir.Module, name: str, kind: Kind, arguments: Sequence[str],
        internal: bool = False, gives: bool = False,
    ) -> None:  # fmt: skip
        self.module = module
        self.kind = kind
        function_type = ir.FunctionType(I64 if gives else VOID, [I64] * len(arguments))
        self.function = ir.Function(module, function_type, name)
        self.function.linkage = "internal" if internal else ""
        self.b = ir.IRBuilder(self.function.append_basic_block("entry"))
        self.args = {
            word: Num(self.b, value)
            for word, value in zip(arguments, self.function.args, strict=True)
        }

    def number(self, value: int) -> Num:
        """A number known now."""
        return Num(self.b, I64(value))

    def place(self, pointer: Any) -> Num:
        """The address of what LLVM points to: a table, or memory of this function."""
        return Num(self.b, self.b.ptrtoint(pointer, I64))

    def pointer(self, address: Num) -> Any:
        """An address as LLVM wants it."""
        return self.b.inttoptr(address.value, POINTER)

    def word(self, address: Num, index: Num | int = 0) -> Num:
        """The whole number in memory, `index` numbers after an address."""
        return Num(self.b, self.b.load(self.pointer(address + index * 8), typ=I64))

    def real(self, address: Num) -> Real:
        return Real(self.b, self._loaded(address, self.kind.real))

    def load(self, address: Num) -> Vector:
        """A vector in memory, aligned as its numbers are."""
        return Vector(self.b, self._loaded(address, self.kind.vector))

    def bits(self, address: Num) -> Bits:
        """The bits of a vector in memory."""
        kind = ir.VectorType(ir.IntType(8 * self.kind.bytes), self.kind.lanes)
        return Bits(self.b, self._loaded(address, kind))

    def _loaded(self, address: Num, kind: Any) -> Any:
        return self.b.load(self.pointer(address), typ=kind, align=self.kind.bytes)

    def store(self, value: Real, address: Num) -> None:
        self.b.store(value.value, self.pointer(address), align=self.kind.bytes)

    def constant(self, number: float) -> Vector:
        """A vector of one number that is known now."""
        return Vector(self.b, self.kind.vector([number] * self.kind.lanes))

    def scalar(self, number: float) -> Real:
        """One floating-point number that is known now."""
        return Real(self.b, self.kind.real(number))

    def spread(self, value: Real) -> Vector:
        """A vector of one number."""
        one = ir.IntType(32)
        undefined = self.kind.vector(ir.Undefined)
        first = self.b.insert_element(undefined, value.value, one(0))
        mask = ir.VectorType(one, self.kind.lanes)([0] * self.kind.lanes)
        return Vector(self.b, self.b.shuffle_vector(first, undefined, mask))

    def converted(self, number: Num) -> Real:
        """A whole number as a floating-point number."""
        return Real(self.b, self.b.sitofp(number.value, self.kind.real))

    def masked(self, what: str, result: Any, arguments: list[Any]) -> ir.Function:
        """LLVM's own function that loads or stores some lanes of a vector."""
        kind = f"v{self.kind.lanes}f{8 * self.kind.bytes}.p0"
        return self.plain(f"llvm.masked.{what}.{kind}", result, arguments)

    def fetch(self, address: Num, level: int) -> None:
        """Ask for a line of memory, to be read, into a cache: NEAREST or SECOND."""
        number = ir.IntType(32)
        function = self.plain("llvm.prefetch.p0", VOID, [POINTER, number, number, number])
        self.b.call(function, [self.pointer(address), number(0), number(level), number(1)])

    def plain(self, name: str, result: Any, arguments: list[Any]) -> ir.Function:
        """LLVM's own function of this full name."""
        known = self.module.globals.get(name)
        return known or ir.Function(self.module, ir.FunctionType(result, arguments), name)

    @contextmanager
    def loop(
        self, count: Num, *carried: Value, start: Num | int = 0, step: Num | int = 1
    ) -> Iterator[Loop]:
        """Run the body for index = start, start + step, ... below count.

        The body sets `loop.next` to what the carried values become; after the loop,
        `loop.values` are what they have become.
        """
        b, function = self.b, self.function
        before = b.block
        body, after = (function.append_basic_block(n) for n in ("body", "after"))
        first = count.of(start)
        b.cbranch(b.icmp_signed("<", first, count.value), body, after)
        b.position_at_end(body)
        index = self._phi(count, (first, before))
        values = [self._phi(v, (v.value, before)) for v in carried]
        loop = Loop(index, list(values))
        yield loop
        following = b.add(index.value, count.of(step))
        last = b.block
        b.cbranch(b.icmp_signed("<", following, count.value), body, after)
        index.value.add_incoming(following, last)
        b.position_at_end(after)
        for inside, new in zip(values, loop.next, strict=True):
            inside.value.add_incoming(new.value, last)
        loop.values = [
            self._phi(v, (v.value, before), (new.value, last))
            for v, new in zip(carried, loop.next, strict=True)
        ]

    def _phi(self, like: Some, *incoming: tuple[Any, Any]) -> Some:
        """A value that is each of some in turn, by the block that the code comes from."""
        phi = self.b.phi(like.kind)
        for value, block in incoming:
            phi.add_incoming(value, block)
        return like.like(phi)

    @contextmanager
    def when(self, held: Truth) -> Iterator[None]:
        with self.b.if_then(held.value):
            yield

    def split(self, held: Truth) -> Any:
        """Two bodies: one where something holds, the other where it does not."""
        return self.b.if_else(held.value)

    def choose(self, held: Truth, yes: Callable[[], Some], no: Callable[[], Some]) -> Some:
        """What one of two pieces of code computes: only that one runs."""
        with self.split(held) as (first, second):
            with first:
                one, here = yes(), self.b.block
            with second:
                other, there = no(), self.b.block
        return self._phi(one, (one.value, here), (other.value, there))

    def call(self, function: Emit, **arguments: Num | int) -> None:
        """Call a function of this module; each of its arguments by name, no other."""
        self.b.call(function.function, _in_order(tuple(function.args), arguments))

    def call_at(self, address: Num, names: Sequence[str], **arguments: Num | int) -> None:
        """Call a function that takes whole numbers of these names, by its address."""
        function = self.foreign(address, VOID, [I64] * len(names))
        self.b.call(function, _in_order(names, arguments))

    def passed_on(self, *names: str) -> dict[str, Num]:
        """Arguments of this function, for one that it calls."""
        return {name: self.args[name] for name in names}

    def foreign(self, address: Num, result: Any, arguments: Sequence[Any]) -> Any:
        """A function that this module does not hold, by its address."""
        return _Function(self.pointer(address), ir.FunctionType(result, arguments))

    def done(self, result: Num | None = None) -> Emit:
        """The function, finished, with what it returns."""
        if result is None:
            self.b.ret_void()
        else:
            self.b.ret(result.value)
        return self


def _in_order(names: Sequence[str], arguments: Mapping[str, Num | int]) -> list[Any]:
    """The values of arguments, as the function takes them."""
    assert set(names) == arguments.keys(), f"takes {sorted(names)}, is given {sorted(arguments)}"
    return [v.value if isinstance(v, Num) else I64(v) for v in map(arguments.__getitem__, names)]


class Frame:
    """Numbers of a block by name, in a function that is being written."""

    def __init__(self, e: Emit, address: Num, names: tuple[str, ...]) -> None:
        self._e, self._address = e, address
        self._index = {name: i for i, name in enumerate(names)}

    def __getitem__(self, name: str) -> Num:
        return self._e.word(self._address, self._index[name])

    def __setitem__(self, name: str, value: Num) -> None:
        place = self._address + self._index[name] * 8
        self._e.b.store(value.value, self._e.pointer(place))


def common(e: Emit) -> Frame:
    """The common part, in a function whose first argument is `block`."""
    return Frame(e, e.args["block"], COMMON)


def direction(e: Emit, d: Num) -> Frame:
    """The part of one direction."""
    address = e.args["block"] + (d * len(DIRECTION) + len(COMMON)) * 8
    return Frame(e, address, DIRECTION)


def begin(
    module: ir.Module, name: str, kind: Kind, arguments: Sequence[str]
) -> tuple[Emit, Frame, Frame, dict[str, Num]]:
    """A function that regions call, to be written: of `block`, `d` and these arguments.

    Returns:
        The function, the common numbers, those of the direction d, and the arguments.
    """
    e = Emit(module, name, kind, ("block", "d", *arguments), internal=True)
    return e, common(e), direction(e, e.args["d"]), e.args
