"""An exported program: what one time step does, in order, before it is C or machine code.

    part        a piece of the model: a layer, a linear map, an activation
    operation   a product with matrices, a walk over units, a look-up, a copy

Every array and every matrix has the sizes of this one model; nothing is decided at run time.
A `Writer` collects them; matrices are stored as float32, bfloat16 or int8.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import nn

from throughtime.compiler.graph import Graph
from throughtime.errors import OptionError

Values = np.ndarray[Any, Any]


class Array(NamedTuple):
    """Numbers that a step reads or writes.

    Attributes:
        kind: "input" and "output" are the caller's, "state" is carried, "work" is the step's own,
            "constant" is never written.
        lines: how many lines of numbers it has.
        size: numbers of a line.
    """

    kind: str
    lines: int
    size: int


class Place(NamedTuple):
    """Numbers of an array.

    Attributes:
        array: its name.
        size: how many numbers; 1 where units of any count read the same one.
        line: which of its lines.
        offset: where they begin in that line.
    """

    array: str
    size: int
    line: int = 0
    offset: int = 0


class Block(NamedTuple):
    """out = start + matrix @ v, one chain of sums a number, in the order of the columns.

    Attributes:
        matrix: (lines, columns), float32.
        start: where chains start; None is zero.
        out: where they end.
        name: of the matrix, as a person reads it.
    """

    matrix: Values
    start: Place | None
    out: Place
    name: str


class ProductPart(NamedTuple):
    """Matrices times one vector.

    Attributes:
        source: v.
        blocks: one a matrix, all with as many columns as v has numbers.
    """

    source: Place
    blocks: tuple[Block, ...]


class Walk(NamedTuple):
    """Once over units: nodes of a graph, unit by unit.

    Attributes:
        size: how many units.
        numbers: nodes of one number that are worked out before it.
        lines: nodes whose values are left for later walks, and where.
        reductions: nodes over all units, known after it.
        stores: nodes that are results, and where they go; all are known before one is written.
    """

    size: int
    numbers: tuple[int, ...]
    lines: tuple[tuple[int, Place], ...]
    reductions: tuple[int, ...]
    stores: tuple[tuple[int, Place], ...]


class Stage(NamedTuple):
    """Walks one after the other; later ones know the single numbers of those before.

    Attributes:
        graph: whose nodes are computed.
        loads: nodes that are not computed here: where they lie, or the one number they are.
        units: the number of units for each width that the graph names.
        walks: in order.
    """

    graph: Graph
    loads: Mapping[int, Place | float]
    units: Mapping[str, int]
    walks: tuple[Walk, ...]


class Lookup(NamedTuple):
    """A line of a table: `row` is a whole number as a float, clamped to the lines there are.

    Attributes:
        table: (lines, width), float32.
        row: where the number lies.
        out: where the line goes.
    """

    table: Values
    row: Place
    out: Place


Operation = ProductPart | Stage | Lookup


class Part(NamedTuple):
    """The operations of one piece of the model, in order; its title is the piece in words."""

    title: str
    operations: tuple[Operation, ...]


@dataclass(frozen=True)
class Program:
    """One time step of a model.

    Attributes:
        name: a C identifier, with which all names begin.
        inputs: what each input number is.
        outputs: how many numbers a step gives.
        arrays: by name; "x" is the input.
        constants: values of the constant arrays, (lines, size).
        resets: values that states start from, where they are not zero.
        parts: in order.
        result: where the output lies when all parts are done.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: int
    arrays: Mapping[str, Array]
    constants: Mapping[str, Values]
    resets: Mapping[str, Values]
    parts: tuple[Part, ...]
    result: Place

    @property
    def states(self) -> dict[str, Array]:
        """The arrays that are carried from step to step."""
        return {n: a for n, a in self.arrays.items() if a.kind == "state"}

    @property
    def matrices(self) -> list[Values]:
        """All matrices and tables."""
        return [
            matrix
            for part in self.parts
            for operation in part.operations
            for matrix in _list_matrices(operation)
        ]


def _list_matrices(operation: Operation) -> list[Values]:
    if isinstance(operation, ProductPart):
        return [block.matrix for block in operation.blocks]
    return [operation.table] if isinstance(operation, Lookup) else []


def list_leading(program: Program) -> list[ProductPart]:
    """The products at the begin of a step that read the input and nothing else."""
    products = list[ProductPart]()
    for operation in program.parts[0].operations:
        if not isinstance(operation, ProductPart) or operation.source.array != "x":
            break
        starts = [b.start for b in operation.blocks if b.start is not None]
        if any(program.arrays[start.array].kind != "constant" for start in starts):
            break
        products.append(operation)
    return products


def group_runs(
    blocks: Sequence[Block], follows: Callable[[Block, Block], bool]
) -> list[list[Block]]:
    """Blocks in order, in runs of which each block follows the one before it."""
    runs: list[list[Block]] = []
    for block in blocks:
        if runs and follows(runs[-1][-1], block):
            runs[-1].append(block)
        else:
            runs.append([block])
    return runs


