"""Rows of numbers: copied between users' tensors and buffers padded to whole vectors."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from throughtime.compiler.llvm.sizes import Kind
from throughtime.compiler.llvm.writer import I64, POINTER, VOID, Emit, Num


def lanes_below(e: Emit, count: Num) -> Any:
    """A truth value for each lane: whether its number is below count."""
    whole = ir.VectorType(I64, e.kind.lanes)
    undefined = whole(ir.Undefined)
    first = e.b.insert_element(undefined, count.value, ir.IntType(32)(0))
    mask = ir.VectorType(ir.IntType(32), e.kind.lanes)([0] * e.kind.lanes)
    return e.b.icmp_signed(
        "<", whole(list(range(e.kind.lanes))), e.b.shuffle_vector(first, undefined, mask)
    )


def load_part(e: Emit, address: Num, left: Num) -> Any:
    """A vector of which `left` numbers are there; zeros in the place of the rest."""
    full = left.compare(">=", e.kind.lanes)
    with e.b.if_else(full) as (whole, part):
        with whole:
            loaded, block = e.load(address), e.b.block
        with part:
            mask = lanes_below(e, left)
            function = e.intrinsic("masked.load", e.kind.vector,
                                   [POINTER, mask.type, e.kind.vector], ".p0")  # fmt: skip
            some = e.b.call(function, [e.pointer(address), mask, e.zero()])
            other = e.b.block
    value = e.b.phi(e.kind.vector)
    value.add_incoming(loaded, block)
    value.add_incoming(some, other)
    return value


def store_part(e: Emit, value: Any, address: Num, left: Num) -> None:
    """Write a vector of which `left` numbers have a place."""
    with e.b.if_else(left.compare(">=", e.kind.lanes)) as (whole, part):
        with whole:
            e.store(value, address)
        with part:
            mask = lanes_below(e, left)
            function = e.intrinsic("masked.store", VOID, [value.type, POINTER, mask.type], ".p0")
            e.b.call(function, [value, e.pointer(address), mask])


def write_copies(module: ir.Module, kind: Kind) -> dict[str, Emit]:
    """Functions that copy rows of `count` numbers.

    take: from the lines order[0], order[1], ... of a tensor to padded rows, zeros behind them.
    give: from padded rows to the lines order[0], order[1], ... of a tensor.
    copy: between padded rows.
    """
    names = ("to", "to_row", "source", "source_row", "rows", "count")
    found = {}
    for name in ("take", "give", "copy"):
        ordered = () if name == "copy" else ("order",)
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
                elif name == "give":
                    store_part(e, e.load(source + at), to + at, left)
                else:
                    e.store(e.load(source + at), to + at)
        e.done()
        found[name] = e
    return found
