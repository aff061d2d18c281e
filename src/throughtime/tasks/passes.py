"""What passes over training data share: an order that (seed, number) decides, and late batches."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import overload

import torch

from throughtime.tasks.task import Batch

# 2^32 over the golden ratio: seeds lie far apart, and the passes of one follow each other.
_ODD = 2_654_435_769


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
