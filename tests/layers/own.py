"""Cells of a user's own, and their formulas written out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from throughtime import Cell


class Decaying(Cell):
    """A GRU-like unit whose state decays with the time since the last step, and a mask of units."""

    gates = ("z", "n")
    state = ("h",)
    vectors = {"rate": 0.5}
    inputs = {"dt": 1, "gain": "hidden_size"}

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        old = torch.exp(-p.rate * p.rate * a.dt) * s.h
        z = torch.sigmoid(a.z + U.z @ old)
        return ((1 - z) * torch.tanh(a.n + U.n @ (a.gain * old)) + z * old,)


def decaying(x: Tensor, s: Any, w: Any, mask: Any, given: Any) -> Any:
    H = len(s[0])
    old = torch.exp(-(w["rate"] ** 2) * given["dt"]) * s[0]
    a, U, b = w["weight_ih"] @ x + w["bias_ih"], w["weight_hh"], w["bias_hh"]
    z = torch.sigmoid(a[:H] + U[:H] @ (mask * old) + b[:H])
    n = torch.tanh(a[H:] + U[H:] @ (mask * (given["gain"] * old)) + b[H:])
    return ((1 - z) * n + z * old,)


class LowRank(Cell):
    """h = tanh(W x + b + A (B h)) with A B of low rank, beside a slow trace of the factor's width.

    Args:
        rank: width of B h.
    """

    gates = ("h",)
    state = {"h": "hidden_size", "slow": "rank"}
    products = {"A": ("hidden_size", "rank"), "B": ("rank", "hidden_size"), "C": (3, "rank"),
                "D": ("hidden_size", 3)}  # fmt: skip

    def __init__(self, rank: int = 2) -> None:
        self.rank = rank

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any]:
        narrow = U.B @ s.h
        h = torch.tanh(a.h + U.A @ narrow + U.D @ torch.relu(U.C @ s.slow))
        return h, 0.9 * s.slow + narrow


def low_rank(x: Tensor, s: Any, w: Any, mask: Any, given: Any) -> Any:
    h, slow = s
    narrow = w["weight_B"] @ h
    v = w["weight_ih"] @ x + w["bias_ih"] + w["weight_A"] @ narrow
    return torch.tanh(v + w["weight_D"] @ torch.relu(w["weight_C"] @ slow)), 0.9 * slow + narrow
