"""Training on ragged batches: ours with `lengths`, torch.nn on a PackedSequence it packs first."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import throughtime
from benchmarks.options.line import Line, Lines, Values, parity, train

T = 100
GOALS = {(16, 64): 8.0, (64, 64): 8.0, (16, 128): 4.5, (64, 128): 4.5, (16, 512): 1.5,
         (64, 512): 1.5, (7, 100): 4.5}  # fmt: skip


def lines() -> Lines:
    """All three cells; lengths are uniform from 1 to T, in no order."""
    for (B, H), goal in GOALS.items():
        for cell in ("RNN", "GRU", "LSTM"):
            yield line(cell, T, B, H, goal)


def line(cell: str, T: int, B: int, H: int, goal: float) -> Line:
    """One cell at one shape; torch's gradient goes straight into the packed outputs."""
    lengths = torch.randint(1, T + 1, (B,))
    lengths[0] = T
    rnn: Any = getattr(nn, cell)(H, H)
    layer = throughtime.from_torch(rnn, backend="cpu")
    x, d_y = torch.randn(T, B, H), torch.randn(T, B, H)
    packed_d_y = pack_padded_sequence(d_y, lengths, enforce_sorted=False).data

    def packed(x: Tensor) -> Tensor:
        out: Tensor = rnn(pack_padded_sequence(x, lengths, enforce_sorted=False))[0].data
        return out

    ours = train(lambda x: layer(x, lengths=lengths)[0], x, d_y, layer)
    theirs = train(packed, x, packed_d_y, rnn)

    def expected() -> Values:
        found = theirs()
        one = pack_padded_sequence(x, lengths, enforce_sorted=False)
        whole = PackedSequence(
            found["y"], one.batch_sizes, one.sorted_indices, one.unsorted_indices
        )
        return found | {"y": pad_packed_sequence(whole, total_length=T)[0]}

    name = f"ragged training, {cell}, B {B} T {T} H {H}"
    return Line(name, "torch.nn, packed", ours, theirs, parity(ours, expected), goal)
