"""What a cell is: the equations of one step, and what they need declared."""

from __future__ import annotations

import inspect
from abc import ABC, ABCMeta, abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from throughtime.cells.declarations import check_declarations
from throughtime.cells.layout import Layout, first_layout, layout_of_size
from throughtime.cells.layout import Names as Names
from throughtime.cells.layout import check_new_state as check_new_state
from throughtime.cells.outside import read_outside
from throughtime.cells.registry import interned
from throughtime.errors import CellError

Width = int | str
"""A width: a number, "hidden_size", a state's name, or the name of a number of the cell."""

ACTIVATIONS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "identity": torch.positive,
}


def activation_function(activation: str | Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """The pointwise function that `activation` names, or the function itself."""
    if callable(activation):
        return activation
    if activation not in ACTIVATIONS:
        raise CellError(
            f"activation must be one of {', '.join(ACTIVATIONS)} or a function, got {activation!r}"
        )
    return ACTIVATIONS[activation]


class _CellType(ABCMeta):
    """Keeps the arguments of a cell, freezes it, and gives one object for equal cells."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        cell = super().__call__(*args, **kwargs)
        object.__setattr__(cell, "arguments", _arguments(cls, cell, args, kwargs))
        check_declarations(cell)
        object.__setattr__(cell, "outside", read_outside(cell))
        object.__setattr__(cell, "_frozen", True)
        return interned(cell)


def _arguments(
    cls: type, cell: Cell, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The constructor's arguments by name, defaults filled in."""
    constructor = cls.__init__  # type: ignore[misc]  # of exactly this class
    if constructor is object.__init__:
        return {}
    signature = inspect.signature(constructor)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    for parameter in signature.parameters.values():
        if parameter.kind not in named:
            raise CellError(
                f"{cls.__name__}.__init__ must take arguments by name, since the cell is copied "
                f"and compared by them; {parameter} has none"
            )
    bound = signature.bind(cell, *args, **kwargs)
    bound.apply_defaults()
    return dict(list(bound.arguments.items())[1:])


class Cell(ABC, metaclass=_CellType):
    """One step of a recurrent network, written as its equations.

    A subclass declares `gates` and `state` and writes `step`; everything else is derived.

    Attributes:
        gates: names of the blocks of W and U, each hidden_size rows, in the order of the weights.
        state: names of the state's vectors (or name -> width); the first is the output.
        vectors: name -> initial value of a vector with one number a unit, read as `p.name`.
        products: name -> (to, from), widths of a matrix without input part or bias,
            used as `U.name @ v`.
        blocks: product -> n, a number or the name of a number of the cell: its matrix is
            block-diagonal, n matrices that each multiply their own part of v (heads of their own).
        inputs: name -> width of an input given at every step and not multiplied by W, read as
            `a.name`: 1 for one number a row, which goes with units of hidden_size; "hidden_size";
            or any other, to meet a state so wide or as `U.product @ a.name`.
        keeps: gate (or the vector that is its bias) -> 1 when the old state is kept where the gate
            is open, -1 where it is closed; its bias sets the cell's time scale.
        writes: likewise for a gate that lets new values in: 1 where it is open.
        torch_equivalent: the mode of torch's own kernel that computes the same, if there is one.
        arguments: what the cell was built with.
        outside: names and values of what `step` reads beside its arguments, such as attributes of
            the class and globals, as they were when the cell was built: compiled code has those
            numbers, and a cell built after a change is another cell.
        key: the cell in words, unlike that of any other cell of this process.
    """

    gates: tuple[str, ...]
    state: tuple[str, ...] | Mapping[str, Width]
    vectors: Mapping[str, float] = {}
    products: Mapping[str, tuple[Width, Width]] = {}
    blocks: Mapping[str, Width] = {}
    inputs: Mapping[str, Width] = {}
    keeps: Mapping[str, int] = {}
    writes: Mapping[str, int] = {}
    torch_equivalent: str | None = None
    arguments: dict[str, Any]
    outside: tuple[tuple[str, Any], ...]
    key: str
    _frozen: ClassVar[bool] = False

    @abstractmethod
    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, ...]:
        """The equations: the new state, from the parts of one step.

        Args:
            a: `a.g` = W_g x_t + b_g, (B, H), for each gate g; and the direct inputs.
            U: `U.g @ v` = U_g v + its bias, (B, H), for each gate g; and the products.
            s: `s.name`, (B, width), the state at t-1.
            p: `p.name`, (H,), the per-unit vectors.

        Returns:
            The new state, a tuple in the order of `state`.
        """

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the state's vectors; the first is the output."""
        return tuple(self.state)

    def widths(self, hidden_size: int) -> tuple[int, ...]:
        """The width of each of the state's vectors for a hidden size."""
        if isinstance(self.state, Mapping):
            return tuple(self.width(w, hidden_size) for w in self.state.values())
        return (hidden_size,) * len(self.state)

    def width(self, width: Width, hidden_size: int) -> int:
        """The number behind a declared width."""
        if isinstance(width, int):
            return width
        if width == "hidden_size":
            return hidden_size
        if width in self.state:
            spec = self.state[width] if isinstance(self.state, Mapping) else "hidden_size"
            return self.width(spec, hidden_size)
        return int(getattr(self, width))

    def blocks_of(self, product: str) -> int:
        """How many blocks the matrix of a product has on its diagonal; 1 is a full one."""
        return self.width(self.blocks.get(product, 1), 1)

    @cached_property
    def layout(self) -> Layout:
        """What `step` touches, found by a dry run: a layer's own, or at a size that fits."""
        return next(iter(self._layouts.values()), None) or first_layout(self)

    def prepare(self) -> None:
        """Find now what a first call would, as layers do when they are made or loaded."""
        self.layout.names(True)

    def layout_at(self, hidden_size: int) -> Layout:
        """What `step` touches at a layer's own size, which is tried once.

        Raises:
            CellError: it is not what it touches at another size.
        """
        if hidden_size not in self._layouts:
            found = layout_of_size(self, hidden_size)
            if self._layouts and found != self.layout:
                raise CellError(
                    f"{type(self).__name__}.step must read the same names at every size, got "
                    f"{found} at hidden_size {hidden_size} and {self.layout}"
                )
            self._layouts[hidden_size] = found
        return self._layouts[hidden_size]

    @cached_property
    def _layouts(self) -> dict[int, Layout]:
        return {}

    def __repr__(self) -> str:
        words = [f"{k}={getattr(v, '__qualname__', repr(v))}" for k, v in self.arguments.items()]
        return f"{type(self).__qualname__}({', '.join(words)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.arguments)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Cell) or type(self) is not type(other):
            return False
        return self.arguments == other.arguments and self.outside == other.outside

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash((type(self), repr(self)))

    def __setattr__(self, name: str, value: Any) -> None:
        if self._frozen:
            raise CellError(
                f"{type(self).__name__} is frozen after construction, so {name} cannot be set; "
                f"build a new cell instead"
            )
        object.__setattr__(self, name, value)


def _rebuild(kind: type[Cell], arguments: dict[str, Any]) -> Cell:
    """The cell of this class and these arguments: how a cell is pickled and copied."""
    return kind(**arguments)
