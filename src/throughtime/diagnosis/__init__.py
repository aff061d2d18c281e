"""Diagnosis: how far back a network learns and remembers, and why. One quantity a file."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def __getattr__(name: str) -> ModuleType:
    """A module of this package, imported when it is first named: `throughtime.diagnosis.flow`."""
    if name in {entry.name for entry in pkgutil.iter_modules(__path__)}:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
