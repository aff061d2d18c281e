"""Cells of a user's own with heads."""

from __future__ import annotations

from typing import Any

import torch

from throughtime import Cell


class HeadedLSTM(Cell):
    """An LSTM whose gates see their own head of the old output: block-diagonal matrices.

    Args:
        heads: how many.
    """

    gates = ("i", "f", "g", "o")
    state = ("h", "c")
    products = {f"r_{g}": ("hidden_size", "hidden_size") for g in "ifgo"}
    blocks = {f"r_{g}": "heads" for g in "ifgo"}
    keeps = {"f": 1}

    def __init__(self, heads: int) -> None:
        self.heads = heads

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any]:
        i, f = torch.sigmoid(a.i + U.r_i @ s.h), torch.sigmoid(a.f + U.r_f @ s.h)
        g, o = torch.tanh(a.g + U.r_g @ s.h), torch.sigmoid(a.o + U.r_o @ s.h)
        c = f * s.c + i * g
        return o * torch.tanh(c), c


class Crossed(Cell):
    """Blocks beside full matrices, of two vectors, one of them the step's own, and not square.

    Args:
        places: width of the memory, which the blocks divide.
    """

    gates = ("z", "n")
    state = {"h": "hidden_size", "m": "places"}
    products = {"put": ("places", "h"), "get": ("h", "places"), "mix": ("places", "places")}
    blocks = {"get": 2, "put": 2}

    def __init__(self, places: int) -> None:
        self.places = places

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any]:
        z = torch.sigmoid(a.z + U.z @ s.h)
        m = torch.tanh(U.mix @ s.m + U.put @ (z * s.h))
        return (1 - z) * torch.tanh(a.n + U.get @ m + U.n @ s.h) + z * s.h, 0.5 * (m + s.m)


HEADED: list[Cell] = [HeadedLSTM(4), HeadedLSTM(3), Crossed(6)]
