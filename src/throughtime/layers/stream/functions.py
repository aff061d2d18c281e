"""Functions of each row alone among a stream's parts, as plans of steps without memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final

import torch
from torch import Tensor, nn

from throughtime.backends.cpu.stream.layer import RowFunction
from throughtime.compiler.derivative import derivative
from throughtime.compiler.graph import Builder, Graph
from throughtime.compiler.passes import HIDDEN, expand, find_widths
from throughtime.compiler.plan import Plan, find_sums
from throughtime.compiler.symbols import Symbol
from throughtime.compiler.trace import on_symbols
from throughtime.errors import CellError

Function = Callable[[Symbol, Mapping[str, Symbol]], Any]

_ROW, _RESULT = "x", "y"
_NOT_FOLLOWED: Final = (CellError, TypeError, ValueError, AttributeError, RuntimeError, IndexError)


def make_row_function(function: Callable[[Any], Any], name: str, width: int) -> RowFunction | str:
    """The function as a part, or the reason why the compiler does not take it.

    Args:
        function: takes rows (B, width); a module's parameters and buffers so wide are read anew.
        name: of the function.
        width: of a row.
    """
    module = function if isinstance(function, nn.Module) else None
    tensors = {} if module is None else _find_vectors(module, width)
    run = _make_runner(module, tuple(tensors)) if module is not None else lambda x, p: function(x)
    plan = _make_plan(name, run, width, tuple(tensors))
    if isinstance(plan, str):
        return plan
    if not _is_of_rows(function, width, next(iter(tensors.values()), torch.empty(0, device="cpu"))):
        return "it does not look at each row of a sequence alone"
    return RowFunction(plan, tensors, width)


@torch.no_grad()
def _is_of_rows(function: Callable[[Any], Any], width: int, like: Tensor) -> bool:
    """Whether a sequence (T, B, width) gives the same as its rows one by one."""
    with torch.random.fork_rng(devices=[]):
        x = torch.randn(3, 2, width, dtype=like.dtype, device=like.device)
        try:
            whole = function(x.clone())
            rows = torch.cat([function(row.clone()) for row in x.flatten(0, 1).split(1)])
        except (TypeError, ValueError, RuntimeError, IndexError):
            return False
    if whole.shape != x.shape or rows.shape != (6, width):
        return False
    return torch.allclose(whole.flatten(0, 1), rows, rtol=1e-3, atol=1e-5, equal_nan=True)


def _find_vectors(module: nn.Module, width: int) -> dict[str, Any]:
    """The module's parameters and buffers of a row's width."""
    tensors = {**module._parameters, **module._buffers}
    return {n: v for n, v in tensors.items() if v is not None and tuple(v.shape) == (width,)}


def _make_runner(module: nn.Module, names: tuple[str, ...]) -> Callable[[Any, Any], Any]:
    """The module's forward as a function of x and of these tensors."""

    def run(x: Any, p: Any) -> Any:
        twin = object.__new__(type(module))
        twin.__dict__.update(module.__dict__)
        for kind in ("_parameters", "_buffers"):
            rest = {n: v for n, v in module.__dict__[kind].items() if n not in names}
            twin.__dict__[kind] = rest
        twin.__dict__.update({n: p[n] for n in names})
        if twin.__dict__.get("inplace") is True:  # no other part reads its input
            twin.__dict__["inplace"] = False
        return twin.forward(x)

    return run


def _make_plan(name: str, function: Function, width: int, vectors: tuple[str, ...]) -> Plan | str:
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
        return f"it {_describe(error)}"
    if graph.unsupported:
        return f"{graph.unsupported[0].operation} has no rule"
    if graph.key != again.key:
        return "a number in it changes from call to call"
    return _plan_graph(_rename(graph, width), vectors)


def _describe(error: Exception) -> str:
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


def _rename(graph: Graph, width: int) -> Graph:
    """The graph for rows of any width, so that rows of all widths share their code."""
    names = {_units(width): HIDDEN}

    def rename(words: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(names.get(w, w) if isinstance(w, str) else w for w in words)

    nodes = (
        replace(
            node,
            shape=rename(node.shape),
            constants=rename(node.constants) if node.op in ("width", "full") else node.constants,
        )
        for node in graph.nodes
    )
    return replace(graph, nodes=tuple(nodes))


@lru_cache(maxsize=256)
def _plan_graph(graph: Graph, vectors: tuple[str, ...]) -> Plan:
    step, both = expand(graph, derivative(graph))
    return Plan(
        step.name, both, find_sums(step, both, _RESULT, (), frozenset()), (None,),
        (step.outputs[0][1],), (), False, False, (_RESULT,), vectors, (), (),
        find_widths(both, (HIDDEN,)), (),
    )  # fmt: skip
