"""Symbols: tensors that are only written down, so that `step` writes its own graph."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from numbers import Real
from typing import Any, Final, NoReturn

from torch import Tensor

from throughtime.compiler.graph import BOOLEAN, Builder, Constant, Shape, SizeAsked, Untraceable
from throughtime.errors import CellError


class Named:
    """One thing can be done with it, and `_cure` says which."""

    _builder: Builder

    def __str__(self) -> str:
        raise NotImplementedError

    def _cure(self) -> str:
        """The one thing, in words."""
        raise NotImplementedError

    def _refuse(self, use: str) -> NoReturn:
        raise self._builder.refuse(f"step {use.format(self)}; {self._cure()}")

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            self._refuse(f"sets {{}}.{name}")
        object.__setattr__(self, name, value)

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        for value in _all((args, kwargs or {})):
            if isinstance(value, Named):
                value._refuse(f"hands {{}} to torch's {function.__name__}")
        raise AssertionError("torch calls this for one of its arguments")


def _all(value: Any) -> Iterator[Any]:
    """Everything inside tuples, lists and dictionaries."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, tuple | list):
        for v in value:
            yield from _all(v)
    else:
        yield value


def _refused(use: str) -> Callable[..., NoReturn]:
    def method(self: Named, *_: Any, **__: Any) -> NoReturn:
        self._refuse(use)

    return method


_USES = {
    "calls {}": "__call__",
    "indexes {}": "__getitem__ __setitem__ __contains__",
    "iterates over {}": "__iter__ __len__",
    "asks for the value of {}": "__bool__ __float__ __int__ __array__",
    "computes with {}": """
        __add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ __rtruediv__ __pow__
        __rpow__ __matmul__ __rmatmul__ __neg__ __pos__ __abs__ __gt__ __ge__ __lt__ __le__
    """,
}
for _use, _methods in _USES.items():
    for _method in _methods.split():
        setattr(Named, _method, _refused(_use))


_CURE = "the equations must be the same for every input; use torch.where(condition, x, y) to choose"

_NUMPY_CURE = "NumPy's functions know no gradients; use torch's own, such as torch.tanh for np.tanh"


class Answers:
    """What answers torch when it is called with symbols: `calls`, which enters itself here.

    It writes symbols, so it imports this file and not the other way round.
    """

    call: Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
    shape: Callable[[Symbol], tuple[Any, ...]]
    attribute: Callable[[Symbol, str], Any]


answers: Final = Answers()


class StandIn:
    """What stands for a tensor: torch's operators, methods and functions on it are answered."""

    __slots__ = ()
    __array_priority__: Final = 1000  # so that NumPy's numbers leave the operation to us

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return answers.call(function, args, kwargs or {})


