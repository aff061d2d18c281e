"""The graph while it is written, node by node."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import Any, Final

import torch

from throughtime.compiler.graph import (
    READ,
    Constant,
    Graph,
    Line,
    Node,
    Product,
    Shape,
    Unsupported,
    broadcast,
)
from throughtime.errors import CellError

BOOLEAN: Final = frozenset({"gt", "ge", "lt", "le", "eq", "ne", "and", "or", "not"})
"""Operations whose value is true or false."""

_INNER: Final = (os.path.dirname(__file__) + os.sep, os.path.dirname(torch.__file__) + os.sep)
_APPLY: Final = torch.autograd.Function.apply.__func__.__code__  # type: ignore[attr-defined]


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
            self._refuse_widths(op, inputs)
        assert shape is not None
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
        frame = sys._getframe(1)
        while frame.f_back is not None and frame.f_code is not self._end:
            if frame.f_code is _APPLY:
                return True
            frame = frame.f_back
        return False

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

    def _refuse_widths(self, op: str, inputs: tuple[int, ...]) -> None:
        words = " and ".join(self.describe(i) for i in inputs)
        raise self.refuse_shape(f"{op} needs values of one width, got {words}")

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
