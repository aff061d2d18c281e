"""The module of a program: one step as a function, its walks over units, the header's functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from llvmlite import ir

from throughtime.compiler.llvm.abi import Kind
from throughtime.compiler.llvm.loops.rows import lanes_below
from throughtime.compiler.llvm.maths import operations
from throughtime.compiler.llvm.pointwise import Pointwise
from throughtime.compiler.llvm.sweeps import STRANDS, folded
from throughtime.compiler.llvm.values import I64, Num, at_most, where
from throughtime.compiler.llvm.writer import POINTER, VOID, Emit
from throughtime.export.llvm.sums import Constants, Strides, Sums, pad_count
from throughtime.export.program import (
    Lookup,
    Place,
    ProductPart,
    Program,
    Stage,
    Walk,
    list_leading,
)

if TYPE_CHECKING:
    from throughtime.export.llvm import Target

_BYTES: Final = 4


class Module:
    """A program as a module of LLVM.

    Args:
        program: what it does.
        target: for which processor.
        weights: how matrices are stored.
        about: the line that describes it.
        block: for how many steps at once `run` multiplies the input by the first matrices.

    Attributes:
        state: numbers of a state, each array padded to whole vectors.
        work: likewise of what a step works with, and of a block's products.
    """

    def __init__(
        self, program: Program, target: Target, weights: str, about: str, block: int = 1
    ) -> None:
        self.program, self.target, self.block = program, target, block
        self._leading = list_leading(program) if block > 1 else []
        self.kind = Kind(_BYTES, target.lanes)
        self.module = ir.Module(program.name)
        self.constants = Constants(self.module, target.lanes, weights)
        self._places: dict[str, tuple[str, int]] = {}
        self.state = max(1, self._place("state"))
        self._ahead, self._scratch = self._place("ahead"), self._place("work")
        self.work = self._scratch + self._ahead * block
        self._vector_inputs = any(
            isinstance(o, Stage) and any(_is_input_line(p) for p in o.loads.values())
            for part in program.parts for o in part.operations
        )  # fmt: skip
        self._tables = {n: self.constants.lines(v) for n, v in program.constants.items()}
        self._one = self._write_one()
        self._write_public(about)

    def _line(self, name: str) -> int:
        return pad_count(self.program.arrays[name].size, self.target.lanes)

    def _place(self, kind: str) -> int:
        """Where each array of a kind begins, and how many numbers they have together."""
        count, kinds = 0, {"input": "work"}
        kinds |= {b.out.array: "ahead" for o in self._leading for b in o.blocks}
        for name, array in self.program.arrays.items():
            if kind == kinds.get(name, kinds.get(array.kind, array.kind)):
                self._places[name] = (kind, count)
                count += array.lines * self._line(name)
        return count

    def _begin(self, name: str, arguments: tuple[str, ...], memory: int = 0) -> Emit:
        """A function that computes, with so many numbers of its own on the stack."""
        e = Emit(self.module, name, self.kind, arguments, internal=True)
        place = e.b.alloca(ir.ArrayType(self.kind.real, max(1, memory)))
        place.align = max(4, self.kind.size)
        self._e, self._bases = e, {**e.args, "work": e.place(place)}
        self._sums = Sums(e, self.constants, self.target.fused, self.target.vectors)
        return e

    def _write_one(self) -> Emit:
        """`one(state, x, y)`: a step; with blocks it takes the first products as `ahead` too."""
        e = self._begin("one", ("state", "x", "y", *["ahead"] * bool(self._leading)), self._scratch)
        if self._vector_inputs:
            padded_x = self._bases["work"] + self._places["x"][1] * _BYTES
            self._copy(e.args["x"], padded_x, len(self.program.inputs))
            self._bases["x"] = padded_x
        for part in self.program.parts:
            for operation in part.operations:
                if any(operation is one for one in self._leading):
                    continue
                if isinstance(operation, ProductPart):
                    self._product(operation)
                elif isinstance(operation, Stage):
                    walks = Walks(e, operation, self._address)
                    for walk in operation.walks:
                        walks.write(walk)
                else:
                    self._lookup(operation)
        self._copy(self._address(self.program.result), e.args["y"], self.program.outputs)
        e.done()
        return e

    def _address(self, place: Place) -> Num:
        """Where a place begins."""
        e, first = self._e, place.offset * _BYTES
        if place.array == "x":
            return self._bases["x"] + first
        if place.array in self._tables:
            table = e.place(self._tables[place.array])
            return table + (place.line * self._line(place.array) * _BYTES + first)
        kind, offset = self._places[place.array]
        line = offset + place.line * self._line(place.array)
        return self._bases[kind] + (line * _BYTES + first)

    def _copy(self, source: Num, to: Num, count: int) -> None:
        """So many numbers, whole vectors first."""
        e, lanes = self._e, self.target.lanes
        whole = count // lanes * lanes
        with e.loop(e.number(whole), step=lanes) as k:
            e.store(e.load(source + k.index * _BYTES), to + k.index * _BYTES)
        for i in range(whole, count):
            e.store(e.real(source + i * _BYTES), to + i * _BYTES)

    def _product(self, operation: ProductPart, steps: Strides | None = None) -> None:
        size, lanes = self.kind.size, self.target.lanes
        weights, scales = self.constants.packed([b.matrix for b in operation.blocks])
        starts, outs = list[Num | None](), list[Num]()
        for block in operation.blocks:
            for v in range(pad_count(len(block.matrix), lanes) // lanes):
                start = None if block.start is None else self._address(block.start) + v * size
                starts.append(start)
                outs.append(self._address(block.out) + v * size)
        columns = operation.blocks[0].matrix.shape[1]
        source = self._address(operation.source)
        self._sums.write(weights, scales, columns, source, starts, outs, steps)

    def _lookup(self, operation: Lookup) -> None:
        """The line of a table that a number names, clamped to those it has."""
        e, lines = self._e, len(operation.table)
        table, scales = self.constants.plain(operation.table)
        one = e.real(self._address(operation.row))
        clamped = at_most(where(one > 0, one, 0), lines - 1)
        row = Num(e.b, e.b.zext(e.b.fptosi(clamped.value, ir.IntType(32)), I64))
        width = pad_count(operation.table.shape[1], self.target.lanes)
        base = e.place(table) + row * (width * self.constants.bytes)
        out = self._address(operation.out)
        with e.loop(e.number(width), step=self.target.lanes) as k:
            value = self._sums.weight(base + k.index * self.constants.bytes)
            if scales is not None:
                scale = self._sums.scale(e.place(scales) + row, 1).first()
                value = e.spread(scale) * value
            e.store(value, out + k.index * _BYTES)

    def _write_public(self, about: str) -> None:
        """The functions of the header, and its line of text."""
        name, size = self.program.name, ir.IntType(self.target.pointer)
        reset = self._function("reset", 1, [])
        b = ir.IRBuilder(reset.append_basic_block("entry"))
        b.call(self._write_reset().function, [b.ptrtoint(reset.args[0], I64)])
        b.ret_void()
        step = self._function("step", 3, [])
        b = ir.IRBuilder(step.append_basic_block("entry"))
        b.call(self._write_step().function, [b.ptrtoint(v, I64) for v in step.args])
        b.ret_void()
        run = self._function("run", 3, [size])
        b = ir.IRBuilder(run.append_basic_block("entry"))
        steps = run.args[3] if self.target.pointer == 64 else b.zext(run.args[3], I64)
        b.call(self._write_run().function, [*(b.ptrtoint(v, I64) for v in run.args[:3]), steps])
        b.ret_void()
        text = np.frombuffer(about.encode() + b"\0", np.uint8)
        self.constants.table(text, f"{name}_about").linkage = ""

    def _function(self, word: str, pointers: int, more: list[Any]) -> Any:
        kind = ir.FunctionType(VOID, [POINTER] * pointers + more)
        return ir.Function(self.module, kind, f"{self.program.name}_{word}")

    def _write_reset(self) -> Emit:
        """`clear(state)`: zeros, and what sequences start from."""
        e = Emit(self.module, "clear", self.kind, ("state",), internal=True)
        for i in range(0, self.state, self.target.lanes):
            if self.state >= self.target.lanes:
                e.store(e.constant(0), e.args["state"] + i * _BYTES)
            else:
                e.store(e.scalar(0), e.args["state"])
        for name, values in self.program.resets.items():
            first = self._places[name][1]
            for i, value in enumerate(values.reshape(-1).tolist()):
                e.store(e.scalar(value), e.args["state"] + (first + i) * _BYTES)
        e.done()
        return e

    def _write_ahead(self) -> Emit:
        """`products(x, ahead, count)`: the first products of a block of steps."""
        e = self._begin("products", ("x", "ahead", "count"))
        inputs = len(self.program.inputs) * _BYTES
        for operation in self._leading:
            self._product(operation, Strides(e.args["count"], inputs, self._ahead * _BYTES))
        e.done()
        return e

    def _write_step(self) -> Emit:
        """`whole(state, x, y)`: a step with its first products."""
        if not self._leading:
            return self._one
        self._products = self._write_ahead()
        e = self._begin("whole", ("state", "x", "y"), self._ahead)
        ahead = self._bases["work"]
        e.call(self._products, x=e.args["x"], ahead=ahead, count=1)
        e.call(self._one, **e.args, ahead=ahead)
        e.done()
        return e

    def _write_run(self) -> Emit:
        """`steps(state, x, y, count)`: one step after the other, or block by block."""
        e = self._begin("steps", ("state", "x", "y", "count"), self._ahead * self.block)
        g, ahead = e.args, self._bases["work"]
        with e.loop(g["count"], step=self.block if self._leading else 1) as t:
            if not self._leading:
                e.call(self._one, state=g["state"], **self._moved(e, t.index))
            else:
                many = (g["count"] - t.index).least(self.block)
                x = self._moved(e, t.index)["x"]
                e.call(self._products, x=x, ahead=ahead, count=many)
                with e.loop(many) as i:
                    at = ahead + i.index * (self._ahead * _BYTES)
                    moved = self._moved(e, t.index + i.index)
                    e.call(self._one, state=g["state"], ahead=at, **moved)
        e.done()
        return e

    def _moved(self, e: Emit, t: Num) -> dict[str, Num]:
        """Where x and y of step t lie."""
        sizes = {"x": len(self.program.inputs), "y": self.program.outputs}
        return {name: e.args[name] + t * (size * _BYTES) for name, size in sizes.items()}


def _is_input_line(place: Place | float) -> bool:
    """Whether a place is a line of the input that is read in vectors."""
    return isinstance(place, Place) and place.array == "x" and place.size > 1


_JOIN: Final = {"row_sum": "add", "row_max": "maximum"}

_UNROLLED: Final = 2
"""So many blocks of units are written out, without a loop."""


class Walks:
    """The walks of one stage.

    Args:
        e: the function being written.
        stage: what is computed.
        address: of a place.
    """

    def __init__(self, e: Emit, stage: Stage, address: Callable[[Place], Num]) -> None:
        self.e, self.stage, self.address = e, stage, address
        self.units = {name: e.number(size) for name, size in stage.units.items()}
        self.numbers: dict[int, Any] = {}  # nodes of one number that were computed
        self.stored: dict[int, Place] = {}  # nodes that an earlier walk stored

    def write(self, walk: Walk) -> None:
        """One walk, the single numbers before it first."""
        e = self.e
        single = Pointwise(e, self.stage.graph, self.units, self._loads(e.number(0)))
        self.numbers |= {i: single.value(i) for i in walk.numbers if i not in self.numbers}
        blocks = -(-walk.size // e.kind.lanes)
        each = STRANDS // e.kind.lanes
        strands = [self._start(r) for r in walk.reductions for _ in range(each)]
        if not walk.lines and not walk.stores and not walk.reductions:
            return
        if blocks <= _UNROLLED:
            for block in range(blocks):
                strands = self._block(walk, e.number(block), strands)
        else:
            with e.loop(e.number(blocks), *strands) as loop:
                loop.next = self._block(walk, loop.index, loop.values)
            strands = loop.values
        for n, r in enumerate(walk.reductions):
            join = _JOIN[self.stage.graph.nodes[r].op]
            self.numbers[r] = folded(join, strands[n * each : (n + 1) * each])
        self.stored |= dict(walk.lines)

    def _block(self, walk: Walk, block: Num, strands: list[Any]) -> list[Any]:
        """A vector of units; returns the strands after it."""
        e, nodes = self.e, self.stage.graph.nodes
        column = block * e.kind.size
        values = Pointwise(e, self.stage.graph, self.units, self._loads(column))
        results = [(values.value(i), place) for i, place in (*walk.lines, *walk.stores)]
        each, after = STRANDS // e.kind.lanes, list[Any]()
        for n, r in enumerate(walk.reductions):
            first, *others = strands[n * each : (n + 1) * each]
            left = e.number(walk.size) - block * e.kind.lanes
            value = values.value(nodes[r].inputs[0])
            if walk.size % e.kind.lanes:
                value = where(lanes_below(e, left), value, self._start(r))
            after += [*others, operations.apply(_JOIN[nodes[r].op], [first, value])]
        for value, place in results:
            e.store(value, self.address(place) + column)
        return after

    def _loads(self, column: Num) -> dict[int, Callable[[], Any]]:
        """What loads each node that was computed before."""
        places: dict[int, Place | float] = {**self.stage.loads, **self.stored}
        loads = {i: self._load(place, column) for i, place in places.items()}
        return loads | {i: _constant(v) for i, v in self.numbers.items()}

    def _load(self, place: Place | float, column: Num) -> Callable[[], Any]:
        e = self.e
        if not isinstance(place, Place):
            number = float(place)
            return lambda: e.constant(number)
        if place.size == 1:
            return lambda: e.spread(e.real(self.address(place)))
        return lambda: e.load(self.address(place) + column)

    def _start(self, r: int) -> Any:
        """What a reduction starts from."""
        least = 0.0 if self.stage.graph.nodes[r].op == "row_sum" else -math.inf
        return self.e.constant(least)


def _constant(value: Any) -> Callable[[], Any]:
    return lambda: value
