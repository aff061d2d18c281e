"""A region's call as torch's dispatcher may ask for it: looked at, prepared and run without Python.

The program of a call is whole numbers in a tensor (abi.py). It says which tensors the region reads
and how each must lie, which it writes, and where their addresses go. Each tensor is looked at
before its address is taken, for machine code believes the sizes.

Tensors are handles of torch's stable interface for other languages (its shim.h). Functions of torch
are called by their addresses in the module's table, which is filled when the module is loaded.
"""

from __future__ import annotations

from typing import Final

from llvmlite import ir

from throughtime.compiler.llvm.abi import ASKED, MOST_TENSORS, OBJECTS, PROGRAM, SPEC, Kind
from throughtime.compiler.llvm.product import LINE
from throughtime.compiler.llvm.values import I64, Num, Truth, where
from throughtime.compiler.llvm.writer import POINTER, VOID, Emit, Frame

TEXTS: Final = 2
"""That stand in the table."""

STRIDES: Final = SPEC.index("stride0") - SPEC.index("size0")


class Torch:
    """Calls of torch's functions in a function that is being written.

    Args:
        e: the function.
    """

    def __init__(self, e: Emit) -> None:
        self._e = e
        self._table = e.word(e.place(e.module.globals["table"]))
        self._out = room(e, 1)

    def call(self, name: str, *arguments: Num | int) -> Num:
        """What a function of the table returns: most say 0 if all went well."""
        return self._called(name, ir.IntType(32), arguments)

    def _called(self, name: str, result: ir.IntType, arguments: tuple[Num | int, ...]) -> Num:
        e = self._e
        place = ASKED.index(name) if name in ASKED else len(ASKED)  # "Python"
        values = [v.value if isinstance(v, Num) else I64(v) for v in arguments]
        function = e.foreign(e.word(self._table, place), result, [I64] * len(values))
        value = e.b.call(function, values)
        return Num(e.b, value if result is I64 else e.b.zext(value, I64))

    def ask(self, name: str, *arguments: Num | int) -> Num:
        """What it writes where its last argument points to; 0 if it writes nothing."""
        write(self._e, 0, self._out)
        self.call(name, *arguments, self._out)
        return self._e.word(self._out)

    def denies(self, name: str, *arguments: int) -> Truth:
        """Whether a function that answers yes or no says no."""
        return self._called(name, ir.IntType(8), arguments).compare("==", 0)

    def text(self, which: int) -> Num:
        """One of the texts behind the functions."""
        return self._e.word(self._table, len(ASKED) + 1 + which)

    def objects(self) -> Frame:
        """What is known of objects of Python, behind the texts."""
        return Frame(self._e, self._table + 8 * (len(ASKED) + 1 + TEXTS), OBJECTS)

    def given(self, name: str, *arguments: Num | int) -> Num:
        """What a function returns that gives an address, or a whole number."""
        return self._called(name, I64, arguments)

    def fail(self, text: Num) -> None:
        """Raise an error, which passes through this function: it must have nothing to give back."""
        self._e.function.attributes.add("uwtable")
        self.call("aoti_torch_check", 0, text, text, 0, text)

    def delete(self, tensor: Num) -> None:
        """Give back a handle, if it is one."""
        with self._e.when(tensor.compare("!=", 0)):
            self.call("aoti_torch_delete_tensor_object", tensor)

    def address(self, tensor: Num) -> Num:
        """Where a tensor's numbers begin."""
        return self.ask("aoti_torch_get_data_ptr", tensor)

    def allocate(self, bytes: Num) -> Num:
        """The address of new memory, no tensor; 0 if there is none."""
        return self.given("malloc", bytes)

    def free(self, address: Num) -> None:
        """Give such memory back."""
        self.call("free", address)

    def new(self, spec: Num, dtype: Num) -> Num:
        """A new tensor that lies as a spec says; 0 if there is no memory."""
        sizes = spec + 8 * SPEC.index("size0")
        dim, strides = self._e.word(spec), sizes + 8 * STRIDES
        return self.ask("aoti_torch_empty_strided", dim, sizes, strides, dtype, 0, 0)


