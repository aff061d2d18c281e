"""What a compiled step takes plainly: tensors and arrays of its own numbers, and direct inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def direct_inputs(
    given: Mapping[str, Any], widths: Mapping[str, set[int]], rows: int, dtype: torch.dtype
) -> dict[str, Tensor] | None:
    """The direct inputs of a step, (B, width); None where they are not plainly what it takes.

    Args:
        given: what the call was given beside x.
        widths: name -> what widths the input may have.
        rows: B.
        dtype: of the numbers.
    """
    if not given and not widths:
        return {}
    inputs = given.get("inputs")
    if len(given) != 1 or not isinstance(inputs, Mapping) or inputs.keys() != widths.keys():
        return None
    if transformed():
        return None
    found = {}
    for name, v in inputs.items():
        plain = _plain(v, dtype)
        if plain is None or plain.shape[-1:].numel() not in widths[name]:
            return None
        shapes = ((rows, *plain.shape[-1:]), *((plain.shape[-1:],) if rows == 1 else ()))
        if plain.shape not in shapes:
            return None
        found[name] = plain.reshape(rows, -1)
    return found


def is_plain(v: Tensor, dtype: torch.dtype) -> bool:
    """Whether a tensor has memory of numbers of this dtype on the CPU."""
    return v.dtype == dtype and v.is_cpu and v.layout == torch.strided


def transformed() -> bool:
    """Whether a function of torch.func runs."""
    return torch._C._functorch.get_dynamic_layer_stack_depth() > 0


def _plain(v: Any, dtype: torch.dtype) -> Tensor | None:
    """The numbers of a plain tensor or array in this dtype."""
    if type(v) is np.ndarray and v.dtype in (np.float32, np.float64):
        v = torch.from_numpy(v.copy())  # torch takes none that is turned round or read-only
    if type(v) is not Tensor or not is_plain(v, dtype):
        return None
    return v.detach()
