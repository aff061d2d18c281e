"""A cell's own functions: pointwise parts and phases, forward and backward, over rows and units.

Where a step computes over the units of a row, each row takes several walks over them. What a walk
leaves for later ones lies in a few lines that every row uses again.
"""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from throughtime.compiler import sweeps
from throughtime.compiler.graph import NUMBER
from throughtime.compiler.llvm.abi import CELL_BACKWARD, CELL_FORWARD, PHASE_FORWARD, Kind
from throughtime.compiler.llvm.loops.rows import blocks_of, lanes_below, sections, units_of
from throughtime.compiler.llvm.pointwise import (
    Loads,
    Pointwise,
    backward_loads,
    forward_loads,
    input_place,
    places_back,
    places_forward,
)
from throughtime.compiler.llvm.sweeps import Finish, Row, write_sweeps
from throughtime.compiler.llvm.values import Num, where
from throughtime.compiler.llvm.writer import Emit
from throughtime.compiler.passes import HIDDEN
from throughtime.compiler.plan import Plan

Places = dict[str, Num]
"""Where a vector of units of one row lies, by what it is of."""


def write_cell_forward(module: ir.Module, kind: Kind, plan: Plan, keep: bool) -> None:
    """`cell_forward(...)`: new states, and with `keep` what is saved, from sums and old states."""
    e = Emit(module, "cell_forward", kind, CELL_FORWARD)
    (_write_row_forward if plan.rowwise else _write_units_forward)(e, plan, keep)
    e.done()


def _write_units_forward(e: Emit, plan: Plan, keep: bool) -> None:
    """A step: for widths: for unit blocks: for rows."""
    g, size, units = e.args, e.kind.size, units_of(e, plan)
    for width, _, blocks in sections(e, plan, g["unit_blocks"]):
        with e.loop(blocks) as block, e.loop(g["rows"]) as row:
            places = places_forward(e, plan, row.index, block.index * size)
            vector = block.index * (len(plan.last) * size)
            places["chains"] = g["chains"] + g["chains_row"] * row.index + vector
            values = Pointwise(e, plan.graph, units, forward_loads(e, plan, places))
            store_step(e, plan, places, values, keep, width)


def _write_row_forward(e: Emit, plan: Plan, keep: bool) -> None:
    """A step that computes over units: for rows: for walks: for widths: for unit blocks."""
    g = e.args
    with e.loop(g["rows"]) as row:

        def find(column: Num) -> Places:
            return places_forward(e, plan, row.index, column)

        def finish(values: Pointwise, column: Num, left: Num, width: str) -> None:
            store_step(e, plan, find(column), values, keep, width)

        lines = g["chains"], g["H_row"]
        one = Row(e, plan, lambda column: forward_loads(e, plan, find(column)), lines, {})
        write_sweeps(one, sweeps.sweeps_forward(plan, keep), finish)
        saved = find(e.number(0))["saved"] + g["H_row"] * len(plan.saved_lines)
        for k, node in enumerate(plan.saved_numbers if keep else ()):
            e.store(one.held[node].first(), saved + k * e.kind.bytes)


def store_step(
    e: Emit, plan: Plan, places: Places, values: Pointwise, keep: bool, width: str
) -> None:
    """Write the new states of a width, and with `keep` the lines of it that are saved."""
    new = {k: values.value(plan.new_states[k]) for k in plan.states_of(width)}
    lines = plan.saved_lines if keep else ()
    saved = {k: values.value(i) for k, i in enumerate(lines) if plan.widths.of[i] == width}
    for k, value in saved.items():
        e.store(value, places["saved"] + e.args["H_row"] * k)
    for k, value in new.items():
        place = places["state"] + e.args["state_plane"] * k if k else places["new"]
        e.store(value, place)


def store_gradients(
    e: Emit, plan: Plan, places: Places, values: Pointwise, left: Num, width: str
) -> None:
    """All gradients of a width are computed before the first is written: they share their places.

    Args:
        e, plan, places, values: the function, and what it computes from.
        left: units of the width from this vector on.
        width: its name.
    """
    g, lanes = e.args, lanes_below(e, left)
    there = {k for phase in plan.computed for k in phase.places}
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