def write(e: Emit, value: Num | int, address: Num) -> None:
    """Write one number."""
    e.b.store(value.value if isinstance(value, Num) else I64(value), e.pointer(address))


def room(e: Emit, count: int) -> Num:
    """The address of so many numbers of this function's own."""
    return e.place(e.b.alloca(ir.ArrayType(I64, count)))


def copy_bytes(e: Emit, to: Num, source: Num, bytes: Num) -> None:
    """Copy so many, to a place apart."""
    last = ir.IntType(1)
    copy = e.plain("llvm.memcpy.p0.p0.i64", VOID, [POINTER, POINTER, I64, last])
    e.b.call(copy, [e.pointer(to), e.pointer(source), bytes.value, last(0)])


class ProgramFrame(Frame):
    """The head of a program, and its lists, in a function that is being written."""

    def __init__(self, e: Emit, address: Num) -> None:
        super().__init__(e, address, PROGRAM)
        self.address = address

    def list(self, name: str) -> Num:
        """Where a list begins."""
        return self.address + self[f"{name}_at"] * 8

    def spec(self, name: str, place: Num) -> Num:
        """How one of the tensors lies that are read, or written."""
        return self.list(name) + place * (8 * len(SPEC))


def write_check(module: ir.Module, kind: Kind) -> Emit:
    """`check(program, spec, tensor, to)`: write a tensor's address there if it lies as it must.

    Else -1 is written. The address of a tensor without numbers is 0.
    """
    e = Emit(module, "check", kind, ("program", "spec", "tensor", "to"), internal=True)
    torch, p = Torch(e), ProgramFrame(e, e.args["program"])
    spec, tensor, to = (e.args[name] for name in ("spec", "tensor", "to"))
    s = Frame(e, spec, SPEC)
    write(e, -1, to)
    alike = torch.ask("aoti_torch_get_dim", tensor).compare("==", s["dim"])
    alike &= torch.ask("aoti_torch_get_dtype", tensor).compare("==", p["dtype"])
    alike &= torch.ask("aoti_torch_get_device_type", tensor).compare("==", 0)
    with e.when(alike):
        lies_so = _differences(e, torch, spec, tensor).compare("==", 0)
        first = torch.ask("aoti_torch_get_storage_offset", tensor) * p["bytes"]
        whole = torch.ask("aoti_torch_get_storage_size", tensor).compare(">=", first + s["extent"])
        with e.when(lies_so & whole):
            write(e, torch.address(tensor), to)
    return e.done()


def _differences(e: Emit, torch: Torch, spec: Num, tensor: Num) -> Num:
    """How many sizes of a tensor, or strides of more than one number, are not as the spec says."""
    sizes = torch.ask("aoti_torch_get_sizes", tensor)
    strides = torch.ask("aoti_torch_get_strides", tensor)
    wanted = spec + 8 * SPEC.index("size0")
    with e.loop(e.word(spec), e.number(0)) as k:
        size, stride = e.word(sizes, k.index), e.word(strides, k.index)
        apart = stride.compare("!=", e.word(wanted, k.index + STRIDES)) & size.compare("!=", 1)
        other = apart | size.compare("!=", e.word(wanted, k.index))
        k.next = [where(other, k.values[0] + 1, k.values[0])]
    count: Num = k.values[0]
    return count


def write_run(module: ir.Module, kind: Kind, check: Emit) -> Emit:
    """`run(program, tensors, result)`: look at the tensors, make what is written, call the region.

    Handles of the tensors made are put behind those of the tensors read. 1 is the result; or 0, if
    a tensor lies otherwise or there is no memory, and then there is nothing to give back.
    """
    e = Emit(module, "run", kind, ("program", "tensors", "result"), internal=True)
    torch, p, addresses = Torch(e), ProgramFrame(e, e.args["program"]), room(e, MOST_TENSORS)
    write(e, 0, e.args["result"])
    with e.when(_look(e, check, p, addresses).compare("==", 0)):
        made, memory = e.args["tensors"] + p["inputs"] * 8, _take_memory(e, torch, p)
        missing = where(memory.compare("==", 0), e.number(1), e.number(0))
        missing = missing + _make(e, torch, p, made, addresses + p["inputs"] * 8)
        with e.split(missing.compare("==", 0)) as (all_there, short):
            with all_there:
                _call(e, p, _whole_lines(memory + 8), addresses)
                write(e, 1, e.args["result"])
            with short, e.loop(p["outputs"]) as k:
                torch.delete(e.word(made, k.index))
        _give_memory(e, torch, memory)
    return e.done()


