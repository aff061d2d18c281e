"""A Python file of the user's, executed, and what it defines."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def executed(file: Path) -> ModuleType:
    """The module of a file; what it defines has this module's name as `__module__`.

    Raises:
        OSError: the file cannot be read.
    """
    name = f"throughtime_user_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # what the file defines may look itself up there
    sys.path.insert(0, str(file.resolve().parent))  # as for a program: its neighbours are found
    spec.loader.exec_module(module)
    return module
