"""The parts of a compiled stream, layers and what stands between them, and their inputs."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from throughtime.backends.call import Call
from throughtime.backends.cpu.active_rows import rows_of
from throughtime.backends.cpu.operands import input_lines, input_units
from throughtime.backends.cpu.schedule import masks_of, matrix_names, plan_of, target, widths_for
from throughtime.backends.cpu.shape import gate_numbers
from throughtime.backends.cpu.stream.memory import AlignedRows, Array, CallList, PackedMatrix
from throughtime.compiler.llvm.abi import CELL_FORWARD, PHASE_FORWARD
from throughtime.compiler.llvm.library import Code, forward_code
from throughtime.compiler.plan import Phase, Plan
from throughtime.compiler.sweeps import lines_forward
from throughtime.torch_private import transform_depth


class PartProduct(NamedTuple):
    """A linear part: weight (O, K), and bias (O,) or None."""

    weight: Tensor
    bias: Tensor | None


class PartSum(NamedTuple):
    """What two parts give, added."""


class RowFunction(NamedTuple):
    """A function of each row alone: an activation, a normalisation.

    Attributes:
        plan: of a step without memory.
        vectors: name -> (width,), what it reads besides a row.
        width: of a row.
    """

    plan: Plan
    vectors: Mapping[str, Tensor]
    width: int


class LookupTable(NamedTuple):
    """Rows by their numbers, first of all: (V, width)."""

    rows: Tensor


Part = Call | PartProduct | PartSum | RowFunction | LookupTable


class Placed(NamedTuple):
    """A part, and what it reads: 0 is what a step is given, k + 1 what the k-th part gives."""

    part: Part
    sources: tuple[int, ...]


def output_width(part: Part, below: int) -> int:
    """How many numbers of a row a part gives, from a row of `below`."""
    if isinstance(part, PartProduct):
        return len(part.weight)
    if isinstance(part, LookupTable):
        return part.rows.shape[-1]
    return part.cell.widths(part.hidden_size)[0] if isinstance(part, Call) else below


def like(part: Part) -> Tensor | None:
    """A tensor of the dtype and device that a part computes in, its last width the input's."""
    if isinstance(part, Call):
        return part.x
    if isinstance(part, PartProduct):
        return part.weight
    return part.rows if isinstance(part, LookupTable) else None


def direct_inputs(
    given: Mapping[str, Any], widths: Mapping[str, set[int]], rows: int, dtype: torch.dtype
) -> dict[str, Tensor] | None:
    """The direct inputs of a step, (B, width); None where they are not plainly what it takes.

    Args:
        given: what the call was given besides x.
        widths: name -> what widths the input may have.
        rows: B.
        dtype: of the numbers.
    """
    if not given and not widths:
        return {}
    inputs = given.get("inputs")
    if len(given) != 1 or not isinstance(inputs, Mapping) or inputs.keys() != widths.keys():
        return None
    if transform_depth():
        return None
    taken = {}
    for name, v in inputs.items():
        plain = _plain(v, dtype)
        if plain is None or plain.shape[-1:].numel() not in widths[name]:
            return None
        shapes = ((rows, *plain.shape[-1:]), *((plain.shape[-1:],) if rows == 1 else ()))
        if plain.shape not in shapes:
            return None
        taken[name] = plain.reshape(rows, -1)
    return taken


def is_plain(v: Tensor, dtype: torch.dtype) -> bool:
    """Whether a tensor has memory of numbers of this dtype on the CPU."""
    return v.dtype == dtype and v.is_cpu and v.layout == torch.strided


def _plain(v: Any, dtype: torch.dtype) -> Tensor | None:
    """The numbers of a plain tensor or array in this dtype."""
    if type(v) is np.ndarray and v.dtype in (np.float32, np.float64):
        v = torch.from_numpy(v.copy())  # torch takes none that is turned round or read-only
    if type(v) is not Tensor or not is_plain(v, dtype):
        return None
    return v.detach()


