"""What the tasks on published data share: fixed sequences in ten classes, told at the last step.

The splits are fixed; a training batch is drawn from the training split, with replacement, by
(seed, number) alone.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from throughtime.tasks.memory import MemoryTask
from throughtime.tasks.task import Batch

_SOLVED = 0.1


class PublishedTask(MemoryTask):
    """A task on sequences that others collected, one number a step; a subclass reads them."""

    ignores = (*MemoryTask.ignores, "length")
    monitor = "error"
    inputs, outputs = 1, 10
    rule = f"error: share of wrong digits of ten; solved: at most {_SOLVED}"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        name: {**MemoryTask.presets[name], "hidden": 64, "lr": 5e-3, "steps": steps}
        for name, steps in (("quick", 2000), ("full", 10000))
    }

    @abstractmethod
    def split(self, name: str) -> Batch:
        """Sequences (T, N, 1) and classes (N,) of `train`, `validation` or `test`."""

    @property
    def steps(self) -> int:
        return len(self.split("train")[0])

    def line(self) -> float:
        return _SOLVED

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        inputs, truth = self.split("train")
        drawn = torch.randint(len(truth), (count,), generator=generator, device="cpu")
        return inputs[:, drawn], truth[drawn]

    def batch(self, split: str, number: int, count: int) -> Batch:
        """As drawn in training; of the other splits the first `count`."""
        if split == "train":
            return super().batch(split, number, count)
        inputs, truth = self.split(split)
        return inputs[:, :count], truth[:count]

    def held_out(self, split: str) -> Batch:
        return self.split(split)

    def held_out_rows(self, split: str) -> int:
        return len(self.split(split)[1])

    def hide(self, inputs: Tensor) -> Tensor:
        """All but the last step: what is left to a model without memory."""
        return torch.cat([torch.zeros_like(inputs[:-1]), inputs[-1:]])

    def chance(self, split: str) -> dict[str, float]:
        """Of the digit that training has most often, always."""
        often = self.split("train")[1].bincount().argmax()
        return {"error": float((self.split(split)[1] != often).double().mean())}
