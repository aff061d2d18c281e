"""A recurrent layer as operations: sums of products, phase by phase, then the cell's equations."""

from __future__ import annotations

import re

import numpy as np

from throughtime.backends.call import Call
from throughtime.backends.cpu.operands import masks_of
from throughtime.backends.cpu.schedule import matrix_names, widths_for
from throughtime.backends.cpu.shape import gate_numbers
from throughtime.backends.cpu.unshare import call_apart
from throughtime.compiler import sweeps
from throughtime.compiler.llvm.abi import MOST_LANES
from throughtime.compiler.passes import DROPOUT
from throughtime.compiler.plan import Phase, Plan, make_plan, why_unplanned
from throughtime.compiler.sweeps import Sweep
from throughtime.errors import OptionError
from throughtime.export.program import (
    Block,
    Place,
    ProductPart,
    Values,
    Walk,
    Writer,
    group_runs,
)


def write_layer(writer: Writer, call: Call, title: str) -> Place:
    """Write the operations of one step of a layer that reads `writer.at`; returns its output.

    Args:
        writer: of the program.
        call: one step of it, with its weights.
        title: what the layer is called in comments.

    Raises:
        OptionError: the cell has no plan.
    """
    reason = why_unplanned(call.cell)
    if reason is not None:
        raise OptionError(f"{title} cannot be exported: {reason}")
    call = call_apart(call)
    return _Layer(writer, call, make_plan(call.cell, masks_of(call))).write()


_Store = tuple[int, Place, str]
"""A node that is a result, where it goes, and its width's name."""


