"""What a cell is: the equations of one step, and the declarations they need."""

from __future__ import annotations

import inspect
from abc import ABC, ABCMeta, abstractmethod
from collections.abc import Callable, Iterator, Mapping, MutableSet
from functools import cached_property
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from throughtime.cell import intern_cell, read_outside
from throughtime.cell.layout import Layout, find_first_layout, find_layer_layout
from throughtime.cell.layout import Names as Names
from throughtime.cell.layout import check_new_state as check_new_state
from throughtime.errors import CellError

_MAPPINGS: Final = {
    "vectors": {"rate": 0.0},
    "products": {"m": ("hidden_size", "hidden_size")},
    "blocks": {"m": 4},
    "inputs": {"gap": 1},
    "keeps": {"f": 1},
    "writes": {"i": 1},
}


def check_declarations(cell: Cell) -> None:
    """Names are identifiers and unique in their namespace, and widths can be read."""
    _check_held(cell)
    _check_arguments(cell)
    name = type(cell).__name__
    for attribute in ("gates", "state"):
        value = getattr(cell, attribute, None)
        if not isinstance(value, tuple | Mapping) or not value:
            cure = f"; write {tuple(value)!r}" if isinstance(value, list) and value else ""
            raise CellError(
                f"{name}.{attribute} must be a tuple of at least one name, got {value!r}{cure}"
            )
    _check_mappings(cell)
    for what, group in (
        ("a", (*cell.gates, *cell.inputs)),
        ("U", (*cell.gates, *cell.products)),
        ("s", cell.state_names),
        ("p", tuple(cell.vectors)),
    ):
        for word in group:
            if not isinstance(word, str) or not word.isidentifier() or word.startswith("_"):
                raise CellError(f"{name}: a name in {what}. must be an identifier, got {word!r}")
            if group.count(word) > 1:
                raise CellError(f"{name}: names in {what}. must differ, got {word!r} twice")
    _check_parameters(cell)
    for width in _declared_widths(cell):
        _check_width(cell, width)


def _check_mappings(cell: Cell) -> None:
    """Attributes that map names to values are dictionaries."""
    for attribute, like in _MAPPINGS.items():
        value = getattr(cell, attribute)
        if not isinstance(value, Mapping):
            raise CellError(
                f"{type(cell).__name__}.{attribute} must be a dictionary, such as {like}, "
                f"got {value!r}"
            )


def _check_held(cell: Cell) -> None:
    """A cell holds no weights: no layer would have them as parameters."""
    classes = type(cell).__mro__
    attributes = [
        vars(parent)
        for parent in reversed(classes)
        if not parent.__module__.startswith("throughtime.")
    ]
    for attribute, value in (item for group in (*attributes, vars(cell)) for item in group.items()):
        for member in _inside(value):
            if _has_weights(member):
                raise CellError(
                    f"{type(cell).__name__}.{attribute} must hold no weights, which no layer would "
                    f"train, move or save, got {type(member).__qualname__}; declare them "
                    f"instead: gates (W and U), products (matrices) and vectors"
                )


