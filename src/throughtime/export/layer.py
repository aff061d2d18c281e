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
from throughtime.compiler.llvm.sizes import MOST_LANES
from throughtime.compiler.passes.masks import DROPOUT
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
    """The operations of one step of a layer, from `writer.at`; gives where its output lies.

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
    return _Layer(writer, call, make_plan(call.cell, masks_of(call)), title).write()


_Store = tuple[int, Place, str]
"""A node that is a result, where it goes, and its width's name."""


class _Layer:
    """One layer while its operations are written."""

    def __init__(self, writer: Writer, call: Call, found: Plan, title: str) -> None:
        self.writer, self.call, self.plan, self.title = writer, call, found, title
        self.widths = widths_for(call.cell, call.hidden_size, masks_of(call))
        self.units = dict(zip(found.widths.names, self.widths.units, strict=True))
        self.units |= {w: int(w) for n in found.graph.nodes for w in n.shape if w.isdigit()}
        self.weights = {n: v.detach().numpy() for n, v in call.weights[0].items()}
        self.gates = gate_numbers(found, call.cell)
        self.states = self._states()
        H, count = max([call.hidden_size, *self.widths.sums]), len(found.sums)
        pre = writer.array("pre", "work", count, H) if count else ""
        bias = writer.constant("bias", self._bias(H)) if count else ""
        self.pre = [self._line(pre, k) for k in range(count)]
        self.bias = [self._line(bias, k) for k in range(count)]
        self.given = self._given()

    def write(self) -> Place:
        """All operations."""
        found, source = self.plan, self.writer.at
        with_a = range(len(found.with_a))
        self._multiply(source, tuple(with_a), "ih")
        for phase in found.phases:
            self._multiply(self._vector(phase), phase.places, "hh")
        stores = zip(found.new_states, self.states, found.widths.states, strict=True)
        self._stage(sweeps.sweeps_forward(found, False), tuple(stores))
        return self.states[0]

    def _line(self, array: str, k: int) -> Place:
        """Where a sum lies, or what it starts from; of a matrix in blocks in a line of its own.

        Blocks are written one behind the other in whole vectors, so that line is longer.
        """
        width, blocks = self.widths.sums[k], self.widths.blocks[k]
        if blocks == 1:
            return Place(array, width, k)
        rows = width // blocks
        longest = rows * (blocks - 1) + -(-rows // MOST_LANES) * MOST_LANES
        if self.writer.arrays[array].kind == "work":
            return Place(self.writer.array("pre", "work", 1, longest), width)
        bias, own = np.zeros(longest, np.float32), self.call.hidden_size
        bias[: min(own, longest)] = self.writer.constants[array][k, : min(own, longest)]
        return Place(self.writer.constant("bias", bias), width)

    def _states(self) -> list[Place]:
        places, first = [], self.call.initial_rows()
        for name, width, value in zip(
            self.plan.state_names, self.widths.states, first, strict=True
        ):
            array = self.writer.array(f"{name}", "state", 1, width)
            start = value.detach().numpy().reshape(1, -1).astype(np.float32)
            if start.any():
                self.writer.resets[array] = start
            places.append(Place(array, width))
        return places

    def _given(self) -> dict[int, Place | float]:
        """Where nodes lie that are there before anything is computed."""
        found, nodes = self.plan, self.plan.graph.nodes
        loads: dict[int, Place | float] = {}
        for k, s in enumerate(found.sums):
            loads[s.node] = self.pre[k]
        loads |= {i: p for i, p in zip(found.states, self.states, strict=True) if i is not None}
        vectors = {
            n: Place(self.writer.constant(n, self.weights[n]), self.call.hidden_size)
            for n in found.vectors
        }
        offset = self.writer.at.offset + self.writer.at.size
        for name in self.call.cell.layout.inputs:
            width = self.call.cell.width(self.call.cell.inputs[name], self.call.hidden_size)
            for i in found.inputs:
                if nodes[i].constants[0] == name:
                    loads[i] = Place("x", width, 0, offset)
            offset += width
        for i, name in zip(found.masks, found.mask_names, strict=True):
            loads[i] = self._mask(name)
        for i, node in enumerate(nodes[: found.graph.forward]):
            if node.op == "p":
                loads[i] = vectors[str(node.constants[0])]
        return loads

    def _mask(self, name: str) -> float:
        """In eval mode a mask is one number for all units."""
        assert name != DROPOUT and self.call.zoneout is not None
        mask = self.call.zoneout[self.call.cell.state_names.index(name)]
        return float(mask.reshape(-1)[0])

    def _vector(self, phase: Phase) -> Place:
        """What a phase multiplies, computed where it is not the old output."""
        if not phase.own:
            return self.states[0]
        node, width = phase.vector, self.plan.widths.of[phase.vector]
        out = self.writer.work("v", self.units[width])
        slot = self.plan.own.index(phase)
        self._stage(sweeps.sweeps_to_vector(self.plan, slot), ((node, out, width),))
        return out

    def _stage(self, found: tuple[Sweep, ...], stores: tuple[_Store, ...]) -> None:
        """Walks of each width, the single numbers before the first of each sweep.

        A step that needs no number of a whole row takes one walk, and leaves nothing for later.
        """
        of, nodes, walks = self.plan.widths.of, self.plan.graph.nodes, list[Walk]()
        for sweep in found if self.plan.rowwise else found[-1:]:
            numbers = sweep.numbers if self.plan.rowwise else ()
            left = sweep.lines if self.plan.rowwise else ()
            lines = [(i, self.writer.work("line", self.units[of[i]])) for i in left]
            for width in self.plan.widths.names:
                reduced = tuple(r for r in sweep.reductions if of[nodes[r].inputs[0]] == width)
                mine = tuple((i, p) for i, p in lines if of[i] == width)
                done = () if sweep.reductions else stores
                last = tuple((i, place) for i, place, w in done if w == width)
                if numbers or reduced or mine or last:
                    walks.append(Walk(self.units[width], numbers, mine, reduced, last))
                    numbers = ()
        self.writer.stage(self.plan.graph, self.given, self.units, walks)

    def _multiply(self, source: Place, sums: tuple[int, ...], name: str) -> None:
        """W v of sums on top of where they start, into their places."""
        whole = []
        for k in sums:
            found = self.plan.sums[k]
            first = self.pre if name == "hh" and found.a is not None else self.bias
            said = f"W_{found.a}" if name == "ih" else f"U_{found.u}"
            block = Block(self._matrix(k, name), first[k], self.pre[k], said)
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

    def _matrix(self, k: int, name: str) -> Values:
        """The lines of a sum's gate in weight_ih or weight_hh, or its matrix of its own."""
        own, H = self.widths.matrices[k], self.call.hidden_size
        if name == "hh" and own:
            return self.weights[matrix_names(self.call.cell)[own]]
        gate = self.gates[name == "hh"][k]
        return np.ascontiguousarray(self.weights[f"weight_{name}"][gate * H :][:H])

    def _bias(self, H: int) -> Values:
        """Where each sum's chain starts: b_ih, b_hh, or their sum."""
        own = self.call.hidden_size
        found = np.zeros((len(self.plan.sums), H), np.float32)
        for k, row in enumerate(found):
            for name, gates in zip(("bias_ih", "bias_hh"), self.gates, strict=True):
                if gates[k] >= 0 and name in self.weights:
                    row[:own] += self.weights[name][gates[k] * own :][:own]
        return found


def input_labels(call: Call) -> list[str]:
    """What each direct input's numbers are called."""
    labels = []
    for name in call.cell.layout.inputs:
        width = call.cell.width(call.cell.inputs[name], call.hidden_size)
        labels += [name] if width == 1 else [f"{name}[{k}]" for k in range(width)]
    return labels


def said_of(call: Call) -> str:
    """A layer in words."""
    words = re.sub(r"\s+", " ", repr(call.cell))
    return f"{words}, {call.x.shape[-1]} -> {call.hidden_size}"
