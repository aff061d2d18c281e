"""What `step` reads, recorded in one dry run, and the parameters that follow from it."""

from __future__ import annotations

import inspect
import math
import os
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from throughtime.errors import CellError
from throughtime.torch_private import on_processor, without_modes

if TYPE_CHECKING:
    from throughtime.cell.contract import Cell


class Names:
    """What `step` reads by attribute (`a`, `U`, `s`, `p`); an unknown name gets a clear error."""

    def __init__(self, what: str, values: Mapping[str, Any]) -> None:
        self._what = what
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        known = ", ".join(k for k in self.__dict__ if k != "_what") or "none"
        raise CellError(f"step reads {self._what}.{name}, which the cell does not declare: {known}")


@dataclass(frozen=True)
class Layout:
    """What `step` reads; nothing else gets a parameter.

    Attributes:
        input_gates: gates g whose a.g = W_g x + b_g is read; they have rows in weight_ih.
        recurrent_gates: gates g whose U.g is multiplied; they have rows in weight_hh.
        products: names of the other matrices that are multiplied.
        vectors: names of the per-unit vectors that are read.
        inputs: names of the direct inputs that are read.
    """

    input_gates: tuple[str, ...]
    recurrent_gates: tuple[str, ...]
    products: tuple[str, ...]
    vectors: tuple[str, ...]
    inputs: tuple[str, ...]

    def names(self, bias: bool) -> tuple[str, ...]:
        """The names of the parameters, in torch's order."""
        return self._with_bias if bias else tuple(n for n in self._with_bias if n not in _BIASES)

    @cached_property
    def _with_bias(self) -> tuple[str, ...]:
        a, u = bool(self.input_gates), bool(self.recurrent_gates)
        names = ["weight_ih"] * a + ["weight_hh"] * u + ["bias_ih"] * a + ["bias_hh"] * u
        return (*names, *(f"weight_{p}" for p in self.products), *self.vectors)


_BIASES = ("bias_ih", "bias_hh")


class _Recorder(Names):
    """Names that record which of them are read."""

    def __init__(self, what: str, values: Mapping[str, Any]) -> None:
        super().__init__(what, {})
        object.__setattr__(self, "_values", values)
        object.__setattr__(self, "_touched", set())

    def __getattr__(self, name: str) -> Any:
        if name not in self._values:
            raise CellError(
                f"step reads {self._what}.{name}, which the cell does not declare: "
                f"{', '.join(self._values) or 'none'}"
            )
        self._touched.add(name)
        return self._values[name]


def _touched(recorder: _Recorder, names: Iterable[str]) -> tuple[str, ...]:
    """Those of `names` that were read, in the order declared."""
    return tuple(n for n in names if n in recorder._touched)


class _DryMatrix:
    """A matrix of the declared widths without numbers, which a dry run does not need."""

    def __init__(self, name: str, to: int, source: int) -> None:
        self._name, self._to, self._source = name, to, source

    def __matmul__(self, v: Any) -> Tensor:
        if not isinstance(v, Tensor):
            raise CellError(f"U.{self._name} multiplies {type(v).__name__}, which is no vector")
        if v.dim() == 0 or v.shape[-1] != self._source:
            raise CellError(
                f"U.{self._name} multiplies a vector of width {self._source}, got a value of shape "
                f"{tuple(v.shape)}"
            )
        return _numbers(*v.shape[:-1], self._to)


TRIED: Final = (3, 4, 6, 8, 12, 16, 24, 32, 48, 60, 64, 96, 128, 256)
"""Hidden sizes at which a cell without a layer is tried: its number of heads must divide one."""

MOST_TRIED: Final = 256
"""How many consecutive sizes are tried for one that the number of heads divides."""

_MISTAKES: Final = (CellError, RuntimeError, ValueError, TypeError, IndexError)


def find_first_layout(cell: Cell) -> Layout:
    """What `step` reads at the first size of TRIED that it takes.

    Raises:
        CellError, RuntimeError, ValueError, TypeError, IndexError: its error at the first size,
            when it takes none.
    """
    mistake: Exception | None = None
    for H in TRIED:
        try:
            return find_layout(cell, H)
        except _MISTAKES as error:
            mistake = mistake or error
    assert mistake is not None
    raise mistake


def find_fitting_size(cell: Cell, H: int) -> int:
    """The first size from H on that the cell takes; H itself where it takes none."""
    for size in range(H, H + MOST_TRIED):
        try:
            find_layout(cell, size)
        except _MISTAKES:
            continue
        return size
    return H


def find_layer_layout(cell: Cell, H: int) -> Layout:
    """What `step` reads at the size of a layer.

    Raises:
        CellError: it cannot take this size; gives the reason and the line.
    """
    try:
        return find_layout(cell, H)
    except CellError:
        raise
    except _MISTAKES as error:
        raise CellError(
            f"{type(cell).__name__}.step must be able to take the sizes of its layer, and at "
            f"hidden_size {H} it raises {type(error).__name__}: {error}\n  at {_line_of(error)}"
        ) from error


def _line_of(error: BaseException) -> str:
    """The line of the user's code that raised the error."""
    frames = [f for f in traceback.extract_tb(error.__traceback__)[1:] if f.filename not in _INNER]
    users = [f for f in frames if not f.filename.startswith(_TORCH)] or frames
    return f"{users[-1].filename}:{users[-1].lineno}: {users[-1].line}" if users else "step"


