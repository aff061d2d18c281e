"""One time step of a whole stack: a list of calls of tiles and cells, worked off by one function.

    program = times, count, then count operations: kind, function, its arguments

What is called with what was worked out when the stream was made; nothing is decided here, so that
one piece of code carries every stack.
"""

from __future__ import annotations

from typing import Final

from llvmlite import ir

from throughtime.compiler.llvm import arguments
from throughtime.compiler.llvm.loops.team import denormals_flushed
from throughtime.compiler.llvm.products import tile
from throughtime.compiler.llvm.sizes import ADD, CELL, HEAD, OPERATION, PHASE, TILE, Kind
from throughtime.compiler.llvm.values import Num
from throughtime.compiler.llvm.writer import Emit
from throughtime.compiler.runtime.machine import Machine

OPERATIONS: Final = {
    TILE: arguments.TILE, CELL: arguments.CELL_FORWARD, PHASE: arguments.PHASE_FORWARD,
}  # fmt: skip
"""What the function of each kind takes."""

ADDED: Final = ("rows", "blocks", "x", "x_row", "z", "z_row", "y", "y_row")
"""What y = x + z takes, which is no cell's function: vectors of a row, and where each begins."""


def stream_module(kind: Kind, machine: Machine) -> ir.Module:
    """`stream(program)`: all operations in order, and that as often as the program says."""
    module = ir.Module("stream")
    add = _write_add(module, kind)
    e = Emit(module, "stream", kind, ("program",))
    program = e.given["program"]
    times, count = e.word(program), e.word(program, 1)
    with denormals_flushed(e, machine), e.loop(times), e.loop(count) as i:
        at = program + 8 * HEAD + i.index * (8 * OPERATION)
        for operation, names in OPERATIONS.items():
            with e.when(e.word(at).compare("==", operation)):
                e.call_at(e.word(at, 1), names, **_arguments(e, at, names))
        with e.when(e.word(at).compare("==", ADD)):
            e.call(add, **_arguments(e, at, ADDED))
    e.done()
    return module


def _write_add(module: ir.Module, kind: Kind) -> Emit:
    """`add(...)`: y = x + z, for rows: for vectors."""
    e = Emit(module, "add", kind, ADDED, internal=True)
    g = e.given
    with e.loop(g["rows"]) as row, e.loop(g["blocks"]) as block:
        x, z, to = (g[n] + g[f"{n}_row"] * row.index + block.index * kind.size for n in "xzy")
        e.store(e.load(x) + e.load(z), to)
    e.done()
    return e


def _arguments(e: Emit, at: Num, names: tuple[str, ...]) -> dict[str, Num]:
    """What the function of one operation takes."""
    return {name: e.word(at, i) for i, name in enumerate(names, 2)}


def tile_module(kind: Kind, rows: int, vectors: int, narrow: bool) -> ir.Module:
    """The tile of a stream's rows: of one row it has more vectors than any tile of many rows."""
    module = ir.Module("stream tile")
    (tile.write_narrow_tile if narrow else tile.write_tile)(module, kind, rows, vectors)
    return module
