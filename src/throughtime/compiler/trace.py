"""From `step` to its graph: run it on symbols, which write down what it computes."""

from __future__ import annotations

import dis
import inspect
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final
from weakref import WeakKeyDictionary

import numpy as np
import torch

from throughtime.cell.contract import Cell, Width
from throughtime.compiler import calls as calls  # answers torch while a step is written
from throughtime.compiler.graph import (
    Builder,
    Graph,
    Line,
    Node,
    Product,
    Shape,
    Unsupported,
)
from throughtime.compiler.symbols import Matrix, Named, Symbol, lift
from throughtime.errors import CellError
from throughtime.torch_private import on_processor, without_modes


class Declared(Named):
    """`a`, `U`, `s` or `p`: each declared name a symbol, or a matrix, made when it is read."""

    def __init__(self, builder: Builder, what: str, shapes: Mapping[str, Shape]) -> None:
        self._builder, self._what, self._shapes = builder, what, shapes

    def __getattr__(self, name: str) -> Symbol | Matrix:
        if name.startswith("__"):
            raise AttributeError(name)
        if name not in self._shapes:
            known = ", ".join(self._shapes) or "none"
            raise self._builder.refuse(
                f"step reads {self._what}.{name}, which the cell does not declare: {known}"
            )
        shape = self._shapes[name]
        if self._what == "U":
            return Matrix(self._builder, name, *shape)
        return Symbol(self._builder, self._builder.node(self._what, (), (name,), shape))

    def __str__(self) -> str:
        return self._what

    def _cure(self) -> str:
        kind, use = ("matrices, used as", " @ v") if self._what == "U" else ("names, read as", "")
        uses = ", ".join(f"{self._what}.{name}{use}" for name in self._shapes) or "none"
        return f"it holds {kind} {uses}"


def make_inputs(cell: Cell, builder: Builder) -> tuple[Any, ...]:
    """The arguments a, U, s, p of `step`, as symbols."""
    state = state_shapes(cell, builder.H)
    gates = {g: ("B", "hidden_size") for g in cell.gates}
    direct = {n: ("B", symbolic_width(cell, w, builder.H)) for n, w in cell.inputs.items()}
    recurrent = {g: ("hidden_size", state[cell.state_names[0]][-1]) for g in cell.gates}
    products = {
        n: (symbolic_width(cell, to, builder.H), symbolic_width(cell, source, builder.H))
        for n, (to, source) in cell.products.items()
    }
    return (
        Declared(builder, "a", gates | direct),
        Declared(builder, "U", recurrent | products),
        Declared(builder, "s", state),
        Declared(builder, "p", {n: ("hidden_size",) for n in cell.vectors}),
    )


def state_shapes(cell: Cell, H: int | None = None) -> dict[str, Shape]:
    return {n: ("B", symbolic_width(cell, n, H)) for n in cell.state_names}


def symbolic_width(cell: Cell, width: Width, H: int | None = None) -> str:
    """The name of a declared width: hidden_size, a number of the cell, or a number; where H is
    known, hidden_size or a number."""
    if H is not None:
        count = cell.width(width, H)
        return "hidden_size" if count == H else str(count)
    if isinstance(width, str) and width in cell.state_names:
        spec = cell.state[width] if isinstance(cell.state, Mapping) else "hidden_size"
        return symbolic_width(cell, spec)
    return str(width)


_TRACED: Final[WeakKeyDictionary[Cell, dict[int | None, Graph]]] = WeakKeyDictionary()
_NOT_FOLLOWED: Final = (TypeError, ValueError, AttributeError, RuntimeError)


def trace(cell: Cell) -> Graph:
    """The graph of one step of the cell, which is run twice: both runs must write the same.

    Equal cells are one frozen object, so each is traced once in its life.

    Raises:
        CellError: if what is computed depends on data by more than arithmetic, if widths do not
            fit, or if `step` writes in place; it names the line.
    """
    if not isinstance(cell, Cell):
        raise _no_cell(cell)
    return trace_at(cell, None)


_RUNS = 20
"""Of a step, before it is said to draw at random."""


def trace_at(cell: Cell, H: int | None) -> Graph:
    """The graph of a step at one hidden size, where tensors may have heads; None: at any.

    What has no rule even at one size is `unsupported`, and then there are no nodes.
    """
    graphs = _TRACED.setdefault(cell, {})
    if H not in graphs:
        graphs[H] = _trace(cell, H)
    return graphs[H]


def _no_cell(value: Any) -> CellError:
    cure = ""
    if isinstance(value, type) and issubclass(value, Cell):
        cure = f"; build one: {value.__name__}()"
    elif isinstance(getattr(value, "cell", None), Cell):
        cure = "; a layer holds its own as layer.cell"
    return CellError(f"cell must be an instance of a Cell, got {value!r}{cure}")


def _trace(cell: Cell, H: int | None) -> Graph:
    _check_arguments(cell)
    with on_symbols():
        graph = _run(cell, H)
        again, drawn = _run_again(cell, H)
    if graph.key == again.key and not drawn:
        return graph
    if graph.key == again.key:
        reason = Unsupported("a random number drawn by step", _return(cell))
        return replace(graph, unsupported=(*graph.unsupported, reason))
    line = next((n.line for n in _changed(graph, again) if n.line), _return(cell))
    reason = Unsupported("a number that changes from call to call", line)
    return replace(graph, unsupported=(*graph.unsupported, reason))


