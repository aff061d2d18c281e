"""Where a compiled step finds its direct inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from throughtime.backends.call import Call
from throughtime.backends.cpu.stream_memory import Array


class StreamInputs:
    """The direct inputs of a step, which all layers of a stack share; false where there are none.

    Args:
        batch: B.
    """

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self._shapes: dict[str, set[tuple[int, ...]]] = {}
        self._places: dict[str, list[Tensor]] = {}

    def __bool__(self) -> bool:
        return bool(self._shapes)

    def add(self, call: Call, lines: Mapping[str, Array]) -> None:
        """Those of one layer's call: where each goes, (B, units), if a step reads it."""
        cell, B = call.cell, self._batch
        for name in cell.layout.inputs:
            width = cell.width(cell.inputs[name], call.hidden_size)
            shapes = {(B, width), *([(width,)] if B == 1 else [])}
            self._shapes[name] = shapes & self._shapes.get(name, shapes)
            places = [torch.from_numpy(lines[name])] if name in lines else []
            self._places.setdefault(name, []).extend(places)

    def take(self, given: Mapping[str, Any], dtype: torch.dtype) -> bool:
        """Write what a call was given beside x; False where that is not plainly what it takes."""
        inputs = given.get("inputs")
        if len(given) != 1 or not isinstance(inputs, Mapping):
            return False
        if inputs.keys() != self._shapes.keys() or _transformed():
            return False
        for name, v in inputs.items():
            found = _plain(v, dtype)
            if found is None or found.shape not in self._shapes[name]:
                return False
            for place in self._places[name]:
                place.copy_(found)
        return True


def _transformed() -> bool:
    return torch._C._functorch.get_dynamic_layer_stack_depth() > 0


def _plain(v: Any, dtype: torch.dtype) -> Tensor | None:
    """The numbers of a plain tensor or array in this dtype."""
    if type(v) is np.ndarray and v.dtype in (np.float32, np.float64):
        v = torch.from_numpy(v.copy())  # torch takes none that is turned round or read-only
    if type(v) is not Tensor or v.dtype != dtype or not v.is_cpu or v.layout != torch.strided:
        return None
    return v.detach()
