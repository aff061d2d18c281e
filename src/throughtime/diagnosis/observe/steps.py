"""All steps of a layer side by side: the states before them, and the equations on all at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from throughtime.cell.contract import Cell, Names
from throughtime.cell.layout import WeightMatrix
from throughtime.diagnosis.observe.alignment import find_alive_steps
from throughtime.errors import OptionError, ShapeError
from throughtime.layers.batch import Batch
from throughtime.layers.layer import Passage
from throughtime.layers.options import merge_directions


@dataclass(frozen=True)
class Steps:
    """The N steps that all rows of a batch take in one layer and direction, as N rows.

    Attributes:
        layer: number of the layer.
        direction: 0 forward, 1 backward.
        dilation: how many steps lie between the states before and after.
        cell: the equations.
        x: (N, I), the layer's input.
        inputs: name -> (N, width), inputs multiplied by no matrix.
        before: for each of the cell's states (N, width), before the step.
        after: likewise, after it.
        weights: short name -> tensor.
    """

    layer: int
    direction: int
    dilation: int
    cell: Cell
    x: Tensor
    inputs: dict[str, Tensor]
    before: tuple[Tensor, ...]
    after: tuple[Tensor, ...]
    weights: dict[str, Tensor]

    def parts(self) -> tuple[Names, dict[str, WeightMatrix], Names]:
        """`a`, the matrices of `U` by name, and `p` of the cell's equations, for all rows."""
        layout, w = self.cell.layout, self.weights
        a = dict(self.inputs)
        if layout.input_gates:
            blocks = linear(self.x, w["weight_ih"], w.get("bias_ih")).chunk(
                len(layout.input_gates), -1
            )
            a.update(zip(layout.input_gates, blocks, strict=True))
        count = len(layout.recurrent_gates)
        U = {n: WeightMatrix(w[f"weight_{n}"]) for n in layout.products}
        for i, gate in enumerate(layout.recurrent_gates):
            bias = w["bias_hh"].chunk(count)[i] if "bias_hh" in w else None
            U[gate] = WeightMatrix(w["weight_hh"].chunk(count)[i], bias)
        return Names("a", a), U, Names("p", {n: w[n] for n in layout.vectors})

    def again(self, before: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The states after the steps when they start from `before`."""
        a, U, p = self.parts()
        state = dict(zip(self.cell.state_names, before, strict=True))
        return self.cell.step(a, Names("U", U), Names("s", state), p)


@torch.no_grad()
def list_steps(
    layer: Passage, batch: Batch, dtype: torch.dtype | None = torch.float64
) -> Iterator[Steps]:
    """Every layer and direction of one call, without the masks of training.

    Rows are ordered by step, within a step as in the batch.

    Args:
        layer: a recurrent layer of this package.
        batch: time-major and padded, in the layer's layout.
        dtype: of all tensors; None: the layer's.

    Raises:
        ShapeError: no step.
        OptionError: the batch has resets, or is not finite.
    """
    if batch.reset is not None or batch.batch_sizes is not None:
        raise OptionError("steps are looked at in padded batches without reset; cut at the resets")
    alive = find_alive_steps(batch)
    if not bool(alive.any()):
        raise ShapeError(
            f"a diagnosis needs at least one step, got {tuple(batch.x.shape[:2])} steps and rows"
        )
    if not bool(batch.x[alive].isfinite().all()):
        raise OptionError("a diagnosis needs finite inputs, got NaN or infinity")
    was_training = layer.training
    layer.eval()
    try:
        results = layer.carry(batch, record=True)[1]
        starts = layer.initial_state(batch.x.shape[1]) if batch.state is None else batch.state
    finally:
        layer.train(was_training)
    below = batch.x
    for number, result in enumerate(results):
        for d in range(layer.directions):
            after = tuple(v[:, :, d] for v in result.sequences)
            start = tuple(v[d] for v in starts[number])
            before = _find_before(after, start, alive, layer.dilations[number], d)
            yield _make_steps(layer, number, d, batch, alive, dtype, below, before, after)
        y = merge_directions(result.sequences[0], layer.options.merge, batch.lengths)
        below = y + below if layer.options.residual and number else y


def _find_before(
    after: tuple[Tensor, ...], start: tuple[Tensor, ...], alive: Tensor, dilation: int, d: int
) -> tuple[Tensor, ...]:
    """The states `dilation` steps earlier in the direction's order."""
    states = []
    for v, first in zip(after, start, strict=True):
        v = torch.where(alive.unsqueeze(-1), v, first)  # the backward direction starts there
        ends = first.expand(min(dilation, len(v)), *first.shape)
        states.append(torch.cat((v[dilation:], ends) if d else (ends, v[: len(v) - len(ends)])))
    return tuple(states)


def _make_steps(
    layer: Passage, number: int, d: int, batch: Batch, alive: Tensor, dtype: torch.dtype | None,
    below: Tensor, before: tuple[Tensor, ...], after: tuple[Tensor, ...],
) -> Steps:  # fmt: skip
    weights = {n: v.detach() for n, v in layer.weights(number, d).items()}
    dtype = dtype or next(iter(weights.values()), below).dtype
    return Steps(
        layer=number,
        direction=d,
        dilation=layer.dilations[number],
        cell=layer.cell,
        x=below[alive].to(dtype),
        inputs={n: v[alive].to(dtype) for n, v in (batch.inputs or {}).items()},
        before=tuple(v[alive].to(dtype) for v in before),
        after=tuple(v[alive].to(dtype) for v in after),
        weights={n: v.to(dtype) for n, v in weights.items()},
    )
