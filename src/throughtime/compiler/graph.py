"""The graph of one step, and its nodes while they are written."""

from __future__ import annotations

import hashlib
import inspect
import linecache
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final, NamedTuple

import torch

from throughtime.errors import CellError

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

_HELD: Final = frozenset(repr(v) for v in (0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 2.0, -2.0))
"""Numbers that equations are made of, which code holds: those of a cell are hardly among them."""

_INFIX: Final = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "gt": ">", "ge": ">=", "lt": "<", "le": "<=",
    "eq": "==", "ne": "!=", "and": "&", "or": "|",
}  # fmt: skip


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
        """A hash of the content, without sizes and lines: equal graphs compute the same."""
        return self._hash(())

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        """The nodes of numbers that code is given, and does not hold."""
        nodes = enumerate(self.nodes)
        return tuple(i for i, n in nodes if n.op == "number" and repr(n.constants[0]) not in _HELD)

    @cached_property
    def code_key(self) -> str:
        """Like `key`, but of graphs that differ in `numbers` alone, which share their code."""
        return self._hash(self.numbers)

    def _hash(self, without: tuple[int, ...]) -> str:
        left_out = frozenset(without)
        nodes = [
            (n.op, n.inputs, "given" if i in left_out else n.constants, n.shape)
            for i, n in enumerate(self.nodes)
        ]
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


BOOLEAN: Final = frozenset({"gt", "ge", "lt", "le", "eq", "ne", "and", "or", "not"})
"""Operations whose value is true or false."""

_INNER: Final = (os.path.dirname(__file__) + os.sep, os.path.dirname(torch.__file__) + os.sep)


def _forwards(function: Any) -> Iterator[Any]:
    """The code of `forward` of each torch.autograd.Function below one.

    That of `apply` would be fewer to look for; newer torches have it in C, where it has no frame.
    """
    for one in function.__subclasses__():
        yield getattr(one.forward, "__code__", None)
        yield getattr(inspect.unwrap(one.forward), "__code__", None)
        yield from _forwards(one)


class Untraceable(TypeError):
    """The tracer cannot follow `step` here, though `step` may be right on tensors."""


class SizeAsked(Untraceable):
    """`step` needs a size as a number, which only a layer knows."""