def write_phase_forward(module: ir.Module, kind: Kind, plan: Plan, slot: int) -> None:
    """`phase_forward_<slot>(...)`: the vector of a phase, from what the phases before it gave.

    for rows: for unit blocks; or for walks: for widths: for unit blocks
    """
    e = Emit(module, f"phase_forward_{slot}", kind, PHASE_FORWARD)
    g, vector, units = e.args, plan.computed[slot].vector, units_of(e, plan)
    lines, its_width = (g["to"] + g["H_row"] * g["rows"], g["H_row"]), plan.widths.of[vector]
    with e.loop(g["rows"]) as row:

        def find(column: Num) -> Places:
            return places_to_vector(e, plan, row.index, column)

        def load(column: Num) -> Loads:
            return forward_loads(e, plan, find(column))

        def finish(values: Pointwise, column: Num, left: Num, width: str) -> None:
            if width == its_width:
                e.store(values.value(vector), find(column)["to"])

        if plan.rowwise:
            one = Row(e, plan, load, lines, {})
            write_sweeps(one, sweeps.sweeps_to_vector(plan, slot), finish)
        else:
            with e.loop(blocks_of(e, units[its_width])) as block:
                column = block.index * kind.size
                values = Pointwise(e, plan.graph, units, load(column))
                finish(values, column, units[its_width], its_width)
    e.done()


def places_to_vector(e: Emit, plan: Plan, row: Num, column: Num) -> Places:
    """Where a vector of units of one row lies, in everything that a phase is given."""
    g, line = e.args, e.args["H_row"] * row + column
    places = {name: g[name] + line for name in ("old", "state", "to")}
    places["pre"] = g["pre"] + g["pre_row"] * row + column
    places["unit_values"] = g["unit_values"] + column
    return places | {"inputs": input_place(e, plan, "inputs", row, column)}


def _wanted(plan: Plan, slot: int, width: str) -> dict[int, int | None]:
    """The gradients by a phase's sums of some width; at -1 the vector itself."""
    phase, of = plan.computed[slot], plan.widths.of
    gradients = {k: plan.sums[k].gradient for k in phase.places if of[plan.sums[k].node] == width}
    return gradients | ({-1: phase.vector} if of[phase.vector] == width else {})


def store_vector_gradients(
    e: Emit, plan: Plan, slot: int, places: Places, values: Pointwise, left: Num,
    width: str,
) -> None:  # fmt: skip
    """Write gradients by a phase's sums, and the vector it multiplied; zeros after the last."""
    g, lanes = e.args, lanes_below(e, left)
    for k, node in _wanted(plan, slot, width).items():
        own = places["operand_block"] + g["operand_block_plane"] * slot
        to = own if k < 0 else places["d_sums"] + g["H_row"] * k
        e.store(where(lanes, values.value(node), e.constant(0)), to)


def write_backward(module: ir.Module, kind: Kind, plan: Plan, slot: int | None = None) -> None:
    """`cell_backward(...)`: gradients by sums, old states and vectors, from those by new states;
    or `phase_backward_<slot>(...)`: those by a phase's sums, and the vector that it multiplied.

    for rows: for widths: for unit blocks; or for walks: for widths: for unit blocks
    """
    name = "cell_backward" if slot is None else f"phase_backward_{slot}"
    e = Emit(module, name, kind, CELL_BACKWARD)
    done = len(plan.computed) if slot is None else len(plan.computed) - 1 - slot
    with e.loop(e.args["rows"]) as row:

        def find(column: Num) -> Places:
            return places_back(e, plan, row.index, column)

        def load(column: Num) -> Loads:
            return backward_loads(e, plan, find(column), done)

        def finish(values: Pointwise, column: Num, left: Num, width: str) -> None:
            if slot is None:
                store_gradients(e, plan, find(column), values, left, width)
            else:
                store_vector_gradients(e, plan, slot, find(column), values, left, width)

        if plan.rowwise:
            saved = find(e.number(0))["saved"]
            _walk_back(e, plan, slot, saved, load, finish)
        else:
            _pass_back(e, plan, slot, load, finish)
    e.done()


def _pass_back(
    e: Emit, plan: Plan, slot: int | None, load: Callable[[Num], Loads], finish: Finish
) -> None:
    """In `write_backward`: one pass over the units of a row."""
    units, size = units_of(e, plan), e.kind.size
    for width, count, blocks in sections(e, plan, e.args["H_row"] // size):
        if slot is None or _wanted(plan, slot, width):
            with e.loop(blocks) as block:
                column, left = block.index * size, count - block.index * e.kind.lanes
                values = Pointwise(e, plan.graph, units, load(column))
                finish(values, column, left, width)


def _walk_back(
    e: Emit, plan: Plan, slot: int | None, saved: Num, load: Callable[[Num], Loads], finish: Finish
) -> None:
    """In `write_backward`: several walks over the units of a row, whose saved lines are given."""
    plane = e.args["operand_plane"]
    one = Row(e, plan, load, (e.args["d_operands"] + plane * len(plan.computed), plane), {})
    numbers = saved + e.args["H_row"] * len(plan.saved_lines)
    for k, node in enumerate(plan.saved_numbers):
        one.held[node] = e.spread(e.real(numbers + k * e.kind.bytes))
    back = sweeps.sweeps_backward(plan) if slot is None else sweeps.sweeps_from_vector(plan, slot)
    write_sweeps(one, back, finish)
