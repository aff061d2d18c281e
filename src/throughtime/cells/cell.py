"""What a cell is: the equations of one step, and what they need declared."""

from __future__ import annotations

import inspect
from abc import ABC, ABCMeta, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Final, NoReturn

import torch
from torch import Tensor

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
    """What `step` really touches; nothing else gets a parameter.

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


class _CellType(ABCMeta):
    """Keeps the constructor's arguments of a cell and freezes it once it is built."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        cell = super().__call__(*args, **kwargs)
        if cls.__init__ is object.__init__:
            arguments = {}
        else:
            bound = inspect.signature(cls.__init__).bind(cell, *args, **kwargs)
            bound.apply_defaults()
            arguments = dict(list(bound.arguments.items())[1:])
        object.__setattr__(cell, "arguments", arguments)
        _check_declarations(cell)
        object.__setattr__(cell, "_frozen", True)
        return cell


class Cell(ABC, metaclass=_CellType):
    """One step of a recurrent network, written as its equations.

    A subclass declares `gates` and `state` and writes `step`; everything else is derived.

    Attributes:
        gates: names of the blocks of W and U, each hidden_size rows, in the order of the weights.
        state: names of the state's vectors (or name -> width); the first is the output.
        vectors: name -> initial value of a vector with one number a unit, read as `p.name`.
        products: name -> (to, from), widths of a matrix without input part or bias,
            used as `U.name @ v`.
        inputs: name -> width (1 or "hidden_size") of an input given at every step and
            multiplied by no matrix, read as `a.name`.
        torch_equivalent: the mode of torch's own kernel that computes the same, if there is one.
        arguments: what the cell was built with.
    """

    gates: tuple[str, ...]
    state: tuple[str, ...] | Mapping[str, Width]
    vectors: Mapping[str, float] = {}
    products: Mapping[str, tuple[Width, Width]] = {}
    inputs: Mapping[str, Width] = {}
    torch_equivalent: str | None = None
    arguments: dict[str, Any]
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

    @cached_property
    def layout(self) -> Layout:
        """What `step` touches, found by one dry run on two rows of random numbers."""
        return _find_layout(self)

    @property
    def key(self) -> str:
        """The cell in words: its class, and its numbers."""
        return f"{type(self).__module__}.{self!r}"

    def __repr__(self) -> str:
        words = [f"{k}={getattr(v, '__qualname__', repr(v))}" for k, v in self.arguments.items()]
        return f"{type(self).__qualname__}({', '.join(words)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.arguments)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.arguments == other.arguments  # type: ignore[attr-defined]

    def __hash__(self) -> int:
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


def _check_declarations(cell: Cell) -> None:
    """Names are identifiers and unique in their namespace, and widths can be read."""
    name = type(cell).__name__
    for attribute in ("gates", "state"):
        value = getattr(cell, attribute, None)
        if not isinstance(value, tuple | Mapping) or not value:
            raise CellError(f"{name}.{attribute} must be a tuple of at least one name, got {value!r}")
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
    for width in _declared_widths(cell):
        _check_width(cell, width)


def _declared_widths(cell: Cell) -> Iterator[Width]:
    if isinstance(cell.state, Mapping):
        yield from cell.state.values()
    for to, source in cell.products.values():
        yield from (to, source)
    yield from cell.inputs.values()


def _check_width(cell: Cell, width: Width) -> None:
    try:
        value = cell.width(width, 1)
    except (AttributeError, TypeError, ValueError):
        value = 0
    if value < 1:
        raise CellError(
            f"{type(cell).__name__}: a width must be a positive number, 'hidden_size', a state's "
            f"name or the name of a positive number of the cell, got {width!r}"
        )


class _Recorder(Names):
    """Names that write down which of them are read."""

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

    def touched(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Those of `names` that were read, in the order declared."""
        return tuple(n for n in names if n in self._touched)


class _DryMatrix:
    """A random matrix of the declared widths."""

    def __init__(self, to: int, source: int) -> None:
        self.weight = torch.rand(to, source)

    def __matmul__(self, v: Tensor) -> Tensor:
        return torch.nn.functional.linear(v, self.weight)


def _find_layout(cell: Cell) -> Layout:
    """Run `step` once on tiny tensors and read off what it touched."""
    H, B = 3, 2
    widths = cell.widths(H)
    with torch.no_grad(), torch.device("cpu"), torch.random.fork_rng(devices=[]):
        direct = {n: torch.rand(B, cell.width(w, H)) for n, w in cell.inputs.items()}
        a = _Recorder("a", {g: torch.rand(B, H) for g in cell.gates} | direct)
        matrices = {g: _DryMatrix(H, widths[0]) for g in cell.gates}
        for name, (to, source) in cell.products.items():
            matrices[name] = _DryMatrix(cell.width(to, H), cell.width(source, H))
        U = _Recorder("U", matrices)
        s = Names("s", {n: torch.rand(B, w) for n, w in zip(cell.state_names, widths, strict=True)})
        p = _Recorder("p", {n: torch.rand(H) for n in cell.vectors})
        check_new_state(cell, cell.step(a, U, s, p), [(B, w) for w in widths])
    return Layout(
        input_gates=a.touched(cell.gates),
        recurrent_gates=U.touched(cell.gates),
        products=U.touched(tuple(cell.products)),
        vectors=p.touched(tuple(cell.vectors)),
        inputs=a.touched(tuple(cell.inputs)),
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
            raise CellError(
                f"{name}.step must return {state} with shape {shape}, got {tuple(value.shape)}"
            )
