"""Phases of a step: each multiplies one vector, and may need what the phases before it computed."""

from __future__ import annotations

from dataclasses import dataclass

from throughtime.compiler.graph import Graph


@dataclass(frozen=True)
class Phase:
    """The products with one vector.

    Attributes:
        vector: its node.
        own: whether the vector is kept in rows of its own; the old output lies in its state.
        places: numbers of its sums among those of the plan.
        transposed: nodes of the derivative, each U.g.T times the gradient by one of its products.
    """

    vector: int
    own: bool
    places: tuple[int, ...]
    transposed: tuple[int, ...]


def multiplied(step: Graph, output: str) -> dict[int, list[str]]:
    """The vectors that a step multiplies, in the order of its phases, each with its matrices.

    What more products lead to comes later; the old output comes before all else.
    """
    depth: list[int] = []
    found: dict[int, list[str]] = {}
    for node in step.nodes:
        depth.append(max((depth[i] for i in node.inputs), default=0) + (node.op == "U"))
        if node.op == "U":
            found.setdefault(node.inputs[0], []).append(str(node.constants[0]))
    order = sorted(found, key=lambda i: (depth[i], not is_old(step, i, output), i))
    return {i: found[i] for i in order}


def is_old(step: Graph, index: int, output: str) -> bool:
    """Whether a node is the output of the step before."""
    node = step.nodes[index]
    return node.op == "s" and node.constants[0] == output


def phases_of(
    step: Graph, graph: Graph, output: str, matrices: list[str | None]
) -> tuple[Phase, ...]:
    """The phases of a step.

    Args:
        step: its graph.
        graph: of its derivative.
        output: the name of the state that is the output.
        matrices: of each sum of the plan, or None where it has none.
    """
    back: dict[str, list[int]] = {}
    for index, node in enumerate(graph.nodes):
        if node.op == "transposed":
            back.setdefault(str(node.constants[0]), []).append(index)
    return tuple(
        Phase(
            vector,
            not is_old(step, vector, output),
            tuple(k for k, name in enumerate(matrices) if name in names),
            tuple(sorted(i for name in names for i in back.get(name, []))),
        )
        for vector, names in multiplied(step, output).items()
    )
