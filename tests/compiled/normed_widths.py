"""Cells of a user's own that compute over the units of rows of several widths."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import layer_norm, rms_norm, softmax

from throughtime import Cell


class NormedProjection(Cell):
    """The LSTM of speech recognisers: gates and cell state normalised, and a narrow output.

    Args:
        out: the width of the output.
    """

    gates = ("i", "f", "g", "o")
    state = {"h": "out", "c": "hidden_size"}
    vectors = {"gain": 1.1, "push": 0.1}
    products = {"give": ("h", "c")}

    def __init__(self, out: int) -> None:
        self.out = out

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any]:
        units = s.c.shape[-1:]
        i, f = torch.sigmoid(a.i + U.i @ s.h), torch.sigmoid(a.f + U.f @ s.h)
        g = torch.tanh(layer_norm(a.g + U.g @ s.h, units, p.gain, p.push, 0.05))
        o = torch.sigmoid(layer_norm(a.o + U.o @ s.h, units, None, p.push, 0.05))
        c = f * s.c + i * g
        return U.give @ (o * torch.tanh(layer_norm(c, units, p.gain, eps=0.1))), c


class NormedRank(Cell):
    """A matrix of low rank, normalised in between and behind, and a normalised output.

    Args:
        rank: units in between.
    """

    gates = ("z", "n")
    state = ("h",)
    products = {"down": ("rank", "h"), "up": ("h", "rank")}

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        low = U.down @ s.h
        low = torch.tanh(layer_norm(low, low.shape[-1:], eps=0.1)) + 0.1 * low
        z = torch.sigmoid(a.z + 0.5 * (U.z @ s.h))
        n = torch.tanh(a.n + rms_norm(U.up @ low, s.h.shape[-1:], eps=0.1))
        return ((1 - z) * n + z * s.h,)


class Addressed(Cell):
    """A softmax over the places of a memory of another width says where a step writes and reads.

    Args:
        places: the width of the memory.
    """

    gates = ("g", "k")
    state = {"h": "hidden_size", "m": "places", "w": "places"}
    products = {"ask": ("places", "h"), "put": ("places", "h"), "get": ("h", "m")}

    def __init__(self, places: int) -> None:
        self.places = places

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any, Any]:
        g = torch.tanh(a.g + U.g @ s.h)
        w = softmax(U.ask @ g + s.w, -1)
        m = (1 - w) * s.m + w * torch.tanh(U.put @ s.h)
        loud = torch.square(m).mean(-1, keepdim=True)
        h = g * torch.sigmoid(a.k) * loud + U.get @ (m - m.mean(-1, keepdim=True))
        return torch.tanh(h) + 0.1 * (w * m).sum(-1, keepdim=True), m, 0.5 * w


class NumbersBetween(Cell):
    """Numbers a row, given and summed, go from units of one width to those of others.

    Args:
        slots: the width of the memory.
    """

    gates = ("g",)
    state = {"h": "hidden_size", "m": "slots", "clock": 1}
    inputs = {"gap": 1, "push": "hidden_size"}
    products = {"put": ("m", "h"), "lift": ("m", 1), "tick": (1, "m"), "get": ("h", "m")}

    def __init__(self, slots: int) -> None:
        self.slots = slots

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any, Any]:
        kept = torch.exp(-torch.square(a.gap.mean(-1, keepdim=True)))
        mean = (a.push * s.h).mean(-1, keepdim=True)
        new = torch.tanh(U.put @ s.h + U.lift @ mean)
        m = kept * s.m + (1 - kept) * new * s.m.shape[-1] ** -0.5
        clock = torch.tanh(s.clock + U.tick @ m).sum(-1, keepdim=True)
        h = torch.tanh(a.g + U.g @ s.h + U.get @ m + torch.square(m).sum(-1, keepdim=True) * a.gap)
        return h, m, 0.5 * clock * softmax(s.clock, -1)


class Spread(Cell):
    """Products and states of one unit stand before all units of a row, and nothing is summed.

    Args:
        out: the width of the output.
    """

    gates = ("g", "k")
    state = {"h": "out", "c": "hidden_size", "one": 1}
    inputs = {"gap": 1}
    products = {"shut": (1, "h"), "tick": (1, "one"), "give": ("h", "c"), "fill": ("c", "one")}

    def __init__(self, out: int) -> None:
        self.out = out

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any, Any]:
        shut = torch.sigmoid(U.shut @ s.h + a.gap)
        one = torch.tanh(U.tick @ s.one + 0.3 * shut * a.gap)
        c = shut * s.c + (1 - shut) * torch.tanh(a.g + U.g @ s.h - s.one)
        h = 0.3 * s.h * one + U.give @ (c * torch.sigmoid(a.k + U.fill @ one)) * a.gap
        return h, c, 0.5 * one + 0.2 * s.one


class Pointed(Cell):
    """Sums over direct inputs, one as wide as a memory and one as wide as nothing else.

    Args:
        places: the width of the memory.
        told: numbers in what is told.
    """

    gates = ("g",)
    state = {"h": "hidden_size", "m": "places"}
    inputs = {"scores": "places", "told": "told", "gap": 1}
    products = {"put": ("m", "told"), "get": ("h", "m")}

    def __init__(self, places: int, told: int) -> None:
        self.places, self.told = places, told

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any]:
        w = softmax(a.scores + s.m, -1) * torch.sigmoid(a.gap)
        told = layer_norm(a.told, a.told.shape[-1:], eps=0.1)
        m = (1 - w) * s.m + w * torch.tanh(U.put @ told)
        loud = torch.sigmoid(torch.square(a.told).mean(-1, keepdim=True))
        return torch.tanh(a.g + U.g @ s.h + U.get @ m) * loud, m


class NormedGiven(Cell):
    """Direct inputs of several widths, one of which a matrix reads, in sums over their units.

    Args:
        slots: the width of the memory.
    """

    gates = ("g",)
    state = {"h": "hidden_size", "m": "slots"}
    inputs = {"v": "slots", "gap": 1, "z": 3}
    products = {"put": ("m", "h"), "get": ("h", "m"), "mix": ("m", 3)}

    def __init__(self, slots: int) -> None:
        self.slots = slots

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any]:
        v = layer_norm(a.v + U.put @ s.h, a.v.shape[-1:], eps=0.1)
        total = 0.1 * a.v.sum(-1, keepdim=True)
        m = torch.tanh(0.5 * s.m * torch.sigmoid(a.gap) + v * total + U.mix @ a.z)
        return torch.tanh(a.g + U.g @ s.h + U.get @ m + (a.v * m).mean(-1, keepdim=True)), m


NORMED_WIDTHS: list[Cell] = [
    NormedProjection(1), NormedProjection(4), NormedProjection(40), NormedRank(2), NormedRank(19),
    Addressed(3), Addressed(37), NumbersBetween(5), NumbersBetween(35),
    Spread(1), Spread(6), Spread(34), Pointed(3, 2), Pointed(35, 41), NormedGiven(4),
    NormedGiven(37),
]  # fmt: skip
