"""A skip of d steps through time without keeping old states: d interleaved sequences, side by side.

With dilation d the state at t follows the one at t - d, so the steps t = j (mod d) form a sequence
of their own: a batch of B sequences of T steps is one of d B sequences of T / d steps.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from throughtime.backends.call import Call, Result


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


def _fold(v: Tensor, d: int) -> Tensor:
    """(T, B, ...) to (ceil(T / d), d B, ...), with zeros behind the end."""
    T = v.shape[0]
    padded: Tensor = pad(v, [0, 0] * (v.dim() - 1) + [0, -T % d])
    chains: Tensor = padded.reshape(padded.shape[0] // d, d * v.shape[1], *v.shape[2:])
    return chains


def _fold_lengths(lengths: Tensor, d: int) -> Tensor:
    """Steps of chain j of a row with n steps: ceil((n - j) / d)."""
    chains = torch.arange(d, device=lengths.device).unsqueeze(1)
    return torch.div(lengths - chains + d - 1, d, rounding_mode="floor").clamp_min(0).flatten()


def _spread(reset: Tensor, d: int) -> Tensor:
    """A reset before t cuts every chain: each at its first step from t on."""
    shifted = [pad(reset, [0, 0, i, 0])[: reset.shape[0]] for i in range(d)]
    return torch.stack(shifted).any(0)
