"""Products over many rows and columns, cut into register tiles.

Columns go in panels of at most WIDEST vectors, as even as can be; rows in tiles of at most the
height that the machine's registers allow, as even as can be.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from llvmlite import ir

from throughtime.compiler.llvm.abi import (
    COLUMN_ROWS,
    COLUMN_TILE,
    LINE_TILE,
    PLACES,
    ROW_TILE,
    TILE,
    WIDEST,
    Kind,
)
from throughtime.compiler.llvm.loops.team import my_share
from throughtime.compiler.llvm.tile import transposed
from throughtime.compiler.llvm.values import Num, Truth, fma, where
from throughtime.compiler.llvm.writer import NEAREST, SECOND, Emit, Frame, common

LINE: Final = 64
"""Bytes of a line of the cache."""

MANY: Final = 4
"""Panels of columns from which on it pays to put the rows of a tile side by side."""

NEAR_LINES: Final = 64
"""Lines of a matrix as it lies whose part in a panel the nearest cache holds."""

NEAR_BYTES: Final = 1 << 20
"""Of packed weights that a second-level cache holds."""


def fetch_shared(e: Emit, c: Frame) -> None:
    """In `step`: the old output of all units, and this member's part of the sums before U v.

    Asked for one by one, as products come to them, each would be waited for.
    """
    g = e.args
    begin, end = my_share(c["H_row"] // LINE, g["member"], g["members"])
    with e.loop(g["R"]) as row:
        _fetch(e, g["old"] + row.index * c["H_row"], c["H_row"], NEAREST)
        with e.loop(c["sums"]) as k:
            line = (row.index * c["sums"] + k.index) * c["H_row"]
            _fetch(e, g["pre"] + line + begin * LINE, (end - begin) * LINE, NEAREST)


def _fetch(e: Emit, address: Num, bytes: Num, level: int) -> None:
    """Every line of some memory, for reading, into a cache."""
    with e.loop(bytes, step=LINE) as at:
        e.fetch(address + at.index, level)


@contextmanager
def parts_of(
    e: Emit, total: Num, most: Num, mine: tuple[Num, Num] | None = None,
    turned: Num | int = 0,
) -> Iterator[tuple[Num, Num]]:  # fmt: skip
    """Cut `total` things into parts of at most `most`, as even as can be: first and size of each.

    With `mine`, a thread's number and how many there are, only this thread's parts; where `turned`
    is not 0, the last of them comes first.
    """
    count = (total + most - 1) // most
    least, more = total // count.most(1), total % count.most(1)
    start, step = mine or (e.number(0), e.number(1))
    turn = e.number(0) + turned
    with e.loop(count, start=start, step=step) as part:
        last = (count - 1 - start) // step * step  # of mine, counted from my first
        i = where(turn.compare("!=", 0), start * 2 + last - part.index, part.index)
        yield i * least + i.least(more), where(i < more, least + 1, least)


def write_product(module: ir.Module, kind: Kind) -> Emit:
    """C = start + A B, B packed in panels: `product(block, ...)` as in a tile, and rows, vectors.

    for a member's panels of columns: for tiles of rows: tile
    """
    names = ("block", "start", "start_row", "A", "A_row", "A_part", "B", "parts", "K", "C", "C_row",
             "rows", "vectors", "turned", "member", "members")  # fmt: skip
    e = Emit(module, "product", kind, names, internal=True)
    c, g = common(e), e.args
    vector = g["parts"] * g["K"] * kind.size
    far = vector * g["vectors"] > NEAR_BYTES
    mine = g["member"], g["members"]
    with parts_of(e, g["vectors"], e.number(WIDEST), mine, g["turned"]) as (first, V):
        panel, column = g["B"] + first * vector, first * kind.size
        step = V * vector * g["members"]
        following = NextPanel.after(panel, V * vector, step, far, g["turned"])
        with parts_of(e, g["rows"], e.word(c["heights"], V)) as (row, R):
            e.call_at(
                e.word(c["tiles"], V * PLACES + R), TILE,
                start=g["start"] + g["start_row"] * row + column, places=c["flat"],
                A=g["A"] + g["A_row"] * row, B=panel, B_step=V * kind.size,
                C=g["C"] + g["C_row"] * row + column,
                **e.passed_on("start_row", "A_row", "A_part", "parts", "K", "C_row"),
                **share_of(following, (row, R, g["rows"]), V * kind.size),
            )  # fmt: skip
    return e.done()


def write_transposed_product(module: ir.Module, kind: Kind, cut: Emit) -> Emit:
    """C = start + A B, B the gates of a matrix as they lie: `transposed_product(block, ...)`.

    for a member's panels of columns: for gates: for lines that a near cache holds:
        for tiles of rows: tile

    A panel that a line is too short for ends with the line, and begins in the panel before, which
    another thread may have: it grows in the thread's scratch, and its own columns are cut out.

    Args:
        module, kind: of the code.
        cut: copies rows.
    """
    names = ("block", "thread", "start", "start_row", "A", "A_row", "A_part", "B", "gate", "parts",
             "K", "C", "C_row", "rows", "columns", "panels", "member", "members")  # fmt: skip
    e = Emit(module, "transposed_product", kind, names, internal=True)
    c, g = common(e), e.args
    line, vectors = g["columns"] * kind.bytes, (g["columns"] + kind.lanes - 1) // kind.lanes
    low, high = my_share(g["panels"], g["member"], g["members"])
    with e.loop(high, start=low) as panel:
        begin, end = my_share(vectors, panel.index, g["panels"])
        V, first = end - begin, begin * kind.size
        column = first.least(line - V * kind.size)
        whole, scratch = column >= first, c["scratch"] + g["thread"] * c["scratch_size"]
        C = where(whole, g["C"] + column, scratch)
        C_row = where(whole, g["C_row"], V * kind.size)
        _transposed_panel(e, c, (column, V), (C, C_row))
        with e.when(column < first):
            e.call(cut, to=g["C"] + first, to_row=g["C_row"], source=C + (first - column),
                   source_row=C_row, rows=g["rows"],
                   count=g["columns"] - begin * kind.lanes)  # fmt: skip
    return e.done()


def _transposed_panel(e: Emit, c: Frame, panel: tuple[Num, Num], to: tuple[Num, Num]) -> None:
    """In `transposed_product`: V vectors of each row from a column on, grown where they go to."""
    g, bytes, (column, V), (C, C_row) = e.args, e.kind.bytes, panel, to
    line = g["columns"] * bytes
    with e.loop(g["parts"]) as q, e.loop(g["K"], step=NEAR_LINES) as k:
        source = g["B"] + (e.word(g["gate"], q.index).most(0) * g["K"] + k.index) * line
        A = g["A"] + g["A_part"] * q.index + k.index * bytes
        begins = (q.index + k.index).compare("==", 0)
        with parts_of(e, g["rows"], e.word(c["heights"], V)) as (row, R):
            own, start = C + C_row * row, g["start"] + g["start_row"] * row + column
            e.call_at(
                e.word(c["tiles"], V * PLACES + R), TILE, start=where(begins, start, own),
                start_row=where(begins, g["start_row"], C_row), places=c["flat"],
                A=A + g["A_row"] * row, A_part=0, B=source + column, B_step=line, parts=1,
                K=(g["K"] - k.index).least(NEAR_LINES), C=own, C_row=C_row, ahead=own,
                ahead_step=0, **e.passed_on("A_row"),
            )  # fmt: skip


def write_line_product(module: ir.Module, kind: Kind, height: int) -> Emit:
    """C = start + A B, B some lines of a matrix as it lies, for one vector: `line_product(...)`.

    Rows up to `height` are a tile that turns squares of lines in registers. More are the lanes of a
    tile themselves, and lie in the scratch as `turn_rows` has left them.
    """
    names = ("block", "scratch", "start", "start_row", "A", "A_row", "B", "lines", "K", "C",
             "C_row", "rows")  # fmt: skip
    e = Emit(module, "line_product", kind, names, internal=True)
    c, g, at_once = common(e), e.args, max(kind.lanes, height)
    with e.loop(g["rows"], step=at_once) as row:
        rows = (g["rows"] - row.index).least(at_once)
        words = {
            "start": g["start"] + g["start_row"] * row.index,
            "C": g["C"] + g["C_row"] * row.index, "zeros": c["zeros"],
            **e.passed_on("start_row", "B", "lines", "K", "C_row"),
        }  # fmt: skip
        with e.split(rows <= height) as (few, many):
            with few:
                A = g["A"] + g["A_row"] * row.index
                others = words | e.passed_on("A_row")
                e.call_at(e.word(c["line_tiles"], rows), LINE_TILE, A=A, **others)
            with many:
                A = g["scratch"] + c["turned"] + row.index * g["K"] * kind.bytes
                e.call_at(e.word(c["line_tiles"]), ROW_TILE, A=A, rows=rows, **words)
    return e.done()


def write_turn_rows(module: ir.Module, kind: Kind, height: int) -> Emit:
    """`turn_rows(...)`: rows of A side by side for each k, where `line_product` reads them.

    for rows, as many as a vector has lanes and more than `height`: for squares of them: turn
    """
    names = ("block", "scratch", "A", "A_row", "K", "rows")
    e = Emit(module, "turn_rows", kind, names, internal=True)
    c, g = common(e), e.args
    count = g["rows"] - height if kind.lanes > height else e.number(0)
    with e.loop(count, step=kind.lanes) as row, e.loop(g["K"], step=kind.lanes) as k:
        lines = [
            where(g["rows"] > row.index + r, g["A"] + g["A_row"] * (row.index + r), c["zeros"])
            for r in range(kind.lanes)
        ]
        square = transposed([e.load(line + k.index * kind.bytes) for line in lines])
        to = g["scratch"] + c["turned"] + (row.index * g["K"] + k.index * kind.lanes) * kind.bytes
        for i, vector in enumerate(square):  # what is beyond K the next rows write over
            e.store(vector, to + i * kind.size)
    return e.done()


class NextPanel(NamedTuple):
    """What a tile's rows are multiplied with after the panel at hand.

    Attributes:
        address, bytes: where it lies, and how large it is.
        far: whether it is worth fetching meanwhile.
    """

    address: Num
    bytes: Num
    far: Truth

    @classmethod
    def after(cls, panel: Num, bytes: Num, step: Num, far: Truth, turned: Num) -> NextPanel:
        """The one that lies `step` bytes behind, or before where the last panel comes first."""
        there = panel + where(turned.compare("!=", 0), step * -1, step)
        return cls(where(far, there, panel), bytes, far)


def share_of(panel: NextPanel, rows: tuple[Num, Num, Num], bytes: Num) -> dict[str, Num]:
    """What a tile fetches of the next panel: as large a part as it has of the rows.

    Args:
        panel: the next one.
        rows: the tile's first row, how many it has, and how many all tiles of its panel have.
        bytes: of the panel at each k.
    """
    row, R, count = rows
    apart = panel.far & (R < count)  # a tile alone waits for its own panel all the time
    ahead = panel.address + panel.bytes * row // count
    return {"ahead": ahead, "ahead_step": where(apart, bytes * R // count, 0)}


def write_column_product(module: ir.Module, kind: Kind) -> Emit:
    """C = start + A^T B over K rows of A and B: `column_product(block, ...)`.

    for tiles of rows (of C): A's part of them, side by side; for panels of columns: column tile

    The last panel ends with the line of C: where that is not whole vectors, some of its columns are
    computed once more.
    """
    names = ("block", "thread", "start", "start_row", "A", "A_step", "B", "B_step", "K", "C",
             "C_row", "rows", "vectors")  # fmt: skip
    e = Emit(module, "column_product", kind, names, internal=True)
    c, g = common(e), e.args
    with e.split(g["K"].compare("==", 1)) as (one, more):
        with one:
            _write_outer(e)
        with more:
            done = e.number(0)
            for R in COLUMN_ROWS:
                left = g["rows"] - done
                with e.loop(left // R) as tile:
                    _column_tiles(e, c, done + tile.index * R, R)
                done = done + left // R * R
    return e.done()


def _write_outer(e: Emit) -> None:
    """Of one row of A and of B: lines of C, one after the other, as memory takes them fastest."""
    g, size = e.args, e.kind.size
    with e.loop(g["rows"]) as row, e.loop(g["vectors"]) as v:
        column = (v.index * size).least(g["C_row"] - size)
        x = e.spread(e.real(g["A"] + row.index * e.kind.bytes))
        start = e.load(g["start"] + g["start_row"] * row.index + column)
        total = fma(x, e.load(g["B"] + column), start)
        e.store(total, g["C"] + g["C_row"] * row.index + column)


def _column_tiles(e: Emit, c: Frame, row: Num, R: int) -> None:
    """All columns of R rows of C."""
    g, size = e.args, e.kind.size
    large = (g["rows"] * g["C_row"] > NEAR_BYTES) & (g["start_row"] > 0)
    A, A_step = _side_by_side(e, c, R, g["A"] + row * e.kind.bytes)
    with parts_of(e, g["vectors"], c["column_widest"]) as (first, V):
        column = (first * size).least(g["C_row"] - V * size)
        with e.when(large):  # what the next panel's sums start from
            for r in range(R):
                start = g["start"] + g["start_row"] * (row + r) + column
                _fetch(e, start + V * size, V * size, SECOND)
        e.call_at(
            e.word(c["columns"], V * PLACES + R), COLUMN_TILE,
            start=g["start"] + g["start_row"] * row + column, A=A, A_step=A_step,
            B=g["B"] + column, C=g["C"] + g["C_row"] * row + column,
            **e.passed_on("start_row", "B_step", "K", "C_row"),
        )  # fmt: skip


def _side_by_side(e: Emit, c: Frame, rows: int, A: Num) -> tuple[Num, Num]:
    """Where some numbers of all K rows of A are, and bytes from row to row.

    Rows of A lie pages apart. Where many panels of columns read them they come side by side first.
    """
    g, kind = e.args, e.kind
    vectors = -(-rows // kind.lanes)
    step = vectors * kind.size
    scratch = c["scratch"] + g["thread"] * c["scratch_size"]
    many = g["vectors"] > c["column_widest"] * MANY
    with e.loop(where(many, g["K"], 0)) as k:
        for v in range(vectors):
            at = v * kind.size
            e.store(e.load(A + g["A_step"] * k.index + at), scratch + k.index * step + at)
    return where(many, scratch, A), where(many, step, g["A_step"])
