"""The graph of one step: what stands between a cell's equations and its code."""

from __future__ import annotations

import hashlib
import linecache
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

Shape = tuple[str, ...]
"""(), (width,) or ("B", width): B stands for the rows, a width is a declared name or a number."""

NUMBER: Final[Shape] = ("B", "1")
"""The shape of one number a row, such as a direct input of width 1: all units have the same."""

LINES: Final = frozenset({"slice", "cat", "cumsum", "cumsum_back"})
"""Operations that give a line of units from whole lines of others: slice (constants say from which
unit to which), cat (where each part starts, and the end), sums from the first or the last unit."""

Constant = float | int | str | None

READ: Final = frozenset({"a", "s", "p"})
"""Nodes that are given to a step: a.g, s.h, p.u."""

_INFIX: Final = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "div": "/",
    "gt": ">",
    "ge": ">=",
    "lt": "<",
    "le": "<=",
    "eq": "==",
    "ne": "!=",
    "and": "&",
    "or": "|",
}


class Line(NamedTuple):
    """A line of source."""

    file: str
    number: int

    @property
    def text(self) -> str:
        """The line itself, without the white space around it."""
        return linecache.getline(self.file, self.number).strip()

    def __str__(self) -> str:
        return f"{self.file}:{self.number}: {self.text}"


class Unsupported(NamedTuple):
    """An operation of `step` that has no rule, and where it stands."""

    operation: str
    line: Line


class Product(NamedTuple):
    """U.matrix @ vector. In a derivative, `result` is the gradient of what it gave.

    The matrix's own gradient is the sum of result x vector over products, rows and steps.
    """

    matrix: str
    vector: int
    result: int


@dataclass(frozen=True)
class Node:
    """One operation on earlier nodes.

    Attributes:
        op: its name: a, s, p, d (given, constants say which), U (a product), transposed (by the
            same matrix), number, width, or an operation of rules.py.
        inputs: indices of the nodes it reads.
        constants: the numbers and names that belong to the operation.
        shape: of its value.
        line: of the cell it comes from.
    """

    op: str
    inputs: tuple[int, ...]
    constants: tuple[Constant, ...]
    shape: Shape
    line: Line | None = None

    def __str__(self) -> str:
        words = [f"t{i}" for i in self.inputs]
        if self.op in READ or self.op == "d":
            return f"{self.op}.{self.constants[0]}"
        if self.op in ("U", "transposed"):
            return f"U.{self.constants[0]}{'' if self.op == 'U' else '.T'} @ {words[0]}"
        if self.op == "number":
            return f"{self.constants[0]:.17g}"
        if self.op in _INFIX:
            return f" {_INFIX[self.op]} ".join(words)
        return f"{self.op}({', '.join([*words, *(str(c) for c in self.constants)])})"


@dataclass(frozen=True)
class Graph:
    """A straight line of nodes, each reading only earlier ones.

    Attributes:
        name: the cell's class.
        nodes: in the order of computing.
        outputs: (name, node): the new states; in a derivative d_a.g, d_s.h, d_p.u (summed over
            rows). An input without an entry there has the gradient zero.
        products: the products with matrices, one entry a product.
        forward: how many of the first nodes are those of the forward step, with its numbers.
        unsupported: operations without a rule: reasons why only the reference can run the cell.
        H: the hidden size that it is written for; None is any.
    """

    name: str
    nodes: tuple[Node, ...]
    outputs: tuple[tuple[str, int], ...]
    products: tuple[Product, ...]
    forward: int
    unsupported: tuple[Unsupported, ...] = ()
    H: int | None = None

    @property
    def key(self) -> str:
        """A hash of the content, without sizes and lines: equal graphs may share their code."""
        nodes = [(n.op, n.inputs, n.constants, n.shape) for n in self.nodes]
        content = repr((nodes, self.outputs, self.products, self.forward))
        return hashlib.sha256(content.encode()).hexdigest()

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        """One line a node, under the line of the cell it comes from."""
        yield f"{self.name}: {len(self.nodes)} nodes, {len(self.products)} products"
        line: Line | None = None
        for index, node in enumerate(self.nodes):
            if index == self.forward:
                yield "derivative"
            if node.line is not None and (node.line != line or index == self.forward):
                line = node.line
                yield f"  {os.path.basename(line.file)}:{line.number}: {line.text}"
            shape = ", ".join(node.shape)
            yield f"    {f't{index}':<4} = {str(node):<32} ({shape})"
        for name, index in self.outputs:
            yield f"  {name} = t{index}"
        for product in self.products:
            if self.forward < len(self.nodes):
                yield f"  d_U.{product.matrix} += t{product.result} x t{product.vector}"
        for operation, line in self.unsupported:
            yield f"  no rule for {operation}: {os.path.basename(line.file)}:{line.number}"


def broadcast(*shapes: Shape) -> Shape | None:
    """The shape of a pointwise operation on these shapes, aligned at the right, if there is one."""
    result: list[str] = []
    for i in range(1, max(map(len, shapes), default=0) + 1):
        sizes = {shape[-i] for shape in shapes if len(shape) >= i} - {"1"}
        if len(sizes) > 1:
            return None
        result.append(sizes.pop() if sizes else "1")
    return tuple(reversed(result))
