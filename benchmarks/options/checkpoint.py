"""`checkpoint_every` at the square root of T: bytes kept, time, and the gradients' difference."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks

from benchmarks.options.line import Figure, Line, Lines, parity, train
from throughtime import Recurrent, cells

T, B, H = 1000, 32, 128


def lines() -> Lines:
    """GRU and LSTM."""
    for cell in (cells.GRU(), cells.LSTM()):
        yield from of(cell, T, B, H)


def of(cell: Any, T: int, B: int, H: int) -> Lines:
    """One cell; the layer without checkpoints has the same weights."""
    layer = Recurrent(cell, H, H, backend="cpu", checkpoint_every=math.isqrt(T))
    plain = Recurrent(cell, H, H, backend="cpu")
    plain.load_state_dict(layer.state_dict())
    x, d_y = torch.randn(T, B, H), torch.randn(T, B, H)
    runs = [train(lambda x, m=m: m(x)[0], x, d_y, m) for m in (layer, plain)]
    name = f"checkpoints, {cell}, B {B} T {T} H {H}"
    agreed = parity(runs[0], runs[1])
    yield Line(name, "ours without", runs[0], runs[1], agreed, 1.4, at_most=True)
    yield Figure(f"{name}: kept bytes over those without", kept(layer, x) / kept(plain, x), 0.1)
    yield Figure(f"{name}: difference of gradients ({agreed.worst})", agreed.error, 1e-6)


def kept(layer: Recurrent, x: torch.Tensor) -> int:
    """Bytes that a forward pass keeps for backward, beside its input, weights and outputs."""
    held: dict[int, int] = {}

    def pack(v: torch.Tensor) -> torch.Tensor:
        held[v.untyped_storage().data_ptr()] = v.untyped_storage().nbytes()
        return v

    x = x.clone().requires_grad_()
    with saved_tensors_hooks(pack, lambda v: v):
        y, _ = layer(x)
    for known in (x, y, *layer.parameters()):
        held.pop(known.untyped_storage().data_ptr(), None)
    return sum(held.values())
