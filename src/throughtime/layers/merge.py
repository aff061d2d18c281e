"""How the outputs of two directions become one."""

from __future__ import annotations

import torch
from torch import Tensor

from throughtime.errors import OptionError
from throughtime.layers.options import Merge


def merged(y: Tensor, merge: Merge, lengths: Tensor | None = None) -> Tensor:
    """The outputs of one or two directions as one.

    Args:
        y: (..., D, W), the outputs of each direction.
        merge: "concat" gives (..., D W); "sum", "mean", "mul" and most functions (..., W).
        lengths: (B,), steps of each row of y (T, B, D, W); zero stays zero behind a row's end,
            whatever a function makes of zeros.
    """
    if merge == "concat" or y.shape[-2] == 1:
        return y.flatten(-2)
    forward, backward = y.unbind(-2)
    if callable(merge):
        found = merge(forward, backward)
        if lengths is None:
            return found
        steps = torch.arange(y.shape[0], device=y.device).unsqueeze(1)
        return torch.where((steps < lengths.to(y.device)).unsqueeze(-1), found, 0)
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
    if isinstance(merge, torch.nn.Module) and merge.state_dict():
        raise OptionError(
            f"merge must be a function without tensors of its own, which the layer would not hold, "
            f"got {type(merge).__name__}; use merge='concat' and put the module behind the layer"
        )
    try:
        zeros = torch.zeros(2, 2, 3, width, device="cpu")
        found = merge(zeros[0], zeros[1])
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(
            f"merge must take two tensors (..., {width}), the forward and the backward outputs; "
            f"from (2, 3, {width}) it raised {error!r}"
        ) from error
    if not isinstance(found, Tensor) or found.shape[:-1] != (2, 3):
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise OptionError(
            f"merge must give (..., width) from two tensors (..., {width}); from (2, 3, {width}) "
            f"it gave {got}"
        )
    return found.shape[-1]
