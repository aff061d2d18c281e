"""What a step's code looks like before it is code: its sums, what backward needs, what is saved.

The plan knows nothing of machines. A cell that it refuses stays with another backend, and the
reason is told by `explain`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Final

from throughtime.cells.cell import Cell
from throughtime.compiler.derivative import derivative
from throughtime.compiler.graph import Graph
from throughtime.compiler.saving import needed_values, saved_values
from throughtime.compiler.trace import trace

ROWWISE: Final = frozenset("row_sum row_mean row_scale spread softmax normalise sum_units".split())
"""Operations over the units of a row, which pointwise code cannot compute."""

UNCODED: Final = frozenset({"sin", "cos"})
"""Operations that have a rule of derivative and no vector code yet."""


@dataclass(frozen=True)
class Sum:
    """One chain of products: W_a x + b, continued by U_u h + b where both are only ever added.

    Attributes:
        node: whose value it is.
        gradient: node of the derivative: the gradient by it, or None where it is zero.
        a: the gate whose a.g it holds, or None.
        u: the gate whose U.g @ h it holds, or None.
    """

    node: int
    gradient: int | None
    a: str | None
    u: str | None


@dataclass(frozen=True)
class Plan:
    """How one step becomes code.

    Attributes:
        name: of the cell's class.
        graph: of the derivative; its first nodes are those of the step.
        sums: first those of W alone, then those of both, last those of U alone.
        states: node of each old state, or None where the step does not read it.
        new_states: node of each new state.
        saved: nodes kept from the forward pass for the backward pass, beside y.
        reads_output: whether backward reads h_t, which is the output.
        reads_old: whether backward's pointwise part reads h_{t-1}.
        state_names: of the cell's states; the first is the output.
        vectors: names of the per-unit vectors, whose gradients stand behind those of the sums.
    """

    name: str
    graph: Graph
    sums: tuple[Sum, ...]
    states: tuple[int | None, ...]
    new_states: tuple[int, ...]
    saved: tuple[int, ...]
    reads_output: bool
    reads_old: bool
    state_names: tuple[str, ...]
    vectors: tuple[str, ...]

    @cached_property
    def with_a(self) -> tuple[Sum, ...]:
        """Sums that x enters; they come first."""
        return tuple(s for s in self.sums if s.a is not None)

    @cached_property
    def with_u(self) -> tuple[Sum, ...]:
        """Sums that h enters; they come last."""
        return tuple(s for s in self.sums if s.u is not None)

    @cached_property
    def gradients(self) -> dict[str, int]:
        """Output of the derivative by name: d_s.h, d_p.u and so on."""
        return dict(self.graph.outputs)

    @cached_property
    def key(self) -> str:
        """Equal plans may share their code."""
        sums = [(s.node, s.gradient, s.a is not None, s.u is not None) for s in self.sums]
        return repr((self.graph.key, sums, self.states, self.new_states, self.saved, self.vectors))

    def __str__(self) -> str:
        nodes = self.graph.nodes
        saved = ", ".join(f"t{i} = {nodes[i]}" for i in self.saved) or "nothing"
        products = "products with x and the old state" if self.with_u else "products with x"
        lines = [f"phase 1: {products}, then the pointwise part"]
        for s in self.sums:
            parts = [f"W.{s.a} x + b"] * bool(s.a) + [f"U.{s.u} h + b"] * bool(s.u)
            lines.append(f"  t{s.node} = {' + '.join(parts)}")
        beside = [*["h_t"] * self.reads_output, *["h_(t-1)"] * self.reads_old]
        read = f"; read beside it: {', '.join(beside)}" if beside else ""
        return "\n".join([*lines, f"saved: {saved}{read}"])


@lru_cache(maxsize=256)  # asked several times a call
def plan(cell: Cell) -> Plan | str:
    """The plan of a cell, or the reason why there is none."""
    return _reason(cell) or _planned(cell)


def _reason(cell: Cell) -> str | None:
    """Why the compiler does not take the cell, or None."""
    graph, name = trace(cell), type(cell).__name__
    if graph.unsupported:
        operation, line = graph.unsupported[0]
        return f"{operation} has no rule, which keeps {name} uncompiled: {line}"
    if cell.layout.inputs:
        return f"{name} reads inputs that no matrix multiplies ({', '.join(cell.layout.inputs)})"
    if cell.layout.products:
        return f"{name} multiplies by matrices without an input part ({', '.join(cell.products)})"
    if any(w != H for H in (2, 3) for w in cell.widths(H)):
        return f"the states of {name} are not all as wide as its gates"
    return next(_odd_nodes(cell, graph), None)


def _odd_nodes(cell: Cell, graph: Graph) -> Iterator[str]:
    name, output = type(cell).__name__, cell.state_names[0]
    multiplied: set[str] = set()
    for node in graph.nodes:
        if node.op in ROWWISE or "1" in node.shape:
            yield f"{name} computes over the units of a row ({node.op}): {node.line}"
        if node.op in UNCODED:
            yield f"{name} computes {node.op}, which has no vector code: {node.line}"
        if node.op == "U":
            vector, matrix = graph.nodes[node.inputs[0]], str(node.constants[0])
            if vector.op != "s" or vector.constants[0] != output:
                yield f"{name} multiplies what its own step computes or an older state: {node.line}"
            if matrix in multiplied:
                yield f"{name} multiplies by U.{matrix} twice: {node.line}"
            multiplied.add(matrix)


def _planned(cell: Cell) -> Plan:
    step, graph = trace(cell), derivative(trace(cell))
    gradients = dict(graph.outputs)
    results = {p.matrix: p.result for p in graph.products}
    a = {str(n.constants[0]): i for i, n in enumerate(step.nodes) if n.op == "a"}
    u = {str(n.constants[0]): i for i, n in enumerate(step.nodes) if n.op == "U"}
    both: list[Sum] = []
    for gate_a, gate_u, node in _added(step, a, u):
        d_a, d_u = gradients.get(f"d_a.{gate_a}"), results.get(gate_u)
        if d_a == d_u:
            both.append(Sum(node, d_a, gate_a, gate_u))
    joined = {s.a for s in both}, {s.u for s in both}
    sums = (
        *(Sum(i, gradients.get(f"d_a.{g}"), g, None) for g, i in a.items() if g not in joined[0]),
        *both,
        *(Sum(i, results.get(g), None, g) for g, i in u.items() if g not in joined[1]),
    )
    old = {str(n.constants[0]): i for i, n in enumerate(step.nodes) if n.op == "s"}
    states = tuple(old.get(name) for name in cell.state_names)
    new_states = tuple(i for _, i in step.outputs)
    needed = needed_values(graph)
    known = {i for i in (states[0], new_states[0]) if i is not None}
    saved, read = saved_values(graph, needed, {s.node for s in sums}, known)
    return Plan(
        type(cell).__name__, graph, sums, states, new_states, saved, new_states[0] in read,
        states[0] in read, cell.state_names, cell.layout.vectors,
    )  # fmt: skip


def _added(step: Graph, a: dict[str, int], u: dict[str, int]) -> Iterator[tuple[str, str, int]]:
    """Gates g, k and the node of a.g + U.k @ h, where neither is read by anything else."""
    uses = [0] * len(step.nodes)
    for node in step.nodes:
        for i in node.inputs:
            uses[i] += 1
    for _, i in step.outputs:
        uses[i] += 1
    names_a, names_u = {i: g for g, i in a.items()}, {i: g for g, i in u.items()}
    for index, node in enumerate(step.nodes):
        if node.op == "add" and len(set(node.inputs)) == 2:
            for i, k in (node.inputs, node.inputs[::-1]):
                if i in names_a and k in names_u and uses[i] == uses[k] == 1:
                    yield names_a[i], names_u[k], index
