"""The training windows of one pass, in an order that only (seed, number) decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch

from throughtime.tasks.forecast.windows import Windows
from throughtime.tasks.task import Batch

# 2^32 over the golden ratio: seeds lie far apart, and the passes of one follow each other.
_ODD = 2_654_435_769


class Pass(Sequence[Batch]):
    """The batches of a pass, inputs (T, B, width) and truth (horizon, B, D); built when indexed.

    All but the last are full; where there are fewer windows than a batch has, it is one batch.
    """

    def __init__(self, windows: Windows, batch_size: int, seed: int, number: int) -> None:
        generator = torch.Generator().manual_seed((seed * _ODD + number) % 2**32)
        train = windows.origins["train"]
        self._windows = windows
        self._parts = train[torch.randperm(len(train), generator=generator)].split(batch_size)

    def __len__(self) -> int:
        return len(self._parts)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Batch]: ...
    def __getitem__(self, index: int | slice) -> Batch | Sequence[Batch]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        return self._windows.cut(self._parts[index])
