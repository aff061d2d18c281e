"""Cells of a user's own with direct inputs, which no matrix multiplies."""

from __future__ import annotations

from typing import Any

import torch

from throughtime import Cell


class Decaying(Cell):
    """A number a row and one a unit: the old state fades with the time that has passed."""

    gates = ("z", "n")
    state = ("h",)
    vectors = {"rate": 0.5}
    inputs = {"gap": 1, "gain": "hidden_size"}

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        old = torch.exp(-p.rate * p.rate * torch.square(a.gap)) * s.h
        z = torch.sigmoid(a.z + U.z @ s.h)
        return ((1 - z) * torch.tanh(a.n + U.n @ s.h + a.gain) + z * old,)


class Phased(Cell):
    """Two phases, the second of what a direct input scales; numbers a row meet before units do."""

    gates = ("f", "g", "k")
    state = ("h", "c")
    inputs = {"gain": "hidden_size", "one": 1, "two": 1}

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any]:
        f = torch.sigmoid(a.f + U.f @ s.h + 0.5 * a.one)
        share = torch.sigmoid(a.one * a.two - 0.2 * a.one)
        v = torch.tanh(a.gain) * f * s.c
        c = share * s.c + (1 - share) * torch.tanh(a.g + U.g @ v + U.k @ s.c)
        return torch.tanh(c) * f, c


class Multiplied(Cell):
    """A direct input is itself the vector that is multiplied, and adds to nothing else."""

    gates = ("g", "k")
    state = ("h",)
    inputs = {"v": "hidden_size"}

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        return (torch.tanh(a.g + U.g @ a.v + 0.3 * (U.k @ s.h)),)


class Only(Cell):
    """Hears nothing but direct inputs; one of them only chooses, and so has no gradient."""

    gates = ("h",)
    state = ("h",)
    inputs = {"choice": 1, "push": "hidden_size"}

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        v = torch.tanh(U.h @ s.h + a.push)
        return (torch.where(a.choice > 0.1, v, 0.5 * v + 0.1 * s.h),)


class Turning(Cell):
    """A plane is turned by what it hears, and driven by angles of ten thousand million turns."""

    gates = ("w",)
    state = ("h", "k")
    inputs = {"turns": "hidden_size"}

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any]:
        w, far = a.w + U.w @ s.h, (a.turns * 2.0**36).detach()
        h = 0.8 * (torch.cos(w) * s.h - torch.sin(w) * s.k) + 0.3 * a.turns * torch.sin(far)
        return h, 0.8 * (torch.sin(w) * s.h + torch.cos(w) * s.k) + 0.2 * torch.cos(far) * s.h


FED: list[Cell] = [Decaying(), Phased(), Multiplied(), Only(), Turning()]
