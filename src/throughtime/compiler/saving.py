"""What the forward pass keeps for the backward pass: what costs most to compute again.

A value is kept where it came from an expensive function (an exponential, a division) and does not
follow from what is kept anyway; sums and products are computed again. Fewest values win, since each
is H numbers a row and step, written once and read once.
"""

from __future__ import annotations

from typing import Final

from throughtime.compiler.graph import BOOLEAN, NUMBER, Graph
from throughtime.compiler.passes.reductions import REDUCTIONS
from throughtime.compiler.widths import is_rowwise

EXPENSIVE: Final = frozenset(
    "sigmoid tanh exp expm1 log log1p sin cos atan erf elu softplus logsigmoid silu gelu "
    "pow sqrt rsqrt reciprocal div cumsum".split()
)
"""Operations that cost about as much as writing and reading a vector, or more."""

FREE: Final = frozenset({"p", "number", "width", "full", "epsilon"})
"""Values that are there without being kept: per-unit vectors and constants."""


def needed_values(graph: Graph) -> frozenset[int]:
    """The nodes of the forward step that the pointwise part of the derivative reads."""
    needed: set[int] = set()
    seen: set[int] = set()
    ends = [i for _, i in graph.outputs] + [p.result for p in graph.products]
    while ends:
        index = ends.pop()
        if index in seen:
            continue
        seen.add(index)
        if index < graph.forward:
            needed.add(index)
        elif graph.nodes[index].op != "transposed":
            ends.extend(graph.nodes[index].inputs)
        else:
            continue
    return frozenset(needed)


def saved_values(
    graph: Graph, needed: frozenset[int], sums: set[int], known: set[int]
) -> tuple[tuple[int, ...], set[int]]:
    """The nodes to keep, and those of `known` that are read.

    Args:
        graph: of the derivative.
        needed: nodes that must be there in the backward pass.
        sums: nodes that are sums of products, which backward does not compute again.
        known: nodes that are there anyway, as the output is.
    """
    choice = _Choice(graph, needed, sums, known)
    kept = choice.kept(set())
    forced: set[int] = set()
    for index in range(graph.forward):  # keep one value instead of the two it is computed from
        if graph.nodes[index].op in BOOLEAN:  # only numbers are kept
            continue
        trial = choice.kept(forced | {index})
        if choice.cost(trial) < choice.cost(kept):
            forced, kept = forced | {index}, trial
    for index in sorted(kept, reverse=True):  # compute again what the rest can give
        rest = kept - {index}
        if graph.nodes[index].op in EXPENSIVE and choice.gives(rest, index):
            kept = rest
    return tuple(sorted(kept)), choice.read(kept)


class _Choice:
    """Which values follow from which kept ones."""

    def __init__(
        self, graph: Graph, needed: frozenset[int], sums: set[int], known: set[int]
    ) -> None:
        self.graph, self.needed, self.sums, self.known = graph, needed, sums, known
        self._whole_rows = is_rowwise(graph)

    def kept(self, forced: set[int]) -> set[int]:
        """What is kept when expensive values and `forced` ones are never computed again."""
        values: set[int] = set()
        pending, seen = list(self.needed), set[int]()
        while pending:
            index = pending.pop()
            node = self.graph.nodes[index]
            if index in seen or node.op in FREE or index in self.known:
                continue
            seen.add(index)
            if index in forced or self._is_source(index) or node.op in EXPENSIVE:
                values.add(index)
            else:
                pending.extend(node.inputs)
        return values

    def gives(self, kept: set[int], index: int) -> bool:
        """Whether everything needed, including this node, follows from what is kept."""
        follows: list[bool] = []
        for i in range(max((*self.needed, index)) + 1):  # from the first on, however deep the step
            node = self.graph.nodes[i]
            there = i in kept or i in self.known or node.op in FREE
            again = not self._is_source(i) and all(follows[k] for k in node.inputs)
            follows.append(there or again)
        return all(follows[i] for i in (*self.needed, index))

    def read(self, kept: set[int]) -> set[int]:
        """The known nodes that are read when these are kept."""
        values: set[int] = set()
        pending = [i for i in self.needed if i not in kept]
        while pending:
            index = pending.pop()
            if index in self.known:
                values.add(index)
            elif index not in kept and not self._is_source(index):
                pending.extend(i for i in self.graph.nodes[index].inputs)
        return values

    def cost(self, kept: set[int]) -> tuple[int, int]:
        """Lines of units that are kept, and single numbers of a row where such are kept apart."""
        numbers = sum(self.graph.nodes[i].shape == NUMBER for i in kept) * self._whole_rows
        return len(kept) - numbers, numbers

    def _is_source(self, index: int) -> bool:
        """Whether a value is never computed again: it came from a product, or from a whole row."""
        op = self.graph.nodes[index].op
        return index in self.sums or op in ("a", "s", "U") or op in REDUCTIONS