def _take_memory(e: Emit, torch: Torch, p: ProgramFrame) -> Num:
    """Memory for the block, and for what the region works in behind it; 0 if there is none.

    Fresh memory would cost more than a small call, so the last that was given back waits here. Its
    first number says how many bytes it has.
    """
    bytes = p["arena"] + _whole_lines(p["words"] * 8) + 2 * LINE
    waiting = _exchange(e, e.number(0))
    there = waiting.compare("!=", 0)
    size = e.choose(there, lambda: e.word(waiting), lambda: e.number(0))

    def new() -> Num:
        with e.when(there):
            torch.free(waiting)
        memory = torch.allocate(bytes)
        with e.when(memory.compare("!=", 0)):
            write(e, bytes, memory)
        return memory

    return e.choose(size >= bytes, lambda: waiting, new)


def _give_memory(e: Emit, torch: Torch, memory: Num) -> None:
    """Let memory wait for the next call, in place of what waits now."""
    with e.when(memory.compare("!=", 0)):
        waiting = _exchange(e, memory)
        with e.when(waiting.compare("!=", 0)):
            torch.free(waiting)


def _exchange(e: Emit, memory: Num) -> Num:
    """What waited until now; threads that come at once never get the same."""
    place = e.module.globals["waiting"]
    return Num(e.b, e.b.atomic_rmw("xchg", place, memory.value, "acq_rel"))


def _look(e: Emit, check: Emit, p: ProgramFrame, addresses: Num) -> Num:
    """Take the address of each tensor that is read; how many may not be."""
    with e.loop(p["inputs"], e.number(0)) as k:
        to, tensor = addresses + k.index * 8, e.word(e.args["tensors"], k.index)
        e.call(check, program=p.address, spec=p.spec("inputs", k.index), tensor=tensor, to=to)
        k.next = [where(e.word(to).compare("==", -1), k.values[0] + 1, k.values[0])]
    wrong: Num = k.values[0]
    return wrong


def _whole_lines(bytes: Num) -> Num:
    return (bytes + (LINE - 1)) // LINE * LINE


def _make(e: Emit, torch: Torch, p: ProgramFrame, tensors: Num, addresses: Num) -> Num:
    """Make each tensor that is written; for how many there was no memory."""
    with e.loop(p["outputs"], e.number(0)) as k:
        made = torch.new(p.spec("outputs", k.index), p["dtype"])
        there = made.compare("!=", 0)
        write(e, made, tensors + k.index * 8)
        address = e.choose(there, lambda: torch.address(made), lambda: e.number(0))
        write(e, address, addresses + k.index * 8)
        k.next = [where(there, k.values[0], k.values[0] + 1)]
    missing: Num = k.values[0]
    return missing


def _call(e: Emit, p: ProgramFrame, block: Num, addresses: Num) -> None:
    """Write the words and call the region."""
    words, arena = p.list("words"), block + _whole_lines(p["words"] * 8)
    with e.loop(p["words"]) as k:
        write(e, e.word(words, k.index), block + k.index * 8)
    for name, start in (("in_arena", arena), ("in_block", block)):
        places = p.list(name)
        with e.loop(p[name]) as k:
            at = block + e.word(places, k.index) * 8
            write(e, e.word(at) + start, at)
    places = p.list("places")
    with e.loop(p["places"]) as k:
        place, tensor, first = (e.word(places, k.index * 3 + i) for i in range(3))
        write(e, e.word(addresses, tensor) + first, block + place * 8)
    with e.split(p["on_team"].compare("==", 0)) as (alone, team):
        with alone:
            e.call_at(p["region"], ("block",), block=block)
        with team:
            e.call_at(p["on_team"], ("call", "argument"), call=p["call"], argument=block)
