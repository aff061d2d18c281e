"""The parts of a compiled stream: a layer of a cell, and a linear part, as calls of a program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from throughtime.backends.call import Call
from throughtime.backends.cpu.shape import gate_numbers
from throughtime.backends.cpu.sizes import target
from throughtime.backends.cpu.stream_memory import Array, Program, Rows
from throughtime.compiler.llvm.code import forward_code
from throughtime.compiler.plan import Plan, plan
from throughtime.compiler.sweeps import lines_forward


class Product(NamedTuple):
    """A linear part: weight (O, K), and bias (O,) or None."""

    weight: Tensor
    bias: Tensor | None


class StreamLayer:
    """One layer in a program.

    Attributes:
        states: of each state (B, H), views of the memory that steps overwrite.
        output: the first of them, in padded rows.
    """

    def __init__(self, program: Program, call: Call, x: Rows) -> None:
        found = plan(call.cell)
        assert isinstance(found, Plan)
        self._program, self._plan, self._H = program, found, call.hidden_size
        self._width, self._gates = program.padded(self._H), gate_numbers(found, call.cell)
        state = program.rows(len(found.state_names) * program.B, self._width)
        planes = state.array.reshape(-1, program.B, self._width)
        self.output = state._replace(array=planes[0])
        self.states = [torch.from_numpy(plane[:, : self._H]) for plane in planes]
        weights = {n: v.detach().numpy() for n, v in call.weights[0].items()}
        self._write(weights, x, forward_code(found, program.kind.bytes, target(), False).cell)

    def _write(self, weights: Mapping[str, Array], x: Rows, cell: int) -> None:
        """W x + b, then U h, then the cell's function, which puts the new states over the old."""
        program, found, out = self._program, self._plan, self.output
        size, blocks = program.kind.size, self._width // program.kind.lanes
        bias = program.rows(1, len(found.sums) * self._width)
        pre = program.rows(program.B, len(found.sums) * self._width)
        chains = program.rows(program.B, len(found.last) * self._width)
        if found.rowwise:  # no chains: what walks over a row leave for later ones
            chains = program.rows(lines_forward(found), self._width)._replace(row=0)
        self._write_bias(weights, bias)
        pre.array[:] = bias.array  # sums of U alone start where x never writes
        if found.with_a:
            V = self._vectors(weights["weight_ih"], self._gates[0], range(len(found.with_a)))
            V = V.reshape(-1, *V.shape[2:])
            program.product(V, x, (bias.address, 0), [v * size for v in range(len(V))], pre)
        if found.last:
            V = self._vectors(weights["weight_hh"], self._gates[1], found.last).swapaxes(0, 1)
            places = [(k * blocks + i) * size for i in range(blocks) for k in found.last]
            V = V.reshape(-1, *V.shape[2:])
            program.product(V, out, (pre.address, pre.row), places, chains)
        elif found.with_u:
            self._multiply_in_place(weights["weight_hh"], bias, pre)
        own = program.rows(len(found.vectors), self._width)
        for row, name in zip(own.array, found.vectors, strict=True):
            row[: self._H] = weights[name]
        program.cell(
            cell, program.B, blocks, chains.address, chains.row, pre.address, pre.row, out.address,
            out.address, out.row, program.B * out.row, out.address, 0, 0, own.address, own.row,
            self._H, 0, 0,
        )  # fmt: skip

    def _multiply_in_place(self, U: Array, bias: Rows, pre: Rows) -> None:
        """U h on top of the sums themselves, for a cell that needs whole rows of them."""
        found, size = self._plan, self._program.kind.size
        first, split = len(found.sums) - len(found.with_u), len(found.with_a)
        for start, row, sums in (
            (pre.address, pre.row, range(first, split)),
            (bias.address, 0, range(max(first, split), len(found.sums))),
        ):
            if sums:
                V = self._vectors(U, self._gates[1], sums)
                V = V.reshape(-1, *V.shape[2:])
                before = sums[0] * self._width * self._program.kind.bytes
                places, to = [v * size for v in range(len(V))], pre.address + before
                out = pre._replace(address=to)
                self._program.product(V, self.output, (start + before, row), places, out)

    def _vectors(self, matrix: Array, gates: Sequence[int], sums: Sequence[int]) -> Array:
        """The lines of some sums' gates, (sums, blocks, lanes, K)."""
        H = self._H
        return np.stack([self._program.lines(matrix[gates[k] * H :][:H]) for k in sums])

    def _write_bias(self, weights: Mapping[str, Array], bias: Rows) -> None:
        """Where each sum's chain starts: b_ih, b_hh, or their sum."""
        H = self._H
        for k, row in enumerate(bias.array.reshape(-1, self._width)):
            for name, gates in zip(("bias_ih", "bias_hh"), self._gates, strict=True):
                if gates[k] >= 0 and name in weights:
                    row[:H] += weights[name][gates[k] * H :][:H]


def linear(program: Program, part: Product, x: Rows) -> Rows:
    """W x + b."""
    V = program.lines(part.weight.detach().numpy())
    bias, out = (program.rows(rows, V.shape[0] * V.shape[1]) for rows in (1, program.B))
    if part.bias is not None:
        bias.array[0, : len(part.bias)] = part.bias.detach().numpy()
    places = [v * program.kind.size for v in range(len(V))]
    program.product(V, x, (bias.address, 0), places, out)
    return out
