"""From `step` to its graph: run it once on symbols, which write down what it computes."""

from __future__ import annotations

import ctypes
import dis
import inspect
from typing import Any, Final

import torch
from torch import Tensor

from throughtime.cells.cell import Cell
from throughtime.compiler.builder import Builder
from throughtime.compiler.graph import Graph, Line, Product, Unsupported
from throughtime.compiler.inputs import inputs_of, state_shapes
from throughtime.compiler.symbol import Symbol, lift
from throughtime.errors import CellError

_NOT_FOLLOWED: Final = (TypeError, ValueError, AttributeError, RuntimeError)


def trace(cell: Cell) -> Graph:
    """The graph of one step of the cell.

    Raises:
        CellError: if what is computed depends on data by more than arithmetic, if widths do not
            fit, or if `step` writes in place; it names the line.
    """
    builder = Builder(end=trace.__code__)
    arguments = inputs_of(cell, builder)
    random = torch.get_rng_state()
    try:
        with torch.enable_grad():
            new = cell.step(*arguments)
    except CellError:
        raise
    except _NOT_FOLLOWED as error:
        return _not_followed(cell, builder, error)
    finally:
        drawn = _content(torch.get_rng_state()) != _content(random)
        if drawn:
            torch.set_rng_state(random)
    outputs = _new_state(cell, builder, new)
    if drawn:
        builder.unsupported.append((outputs[0][1], Unsupported("random numbers", _return(cell))))
    for index, node in enumerate(builder.nodes):
        if node.op == "width" and node.constants == ("B",) and node.line:
            builder.unsupported.append((index, Unsupported("the number of rows", node.line)))
    return _with_products(builder.finish(type(cell).__name__, outputs, []))


def _new_state(cell: Cell, builder: Builder, new: Any) -> list[tuple[str, int]]:
    """What `step` returned, by the names of the state; refused if it is not the state."""
    shapes = state_shapes(cell)
    name = type(cell).__name__
    if not isinstance(new, tuple) or len(new) != len(shapes):
        kind = "a tensor" if type(new) is Symbol else type(new).__name__
        got = f"{len(new)} values" if isinstance(new, tuple) else kind
        words = ", ".join(shapes)
        raise builder.refuse(
            f"{name}.step must return a tuple of {len(shapes)} ({words}), got {got}", _return(cell)
        )
    outputs = []
    for (state, shape), value in zip(shapes.items(), new, strict=True):
        symbol = lift(builder, value)
        if symbol.is_boolean or (symbol.symbolic_shape != shape and not builder.unsupported):
            raise builder.refuse(
                f"{name}.step must return {state} as numbers of shape ({', '.join(shape)}), "
                f"got {builder.describe(symbol.index)}",
                _return(cell),
            )
        outputs.append((state, symbol.index))
    return outputs


def _content(generator_state: Tensor) -> bytes:
    """The bytes of a generator's state, read where a mode such as FakeTensorMode cannot refuse."""
    return ctypes.string_at(generator_state.data_ptr(), generator_state.numel())


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
    outputs = []
    for state, shape in state_shapes(cell).items():
        index = builder.opaque("step", (), shape)
        builder.unsupported[-1] = (index, Unsupported(f"what raised {error!r} on symbols", line))
        outputs.append((state, index))
    return builder.finish(type(cell).__name__, outputs, [])


def _with_products(graph: Graph) -> Graph:
    """The graph with its list of products."""
    products = tuple(
        Product(str(node.constants[0]), node.inputs[0], index)
        for index, node in enumerate(graph.nodes)
        if node.op == "U"
    )
    return Graph(graph.name, graph.nodes, graph.outputs, products, graph.forward, graph.unsupported)
