"""The warning that a cell is not compiled, which is far slower, at the user's line."""

from __future__ import annotations

import sys
import warnings
from typing import Any, Final

import torch

from throughtime.cells import Cell
from throughtime.compiler.passes import why_not
from throughtime.compiler.runtime import machine


def count_frames_to_user() -> tuple[int, bool]:
    """The `stacklevel` of the user's line, and whether torch's quantisation is on the way."""
    frame, level, by_torch = sys._getframe(1), 1, False
    while frame.f_back is not None:
        name = str(frame.f_globals.get("__name__"))
        if name.partition(".")[0] not in ("torch", "throughtime", "typing_extensions"):
            break
        by_torch = by_torch or name.startswith("torch.ao.quantization")
        frame, level = frame.f_back, level + 1
    return level, by_torch


_WARNED: Final[set[str]] = set()
"""Classes and lines; cells of one class that differ in a number are warned of once."""


def warn_uncompiled(cell: Cell, sizes: tuple[int, ...], device: Any) -> None:
    """Warn once that "auto" runs a layer of this cell on the reference, and why.

    Args:
        cell: the equations.
        sizes: of the layer.
        device: where the layer is built; only the CPU compiles.
    """
    unsupported = [reason for reason in (why_not(cell, H) for H in sizes) if reason is not None]
    on_cpu = torch.device(device or torch.get_default_device()).type == "cpu"
    if not unsupported or not on_cpu or machine.host() is None:
        return
    operation, line = unsupported[0]
    place = f"{type(cell).__qualname__} {line}"
    if place in _WARNED:
        return
    _WARNED.add(place)
    warnings.warn(
        f"{type(cell).__name__} runs on the reference, one operation of torch after the other, "
        f"which is far slower than compiled code: {operation} has no rule; write it with "
        f"operations that have one (docs/compiler.md), or ask for backend='reference'\n"
        f"  at {line}",
        stacklevel=count_frames_to_user()[0],
    )
