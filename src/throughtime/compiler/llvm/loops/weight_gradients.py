"""What a block of steps says of the weights and of x, a share for each thread.

dW += d_sums^T x,  dU += d_sums^T h,  db += the sum of d_sums over rows,  dx = W^T d_sums

Every number of dW, dU and db is one chain over all rows, a forward direction's from the last to the
first, a backward direction's from the first to the last: how steps are cut into blocks, and the
sequence into calls that add to one another, changes no bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from llvmlite import ir

from throughtime.compiler.llvm.abi import Kind
from throughtime.compiler.llvm.loops.rows import blocks_of, first_row, run_at
from throughtime.compiler.llvm.loops.team import my_share
from throughtime.compiler.llvm.values import Num, where
from throughtime.compiler.llvm.writer import Emit, Frame, common, direction


def write_weights(module: ir.Module, kind: Kind, copies: dict[str, Emit], *products: Emit) -> Emit:
    """`weights_back(...)`: this thread's share of what a block of steps says of W, U, b and x.

    `own` is the number of the first direction's words.
    """
    sums, functions = _write_sums(module, kind), (products[2], copies["cut"])
    names = ("block", "thread", "team", "own", "first", "last")
    e = Emit(module, "weights_back", kind, names, internal=True)
    c, g = common(e), e.args
    with e.loop(c["D"]) as d:
        f = direction(e, d.index + g["own"])
        before = first_row(e, c, f, g["first"], g["last"])
        top = where(f["reverse"].compare("!=", 0), g["last"], c["T"] - g["first"]) - 1
        count = e.word(c["offset"], top) + e.word(c["alive"], top) - before
        with e.when(c["wants_x"].compare("!=", 0)):
            _input(e, c, f, products, before, count)
        with e.when(c["wants_weights"].compare("!=", 0)):
            gates, rows = (f["gate_a"], e.number(0), c["with_a"]), (f["x_block"], c["I_row"], count)
            matrix = Gradient(f["d_W"], f["d_W_cut"], c["H"], _line(e, c, c["I"]), c["I"])
            _weights(e, c, f, functions, gates, rows, matrix)
            with e.loop(c["early"] + 1) as i:
                _run(e, c, f, functions, run_at(e, c, i.index), count)
            source, row = _walked(f, f["d_sums"], line_size(c, kind), count)
            with _my_units(e, c) as (at, vectors):
                e.call(sums, to=f["d_bias"] + at, source=source + at, row=row, rows=count,
                       vectors=vectors)  # fmt: skip
    return e.done()


class Gradient(NamedTuple):
    """The gradient by a matrix.

    Attributes:
        to: where it grows.
        cut: where it goes when it is done; 0: nowhere.
        width: lines of each sum.
        row, K: bytes of a line as it grows, and its numbers.
    """

    to: Num
    cut: Num
    width: Num
    row: Num
    K: Num


def line_size(c: Frame, kind: Kind) -> Num:
    """Bytes from row to row of the block's gradients by sums and vectors; the odd vector at the
    end keeps the rows of large powers of two from falling into the same places of a cache."""
    return (c["sums"] + c["unit_parameters"]) * c["H_row"] + kind.size


def _line(e: Emit, c: Frame, K: Num) -> Num:
    """Bytes of a line of the gradient by a matrix: of several panels, none need be padded."""
    wide = K > c["column_widest"] * e.kind.lanes
    unpadded = c["unpadded"].compare("!=", 0) & wide
    return where(unpadded, K * e.kind.bytes, blocks_of(e, K) * e.kind.size)


def _walked(f: Frame, rows: Num, size: Num, count: Num) -> tuple[Num, Num]:
    """Where a block's rows begin in the order in which they are summed, and bytes to the next."""
    step = where(f["reverse"].compare("!=", 0), size, size * -1)
    return where(f["reverse"].compare("!=", 0), rows, rows + (count - 1) * size), step


