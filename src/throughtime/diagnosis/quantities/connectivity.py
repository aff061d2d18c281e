"""Connectivity: how much the output at one step changes with the input at another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from throughtime.diagnosis.observe.steps import (
    check_passage,
    eval_mode,
    find_alive_steps,
    move_to_end,
)
from throughtime.errors import OptionError, ShapeError
from throughtime.layers.batch import Batch
from throughtime.layers.checks import check_size
from throughtime.layers.layer import Passage

SHOWN, ROWS = 8, 8
"""How many output steps are measured; on how many rows."""


@dataclass(frozen=True)
class Connectivity:
    """C(t, t') = ||d z(t') / d x_t||_2, z(t') a fixed random projection of the output at t'.

    Small where the gates that write are nearly shut, which harms no gradient through the states.

    Attributes:
        name: the module's name in the model; empty when it is the model.
        output_steps: the t' measured, from 0; of rows of several lengths every last step is
            T - 1, and shorter rows begin later.
        norms: for each t' of them C(t, t') over t = 0 to T - 1, geometric mean over the rows
            that have both steps; 0 where any row's is zero, as for inputs that come after it.
    """

    name: str
    output_steps: tuple[int, ...]
    norms: tuple[tuple[float, ...], ...]


@torch.enable_grad()
def connectivity(
    layer: Passage, batch: Batch, *, name: str = "", shown: int = SHOWN, rows: int = ROWS
) -> Connectivity:
    """Measure a module from its input to its output, by input gradients alone.

    Args:
        layer: a recurrent layer of this package; it is run in eval mode.
        batch: time-major and padded, in the layer's layout.
        name: of the module, for the result.
        shown: how many output steps, evenly spread, the last step among them.
        rows: how many rows of the batch.

    Raises:
        ShapeError: no step or no row.
        OptionError: `shown` or `rows` is no positive integer, or gradients are not finite.

    Source: Madsen, Visualizing Memorization in RNNs (Distill, 2019).
    """
    check_passage(layer)
    check_size("shown", shown)
    check_size("rows", rows)
    T = batch.x.shape[0]
    if not batch.x.numel():
        raise ShapeError(f"connectivity needs steps and rows, got x of {tuple(batch.x.shape)}")
    x, z = _run(layer, batch.first_rows(rows))
    alive = find_alive_steps(batch.first_rows(rows))
    z, inside = move_to_end(z, alive), move_to_end(alive, alive)
    steps = sorted({round((i + 1) * T / min(shown, T)) - 1 for i in range(min(shown, T))})
    norms = []
    for t in steps:
        (d_x,) = torch.autograd.grad(z[t].sum(), x, retain_graph=True)
        if not bool(d_x.isfinite().all()):
            raise OptionError(f"the gradient of the output at step {t} by the inputs is not finite")
        logs, both = move_to_end(d_x.double().norm(dim=-1).log(), alive), inside & inside[t]
        mean = torch.where(both, logs, 0).sum(1) / both.sum(1)
        norms.append(tuple(mean.exp().tolist()))
    return Connectivity(name, tuple(steps), tuple(norms))


def _run(layer: Passage, batch: Batch) -> tuple[Tensor, Tensor]:
    """The input as a leaf, and (T, B) the outputs along one drawn direction of length 1."""
    x = batch.x.detach().requires_grad_()
    with eval_mode(layer):
        y = layer.carry(batch._replace(x=x))[0]
        draw = torch.Generator().manual_seed(0)
        vector = torch.randn(y.shape[-1], dtype=torch.float64, generator=draw, device="cpu")
        return x, y @ (vector / vector.norm()).to(y)
