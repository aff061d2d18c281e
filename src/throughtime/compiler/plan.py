"""What a step's code looks like before it is code: its sums, what backward needs, what is saved.

The plan knows nothing of machines. A cell that it refuses stays with another backend, and the
reason is told by `explain`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain
from typing import Final

from throughtime.cells.cell import Cell
from throughtime.compiler.derivative import derivative
from throughtime.compiler.graph import Graph
from throughtime.compiler.inputs import state_shapes
from throughtime.compiler.masked import NO_MASKS, Masks, with_masks
from throughtime.compiler.phases import Phase, phases_of
from throughtime.compiler.saving import needed_values, saved_values
from throughtime.compiler.sums import Sum, sums_of
from throughtime.compiler.trace import trace
from throughtime.compiler.widths import NUMBER, Widths, odd_widths, widths_of

ROWWISE: Final = frozenset("row_sum row_mean row_scale spread softmax normalise sum_units".split())
"""Operations over the units of a row, which pointwise code cannot compute."""

UNCODED: Final = frozenset({"sin", "cos"})
"""Operations that have a rule of derivative and no vector code yet."""


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
        phases: one for each vector that is multiplied, in order; the old output is the first.
        inputs: node of each direct input that is read.
        widths: of all nodes.
        products: names of the matrices that are no gate's, which have no bias.
        masks: node of each mask.
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

    @cached_property
    def lines(self) -> tuple[int, ...]:
        """What each row of a step is given, a line of units each: direct inputs, then masks."""
        return self.inputs + self.masks

    @cached_property
    def mask_names(self) -> tuple[str, ...]:
        """Of the masks: `DROPOUT`, or a state's name for zoneout."""
        return tuple(str(self.graph.nodes[i].constants[0]) for i in self.masks)

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
        """The last phase, whose product and the cell's end share panels of units; none where
        widths differ, whose units are not the same."""
        return self.phases[-1:] if self.widths.even else ()

    @cached_property
    def early(self) -> tuple[Phase, ...]:
        """The phases before that."""
        return self.phases[: len(self.phases) - len(self.fused)]

    @cached_property
    def last(self) -> tuple[int, ...]:
        """Numbers of the sums of the fused phase."""
        return self.fused[0].places if self.fused else ()

    @cached_property
    def own(self) -> tuple[Phase, ...]:
        """Phases that multiply something else than the old output."""
        return tuple(p for p in self.phases if p.own)

    @cached_property
    def gradients(self) -> dict[str, int]:
        """Output of the derivative by name: d_s.h, d_p.u and so on."""
        return dict(self.graph.outputs)

    @cached_property
    def key(self) -> str:
        """Equal plans may share their code."""
        sums = [(s.node, s.gradient, s.a is not None, s.u is not None) for s in self.sums]
        more = self.states, self.new_states, self.saved, self.vectors, self.lines
        return repr((self.graph.key, sums, *more))

    def __str__(self) -> str:
        nodes = self.graph.nodes
        saved = ", ".join(f"t{i} = {nodes[i]}" for i in self.saved) or "nothing"
        beside = [*["h_t"] * self.reads_output, *["h_(t-1)"] * self.reads_old]
        read = f"; read beside it: {', '.join(beside)}" if beside else ""
        return "\n".join([*self._phase_lines(), f"saved: {saved}{read}"])

    def _phase_lines(self) -> Iterator[str]:
        """Each phase, and the sums that are whole behind its products."""
        with_x = [k for k, s in enumerate(self.sums) if s.u is None]
        for number, phase in enumerate(self.phases or (None,), 1):
            said = ["x"] * (number == 1)
            if phase is not None:
                said.append(f"t{phase.vector}" if phase.own else "the old state")
            yield f"phase {number}: products with {' and '.join(said)}, then the pointwise part"
            for k in [*(with_x if number == 1 else ()), *(phase.places if phase else ())]:
                s, v = self.sums[k], f"t{phase.vector}" if phase and phase.own else "h"
                own = "" if s.u in self.products else " + b"
                parts = [f"W.{s.a} x + b"] * bool(s.a) + [f"U.{s.u} {v}{own}"] * bool(s.u)
                yield f"  t{s.node} = {' + '.join(parts)}"


@lru_cache(maxsize=256)  # asked several times a call
def plan(cell: Cell, masks: Masks = NO_MASKS) -> Plan | str:
    """The plan of a cell with these masks, or the reason why there is none."""
    return _reason(cell) or _planned(cell, masks)


def _reason(cell: Cell) -> str | None:
    """Why the compiler does not take the cell, or None."""
    graph, name = trace(cell), type(cell).__name__
    if graph.unsupported:
        operation, line = graph.unsupported[0]
        return f"{operation} has no rule, which keeps {name} uncompiled: {line}"
    return next(chain(_odd_nodes(cell, graph), odd_widths(cell, graph)), None)


def _odd_nodes(cell: Cell, graph: Graph) -> Iterator[str]:
    name = type(cell).__name__
    matrices: set[str] = set()
    for node in graph.nodes:
        if node.op in ROWWISE or ("1" in node.shape and node.shape != NUMBER):
            yield f"{name} computes over the units of a row ({node.op}): {node.line}"
        if node.op in UNCODED:
            yield f"{name} computes {node.op}, which has no vector code: {node.line}"
        if node.op == "U":
            matrix = str(node.constants[0])
            if matrix in matrices:
                yield f"{name} multiplies by U.{matrix} twice: {node.line}"
            matrices.add(matrix)


def _planned(cell: Cell, masks: Masks) -> Plan:
    step = with_masks(trace(cell), cell.layout.recurrent_gates, masks)
    graph, output = derivative(step), cell.state_names[0]
    sums = sums_of(step, graph, output, cell.layout.inputs)
    phases = phases_of(step, graph, output, [s.u for s in sums])
    old = {str(n.constants[0]): i for i, n in enumerate(step.nodes) if n.op == "s"}
    states = tuple(old.get(name) for name in cell.state_names)
    new_states = tuple(i for _, i in step.outputs)
    needed = needed_values(graph) | {p.vector for p in phases if p.own}
    direct = {str(n.constants[0]): i for i, n in enumerate(step.nodes) if n.op == "a"}
    inputs = tuple(direct[name] for name in cell.layout.inputs if name in direct)
    given = tuple(i for i, n in enumerate(step.nodes) if n.op == "mask")
    known = {i for i in (states[0], new_states[0], *inputs, *given) if i is not None}
    saved, read = saved_values(graph, needed, {s.node for s in sums}, known)
    return Plan(
        type(cell).__name__, graph, sums, states, new_states, saved, new_states[0] in read,
        states[0] in read, cell.state_names, cell.layout.vectors, phases, inputs,
        widths_of(graph, tuple(shape[-1] for shape in state_shapes(cell).values())),
        cell.layout.products, given,
    )  # fmt: skip
