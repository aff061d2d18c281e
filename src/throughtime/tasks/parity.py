"""Parity: whether the number of ones is odd; every step matters, at any distance."""

from __future__ import annotations

import torch
from torch import Tensor

from throughtime.tasks.memory import MemoryTask
from throughtime.tasks.task import Batch


class Parity(MemoryTask):
    """Tells whether the ones up to each step are odd in number."""

    name = "parity"
    monitor = "error"
    inputs, outputs, every_step = 1, 2, True
    rule = "error: share of wrong parities, over all steps; solved: at most 0.02"

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """Bits as +1 and -1 (T, B, 1); the parity of those so far, (T, B)."""
        bits = torch.randint(2, (self.recipe.length, count), generator=generator)
        return (2.0 * bits - 1)[..., None], bits.cumsum(0) % 2

    def hide(self, inputs: Tensor) -> Tensor:
        return torch.zeros_like(inputs)

    def right(self, answers: Tensor, truth: Tensor) -> Tensor:
        return (answers.argmax(-1) == truth).all(0)

    def chance(self, split: str) -> dict[str, float]:
        return {"error": 0.5}
