"""A program while it is written: arrays by name, constants, parts."""

from __future__ import annotations

import re

import numpy as np

from throughtime.compiler.graph import Graph
from throughtime.export.program import (
    Array,
    Block,
    Lookup,
    Operation,
    Part,
    Place,
    ProductPart,
    Program,
    Stage,
    Values,
    Walk,
)


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
        """A new array; gives the name it has: that of the part's number behind it, as in h_0."""
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
        """One operation more of this part."""
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
        """out = the line of a table."""
        self.add(Lookup(np.ascontiguousarray(table, np.float32), row, out))

    def stage(
        self, graph: Graph, loads: dict[int, Place | float], units: dict[str, int],
        walks: list[Walk],
    ) -> None:  # fmt: skip
        """Walks over units."""
        self.add(Stage(graph, loads, units, tuple(walks)))

    def end(self, title: str, at: Place) -> None:
        """The part is whole; its output lies at `at`."""
        self.parts.append(Part(title, tuple(self._operations)))
        self._operations = []
        self.at = at

    def finish(self, name: str) -> Program:
        """The program."""
        return Program(
            name, self.inputs, self.at.size, self.arrays, self.constants, self.resets,
            tuple(self.parts), self.at,
        )  # fmt: skip
