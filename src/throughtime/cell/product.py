"""What `U.name @ v` is on tensors: one matrix, or the blocks of a block-diagonal one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear


def multiply(weight: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """W v + b.

    Args:
        weight: (to, from); or of a product with blocks (n, to / n, from / n), the k-th of which
            multiplies the k-th part of v.
        v: (..., from).
        bias: (to,).
    """
    if weight.dim() == 2:
        return linear(v, weight, bias)
    parts = v.chunk(len(weight), -1)
    return torch.cat([linear(u, w) for u, w in zip(parts, weight, strict=True)], -1)
