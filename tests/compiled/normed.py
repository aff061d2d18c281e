"""Cells of a user's own that compute over the units of a row."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import layer_norm, rms_norm, softmax

from throughtime import Cell


class NormedApart(Cell):
    """W x and U h are normalised each by itself, as in the supplement of Ba et al. (2016)."""

    gates = ("z", "n")
    state = ("h",)
    vectors = {"gain": 1.2, "push": 0.1}

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        units = s.h.shape[-1:]
        z = torch.sigmoid(
            layer_norm(a.z, units, p.gain) + layer_norm(U.z @ s.h, units, None, p.push)
        )
        n = torch.tanh(layer_norm(a.n, units, eps=0.1) + U.n @ s.h)
        return ((1 - z) * n + z * s.h,)


class Chosen(Cell):
    """A softmax over the units says where to write; the output is what stands out from the mean."""

    gates = ("k", "v")
    state = ("h", "c")

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any]:
        w = softmax(a.k + U.k @ s.h, dim=-1)
        v = a.v + U.v @ s.h
        c = (1 - w) * s.c + w * torch.tanh(v)
        return c - c.mean(-1, keepdim=True) + 0.1 * (w * v).sum(1, keepdim=True), c


class NormedPhases(Cell):
    """What a later phase multiplies was normalised, and so was the old state; a mask at the end."""

    gates = ("f", "g", "k")
    state = ("h", "c")
    vectors = {"gain": 1.0}

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any]:
        units = s.h.shape[-1:]
        f = torch.sigmoid(layer_norm(a.f + U.f @ s.h, units, p.gain, eps=0.05))
        v = rms_norm(f * s.c, units, p.gain, 0.1)
        c = f * s.c + (1 - f) * torch.tanh(a.g + U.g @ v + U.k @ layer_norm(s.c, units, eps=0.1))
        loud = torch.square(c).mean(-1, keepdim=True) > 0.3
        return torch.where(loud, torch.tanh(c), 0.5 * c) * f, c


class NormedInputs(Cell):
    """Numbers a row that are given meet numbers a row that are summed, forward and backward."""

    gates = ("h", "k")
    state = ("h",)
    inputs = {"gap": 1, "push": "hidden_size"}

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        mean = torch.tanh(a.h + U.h @ s.h + a.push).mean(-1, keepdim=True)
        kept = torch.exp(-torch.square(a.gap * mean + 0.3 * a.gap))
        new = torch.tanh(a.k + U.k @ s.h - a.push.sum(-1, keepdim=True) * a.gap * 0.1)
        return (kept * s.h + (1 - kept) * new,)


NORMED = [NormedApart(), Chosen(), NormedPhases(), NormedInputs()]