class Symbol(StandIn):
    """The value of one node. Operators, methods and functions of torch on it write new nodes."""

    __slots__ = ("builder", "index")

    def __init__(self, builder: Builder, index: int) -> None:
        self.builder = builder
        self.index = index

    @property
    def symbolic_shape(self) -> Shape:
        """The shape, as names of widths."""
        return self.builder.nodes[self.index].shape

    @property
    def is_boolean(self) -> bool:
        """Whether the value is true or false."""
        return self.builder.nodes[self.index].op in BOOLEAN

    @property
    def is_number(self) -> bool:
        """Whether the value is a plain number."""
        return self.builder.nodes[self.index].op == "number"

    def write(self, op: str, *others: Any, constants: tuple[Constant, ...] = ()) -> Symbol:
        """The pointwise operation `op` on this value and others, as a new value."""
        values = (self, *(lift(self.builder, other) for other in others))
        inputs = tuple(v.index for v in values)
        return Symbol(self.builder, self.builder.pointwise(op, inputs, constants))

    def reshaped(self, op: str, shape: Shape, constants: tuple[Constant, ...] = ()) -> Symbol:
        """The operation `op` on this value alone, whose result has another shape."""
        return Symbol(self.builder, self.builder.node(op, (self.index,), constants, shape))

    def filled(self, value: float) -> Symbol:
        """A value of this one's shape that is `value` everywhere."""
        shape = self.symbolic_shape
        return Symbol(self.builder, self.builder.node("full", (), (value, *shape), shape))

    def __getattr__(self, name: str) -> Any:
        if name == "shape":
            return answers.shape(self)
        if name == "ndim":
            return len(self.symbolic_shape)
        return find_method(self, name) or answers.attribute(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in Symbol.__slots__:
            raise self.builder.refuse(f"step sets .{name} of a tensor, which must not be written")
        object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return f"<{self.builder.describe(self.index)}>"

    __hash__ = object.__hash__


def find_method(value: Any, name: str) -> Callable[..., Any] | None:
    """A method of torch's tensors, of what stands for one; None for another attribute of theirs."""
    if name.startswith("__") or not hasattr(Tensor, name):
        raise AttributeError(f"a tensor has no attribute {name!r}")
    attribute = getattr(Tensor, name)
    if not callable(attribute):
        return None
    return lambda *args, **kwargs: answers.call(attribute, (value, *args), kwargs)


class Headed(StandIn, ABC):
    """A tensor of more than one width; `heads` has the one kind."""

    __slots__ = ()

    @abstractmethod
    def multiplied_by(self, matrix: Matrix) -> Any:
        """The matrix times each line of the last dimension."""

    @abstractmethod
    def closed(self) -> Symbol:
        """A tensor (B, width) as a value of a row."""


class Matrix(Named):
    """`U.name`: only its product with a vector can be written."""

    def __init__(self, builder: Builder, name: str, to: str, source: str) -> None:
        self._builder, self._name, self._to, self._source = builder, name, to, source

    def __matmul__(self, v: Any) -> Any:
        if isinstance(v, Headed):
            return v.multiplied_by(self)
        if type(v) is not Symbol:
            got = v if isinstance(v, Named) else type(v).__name__
            raise self._builder.refuse(f"{self} multiplies {got}, which is no vector")
        if v.symbolic_shape != ("B", self._source):
            raise self._builder.refuse_shape(
                f"{self} multiplies a vector of shape (B, {self._source}), "
                f"got {self._builder.describe(v.index)}"
            )
        node = self._builder.node("U", (v.index,), (self._name,), ("B", self._to))
        return Symbol(self._builder, node)

    def __getattr__(self, name: str) -> Any:
        raise self._builder.refuse(f"step reads {self}.{name}; a matrix has only {self} @ v")

    def __str__(self) -> str:
        return f"U.{self._name}"

    def _cure(self) -> str:
        return f"{self} is a matrix and stands only left of @, as in {self} @ v"


def lift(builder: Builder, value: Any) -> Symbol:
    """The value as a symbol: numbers and tensors of no dimension become constants."""
    if type(value) is Symbol:
        return value
    if isinstance(value, Headed):
        return value.closed()
    if isinstance(value, Real):
        number = float(value)
    elif isinstance(value, Tensor) and value.dim() == 0 and not value.requires_grad:
        number = float(value)
    elif isinstance(value, Tensor):
        return _captured(builder, value)
    elif isinstance(value, Named):
        value._refuse("computes with {}")
    else:
        raise Untraceable(f"step computes with {type(value).__name__}, which is no real number")
    return Symbol(builder, builder.node("number", (), (number,), ()))


def _captured(builder: Builder, value: Tensor) -> Symbol:
    """A tensor that the cell holds or makes itself: the reference may use it, a graph may not."""
    shape = tuple(str(n) for n in value.shape)
    operation = f"a tensor of shape ({', '.join(shape)}) that the cell does not declare"
    return Symbol(builder, builder.opaque(operation, (), shape))


def _operator(name: str) -> Callable[..., Any]:
    def method(self: Symbol, *others: Any) -> Any:
        return answers.call(getattr(Tensor, name), (self, *others), {})

    return method


def _value_asked(what: str) -> Callable[..., NoReturn]:
    def method(self: Symbol, *_: Any) -> NoReturn:
        if _is_size(self.builder, self.index):
            raise SizeAsked(f"a size that is asked for by {what}")
        raise value_asked(self.builder, what)

    return method


def _is_size(builder: Builder, index: int) -> bool:
    """Whether a number follows from sizes alone, which are known when a layer is there."""
    pending, sizes = [index], False
    while pending:
        node = builder.nodes[pending.pop()]
        sizes = sizes or node.op == "width"
        if node.shape or not (node.inputs or node.op in ("width", "number")):
            return False
        pending.extend(node.inputs)
    return sizes


def value_asked(builder: Builder, what: str) -> CellError:
    """The error of an equation that depends on data by more than arithmetic."""
    cure = _NUMPY_CURE if what == _VALUES["__array__"] else _CURE
    return builder.refuse(f"step asks for the value of a tensor by {what}, but {cure}")


_OPERATORS = """
    __add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ __rtruediv__ __pow__ __rpow__
    __matmul__ __rmatmul__ __mod__ __rmod__ __floordiv__ __rfloordiv__ __and__ __rand__ __or__
    __ror__ __xor__ __rxor__ __invert__ __neg__ __pos__ __abs__ __gt__ __ge__ __lt__ __le__ __eq__
    __ne__ __getitem__ __setitem__ __iadd__ __isub__ __imul__ __itruediv__ __ifloordiv__ __imod__
    __ipow__ __iand__ __ior__ __ixor__
""".split()
_VALUES = {
    "__bool__": "if, while, and, or, not, assert or bool()",
    "__float__": "float()",
    "__int__": "int()",
    "__index__": "using it as an index",
    "__complex__": "complex()",
    "__len__": "len()",
    "__iter__": "iterating over it",
    "__contains__": "in",
    "__array__": "making it a NumPy array",
    "__format__": "writing it into a text",
}


for _name in _OPERATORS:
    setattr(StandIn, _name, _operator(_name))
for _name, _what in _VALUES.items():
    setattr(Symbol, _name, _value_asked(_what))


class NoRule(Exception):
    """These arguments of a known function have no rule."""


def builder_of(*values: Any) -> Builder:
    """The builder of the first symbol among the values."""
    for value in values:
        if type(value) is Symbol:
            return value.builder
    raise Untraceable("no symbol among the arguments")


def write(op: str, *values: Any, constants: tuple[Constant, ...] = ()) -> Symbol:
    """A pointwise node on symbols and numbers, at least one of them a real-valued symbol."""
    builder = builder_of(*values)
    symbols = [lift(builder, v) for v in values]
    if all(s.is_boolean or s.is_number for s in symbols):
        raise NoRule  # torch computes these in whole numbers, or in its default precision
    return symbols[0].write(op, *symbols[1:], constants=constants)


def number(value: Any) -> float:
    """A plain number among the arguments."""
    if type(value) is Symbol and value.is_number:
        value = value.builder.nodes[value.index].constants[0]
    if type(value) is Symbol or not isinstance(value, int | float):
        raise NoRule
    return float(value)


def left_out(value: Any) -> None:
    """An option that must be left out, since it has no rule."""
    if value is not None:
        raise NoRule
