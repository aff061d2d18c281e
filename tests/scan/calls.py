"""Calls of the operator with every kind of argument, for the tests beside this file."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from throughtime import Cell, cells
from throughtime.backends.call import Call
from throughtime.cell.layout import parameter_shapes
from throughtime.scan.operator import flatten

FORMS: dict[str, dict[str, bool]] = {
    "plain": {},
    "state": {"state": True},
    "ragged": {"lengths": True, "reset": True, "initial": True},
    "zoned": {"mask": True, "zoneout": True},
    "masked": {"mask": True, "zoneout": True, "record": True, "state": True},
}


def make_call(
    cell: Cell | None = None, form: str = "plain", *, T: int = 4, B: int = 3, I: int = 2,
    H: int = 3, D: int = 2, grad: bool = True,
) -> Call:  # fmt: skip
    """A random call in float64 whose floating tensors are leaves that ask for a gradient."""
    cell = cells.LSTM() if cell is None else cell
    asked = FORMS[form]

    def random(*shape: int) -> Tensor:
        return (torch.randn(shape, dtype=torch.float64) * 0.5).requires_grad_(grad)

    widths = cell.widths(H)
    given: dict[str, Any] = {}
    if asked.get("state"):
        given["state"] = tuple(random(D, B, w) for w in widths)
    if asked.get("initial"):
        given["initial"] = tuple(random(D, w) for w in widths)
    if asked.get("lengths"):
        given["lengths"] = torch.tensor([T, 0, T - 1])[:B]
    if asked.get("reset"):
        given["reset"] = torch.rand(T, B) < 0.4
    if asked.get("mask"):
        given["recurrent_mask"] = (torch.rand(D, B, widths[0]) < 0.7).double() / 0.7
    if asked.get("zoneout"):
        given["zoneout"] = tuple((torch.rand(D, T, B, w) < 0.3).double() for w in widths)
    shapes = parameter_shapes(cell, I, H)
    weights = tuple({n: random(*s) for n, s in shapes.items()} for _ in range(D))
    return Call(cell, H, random(T, B, I), weights, record=asked.get("record", False), **given)


def leaves(call: Call) -> list[Tensor]:
    """The tensors of a call that ask for a gradient."""
    return [v for v in flatten(call)[1] if v is not None and v.requires_grad]


class Names(TorchDispatchMode):
    """Writes down which operators it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func.name())
        return func(*args, **(kwargs or {}))
