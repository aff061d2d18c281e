"""What a cell computes between two phases: the vector that the later one multiplies, and back."""

from __future__ import annotations

from typing import Final

from llvmlite import ir

from throughtime.compiler.llvm.cell import BACKWARD
from throughtime.compiler.llvm.emit import Emit
from throughtime.compiler.llvm.kind import Kind
from throughtime.compiler.llvm.number import Num
from throughtime.compiler.llvm.places import backward_loads, forward_loads, input_place, places_back
from throughtime.compiler.llvm.pointwise import Pointwise
from throughtime.compiler.llvm.rows import lanes_below
from throughtime.compiler.llvm.sections import blocks_of, sections, units_of
from throughtime.compiler.plan import Plan
from throughtime.compiler.widths import HIDDEN

FORWARD: Final = (
    "rows", "pre", "pre_row", "old", "state", "H_row", "state_plane", "to", "vectors", "H",
    "inputs", "widths",
)  # fmt: skip


def write_stage_forward(module: ir.Module, kind: Kind, plan: Plan, slot: int) -> Emit:
    """`stage_forward_<slot>(...)`: the vector of a phase, from what the phases before it gave.

    for rows: for unit blocks
    """
    e = Emit(module, f"stage_forward_{slot}", kind, FORWARD)
    g, vector, units = e.given, plan.own[slot].vector, units_of(e, plan)
    blocks = blocks_of(e, units[plan.widths.of[vector]])
    with e.loop(g["rows"]) as row, e.loop(blocks) as block:
        column = block.index * kind.size
        places = places_to_vector(e, plan, row.index, column)
        values = Pointwise(e, plan.graph, units, forward_loads(e, plan, places))
        e.store(values.value(vector), places["to"])
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

    for rows: for widths: for unit blocks
    """
    e = Emit(module, f"stage_backward_{slot}", kind, BACKWARD)
    g, units = e.given, units_of(e, plan)
    with e.loop(g["rows"]) as row:
        for width, count, blocks in sections(e, plan, g["H_row"] // kind.size):
            with e.loop(blocks if _wanted(plan, slot, width) else e.number(0)) as block:
                column, left = block.index * kind.size, count - block.index * kind.lanes
                places = places_back(e, plan, row.index, column)
                loads = backward_loads(e, plan, places, len(plan.own) - 1 - slot)
                values = Pointwise(e, plan.graph, units, loads)
                store_vector_gradients(e, plan, slot, places, values, left, width)
    e.done()
    return e


def _wanted(plan: Plan, slot: int, width: str) -> dict[int, int | None]:
    """The gradients by a phase's sums of some width; at -1 the vector itself."""
    phase, of = plan.own[slot], plan.widths.of
    found = {k: plan.sums[k].gradient for k in phase.places if of[plan.sums[k].node] == width}
    return found | ({-1: phase.vector} if of[phase.vector] == width else {})


def store_vector_gradients(
    e: Emit, plan: Plan, slot: int, places: dict[str, Num], values: Pointwise, left: Num,
    width: str = HIDDEN,
) -> None:  # fmt: skip
    """Write gradients by a phase's sums, and the vector it multiplied; zeros behind the last."""
    g, lanes = e.given, lanes_below(e, left)
    for k, node in _wanted(plan, slot, width).items():
        own = places["own_block"] + g["own_block_plane"] * slot
        to = own if k < 0 else places["d_sums"] + g["H_row"] * k
        e.store(e.b.select(lanes, values.value(node), e.zero()), to)
