"""A cell's own functions: pointwise parts and phases, forward and backward, over rows and units.

Where a step computes over the units of a row, each row takes several walks over them. What a walk
leaves for later ones lies in a few lines that every row uses again.
"""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from throughtime.compiler import sweeps
from throughtime.compiler.graph import NUMBER
from throughtime.compiler.llvm.arguments import CELL_BACKWARD, CELL_FORWARD, PHASE_FORWARD
from throughtime.compiler.llvm.cell.operands import (
    Loads,
    backward_loads,
    forward_loads,
    input_place,
    places_back,
    places_forward,
)
from throughtime.compiler.llvm.cell.pointwise import Pointwise
from throughtime.compiler.llvm.cell.sweeps import Row, write_sweeps
from throughtime.compiler.llvm.loops.phases import blocks_of, sections, units_of
from throughtime.compiler.llvm.loops.rows import lanes_below
from throughtime.compiler.llvm.sizes import Kind
from throughtime.compiler.llvm.values import Num, Vector, where
from throughtime.compiler.llvm.writer import Emit
from throughtime.compiler.plan import Plan
from throughtime.compiler.widths import HIDDEN


def write_cell_forward(module: ir.Module, kind: Kind, plan: Plan, keep: bool) -> Emit:
    """`cell_forward(...)`: new states, and with `keep` what is saved, from sums and old states.

    for widths: for unit blocks: for rows
    """
    e = Emit(module, "cell_forward", kind, CELL_FORWARD)
    g, units = e.given, units_of(e, plan)
    for width, _, blocks in sections(e, plan, g["unit_blocks"]):
        with e.loop(blocks) as block, e.loop(g["rows"]) as row:
            places = places_forward(e, plan, row.index, block.index * kind.size)
            vector = block.index * (len(plan.last) * kind.size)
            places["chains"] = g["chains"] + g["chains_row"] * row.index + vector
            values = Pointwise(e, plan.graph, units, forward_loads(e, plan, places))
            store_step(e, plan, places, values, keep, width)
    e.done()
    return e


def store_step(
    e: Emit, plan: Plan, places: dict[str, Num], values: Pointwise, keep: bool, width: str = HIDDEN
) -> None:
    """Write the new states of a width, and with `keep` the lines of it that are saved."""
    new = {k: values.value(plan.new_states[k]) for k in plan.states_of(width)}
    lines = plan.saved_lines if keep else ()
    saved = {k: values.value(i) for k, i in enumerate(lines) if plan.widths.of[i] == width}
    for k, value in saved.items():
        e.store(value, places["saved"] + e.given["H_row"] * k)
    for k, value in new.items():
        place = places["state"] + e.given["state_plane"] * k if k else places["new"]
        e.store(value, place)


