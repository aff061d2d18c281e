"""Trained models leave Python: as C99, machine code, WebAssembly and ONNX.

What it takes to write them is imported when a function is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from throughtime.scan.operator import scan_forward
from throughtime.torch_private import made_of

if TYPE_CHECKING:
    from throughtime.export.c.write import to_c as to_c
    from throughtime.export.evidence import Measured as Measured
    from throughtime.export.evidence import measure as measure
    from throughtime.export.llvm.write import to_object as to_object
    from throughtime.export.onnx.read import from_onnx as from_onnx
    from throughtime.export.onnx.write import to_onnx as to_onnx
    from throughtime.export.prepare import Exported as Exported

_PLACES: Final = {
    "to_c": "throughtime.export.c.write",
    "to_object": "throughtime.export.llvm.write",
    "to_onnx": "throughtime.export.onnx.write",
    "from_onnx": "throughtime.export.onnx.read",
    "measure": "throughtime.export.evidence",
    "Measured": "throughtime.export.evidence",
    "Exported": "throughtime.export.prepare",
}

__all__ = ["Exported", "Measured", "from_onnx", "measure", "to_c", "to_object", "to_onnx"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"throughtime.export has no {name!r}: {', '.join(__all__)}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)


@made_of(scan_forward)  # type: ignore[untyped-decorator]
def _in_parts(*args: Any) -> Any:
    return importlib.import_module("throughtime.export.onnx.decomposed").decompose(*args)
