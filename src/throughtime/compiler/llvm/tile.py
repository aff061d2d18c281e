"""The register tile: R rows times V vectors of a product, of float32, float64 or bfloat16.

A bfloat16 is the upper half of a float32, so the weight of an even k, in the lower half, is shifted
up, and that of the odd k after it keeps its place. Products and sums are float32, in the order of
the usual tile: the results are those of float32 weights of the same values, bit by bit.

    C[r, v] = start[r, v] + sum over k, in order, of A[r, k] B[k, v]

Every element is one chain over k, whatever R and V are: that is the bit contract. The tiles know
nothing of cells; what a panel of V vectors means is the caller's.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from throughtime.compiler.llvm.abi import COLUMN_TILE, LINE_TILE, ROW_TILE, TILE, Kind
from throughtime.compiler.llvm.loops.rows import load_part
from throughtime.compiler.llvm.values import Num, Vector, fma, where
from throughtime.compiler.llvm.writer import SECOND, Emit

_AT_ONCE = 4
"""Numbers of each line in one turn of a loop over lines: a machine holds fewer addresses."""


def _chains(e: Emit, rows: int, places: Sequence[Num | int]) -> list[Vector]:
    """Where the chains of a tile start, row by row, from the places of its vectors."""
    g = e.args
    return [e.load(g["start"] + g["start_row"] * r + at) for r in range(rows) for at in places]


def _give(e: Emit, chains: Sequence[Any], vectors: int) -> None:
    """The chains of a tile to C, which ends the function."""
    for i, chain in enumerate(chains):
        r, v = divmod(i, vectors)
        e.store(chain, e.args["C"] + e.args["C_row"] * r + v * e.kind.size)
    e.done()


def write_tile(module: ir.Module, kind: Kind, rows: int, vectors: int) -> None:
    """Write the tile of R rows and V vectors."""
    e = Emit(module, f"tile_{vectors}_{rows}", kind, TILE)
    g = e.args
    start = _chains(e, rows, [e.word(g["places"], v) for v in range(vectors)])
    with e.loop(g["parts"], *start, g["A"], g["B"], g["ahead"]) as part:
        *chains, a, b, ahead = part.values
        with e.loop(g["K"], *chains, a, b, ahead) as k:
            *values, ahead = k.values
            e.fetch(ahead, SECOND)
            k.next = [*_step(e, values, rows, vectors), ahead + g["ahead_step"]]
        *chains, _, b, ahead = k.values
        part.next = [*chains, a + g["A_part"], b, ahead]
    _give(e, part.values[:-3], vectors)


def _step(e: Emit, values: list[Any], rows: int, vectors: int) -> list[Any]:
    """One k: a number of each row of A, spread, times the vectors of B.

    The fewer of the two are held in registers while the others come one by one.
    """
    *chains, a, b = values

    def spread(r: int) -> Vector:
        return e.spread(e.real(a + e.args["A_row"] * r))

    def weight(v: int) -> Vector:
        return e.load(b + v * e.kind.size)

    if rows < vectors:
        held = [spread(r) for r in range(rows)]
        pairs = (
            (r, v, held[r], w) for v in range(vectors) for w in [weight(v)] for r in range(rows)
        )
    else:
        held = [weight(v) for v in range(vectors)]
        pairs = (
            (r, v, x, held[v]) for r in range(rows) for x in [spread(r)] for v in range(vectors)
        )
    for r, v, x, w in pairs:
        chains[r * vectors + v] = fma(x, w, chains[r * vectors + v])
    return [*chains, a + e.kind.bytes, b + e.args["B_step"]]


def transposed(square: list[Vector]) -> list[Vector]:
    """A square of vectors, lines for columns: blocks of 1, 2, 4, ... numbers change places."""
    lanes, size = len(square), 1
    while size < lanes:
        kept = [lane if not lane & size else lanes + lane - size for lane in range(lanes)]
        moved = [lane + size if not lane & size else lanes + lane for lane in range(lanes)]
        new = list(square)
        for i in range(lanes):
            if not i & size:
                a, b = square[i], square[i + size]
                new[i], new[i + size] = (a.shuffled(places, b) for places in (kept, moved))
        square, size = new, 2 * size
    return square


def write_line_tile(module: ir.Module, kind: Kind, rows: int) -> None:
    """Write the tile of R rows and one vector whose B is lines of a matrix.

    A square of them is turned in registers, for as many k as a vector has lanes. Lanes without a
    line multiply zeros.
    """
    e = Emit(module, f"line_tile_{rows}", kind, LINE_TILE)
    g, line = e.args, e.args["K"] * kind.bytes
    lines = [where(g["lines"] > i, g["B"] + line * i, g["zeros"]) for i in range(kind.lanes)]
    start = [e.load(g["start"] + g["start_row"] * r) for r in range(rows)]
    whole = g["K"] // kind.lanes * kind.lanes
    with e.loop(whole, *start, step=kind.lanes) as k:
        at = k.index * kind.bytes
        square = transposed([e.load(address + at) for address in lines])
        k.next = _grown(e, k.values, square, at)
    left = g["K"] - whole
    with e.loop(left.least(1), *k.values) as tail:
        at = whole * kind.bytes
        square = transposed([load_part(e, address + at, left) for address in lines])
        tail.next = _grown(e, tail.values, square, at, left)
    for r, chain in enumerate(tail.values):
        e.store(chain, g["C"] + g["C_row"] * r)
    e.done()


def _grown(
    e: Emit, chains: list[Any], square: list[Vector], at: Num, left: Num | None = None
) -> list[Any]:
    """Chains after the k of a square, or after those of them that are left."""
    chains = list(chains)
    for i, weights in enumerate(square):
        for r, chain in enumerate(chains):
            last = e.number(i) if left is None else (left - 1).least(i)
            x = e.real(e.args["A"] + e.args["A_row"] * r + at + last * e.kind.bytes)
            grown = fma(e.spread(x), weights, chain)
            chains[r] = grown if left is None else where(left > i, grown, chain)
    return chains


def write_row_tile(module: ir.Module, kind: Kind) -> None:
    """Write the tile whose lanes are rows of A, and whose B is lines of a matrix.

    A comes turned, a vector of all rows for each k, and each number of a line is spread: nothing of
    B is turned. Where chains start and what they come to is turned instead, once. Lanes without a
    row, and lines that are not there, multiply zeros.
    """
    e = Emit(module, "row_tile", kind, ROW_TILE)
    g, line, each = e.args, e.args["K"] * kind.bytes, range(kind.lanes)
    lines = [where(g["lines"] > i, g["B"] + line * i, g["zeros"]) for i in each]
    start = [where(g["rows"] > r, g["start"] + g["start_row"] * r, g["zeros"]) for r in each]
    chains: list[Any] = transposed([e.load(row) for row in start])
    whole = g["K"] // _AT_ONCE * _AT_ONCE
    for first, stop, count in ((e.number(0), whole, _AT_ONCE), (whole, g["K"], 1)):
        with e.loop(stop, *chains, start=first, step=count) as k:
            vectors = [e.load(g["A"] + (k.index + t) * kind.size) for t in range(count)]
            k.next = list(k.values)
            for (t, rows), i in itertools.product(enumerate(vectors), each):
                weight = e.real(lines[i] + (k.index + t) * kind.bytes)
                k.next[i] = fma(rows, e.spread(weight), k.next[i])
        chains = k.values
    for r, chain in enumerate(transposed(chains)):
        with e.when(g["rows"] > r):
            e.store(chain, g["C"] + g["C_row"] * r)
    e.done()


def write_column_tile(module: ir.Module, kind: Kind, rows: int, vectors: int) -> None:
    """Write the tile of R rows and V vectors whose A lies with r from number to number."""
    e = Emit(module, f"column_{vectors}_{rows}", kind, COLUMN_TILE)
    g = e.args
    start = _chains(e, rows, [v * kind.size for v in range(vectors)])
    with e.loop(g["K"], *start, g["A"], g["B"]) as k:
        *chains, a, b = k.values
        weights = [e.load(b + v * kind.size) for v in range(vectors)]
        for r in range(rows):
            x = e.spread(e.real(a + r * kind.bytes))
            for v in range(vectors):
                chains[r * vectors + v] = fma(x, weights[v], chains[r * vectors + v])
        k.next = [*chains, a + g["A_step"], b + g["B_step"]]
    _give(e, k.values[:-2], vectors)


UPPER_HALF = 0xFFFF0000


def write_narrow_tile(module: ir.Module, kind: Kind, rows: int, vectors: int) -> None:
    """Write the tile of R rows and V vectors. It takes one part of each row."""
    e = Emit(module, f"narrow_tile_{vectors}_{rows}", kind, TILE)
    g = e.args
    chains: list[Any] = _chains(e, rows, [e.word(g["places"], v) for v in range(vectors)])
    # The loop of the last k runs once or not at all.
    for times, halves in ((g["K"] // 2, 2), (g["K"] % 2, 1)):
        a = g["A"] if halves == 2 else g["A"] + (g["K"] + -1) * kind.bytes
        b = g["B"] if halves == 2 else g["B"] + g["K"] // 2 * (vectors * kind.size)
        with e.loop(times, *chains, a, b) as k:
            k.next = _narrow_step(e, k.values, rows, vectors, halves)
        chains = k.values[:-2]
    _give(e, chains, vectors)


def _narrow_step(e: Emit, values: list[Any], rows: int, vectors: int, halves: int) -> list[Any]:
    """One or two k: numbers of each row of A, spread, times the weights in the halves of B."""
    *chains, a, b = values
    spread = [
        [e.spread(e.real(a + e.args["A_row"] * r + half * e.kind.bytes)) for r in range(rows)]
        for half in range(halves)
    ]
    for v in range(vectors):
        bits = e.bits(b + v * e.kind.size)
        weights = [(bits << 16).number(), (bits & UPPER_HALF).number()]
        for half in range(halves):
            for r in range(rows):
                i = r * vectors + v
                chains[i] = fma(spread[half][r], weights[half], chains[i])
    return [*chains, a + halves * e.kind.bytes, b + vectors * e.kind.size]
