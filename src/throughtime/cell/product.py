"""What `U.name @ v` is on tensors: one matrix, or the blocks of a block-diagonal one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear


@dataclass(frozen=True)
class WeightMatrix:
    """`U.name` in a cell's equations: `U.name @ v` = W (mask v) + b.

    Attributes:
        weight: (to, from); or of a product with blocks (n, to / n, from / n), the k-th of which
            multiplies the k-th part of v.
        bias: (to,).
        mask: (..., from).
    """

    weight: Tensor
    bias: Tensor | None = None
    mask: Tensor | None = None

    def __matmul__(self, v: Tensor) -> Tensor:
        v = v if self.mask is None else v * self.mask
        if self.weight.dim() == 2:
            return linear(v, self.weight, self.bias)
        parts = zip(v.chunk(len(self.weight), -1), self.weight, strict=True)
        return torch.cat([linear(u, w) for u, w in parts], -1)
