"""The sums of a step: chains of products that are only ever added."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from throughtime.compiler.graph import Graph
from throughtime.compiler.phases import Phase, multiplied


@dataclass(frozen=True)
class Sum:
    """One chain of products: W_a x + b, continued by U_u v + b where both are only ever added.

    Attributes:
        node: whose value it is.
        gradient: node of the derivative: the gradient by it, or None where it is zero.
        a: the gate whose a.g it holds, or None.
        u: the gate whose U.g @ v it holds, or None.
    """

    node: int
    gradient: int | None
    a: str | None
    u: str | None


def sums_of(
    step: Graph, graph: Graph, output: str, inputs: tuple[str, ...], blocks: frozenset[str]
) -> tuple[Sum, ...]:
    """The sums of a step, those of each phase side by side as far as their kinds allow.

    Args:
        step: its graph.
        graph: of its derivative.
        output: the name of the state that is the output.
        inputs: names of what stands beside the gates and is no sum.
        blocks: names of the block-diagonal matrices, whose products are sums by themselves.
    """
    gradients = dict(graph.outputs)
    results = {p.matrix: p.result for p in graph.products}
    read = {str(n.constants[0]): i for i, n in enumerate(step.nodes) if n.op == "a"}
    a = {g: i for g, i in read.items() if g not in inputs}
    node_of = {str(n.constants[0]): i for i, n in enumerate(step.nodes) if n.op == "U"}
    phase = {g: k for k, gates in enumerate(multiplied(step, output).values()) for g in gates}
    u = {g: node_of[g] for g in phase}
    both: list[Sum] = []
    alone = {g: i for g, i in u.items() if g not in blocks}
    for gate_a, gate_u, node in _added(step, a, alone):
        d_a, d_u = gradients.get(f"d_a.{gate_a}"), results.get(gate_u)
        if d_a == d_u:
            both.append(Sum(node, d_a, gate_a, gate_u))
    both.sort(key=lambda s: phase[s.u or ""])
    joined = {s.a for s in both}, {s.u for s in both}
    return (
        *(Sum(i, gradients.get(f"d_a.{g}"), g, None) for g, i in a.items() if g not in joined[0]),
        *both,
        *(Sum(i, results.get(g), None, g) for g, i in u.items() if g not in joined[1]),
    )


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


def phase_lines(
    phases: tuple[Phase, ...], sums: tuple[Sum, ...], products: tuple[str, ...]
) -> Iterator[str]:
    """In words: each phase, and the sums that are whole behind its products, some without bias."""
    with_x = [k for k, s in enumerate(sums) if s.u is None]
    for number, phase in enumerate(phases or (None,), 1):
        said = ["x"] * (number == 1)
        if phase is not None:
            said.append(f"t{phase.vector}" if phase.own else "the old state")
        yield f"phase {number}: products with {' and '.join(said)}, then the pointwise part"
        for k in [*(with_x if number == 1 else ()), *(phase.places if phase else ())]:
            s, v = sums[k], f"t{phase.vector}" if phase and phase.own else "h"
            own = "" if s.u in products else " + b"
            parts = [f"W.{s.a} x + b"] * bool(s.a) + [f"U.{s.u} {v}{own}"] * bool(s.u)
            yield f"  t{s.node} = {' + '.join(parts)}"