class StreamLayer:
    """One layer in a program.

    Args:
        program: to which its calls are added.
        name: of the layer in its model.
        call: one step of one row, with its weights and what masks are in eval mode, without a
            state.
        x: what it reads.

    Attributes:
        states: of each state (B, padded), which steps overwrite.
        output: the first of them, in padded rows.
        inputs: of each direct input (B, units), where a step reads it.
    """

    def __init__(self, program: CallList, name: int, call: Call, x: AlignedRows) -> None:
        plan = self._plan = plan_of(call)
        self._program, self._name, self._H = program, name, call.hidden_size
        self._widths = widths_for(call.cell, call.hidden_size, masks_of(call))
        self._line, self._gates = program.padded(self._widths.line), gate_numbers(plan, call.cell)
        state = program.rows(len(plan.state_names) * program.B, self._line)
        self.states = list(state.array.reshape(-1, program.B, self._line))
        self.output = state._replace(array=self.states[0])
        lines = self._lines(call)
        units = enumerate(input_units(call, plan).items())
        self.inputs = {name: lines.array[:, k, :n] for k, (name, n) in units}
        self._weights = {n: v.detach().numpy() for n, v in call.weights[0].items()}
        self._names = matrix_names(call.cell)
        self._write(x, lines, forward_code(plan, program.kind.bytes, target(), False))

    def _lines(self, call: Call) -> AlignedRows:
        """A line of units for each direct input, and for each mask, which stays as it is."""
        program, count = self._program, len(self._plan.lines)
        rows = program.rows(program.B, count * self._line)
        rows = rows._replace(array=rows.array.reshape(program.B, count, self._line))
        lines = input_lines(call, self._plan, rows_of(call))
        if lines is not None:  # those of all rows are the same in eval mode
            rows.array[:] = lines[0].numpy()
        return rows

    def _write(self, x: AlignedRows, lines: AlignedRows, code: Code) -> None:
        """W x + b, then the phases, then the cell's function: new states over the old."""
        program, plan, out = self._program, self._plan, self.output
        bias, pre = (program.rows(n, len(plan.sums) * self._line) for n in (1, program.B))
        own = program.rows(len(plan.vectors), self._line)
        for row, name in zip(own.array, plan.vectors, strict=True):
            row[: self._H] = self._weights[name]
        self._write_bias(bias)
        pre.array[:] = bias.array  # sums of U alone start where x never writes
        for sums in self._runs(range(len(plan.with_a))):
            self._multiply(sums, x, (bias.address, 0), pre, "ih")
        units = program.numbers([*self._widths.units, *plan.numbers(program.kind.bytes)])
        given = self._H, lines.address, units
        for phase in plan.early:
            vector = self._vector(phase, pre, own, code, given)
            for sums in self._runs(phase.places):
                start = (pre.address, pre.row) if sums[0] < len(plan.with_a) else (bias.address, 0)
                self._multiply(sums, vector, start, pre, "hh")
        chains = program.rows(lines_forward(plan), self._line)._replace(row=0)
        for phase in plan.fused:
            chains = self._panels(phase, self._vector(phase, pre, own, code, given), pre)
        program.add(
            CELL_FORWARD, code.cell, program.B, self._line // program.kind.lanes, chains.address,
            chains.row, pre.address, pre.row, out.address, out.address, out.row,
            program.B * out.row, out.address, 0, 0, own.address, own.row, *given,
        )  # fmt: skip

    def _vector(
        self,
        phase: Phase,
        pre: AlignedRows,
        own: AlignedRows,
        code: Code,
        given: tuple[int, int, int],
    ) -> AlignedRows:
        """What a phase multiplies, computed where it is not the old output."""
        if not phase.computed:
            return self.output
        program, plan, out = self._program, self._plan, self.output
        to = program.rows(program.B + lines_forward(plan), self._line)
        program.add(
            PHASE_FORWARD, code.phases[plan.computed.index(phase)], program.B, pre.address, pre.row,
            out.address, out.address, out.row, program.B * out.row, to.address, own.address, *given,
        )  # fmt: skip
        return to

    def _runs(self, places: Iterable[int]) -> list[list[int]]:
        """Sums in neighbours that begin at the same kind of start, without gaps between them."""
        split, runs = len(self._plan.with_a), list[list[int]]()
        for k in places:
            before = runs[-1][-1] if runs else k
            whole = self._program.padded(self._widths.sums[before]) == self._line
            whole = whole and self._widths.blocks[before] == self._widths.blocks[k] == 1
            if before == k - 1 and whole and (before < split) == (k < split):
                runs[-1].append(k)
            else:
                runs.append([k])
        return runs

    def _multiply(
        self,
        sums: list[int],
        vector: AlignedRows,
        start: tuple[int, int],
        pre: AlignedRows,
        name: str,
    ) -> None:
        """W v of neighbouring sums on top of where they start, into their places."""
        bytes = self._program.kind.bytes
        first = sums[0] * self._line * bytes
        parts = [self._matrix(k, name) for k in sums]
        blocks = list(parts[0]) if parts[0].ndim == 3 else []
        for b, block in enumerate(blocks or [None]):  # in order: each is written over the next
            matrix = self._rows_of((name, tuple(sums), b), parts if block is None else [block])
            lines, columns = (0, 0) if block is None else (b * n * bytes for n in block.shape)
            places = [v * self._program.kind.size for v in range(matrix.vectors)]
            out = pre._replace(address=pre.address + first + lines)
            of = vector._replace(address=vector.address + columns)
            self._program.product(matrix, of, (start[0] + first + lines, start[1]), places, out)

    def _rows_of(self, name: Hashable, parts: list[Array]) -> PackedMatrix:
        """Matrices one above the other, each in whole vectors."""
        program = self._program

        def make() -> Array:
            return np.concatenate([program.lines(part) for part in parts])

        lines = sum(program.padded(len(part)) for part in parts)
        K = parts[0].shape[1]
        return PackedMatrix((self._name, name), lines // program.kind.lanes, K, make)

    def _panels(self, phase: Phase, vector: AlignedRows, pre: AlignedRows) -> AlignedRows:
        """U v of the last phase, unit block by unit block, as the cell's function reads it."""
        program, size = self._program, self._program.kind.size
        blocks = self._line // program.kind.lanes

        def make() -> Array:
            V = np.stack([program.lines(self._matrix(k, "hh")) for k in phase.places])
            return V.swapaxes(0, 1).reshape(-1, *V.shape[2:])

        places = [(k * blocks + i) * size for i in range(blocks) for k in phase.places]
        chains = program.rows(program.B, len(phase.places) * self._line)
        K = self._matrix(phase.places[0], "hh").shape[1]
        matrix = PackedMatrix((self._name, "panels"), blocks * len(phase.places), K, make)
        program.product(matrix, vector, (pre.address, pre.row), places, chains)
        return chains

    def _matrix(self, k: int, name: str) -> Array:
        """The lines of a sum's gate in weight_ih or weight_hh, or its matrix of its own."""
        own, H = self._widths.matrices[k], self._H
        if name == "hh" and own:
            return self._weights[self._names[own]]
        gate = self._gates[name == "hh"][k]
        return self._weights[f"weight_{name}"][gate * H :][:H]

    def _write_bias(self, bias: AlignedRows) -> None:
        """Where each sum's chain starts: b_ih, b_hh, or their sum."""
        H, weights = self._H, self._weights
        for k, row in enumerate(bias.array.reshape(-1, self._line)):
            for name, gates in zip(("bias_ih", "bias_hh"), self._gates, strict=True):
                if gates[k] >= 0 and name in weights:
                    row[:H] += weights[name][gates[k] * H :][:H]


def linear(program: CallList, name: int, part: PartProduct, x: AlignedRows) -> AlignedRows:
    """W x + b."""
    O, K = part.weight.shape
    bias, out = (program.rows(rows, program.padded(O)) for rows in (1, program.B))
    if part.bias is not None:
        bias.array[0, :O] = part.bias.detach().numpy()
    vectors = program.padded(O) // program.kind.lanes
    matrix = PackedMatrix(name, vectors, K, lambda: program.lines(part.weight.detach().numpy()))
    places = [v * program.kind.size for v in range(vectors)]
    program.product(matrix, x, (bias.address, 0), places, out)
    return out


def function_of_rows(program: CallList, part: RowFunction, x: AlignedRows) -> AlignedRows:
    """f(x), by the code of a cell that has x in a sum's place, and no old state."""
    plan, line = part.plan, program.padded(part.width)
    code = forward_code(plan, program.kind.bytes, target(), False)
    own = program.rows(len(plan.vectors), line)
    for row, name in zip(own.array, plan.vectors, strict=True):
        row[: part.width] = part.vectors[name].detach().numpy()
    kept, out = program.rows(lines_forward(plan), line), program.rows(program.B, line)
    program.add(
        CELL_FORWARD, code.cell, program.B, line // program.kind.lanes, kept.address, 0, x.address,
        x.row, out.address, out.address, out.row, 0, out.address, 0, 0, own.address, own.row,
        part.width, 0, program.numbers([part.width, *plan.numbers(program.kind.bytes)]),
    )  # fmt: skip
    return out
