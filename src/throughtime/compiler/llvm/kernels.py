"""Kernels for torch's recurrent operator, as its dispatcher calls them: forward and backward.

A kernel finds its arguments on a stack of numbers. They are its own: it gives back each handle, and
leaves its results in their place. The program of the call comes as `dropout_state`, an argument
that torch's node saves and never looks at. Calls without a gradient pass the dispatcher by: Python
calls a kernel as a built-in function.
"""

from __future__ import annotations

from collections.abc import Sequence

from llvmlite import ir

from throughtime.compiler.llvm.abi import (
    GRADIENT_STACK,
    IN_PYTHON,
    MAGIC,
    MOST_TENSORS,
    PROGRAM,
    STACK,
    Kind,
)
from throughtime.compiler.llvm.program import (
    ProgramFrame,
    Torch,
    copy_bytes,
    room,
    write,
    write_check,
    write_run,
)
from throughtime.compiler.llvm.values import I64, Num, Truth, where
from throughtime.compiler.llvm.writer import Emit, Frame


class Given:
    """The arguments of a kernel, by name.

    Attributes:
        torch: calls of its functions.
        tensors: room for the handles of those that the region reads and writes.
        result: room for what `run` says.

    Args:
        e: the kernel that is being written.
        names: of its arguments.
    """

    def __init__(self, e: Emit, names: Sequence[str]) -> None:
        self.e, self.torch, self._names = e, Torch(e), names
        self.tensors, self.result = room(e, MOST_TENSORS), room(e, 1)
        write(e, 0, self.result)

    def __getitem__(self, name: str) -> Num:
        return self.e.word(self.e.args["stack"], self._names.index(name))

    def optional(self, name: str) -> Num:
        """The handle of a tensor that may be left out; 0 if it is."""
        e, place = self.e, self[name]

        def handle() -> Num:
            held = e.word(place)
            defined = self.torch.ask("aoti_torch_is_defined", held).compare("!=", 0)
            return where(defined, held, 0)

        return e.choose(place.compare("!=", 0), handle, lambda: e.number(0))

    def program(self) -> Num:
        """The address of the call's program; 0 of what is none, and of copies."""
        e, torch, tensor = self.e, self.torch, self.optional("dropout_state")

        def start() -> Num:
            bytes = torch.ask("aoti_torch_get_storage_size", tensor)
            head = bytes.compare(">=", 8 * len(PROGRAM))
            return e.choose(head, lambda: torch.address(tensor), lambda: e.number(0))

        at = e.choose(tensor.compare("!=", 0), start, lambda: e.number(0))

        def checked() -> Num:
            p = ProgramFrame(e, at)
            return where(p["magic"].compare("==", MAGIC) & p["self"].compare("==", at), at, 0)

        return e.choose(at.compare("!=", 0), checked, lambda: e.number(0))

    def gather(self, p: ProgramFrame) -> Truth:
        """Write the handles of x, the weights and the states; whether there are as many weights."""
        e, torch, weights = self.e, self.torch, self["weight"]
        right = torch.ask("torch_list_size", weights).compare("==", p["weights"])
        write(e, self["input"], self.tensors)
        with e.when(right), e.loop(p["weights"]) as k:
            weight = torch.ask("torch_list_get_item", weights, k.index)
            write(e, weight, self.tensors + 8 + k.index * 8)
        after = self.tensors + (p["weights"] + 1) * 8
        with e.when(p["states"] > 0):
            write(e, self["hx"], after)
        with e.when(p["states"] > 1):
            write(e, self.optional("cx"), after + 8)
        return right

    def give_back(
        self, tensors: Sequence[str], optionals: Sequence[str], lists: Sequence[str]
    ) -> None:
        """Give back arguments by name, and the weights."""
        e, torch, weights = self.e, self.torch, self["weight"]
        with e.loop(torch.ask("torch_list_size", weights)) as k:
            torch.delete(torch.ask("torch_list_get_item", weights, k.index))
        for name in tensors:
            torch.delete(self[name])
        for name in optionals:
            with e.when(self[name].compare("!=", 0)):
                torch.delete(e.word(self[name]))
                torch.call("torch_delete_stable_ivalue", self[name])
        for name in ("weight", *lists):
            torch.call("torch_delete_list", self[name])

    def leave(self, results: Sequence[Num]) -> None:
        """Put results where the arguments were."""
        for i, handle in enumerate(results):
            write(self.e, handle, self.e.args["stack"] + 8 * i)

    def nothing(self) -> Num:
        """A tensor that is none."""
        return self.torch.ask("aoti_torch_new_uninitialized_tensor")


def write_kernels(module: ir.Module, kind: Kind) -> None:
    """`forward(stack, arguments, results)`, `backward(...)`, `carry` and `table`."""
    for name in ("table", "waiting"):
        ir.GlobalVariable(module, I64, name).initializer = I64(0)
    run = write_run(module, kind, write_check(module, kind))
    _write_forward(module, kind, run)
    _write_backward(module, kind, run)
    _write_carry(module, kind, run)


