"""Modules of machine code: the loops and tiles that all cells share, and each cell's own part."""

from __future__ import annotations

from llvmlite import ir

from throughtime.compiler.llvm.cell.functions import (
    write_cell_backward,
    write_cell_forward,
    write_phase_backward,
    write_phase_forward,
    write_row_backward,
    write_row_forward,
    write_row_from_vector,
    write_row_to_vector,
)
from throughtime.compiler.llvm.loops import backward, forward, rows, team
from throughtime.compiler.llvm.products import product as products
from throughtime.compiler.llvm.products import tile
from throughtime.compiler.llvm.products.packing import write_packing
from throughtime.compiler.llvm.sizes import COLUMN_ROWS, Kind, most_rows
from throughtime.compiler.plan import Plan
from throughtime.compiler.runtime.machine import Machine


def loops_module(kind: Kind, machine: Machine, back: bool) -> ir.Module:
    """`forward` or `backward`: the region that a team runs, the same for every cell."""
    module = ir.Module("loops")
    copies = rows.write_copies(module, kind)
    product = products.write_product(module, kind)
    barrier = team.write_barrier(module, kind, machine)
    pack = write_packing(module, kind, copies, back)
    if back:
        both = product, products.write_column_product(module, kind)
        backward.write_backward(module, kind, copies, both, pack, barrier, machine)
    else:
        both = product, products.write_line_product(module, kind)
        forward.write_forward(module, kind, copies, both, pack, barrier, machine)
    return module


def tiles_module(kind: Kind, registers: int, vectors: int) -> ir.Module:
    """The register tiles of so many vectors, for products with rows in order."""
    module = ir.Module("tiles")
    for height in range(1, most_rows(registers, vectors) + 1):
        tile.write_tile(module, kind, height, vectors)
    return module


def line_module(kind: Kind, height: int) -> ir.Module:
    """The register tile of so many rows for weights as they lie."""
    module = ir.Module("line")
    tile.write_line_tile(module, kind, height)
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
    (write_row_forward if plan.rowwise else write_cell_forward)(module, kind, plan, keep)
    for slot in range(len(plan.own)):
        (write_row_to_vector if plan.rowwise else write_phase_forward)(module, kind, plan, slot)
    return module


def backward_module(kind: Kind, plan: Plan) -> ir.Module:
    """`cell_backward`, and what comes before it for later phases."""
    module = ir.Module("cell_backward")
    (write_row_backward if plan.rowwise else write_cell_backward)(module, kind, plan)
    for slot in range(len(plan.own)):
        (write_row_from_vector if plan.rowwise else write_phase_backward)(module, kind, plan, slot)
    return module