class _Layer:
    """One layer while its operations are written."""

    def __init__(self, writer: Writer, call: Call, plan: Plan) -> None:
        self.writer, self.call, self.plan = writer, call, plan
        self.widths = widths_for(call.cell, call.hidden_size, masks_of(call))
        self.units = dict(zip(plan.widths.names, self.widths.units, strict=True))
        self.units |= {w: int(w) for n in plan.graph.nodes for w in n.shape if w.isdigit()}
        self.weights = {n: v.detach().numpy() for n, v in call.weights[0].items()}
        self.gates = gate_numbers(plan, call.cell)
        self.states = self._place_states()
        H, count = max([call.hidden_size, *self.widths.sums]), len(plan.sums)
        pre = writer.array("pre", "work", count, H) if count else ""
        bias = writer.constant("bias", self._add_biases(H)) if count else ""
        self.pre = [self._place_sum(pre, k) for k in range(count)]
        self.bias = [self._place_sum(bias, k) for k in range(count)]
        self.loads = self._list_loads()

    def write(self) -> Place:
        """All operations."""
        plan = self.plan
        self._multiply(self.writer.at, tuple(range(len(plan.with_a))), "ih")
        for phase in plan.phases:
            self._multiply(self._write_vector(phase), phase.places, "hh")
        stores = zip(plan.new_states, self.states, plan.widths.states, strict=True)
        self._write_stage(sweeps.sweeps_forward(plan, False), tuple(stores))
        return self.states[0]

    def _place_sum(self, array: str, k: int) -> Place:
        """Where a sum lies, or what it starts from; of a matrix in blocks in a line of its own.

        Blocks are written one after the other in whole vectors, so that line is longer.
        """
        width, blocks = self.widths.sums[k], self.widths.blocks[k]
        if blocks == 1:
            return Place(array, width, k)
        rows = width // blocks
        longest = rows * (blocks - 1) + -(-rows // MOST_LANES) * MOST_LANES
        if self.writer.arrays[array].kind == "work":
            return Place(self.writer.array("pre", "work", 1, longest), width)
        bias, count = np.zeros(longest, np.float32), min(self.call.hidden_size, longest)
        bias[:count] = self.writer.constants[array][k, :count]
        return Place(self.writer.constant("bias", bias), width)

    def _place_states(self) -> list[Place]:
        places, names = [], zip(self.plan.state_names, self.widths.states, strict=True)
        for (name, width), value in zip(names, self.call.initial_rows(), strict=True):
            array = self.writer.array(name, "state", 1, width)
            start = value.detach().numpy().reshape(1, -1).astype(np.float32)
            if start.any():
                self.writer.resets[array] = start
            places.append(Place(array, width))
        return places

    def _list_loads(self) -> dict[int, Place | float]:
        """Where the nodes lie that the equations read."""
        plan, nodes = self.plan, self.plan.graph.nodes
        loads: dict[int, Place | float] = {}
        for k, s in enumerate(plan.sums):
            loads[s.node] = self.pre[k]
        loads |= {i: p for i, p in zip(plan.states, self.states, strict=True) if i is not None}
        vectors = {
            n: Place(self.writer.constant(n, self.weights[n]), self.call.hidden_size)
            for n in plan.vectors
        }
        offset = self.writer.at.offset + self.writer.at.size
        for name in self.call.cell.layout.inputs:
            width = self.call.cell.width(self.call.cell.inputs[name], self.call.hidden_size)
            for i in plan.inputs:
                if nodes[i].constants[0] == name:
                    loads[i] = Place("x", width, 0, offset)
            offset += width
        for i, name in zip(plan.masks, plan.mask_names, strict=True):
            loads[i] = self._read_mask(name)
        for i, node in enumerate(nodes[: plan.graph.forward]):
            if node.op == "p":
                loads[i] = vectors[str(node.constants[0])]
        return loads

    def _read_mask(self, name: str) -> float:
        """In eval mode a mask is one number for all units."""
        assert name != DROPOUT and self.call.zoneout is not None
        mask = self.call.zoneout[self.call.cell.state_names.index(name)]
        return float(mask.reshape(-1)[0])

    def _write_vector(self, phase: Phase) -> Place:
        """What a phase multiplies, computed where it is not the old output."""
        if not phase.computed:
            return self.states[0]
        node, width = phase.vector, self.plan.widths.of[phase.vector]
        out = self.writer.work("v", self.units[width])
        slot = self.plan.computed.index(phase)
        self._write_stage(sweeps.sweeps_to_vector(self.plan, slot), ((node, out, width),))
        return out

    def _write_stage(self, row_sweeps: tuple[Sweep, ...], stores: tuple[_Store, ...]) -> None:
        """Walks of each width, the single numbers before the first of each sweep.

        A step that needs no number of a whole row takes one walk, and leaves nothing for later.
        """
        of, nodes, walks = self.plan.widths.of, self.plan.graph.nodes, list[Walk]()
        for sweep in row_sweeps if self.plan.rowwise else row_sweeps[-1:]:
            numbers = sweep.numbers if self.plan.rowwise else ()
            left = sweep.lines if self.plan.rowwise else ()
            lines = [(i, self.writer.work("line", self.units[of[i]])) for i in left]
            for width in self.plan.widths.names:
                reductions = tuple(r for r in sweep.reductions if of[nodes[r].inputs[0]] == width)
                lines_here = tuple((i, p) for i, p in lines if of[i] == width)
                results = () if sweep.reductions else stores
                stores_here = tuple((i, place) for i, place, w in results if w == width)
                if numbers or reductions or lines_here or stores_here:
                    walks.append(
                        Walk(self.units[width], numbers, lines_here, reductions, stores_here)
                    )
                    numbers = ()
        self.writer.stage(self.plan.graph, self.loads, self.units, walks)

    def _multiply(self, source: Place, sums: tuple[int, ...], name: str) -> None:
        """W v of these sums, each added to where it starts and written to its place."""
        whole = []
        for k in sums:
            node = self.plan.sums[k]
            first = self.pre if name == "hh" and node.a is not None else self.bias
            word = f"W_{node.a}" if name == "ih" else f"U_{node.u}"
            block = Block(self._find_matrix(k, name), first[k], self.pre[k], word)
            if block.matrix.ndim == 2:
                whole.append(block)
            else:
                self._multiply_blocks(source, block)
        for same in group_runs(whole, lambda a, b: a.matrix.shape == b.matrix.shape):
            self.writer.add(ProductPart(source, tuple(same)))

    def _multiply_blocks(self, source: Place, whole: Block) -> None:
        """A matrix in blocks, each times its own part of v; in order, as each is written."""
        _, lines, columns = whole.matrix.shape
        assert whole.start is not None
        for b, matrix in enumerate(whole.matrix):
            first = source._replace(size=columns, offset=source.offset + b * columns)
            start, out = (
                place._replace(size=lines, offset=b * lines) for place in (whole.start, whole.out)
            )
            block = Block(np.ascontiguousarray(matrix), start, out, f"{whole.name}[{b}]")
            self.writer.add(ProductPart(first, (block,)))

    def _find_matrix(self, k: int, name: str) -> Values:
        """The lines of a sum's gate in weight_ih or weight_hh, or the matrix of its product."""
        number, H = self.widths.matrices[k], self.call.hidden_size
        if name == "hh" and number:
            return self.weights[matrix_names(self.call.cell)[number]]
        gate = self.gates[name == "hh"][k]
        return np.ascontiguousarray(self.weights[f"weight_{name}"][gate * H :][:H])

    def _add_biases(self, width: int) -> Values:
        """Where each sum's chain starts: b_ih, b_hh, or their sum."""
        H = self.call.hidden_size
        biases = np.zeros((len(self.plan.sums), width), np.float32)
        for k, row in enumerate(biases):
            for name, gates in zip(("bias_ih", "bias_hh"), self.gates, strict=True):
                if gates[k] >= 0 and name in self.weights:
                    row[:H] += self.weights[name][gates[k] * H :][:H]
        return biases


def input_labels(call: Call) -> list[str]:
    """What each direct input's numbers are called."""
    labels = []
    for name in call.cell.layout.inputs:
        width = call.cell.width(call.cell.inputs[name], call.hidden_size)
        labels += [name] if width == 1 else [f"{name}[{k}]" for k in range(width)]
    return labels


def describe_call(call: Call) -> str:
    """A layer in words."""
    words = re.sub(r"\s+", " ", repr(call.cell))
    return f"{words}, {call.x.shape[-1]} -> {call.hidden_size}"
