"""Products over many rows and columns, cut into register tiles.

Columns go in panels of at most WIDEST vectors, as even as can be; rows in tiles of at most the
height that the machine's registers allow, as even as can be.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from llvmlite import ir

from throughtime.compiler.llvm.arguments import COLUMN_TILE, TILE
from throughtime.compiler.llvm.loops.team import my_share
from throughtime.compiler.llvm.sizes import COLUMN_ROWS, PLACES, WIDEST, Kind
from throughtime.compiler.llvm.values import Num, where
from throughtime.compiler.llvm.writer import POINTER, VOID, Emit, Frame, common

LINE: Final = 64
"""Bytes of a line of the cache."""


def fetch_shared(e: Emit, c: Frame) -> None:
    """In `step`: the old output of all units, and this member's part of the sums before U v.

    Asked for one by one, as products come to them, each would be waited for.
    """
    g = e.given
    begin, end = my_share(e, c["H_row"] // LINE, g["member"], g["members"])
    with e.loop(g["R"]) as row:
        _fetch(e, g["old"] + row.index * c["H_row"], c["H_row"])
        with e.loop(c["sums"]) as k:
            line = (row.index * c["sums"] + k.index) * c["H_row"]
            _fetch(e, g["pre"] + line + begin * LINE, (end - begin) * LINE)


def _fetch(e: Emit, address: Num, bytes: Num) -> None:
    """Every line of some memory, for reading, into the nearest cache."""
    number = ir.IntType(32)
    function = e.plain("llvm.prefetch.p0", VOID, [POINTER, number, number, number])
    with e.loop(bytes, step=LINE) as at:
        e.b.call(function, [e.pointer(address + at.index), number(0), number(3), number(1)])


@contextmanager
def parts_of(
    e: Emit, total: Num, most: Num, mine: tuple[Num, Num] | None = None,
    turned: Num | int = 0,
) -> Iterator[tuple[Num, Num]]:  # fmt: skip
    """Cut `total` things into parts of at most `most`, as even as can be: first and size of each.

    With `mine`, a thread's number and how many there are, only this thread's parts; where `turned`
    is not 0, the last comes first.
    """
    count = (total + most - 1) // most
    least, more = total // count.most(1), total % count.most(1)
    start, step = mine or (e.number(0), e.number(1))
    turn = e.number(0) + turned
    with e.loop(count, start=start, step=step) as part:
        i = where(turn.compare("!=", 0), count - 1 - part.index, part.index)
        yield i * least + i.least(more), where(i < more, least + 1, least)


def write_product(module: ir.Module, kind: Kind) -> Emit:
    """C = start + A B, B packed in panels: `product(block, ...)` as in a tile, and rows, vectors.

    for panels of columns: for tiles of rows: tile
    """
    names = ("block", "start", "start_row", "A", "A_row", "A_part", "B", "parts", "K", "C", "C_row",
             "rows", "vectors")  # fmt: skip
    e = Emit(module, "product", kind, names, internal=True)
    c, g = common(e), e.given
    with parts_of(e, g["vectors"], e.number(WIDEST)) as (first, V):
        panel = g["B"] + first * (g["parts"] * g["K"] * kind.size)
        column = first * kind.size
        with parts_of(e, g["rows"], e.word(c["heights"] + V * 8)) as (row, R):
            e.call_at(
                e.word(c["tiles"] + (V * PLACES + R) * 8), TILE,
                start=g["start"] + g["start_row"] * row + column, places=c["flat"],
                A=g["A"] + g["A_row"] * row, B=panel, C=g["C"] + g["C_row"] * row + column,
                **e.passed_on("start_row", "A_row", "A_part", "parts", "K", "C_row"),
            )  # fmt: skip
    e.done()
    return e


def write_column_product(module: ir.Module, kind: Kind) -> Emit:
    """C = start + A^T B over K rows of A and B: `column_product(block, ...)`.

    for panels of columns: for tiles of rows (of C): column tile
    """
    names = ("block", "start", "start_row", "A", "A_step", "B", "B_step", "K", "C", "C_row", "rows",
             "vectors")  # fmt: skip
    e = Emit(module, "column_product", kind, names, internal=True)
    c, g = common(e), e.given
    with parts_of(e, g["vectors"], c["column_widest"]) as (first, V):
        column = first * kind.size
        done = e.number(0)
        for R in COLUMN_ROWS:
            left = g["rows"] - done
            function = e.word(c["columns"] + (V * PLACES + R) * 8)
            with e.loop(left // R) as tile:
                row = done + tile.index * R
                e.call_at(
                    function, COLUMN_TILE, start=g["start"] + g["start_row"] * row + column,
                    A=g["A"] + row * kind.bytes, B=g["B"] + column,
                    C=g["C"] + g["C_row"] * row + column,
                    **e.passed_on("start_row", "A_step", "B_step", "K", "C_row"),
                )  # fmt: skip
            done = done + left // R * R
    e.done()
    return e
