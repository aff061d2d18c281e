"""The pointwise part of a cell as vector code: each node of its graph once a vector of units.

First where a cell's own functions find what they compute with: places in memory, and their loads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from throughtime.compiler.graph import BOOLEAN, Graph
from throughtime.compiler.llvm.maths import operations
from throughtime.compiler.llvm.values import Num, Vector, fma
from throughtime.compiler.llvm.writer import Emit
from throughtime.compiler.plan import Plan

Load = Callable[[], Vector]
Loads = dict[int, Load]
"""From a node to what loads its value."""


def places_forward(e: Emit, plan: Plan, row: Num, column: Num) -> dict[str, Num]:
    """Where a vector of units of one row lies, in everything that a step is given."""
    g = e.args
    names = {"pre": "pre", "state": "state", "saved": "saved", "old": "state", "new": "state"}
    places = {name: g[name] + g[f"{by}_row"] * row + column for name, by in names.items()}
    places["unit_values"] = g["unit_values"] + column
    return places | {"inputs": input_place(e, plan, "inputs", row, column)}


def places_back(e: Emit, plan: Plan, row: Num, column: Num) -> dict[str, Num]:
    """Where a vector of units of one row lies, in everything that a derivative is given."""
    g = e.args
    names = ("y", "old", "d_y", "d_state", "direct", "d_operands", "operand_block")
    places = {name: g[name] + g["H_row"] * row + column for name in names}
    for name in ("saved", "d_sums"):
        places[name] = g[name] + g[f"{name}_row"] * row + column
    for name in ("inputs", "d_inputs"):
        places[name] = input_place(e, plan, name, row, column)
    return places | {"unit_values": g["unit_values"] + column}


def input_place(e: Emit, plan: Plan, name: str, row: Num, column: Num) -> Num:
    """Where the first line that a row is given, or its gradient, has a vector of units."""
    return e.args[name] + e.args["H_row"] * len(plan.lines) * row + column


def forward_loads(e: Emit, plan: Plan, places: dict[str, Num]) -> Loads:
    """Where the values lie that a step reads."""
    g = e.args
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
    g = e.args
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
    for slot in range(len(plan.computed) - done, len(plan.computed)):
        for back in plan.computed[slot].transposed[:1]:  # one stands for all, whose sum it is
            loads[back] = loader(e, places["d_operands"] + g["operand_plane"] * slot)
    return loads


def _given_loads(e: Emit, plan: Plan, places: dict[str, Num]) -> Loads:
    """Per-unit vectors, direct inputs, masks, and the numbers that code is given."""
    lines = {i: places["inputs"] + e.args["H_row"] * k for k, i in enumerate(plan.lines)}
    number = {name: k for k, name in enumerate(plan.vectors)}
    return (
        {i: loader(e, line) for i, line in lines.items()}
        | {
            i: loader(e, places["unit_values"] + e.args["H_row"] * number[str(node.constants[0])])
            for i, node in enumerate(plan.graph.nodes)
            if node.op == "p"
        }
        | {i: _number_loader(e, plan, k) for k, i in enumerate(plan.graph.numbers)}
    )


def _number_loader(e: Emit, plan: Plan, k: int) -> Load:
    """What has a number in all lanes before any loop; it lies after the units of every width."""

    def load() -> Vector:
        with e.b.goto_entry_block():
            return e.spread(e.real(e.args["widths"] + 8 * (len(plan.widths.names) + k)))

    return load


def _gradient_loader(e: Emit, places: dict[str, Num], k: int) -> Load:
    """The gradient by a new state: what later steps say, for h also what the output says."""

    def load() -> Vector:
        value = e.load(places["d_state"] + e.args["state_plane"] * k)
        return value if k else value + e.load(places["d_y"])

    return load


def loader(e: Emit, address: Num) -> Load:
    """What loads a vector of units."""
    return lambda: e.load(address)


_DEEP: Final = 64
"""Nodes of a chain that are computed in one go."""


class Pointwise:
    """Values of a graph's nodes for one vector of units of one row, computed when first asked for.

    A product whose value only an addition reads is contracted with it, `x y + z` rounded once:
    that is decided by the graph alone, so every machine and every schedule has the same bits.

    Args:
        e: the function being written.
        graph: whose nodes are meant.
        units: what the step reads as its widths, by name.
        loads: nodes that lie in memory, and how to load them.
    """

    def __init__(self, e: Emit, graph: Graph, units: dict[str, Num], loads: Loads) -> None:
        self.e, self.graph, self.units, self.loads = e, graph, units, loads
        self._values: dict[int, Any] = {}
        self._uses = [0] * len(graph.nodes)
        for node in graph.nodes:
            for i in node.inputs:
                self._uses[i] += 1

    def value(self, index: int | None) -> Any:
        """The vector of a node; zeros for a gradient that is nothing."""
        if index is not None and index not in self._values:
            self._prepare(index)
        value = None if index is None else self._value(index)
        return self.e.constant(0) if value is None else value

    def _prepare(self, index: int) -> None:
        """Compute what a node follows from, a few nodes at a time, where its chain is long: each
        computes its own inputs, so that a whole chain would be as many calls deep."""
        nodes, pending, reached = self.graph.nodes, [index], set[int]()
        while pending:
            i = pending.pop()
            if i not in reached and i not in self._values and i not in self.loads:
                reached.add(i)
                pending.extend(nodes[i].inputs)
        depth: dict[int, int] = {}
        for i in sorted(reached):
            depth[i] = 1 + max((depth.get(k, 0) for k in nodes[i].inputs), default=0)
            if depth[i] > _DEEP and not self._is_product(i):
                self._value(i)
                depth[i] = 0

    def _value(self, index: int) -> Any:
        """None is a gradient that is nothing: what products with U^T give is added later."""
        if index not in self._values:
            load = self.loads.get(index)
            self._values[index] = load() if load else self._computed(index)
        return self._values[index]

    def _computed(self, index: int) -> Any:
        node = self.graph.nodes[index]
        if node.op in ("number", "full"):
            return self.e.constant(float(node.constants[0]))  # type: ignore[arg-type]
        if node.op == "width":
            return self._units(str(node.constants[0]))
        if node.op == "epsilon":  # of float32 or float64
            bits = 23 if self.e.kind.bytes == 4 else 52
            return self.e.constant(2.0**-bits)
        if node.op == "transposed":
            return None
        if node.op in ("sum_rows", "row_sum", "spread"):  # parts by themselves, summed later
            return self._value(node.inputs[0])
        if node.op in ("add", "sub"):
            return self._sum(index)
        values = [self._value(i) for i in node.inputs]
        assert None not in values, str(node)
        return operations.apply(node.op, values, node.constants)

    def _units(self, width: str) -> Any:
        if width.isdigit():
            return self.e.constant(float(width))
        return self.e.spread(self.e.converted(self.units[width]))

    def _sum(self, index: int) -> Any:
        """x + z or x - z, contracted where one of them is a product read by nothing else."""
        node = self.graph.nodes[index]
        x, z = node.inputs
        for one, other, first in ((x, z, True), (z, x, False)):
            if self._is_single_product(one) and self._is_number(other):
                return self._contracted(node.op, one, other, first)
        left, right = self._value(x), self._value(z)
        if left is None or right is None:
            assert node.op == "add"
            return right if left is None else left
        return operations.apply(node.op, [left, right])

    def _contracted(self, op: str, product: int, other: int, first: bool) -> Any:
        x, y = (self._value(i) for i in self.graph.nodes[product].inputs)
        z = self._value(other)
        if op == "sub":
            if first:
                z = -z
            else:
                x = -x
        return fma(x, y, z)

    def _is_product(self, index: int) -> bool:
        """Whether a product is read once, and may be contracted with an addition."""
        single = self.graph.nodes[index].op == "mul" and self._uses[index] == 1
        return single and index not in self.loads

    def _is_single_product(self, index: int) -> bool:
        node = self.graph.nodes[index]
        return self._is_product(index) and all(self._is_number(i) for i in node.inputs)

    def _is_number(self, index: int) -> bool:
        """Neither a truth value, which counts as 1 or 0 only in plain arithmetic, nor nothing."""
        truth = self.graph.nodes[index].op in BOOLEAN
        return not truth and self._value(index) is not None