def _inside(value: Any) -> Iterator[Any]:
    """The value, or what is in it when it is a tuple, list or dictionary."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        for v in value:
            yield from _inside(v)
    else:
        yield getattr(value, "__self__", value)  # a method holds its object


def _check_arguments(cell: Cell) -> None:
    """Arguments are immutable, since equal arguments mean equal cells."""
    for name, value in cell.arguments.items():
        for v in _members(value):
            if hasattr(v, "__setitem__") or isinstance(v, MutableSet):
                raise CellError(
                    f"{type(cell).__name__}: a cell is frozen, so {name} must be a number, a text, "
                    f"a function or a tuple of these, got {type(v).__name__}; give a tuple"
                )


def _members(value: Any) -> Iterator[Any]:
    """The value, or what is in a tuple, however deep."""
    if isinstance(value, tuple):
        for v in value:
            yield from _members(v)
    else:
        yield value


def _has_weights(value: Any) -> bool:
    if isinstance(value, nn.Module):
        return any(True for group in (value.parameters(), value.buffers()) for _ in group)
    return isinstance(value, nn.Parameter)


def _check_parameters(cell: Cell) -> None:
    """Products are pairs, vectors start at a number, and no two parameters share a name."""
    name = type(cell).__name__
    for word, pair in cell.products.items():
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise CellError(f"{name}.products[{word!r}] must be a pair (to, from), got {pair!r}")
    for word, count in cell.blocks.items():
        if word not in cell.products:
            raise CellError(f"{name}.blocks must name products, got {word!r}")
        if count in ("hidden_size", *cell.state_names):
            raise CellError(
                f"{name}.blocks[{word!r}] must be a number, or the name of a number of the cell, "
                f"got {count!r}"
            )
    for word, value in cell.vectors.items():
        if not isinstance(value, int | float):
            raise CellError(f"{name}.vectors[{word!r}] must be a number, got {value!r}")
    names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]
    names += [f"initial_{state}" for state in cell.state_names]  # with learn_initial
    for word in (*(f"weight_{product}" for product in cell.products), *cell.vectors):
        if word in names:
            raise CellError(
                f"{name}: two parameters would be named {word}; rename the product or vector"
            )
        names.append(word)
    for word, sign in (*cell.keeps.items(), *cell.writes.items()):
        if word not in (*cell.gates, *cell.vectors) or sign not in (1, -1):
            raise CellError(
                f"{name}: keeps and writes must map a gate or vector to 1 or -1, "
                f"got {word!r}: {sign!r}; there are {', '.join((*cell.gates, *cell.vectors))}"
            )


def _declared_widths(cell: Cell) -> Iterator[Width]:
    if isinstance(cell.state, Mapping):
        yield from cell.state.values()
    for to, source in cell.products.values():
        yield from (to, source)
    yield from cell.blocks.values()
    yield from cell.inputs.values()


def _check_width(cell: Cell, width: Width) -> None:
    try:
        value = cell.width(width, 1)
    except (AttributeError, TypeError, ValueError, RecursionError):
        value = 0
    if value < 1:
        raise CellError(
            f"{type(cell).__name__}: a width must be a positive number, 'hidden_size', a state's "
            f"name or the name of a positive number of the cell, got {width!r}"
        )


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
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise CellError(
            f"activation must be one of {', '.join(ACTIVATIONS)} or a function, got {activation!r}"
        )
    return ACTIVATIONS[activation]


class _CellType(ABCMeta):
    """Stores the arguments of a cell, freezes it, and returns one object for equal cells."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        cell = super().__call__(*args, **kwargs)
        object.__setattr__(cell, "arguments", _arguments(cls, cell, args, kwargs))
        check_declarations(cell)
        object.__setattr__(cell, "outside", read_outside(cell))
        object.__setattr__(cell, "_frozen", True)
        return intern_cell(cell)


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
            block-diagonal, n matrices (heads) that each multiply one part of v.
        inputs: name -> width of an input given at every step and not multiplied by W, read as
            `a.name`: 1 for one number a row, which goes with units of hidden_size; "hidden_size";
            or any other, to meet a state so wide or as `U.product @ a.name`.
        keeps: gate (or the vector that is its bias) -> 1 when the old state is kept where the gate
            is open, -1 where it is closed; its bias sets the cell's time scale.
        writes: likewise for a gate that lets new values in: 1 where it is open.
        torch_equivalent: the mode of torch's own kernel that computes the same, if there is one.
        arguments: what the cell was built with.
        outside: names and values of what `step` reads besides its arguments, such as attributes of
            the class and globals, as they were when the cell was built: compiled code has those
            numbers, and a cell built after a change is another cell.
        key: the cell in words, unique in this process.
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
        """The number that a declared width stands for."""
        if isinstance(width, int):
            return width
        if width == "hidden_size":
            return hidden_size
        if width in self.state:
            spec = self.state[width] if isinstance(self.state, Mapping) else "hidden_size"
            return self.width(spec, hidden_size)
        return int(getattr(self, width))

    def blocks_of(self, product: str) -> int:
        """How many blocks the matrix of a product has on its diagonal; 1 for a full matrix."""
        return self.width(self.blocks.get(product, 1), 1)

    @cached_property
    def layout(self) -> Layout:
        """What `step` reads, by a dry run at a layer's size, or at any size that fits."""
        return next(iter(self._layouts.values()), None) or find_first_layout(self)

    def prepare(self) -> None:
        """Do the dry run now instead of in the first call, as layers do when made or loaded."""
        self.layout.names(True)

    def layout_at(self, hidden_size: int) -> Layout:
        """What `step` reads at a layer's size; each size is tried once.

        Raises:
            CellError: it reads other names than at another size.
        """
        if hidden_size not in self._layouts:
            layout = find_layer_layout(self, hidden_size)
            if self._layouts and layout != self.layout:
                raise CellError(
                    f"{type(self).__name__}.step must read the same names at every size, got "
                    f"{layout} at hidden_size {hidden_size} and {self.layout}"
                )
            self._layouts[hidden_size] = layout
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
