"""Modules of machine code: loops and tiles that all cells share, each cell's own part, streams."""

from __future__ import annotations

from llvmlite import ir

from throughtime.compiler.llvm import product as products
from throughtime.compiler.llvm import tile
from throughtime.compiler.llvm.abi import (
    ADD,
    COLUMN_ROWS,
    HEAD,
    OPERATION,
    OPERATIONS,
    Kind,
    line_rows,
    most_rows,
)
from throughtime.compiler.llvm.cell import (
    write_backward,
    write_cell_forward,
    write_phase_forward,
)
from throughtime.compiler.llvm.kernels import write_kernels
from throughtime.compiler.llvm.loops import backward, forward, rows, team
from throughtime.compiler.llvm.packing import (
    write_columns,
    write_lines,
    write_packing,
    write_squares,
    write_vectors,
)
from throughtime.compiler.llvm.writer import Emit
from throughtime.compiler.plan import Plan
from throughtime.compiler.runtime.machine import Machine


def loops_module(kind: Kind, machine: Machine, back: bool) -> ir.Module:
    """`forward` or `backward`: the region that a team runs, the same for every cell."""
    module = ir.Module("loops")
    copies = rows.write_copies(module, kind)
    product = products.write_product(module, kind)
    move_apart = team.write_move_apart(module, kind)
    barrier = team.write_barrier(module, kind, move_apart, machine)
    vectors = write_vectors(module, kind, copies, back)
    if back:
        transposed = products.write_transposed_product(module, kind, copies["cut"])
        every = product, transposed, products.write_column_product(module, kind)
        pack = write_packing(module, kind, vectors, write_columns(module, kind), back)
        meetings = barrier, move_apart
        backward.write_backward(module, kind, copies, every, (pack, vectors), meetings, machine)
    else:
        squares = write_squares(module, kind)
        height = line_rows(machine.registers)
        lines = products.write_line_product(module, kind, height)
        all_three = product, lines, products.write_turn_rows(module, kind, height)
        pack = write_packing(module, kind, vectors, write_lines(module, kind, squares), back)
        forward.write_forward(module, kind, copies, all_three, pack, barrier, machine)
    return module


def tiles_module(kind: Kind, registers: int, vectors: int) -> ir.Module:
    """The register tiles of so many vectors, for products with rows in order."""
    module = ir.Module("tiles")
    for height in range(1, most_rows(registers, vectors) + 1):
        tile.write_tile(module, kind, height, vectors)
    return module


def line_module(kind: Kind, height: int) -> ir.Module:
    """The register tile of so many rows for weights as they lie; 0: of a vector's lanes."""
    module = ir.Module("line")
    if height:
        tile.write_line_tile(module, kind, height)
    else:
        tile.write_row_tile(module, kind)
    return module


def columns_module(kind: Kind, vectors: int) -> ir.Module:
    """The register tiles of so many vectors for sums over rows: weight gradients."""
    module = ir.Module("columns")
    for height in COLUMN_ROWS:
        tile.write_column_tile(module, kind, height, vectors)
    return module


def forward_module(kind: Kind, plan: Plan, keep: bool = True) -> ir.Module:
    """`cell_forward`, and what comes before later phases; with `keep` it saves for backward."""
    module = ir.Module("cell_forward")
    write_cell_forward(module, kind, plan, keep)
    for slot in range(len(plan.computed)):
        write_phase_forward(module, kind, plan, slot)
    return module


def backward_module(kind: Kind, plan: Plan) -> ir.Module:
    """`cell_backward`, and what comes before it for later phases."""
    module = ir.Module("cell_backward")
    for slot in (None, *range(len(plan.computed))):
        write_backward(module, kind, plan, slot)
    return module


def stream_module(kind: Kind, machine: Machine) -> ir.Module:
    """`stream(program)`: one step of a stack, a list of calls of tiles and cells, worked off.

        program = times, count, then count operations: kind, function, its arguments

    What is called with what was worked out when the stream was made; nothing is decided here, so
    that one piece of code carries every stack.
    """
    module = ir.Module("stream")
    add = _write_add(module, kind)
    e = Emit(module, "stream", kind, ("program",))
    program = e.args["program"]
    times, count = e.word(program), e.word(program, 1)
    with team.denormals_flushed(e, machine), e.loop(times), e.loop(count) as i:
        at = program + 8 * HEAD + i.index * (8 * OPERATION)
        for operation, names in enumerate(OPERATIONS):
            with e.when(e.word(at).compare("==", operation)):
                arguments = {name: e.word(at, k) for k, name in enumerate(names, 2)}
                if names is ADD:
                    e.call(add, **arguments)
                else:
                    e.call_at(e.word(at, 1), names, **arguments)
    e.done()
    return module


def _write_add(module: ir.Module, kind: Kind) -> Emit:
    """`add(...)`: y = x + z, for rows: for vectors."""
    e = Emit(module, "add", kind, ADD, internal=True)
    g = e.args
    with e.loop(g["rows"]) as row, e.loop(g["blocks"]) as block:
        x, z, to = (g[n] + g[f"{n}_row"] * row.index + block.index * kind.size for n in "xzy")
        e.store(e.load(x) + e.load(z), to)
    return e.done()


def tile_module(kind: Kind, rows: int, vectors: int, narrow: bool) -> ir.Module:
    """The tile of a stream's rows: of one row it has more vectors than any tile of many rows."""
    module = ir.Module("stream tile")
    (tile.write_narrow_tile if narrow else tile.write_tile)(module, kind, rows, vectors)
    return module


def team_module(kind: Kind) -> ir.Module:
    """`on_team`: what calls a region on a team."""
    module = ir.Module("team")
    team.write_on_team(module, kind)
    return module


def kernels_module(kind: Kind) -> ir.Module:
    """`forward`, `backward` and their `table`: kernels of torch's dispatcher; and `carry`."""
    module = ir.Module("kernels")
    write_kernels(module, kind)
    return module