def _input(e: Emit, c: Frame, f: Frame, products: Sequence[Emit], before: Num, count: Num) -> None:
    """dx = W^T d_sums, this thread's share of a block's rows; of columns where W is not packed."""
    g, line, lies = e.args, line_size(c, e.kind), c["W_lies"].compare("!=", 0)
    low, high = my_share(count, g["thread"], g["team"])
    low, high = where(lies, 0, low), where(lies, count, high)
    words: dict[str, Num | int] = {
        "block": g["block"], "start": c["zeros"], "start_row": 0, "A": f["d_sums"] + low * line,
        "A_row": line, "A_part": c["H_row"], "parts": c["with_a"], "K": c["H"],
        "C": f["d_x"] + (before + low) * c["I_row"], "C_row": c["I_row"], "rows": high - low,
    }  # fmt: skip
    with e.split(lies) as (whole, packed):
        with whole:
            e.call(products[1], B=f["W"], gate=f["gate_a"], columns=c["I"], panels=c["W_lies"],
                   thread=g["thread"], member=g["thread"], members=g["team"],
                   **words)  # fmt: skip
        with packed:
            e.call(products[0], B=f["W_back"], vectors=c["I_row"] // e.kind.size, turned=0,
                   member=0, members=1, **words)  # fmt: skip


def _run(e: Emit, c: Frame, f: Frame, functions: tuple[Emit, Emit], run: Frame, count: Num) -> None:
    """What a run says of its matrix, in a block of so many rows."""
    sums = f["gate_u"] + run["line"] * 8, run["line"], run["count"]
    operand = f["operand_block"] + run["slot"] * c["operand_block_plane"]
    source = where(run["has_operand"].compare("!=", 0), operand, f["old_block"])
    rows = source, c["H_row"], count
    to, cut = (e.word(f[n], run["matrix"]) for n in ("d_matrices", "d_matrices_cut"))
    matrix = Gradient(to, cut, run["width"], _line(e, c, run["K"]), run["K"])
    with e.split(run["blocks"].compare("==", 1)) as (whole, parted):
        with whole:
            _weights(e, c, f, functions, sums, rows, matrix)
        with parted:
            _weights(e, c, f, functions, sums, rows, matrix, run)


def _weights(
    e: Emit, c: Frame, f: Frame, functions: tuple[Emit, Emit], sums: tuple[Num, Num, Num],
    rows: tuple[Num, Num, Num], matrix: Gradient, run: Frame | None = None,
) -> None:  # fmt: skip
    """This thread's lines of the gradient by a matrix of some sums; the first block begins them,
    unless they are added to, and after the last they go where they are wanted.

    Args:
        e, c, f: the function, and its numbers.
        functions: C = start + A^T B, and what cuts lines.
        sums: each one's number in the matrix, the first one's among all, and how many.
        rows: what they multiply, bytes from row to row, and how many.
        matrix: the gradient.
        run: of one sum whose matrix has blocks, each of which is a part by itself.
    """
    g, (gates, first, number), (column_product, cut) = e.args, sums, functions
    to, width, row = matrix.to, matrix.width, matrix.row
    number = number if run is None else run["blocks"]
    low, high = my_share(number * width, g["thread"], g["team"])
    block, block_step = _walked(f, *rows)
    begins = g["first"].compare("==", 0) & c["adds"].compare("==", 0)
    with e.loop(number) as q:
        line = q.index * width
        start, stop = low.most(line), high.least(line + width)
        unit = start - line
        part = e.word(gates, q.index).most(0) if run is None else q.index
        before = part * width + unit
        address = to + before * row
        source, source_row = where(begins, c["zeros"], address), where(begins, 0, row)
        with e.when(stop > start):
            place, own = (first + q.index) * c["H_row"] + unit * e.kind.bytes, block
            if run is not None:
                place = first * c["H_row"] + start * e.kind.bytes
                own = block + q.index * (run["K"] * e.kind.bytes)
            A, A_step = _walked(f, f["d_sums"] + place, line_size(c, e.kind), rows[2])
            e.call(
                column_product, **e.passed_on("block", "thread"), start=source,
                start_row=source_row, A=A, A_step=A_step, B=own, B_step=block_step, K=rows[2],
                C=address, C_row=row, rows=stop - start, vectors=blocks_of(e, matrix.K),
            )  # fmt: skip
            _cut(e, c, cut, matrix, before, stop - start)


