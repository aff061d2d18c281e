"""A layer that reads backward alone, as ONNX has it: from each row's last step to its first."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Reversed(nn.Module):
    """Runs a layer from a row's end to its begin; outputs stand at the steps they belong to.

    Args:
        layer: of one direction.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, state: Any = None, *, lengths: Tensor | None = None) -> Any:
        """(outputs, state) of x (T, B, I), or (B, T, I) where the layer is batch_first."""
        time = 1 if self.layer.batch_first else 0
        T, B = x.shape[time], x.shape[1 - time]
        ends = torch.full((B,), T) if lengths is None else torch.as_tensor(lengths).long()
        steps = torch.arange(T).unsqueeze(1)
        order = torch.where(steps < ends, ends - 1 - steps, steps)  # its own inverse

        def turned(v: Tensor) -> Tensor:
            places = (order.T if time else order).unsqueeze(-1).expand_as(v)
            return v.gather(time, places.to(v.device))

        y, last = self.layer(turned(x), state, lengths=lengths)
        return turned(y), last
