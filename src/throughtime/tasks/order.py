"""Temporal order: which of two signs came first and which second, among distractors.

Source: Hochreiter and Schmidhuber, Long Short-Term Memory (1997), task 6a.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from throughtime.tasks.memory import MemoryTask
from throughtime.tasks.task import Batch

_SIGNS, _DISTRACTORS = 2, 4
_PLACES = ((0.1, 0.2), (0.5, 0.6))  # shares of the length, both ends included


class Order(MemoryTask):
    """Tells AA, AB, BA and BB apart."""

    name = "order"
    monitor = "error"
    inputs, outputs = _SIGNS + _DISTRACTORS, 4
    rule = "error: share of wrong orders of four; solved: at most 0.02"

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """One-hot symbols (T, B, 6), A and B the first two; the class is 2 * first + second."""
        length, rows = self.recipe.length, torch.arange(count)
        symbols = torch.randint(_SIGNS, self.inputs, (length, count), generator=generator)
        signs = torch.randint(_SIGNS, (2, count), generator=generator)
        for sign, (low, high) in zip(signs, _PLACES, strict=True):
            first, last = int(low * length), int(high * length)
            symbols[torch.randint(first, last + 1, (count,), generator=generator), rows] = sign
        return one_hot(symbols, self.inputs).float(), 2 * signs[0] + signs[1]

    def hide(self, inputs: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(inputs[..., :_SIGNS]), inputs[..., _SIGNS:]], -1)

    def chance(self, split: str) -> dict[str, float]:
        return {"error": 0.75}
