"""Norms of the gradients by every state, stored by the backward pass, beside the step without."""

from __future__ import annotations

import torch

import throughtime
from benchmarks.options.line import Line, Lines, parity, train
from throughtime import Recurrent, cells

T = 100
SHAPES = ((16, 32), (16, 64), (32, 128), (16, 512))


def lines() -> Lines:
    """GRU and LSTM."""
    for B, H in SHAPES:
        for cell in (cells.GRU(), cells.LSTM()):
            yield line(cell, T, B, H)


def line(cell: throughtime.Cell, T: int, B: int, H: int) -> Line:
    """One cell at one shape; gradients must be those of the step without."""
    layer, x, d_y = (
        Recurrent(cell, H, H, backend="cpu"), torch.randn(T, B, H), torch.randn(T, B, H),
    )  # fmt: skip
    norms = [torch.zeros(T, B, 1, len(cell.state_names))]
    ours = train(lambda x: layer(x, gradient_norms=norms)[0], x, d_y, layer)
    plain = train(lambda x: layer(x)[0], x, d_y, layer)
    name = f"gradient norms, {cell}, B {B} T {T} H {H}"
    return Line(name, "ours without", ours, plain, parity(ours, plain), 1.05, at_most=True)
