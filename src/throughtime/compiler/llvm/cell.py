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
from throughtime.compiler.plan import Plan

FORWARD: Final = (
    "rows", "blocks", "chains", "chains_row", "pre", "pre_row", "old", "state", "state_row",
    "state_plane", "new", "saved", "saved_row", "vectors", "H_row", "H", "inputs",
)  # fmt: skip
"""Every address is that of the first row and unit."""

BACKWARD: Final = (
    "rows", "saved", "saved_row", "y", "old", "d_y", "d_state", "state_plane", "direct", "d_sums",
    "d_sums_row", "vectors", "H_row", "H", "d_own", "own_plane", "own_block", "own_block_plane",
    "inputs", "d_inputs",
)  # fmt: skip
"""`d_own` and so on: gradients by the vectors of phases other than the old output, these vectors,
and bytes from one of them to the next. Rows of direct inputs and masks have a line for each."""

Loads = dict[int, Callable[[], Any]]


def write_cell_forward(module: ir.Module, kind: Kind, plan: Plan, keep: bool) -> Emit:
    """`cell_forward(...)`: new states, and with `keep` what is saved, from sums and old states.

    for unit blocks: for rows
    """
    e = Emit(module, "cell_forward", kind, FORWARD)
    g = e.given
    with e.loop(g["blocks"]) as block, e.loop(g["rows"]) as row:
        column = block.index * kind.size
        places = {
            name: g[name] + g[f"{name}_row"] * row.index + column
            for name in ("pre", "state", "saved")
        }
        for name in ("old", "new"):
            places[name] = g[name] + g["state_row"] * row.index + column
        vector = block.index * (len(plan.last) * kind.size)
        places["chains"] = g["chains"] + g["chains_row"] * row.index + vector
        places["vectors"] = g["vectors"] + column
        places["inputs"] = input_place(e, plan, "inputs", row.index, column)
        values = Pointwise(e, plan.graph, g["H"], forward_loads(e, plan, places))
        new = [values.value(i) for i in plan.new_states]
        saved = [values.value(i) for i in plan.saved if keep]
        for k, value in enumerate(saved):
            e.store(value, places["saved"] + g["H_row"] * k)
        e.store(new[0], places["new"])
        for k, value in enumerate(new[1:], 1):
            e.store(value, places["state"] + g["state_plane"] * k)
    e.done()
    return e


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

    for rows: for unit blocks
    """
    e = Emit(module, "cell_backward", kind, BACKWARD)
    g = e.given
    blocks = g["H_row"] // kind.size
    with e.loop(g["rows"]) as row, e.loop(blocks) as block:
        column, left = block.index * kind.size, g["H"] - block.index * kind.lanes
        places = places_back(e, plan, row.index, column)
        loads = backward_loads(e, plan, places, len(plan.own))
        values = Pointwise(e, plan.graph, g["H"], loads)
        _store_gradients(e, plan, places, values, left)
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
    e: Emit, plan: Plan, places: dict[str, Num], values: Pointwise, left: Num
) -> None:
    """All gradients are computed before the first is written: they share their places."""
    g = e.given
    lanes = lanes_below(e, left)
    there = {k for phase in plan.own for k in phase.places}
    sums = [None if k in there else values.value(s.gradient) for k, s in enumerate(plan.sums)]
    sums += [values.value(plan.gradients.get(f"d_p.{name}")) for name in plan.vectors]
    states = [values.value(plan.gradients.get(f"d_s.{name}")) for name in plan.state_names]
    inputs = [values.value(plan.gradients.get(f"d_a.{name}")) for name in plan.input_names]
    for k, value in enumerate(sums):  # zeros behind the last unit: products run over them
        if value is not None:
            e.store(e.b.select(lanes, value, e.zero()), places["d_sums"] + g["H_row"] * k)
    e.store(states[0], places["direct"])
    for k, value in enumerate(states[1:], 1):
        e.store(value, places["d_state"] + g["state_plane"] * k)
    for k, value in enumerate(inputs):
        e.store(value, places["d_inputs"] + g["H_row"] * k)
