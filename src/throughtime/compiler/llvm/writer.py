"""A notation for LLVM functions: numbers that add and compare, loops, vectors in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

from throughtime.compiler.llvm.arguments import COMMON, DIRECTION
from throughtime.compiler.llvm.sizes import Kind

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


POINTER = ir.PointerType()
VOID = ir.VoidType()


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


class Emit:
    """One function while it is written.

    Args:
        module: where it goes.
        name: its name there.
        kind: the numbers it computes with.
        arguments: names of its arguments, whole numbers all; `self.given` holds them by name.
        internal: whether only functions of the module call it.
    """

    def __init__(
        self, module: ir.Module, name: str, kind: Kind, arguments: Sequence[str],
        internal: bool = False,
    ) -> None:  # fmt: skip
        self.module = module
        self.kind = kind
        self.function = ir.Function(module, ir.FunctionType(VOID, [I64] * len(arguments)), name)
        self.function.linkage = "internal" if internal else ""
        self.b = ir.IRBuilder(self.function.append_basic_block("entry"))
        self.given = {
            word: Num(self.b, value)
            for word, value in zip(arguments, self.function.args, strict=True)
        }

    def either(self, held: Any, yes: Num, no: Num) -> Num:
        """`yes` where a truth value of LLVM holds, `no` elsewhere."""
        return Num(self.b, self.b.select(held, yes.value, no.value))

    def number(self, value: int) -> Num:
        """A number known now."""
        return Num(self.b, I64(value))

    def pointer(self, address: Num) -> Any:
        """An address as LLVM wants it."""
        return self.b.inttoptr(address.value, POINTER)

    def word(self, address: Num, index: int = 0) -> Num:
        """The whole number in memory, `index` numbers behind an address."""
        return Num(self.b, self.b.load(self.pointer(address + 8 * index), typ=I64))

    def real(self, address: Num) -> Any:
        """One number in memory."""
        return self.b.load(self.pointer(address), typ=self.kind.real, align=self.kind.bytes)

    def put_real(self, value: Any, address: Num) -> None:
        """Write one number."""
        self.b.store(value, self.pointer(address), align=self.kind.bytes)

    def load(self, address: Num) -> Any:
        """A vector in memory, aligned as its numbers are."""
        return self.b.load(self.pointer(address), typ=self.kind.vector, align=self.kind.bytes)

    def store(self, value: Any, address: Num) -> None:
        """Write a vector."""
        self.b.store(value, self.pointer(address), align=self.kind.bytes)

    def zero(self) -> Any:
        """A vector of zeros."""
        return self.kind.vector([0.0] * self.kind.lanes)

    def splat(self, value: Any) -> Any:
        """A vector of one number."""
        one = ir.IntType(32)
        undefined = self.kind.vector(ir.Undefined)
        first = self.b.insert_element(undefined, value, one(0))
        mask = ir.VectorType(one, self.kind.lanes)([0] * self.kind.lanes)
        return self.b.shuffle_vector(first, undefined, mask)

    def fma(self, x: Any, y: Any, z: Any) -> Any:
        """x y + z, rounded once."""
        return self.b.call(self.intrinsic("fma", x.type, [x.type] * 3), [x, y, z])

    def intrinsic(
        self, name: str, result: Any, arguments: list[Any], suffix: str = ""
    ) -> ir.Function:
        """LLVM's own function of this name on vectors."""
        full = f"llvm.{name}.v{self.kind.lanes}f{8 * self.kind.bytes}{suffix}"
        return self.plain(full, result, arguments)

    def plain(self, name: str, result: Any, arguments: list[Any]) -> ir.Function:
        """LLVM's own function of this full name."""
        found = self.module.globals.get(name)
        return found or ir.Function(self.module, ir.FunctionType(result, arguments), name)

    @contextmanager
    def loop(
        self, count: Num, *carried: Any, start: Num | int = 0, step: Num | int = 1
    ) -> Iterator[Loop]:
        """Run the body for index = start, start + step, ... below count.

        The body sets `loop.next` to what the carried values become; behind the loop,
        `loop.values` are what they have become.
        """
        b, function = self.b, self.function
        before = b.block
        body, after = (function.append_basic_block(n) for n in ("body", "after"))
        first = start.value if isinstance(start, Num) else I64(start)
        b.cbranch(b.icmp_signed("<", first, count.value), body, after)
        b.position_at_end(body)
        index = b.phi(I64)
        index.add_incoming(first, before)
        values = [b.phi(v.type) for v in carried]
        for phi, value in zip(values, carried, strict=True):
            phi.add_incoming(value, before)
        loop = Loop(Num(b, index), list(values))
        yield loop
        following = b.add(index, step.value if isinstance(step, Num) else I64(step))
        last = b.block
        b.cbranch(b.icmp_signed("<", following, count.value), body, after)
        index.add_incoming(following, last)
        b.position_at_end(after)
        loop.values = [b.phi(v.type) for v in carried]
        for phi, inside, value, new in zip(loop.values, values, carried, loop.next, strict=True):
            inside.add_incoming(new, last)
            phi.add_incoming(value, before)
            phi.add_incoming(new, last)

    @contextmanager
    def when(self, held: Any) -> Iterator[None]:
        """Run the body where a truth value of LLVM holds."""
        with self.b.if_then(held):
            yield

    def call(self, function: Emit, **arguments: Num | int) -> None:
        """Call a function of this module; each of its arguments by name, no other."""
        self.b.call(function.function, _in_order(tuple(function.given), arguments))

    def call_at(self, address: Num, names: Sequence[str], **arguments: Num | int) -> None:
        """Call a function that takes whole numbers of these names, by its address."""
        function = self.foreign(address, VOID, [I64] * len(names))
        self.b.call(function, _in_order(names, arguments))

    def passed_on(self, *names: str) -> dict[str, Num]:
        """Arguments of this function, for one that it calls."""
        return {name: self.given[name] for name in names}

    def foreign(self, address: Num, result: Any, arguments: Sequence[Any]) -> Any:
        """A function that this module does not hold, by its address."""
        return _Function(self.pointer(address), ir.FunctionType(result, arguments))

    def done(self) -> ir.Function:
        """The function, finished."""
        self.b.ret_void()
        return self.function


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


def common(e: Emit) -> Frame:
    """The common part, in a function whose first argument is `block`."""
    return Frame(e, e.given["block"], COMMON)


def direction(e: Emit, d: Num) -> Frame:
    """The part of one direction."""
    address = e.given["block"] + (d * len(DIRECTION) + len(COMMON)) * 8
    return Frame(e, address, DIRECTION)
