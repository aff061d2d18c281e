"""How the outputs of two directions become one."""

from __future__ import annotations

import torch
from torch import Tensor

from throughtime.errors import OptionError
from throughtime.layers.options import Merge


def merged(y: Tensor, merge: Merge) -> Tensor:
    """The outputs of one or two directions as one.

    Args:
        y: (..., D, W), the outputs of each direction.
        merge: "concat" gives (..., D W); "sum", "mean", "mul" and most functions (..., W).
    """
    if merge == "concat" or y.shape[-2] == 1:
        return y.flatten(-2)
    forward, backward = y.unbind(-2)
    if callable(merge):
        return merge(forward, backward)
    if merge == "mul":
        return forward * backward
    total = forward + backward
    return total / 2 if merge == "mean" else total


def merged_width(width: int, directions: int, merge: Merge) -> int:
    """The width of the outputs after `merge`."""
    if merge == "concat":
        return width * directions
    if not callable(merge) or directions == 1:
        return width
    found = merge(torch.zeros(2, 3, width), torch.zeros(2, 3, width))
    if not isinstance(found, Tensor) or found.shape[:-1] != (2, 3):
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise OptionError(
            f"merge must give (..., width) from two tensors (..., {width}); from (2, 3, {width}) "
            f"it gave {got}"
        )
    return found.shape[-1]
