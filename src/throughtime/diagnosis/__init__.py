"""Diagnosis: how far back a network learns and remembers, and why.

`measure` is the one call on an unchanged model. `observe` runs a model so that every state is
seen, `quantities` has what is measured, one a file, `verdict` the rules on it and what a cure
would change, `report` the numbers as data, text and page, `training` the watch in training.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from throughtime.diagnosis.training.flow import GradientFlow
    from throughtime.layers.batch import Batch

__all__ = ["Batch", "GradientFlow"]

_PLACES = {"Batch": "throughtime.layers.batch", "GradientFlow": f"{__name__}.training.flow"}


def __getattr__(name: str) -> Any:
    """`Batch`, `GradientFlow`, a quantity, or a part of this package, when it is first named."""
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    for package in (__name__, f"{__name__}.quantities"):
        folders = __path__ if package == __name__ else importlib.import_module(package).__path__
        if name in {entry.name for entry in pkgutil.iter_modules(folders)}:
            return importlib.import_module(f"{package}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
