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

__all__ = ["GradientFlow"]


def __getattr__(name: str) -> Any:
    """`GradientFlow`, or a module or folder of this package, imported when it is first named."""
    if name == "GradientFlow":
        return importlib.import_module(f"{__name__}.training.flow").GradientFlow
    if name in {entry.name for entry in pkgutil.iter_modules(__path__)}:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
