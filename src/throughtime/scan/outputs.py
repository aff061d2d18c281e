"""Outputs that backward needs and that are the user's own, who may write over them.

torch.nn's layers keep copies. Here backward reads the outputs themselves, and only where their
version says that they are no longer what the layer gave, computes them once more.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from throughtime.backends import OPAQUE
from throughtime.backends.call import Call
from throughtime.scan.flatten import unflatten
from throughtime.torch_private import SAVED_ONE_BY_ONE, has_saving_hooks, saved_but_one


def kept_output(y: Tensor) -> Tensor:
    """What is kept of the output: itself; a copy where hooks take it, which hide its version, and
    where `recall` could not pass over it."""
    if SAVED_ONE_BY_ONE and not has_saving_hooks():
        return y
    kept = y.new_empty(y.shape)
    np.copyto(kept.numpy(), y.numpy())  # torch's copy takes threads, which a forked child has not
    return kept


def recall(ctx: Any, count: int) -> tuple[Any, ...]:
    """What `Direct` saved: `count` tensors of the call, the output, and what the backend kept.

    Raises:
        RuntimeError: torch's own, if a tensor of the call has been changed.
    """
    try:
        return ctx.saved_tensors  # type: ignore[no-any-return]
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
    saved = saved_but_one(ctx, count)
    y = compute_again(unflatten(ctx.cell, ctx.form, saved[:count]), ctx.backend)
    return (*saved[:count], y, *saved[count:])


def compute_again(call: Call, backend: str) -> Tensor:
    """The outputs of a call."""
    with torch.no_grad():
        return OPAQUE[backend].forward(call._replace(record=False), False)[0].sequences[0]
