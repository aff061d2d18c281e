"""How much arithmetic a layer's call is: its products alone, one multiply-add being two."""

from __future__ import annotations

from typing import Literal

from benchmarks.speed.grid import Shape

Mode = Literal["training", "inference"]

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4, "own": 3}


def forward_flops(cell: str, s: Shape) -> int:
    """W x_t and U h_{t-1} for every gate, step and row: 2 G H (I + H) B T."""
    return 2 * GATES[cell] * s.H * (s.I + s.H) * s.B * s.T


def training_flops(cell: str, s: Shape) -> int:
    """Forward, and as much again for d_x, d_h and once more for d_W, d_U."""
    return 3 * forward_flops(cell, s)


def flops(cell: str, s: Shape, mode: Mode) -> int:
    """The arithmetic of one call."""
    return training_flops(cell, s) if mode == "training" else forward_flops(cell, s)
