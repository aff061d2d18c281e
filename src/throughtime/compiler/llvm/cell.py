"""A cell's own two functions: its pointwise part forward and backward, over rows and units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from llvmlite import ir

from throughtime.compiler.llvm.emit import Emit
from throughtime.compiler.llvm.kind import Kind
from throughtime.compiler.llvm.number import Num
from throughtime.compiler.llvm.pointwise import Pointwise
from throughtime.compiler.llvm.rows import lanes_below
from throughtime.compiler.llvm.sections import sections, units_of
from throughtime.compiler.plan import Plan
from throughtime.compiler.widths import HIDDEN

FORWARD: Final = (
    "rows", "blocks", "chains", "chains_row", "pre", "pre_row", "old", "state", "state_row",
    "state_plane", "new", "saved", "saved_row", "vectors", "H_row", "H", "inputs", "widths",
)  # fmt: skip
"""Every address is that of the first row and unit; `widths` holds the units of every width."""

BACKWARD: Final = (
    "rows", "saved", "saved_row", "y", "old", "d_y", "d_state", "state_plane", "direct", "d_sums",
    "d_sums_row", "vectors", "H_row", "H", "d_own", "own_plane", "own_block", "own_block_plane",
    "inputs", "d_inputs", "widths",
)  # fmt: skip
"""`d_own` and so on: gradients by the vectors of phases other than the old output, these vectors,
and bytes from one of them to the next. Rows of direct inputs and masks have a line for each."""

Loads = dict[int, Callable[[], Any]]


def write_cell_forward(module: ir.Module, kind: Kind, plan: Plan, keep: bool) -> Emit:
    """`cell_forward(...)`: new states, and with `keep` what is saved, from sums and old states.

    for widths: for unit blocks: for rows
    """
    e = Emit(module, "cell_forward", kind, FORWARD)
    g, units = e.given, units_of(e, plan)
    for width, _, blocks in sections(e, plan, g["blocks"]):
        with e.loop(blocks) as block, e.loop(g["rows"]) as row:
            places = _places(e, plan, row.index, block.index)
            values = Pointwise(e, plan.graph, units, forward_loads(e, plan, places))
            new = {k: values.value(plan.new_states[k]) for k in plan.widths.states_of(width)}
            own = [k for k, i in enumerate(plan.saved) if keep and plan.widths.of[i] == width]
            saved = {k: values.value(plan.saved[k]) for k in own}
            for k, value in saved.items():
                e.store(value, places["saved"] + g["H_row"] * k)
            for k, value in new.items():
                place = places["state"] + g["state_plane"] * k if k else places["new"]
                e.store(value, place)
    e.done()
    return e


def _places(e: Emit, plan: Plan, row: Num, block: Num) -> dict[str, Num]:
    """Where a vector of units of one row lies, in everything that a step is given."""
    g = e.given
    column = block * e.kind.size
    places = {name: g[name] + g[f"{name}_row"] * row + column for name in ("pre", "state", "saved")}
    places |= {name: g[name] + g["state_row"] * row + column for name in ("old", "new")}
    places["chains"] = g["chains"] + g["chains_row"] * row + block * (len(plan.last) * e.kind.size)
    places["vectors"] = g["vectors"] + column
    places["inputs"] = input_place(e, plan, "inputs", row, column)
    return places


def forward_loads(e: Emit, plan: Plan, places: dict[str, Num]) -> Loads:
    """Where the values lie that a step reads."""
    g = e.given
    found: Loads = {}
    for k, s in enumerate(plan.sums):
        if k in plan.last and "chains" in places:
            chain = places["chains"] + plan.last.index(k) * e.kind.size
            found[s.node] = loader(e, chain)
        else:
            found[s.node] = loader(e, places["pre"] + g["H_row"] * k)
    for k, node in enumerate(plan.states):
        if node is not None:
            old = places["state"] + g["state_plane"] * k if k else places["old"]
            found[node] = loader(e, old)
    return found | _given_loads(e, plan, places)


def input_place(e: Emit, plan: Plan, name: str, row: Num, column: Num) -> Num:
    """Where the first line that a row is given, or its gradient, has a vector of units."""
    return e.given[name] + e.given["H_row"] * len(plan.lines) * row + column


def _given_loads(e: Emit, plan: Plan, places: dict[str, Num]) -> Loads:
    """Per-unit vectors, direct inputs and masks."""
    lines = {i: places["inputs"] + e.given["H_row"] * k for k, i in enumerate(plan.lines)}
    number = {name: k for k, name in enumerate(plan.vectors)}
    return {i: loader(e, line) for i, line in lines.items()} | {
        i: loader(e, places["vectors"] + e.given["H_row"] * number[str(node.constants[0])])
        for i, node in enumerate(plan.graph.nodes)
        if node.op == "p"
    }


def loader(e: Emit, address: Num) -> Callable[[], Any]:
    return lambda: e.load(address)


def write_cell_backward(module: ir.Module, kind: Kind, plan: Plan) -> Emit:
    """`cell_backward(...)`: gradients by sums, old states and vectors, from those by new states.

    for rows: for widths: for unit blocks
    """
    e = Emit(module, "cell_backward", kind, BACKWARD)
    g, units = e.given, units_of(e, plan)
    with e.loop(g["rows"]) as row:
        for width, count, blocks in sections(e, plan, g["H_row"] // kind.size):
            with e.loop(blocks) as block:
                column, left = block.index * kind.size, count - block.index * kind.lanes
                places = places_back(e, plan, row.index, column)
                loads = backward_loads(e, plan, places, len(plan.own))
                values = Pointwise(e, plan.graph, units, loads)
                _store_gradients(e, plan, places, values, (width, left))
    e.done()
    return e


def places_back(e: Emit, plan: Plan, row: Num, column: Num) -> dict[str, Num]:
    """Where a vector of units of one row lies, in everything that a derivative is given."""
    g = e.given
    names = ("y", "old", "d_y", "d_state", "direct", "d_own", "own_block")
    places = {name: g[name] + g["H_row"] * row + column for name in names}
    for name in ("saved", "d_sums"):
        places[name] = g[name] + g[f"{name}_row"] * row + column
    for name in ("inputs", "d_inputs"):
        places[name] = input_place(e, plan, name, row, column)
    return places | {"vectors": g["vectors"] + column}


def backward_loads(e: Emit, plan: Plan, places: dict[str, Num], done: int) -> Loads:
    """Where the values lie that the derivative reads when the last `done` phases have theirs."""
    g = e.given
    found = _given_loads(e, plan, places)
    for k, kept in enumerate(plan.saved):
        found[kept] = loader(e, places["saved"] + g["H_row"] * k)
    if plan.reads_output:
        found[plan.new_states[0]] = loader(e, places["y"])
    if plan.reads_old and plan.states[0] is not None:
        found[plan.states[0]] = loader(e, places["old"])
    for i, node in enumerate(plan.graph.nodes):
        if node.op == "d":
            k = plan.state_names.index(str(node.constants[0]))
            found[i] = _gradient_loader(e, places, k)
    for slot in range(len(plan.own) - done, len(plan.own)):
        for back in plan.own[slot].transposed[:1]:  # one stands for all, whose sum it is
            found[back] = loader(e, places["d_own"] + g["own_plane"] * slot)
    return found


def _gradient_loader(e: Emit, places: dict[str, Num], k: int) -> Callable[[], Any]:
    """The gradient by a new state: what later steps say, for h also what the output says."""

    def load() -> Any:
        value = e.load(places["d_state"] + e.given["state_plane"] * k)
        return value if k else e.b.fadd(value, e.load(places["d_y"]))

    return load


def _store_gradients(
    e: Emit, plan: Plan, places: dict[str, Num], values: Pointwise, part: tuple[str, Num]
) -> None:
    """All gradients of a width are computed before the first is written: they share their places.

    Args:
        e, plan, places, values: the function, and what it computes from.
        part: the width, and how many of its units are left.
    """
    g, (width, left) = e.given, part
    lanes = lanes_below(e, left)
    there = {k for phase in plan.own for k in phase.places}
    sums = {k: s.gradient for k, s in enumerate(plan.sums)
            if k not in there and plan.widths.of[s.node] == width}  # fmt: skip
    states = {
        k: plan.gradients.get(f"d_s.{plan.state_names[k]}") for k in plan.widths.states_of(width)
    }
    inputs: dict[int, int | None] = {}
    if width == HIDDEN:
        vectors = (plan.gradients.get(f"d_p.{name}") for name in plan.vectors)
        sums |= dict(enumerate(vectors, len(plan.sums)))
        inputs = {k: plan.gradients.get(f"d_a.{n}") for k, n in enumerate(plan.input_names)}
    found = [{k: values.value(i) for k, i in group.items()} for group in (sums, states, inputs)]
    for k, value in found[0].items():  # zeros behind the last unit: products run over them
        e.store(e.b.select(lanes, value, e.zero()), places["d_sums"] + g["H_row"] * k)
    for k, value in found[1].items():
        e.store(value, places["d_state"] + g["state_plane"] * k if k else places["direct"])
    for k, value in found[2].items():
        e.store(value, places["d_inputs"] + g["H_row"] * k)
