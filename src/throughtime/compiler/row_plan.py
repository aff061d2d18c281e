"""What a function computes of each row alone, as the plan of a step without memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final

from throughtime.compiler.derivative import derivative
from throughtime.compiler.graph import Builder, Graph
from throughtime.compiler.passes import HIDDEN, expanded, widths_of
from throughtime.compiler.plan import Plan, sums_of
from throughtime.compiler.symbols import Symbol
from throughtime.compiler.trace import on_symbols
from throughtime.errors import CellError

Function = Callable[[Symbol, Mapping[str, Symbol]], Any]

_ROW, _RESULT = "x", "y"
_NOT_FOLLOWED: Final = (CellError, TypeError, ValueError, AttributeError, RuntimeError, IndexError)


def row_plan(name: str, function: Function, width: int, vectors: tuple[str, ...]) -> Plan | str:
    """The plan of y = f(x, p), or the reason why there is none.

    Args:
        name: whose function it is.
        function: takes rows (B, width), and vectors (width,) by name; gives rows so wide.
        width: of a row, which the function may know as a number.
        vectors: names of what it reads besides a row.
    """
    try:
        with on_symbols():
            graph, again = (_run(name, function, width, vectors) for _ in range(2))
    except _NOT_FOLLOWED as error:
        return f"it {_words(error)}"
    if graph.unsupported:
        return f"{graph.unsupported[0].operation} has no rule"
    if graph.key != again.key:
        return "a number in it changes from call to call"
    return _planned(_renamed(graph, width), vectors)


def _words(error: Exception) -> str:
    first = str(error).partition("\n")[0]
    return first.removeprefix("step ") if isinstance(error, CellError) else f"raises {error!r}"


def _run(name: str, function: Function, width: int, vectors: tuple[str, ...]) -> Graph:
    """The graph of one run of the function."""
    builder = Builder(end=_run.__code__)
    units = _units(width)
    x = Symbol(builder, builder.node("a", (), (_ROW,), ("B", units)))
    p = {n: Symbol(builder, builder.node("p", (), (n,), (units,))) for n in vectors}
    y = function(x, p)
    if type(y) is not Symbol or y.is_boolean or y.symbolic_shape != ("B", units):
        raise CellError(f"gives no row of {width} numbers")
    graph = builder.finish(name, [(_RESULT, y.index)], [])
    if not any(node.op == "a" for node in graph.nodes):
        raise CellError("does not read its row")
    return graph


def _units(width: int) -> str:
    """A row's width while a function is run: the number, but for the 1 of one number a row."""
    return HIDDEN if width == 1 else str(width)


def _renamed(graph: Graph, width: int) -> Graph:
    """The graph for rows of any width, so that rows of all widths share their code."""
    names = {_units(width): HIDDEN}

    def renamed(words: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(names.get(w, w) if isinstance(w, str) else w for w in words)

    nodes = (
        replace(
            node,
            shape=renamed(node.shape),
            constants=renamed(node.constants) if node.op in ("width", "full") else node.constants,
        )
        for node in graph.nodes
    )
    return replace(graph, nodes=tuple(nodes))


@lru_cache(maxsize=256)
def _planned(graph: Graph, vectors: tuple[str, ...]) -> Plan:
    step, both = expanded(graph, derivative(graph))
    return Plan(
        step.name, both, sums_of(step, both, _RESULT, (), frozenset()), (None,),
        (step.outputs[0][1],), (), False, False, (_RESULT,), vectors, (), (),
        widths_of(both, (HIDDEN,)), (),
    )  # fmt: skip
