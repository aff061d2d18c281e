"""Batches of items of many lengths: near ones together, in an order that (seed, number) decides.

Stands alone, since tasks on tokens and on pairs share it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import overload

import torch
from torch import Tensor

from throughtime.tasks.task import Batch

_WINDOW = 8  # batches within which items are sorted by length: less padding
_ODD = 2_654_435_769  # 2^32 over the golden ratio: seeds lie far apart


class Batches(Sequence[Batch]):
    """The batches of one pass; each is built when it is indexed.

    Args:
        build: from the numbers of items to a batch of them.
        lengths: (N,) by which items are put together.
        batch_size: items of a batch.
        seed, number: of the run and of the pass.
    """

    def __init__(
        self, build: Callable[[list[int]], Batch], lengths: Tensor, batch_size: int, seed: int,
        number: int,
    ) -> None:  # fmt: skip
        draw = torch.Generator().manual_seed((seed * _ODD + number) % 2**32)
        plan: list[list[int]] = []
        for window in torch.randperm(len(lengths), generator=draw).split(batch_size * _WINDOW):
            order = window[torch.argsort(lengths[window], stable=True)]
            plan += [part.tolist() for part in order.split(batch_size)]
        self._plan = [plan[n] for n in torch.randperm(len(plan), generator=draw).tolist()]
        self._build = build

    def __len__(self) -> int:
        return len(self._plan)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Batch]: ...
    def __getitem__(self, index: int | slice) -> Batch | Sequence[Batch]:
        if isinstance(index, slice):
            return [self._build(rows) for rows in self._plan[index]]
        return self._build(self._plan[index])
