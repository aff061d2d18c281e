"""When values are computed: kept from forward for backward, and in which walk over a row's units.

Forward keeps what costs most to compute again. A value is kept where it came from an expensive
function (an exponential, a division) and does not follow from what is kept anyway; sums and
products are computed again. Fewest values win, since each is H numbers a row and step, written once
and read once.

A sum over units must be there before anything can read it, as a product's must; but it costs one
more walk over a row that lies in the nearest cache. Each walk sums what the next one needs, the
last one writes results.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Final

from throughtime.compiler.graph import BOOLEAN, LINES, NUMBER, Graph
from throughtime.compiler.passes import REDUCTIONS, is_rowwise

if TYPE_CHECKING:
    from throughtime.compiler.plan import Plan

EXPENSIVE: Final = frozenset(
    "sigmoid tanh exp expm1 log log1p sin cos atan erf elu softplus logsigmoid silu gelu "
    "pow sqrt rsqrt reciprocal div cumsum".split()
)
"""Operations that cost about as much as writing and reading a vector, or more."""

FREE: Final = frozenset({"p", "number", "width", "full", "epsilon"})
"""Values that are there without being kept: per-unit vectors and constants."""


def find_needed_values(graph: Graph) -> frozenset[int]:
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


def choose_saved_values(
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


_WHOLE: Final = REDUCTIONS | LINES
"""Operations that need all units of a row."""


@dataclass(frozen=True)
class Sweep:
    """One walk over the units of a row, those of each width.

    Attributes:
        numbers: nodes of one number a row, or for all, that are worked out before it.
        reductions: nodes of one number a row that are there after it.
        ends: nodes whose vectors it computes: what is reduced, or the results.
        lines: nodes whose vectors it leaves for later walks, since they are expensive, or since
            lines are made of them after it.
        made: these lines, whose nodes are operations of LINES.
    """

    numbers: tuple[int, ...]
    reductions: tuple[int, ...]
    ends: tuple[int, ...]
    lines: tuple[int, ...]
    made: tuple[int, ...] = ()


def sweeps_forward(plan: Plan, keep: bool) -> tuple[Sweep, ...]:
    """Of a whole step; with `keep` it also gives what is saved."""
    ends = (*plan.new_states, *(plan.saved if keep else ()))
    return find_sweeps(plan.graph, _given_forward(plan), ends)


def sweeps_to_vector(plan: Plan, slot: int) -> tuple[Sweep, ...]:
    """Of the vector that a phase multiplies."""
    return find_sweeps(plan.graph, _given_forward(plan), (plan.computed[slot].vector,))


def sweeps_backward(plan: Plan) -> tuple[Sweep, ...]:
    """Of the gradients that a step gives when all later phases have theirs."""
    there = {k for phase in plan.computed for k in phase.places}
    sums = (s.gradient for k, s in enumerate(plan.sums) if k not in there)
    others = (i for name, i in plan.graph.outputs if not name.startswith("d_a."))
    inputs = (plan.gradients.get(f"d_a.{name}") for name in plan.input_names)
    return find_sweeps(plan.graph, _given_backward(plan, 0), (*sums, *others, *inputs))


def sweeps_from_vector(plan: Plan, slot: int) -> tuple[Sweep, ...]:
    """Of the gradients by the sums of a phase, and the vector that it multiplied."""
    phase = plan.computed[slot]
    ends = (*(plan.sums[k].gradient for k in phase.places), phase.vector)
    return find_sweeps(plan.graph, _given_backward(plan, slot + 1), ends)


def lines_forward(plan: Plan) -> int:
    """How many lines of a row its walks leave for later ones, at most."""
    phases = [sweeps_to_vector(plan, slot) for slot in range(len(plan.computed))]
    return _most_lines([sweeps_forward(plan, True), *phases]) if plan.rowwise else 0


def lines_backward(plan: Plan) -> int:
    """Likewise of the derivative."""
    phases = [sweeps_from_vector(plan, slot) for slot in range(len(plan.computed))]
    return _most_lines([sweeps_backward(plan), *phases]) if plan.rowwise else 0


def _most_lines(forms: Iterable[tuple[Sweep, ...]]) -> int:
    return max(sum(len(s.lines) + len(s.made) for s in sweeps) for sweeps in forms)


def _given_forward(plan: Plan) -> set[int]:
    """What lies in memory when a step's pointwise part begins, besides what reads no node."""
    return {s.node for s in plan.sums}


