"""A cell that no compiled code can carry runs on the reference, which is far slower: said once."""

from __future__ import annotations

import warnings
from typing import Any, Final

import torch

from throughtime.cells import Cell
from throughtime.compiler.apart import why_not
from throughtime.compiler.llvm import machine
from throughtime.layers.user_line import frames_to_user

_TOLD: Final[set[str]] = set()
"""Classes and lines, so that cells of one class that differ in a number are told once."""


def warn_uncompiled(cell: Cell, sizes: tuple[int, ...], device: Any) -> None:
    """Say once that a layer of this cell, left to choose, runs on the reference, and why.

    Args:
        cell: the equations.
        sizes: of the layer.
        device: where the layer is built; elsewhere than on the processor nothing is compiled.
    """
    unsupported = [why for why in (why_not(cell, H) for H in sizes) if why is not None]
    on_cpu = torch.device(device or torch.get_default_device()).type == "cpu"
    if not unsupported or not on_cpu or machine.host() is None:
        return
    operation, line = unsupported[0]
    place = f"{type(cell).__qualname__} {line}"
    if place in _TOLD:
        return
    _TOLD.add(place)
    warnings.warn(
        f"{type(cell).__name__} runs on the reference, one operation of torch after the other, "
        f"which is far slower than compiled code: {operation} has no rule; write it with "
        f"operations that have one (docs/compiler.md), or ask for backend='reference'\n"
        f"  at {line}",
        stacklevel=frames_to_user()[0],
    )