def _cut(e: Emit, c: Frame, cut: Emit, matrix: Gradient, before: Num, rows: Num) -> None:
    """In the last block: lines of a gradient, after some others, to where they are wanted."""
    with e.when((e.args["last"] >= c["T"]) & matrix.cut.compare("!=", 0)):
        source, line = matrix.to + before * matrix.row, matrix.K * e.kind.bytes
        e.call(cut, to=matrix.cut + before * line, to_row=line, source=source,
               source_row=matrix.row, rows=rows, count=matrix.K)  # fmt: skip


def _write_sums(module: ir.Module, kind: Kind) -> Emit:
    """`column_sums(to, source, row, rows, vectors)`: adds every column's sum over the rows."""
    e = Emit(module, "column_sums", kind, ("to", "source", "row", "rows", "vectors"), internal=True)
    g = e.args
    with e.loop(g["vectors"]) as v:
        column = v.index * kind.size
        with e.loop(g["rows"], e.load(g["to"] + column)) as n:
            value = e.load(g["source"] + column + g["row"] * n.index)
            n.next = [n.values[0] + value]
        e.store(n.values[0], g["to"] + column)
    return e.done()


@contextmanager
def _my_units(e: Emit, c: Frame) -> Iterator[tuple[Num, Num]]:
    """The body for each sum and vector: bytes to this thread's units of it, in how many vectors."""
    low, high = my_share(c["H_row"] // e.kind.size, e.args["thread"], e.args["team"])
    with e.loop(c["sums"] + c["unit_parameters"]) as k:
        yield k.index * c["H_row"] + low * e.kind.size, high - low


def begin_sums(e: Emit, c: Frame, f: Frame, copies: dict[str, Emit]) -> None:
    """Sums over rows and steps begin at zero, this thread's units, unless they are added to."""
    with e.when(c["adds"].compare("==", 0)), _my_units(e, c) as (at, vectors):
        e.call(copies["copy"], to=f["d_bias"] + at, to_row=e.kind.size, source=c["zeros"],
               source_row=0, rows=vectors, count=e.kind.lanes)  # fmt: skip


def give_sums(e: Emit, c: Frame, f: Frame, copies: dict[str, Emit]) -> None:
    """Sums over all rows and steps, to the biases and vectors they are the gradients of: this
    thread's units, which nobody else has written."""
    with e.when(c["wants_weights"].compare("!=", 0)):
        with e.loop(c["sums"]) as k:
            source = f["d_bias"] + k.index * c["H_row"]
            for gates, to in (("gate_a", "d_W_bias"), ("gate_u", "d_U_bias")):
                gate = e.word(f[gates], k.index)
                with e.when((gate >= 0) & f[to].compare("!=", 0)):
                    _give_line(e, c, copies, f[to] + gate * c["H"] * e.kind.bytes, source)
        with e.loop(c["unit_parameters"]) as v:
            source = f["d_bias"] + (c["sums"] + v.index) * c["H_row"]
            _give_line(e, c, copies, e.word(f["d_unit_parameters_at"], v.index), source)


def _give_line(e: Emit, c: Frame, copies: dict[str, Emit], to: Num, source: Num) -> None:
    """This thread's units of a sum or vector."""
    low, high = my_share(c["H_row"] // e.kind.size, e.args["thread"], e.args["team"])
    first, end = (v * e.kind.lanes for v in (low, high))
    to, source = to + first * e.kind.bytes, source + first * e.kind.bytes
    e.call(copies["give"], to=to, to_row=0, source=source, source_row=0, rows=1,
           count=end.least(c["H"]) - first, order=c["zeros"])  # fmt: skip
