"""The training windows of one pass, in an order that only (seed, number) decides."""

from __future__ import annotations

import torch

from throughtime.tasks.forecast.windows import Windows
from throughtime.tasks.passes import BuiltWhenIndexed, generator_of
from throughtime.tasks.task import Batch


class Pass(BuiltWhenIndexed):
    """The batches of a pass, inputs (T, B, width) and truth (horizon, B, D); built when indexed.

    All but the last are full; where there are fewer windows than a batch has, it is one batch.
    """

    def __init__(self, windows: Windows, batch_size: int, seed: int, number: int) -> None:
        generator = generator_of(seed, number)
        train = windows.origins["train"]
        self._windows = windows
        self._parts = train[torch.randperm(len(train), generator=generator)].split(batch_size)

    def __len__(self) -> int:
        return len(self._parts)

    def build(self, place: int) -> Batch:
        return self._windows.cut(self._parts[place])
