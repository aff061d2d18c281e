"""Batches of items of many lengths: near ones together, in an order that (seed, number) decides.

Stands alone, since tasks on tokens and on pairs share it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from throughtime.tasks.passes import BuiltWhenIndexed, generator_of
from throughtime.tasks.task import Batch

_WINDOW = 8  # batches within which items are sorted by length: less padding


class Batches(BuiltWhenIndexed):
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
        draw = generator_of(seed, number)
        plan: list[list[int]] = []
        for window in torch.randperm(len(lengths), generator=draw).split(batch_size * _WINDOW):
            order = window[torch.argsort(lengths[window], stable=True)]
            plan += [part.tolist() for part in order.split(batch_size)]
        self._plan = [plan[n] for n in torch.randperm(len(plan), generator=draw).tolist()]
        self._build = build

    def __len__(self) -> int:
        return len(self._plan)

    def build(self, place: int) -> Batch:
        return self._build(self._plan[place])
