"""What a step's code looks like before it is code: phases, sums, what is saved.

The plan knows nothing of machines. A cell that it refuses stays with another backend, and
`explain` reports the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from throughtime.cell.contract import Cell
from throughtime.compiler import passes
from throughtime.compiler.derivative import derivative
from throughtime.compiler.graph import NUMBER, Graph
from throughtime.compiler.passes import NO_MASKS, Masks, Widths
from throughtime.compiler.sweeps import choose_saved_values, find_needed_values
from throughtime.compiler.trace import state_shapes
from throughtime.errors import BackendError


@dataclass(frozen=True)
class Phase:
    """The products with one vector.

    Attributes:
        vector: its node.
        computed: whether the step computes the vector, so that it has rows of its own; the old
            output lies in its state.
        places: numbers of its sums among those of the plan.
        transposed: nodes of the derivative, each U.g.T times the gradient by one of its products.
    """

    vector: int
    computed: bool
    places: tuple[int, ...]
    transposed: tuple[int, ...]


def group_products(step: Graph, output: str) -> dict[int, list[str]]:
    """The vectors that a step multiplies, in the order of its phases, each with its matrices.

    What more products lead to comes later; the old output comes before all else.
    """
    depth: list[int] = []
    matrices: dict[int, list[str]] = {}
    for node in step.nodes:
        depth.append(max((depth[i] for i in node.inputs), default=0) + (node.op == "U"))
        if node.op == "U":
            matrices.setdefault(node.inputs[0], []).append(str(node.constants[0]))
    order = sorted(matrices, key=lambda i: (depth[i], not is_old(step, i, output), i))
    return {i: matrices[i] for i in order}


def is_old(step: Graph, index: int, output: str) -> bool:
    """Whether a node is the output of the step before."""
    node = step.nodes[index]
    return node.op == "s" and node.constants[0] == output


def find_phases(
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
        for vector, names in group_products(step, output).items()
    )


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


def find_sums(
    step: Graph, graph: Graph, output: str, inputs: tuple[str, ...], blocks: frozenset[str]
) -> tuple[Sum, ...]:
    """The sums of a step, those of each phase side by side as far as their kinds allow.

    Args:
        step: its graph.
        graph: of its derivative.
        output: the name of the state that is the output.
        inputs: names of direct inputs, which are no sums.
        blocks: names of the block-diagonal matrices, whose products are sums by themselves.
    """
    gradients = dict(graph.outputs)
    results = {p.matrix: p.result for p in graph.products}
    read = {str(n.constants[0]): i for i, n in enumerate(step.nodes) if n.op == "a"}
    a = {g: i for g, i in read.items() if g not in inputs}
    node_of = {str(n.constants[0]): i for i, n in enumerate(step.nodes) if n.op == "U"}
    phase = {g: k for k, gates in enumerate(group_products(step, output).values()) for g in gates}
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
    """In words: each phase, and the sums that are whole after its products, some without bias."""
    with_x = [k for k, s in enumerate(sums) if s.u is None]
    for number, phase in enumerate(phases or (None,), 1):
        factors = ["x"] * (number == 1)
        if phase is not None:
            factors.append(f"t{phase.vector}" if phase.computed else "the old state")
        yield f"phase {number}: products with {' and '.join(factors)}, then the pointwise part"
        for k in [*(with_x if number == 1 else ()), *(phase.places if phase else ())]:
            s, v = sums[k], f"t{phase.vector}" if phase and phase.computed else "h"
            own = "" if s.u in products else " + b"
            parts = [f"W.{s.a} x + b"] * bool(s.a) + [f"U.{s.u} {v}{own}"] * bool(s.u)
            yield f"  t{s.node} = {' + '.join(parts)}"


@dataclass(frozen=True)
class Plan:
    """How one step becomes code.

    Attributes:
        name: of the cell's class.
        graph: of the derivative; its first nodes are those of the step.
        sums: first those of W alone, then those of both, last those of U alone.
        states: node of each old state, or None where the step does not read it.
        new_states: node of each new state.
        saved: nodes kept from the forward pass for the backward pass, besides y; numbers of a row
            of a row-wise step come last.
        reads_output: whether backward reads h_t, which is the output.
        reads_old: whether backward's pointwise part reads h_{t-1}.
        state_names: of the cell's states; the first is the output.
        vectors: names of the per-unit vectors, whose gradients stand after those of the sums.
        phases: one for each vector that is multiplied, in order; the old output is the first.
        inputs: node of each direct input that is read.
        widths: of all nodes.
        products: names of the matrices that are no gate's, which have no bias.
        masks: node of each mask.
        in_blocks: whether a matrix is block-diagonal.
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
    phases: tuple[Phase, ...]
    inputs: tuple[int, ...]
    widths: Widths
    products: tuple[str, ...]
    masks: tuple[int, ...] = ()
    in_blocks: bool = False

    @cached_property
    def lines(self) -> tuple[int, ...]:
        """What each row of a step is given, a line of units each: direct inputs, then masks."""
        return self.inputs + self.masks

    @cached_property
    def mask_names(self) -> tuple[str, ...]:
        """Of the masks: `DROPOUT`, or a state's name for zoneout."""
        return tuple(str(self.graph.nodes[i].constants[0]) for i in self.masks)

    @cached_property
    def rowwise(self) -> bool:
        """Whether code works out numbers of a whole row before it goes over its units."""
        return self.widths.rowwise

    @cached_property
    def input_names(self) -> tuple[str, ...]:
        """Of the direct inputs that are read."""
        return tuple(str(self.graph.nodes[i].constants[0]) for i in self.inputs)

    @cached_property
    def with_a(self) -> tuple[Sum, ...]:
        """Sums that x enters; they come first."""
        return tuple(s for s in self.sums if s.a is not None)

    @cached_property
    def with_u(self) -> tuple[Sum, ...]:
        """Sums that a product enters; they come last."""
        return tuple(s for s in self.sums if s.u is not None)

    @cached_property
    def fused(self) -> tuple[Phase, ...]:
        """The last phase, whose product and the cell's end share panels of units; none where a
        step needs all units of a row at once, where widths differ, or a matrix has blocks."""
        alone = self.widths.even and not self.rowwise and not self.in_blocks
        return self.phases[-1:] if alone else ()

    @cached_property
    def early(self) -> tuple[Phase, ...]:
        """The phases before that."""
        return self.phases[: len(self.phases) - len(self.fused)]

    @cached_property
    def last(self) -> tuple[int, ...]:
        """Numbers of the sums of the fused phase."""
        return self.fused[0].places if self.fused else ()

    @cached_property
    def saved_numbers(self) -> tuple[int, ...]:
        """What is saved as one number a row; of other steps such values are lines of equal ones."""
        nodes = self.graph.nodes
        return tuple(i for i in self.saved if self.rowwise and nodes[i].shape == NUMBER)

    @cached_property
    def saved_lines(self) -> tuple[int, ...]:
        """What is saved as a line of units."""
        return self.saved[: len(self.saved) - len(self.saved_numbers)]

    def saved_size(self, units: int) -> int:
        """Lines of so many units, padded, that a row saves; numbers lie after the others."""
        return len(self.saved_lines) + -(-len(self.saved_numbers) // units)

    @cached_property
    def computed(self) -> tuple[Phase, ...]:
        """Phases that multiply something else than the old output."""
        return tuple(p for p in self.phases if p.computed)

    def states_of(self, width: str) -> tuple[int, ...]:
        """Numbers of the states that are so wide."""
        return tuple(k for k, w in enumerate(self.widths.states) if w == width)

    @cached_property
    def gradients(self) -> dict[str, int]:
        """Output of the derivative by name: d_s.h, d_p.u and so on."""
        return dict(self.graph.outputs)

    def numbers(self, bytes: int) -> list[int]:
        """The numbers that code is given, of so many bytes, each at the start of a word."""
        words = np.zeros(len(self.graph.numbers), np.int64)
        with np.errstate(over="ignore"):  # beyond float32 they are infinite, as in code
            given = [self.graph.nodes[i].constants[0] for i in self.graph.numbers]
            words.view(f"f{bytes}")[:: 8 // bytes] = np.array(given, np.float64)
        return [int(word) for word in words]

    @cached_property
    def key(self) -> str:
        """Plans with equal keys share their code, which is given the numbers that differ."""
        sums = [(s.node, s.gradient, s.a is not None, s.u is not None) for s in self.sums]
        more = self.states, self.new_states, self.saved, self.vectors, self.lines, self.in_blocks
        return repr((self.graph.code_key, sums, *more))

    def __str__(self) -> str:
        nodes = self.graph.nodes
        saved = ", ".join(f"t{i} = {nodes[i]}" for i in self.saved) or "nothing"
        others = [*["h_t"] * self.reads_output, *["h_(t-1)"] * self.reads_old]
        read = f"; also read: {', '.join(others)}" if others else ""
        phases = phase_lines(self.phases, self.sums, self.products)
        return "\n".join([*phases, f"saved: {saved}{read}"])


@lru_cache(maxsize=256)  # asked several times a call
def make_plan(cell: Cell, masks: Masks = NO_MASKS, H: int | None = None) -> Plan:
    """The plan of a cell with these masks at a hidden size.

    Raises:
        BackendError: there is none, since its step computes what has no rule.
    """
    reason = why_unplanned(cell, H)
    if reason is not None:
        raise BackendError(reason)
    return _planned(passes.unshare(cell, H), masks)


@lru_cache(maxsize=256)
def why_unplanned(cell: Cell, H: int | None = None) -> str | None:
    """What the step computes that has no rule, in the words of `explain`, or None."""
    refusal = None if isinstance(cell, passes.Unshared) else passes.find_unsupported(cell, H)
    if refusal is None:
        return None
    name = type(cell).__name__
    return f"{refusal.operation} has no rule, which keeps {name} uncompiled: {refusal.line}"


def _planned(cell: Cell, masks: Masks) -> Plan:
    masked = passes.add_masks(passes.trace_unshared(cell), cell.layout.recurrent_gates, masks)
    step, graph = passes.expand(masked, derivative(masked))
    output = cell.state_names[0]
    blocks = frozenset(n for n in cell.layout.products if cell.blocks_of(n) > 1)
    sums = find_sums(step, graph, output, cell.layout.inputs, blocks)
    phases = find_phases(step, graph, output, [s.u for s in sums])
    old = {str(n.constants[0]): i for i, n in enumerate(step.nodes) if n.op == "s"}
    states = tuple(old.get(name) for name in cell.state_names)
    new_states = tuple(i for _, i in step.outputs)
    needed = find_needed_values(graph) | {p.vector for p in phases if p.computed}
    direct = {str(n.constants[0]): i for i, n in enumerate(step.nodes) if n.op == "a"}
    inputs = tuple(direct[name] for name in cell.layout.inputs if name in direct)
    given = tuple(i for i, n in enumerate(step.nodes) if n.op == "mask")
    known = {i for i in (states[0], new_states[0], *inputs, *given) if i is not None}
    saved, read = choose_saved_values(graph, needed, {s.node for s in sums}, known)
    saved = tuple(sorted(saved, key=lambda i: (graph.nodes[i].shape == NUMBER, i)))
    return Plan(
        step.name, graph, sums, states, new_states, saved, new_states[0] in read,
        states[0] in read, cell.state_names, cell.layout.vectors, phases, inputs,
        passes.find_widths(graph, tuple(v[-1] for v in state_shapes(cell, step.H).values())),
        cell.layout.products, given, bool(blocks),
    )  # fmt: skip
