"""Cells of a user's own with heads."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import layer_norm, rms_norm

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


class Views(Cell):
    """Heads that weigh their own units, and are scaled by their norms."""

    gates = ("g", "o")
    state = ("h", "c")

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any]:
        B, H = s.h.shape
        g = (a.g + U.g @ s.h).view(B, 4, H // 4)
        k = (s.c + 0.3).view(-1, 4, H // 4)
        w = torch.softmax(g, -1) * torch.tanh(k)
        c = 0.5 * s.c + (w / (1 + k.norm(dim=-1, keepdim=True))).flatten(1)
        return torch.tanh(c) * torch.sigmoid(a.o), c


class Turned(Cell):
    """Pairs of units that turn: halves and slices, joined and moved on."""

    gates = ("g", "o")
    state = ("h", "c")

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any]:
        half = s.h.shape[-1] // 2
        x, y = s.h.chunk(2, -1)
        u, v = torch.sigmoid(a.o)[:, :half], torch.sigmoid(a.o)[..., half:]
        h = torch.cat([x * u - y * v, y * u + x * v], -1)
        return torch.tanh(a.g + U.g @ h), torch.tanh(torch.roll(s.c, 1, -1) + h)


class OverUnits(Cell):
    """The greatest unit, norms and running sums of any number of units; rms_norm without eps."""

    gates = ("g", "o")
    state = ("h", "c")

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any]:
        g = a.g + U.g @ s.h
        n = torch.linalg.vector_norm(s.h, dim=-1, keepdim=True)
        c = 0.2 * torch.cumsum(torch.tanh(g - 0.5 * g.amax(-1, keepdim=True)), -1)
        least = a.o.amin(-1, keepdim=True)
        return torch.tanh(c) * torch.sigmoid(a.o + n), torch.tanh(rms_norm(c + least, c.shape[-1:]))


class Attending(Cell):
    """Heads that look at each other: products of what each row has."""

    gates = ("g", "o")
    state = ("h", "c")

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any]:
        B = s.h.shape[0]
        q, k = (v.view(B, 4, -1) for v in (a.g + U.g @ s.h, torch.tanh(a.o)))
        w = torch.softmax(q @ k.transpose(-1, -2) / 2, -1)
        found = torch.einsum("bij,bjd->bid", w, s.c.view(B, 4, -1) + k)
        h = torch.tanh(found.reshape(B, -1))
        return h, 0.5 * s.c + 0.5 * h


class AcrossHeads(Cell):
    """The greatest of all heads, and of each its own; normalised, scaled by vectors in heads."""

    gates = ("g", "o")
    state = ("h",)
    vectors = {"gain": 1.2}

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        x = (a.g + U.g @ s.h).unflatten(-1, (4, -1))
        y = torch.softmax(x, 1) * x.amax(1).unsqueeze(1)
        y = y + 0.1 * x.max(-1, keepdim=True).values + x.mean((1, 2), keepdim=True)
        h = layer_norm(y, y.shape[-1:], eps=0.1) * p.gain.view(4, -1)
        return (torch.tanh(h.flatten(-2)) * torch.sigmoid(a.o),)


class Mixed(Cell):
    """A small matrix that mixes heads, and one that sees a few units alone."""

    gates = ("g", "o")
    state = ("h", "c")
    products = {"mix": (4, 4), "part": ("hidden_size", 4)}

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any]:
        x = (a.g + U.g @ s.h).unflatten(-1, (4, -1))
        y = torch.tanh(U.mix @ x.transpose(1, 2)).transpose(1, 2).flatten(1)
        return y * torch.sigmoid(a.o), torch.tanh(U.part @ s.c[:, 1:5]) + 0.5 * s.c


class MatrixMemory(Cell):
    """A matrix of what was written under which key, read by another."""

    gates = ("g", "o")
    state = {"h": "hidden_size", "m": 9}
    products = {"ask": (12, "h")}

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any]:
        q, k, v, f = torch.tanh(U.ask @ s.h + a.g[:, :12]).chunk(4, -1)
        m = torch.sigmoid(f).unsqueeze(-1) * s.m.view(-1, 3, 3) + v.unsqueeze(-1) * k.unsqueeze(-2)
        read = (m @ q.unsqueeze(-1)).squeeze(-1)
        o = torch.sigmoid(a.o + read.sum(-1, keepdim=True))
        return o * torch.tanh(U.g @ s.h + a.g), m.flatten(1)


HEADED += [Views(), Turned(), OverUnits(), AcrossHeads()]

SMALL: list[Cell] = [Attending(), Mixed(), MatrixMemory()]
"""Cells whose heads may have a few units each: units by themselves are values of their own."""
