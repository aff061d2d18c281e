"""A batch as the layers see it, and as d interleaved sequences for a dilation of d steps.

With dilation d the state at t follows the one at t - d, so the steps t = j (mod d) form a
sequence: a batch of B sequences of T steps is one of d B sequences of T / d steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from throughtime.backends.call import Call, Result

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
        recurrent_masks: over layers, recurrent dropout's mask (D, B, width), drawn before; None
            draws one for this call.
        norms: over layers, (T, B, D, states) that backward fills, or None.
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
        """The first `rows` rows of a padded batch."""
        state, masks = self.state, self.recurrent_masks
        return Batch(
            x=self.x[:, :rows],
            state=state and tuple(tuple(v[:, :rows] for v in s) for s in state),
            lengths=None if self.lengths is None else self.lengths[:rows],
            reset=None if self.reset is None else self.reset[:, :rows],
            inputs=self.inputs and {n: v[:, :rows] for n, v in self.inputs.items()},
            recurrent_masks=masks and tuple(m if m is None else m[:, :rows] for m in masks),
        )


def fold(call: Call, d: int) -> Call:
    """The call whose batch is the d interleaved sequences of every row, (T/d, d B, I)."""
    T, B = call.x.shape[:2]
    lengths = call.lengths
    if lengths is None and T % d:
        lengths = torch.full((B,), T, device=call.x.device)
    return call._replace(
        x=_fold(call.x, d),
        inputs={n: _fold(v, d) for n, v in (call.inputs or {}).items()},
        reset=None if call.reset is None else _fold(_spread(call.reset, d), d),
        lengths=None if lengths is None else _fold_lengths(lengths, d),
    )


def unfold(result: Result, call: Call, d: int) -> Result:
    """The result of the folded call in the steps of the call itself.

    The final state of a row is that of the chain its last step belongs to (in the backward
    direction its first).
    """
    T, B = call.x.shape[:2]
    sequences = tuple(s.unflatten(1, (d, B)).flatten(0, 1)[:T] for s in result.sequences)
    rows = torch.arange(B, device=call.x.device)
    steps = torch.full_like(rows, T) if call.lengths is None else call.lengths.to(rows.device)
    last = (steps - 1).clamp_min(0) % d
    final = tuple(
        torch.stack([v.unflatten(0, (d, B))[last if i == 0 else 0, rows] for i, v in enumerate(s)])
        for s in result.final
    )
    return Result(sequences, final)


def end_in_last_sequences(result: Result, call: Call) -> Result:
    """The result with both directions' final states those of the last sequence of each row.

    The backward direction goes on past a reset to the sequences before; its state for the last one
    is that after the step where this one begins.

    Args:
        result: of two directions, with the sequences of all states.
        call: padded, with resets.
    """
    T, B = call.x.shape[:2]
    if call.reset is None or not T:
        return result
    steps, rows = torch.arange(T, device=call.x.device), torch.arange(B, device=call.x.device)
    begins = call.reset
    if call.lengths is not None:
        begins = begins & (steps.unsqueeze(1) < call.lengths.to(call.x.device))
    first = torch.where(begins, steps.unsqueeze(1), 0).amax(0)
    final = tuple(
        torch.stack((v[0], torch.where(begins.any(0).unsqueeze(1), s[first, rows, 1], v[1])))
        for v, s in zip(result.final, result.sequences, strict=True)
    )
    return Result(result.sequences, final)


def _fold(v: Tensor, d: int) -> Tensor:
    """(T, B, ...) to (ceil(T / d), d B, ...), with zeros after the end."""
    T = v.shape[0]
    # Not by pad, which torch 2.9 refuses where there are no rows.
    padded = torch.cat((v, v.new_zeros(-T % d, *v.shape[1:])))
    chains: Tensor = padded.reshape(padded.shape[0] // d, d * v.shape[1], *v.shape[2:])
    return chains


def _fold_lengths(lengths: Tensor, d: int) -> Tensor:
    """Steps of chain j of a row with n steps: ceil((n - j) / d)."""
    chains = torch.arange(d, device=lengths.device).unsqueeze(1)
    return torch.div(lengths - chains + d - 1, d, rounding_mode="floor").clamp_min(0).flatten()


def _spread(reset: Tensor, d: int) -> Tensor:
    """A reset before t as one in every chain, at its first step from t on."""
    shifted = [
        torch.cat((reset.new_zeros(i, *reset.shape[1:]), reset))[: reset.shape[0]] for i in range(d)
    ]
    return torch.stack(shifted).any(0)
