"""One vector of a packed panel from lines of a matrix: lines for columns, a square at a time.

Where a copy of the lines is kept beside the panels, they are first compared with it, bit by bit,
and packed from the copy, made anew, only where they differ: a vector that is up to date costs two
reads.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from throughtime.compiler.llvm.emit import Emit
from throughtime.compiler.llvm.frame import common
from throughtime.compiler.llvm.kind import Kind
from throughtime.compiler.llvm.number import Num
from throughtime.compiler.llvm.rows import load_part, store_part

_AT_ONCE = 4
"""Vectors that are compared in one turn of a loop."""


def write_lines(module: ir.Module, kind: Kind) -> Emit:
    """`pack_lines`: one vector of a panel from the matrix's lines, one line a lane.

    Lines lie one behind the other, and so does the copy of them; `copy` = 0: none is kept.
    """
    squares = _write_squares(module, kind)
    names = ("block", "to", "to_step", "copy", "source", "lines", "K")
    e = Emit(module, "pack_lines", kind, names, internal=True)
    g, kept = e.given, e.given["copy"].compare("!=", 0)
    count = g["lines"].least(kind.lanes).most(0) * g["K"]
    asked, before = e.b.and_(kept, common(e)["trusted"].compare("!=", 0)), e.b.block
    with e.when(asked):
        differ, inside = _differ(e, g["source"], g["copy"], count), e.b.block
    stale = e.b.phi(ir.IntType(1))
    stale.add_incoming(stale.type(1), before)
    stale.add_incoming(differ, inside)
    with e.when(stale):
        with e.when(kept), e.loop(count, step=kind.lanes) as k:
            at, left = k.index * kind.bytes, count - k.index
            store_part(e, load_part(e, g["source"] + at, left), g["copy"] + at, left)
        # What is packed is what is compared from now on, whoever writes the weights meanwhile.
        read = g["copy"].choose("!=", 0, g["copy"], g["source"])
        e.call(squares, *(read if n == "source" else g[n] for n in names if n != "copy"))
    e.done()
    return e


def _differ(e: Emit, first: Num, second: Num, count: Num) -> Any:
    """A truth value: whether two rows of so many numbers differ in any bit."""
    kind = e.kind
    turn, bits = _AT_ONCE * kind.lanes, ir.VectorType(ir.IntType(8 * kind.bytes), kind.lanes)
    whole = count // turn * turn

    def other(total: Any, a: Any, b: Any) -> Any:
        return e.b.or_(total, e.b.xor(e.b.bitcast(a, bits), e.b.bitcast(b, bits)))

    with e.loop(whole, bits([0] * kind.lanes), step=turn) as k:
        for i in range(_AT_ONCE):
            at = (k.index + i * kind.lanes) * kind.bytes
            k.next = [other(k.next[0], e.load(first + at), e.load(second + at))]
    with e.loop(count, k.values[0], start=whole, step=kind.lanes) as k:
        at, left = k.index * kind.bytes, count - k.index
        parts = (load_part(e, address + at, left) for address in (first, second))
        k.next = [other(k.values[0], *parts)]
    lanes = e.b.icmp_signed("!=", k.values[0], bits([0] * kind.lanes))
    some = e.b.bitcast(lanes, ir.IntType(kind.lanes))
    return e.b.icmp_signed("!=", some, some.type(0))


def _write_squares(module: ir.Module, kind: Kind) -> Emit:
    """`pack_squares`: the vector itself.

    for squares of lanes x lanes numbers: transpose
    """
    names = ("block", "to", "to_step", "source", "lines", "K")
    e = Emit(module, "pack_squares", kind, names, internal=True)
    g, zeros, line = e.given, common(e)["zeros"], e.given["K"] * kind.bytes
    lines = [
        Num(e.b, e.b.select(g["lines"].compare(">", i), (g["source"] + line * i).value,
                            zeros.value))
        for i in range(kind.lanes)
    ]  # fmt: skip
    whole = g["K"] // kind.lanes * kind.lanes
    with e.loop(whole, step=kind.lanes) as k:
        square = _transposed(e, [e.load(line + k.index * kind.bytes) for line in lines])
        for i, vector in enumerate(square):
            e.store(vector, g["to"] + g["to_step"] * (k.index + i))
    with e.loop(g["K"], start=whole) as k:
        to, source = g["to"] + g["to_step"] * k.index, g["source"] + k.index * kind.bytes
        e.store(e.zero(), to)
        with e.loop(g["lines"].least(kind.lanes)) as lane:
            e.put_real(e.real(source + line * lane.index), to + lane.index * kind.bytes)
    e.done()
    return e


def _transposed(e: Emit, square: list[Any]) -> list[Any]:
    """A square of vectors, lines for columns: blocks of 1, 2, 4, ... numbers change places."""
    lanes, size = e.kind.lanes, 1
    while size < lanes:
        kept = [lane if not lane & size else lanes + lane - size for lane in range(lanes)]
        moved = [lane + size if not lane & size else lanes + lane for lane in range(lanes)]
        new = list(square)
        for i in range(lanes):
            if not i & size:
                a, b = square[i], square[i + size]
                new[i], new[i + size] = (_shuffled(e, a, b, m) for m in (kept, moved))
        square, size = new, 2 * size
    return square


def _shuffled(e: Emit, a: Any, b: Any, places: list[int]) -> Any:
    mask = ir.VectorType(ir.IntType(32), e.kind.lanes)(places)
    return e.b.shuffle_vector(a, b, mask)
