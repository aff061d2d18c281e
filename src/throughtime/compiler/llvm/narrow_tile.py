"""The register tile on weights of bfloat16: two of one unit in the place of one float32.

A bfloat16 is the upper half of a float32, so the weight of an even k, in the lower half, is shifted
up, and that of the odd k behind it keeps its place. Products and sums are float32, in the order of
the usual tile: the results are those of float32 weights of the same values, bit by bit.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from throughtime.compiler.llvm.emit import Emit
from throughtime.compiler.llvm.kind import Kind
from throughtime.compiler.llvm.number import Num
from throughtime.compiler.llvm.tile import ARGUMENTS
from throughtime.compiler.llvm.vector import Bits

UPPER_HALF = 0xFFFF0000


def write_narrow_tile(module: ir.Module, kind: Kind, rows: int, vectors: int) -> str:
    """Write the tile of R rows and V vectors; gives its name. It takes one part of each row."""
    e = Emit(module, f"narrow_tile_{vectors}_{rows}", kind, ARGUMENTS)
    g = e.given
    places = [e.word(g["places"], v) for v in range(vectors)]
    chains = [
        e.load(g["start"] + g["start_row"] * r + places[v])
        for r in range(rows)
        for v in range(vectors)
    ]
    # The loop of the last k runs once or not at all.
    for times, halves in ((g["K"] // 2, 2), (g["K"] % 2, 1)):
        a = g["A"] if halves == 2 else g["A"] + (g["K"] + -1) * kind.bytes
        b = g["B"] if halves == 2 else g["B"] + g["K"] // 2 * (vectors * kind.size)
        with e.loop(times, *chains, a.value, b.value) as k:
            k.next = _step(e, k.values, rows, vectors, halves)
        chains = k.values[:-2]
    for i, chain in enumerate(chains):
        r, v = divmod(i, vectors)
        e.store(chain, g["C"] + g["C_row"] * r + v * kind.size)
    e.done()
    return str(e.function.name)


def _step(e: Emit, values: list[Any], rows: int, vectors: int, halves: int) -> list[Any]:
    """One or two k: numbers of each row of A, spread, times the weights in the halves of B."""
    *chains, a_value, b_value = values
    a, b = Num(e.b, a_value), Num(e.b, b_value)
    spread = [
        [e.splat(e.real(a + e.given["A_row"] * r + half * e.kind.bytes)) for r in range(rows)]
        for half in range(halves)
    ]
    pair = ir.VectorType(ir.IntType(32), e.kind.lanes)
    for v in range(vectors):
        address = e.pointer(b + v * e.kind.size)
        bits = Bits(e.b, e.b.load(address, typ=pair, align=e.kind.bytes))
        weights = [(bits << 16).number().value, (bits & UPPER_HALF).number().value]
        for half in range(halves):
            for r in range(rows):
                i = r * vectors + v
                chains[i] = e.fma(spread[half][r], weights[half], chains[i])
    return [*chains, (a + halves * e.kind.bytes).value, (b + vectors * e.kind.size).value]
