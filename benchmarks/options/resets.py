"""Resets at 2 % of the steps, beside the same layer without."""

from __future__ import annotations

import torch

import throughtime
from benchmarks.options.line import Line, Lines, infer, parity, train
from throughtime import Recurrent, cells

SHARE, T = 0.02, 100
SHAPES = ((16, 64), (16, 128), (64, 128), (7, 100))


def lines() -> Lines:
    """GRU and LSTM, training and inference."""
    for B, H in SHAPES:
        for cell in (cells.GRU(), cells.LSTM()):
            for training in (True, False):
                yield line(cell, T, B, H, training)


def line(cell: throughtime.Cell, T: int, B: int, H: int, training: bool) -> Line:
    """One cell at one shape; the reference backend is the judge."""
    layer = Recurrent(cell, H, H, backend="cpu")
    judge = Recurrent(cell, H, H, backend="reference")
    judge.load_state_dict(layer.state_dict())
    x, d_y = torch.randn(T, B, H), torch.randn(T, B, H)
    reset = torch.rand(T, B) < SHARE
    work = (lambda f, m: train(f, x, d_y, m)) if training else (lambda f, m: infer(f, x))
    ours = work(lambda x: layer(x, reset=reset)[0], layer)
    expected = work(lambda x: judge(x, reset=reset)[0], judge)
    name = f"resets, {'training' if training else 'inference'}, {cell}, B {B} T {T} H {H}"
    plain = work(lambda x: layer(x)[0], layer)
    return Line(name, "ours without", ours, plain, parity(ours, expected), 1.1, at_most=True)
