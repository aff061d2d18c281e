"""A stack of parts as programs, one for each number of rows that step together; packed once."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from throughtime.backends.call import Call
from throughtime.backends.cpu.look import check_layer, check_product, checked
from throughtime.backends.cpu.operands import unshare_call
from throughtime.backends.cpu.schedule import FLOPS_PER_US, target
from throughtime.backends.cpu.stream.layer import (
    LookupTable,
    Part,
    PartProduct,
    PartSum,
    Placed,
    RowFunction,
    StreamLayer,
    function_of_rows,
    like,
    linear,
    output_width,
)
from throughtime.backends.cpu.stream.memory import AlignedRows, Array, CallList, Packs
from throughtime.compiler.llvm.abi import Kind
from throughtime.compiler.llvm.library import stream_region
from throughtime.compiler.runtime import threads

MOST_ROWS: Final = 64
"""Rows of the largest program: what it works in stays in a near cache."""


class Stack:
    """Parts that are packed once, however many streams step through them.

    Args:
        parts: in order; calls are of one step of one row, with weights and without a state.
        narrow: keep the matrices, of bfloat16 values in float32, as bfloat16.

    Attributes:
        parts: with weights for every product of a step.
        kind: the numbers it computes with.
        packs: of its matrices.
        dtype: of its numbers.
        table: what the numbers of rows are looked up in; None where rows themselves are given.
        states: over layers, the width of each state.
        inputs: name -> widths that a direct input may have; those of no layer are not there.
        width: of what is given, output: of what comes out.
    """

    def __init__(self, parts: Sequence[Placed], narrow: bool) -> None:
        first = next(v for v in (like(p.part) for p in parts) if v is not None)
        self.kind = Kind(first.element_size(), target().lanes(8 * first.element_size()))
        self.packs, self.dtype = Packs(narrow), first.dtype
        head = parts[0].part
        self.table = head.rows.detach().numpy() if isinstance(head, LookupTable) else None
        self.width = first.shape[-1]
        self._widths = [self.width]
        self.parts: list[Placed] = []
        for placed in parts:
            width = self._widths[placed.sources[0]]
            self.parts.append(placed._replace(part=_checked(placed.part, width, self.dtype)))
            self._widths.append(output_width(placed.part, width))
        self.output = self._widths[-1]
        calls = [part for part, _ in self.parts if isinstance(part, Call)]
        self.states = [call.cell.widths(call.hidden_size) for call in calls]
        self.inputs = self._direct_inputs()

    def _direct_inputs(self) -> dict[str, set[int]]:
        widths: dict[str, set[int]] = {}
        for part, _ in self.parts:
            if isinstance(part, Call):
                for name in part.cell.layout.inputs:
                    width = part.cell.width(part.cell.inputs[name], part.hidden_size)
                    widths[name] = {width} & widths.get(name, {width})
        return widths

    def program(self, rows: int) -> CallList:
        """An empty one for so many rows."""
        return CallList(self.kind, target(), rows, self.packs)

    def width_of(self, place: int) -> int:
        """Of what a part gives, or of what is given."""
        return self._widths[place]


def _checked(part: Part, width: int, dtype: torch.dtype) -> Part:
    """A part that reads so many numbers, its tensors looked at: machine code believes the sizes."""
    if isinstance(part, Call):
        return check_layer(unshare_call(part), width)
    if isinstance(part, PartProduct):
        check_product(part.weight, part.bias, width)
    if isinstance(part, RowFunction):
        for name, v in part.vectors.items():
            checked(name, v, (width,), dtype)
    return part


class Region:
    """A step of so many rows: its program, and the memory that it works in.

    Args:
        stack: whose step it is.
        rows: B.

    Attributes:
        x: (B, I), where the input goes.
        y: (B, O), where the output lies.
        states: over layers and states (B, padded), which a step overwrites.
    """

    def __init__(self, stack: Stack, rows: int) -> None:
        self._program = program = stack.program(rows)
        self.states: list[Array] = []
        self._inputs: dict[str, list[Tensor]] = {name: [] for name in stack.inputs}
        first = program.rows(rows, program.padded(stack.width))
        places = [first]
        for number, placed in enumerate(stack.parts):
            places.append(self._add(stack, number, placed, places))
        self.x, self.y = first.array[:, : stack.width], places[-1].array[:, : stack.output]
        release = threads.worth_releasing(program.flops / FLOPS_PER_US)
        make = ctypes.CFUNCTYPE if release else ctypes.PYFUNCTYPE
        self.call = make(None, ctypes.c_void_p)(stream_region(stack.kind, target()))
        self.address = ctypes.c_void_p(program.address())

    def _add(
        self, stack: Stack, number: int, placed: Placed, places: list[AlignedRows]
    ) -> AlignedRows:
        """What a part gives, from what the parts before it gave."""
        part, (x, *others) = placed.part, (places[i] for i in placed.sources)
        if isinstance(part, LookupTable):  # looked up before the step
            return x
        if isinstance(part, PartSum):
            return self._program.sum(x, others[0], stack.width_of(placed.sources[0]))
        if isinstance(part, PartProduct):
            return linear(self._program, number, part, x)
        if isinstance(part, RowFunction):
            return function_of_rows(self._program, part, x)
        layer = StreamLayer(self._program, number, part, x)
        self.states += layer.states
        for name, lines in layer.inputs.items():
            self._inputs[name].append(torch.from_numpy(lines))
        return layer.output

    def give(self, inputs: Mapping[str, Tensor], rows: slice) -> None:
        """Write the direct inputs of some rows of a batch, (B, width), for the next step."""
        for name, v in inputs.items():
            for place in self._inputs[name]:
                part = v[rows]
                place[: len(part)].copy_(part)

    def repeat(self, times: int) -> None:
        """Run the step so often on the last x, in one call."""
        self._program.repeat(times)
        self.call(self.address)
        self._program.repeat(1)


def lookup(table: Array, numbers: Array) -> Array:
    """Rows of a table by their numbers.

    Raises:
        IndexError: a number is none of a row.
    """
    if numbers.size:
        values = numbers.reshape(-1).tolist() if numbers.size <= MOST_ROWS else numbers
        if values is numbers:
            low, high = int(numbers.min()), int(numbers.max())
        else:
            low, high = min(values), max(values)
        if low < 0 or high >= len(table):
            wrong = low if low < 0 else high
            raise IndexError(
                f"x must hold numbers from 0 to {len(table) - 1}, one of {len(table)} embeddings "
                f"each, got {wrong}"
            )
    rows: Array = table[numbers]
    return rows
