"""Bar 1: how much of a gradient reaches back 199 steps in a net that has learned nothing.

rho(k) = ||dL/ds_{T-k}|| / ||dL/ds_T|| with s the whole state and L a random weighting of h_T;
T = 200, H = 64, B = 16, inputs U(0, 1), float32. The figure is log10 rho(199), -inf for 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.memory.protocol import OURS
from throughtime.tasks import find
from throughtime.tasks.recipe import Recipe

T, H, B = 200, 64, 16


def reach_rows(seeds: list[int]) -> Iterator[dict[str, Any]]:
    """One row for each cell and start, every seed in it."""
    for cell, ours in OURS.items():
        for start in ["torch", "forget", ours] if cell != "rnn" else ["torch", ours]:
            reached = [_reach(cell, start, seed) for seed in seeds]
            print(cell, start, reached, flush=True)
            yield {"cell": cell, "start": start, "log10_rho_199": reached}


def _reach(cell: str, start: str, seed: int) -> float | str:
    kind = find("latch")
    torch.manual_seed(seed)
    made = Recipe(task="latch", cell=cell, start=start, hidden=H, length=T, directions=1)
    layer = kind(made).model().recurrent
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
