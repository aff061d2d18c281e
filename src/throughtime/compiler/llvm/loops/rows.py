"""Rows of numbers: copied between users' tensors and buffers padded to whole vectors."""

from __future__ import annotations

from llvmlite import ir

from throughtime.compiler.llvm.sizes import Kind
from throughtime.compiler.llvm.values import I64, Mask, Num, Vector
from throughtime.compiler.llvm.writer import POINTER, VOID, Emit


def lanes_below(e: Emit, count: Num) -> Mask:
    """In which lanes the lane's number is below count."""
    lanes = e.kind.lanes
    whole = ir.VectorType(I64, lanes)
    undefined = whole(ir.Undefined)
    first = e.b.insert_element(undefined, count.value, ir.IntType(32)(0))
    every = e.b.shuffle_vector(first, undefined, ir.VectorType(ir.IntType(32), lanes)([0] * lanes))
    return Mask(e.b, e.b.icmp_signed("<", whole(list(range(lanes))), every))


def load_part(e: Emit, address: Num, left: Num) -> Vector:
    """A vector of which `left` numbers are there; zeros in the place of the rest."""

    def some() -> Vector:
        mask, zeros = lanes_below(e, left).value, e.constant(0)
        function = e.masked("load", zeros.kind, [POINTER, mask.type, zeros.kind])
        return zeros.like(e.b.call(function, [e.pointer(address), mask, zeros.value]))

    return e.choose(left >= e.kind.lanes, lambda: e.load(address), some)


def store_part(e: Emit, value: Vector, address: Num, left: Num) -> None:
    """Write a vector of which `left` numbers have a place."""
    with e.split(left >= e.kind.lanes) as (whole, part):
        with whole:
            e.store(value, address)
        with part:
            mask = lanes_below(e, left).value
            function = e.masked("store", VOID, [value.kind, POINTER, mask.type])
            e.b.call(function, [value.value, e.pointer(address), mask])


def write_copies(module: ir.Module, kind: Kind) -> dict[str, Emit]:
    """Functions that copy rows of `count` numbers.

    take: from the lines order[0], order[1], ... of a tensor to padded rows, zeros after them.
    give: from padded rows to the lines order[0], order[1], ... of a tensor.
    copy: between padded rows.
    cut: from padded rows to lines that follow each other.
    """
    names = ("to", "to_row", "source", "source_row", "rows", "count")
    functions = {}
    for name in ("take", "give", "copy", "cut"):
        ordered = ("order",) if name in ("take", "give") else ()
        e = Emit(module, name, kind, (*names, *ordered), internal=True)
        g = e.given
        with e.loop(g["rows"]) as row:
            line = e.word(g["order"] + row.index * 8) if ordered else row.index
            to = g["to"] + g["to_row"] * (line if name == "give" else row.index)
            source = g["source"] + g["source_row"] * (line if name == "take" else row.index)
            with e.loop(g["count"], step=kind.lanes) as k:
                at, left = k.index * kind.bytes, g["count"] - k.index
                if name == "take":
                    e.store(load_part(e, source + at, left), to + at)
                elif name in ("give", "cut"):
                    store_part(e, e.load(source + at), to + at, left)
                else:
                    e.store(e.load(source + at), to + at)
        e.done()
        functions[name] = e
    return functions
