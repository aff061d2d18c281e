"""What a cell computes between two phases: the vector that the later one multiplies, and back."""

from __future__ import annotations

from typing import Final

from llvmlite import ir

from throughtime.compiler.llvm.cell import (
    BACKWARD,
    backward_loads,
    forward_loads,
    input_place,
    places_back,
)
from throughtime.compiler.llvm.emit import Emit
from throughtime.compiler.llvm.kind import Kind
from throughtime.compiler.llvm.number import Num
from throughtime.compiler.llvm.pointwise import Pointwise
from throughtime.compiler.llvm.rows import lanes_below
from throughtime.compiler.plan import Plan

FORWARD: Final = (
    "rows", "pre", "pre_row", "old", "state", "H_row", "state_plane", "to", "vectors", "H",
    "inputs",
)  # fmt: skip


def write_stage_forward(module: ir.Module, kind: Kind, plan: Plan, slot: int) -> Emit:
    """`stage_forward_<slot>(...)`: the vector of a phase, from what the phases before it gave.

    for rows: for unit blocks
    """
    e = Emit(module, f"stage_forward_{slot}", kind, FORWARD)
    g = e.given
    with e.loop(g["rows"]) as row, e.loop(g["H_row"] // kind.size) as block:
        column = block.index * kind.size
        places = places_to_vector(e, plan, row.index, column)
        values = Pointwise(e, plan.graph, g["H"], forward_loads(e, plan, places))
        e.store(values.value(plan.own[slot].vector), places["to"])
    e.done()
    return e


def places_to_vector(e: Emit, plan: Plan, row: Num, column: Num) -> dict[str, Num]:
    """Where a vector of units of one row lies, in everything that a stage is given."""
    g, line = e.given, e.given["H_row"] * row + column
    places = {name: g[name] + line for name in ("old", "state", "to")}
    places["pre"] = g["pre"] + g["pre_row"] * row + column
    places["vectors"] = g["vectors"] + column
    return places | {"inputs": input_place(e, plan, "inputs", row, column)}


def write_stage_backward(module: ir.Module, kind: Kind, plan: Plan, slot: int) -> Emit:
    """`stage_backward_<slot>(...)`: gradients by a phase's sums, and the vector it multiplied.

    for rows: for unit blocks
    """
    e = Emit(module, f"stage_backward_{slot}", kind, BACKWARD)
    g = e.given
    with e.loop(g["rows"]) as row, e.loop(g["H_row"] // kind.size) as block:
        column, left = block.index * kind.size, g["H"] - block.index * kind.lanes
        places = places_back(e, plan, row.index, column)
        loads = backward_loads(e, plan, places, len(plan.own) - 1 - slot)
        values = Pointwise(e, plan.graph, g["H"], loads)
        store_vector_gradients(e, plan, slot, places, values, left)
    e.done()
    return e


def store_vector_gradients(
    e: Emit, plan: Plan, slot: int, places: dict[str, Num], values: Pointwise, left: Num
) -> None:
    """Write gradients by a phase's sums, and the vector it multiplied; zeros behind the last."""
    g, phase, lanes = e.given, plan.own[slot], lanes_below(e, left)
    found = {places["d_sums"] + g["H_row"] * k: plan.sums[k].gradient for k in phase.places}
    found[places["own_block"] + g["own_block_plane"] * slot] = phase.vector
    for to, node in found.items():
        e.store(e.b.select(lanes, values.value(node), e.zero()), to)