def _write_forward(module: ir.Module, kind: Kind, run: Emit) -> None:
    """Results: a copy of y, y, the last final state, what is kept for backward, and nothing.

    torch's node saves the first and the fourth, which nobody else has: what it saves must not be
    changed in place. All are undefined where there is no memory or a tensor has changed; a call
    without a program is refused.
    """
    e = Emit(module, "forward", kind, ("stack", "arguments", "results"))
    given = Given(e, STACK)
    program = given.program()
    p = ProgramFrame(e, program)
    with e.when(program.compare("!=", 0)), e.when(given.gather(p)):
        e.call(run, program=program, tensors=given.tensors, result=given.result)
    with e.split(e.word(given.result).compare("==", 1)) as (good, bad):
        with good:
            made = given.tensors + p["inputs"] * 8
            y, copy, kept = (e.word(made, i) for i in range(3))
            copy_bytes(e, given.torch.address(copy), given.torch.address(y), p["copied"])
            final = e.choose(p["outputs"] > 3, lambda: e.word(made, 3), given.nothing)
            with e.when(p["outputs"] > 4):  # the first of two states, which is in y
                given.torch.delete(e.word(made, 4))
            _give_back_forward(given)
            given.leave((copy, y, final, kept, given.nothing()))
        with bad:
            _give_back_forward(given)
            with e.when(program.compare("==", 0)):
                given.torch.fail(given.torch.text(1))
            given.leave([given.nothing() for _ in range(5)])
    e.done()


def _give_back_forward(given: Given) -> None:
    given.give_back(("input", "hx"), ("cx", "dropout_state"), ("batch_sizes",))


def _give_back_backward(given: Given) -> None:
    given.give_back(
        ("input", "weight_buf", "hx", "output", "reserve"),
        ("cx", "grad_output", "grad_hy", "grad_cy", "dropout_state"),
        ("batch_sizes", "output_mask"),
    )


def _write_backward(module: ir.Module, kind: Kind, run: Emit) -> None:
    """Results: gradients by x and by both states, and a list of those by the weights.

    Python carries it where a derivative of this derivative is wanted, where torch's modes look on,
    at the first call of its kind, and where a tensor is not as it was prepared for.
    """
    e = Emit(module, "backward", kind, ("stack", "arguments", "results"))
    given = Given(e, GRADIENT_STACK)
    program = _find_backward(given)
    p = ProgramFrame(e, program)
    with e.when(program.compare("!=", 0)), e.when(given.gather(p)):
        copies = _gather_gradients(given, p)
        e.call(run, program=program, tensors=given.tensors, result=given.result)
        for copy in copies:
            given.torch.delete(copy)
    with e.split(e.word(given.result).compare("==", 1)) as (good, bad):
        with good:
            results = _gradients(given, p)
            _give_back_backward(given)
            given.leave(results)
        with bad:
            _carry_in_python(given)
    e.done()


def _carry_in_python(given: Given) -> None:
    """Let Python look at the arguments, and leave what it gives; its errors are raised."""
    e, torch, left = given.e, given.torch, room(given.e, len(IN_PYTHON))
    said = Frame(e, left, IN_PYTHON)
    write(e, 0, left)
    write(e, torch.text(0), left + 8 * IN_PYTHON.index("text"))
    torch.call("Python", e.args["stack"], left)
    _give_back_backward(given)
    with e.when(said["status"].compare("!=", 1)):
        torch.fail(said["text"])
    given.leave([said[name] for name in IN_PYTHON[1:5]])


def _find_backward(given: Given) -> Num:
    """The program of a backward pass of this kind; 0: Python carries it."""
    e, torch, program = given.e, given.torch, given.program()
    alone = torch.denies("aoti_torch_grad_mode_is_enabled")
    alone &= torch.denies("_ZN3c104impl20TorchDispatchModeTLS13any_modes_setEb", 0)

    def find() -> Num:
        wanted = (
            torch.ask("torch_list_get_item", given["output_mask"], i).compare("!=", 0)
            for i in range(4)
        )
        some = (given.optional(name).compare("!=", 0) for name in ("grad_hy", "grad_cy"))
        place = e.number(0)
        for i, truth in enumerate((*wanted, *some)):
            place = place + where(truth, e.number(1 << i), 0)
        return e.word(ProgramFrame(e, program).list("backward"), place)

    return e.choose(program.compare("!=", 0) & alone, find, lambda: e.number(0))


def _gather_gradients(given: Given, p: ProgramFrame) -> list[Num]:
    """Write the handles of y, of what is kept, and of the gradients that are given.

    Returns:
        Handles of copies, of gradients whose numbers do not lie side by side; 0 of others.
    """
    e, copies = given.e, []
    place = p["weights"] + p["states"] + 1
    for name in ("output", "reserve"):
        write(e, given[name], given.tensors + place * 8)
        place = place + 1
    for name in ("grad_hy", "grad_cy"):
        tensor = given.optional(name)
        copy = _tidy(given, p, p.spec("inputs", place), tensor)
        write(e, where(copy.compare("!=", 0), copy, tensor), given.tensors + place * 8)
        place = where(tensor.compare("!=", 0), place + 1, place)
        copies.append(copy)
    return copies


