"""A batch as the layers see it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

States = tuple[tuple[Tensor, ...], ...]
"""Over layers, over the cell's states: (D, B, width)."""


class Batch(NamedTuple):
    """A batch as the layers see it: time-major, padded or packed.

    Attributes:
        x: (T, B, I), or packed (N, I) when `batch_sizes` is given.
        state: where it starts; None starts at each layer's initial state.
        lengths: (B,), steps of each row; None means T.
        reset: (T, B) bool.
        batch_sizes: (T,), of a packed batch.
        inputs: name -> (T, B, width), inputs multiplied by no matrix; every layer reads them.
        recurrent_masks: over layers, recurrent dropout's mask (D, B, width) where it is drawn
            already; None draws one for this call.
        norms: over layers, (T, B, D, states) that backward fills; None asks for none.
    """

    x: Tensor
    state: States | None = None
    lengths: Tensor | None = None
    reset: Tensor | None = None
    batch_sizes: Tensor | None = None
    inputs: Mapping[str, Tensor] | None = None
    recurrent_masks: tuple[Tensor | None, ...] | None = None
    norms: tuple[Tensor, ...] | None = None

    def first_rows(self, rows: int) -> Batch:
        """The first so many rows alone, of a padded batch."""
        state, masks = self.state, self.recurrent_masks
        return Batch(
            x=self.x[:, :rows],
            state=state and tuple(tuple(v[:, :rows] for v in s) for s in state),
            lengths=None if self.lengths is None else self.lengths[:rows],
            reset=None if self.reset is None else self.reset[:, :rows],
            inputs=self.inputs and {n: v[:, :rows] for n, v in self.inputs.items()},
            recurrent_masks=masks and tuple(m if m is None else m[:, :rows] for m in masks),
        )