class Builder:
    """Writes nodes: equal ones once, each with its shape and the line it comes from.

    Args:
        nodes: the nodes to go on from.
        end: the code object of the caller of `step`, where looking for the line stops.
        H: the hidden size, where the step is written for one; then all widths are numbers, tensors
            may have heads, and what has no rule raises `Untraceable`.
    """

    def __init__(self, nodes: tuple[Node, ...] = (), end: Any = None, H: int | None = None) -> None:
        self.nodes = list(nodes)
        self.unsupported: list[tuple[int, Unsupported]] = []
        self.line: Line | None = None
        self.H = H
        self._known = {(n.op, n.inputs, repr(n.constants)): i for i, n in enumerate(nodes)}
        self._end = end

    @property
    def tracing(self) -> bool:
        """Whether a `step` is being run, and not a derivative written."""
        return self._end is not None

    def width_name(self, count: int) -> str:
        """What a width of so many units is called, where H is known."""
        return "hidden_size" if count == self.H else str(count)

    def number_of(self, width: str) -> int:
        """The units of a width, where H is known."""
        assert self.H is not None
        return self.H if width == "hidden_size" else int(width)

    def node(
        self, op: str, inputs: tuple[int, ...], constants: tuple[Constant, ...], shape: Shape
    ) -> int:
        """The index of this node, written now unless it is there already."""
        name = (op, inputs, repr(constants))  # as text, where 0.0 and -0.0 are two numbers
        if name not in self._known:
            line = self.here() if self.tracing else self.line
            self._known[name] = len(self.nodes)
            self.nodes.append(Node(op, inputs, constants, shape, line))
        return self._known[name]

    def pointwise(
        self, op: str, inputs: tuple[int, ...], constants: tuple[Constant, ...] = ()
    ) -> int:
        """The index of a pointwise node, its inputs broadcast."""
        shape = broadcast(*(self.nodes[i].shape for i in inputs))
        if shape is None:
            words = " and ".join(self.describe(i) for i in inputs)
            raise self.refuse_shape(f"{op} needs values of one width, got {words}")
        return self.node(op, inputs, constants, shape)

    def opaque(self, operation: str, inputs: tuple[int, ...], shape: Shape) -> int:
        """The index of a new node for an operation without a rule: only its shape is known."""
        self._refuse_sized(operation)
        constants = (operation, len(self.nodes))
        index = self.node("opaque", inputs, constants, shape)
        self.mark(index, operation)
        return index

    def mark(self, index: int, operation: str) -> None:
        """Write down that this node keeps the cell on the reference."""
        self._refuse_sized(operation)
        self.unsupported.append((index, Unsupported(operation, self.here())))

    def _refuse_sized(self, operation: str) -> None:
        if self.H is not None:
            raise Untraceable(operation)

    def here(self) -> Line:
        """The line of the user's that is being run."""
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_code.co_filename.startswith(_INNER):
            frame = frame.f_back
        return Line(frame.f_code.co_filename, frame.f_lineno)

    def line_of(self, error: BaseException) -> Line:
        """The line of the user's from which an error came."""
        lines = []
        trace = error.__traceback__
        while trace is not None:
            if not trace.tb_frame.f_code.co_filename.startswith(_INNER):
                lines.append(Line(trace.tb_frame.f_code.co_filename, trace.tb_lineno))
            trace = trace.tb_next
        return lines[-1] if lines else self.here()

    def inside_autograd_function(self) -> bool:
        """Whether `step` is inside a torch.autograd.Function, whose derivative is not traced."""
        frame, outer = sys._getframe(1), set()
        while frame.f_back is not None and frame.f_code is not self._end:
            if not frame.f_code.co_filename.startswith(_INNER[0]):
                outer.add(frame.f_code)
            frame = frame.f_back
        if len(outer) < 2:  # `step` alone
            return False
        return not outer.isdisjoint(_forwards(torch.autograd.Function))

    def refuse(self, reason: str, line: Line | None = None) -> CellError:
        """The error that says what is wrong with the line being run."""
        return CellError(f"{reason}\n  at {line or self.here()}")

    def refuse_shape(self, reason: str) -> Exception:
        """The error of a wrong shape, unless an operation without a rule has made it a guess."""
        return Untraceable(reason) if self.unsupported else self.refuse(reason)

    def describe(self, index: int) -> str:
        """A node in an error: its name where it has one, and its shape."""
        node = self.nodes[index]
        name = f"{node.op}.{node.constants[0]}" if node.op in READ else "a value"
        return f"{name} of shape ({', '.join(node.shape)})"

    def finish(
        self, name: str, outputs: list[tuple[str, int]], products: list[Product], forward: int = 0
    ) -> Graph:
        """The graph of what outputs and products need; the first `forward` nodes all stay."""
        needed = {i for _, i in outputs} | {p.result for p in products} | set(range(forward))
        for index in range(len(self.nodes) - 1, -1, -1):
            if index in needed:
                needed.update(self.nodes[index].inputs)
        place = {old: new for new, old in enumerate(sorted(needed))}
        nodes = [self.nodes[i] for i in place]
        return Graph(
            name,
            tuple(replace(n, inputs=tuple(place[i] for i in n.inputs)) for n in nodes),
            tuple((word, place[i]) for word, i in outputs),
            tuple(Product(p.matrix, place[p.vector], place[p.result]) for p in products),
            forward or len(nodes),
            tuple(dict.fromkeys(u for i, u in self.unsupported if i in place)),
            self.H,
        )
