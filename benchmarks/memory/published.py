"""Bar 8 (a): MNIST-1D as its authors measure a GRU, with torch's layer and with ours.

A bidirectional GRU of 6 units each way, all 40 states side by side into a linear read-out: 5,134
parameters. Adam 1e-2, 100 sequences a batch, 6000 steps, no clipping; trained on the published
4000, the figure is the accuracy in percent on the published 1000 after the last step. Both layers
start from the same numbers and see the same batches. The bar: ours within 1 point of torch's, as
means over the seeds, and at least 90.0.

Source: Greydanus and Kobak, Scaling Down Deep Learning with MNIST-1D (2024), their notebook.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from throughtime import from_torch
from throughtime.tasks.published import MNIST1D
from throughtime.tasks.recipe import Recipe

STEPS, B, LR, HIDDEN = 6000, 100, 1e-2, 6
SEEDS = 3
LEAST, NEAR = 90.0, 1.0


class Tagger(nn.Module):
    """The authors' model, around a layer of six units each way."""

    def __init__(self) -> None:
        super().__init__()
        self.gru: nn.Module = nn.GRU(1, HIDDEN, bidirectional=True)
        self.readout = nn.Linear(40 * 2 * HIDDEN, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Ten scores a sequence of (40, B, 1)."""
        scores: Tensor = self.readout(self.gru(x)[0].transpose(0, 1).flatten(1))
        return scores


def rows(seeds: list[int]) -> Iterator[dict[str, Any]]:
    """One row a layer and seed: accuracy in percent after every 1000 steps."""
    for seed in seeds[:SEEDS]:
        for layer in ("torch", "throughtime"):
            begun = time.process_time()
            reached = accuracies(layer, seed)
            spent = round(time.process_time() - begun, 1)
            yield {"layer": layer, "seed": seed, "percent": reached, "cpu_seconds": spent}


def verdicts(found: list[dict[str, Any]]) -> dict[str, bool]:
    """By the means over the seeds after the last step."""
    torchs, ours = (
        statistics.mean(row["percent"][-1] for row in found if row["layer"] == layer)
        for layer in ("torch", "throughtime")
    )
    return {"bar 8 (a)": abs(ours - torchs) <= NEAR and ours >= LEAST}


def accuracies(layer: str, seed: int, steps: int = STEPS, every: int = 1000) -> list[float]:
    """Train one and look at the test split after every so many steps."""
    torch.manual_seed(seed)
    model = Tagger()
    if layer == "throughtime":
        model.gru = from_torch(model.gru)
    (x, y), (x_test, y_test) = _splits()
    optimizer = torch.optim.Adam(model.parameters(), LR)
    draw = torch.Generator().manual_seed(seed)
    found = []
    for step in range(1, steps + 1):
        some = torch.randint(len(y), (B,), generator=draw)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[:, some]), y[some]).backward()
        optimizer.step()
        if step % every == 0:
            with torch.no_grad():
                right = model(x_test).argmax(-1) == y_test
            found.append(round(100 * float(right.double().mean()), 1))
    return found


def _splits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The published 4000 to train on, and the published 1000."""
    task = MNIST1D(Recipe(task="mnist1d", directions=1))
    (x, y), (more_x, more_y) = task.split("train"), task.split("validation")
    return (torch.cat([x, more_x], 1), torch.cat([y, more_y])), task.split("test")
