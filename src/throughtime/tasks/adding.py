"""Adding: the sum of two marked numbers, one in each half.

Source: Hochreiter and Schmidhuber, Long Short-Term Memory (1997), in the form of Tallec and
Ollivier, Can Recurrent Neural Networks Warp Time? (2018).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from throughtime.tasks.memory import MemoryTask
from throughtime.tasks.task import Batch

_SOLVED = 0.02


class Adding(MemoryTask):
    """Adds two numbers that stand far apart."""

    name = "adding"
    monitor = "mse"
    in_percent = False
    inputs, outputs = 2, 1
    rule = f"mse: mean squared error of the sum; solved: below {_SOLVED}"

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """Values U(0, 1) and two marks (T, B, 2), one in each half; the marked ones' sum (B,)."""
        length, rows = self.recipe.length, torch.arange(count)
        values = torch.rand(length, count, generator=generator)
        marks = torch.zeros_like(values)
        middle = length // 2
        for low, high in ((0, middle), (middle, length)):
            marks[torch.randint(low, high, (count,), generator=generator), rows] = 1
        return torch.stack([values, marks], -1), (values * marks).sum(0)

    def hide(self, inputs: Tensor) -> Tensor:
        values, marks = inputs.unbind(-1)
        return torch.stack([values * (1 - marks), marks], -1)

    def distance(self, answers: Tensor, truth: Tensor) -> Tensor:
        """Mean squared error."""
        return mse_loss(answers[..., 0], truth)

    def measure(self, answers: Tensor, truth: Tensor) -> dict[str, float]:
        return {"mse": float(self.distance(answers, truth))}

    def line(self) -> float:
        return _SOLVED

    def right(self, answers: Tensor, truth: Tensor) -> Tensor:
        return (answers[..., 0] - truth).square() < _SOLVED

    def chance(self, split: str) -> dict[str, float]:
        """The variance of the sum of two U(0, 1): of the answer 1, always."""
        return {"mse": 1 / 6}
