"""What `step` is given while it is traced: a, U, s and p, with symbols in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from throughtime.cell.contract import Cell, Width
from throughtime.compiler.graph import Builder, Shape
from throughtime.compiler.symbols import Matrix, Named, Symbol


class Symbols(Named):
    """`a`, `s` or `p`: each declared name a symbol, written when it is read."""

    def __init__(self, builder: Builder, what: str, shapes: Mapping[str, Shape]) -> None:
        self._builder, self._what, self._shapes = builder, what, shapes

    def __getattr__(self, name: str) -> Symbol:
        _check_declared(self._builder, self._what, name, self._shapes)
        shape = self._shapes[name]
        return Symbol(self._builder, self._builder.node(self._what, (), (name,), shape))

    def __str__(self) -> str:
        return self._what

    def _cure(self) -> str:
        return f"it holds names, read as {_said(self._what, self._shapes)}"


class Matrices(Named):
    """`U`: each declared matrix by its name."""

    def __init__(self, builder: Builder, widths: Mapping[str, tuple[str, str]]) -> None:
        self._builder, self._widths = builder, widths

    def __getattr__(self, name: str) -> Matrix:
        _check_declared(self._builder, "U", name, self._widths)
        return Matrix(self._builder, name, *self._widths[name])

    def __str__(self) -> str:
        return "U"

    def _cure(self) -> str:
        return f"it holds matrices, used as {_said('U', self._widths, ' @ v')}"


def inputs_of(cell: Cell, builder: Builder) -> tuple[Any, ...]:
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
        Symbols(builder, "a", gates | direct),
        Matrices(builder, recurrent | products),
        Symbols(builder, "s", state),
        Symbols(builder, "p", {n: ("hidden_size",) for n in cell.vectors}),
    )


def state_shapes(cell: Cell, H: int | None = None) -> dict[str, Shape]:
    """The shape of each of the state's vectors."""
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


def _said(what: str, names: Mapping[str, Any], use: str = "") -> str:
    return ", ".join(f"{what}.{name}{use}" for name in names) or "none"


def _check_declared(builder: Builder, what: str, name: str, known: Mapping[str, Any]) -> None:
    if name.startswith("__"):
        raise AttributeError(name)
    if name not in known:
        words = ", ".join(known) or "none"
        raise builder.refuse(f"step reads {what}.{name}, which the cell does not declare: {words}")
