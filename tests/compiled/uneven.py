"""Cells of a user's own whose products and states have widths of their own, each odd in one way."""

from __future__ import annotations

from typing import Any

import torch

from throughtime import Cell


class LowRank(Cell):
    """Every gate's matrix is a product of two; what h becomes in between is computed once.

    Args:
        rank: units in between.
    """

    gates = ("z", "n")
    state = ("h",)
    products = {"down": ("rank", "h"), "z_up": ("h", "rank"), "n_up": ("h", "rank")}

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        low = U.down @ s.h
        z = torch.sigmoid(a.z + 0.5 * (U.z_up @ low))  # halved: random weights would be chaos
        n = torch.tanh(a.n + 0.5 * torch.sigmoid(z) * (U.n_up @ torch.tanh(low)))
        return ((1 - z) * n + z * s.h,)


class Beside(Cell):
    """A memory of a fixed width beside the output, read by nothing else; they share a constant."""

    gates = ("g",)
    state = {"h": "hidden_size", "m": 5}
    products = {"write": ("m", "h"), "keep": (5, 5)}

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any]:
        m = torch.tanh(U.write @ s.h) * 0.7 + 0.5 * torch.sigmoid(U.keep @ s.m) * s.m
        return 0.5 * s.h + torch.tanh(a.g + U.g @ s.h), m


class Square(Cell):
    """A product as wide as the gates, in one phase with them, and one that nobody adds to x."""

    gates = ("f", "g")
    state = ("h",)
    vectors = {"gain": 0.4}
    products = {"more": ("h", "h"), "again": ("hidden_size", "hidden_size")}

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        f = torch.sigmoid(a.f + U.f @ s.h) * torch.tanh(U.more @ s.h)
        return (torch.tanh(a.g + p.gain * (U.again @ f)) + 0.3 * f * s.h,)


class Memories(Cell):
    """The output and two memories of other widths, one of a single unit, with a number a row.

    Args:
        out: the width of the output.
    """

    gates = ("i", "o")
    state = {"h": "out", "c": "hidden_size", "clock": 1}
    vectors = {"decay": 0.8}
    inputs = {"gap": 1}
    products = {"give": ("h", "c"), "hold": ("out", "out"), "tick": (1, "h"), "to": ("c", "clock")}

    def __init__(self, out: int) -> None:
        self.out = out

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any, Any]:
        i, o = torch.sigmoid(a.i + U.i @ s.h + 0.3 * a.gap), torch.sigmoid(a.o + U.o @ s.h)
        clock = torch.tanh(0.6 * s.clock + U.tick @ s.h)
        c = p.decay * s.c * torch.sigmoid(a.gap) + i * torch.tanh(U.to @ clock)
        h = torch.tanh(U.give @ (o * c)) + 0.3 * torch.sigmoid(U.hold @ s.h) * s.h
        return h, c, clock


class Lengths(Cell):
    """Knows how wide its vectors are, and hands on a memory of another width."""

    gates = ("g",)
    state = {"h": "hidden_size", "m": "slots", "old": "slots"}
    products = {"put": ("m", "h"), "get": ("h", "m")}

    def __init__(self, slots: int) -> None:
        self.slots = slots

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any, Any]:
        h = torch.tanh(a.g / s.h.shape[-1] + U.get @ s.m)
        return h, torch.tanh(s.old + (U.put @ h) / s.m.shape[-1]), s.m


class Told(Cell):
    """Direct inputs as wide as a memory, and as wide as nothing but the matrix that reads one.

    Args:
        slots: of the memory.
        told: numbers in what is told.
    """

    gates = ("g",)
    state = {"h": "hidden_size", "m": "slots"}
    products = {"hear": ("h", "told"), "get": ("h", "m"), "put": ("m", "h")}
    inputs = {"told": "told", "write": "m", "gap": 1, "shut": "slots"}

    def __init__(self, slots: int, told: int) -> None:
        self.slots, self.told = slots, told

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any]:
        heard = U.hear @ torch.tanh(a.told)
        h = torch.tanh(a.g + U.g @ s.h + a.gap * heard + U.get @ (a.write * s.m))
        keep = torch.sigmoid(a.shut)
        return h, keep * s.m + (1 - keep) * torch.tanh(U.put @ h + a.write)


class Again(Cell):
    """The same matrices for what comes one after the other, with bias and without, even crosswise.

    Args:
        rank: units of a low-rank part.
    """

    gates = ("f", "g")
    state = ("h", "c")
    products = {"down": ("rank", "h"), "up": ("h", "rank"), "g_2": ("h", "h")}

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any]:
        first = torch.tanh(a.g + U.g @ s.h)
        second = torch.tanh(U.g @ first + 0.5 * (U.g @ s.c))
        f = torch.sigmoid(a.f + U.f @ s.h) * torch.sigmoid(U.f @ second + U.g_2 @ s.c)
        low = U.up @ (U.down @ s.c)
        c = f * s.c + (1 - f) * torch.tanh(U.up @ torch.tanh(U.down @ second) + low)
        return torch.tanh(c) * f, 0.7 * c


UNEVEN: list[Cell] = [
    LowRank(1), LowRank(6), LowRank(35), Beside(), Square(), Memories(1), Memories(4),
    Memories(40), Lengths(3), Told(4, 1), Told(40, 7), Told(1, 50), Again(3), Again(40),
]  # fmt: skip