def _tidy(given: Given, p: ProgramFrame, spec: Num, tensor: Num) -> Num:
    """A copy of a gradient that is scattered; 0 of others, and of none."""
    e, torch = given.e, given.torch

    def copied() -> Num:
        made = torch.new(spec, p["dtype"])
        with e.when(made.compare("!=", 0)):
            torch.call("aoti_torch_copy_", made, tensor, 0)
        return made

    def is_scattered() -> Num:
        contiguous = torch.ask("aoti_torch_is_contiguous", tensor)
        return where(contiguous.compare("==", 0), e.number(1), 0)

    there = tensor.compare("!=", 0)
    scattered = e.choose(there, is_scattered, lambda: e.number(0)).compare("!=", 0)
    return e.choose(scattered, copied, lambda: e.number(0))


def _gradients(given: Given, p: ProgramFrame) -> list[Num]:
    """The results, of what was written."""
    e, torch = given.e, given.torch
    made = given.tensors + p["inputs"] * 8
    with e.when(p["cut_lines"] > 0):
        _cut(given, p, made)

    def one(name: str) -> Num:
        return e.choose(p[name] >= 0, lambda: e.word(made, p[name]), given.nothing)

    weights = torch.ask("torch_new_list_reserve_size", p["weights"])
    with e.when(p["d_weights"] >= 0), e.loop(p["weights"]) as k:
        torch.call("torch_list_push_back", weights, e.word(made, p["d_weights"] + k.index))
    return [*map(one, ("d_x", "d_hx", "d_cx")), weights]


def _cut(given: Given, p: ProgramFrame, made: Num) -> None:
    """Copy the lines of the first output, without what makes them whole vectors."""
    e, torch = given.e, given.torch
    padded = e.word(made)
    to, source = torch.address(e.word(made, p["d_x"])), torch.address(padded)
    with e.loop(p["cut_lines"]) as k:
        line, row = p["cut_line"], p["cut_row"]
        copy_bytes(e, to + k.index * line, source + k.index * row, line)
    torch.delete(padded)


def _write_carry(module: ir.Module, kind: Kind, run: Emit) -> None:
    """`carry(self, objects, count)`: a function of Python's that carries a call without a gradient.

    `self` is the address of its program, objects are the tensors that are read. It gives a tuple of
    those made; None, if one is no tensor or lies otherwise, or there is no memory. The caller holds
    the tensors.
    """
    e = Emit(module, "carry", kind, ("self", "objects", "count"), gives=True)
    torch, tensors, result = Torch(e), room(e, MOST_TENSORS), room(e, 1)
    p = ProgramFrame(e, torch.given("PyLong_AsLongLong", e.args["self"]))
    write(e, 0, result)
    with e.when(e.args["count"].compare("==", p["inputs"])):
        with e.when(_find_handles(e, torch, tensors).compare("==", 0)):
            release, releases = lambda: torch.given("PyEval_SaveThread"), p["releases"]
            thread = e.choose(releases.compare("!=", 0), release, lambda: e.number(0))
            e.call(run, program=p.address, tensors=tensors, result=result)
            with e.when(thread.compare("!=", 0)):
                torch.call("PyEval_RestoreThread", thread)

    def nothing() -> Num:
        none = torch.objects()["none"]
        torch.call("Py_IncRef", none)
        return none

    carried = e.word(result).compare("==", 1)
    e.done(e.choose(carried, lambda: _as_objects(e, torch, p, tensors), nothing))


def _find_handles(e: Emit, torch: Torch, tensors: Num) -> Num:
    """Write the handles of objects, which are places in them; how many are no plain tensors."""
    known = torch.objects()
    places = known["handle"], known["kind"], known["tensor"], known["parameter"]
    with e.loop(e.args["count"], e.number(0)) as k:
        handle, kind, tensor, parameter = places
        one = e.word(e.args["objects"], k.index)
        own = e.word(one + kind)
        other = own.compare("!=", tensor) & own.compare("!=", parameter)
        write(e, one + handle, tensors + k.index * 8)
        k.next = [where(other, k.values[0] + 1, k.values[0])]
    others: Num = k.values[0]
    return others


def _as_objects(e: Emit, torch: Torch, p: ProgramFrame, tensors: Num) -> Num:
    """A tuple of the tensors made, whose handles are given back; 0 if Python has an error."""
    made, results = tensors + p["inputs"] * 8, torch.given("PyTuple_New", p["outputs"])
    there = results.compare("!=", 0)
    with e.loop(p["outputs"]) as k:
        handle = e.word(made, k.index)
        with e.when(there):
            one = torch.given("_Z16THPVariable_WrapRKN2at10TensorBaseE", handle)
            torch.call("PyTuple_SetItem", results, k.index, one)
        torch.delete(handle)
    return results
