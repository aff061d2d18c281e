"""A cell's own functions where its step computes over the units of a row: as functions.py has
them, but each row takes several walks over its units.

What a walk leaves for later ones lies in a few lines that every row uses again.
"""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from throughtime.compiler import sweeps
from throughtime.compiler.llvm.arguments import CELL_BACKWARD, CELL_FORWARD, PHASE_FORWARD
from throughtime.compiler.llvm.cell import functions
from throughtime.compiler.llvm.cell import operands as places
from throughtime.compiler.llvm.cell.operands import Loads
from throughtime.compiler.llvm.cell.pointwise import Pointwise
from throughtime.compiler.llvm.cell.sweeps import write_sweeps
from throughtime.compiler.llvm.row import Row
from throughtime.compiler.llvm.sizes import Kind
from throughtime.compiler.llvm.values import Num, Vector
from throughtime.compiler.llvm.writer import Emit
from throughtime.compiler.plan import Plan

Places = dict[str, Num]


def write_row_forward(module: ir.Module, kind: Kind, plan: Plan, keep: bool) -> Emit:
    """`cell_forward(...)`: for rows: for walks: for widths: for unit blocks."""
    e = Emit(module, "cell_forward", kind, CELL_FORWARD)
    g = e.given
    lines = g["chains"], g["H_row"]
    with e.loop(g["rows"]) as row:

        def at(column: Num) -> Places:
            return places.places_forward(e, plan, row.index, column)

        def finish(values: Pointwise, column: Num, left: Num, width: str) -> None:
            functions.store_step(e, plan, at(column), values, keep, width)

        one = _row(e, plan, lambda column: places.forward_loads(e, plan, at(column)), lines)
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
            return functions.places_to_vector(e, plan, row.index, column)

        def finish(values: Pointwise, column: Num, left: Num, width: str) -> None:
            vector = plan.own[slot].vector
            if plan.widths.of[vector] == width:
                e.store(values.value(vector), at(column)["to"])

        one = _row(e, plan, lambda column: places.forward_loads(e, plan, at(column)), lines)
        write_sweeps(one, sweeps.sweeps_to_vector(plan, slot), finish)
    e.done()
    return e


def write_row_backward(module: ir.Module, kind: Kind, plan: Plan) -> Emit:
    """`cell_backward(...)`: for rows: for walks: for widths: for unit blocks."""

    def finish(e: Emit, places: Places, values: Pointwise, left: Num, width: str) -> None:
        functions.store_gradients(e, plan, places, values, left, width)

    e = Emit(module, "cell_backward", kind, CELL_BACKWARD)
    return _backward(e, plan, len(plan.own), sweeps.sweeps_backward(plan), finish)


def write_row_from_vector(module: ir.Module, kind: Kind, plan: Plan, slot: int) -> Emit:
    """`phase_backward_<slot>(...)`: for rows: for walks: for widths: for unit blocks."""

    def finish(e: Emit, places: Places, values: Pointwise, left: Num, width: str) -> None:
        functions.store_vector_gradients(e, plan, slot, places, values, left, width)

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
            return places.places_back(e, plan, row.index, column)

        def end(values: Pointwise, column: Num, left: Num, width: str) -> None:
            finish(e, at(column), values, left, width)

        def loads(column: Num) -> Loads:
            return places.backward_loads(e, plan, at(column), done)

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
