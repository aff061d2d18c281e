"""What the gates of a cell do: the values of its bounded functions, found in its equations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from throughtime.cells.cell import Names
from throughtime.diagnosis.steps import Product, Steps

_BOUNDED: dict[Any, str] = {
    torch.sigmoid: "sigmoid",
    Tensor.sigmoid: "sigmoid",
    torch.special.expit: "sigmoid",
    torch.nn.functional.sigmoid: "sigmoid",
    torch.nn.functional.logsigmoid: "logsigmoid",
    torch.tanh: "tanh",
    Tensor.tanh: "tanh",
    torch.nn.functional.tanh: "tanh",
}


@dataclass(frozen=True)
class Activity:
    """The values of one bounded function of the equations.

    Attributes:
        names: the gates and vectors whose numbers go into it, other gates' values aside.
        function: "sigmoid" or "tanh".
        values: (N, H), over all steps of all rows.
    """

    names: frozenset[str]
    function: str
    values: Tensor


@torch.no_grad()
def activities(steps: Steps) -> list[Activity]:
    """Every sigmoid and tanh of the cell's equations, in the order they are computed."""
    a, U, p = steps.parts()
    watch = _Watch()
    for names in (a, p):
        for name, value in vars(names).items():
            if isinstance(value, Tensor):
                watch.mark(value, {name})
    products = {n: _Named(u, n, watch) for n, u in U.items()}
    s = Names("s", dict(zip(steps.cell.state_names, steps.before, strict=True)))
    with watch:
        steps.cell.step(a, Names("U", products), s, p)
    return watch.found


@dataclass(frozen=True)
class _Named:
    """A matrix whose products are marked with its gate's name."""

    matrix: Product
    name: str
    watch: _Watch

    def __matmul__(self, v: Tensor) -> Tensor:
        return self.watch.mark(self.matrix @ v, {self.name})


class _Watch(TorchFunctionMode):
    """Follows which gate's numbers go into what; a bounded function ends a gate's reach."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Activity] = []
        self._names: dict[int, frozenset[str]] = {}
        self._held: list[Tensor] = []  # so that no other tensor gets the id of a marked one

    def mark(self, value: Tensor, names: Iterable[str]) -> Tensor:
        known = self._names.get(id(value), frozenset())
        self._names[id(value)] = known | frozenset(names)
        self._held.append(value)
        return value

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        value = function(*args, **(kwargs or {}))
        names = frozenset[str]().union(*(self._of(v) for v in (*args, *(kwargs or {}).values())))
        if function in _BOUNDED:
            self._find(names, _BOUNDED[function], value)
        elif names:
            for v in value if isinstance(value, tuple | list) else (value,):
                if isinstance(v, Tensor):
                    self.mark(v, names)
        return value

    def _find(self, names: frozenset[str], function: str, value: Tensor) -> None:
        if function == "logsigmoid":  # a gate that the equations know by its logarithm
            function, value = "sigmoid", value.exp()
        self.found.append(Activity(names, function, value))

    def _of(self, value: Any) -> frozenset[str]:
        if isinstance(value, tuple | list):
            return frozenset[str]().union(*(self._of(v) for v in value))
        return self._names.get(id(value), frozenset())