def _given_backward(plan: Plan, first: int) -> set[int]:
    """What lies in memory when the phases from the `first` of their own on have their gradients."""
    nodes = set(plan.saved) | {i for phase in plan.computed[first:] for i in phase.transposed[:1]}
    if plan.reads_output:
        nodes.add(plan.new_states[0])
    return nodes


def find_sweeps(graph: Graph, given: set[int], ends: Iterable[int | None]) -> tuple[Sweep, ...]:
    """To the nodes `ends`, from the nodes `given`, which are there."""
    wanted = tuple(dict.fromkeys(i for i in ends if i is not None))
    walk = _Walk(graph, given)
    levels = walk.levels(wanted)
    walks = []
    for level in count(1):
        whole = tuple(i for i in sorted(levels) if levels[i] == level)
        inputs = tuple(dict.fromkeys(k for i in whole for k in graph.nodes[i].inputs))
        made = tuple(i for i in whole if graph.nodes[i].op in LINES)
        reductions = tuple(i for i in whole if i not in made)
        numbers = walk.numbers(inputs if whole else wanted)
        walk.keep(made)
        walks.append((numbers, reductions, inputs or wanted, made))
        if not whole:
            break
    lines = [tuple(sorted(i for i in walk.read if walk.left[i] == k)) for k in range(len(walks))]
    return tuple(
        Sweep(numbers, reductions, ends, left, made)
        for (numbers, reductions, ends, made), left in zip(walks, lines, strict=True)
    )


class _Walk:
    """Which nodes each walk over the units reaches.

    Attributes:
        left: the expensive nodes, and the number of the walk that computes each.
        read: those of them that later walks read.
    """

    def __init__(self, graph: Graph, given: set[int]) -> None:
        self.graph, self.given = graph, given
        self.left: dict[int, int] = {}
        self.read: set[int] = set()
        self._reduced: set[int] = set()
        self._walks = 0

    def levels(self, ends: Iterable[int]) -> dict[int, int]:
        """Of each reduction on the way to `ends`: 1 for what needs none before it, and so on."""
        nodes, reached, pending = self.graph.nodes, set[int](), list(ends)
        while pending:
            index = pending.pop()
            if index not in reached and not self._ends_at(index):
                reached.add(index)
                pending.extend(nodes[index].inputs)
        level: dict[int, int] = {}
        for index in sorted(reached):
            below = max((level.get(i, 0) for i in nodes[index].inputs), default=0)
            level[index] = below + (nodes[index].op in _WHOLE)
        reductions = {i: n for i, n in level.items() if nodes[i].op in _WHOLE}
        self._reduced = {nodes[i].inputs[0] for i in reductions if nodes[i].op in REDUCTIONS}
        return reductions

    def _ends_at(self, index: int) -> bool:
        return index in self.given or self.graph.nodes[index].op == "transposed"

    def numbers(self, ends: tuple[int, ...]) -> tuple[int, ...]:
        """The next walk: what it needs as one number a row."""
        nodes, single, seen, pending = self.graph.nodes, set[int](), set[int](), list(ends)
        while pending:
            index = pending.pop()
            if index in seen:
                continue
            seen.add(index)
            if nodes[index].shape == NUMBER or (
                not nodes[index].shape and self._is_expensive(index)
            ):
                single.add(index)
            elif self._ends_at(index) or nodes[index].op in LINES:
                continue
            elif self.left.get(index, self._walks) < self._walks:
                self.read.add(index)
            else:
                if self._is_expensive(index):
                    self.left[index] = self._walks
                pending.extend(nodes[index].inputs)
        self._walks += 1
        return tuple(sorted(single))

    def keep(self, made: tuple[int, ...]) -> None:
        """After a walk lines are made, so what they are made of is left there."""
        nodes = self.graph.nodes
        for i in (k for index in made for k in nodes[index].inputs):
            if nodes[i].shape != NUMBER and nodes[i].op not in ("full", *LINES):
                self.left.setdefault(i, self._walks - 1)
                self.read.add(i)

    def _is_expensive(self, index: int) -> bool:
        op = self.graph.nodes[index].op
        return op not in BOOLEAN and (op in EXPENSIVE or index in self._reduced)
