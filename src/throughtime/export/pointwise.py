"""Parts of a model without time as graphs: what the compiler's rules say of torch's functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from throughtime.compiler import sweeps
from throughtime.compiler.graph import Builder, Graph
from throughtime.compiler.passes.reductions import REDUCTIONS, expanded
from throughtime.compiler.symbols import Symbol, lift
from throughtime.compiler.widths import HIDDEN
from throughtime.errors import OptionError, ThroughtimeError
from throughtime.export.builder import Writer
from throughtime.export.program import Place, Walk

_NOT_FOLLOWED = (TypeError, ValueError, AttributeError, RuntimeError)


def traced(function: Callable[..., Any], names: tuple[str, ...], vectors: tuple[str, ...]) -> Graph:
    """The graph of a function of vectors of one width.

    Args:
        function: of the values, then the vectors.
        names: of the values, nodes `a`.
        vectors: of constants of one number a unit, nodes `p`.

    Raises:
        OptionError: an operation has no rule.
    """
    builder = Builder(end=traced.__code__)
    values = [Symbol(builder, builder.node("a", (), (n,), ("B", HIDDEN))) for n in names]
    values += [Symbol(builder, builder.node("p", (), (n,), (HIDDEN,))) for n in vectors]
    try:
        found = lift(builder, function(*values))
    except ThroughtimeError:
        raise
    except _NOT_FOLLOWED as error:
        raise OptionError(f"it cannot be followed ({error})") from error
    graph = builder.finish("", [("y", found.index)], [])
    if graph.unsupported:
        raise OptionError(f"{graph.unsupported[0].operation} has no rule")
    if found.symbolic_shape != ("B", HIDDEN) or found.is_boolean:
        raise OptionError("it changes the shape of what it takes")
    whole = expanded(graph, graph)[1]
    return replace(whole, forward=len(whole.nodes))


def write_pointwise(
    writer: Writer, function: Callable[..., Any], given: dict[str, Place],
    vectors: dict[str, Any], name: str,
) -> Place:  # fmt: skip
    """y = function(values, vectors), as an operation; gives where y lies."""
    graph = traced(function, tuple(given), tuple(vectors))
    size = next(iter(given.values())).size
    places = {n: Place(writer.constant(n, v), size) for n, v in vectors.items()}
    loads: dict[int, Place | float] = {
        i: (given if node.op == "a" else places)[str(node.constants[0])]
        for i, node in enumerate(graph.nodes)
        if node.op in ("a", "p")
    }
    out = writer.work(name, size)
    ends = ((graph.outputs[0][1], out),)
    writer.stage(graph, loads, {HIDDEN: size}, walks_of(writer, graph, size, ends))
    return out


def walks_of(
    writer: Writer, graph: Graph, size: int, stores: tuple[tuple[int, Place], ...]
) -> list[Walk]:
    """The walks over units of one width that lead to what is stored."""
    if not any(node.op in REDUCTIONS for node in graph.nodes):
        return [Walk(size, (), (), (), stores)]
    found = []
    for sweep in sweeps.sweeps_of(graph, set(), tuple(i for i, _ in stores)):
        lines = tuple((i, writer.work("line", size)) for i in sweep.lines)
        last = () if sweep.reductions else stores
        found.append(Walk(size, sweep.numbers, lines, sweep.reductions, last))
    return found