def _run_again(cell: Cell, H: int | None) -> tuple[Graph, bool]:
    """The graph of another run, and whether `step` draws at random: it does so in every run, and
    other threads only in some."""
    for _ in range(_RUNS):
        before = _chance()
        graph = _run(cell, H)
        if _chance() == before:
            return graph, False
    random.setstate(before[0])
    np.random.set_state(before[1])
    return graph, True


@contextmanager
def on_symbols() -> Iterator[None]:
    """Where a function runs on symbols: no mode of torch, such as a compiler's, has a say in it,
    and what it draws at random is nowhere missed."""
    with (
        without_modes(), on_processor(), torch.enable_grad(),
        torch.random.fork_rng(devices=[]),
    ):  # fmt: skip
        yield


def _chance() -> tuple[Any, ...]:
    """Where the generators of random numbers stand that a step may draw from."""
    name, words, *rest = np.random.get_state(legacy=True)
    return random.getstate(), (name, tuple(words), *rest), torch.get_rng_state().tolist()


def _check_arguments(cell: Cell) -> None:
    signature = inspect.signature(type(cell).step)
    try:
        inspect.signature(cell.step).bind("a", "U", "s", "p")
    except TypeError as error:
        code = inspect.unwrap(type(cell).step).__code__
        raise CellError(
            f"{type(cell).__name__}.step must take (self, a, U, s, p), also those that it does not "
            f"use, got {signature}\n  at {Line(code.co_filename, code.co_firstlineno)}"
        ) from error


def _run(cell: Cell, H: int | None) -> Graph:
    builder = Builder(end=_run.__code__, H=H)
    try:
        outputs = _new_state(cell, builder, cell.step(*make_inputs(cell, builder)))
    except (CellError, *_NOT_FOLLOWED) as error:
        if isinstance(error, CellError) and H is None:
            raise
        return _not_followed(cell, builder, error)
    for index, node in enumerate(builder.nodes):
        if node.op == "width" and node.constants == ("B",) and node.line:
            builder.unsupported.append((index, Unsupported("the number of rows", node.line)))
    return with_products(builder.finish(type(cell).__name__, outputs, []))


def _changed(graph: Graph, again: Graph) -> Iterator[Node]:
    """The nodes of a graph that differ from those of another run."""
    for one, other in zip(graph.nodes, again.nodes, strict=False):
        if replace(one, line=None) != replace(other, line=None):
            yield one


def _new_state(cell: Cell, builder: Builder, new: Any) -> list[tuple[str, int]]:
    """What `step` returned, by the names of the state; refused if it is not the state."""
    shapes = state_shapes(cell, builder.H)
    name = type(cell).__name__
    if not isinstance(new, tuple) or len(new) != len(shapes):
        kind = str(new) if isinstance(new, Named) else type(new).__name__
        kind = "a tensor" if type(new) is Symbol else kind
        got = f"{len(new)} values" if isinstance(new, tuple) else kind
        words = ", ".join(shapes)
        raise builder.refuse(
            f"{name}.step must return a tuple of {len(shapes)} ({words}), got {got}", _return(cell)
        )
    outputs = []
    for (state, shape), value in zip(shapes.items(), new, strict=True):
        if isinstance(value, Named):
            raise builder.refuse(f"{name}.step returns {value} as {state}", _return(cell))
        symbol = lift(builder, value)
        if symbol.is_boolean or (symbol.symbolic_shape != shape and not builder.unsupported):
            raise builder.refuse(
                f"{name}.step must return {state} as numbers of shape ({', '.join(shape)}), "
                f"got {builder.describe(symbol.index)}",
                _return(cell),
            )
        outputs.append((state, symbol.index))
    return outputs


def _return(cell: Cell) -> Line:
    """The last line of `step` that returns."""
    code = inspect.unwrap(type(cell).step).__code__
    lines = [
        i.positions.lineno
        for i in dis.get_instructions(code)
        if i.opname.startswith("RETURN_") and i.positions and i.positions.lineno
    ]
    return Line(code.co_filename, max(lines, default=code.co_firstlineno))


def _not_followed(cell: Cell, builder: Builder, error: Exception) -> Graph:
    """The graph of a step that symbols cannot follow, though real tensors can."""
    cell.layout  # noqa: B018  # a mistake of the cell's own shows on real tensors, and is raised
    line = builder.line_of(error)
    if builder.H is not None:
        reason = Unsupported(str(error).partition("\n")[0] or repr(error), line)
        return Graph(type(cell).__name__, (), (), (), 0, (reason,), builder.H)
    outputs = []
    for state, shape in state_shapes(cell).items():
        index = builder.opaque("step", (), shape)
        builder.unsupported[-1] = (index, Unsupported(f"what raised {error!r} on symbols", line))
        outputs.append((state, index))
    return builder.finish(type(cell).__name__, outputs, [])


def with_products(graph: Graph) -> Graph:
    """The graph with its list of products."""
    products = tuple(
        Product(str(node.constants[0]), node.inputs[0], index)
        for index, node in enumerate(graph.nodes)
        if node.op == "U"
    )
    return replace(graph, products=products)