class Writer:
    """Collects what a program is made of.

    Args:
        inputs: what each input number is.

    Attributes:
        at: where the output of the last part lies; at first the input.
    """

    def __init__(self, inputs: tuple[str, ...], width: int) -> None:
        self.inputs = inputs
        self.arrays: dict[str, Array] = {"x": Array("input", 1, len(inputs))}
        self.constants: dict[str, Values] = {}
        self.resets: dict[str, Values] = {}
        self.parts: list[Part] = []
        self.at = Place("x", width)
        self._operations: list[Operation] = []

    def array(self, name: str, kind: str, lines: int, size: int) -> str:
        """A new array; returns its name, which ends in the part's number, as in h_0."""
        name = f"{re.sub(r'[^A-Za-z0-9_]', '_', name)}_{len(self.parts)}"
        free, letters = name, iter("bcdefghijklmnopqrstuvwxyz")
        while free in self.arrays:
            free = name + next(letters)
        self.arrays[free] = Array(kind, lines, size)
        return free

    def work(self, name: str, size: int) -> Place:
        """A new line of numbers that a step works with."""
        return Place(self.array(name, "work", 1, size), size)

    def constant(self, name: str, values: Values) -> str:
        """A constant of (lines, size) or (size,)."""
        values = np.ascontiguousarray(np.atleast_2d(values), np.float32)
        name = self.array(name, "constant", *values.shape)
        self.constants[name] = values
        return name

    def add(self, operation: Operation) -> None:
        self._operations.append(operation)

    def product(
        self, source: Place, matrix: Values, bias: Values | None, out: Place, name: str
    ) -> None:
        """out = bias + matrix @ source."""
        start = None
        if bias is not None:
            start = Place(self.constant("bias", bias), len(bias))
        block = Block(np.ascontiguousarray(matrix, np.float32), start, out, name)
        self.add(ProductPart(source, (block,)))

    def lookup(self, table: Values, row: Place, out: Place) -> None:
        self.add(Lookup(np.ascontiguousarray(table, np.float32), row, out))

    def stage(
        self, graph: Graph, loads: dict[int, Place | float], units: dict[str, int],
        walks: list[Walk],
    ) -> None:  # fmt: skip
        self.add(Stage(graph, loads, units, tuple(walks)))

    def end(self, title: str, at: Place) -> None:
        """The part is whole; its output lies at `at`."""
        self.parts.append(Part(title, tuple(self._operations)))
        self._operations = []
        self.at = at

    def finish(self, name: str) -> Program:
        return Program(
            name, self.inputs, self.at.size, self.arrays, self.constants, self.resets,
            tuple(self.parts), self.at,
        )  # fmt: skip


WEIGHT_KINDS: Final = ("float32", "bfloat16", "int8")

_MOST: Final = 127
"""The largest whole number that a weight of int8 is."""

SCALE_SHIFT: Final = 20
SCALE_START: Final = 0x33800000
"""A scale is one byte: bits 20 to 27 of a float32, above 2**-24, eight steps to each doubling."""

_SCALES: Final = ((np.arange(256, dtype=np.uint32) << SCALE_SHIFT) + SCALE_START).view(np.float32)
_LARGEST: Final = float(_MOST * _SCALES[-1])


class Narrow(NamedTuple):
    """A matrix of int8: the lines' scales times whole numbers.

    Attributes:
        whole: (lines, columns), int8.
        code: (lines,), uint8; a scale is the float32 of bits SCALE_START + code 2**SCALE_SHIFT.
    """

    whole: np.ndarray[Any, Any]
    code: np.ndarray[Any, Any]


def check_weights(weights: str) -> None:
    """Raises OptionError: there is no such kind of weights."""
    if weights not in WEIGHT_KINDS:
        raise OptionError(f"weights must be one of {', '.join(WEIGHT_KINDS)}, got {weights!r}")


def narrow_int8(matrix: Values) -> Narrow:
    """A matrix as int8: each line by itself, with the least scale that holds its largest number.

    That number is rounded away from zero, all others to the nearest, so that a matrix that was
    rounded so before stays the same.
    """
    sizes = np.abs(matrix).astype(np.float64)
    largest = sizes.max(1, initial=0.0)
    code = np.searchsorted(_MOST * _SCALES.astype(np.float64), largest)
    ratio = matrix / _SCALES[code].astype(np.float64)[:, None]
    away = np.copysign(np.ceil(np.abs(ratio)), ratio)
    whole = np.where(sizes == largest[:, None], away, np.rint(ratio))
    return Narrow(whole.astype(np.int8), code.astype(np.uint8))


def take_halves(matrix: Values) -> np.ndarray[Any, Any]:
    """The upper halves of numbers that are bfloat16 already, as uint16."""
    bits = np.ascontiguousarray(matrix, np.float32).view(np.uint32)
    return (bits >> 16).astype(np.uint16)


@torch.no_grad()
def round_weights(model: nn.Module, weights: str) -> None:
    """Round the matrices of a resting model in place to what an export with such weights holds.

    A program's matrices are blocks of lines of these, and every line is rounded by itself.

    Raises:
        OptionError: a number is too large for int8.
    """
    if weights == "float32":
        return
    for name, v in model.named_parameters():
        if v.dim() == 2:
            v.copy_(v.to(torch.bfloat16) if weights == "bfloat16" else _rounded(v, name))


def _rounded(v: torch.Tensor, name: str) -> torch.Tensor:
    largest = float(v.abs().max()) if v.numel() else 0.0
    if largest > _LARGEST:
        raise OptionError(
            f"weights of int8 must lie between -{_LARGEST:g} and {_LARGEST:g}, got one of size "
            f"{largest:g} in {name}; use bfloat16"
        )
    whole, code = narrow_int8(v.numpy())
    return torch.from_numpy(whole.astype(np.float32) * _SCALES[code][:, None])


def matrix_bytes(lines: int, columns: int, weights: str) -> int:
    """Bytes of a matrix; of int8 with one more a line, its scale."""
    each = {"float32": 4, "bfloat16": 2, "int8": 1}[weights]
    return lines * (columns * each + (weights == "int8"))
