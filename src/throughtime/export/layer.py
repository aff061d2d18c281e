"""Layers and functions as operations of a program.

A recurrent layer is sums of products, phase by phase, then the cell's equations; a function of
vectors is a walk over its units.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from throughtime.backends.call import Call
from throughtime.backends.cpu.operands import unshare_call
from throughtime.backends.cpu.schedule import masks_of, matrix_names, widths_for
from throughtime.backends.cpu.shape import gate_numbers
from throughtime.compiler import sweeps
from throughtime.compiler.graph import Builder, Graph, Line
from throughtime.compiler.llvm.abi import MOST_LANES
from throughtime.compiler.passes import DROPOUT, HIDDEN, REDUCTIONS, expand
from throughtime.compiler.plan import Phase, Plan, make_plan, why_unplanned
from throughtime.compiler.sweeps import Sweep
from throughtime.compiler.symbols import Symbol, lift
from throughtime.errors import OptionError, ThroughtimeError
from throughtime.export.program import Block, Place, ProductPart, Values, Walk, Writer, group_runs


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
    call = unshare_call(call)
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
            loads[i] = read_mask(self.call, name)
        for i, node in enumerate(nodes[: plan.graph.forward]):
            if node.op == "p":
                loads[i] = vectors[str(node.constants[0])]
        return loads

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
                parts = numbers, lines_here, reductions, stores_here
                if any(parts):
                    walks.append(Walk(self.units[width], *parts))
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
            part = {"size": lines, "offset": b * lines}
            start, out = whole.start._replace(**part), whole.out._replace(**part)
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


def read_mask(call: Call, name: str) -> float:
    """The share of a state that is kept: in eval mode a mask is one number for all units."""
    assert name != DROPOUT and call.zoneout is not None
    return float(call.zoneout[call.cell.state_names.index(name)].reshape(-1)[0])


def list_input_labels(call: Call) -> list[str]:
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


NOT_FOLLOWED = (TypeError, ValueError, AttributeError, RuntimeError, IndexError)
"""What tracing a function raises that cannot be followed."""


def trace_function(
    function: Callable[..., Any], names: tuple[str, ...], vectors: tuple[str, ...]
) -> Graph:
    """The graph of a function of vectors of one width.

    Args:
        function: of the values, then the vectors.
        names: of the values, nodes `a`.
        vectors: of constants of one number a unit, nodes `p`.

    Raises:
        OptionError: an operation has no rule.
    """
    builder = Builder(end=trace_function.__code__)
    values = [Symbol(builder, builder.node("a", (), (n,), ("B", HIDDEN))) for n in names]
    values += [Symbol(builder, builder.node("p", (), (n,), (HIDDEN,))) for n in vectors]
    try:
        result = lift(builder, function(*values))
    except ThroughtimeError:
        raise
    except NOT_FOLLOWED as error:
        raise OptionError(f"it cannot be followed ({error})") from error
    graph = builder.finish("", [("y", result.index)], [])
    if graph.unsupported:
        raise OptionError(f"{graph.unsupported[0].operation} has no rule")
    if result.symbolic_shape != ("B", HIDDEN) or result.is_boolean:
        raise OptionError("it changes the shape of what it takes")
    whole = expand(graph, graph)[1]
    nodes = tuple(replace(n, line=None) if _is_here(n.line) else n for n in whole.nodes)
    return replace(whole, nodes=nodes, forward=len(nodes))


def _is_here(line: Line | None) -> bool:
    """Whether a line is of `trace_function` itself, as that of a function of torch is."""
    numbers = (number for _, _, number in trace_function.__code__.co_lines())
    return line is not None and line.file == __file__ and line.number in numbers


def write_pointwise(
    writer: Writer, function: Callable[..., Any], values: dict[str, Place],
    vectors: dict[str, Any], name: str,
) -> Place:  # fmt: skip
    """Write y = function(values, vectors) as an operation; returns where y lies."""
    graph = trace_function(function, tuple(values), tuple(vectors))
    size = next(iter(values.values())).size
    places = {n: Place(writer.constant(n, v), size) for n, v in vectors.items()}
    loads: dict[int, Place | float] = {
        i: (values if node.op == "a" else places)[str(node.constants[0])]
        for i, node in enumerate(graph.nodes)
        if node.op in ("a", "p")
    }
    out = writer.work(name, size)
    ends = ((graph.outputs[0][1], out),)
    writer.stage(graph, loads, {HIDDEN: size}, _list_walks(writer, graph, size, ends))
    return out


def _list_walks(
    writer: Writer, graph: Graph, size: int, stores: tuple[tuple[int, Place], ...]
) -> list[Walk]:
    """The walks over units of one width that lead to what is stored."""
    if not any(node.op in REDUCTIONS for node in graph.nodes):
        return [Walk(size, (), (), (), stores)]
    walks = []
    for sweep in sweeps.find_sweeps(graph, set(), tuple(i for i, _ in stores)):
        lines = tuple((i, writer.work("line", size)) for i in sweep.lines)
        last = () if sweep.reductions else stores
        walks.append(Walk(size, sweep.numbers, lines, sweep.reductions, last))
    return walks


@torch.no_grad()
def check_each_step(function: Callable[..., Any], width: int) -> None:
    """Raises OptionError: a function computes something else of a row alone than in a sequence."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, width, generator=draw, dtype=torch.float32, device="cpu")
    try:
        whole, alone = function(x), torch.stack([function(v) for v in x.flatten(0, 1).split(1)])
    except NOT_FOLLOWED:
        return  # following it says why
    if whole.shape != x.shape or not torch.allclose(whole.flatten(0, 1), alone[:, 0], atol=1e-5):
        raise OptionError(
            "it mixes steps or rows of a batch, or changes their shape; dimensions must be counted "
            "from the end, as in dim=-1"
        )


def make_norm_function(part: Any) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Layer norm or RMS norm over the units, as a function of x and of the vectors by name."""
    parameters = (("gain", part.weight), ("shift", getattr(part, "bias", None)))
    vectors = {n: v.numpy() for n, v in parameters if v is not None}
    eps = part.eps if part.eps is not None else torch.finfo(torch.float32).eps

    def layer_norm(x: Any, gain: Any = None, shift: Any = None) -> Any:
        return functional.layer_norm(x, x.shape[-1:], gain, shift, eps)

    def rms_norm(x: Any, gain: Any = None) -> Any:
        return functional.rms_norm(x, x.shape[-1:], gain, eps)

    return layer_norm if isinstance(part, nn.LayerNorm) else rms_norm, vectors
