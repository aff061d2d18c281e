"""Warnings at the user's line: a cell that no compiled code can carry is far slower."""

from __future__ import annotations

import sys
import warnings
from typing import Any, Final

import torch

from throughtime.cells import Cell
from throughtime.compiler.passes.unshare import why_not
from throughtime.compiler.runtime import machine


def frames_to_user() -> tuple[int, bool]:
    """The user's line as `warnings` counts from the caller's; and if torch quantises below it."""
    frame, level, by_torch = sys._getframe(1), 1, False
    while frame.f_back is not None:
        name = str(frame.f_globals.get("__name__"))
        if name.partition(".")[0] not in ("torch", "throughtime", "typing_extensions"):
            break
        by_torch = by_torch or name.startswith("torch.ao.quantization")
        frame, level = frame.f_back, level + 1
    return level, by_torch


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
