"""What `step` is given holds names and nothing else: any other use is refused, with its line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from throughtime.compiler.builder import Builder


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
