"""Sequences of the states beside the output, and gradients by them, as machine code finds them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from throughtime.backends.cpu.sizes import strides_of
from throughtime.compiler.llvm.block import RECORD


class Records:
    """The words of each direction's records; they must live until the region has run.

    Args:
        tensors: for each state beside the output (T, B, D, width), packed (N, D, width); None
            where there is none, as for a gradient that is zero.
        directions: D.
        packed: whether they hold the rows of all steps one behind the other.

    Attributes:
        addresses: by name; none where there are no tensors.
    """

    def __init__(self, tensors: Sequence[Tensor | None], directions: int, packed: bool) -> None:
        self.addresses: dict[str, int] = {}
        self._held = [lines(v) for v in tensors]
        if any(v is not None for v in self._held):
            words = [[self._words(v, d, packed) for v in self._held] for d in range(directions)]
            self._all = np.array(words, np.int64)
            for d, one in enumerate(self._all):
                self.addresses[f"records {d}"] = one.ctypes.data

    def _words(self, v: Tensor | None, d: int, packed: bool) -> list[int]:
        if v is None:
            return [0] * len(RECORD)
        step, row = strides_of(v, packed)
        first = v.data_ptr() + d * v.stride(-2) * v.element_size()
        words = {"tensor": first, "step": step, "before": row if packed else 0, "row": row}
        return [words[name] for name in RECORD]


def lines(v: Tensor | None) -> Tensor | None:
    """A tensor whose lines of units lie side by side."""
    return v if v is None or v.stride(-1) == 1 or v.shape[-1] < 2 else v.contiguous()