def write_cell_backward(module: ir.Module, kind: Kind, plan: Plan) -> Emit:
    """`cell_backward(...)`: gradients by sums, old states and vectors, from those by new states.

    for rows: for widths: for unit blocks
    """
    e = Emit(module, "cell_backward", kind, CELL_BACKWARD)
    g, units = e.given, units_of(e, plan)
    with e.loop(g["rows"]) as row:
        for width, count, blocks in sections(e, plan, g["H_row"] // kind.size):
            with e.loop(blocks) as block:
                column, left = block.index * kind.size, count - block.index * kind.lanes
                places = places_back(e, plan, row.index, column)
                loads = backward_loads(e, plan, places, len(plan.own))
                values = Pointwise(e, plan.graph, units, loads)
                store_gradients(e, plan, places, values, left, width)
    e.done()
    return e


def store_gradients(
    e: Emit, plan: Plan, places: dict[str, Num], values: Pointwise, left: Num, width: str = HIDDEN
) -> None:
    """All gradients of a width are computed before the first is written: they share their places.

    Args:
        e, plan, places, values: the function, and what it computes from.
        left: units of the width from this vector on.
        width: its name.
    """
    g, lanes = e.given, lanes_below(e, left)
    there = {k for phase in plan.own for k in phase.places}
    sums = {k: s.gradient for k, s in enumerate(plan.sums)
            if k not in there and plan.widths.of[s.node] == width}  # fmt: skip
    states = {k: plan.gradients.get(f"d_s.{plan.state_names[k]}") for k in plan.states_of(width)}
    inputs = {k: plan.gradients.get(f"d_a.{n}") for k, n in enumerate(plan.input_names)
              if plan.widths.of[plan.inputs[k]] == width}  # fmt: skip
    if width == HIDDEN:
        vectors = (plan.gradients.get(f"d_p.{name}") for name in plan.vectors)
        sums |= dict(enumerate(vectors, len(plan.sums)))
    groups = (sums, states, inputs)
    d_sums, d_states, d_inputs = (
        {k: values.value(i) for k, i in group.items()} for group in groups
    )
    if plan.rowwise and width == HIDDEN:  # a number that is summed already, in its parts' place
        first = lanes_below(e, left - g["H"] + 1)
        for k in inputs:
            if plan.graph.nodes[plan.inputs[k]].shape == NUMBER:
                d_inputs[k] = where(first, d_inputs[k], e.constant(0))
    for k, value in d_sums.items():  # zeros after the last unit: products run over them
        e.store(where(lanes, value, e.constant(0)), places["d_sums"] + g["H_row"] * k)
    for k, value in d_states.items():
        e.store(value, places["d_state"] + g["state_plane"] * k if k else places["direct"])
    for k, value in d_inputs.items():
        e.store(value, places["d_inputs"] + g["H_row"] * k)


def write_phase_forward(module: ir.Module, kind: Kind, plan: Plan, slot: int) -> Emit:
    """`phase_forward_<slot>(...)`: the vector of a phase, from what the phases before it gave.

    for rows: for unit blocks
    """
    e = Emit(module, f"phase_forward_{slot}", kind, PHASE_FORWARD)
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
    """Where a vector of units of one row lies, in everything that a phase is given."""
    g, line = e.given, e.given["H_row"] * row + column
    places = {name: g[name] + line for name in ("old", "state", "to")}
    places["pre"] = g["pre"] + g["pre_row"] * row + column
    places["unit_values"] = g["unit_values"] + column
    return places | {"inputs": input_place(e, plan, "inputs", row, column)}


def write_phase_backward(module: ir.Module, kind: Kind, plan: Plan, slot: int) -> Emit:
    """`phase_backward_<slot>(...)`: gradients by a phase's sums, and the vector it multiplied.

    for rows: for widths: for unit blocks
    """
    e = Emit(module, f"phase_backward_{slot}", kind, CELL_BACKWARD)
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
    gradients = {k: plan.sums[k].gradient for k in phase.places if of[plan.sums[k].node] == width}
    return gradients | ({-1: phase.vector} if of[phase.vector] == width else {})


def store_vector_gradients(
    e: Emit, plan: Plan, slot: int, places: dict[str, Num], values: Pointwise, left: Num,
    width: str = HIDDEN,
) -> None:  # fmt: skip
    """Write gradients by a phase's sums, and the vector it multiplied; zeros after the last."""
    g, lanes = e.given, lanes_below(e, left)
    for k, node in _wanted(plan, slot, width).items():
        own = places["operand_block"] + g["operand_block_plane"] * slot
        to = own if k < 0 else places["d_sums"] + g["H_row"] * k
        e.store(where(lanes, values.value(node), e.constant(0)), to)


Places = dict[str, Num]


def write_row_forward(module: ir.Module, kind: Kind, plan: Plan, keep: bool) -> Emit:
    """`cell_forward(...)`: for rows: for walks: for widths: for unit blocks."""
    e = Emit(module, "cell_forward", kind, CELL_FORWARD)
    g = e.given
    lines = g["chains"], g["H_row"]
    with e.loop(g["rows"]) as row:

        def at(column: Num) -> Places:
            return places_forward(e, plan, row.index, column)

        def finish(values: Pointwise, column: Num, left: Num, width: str) -> None:
            store_step(e, plan, at(column), values, keep, width)

        one = _row(e, plan, lambda column: forward_loads(e, plan, at(column)), lines)
        write_sweeps(one, sweeps.sweeps_forward(plan, keep), finish)
        saved = at(e.number(0))["saved"] + g["H_row"] * len(plan.saved_lines)
        for k, node in enumerate(plan.saved_numbers if keep else ()):
            e.store(one.held[node].first(), saved + k * kind.bytes)
    e.done()
    return e


def write_row_to_vector(module: ir.Module, kind: Kind, plan: Plan, slot: int) -> Emit:
    """`phase_forward_<slot>(...)`: for rows: for walks: for widths: for unit blocks."""
    e = Emit(module, f"phase_forward_{slot}", kind, PHASE_FORWARD)
    g = e.given
    lines = g["to"] + g["H_row"] * g["rows"], g["H_row"]
    with e.loop(g["rows"]) as row:

        def at(column: Num) -> Places:
            return places_to_vector(e, plan, row.index, column)

        def finish(values: Pointwise, column: Num, left: Num, width: str) -> None:
            vector = plan.own[slot].vector
            if plan.widths.of[vector] == width:
                e.store(values.value(vector), at(column)["to"])

        one = _row(e, plan, lambda column: forward_loads(e, plan, at(column)), lines)
        write_sweeps(one, sweeps.sweeps_to_vector(plan, slot), finish)
    e.done()
    return e


def write_row_backward(module: ir.Module, kind: Kind, plan: Plan) -> Emit:
    """`cell_backward(...)`: for rows: for walks: for widths: for unit blocks."""

    def finish(e: Emit, places: Places, values: Pointwise, left: Num, width: str) -> None:
        store_gradients(e, plan, places, values, left, width)

    e = Emit(module, "cell_backward", kind, CELL_BACKWARD)
    return _backward(e, plan, len(plan.own), sweeps.sweeps_backward(plan), finish)


def write_row_from_vector(module: ir.Module, kind: Kind, plan: Plan, slot: int) -> Emit:
    """`phase_backward_<slot>(...)`: for rows: for walks: for widths: for unit blocks."""

    def finish(e: Emit, places: Places, values: Pointwise, left: Num, width: str) -> None:
        store_vector_gradients(e, plan, slot, places, values, left, width)

    e = Emit(module, f"phase_backward_{slot}", kind, CELL_BACKWARD)
    done = len(plan.own) - 1 - slot
    return _backward(e, plan, done, sweeps.sweeps_from_vector(plan, slot), finish)


def _backward(
    e: Emit, plan: Plan, done: int, walks: tuple[sweeps.Sweep, ...],
    finish: Callable[[Emit, Places, Pointwise, Num, str], None],
) -> Emit:  # fmt: skip
    g = e.given
    with e.loop(g["rows"]) as row:

        def at(column: Num) -> Places:
            return places_back(e, plan, row.index, column)

        def end(values: Pointwise, column: Num, left: Num, width: str) -> None:
            finish(e, at(column), values, left, width)

        def loads(column: Num) -> Loads:
            return backward_loads(e, plan, at(column), done)

        first, plane = g["d_operands"] + g["operand_plane"] * len(plan.own), g["operand_plane"]
        one = _row(e, plan, loads, (first, plane))
        saved = at(e.number(0))["saved"] + g["H_row"] * len(plan.saved_lines)
        for k, node in enumerate(plan.saved_numbers):
            one.held[node] = e.spread(e.real(saved + k * e.kind.bytes))
        write_sweeps(one, walks, end)
    e.done()
    return e


def _row(e: Emit, plan: Plan, loads: Callable[[Num], Loads], lines: tuple[Num, Num]) -> Row:
    held: dict[int, Vector] = {}
    return Row(e, plan, loads, lines, held)
