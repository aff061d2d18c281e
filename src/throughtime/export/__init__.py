"""Trained models leave Python: as C99, machine code, WebAssembly, ONNX and files of others.

What it takes to write them is imported when a function is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from throughtime.backends.call import writes_graph
from throughtime.scan.operator import fake_forward, scan_forward
from throughtime.torch_private import made_of

if TYPE_CHECKING:
    from throughtime.export.c import to_c as to_c
    from throughtime.export.checkpoints import from_flax as from_flax
    from throughtime.export.checkpoints import from_safetensors as from_safetensors
    from throughtime.export.checkpoints import to_flax as to_flax
    from throughtime.export.folder import Exported as Exported
    from throughtime.export.folder import Measured as Measured
    from throughtime.export.folder import measure as measure
    from throughtime.export.keras import from_keras as from_keras
    from throughtime.export.llvm import to_object as to_object
    from throughtime.export.onnx import to_onnx as to_onnx
    from throughtime.export.onnx.read import from_onnx as from_onnx
    from throughtime.export.write_keras import to_keras as to_keras

_PLACES: Final = {
    "to_c": "throughtime.export.c",
    "to_object": "throughtime.export.llvm",
    "to_onnx": "throughtime.export.onnx",
    "from_onnx": "throughtime.export.onnx.read",
    "from_keras": "throughtime.export.keras",
    "to_keras": "throughtime.export.write_keras",
    "from_flax": "throughtime.export.checkpoints",
    "to_flax": "throughtime.export.checkpoints",
    "from_safetensors": "throughtime.export.checkpoints",
    "measure": "throughtime.export.folder",
    "Measured": "throughtime.export.folder",
    "Exported": "throughtime.export.folder",
}

__all__ = [
    "Exported", "Measured", "from_flax", "from_keras", "from_onnx", "from_safetensors", "measure",
    "to_c", "to_flax", "to_keras", "to_object", "to_onnx",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"throughtime.export has no {name!r}: {', '.join(__all__)}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)


@made_of(scan_forward)  # type: ignore[untyped-decorator]
def _in_parts(*args: Any) -> Any:
    if not writes_graph():  # tensors of unknown sizes ask here too, in torch.compile
        return fake_forward(*args)
    return importlib.import_module("throughtime.export.onnx").decompose(*args)
