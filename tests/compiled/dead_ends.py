"""Cells whose gates reach no new state: a program, since memory written past its end kills it.

python -m tests.compiled.dead_ends
"""

from __future__ import annotations

from typing import Any

import torch

from tests.compiled.calls import Sizes, check_call, random_call
from throughtime import Cell
from throughtime.backends import cpu


class DeadGate(Cell):
    """a.g is read and reaches nothing."""

    gates = ("h", "g")
    state = ("h",)

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        _ = a.g
        return (torch.tanh(a.h + U.h @ s.h),)


class DeadProduct(Cell):
    """A whole gate, the first one, is computed for nothing."""

    gates = ("g", "h")
    state = ("h",)

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        _ = torch.sigmoid(a.g + U.g @ s.h)
        return (torch.tanh(a.h + U.h @ s.h),)


class Detached(Cell):
    """A gate that works and learns nothing."""

    gates = ("g", "h")
    state = ("h",)

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        return (torch.tanh(a.h + U.h @ s.h) * torch.sigmoid(a.g + U.g @ s.h).detach(),)


class DeadVector(Cell):
    """One of two vectors is read and reaches nothing."""

    gates = ("h",)
    state = ("h",)
    vectors = {"p": 0.1, "q": 0.2}

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        _ = 2 * p.p
        return (torch.tanh(a.h + U.h @ s.h) * p.q,)


class DeadEnds(Cell):
    """A state that nothing is made of, and a constant one."""

    gates = ("h", "g")
    state = ("h", "c", "zero")

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any, Any]:
        h = torch.tanh(a.h + U.h @ s.h)
        return h, torch.sigmoid(a.g + U.g @ s.h), torch.zeros_like(h)


DEAD: list[Cell] = [DeadGate(), DeadProduct(), Detached(), DeadVector(), DeadEnds()]

if __name__ == "__main__":
    torch.manual_seed(1)
    for cell in DEAD:
        for H in (3, 26, 100):
            print(cell, H, flush=True)
            if cpu.refuses_cell(cell, torch.empty(0)) is None:
                for form in ("plain", "state", "no_bias", "packed"):
                    check_call(random_call(cell, torch.float64, Sizes(4, 3, 5, H, 2), form))
    print("all right")
