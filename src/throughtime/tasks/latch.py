"""Latch: one bit, shown at the first step, asked for at the last; noise between.

Source: the idea of Bengio, Simard and Frasconi, Learning Long-Term Dependencies with Gradient
Descent is Difficult (1994).
"""

from __future__ import annotations

import torch
from torch import Tensor

from throughtime.tasks.memory import MemoryTask
from throughtime.tasks.task import Batch

_NOISE = 0.2


class Latch(MemoryTask):
    """Remembers a sign from the first step to the last."""

    name = "latch"
    monitor = "error"
    inputs, outputs = 1, 2
    rule = "error: share of wrong signs; solved: at most 0.02"

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """x_0 = +1 or -1, x_t = N(0, 0.2^2) after it; the class is the sign."""
        inputs = _NOISE * torch.randn(self.recipe.length, count, 1, generator=generator)
        bits = torch.randint(2, (count,), generator=generator)
        inputs[0, :, 0] = 2.0 * bits - 1
        return inputs, bits

    def hide(self, inputs: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(inputs[:1]), inputs[1:]])

    def chance(self, split: str) -> dict[str, float]:
        return {"error": 0.5}
