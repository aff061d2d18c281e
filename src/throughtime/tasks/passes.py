"""Passes over training data: an order that (seed, number) decides, batches built when indexed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import overload

import torch
from torch import Tensor

from throughtime.tasks.task import Batch

# 2^32 over the golden ratio: seeds lie far apart, and the passes of one follow each other.
_ODD = 2_654_435_769
_WINDOW = 8  # batches within which items are sorted by length: less padding


def generator_of(seed: int, number: int) -> torch.Generator:
    """What draws the order of a run's pass."""
    # torch's generator on the CPU looks at the low 32 bits of a seed only.
    return torch.Generator().manual_seed((seed * _ODD + number) % 2**32)


class BuiltWhenIndexed(Sequence[Batch]):
    """Batches of which each is built when it is indexed."""

    @abstractmethod
    def build(self, place: int) -> Batch:
        """One of them, by its number; an IndexError ends a loop over all."""

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Batch]: ...
    def __getitem__(self, index: int | slice) -> Batch | Sequence[Batch]:
        if isinstance(index, slice):
            return [self.build(place) for place in range(*index.indices(len(self)))]
        return self.build(index)


class Batches(BuiltWhenIndexed):
    """The batches of one pass over items of many lengths, near ones together.

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
