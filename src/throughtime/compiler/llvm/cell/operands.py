"""Where a cell's own functions find what they compute with: places in memory, and their loads."""

from __future__ import annotations

from collections.abc import Callable

from throughtime.compiler.llvm.values import Num, Vector
from throughtime.compiler.llvm.writer import Emit
from throughtime.compiler.plan import Plan

Load = Callable[[], Vector]
Loads = dict[int, Load]
"""From a node to what loads its value."""


def places_forward(e: Emit, plan: Plan, row: Num, column: Num) -> dict[str, Num]:
    """Where a vector of units of one row lies, in everything that a step is given."""
    g = e.given
    names = {"pre": "pre", "state": "state", "saved": "saved", "old": "state", "new": "state"}
    places = {name: g[name] + g[f"{by}_row"] * row + column for name, by in names.items()}
    places["unit_values"] = g["unit_values"] + column
    return places | {"inputs": input_place(e, plan, "inputs", row, column)}


def places_back(e: Emit, plan: Plan, row: Num, column: Num) -> dict[str, Num]:
    """Where a vector of units of one row lies, in everything that a derivative is given."""
    g = e.given
    names = ("y", "old", "d_y", "d_state", "direct", "d_operands", "operand_block")
    places = {name: g[name] + g["H_row"] * row + column for name in names}
    for name in ("saved", "d_sums"):
        places[name] = g[name] + g[f"{name}_row"] * row + column
    for name in ("inputs", "d_inputs"):
        places[name] = input_place(e, plan, name, row, column)
    return places | {"unit_values": g["unit_values"] + column}


def input_place(e: Emit, plan: Plan, name: str, row: Num, column: Num) -> Num:
    """Where the first line that a row is given, or its gradient, has a vector of units."""
    return e.given[name] + e.given["H_row"] * len(plan.lines) * row + column


def forward_loads(e: Emit, plan: Plan, places: dict[str, Num]) -> Loads:
    """Where the values lie that a step reads."""
    g = e.given
    loads: Loads = {}
    for k, s in enumerate(plan.sums):
        if k in plan.last and "chains" in places:
            chain = places["chains"] + plan.last.index(k) * e.kind.size
            loads[s.node] = loader(e, chain)
        else:
            loads[s.node] = loader(e, places["pre"] + g["H_row"] * k)
    for k, node in enumerate(plan.states):
        if node is not None:
            old = places["state"] + g["state_plane"] * k if k else places["old"]
            loads[node] = loader(e, old)
    return loads | _given_loads(e, plan, places)


def backward_loads(e: Emit, plan: Plan, places: dict[str, Num], done: int) -> Loads:
    """Where the values lie that the derivative reads when the last `done` phases have theirs."""
    g = e.given
    loads = _given_loads(e, plan, places)
    for k, kept in enumerate(plan.saved_lines):
        loads[kept] = loader(e, places["saved"] + g["H_row"] * k)
    if plan.reads_output:
        loads[plan.new_states[0]] = loader(e, places["y"])
    if plan.reads_old and plan.states[0] is not None:
        loads[plan.states[0]] = loader(e, places["old"])
    for i, node in enumerate(plan.graph.nodes):
        if node.op == "d":
            k = plan.state_names.index(str(node.constants[0]))
            loads[i] = _gradient_loader(e, places, k)
    for slot in range(len(plan.own) - done, len(plan.own)):
        for back in plan.own[slot].transposed[:1]:  # one stands for all, whose sum it is
            loads[back] = loader(e, places["d_operands"] + g["operand_plane"] * slot)
    return loads


def _given_loads(e: Emit, plan: Plan, places: dict[str, Num]) -> Loads:
    """Per-unit vectors, direct inputs, masks, and the numbers that code is given."""
    lines = {i: places["inputs"] + e.given["H_row"] * k for k, i in enumerate(plan.lines)}
    number = {name: k for k, name in enumerate(plan.vectors)}
    return (
        {i: loader(e, line) for i, line in lines.items()}
        | {
            i: loader(e, places["unit_values"] + e.given["H_row"] * number[str(node.constants[0])])
            for i, node in enumerate(plan.graph.nodes)
            if node.op == "p"
        }
        | {i: _number_loader(e, plan, k) for k, i in enumerate(plan.graph.numbers)}
    )


def _number_loader(e: Emit, plan: Plan, k: int) -> Load:
    """What has a number in all lanes before any loop; it lies after the units of every width."""

    def load() -> Vector:
        with e.before_loops():
            return e.spread(e.real(e.given["widths"] + 8 * (len(plan.widths.names) + k)))

    return load


def _gradient_loader(e: Emit, places: dict[str, Num], k: int) -> Load:
    """The gradient by a new state: what later steps say, for h also what the output says."""

    def load() -> Vector:
        value = e.load(places["d_state"] + e.given["state_plane"] * k)
        return value if k else value + e.load(places["d_y"])

    return load


def loader(e: Emit, address: Num) -> Load:
    """What loads a vector of units."""
    return lambda: e.load(address)