_INNER: Final = frozenset({__file__})
_TORCH: Final = os.path.dirname(torch.__file__) + os.sep


def find_layout(cell: Cell, H: int) -> Layout:
    """Run `step` once on two rows of random numbers, H units wide, and return what it read."""
    B = 2
    widths = cell.widths(H)
    _check_blocks(cell, H)
    with (
        torch.no_grad(), on_processor(), torch.random.fork_rng(devices=[]),
        without_modes(),
    ):  # fmt: skip
        direct = {n: _numbers(B, cell.width(w, H)) for n, w in cell.inputs.items()}
        a = _Recorder("a", {g: _numbers(B, H) for g in cell.gates} | direct)
        matrices = {g: _DryMatrix(g, H, widths[0]) for g in cell.gates}
        for name, (to, source) in cell.products.items():
            matrices[name] = _DryMatrix(name, cell.width(to, H), cell.width(source, H))
        U = _Recorder("U", matrices)
        s = Names("s", {n: _numbers(B, w) for n, w in zip(cell.state_names, widths, strict=True)})
        p = _Recorder("p", {n: _numbers(H) for n in cell.vectors})
        check_new_state(cell, cell.step(a, U, s, p), [(B, w) for w in widths])
    return Layout(
        input_gates=_touched(a, cell.gates),
        recurrent_gates=_touched(U, cell.gates),
        products=_touched(U, cell.products),
        vectors=_touched(p, cell.vectors),
        inputs=_touched(a, cell.inputs),
    )


def _numbers(*shape: int) -> Tensor:
    """Random numbers from NumPy: under vmap torch draws none without a `randomness` mode."""
    drawn = np.random.default_rng(math.prod(shape)).random(shape)
    return torch.from_numpy(drawn).to(torch.get_default_dtype())


def _check_blocks(cell: Cell, H: int) -> None:
    for name in cell.blocks:
        shape, blocks = tuple(cell.width(w, H) for w in cell.products[name]), cell.blocks_of(name)
        if any(width % blocks for width in shape):
            raise CellError(
                f"{type(cell).__name__}.blocks must divide the widths of U.{name}, got {blocks} "
                f"blocks of {shape} at hidden_size {H}"
            )


def check_new_state(cell: Cell, new: Any, shapes: list[tuple[int, int]]) -> None:
    """`step` must return a tuple with one vector of the right width for each state."""
    name = type(cell).__name__
    if not isinstance(new, tuple) or len(new) != len(shapes):
        got = f"{len(new)} values" if isinstance(new, tuple) else type(new).__name__
        raise CellError(
            f"{name}.step must return a tuple of {len(shapes)} ({', '.join(cell.state_names)}), "
            f"got {got}"
        )
    for state, value, shape in zip(cell.state_names, new, shapes, strict=True):
        if tuple(value.shape) != shape:
            code = inspect.unwrap(type(cell).step).__code__
            raise CellError(
                f"{name}.step must return {state} with shape {shape}, got {tuple(value.shape)}\n"
                f"  at {code.co_filename}:{code.co_firstlineno}, the step"
            )


def parameter_shapes(
    cell: Cell, input_size: int, hidden_size: int, bias: bool = True
) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter of one layer and direction, in torch's order.

    Args:
        cell: the cell; what its `step` never reads has no parameter.
        input_size: width I of the input.
        hidden_size: rows H of each gate.
        bias: whether W and U carry a bias.

    Returns:
        "weight_ih" (G_a H, I), "weight_hh" (G_u H, width of the output), "bias_ih" (G_a H,),
        "bias_hh" (G_u H,), "weight_<product>" (to, from), or with blocks (n, to / n, from / n), and
        each vector (H,).
    """
    layout = cell.layout_at(hidden_size) if hidden_size else cell.layout
    rows_a = len(layout.input_gates) * hidden_size
    rows_u = len(layout.recurrent_gates) * hidden_size
    shapes: dict[str, tuple[int, ...]] = {}
    if rows_a:
        shapes["weight_ih"] = (rows_a, input_size)
    if rows_u:
        shapes["weight_hh"] = (rows_u, cell.widths(hidden_size)[0])
    if rows_a and bias:
        shapes["bias_ih"] = (rows_a,)
    if rows_u and bias:
        shapes["bias_hh"] = (rows_u,)
    for name in layout.products:
        to, source = cell.products[name]
        lines, columns = cell.width(to, hidden_size), cell.width(source, hidden_size)
        blocks = cell.blocks_of(name)
        one = (lines // blocks, columns // blocks)
        shapes[f"weight_{name}"] = one if blocks == 1 else (blocks, *one)
    for name in layout.vectors:
        shapes[name] = (hidden_size,)
    assert tuple(shapes) == layout.names(bias)
    return shapes


@dataclass(frozen=True)
class WeightMatrix:
    """`U.name` in a cell's equations: `U.name @ v` = W (mask v) + b.

    Attributes:
        weight: (to, from); or of a product with blocks (n, to / n, from / n), the k-th of which
            multiplies the k-th part of v.
        bias: (to,).
        mask: (..., from).
    """

    weight: Tensor
    bias: Tensor | None = None
    mask: Tensor | None = None

    def __matmul__(self, v: Tensor) -> Tensor:
        v = v if self.mask is None else v * self.mask
        if self.weight.dim() == 2:
            return linear(v, self.weight, self.bias)
        parts = zip(v.chunk(len(self.weight), -1), self.weight, strict=True)
        return torch.cat([linear(u, w) for u, w in parts], -1)
