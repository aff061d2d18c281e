"""Bar 1: how much of a gradient reaches back 199 steps in a net that has learned nothing.

rho(k) = ||dL/ds_{T-k}|| / ||dL/ds_T|| with s the whole state and L a random weighting of h_T;
T = 200, H = 64, B = 16, inputs U(0, 1), float32. The figure is log10 rho(199), -inf for 0. The bar:
gone from torch's start, -1.5 to 0.5 for LSTM and GRU from ours, at least -6 for the plain network
from orthogonal matrices and -0.5 with ReLU from the identity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from throughtime import Cell, Recurrent, cells, initialise

T, H, B = 200, 64, 16
GONE = -15.0
CELLS: dict[str, Callable[[], Cell]] = {
    "rnn": cells.Elman,
    "relu": partial(cells.Elman, "relu"),
    "lstm": cells.LSTM,
    "gru": cells.GRU,
}
STARTS: dict[str, dict[str, Any]] = {
    "torch": {"recurrence": "torch"},
    "forget": {"forget_bias": 1.0},
    "orthogonal": {"recurrence": "orthogonal"},
    "identity": {"recurrence": "identity"},
    "timescales": {"recurrence": "orthogonal", "timescales": (2, 3 * T)},
}
BOUNDS = {"rnn": (-6.0, 0.5), "relu": (-0.5, 0.5), "lstm": (-1.5, 0.5), "gru": (-1.5, 0.5)}
OURS = {"rnn": "orthogonal", "relu": "identity", "lstm": "timescales", "gru": "timescales"}


def rows(seeds: list[int]) -> Iterator[dict[str, Any]]:
    """One row for each cell and start, every seed in it."""
    for cell, ours in OURS.items():
        for start in ("torch", "forget", ours) if cell in ("lstm", "gru") else ("torch", ours):
            reached = [reach(cell, start, seed) for seed in seeds]
            yield {"cell": cell, "start": start, "log10_rho_199": reached}


def verdicts(found: list[dict[str, Any]]) -> dict[str, bool]:
    """Every seed of ours within its bounds, and none of torch's starts."""
    meets = []
    for row in found:
        low, high = BOUNDS[row["cell"]]
        reached = [-math.inf if v == "-inf" else v for v in row["log10_rho_199"]]
        if row["start"] == OURS[row["cell"]]:
            meets += [low <= v <= high for v in reached]
        elif row["start"] == "torch":
            meets += [v <= GONE for v in reached]
    return {"bar 1": all(meets)}


def reach(cell: str, start: str, seed: int) -> float | str:
    """log10 rho(199) of one fresh layer."""
    torch.manual_seed(seed)
    layer = initialise(Recurrent(CELLS[cell](), 1, H), **STARTS[start])
    states, state = [], None
    for x in torch.rand(T, 1, B, 1):
        state = layer(x, state)[1]
        flat = [s for layer_state in state for s in layer_state]
        for s in flat:
            s.retain_grad()
        states.append(flat)
    output = states[-1][0]
    (output * torch.randn_like(output)).sum().backward()
    first, last = (_norm(flat) for flat in (states[0], states[-1]))
    return round(math.log10(first / last), 2) if first else "-inf"


def _norm(flat: list[torch.Tensor]) -> float:
    return math.sqrt(sum(float(s.grad.square().sum()) for s in flat if s.grad is not None))
