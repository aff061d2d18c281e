"""The steps of rows of several lengths: which are a row's own, and all of a layer side by side."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from throughtime.backends.call import packed_mask, unpack
from throughtime.cell.contract import Cell, Names
from throughtime.cell.layout import WeightMatrix
from throughtime.errors import OptionError, ShapeError
from throughtime.layers.batch import Batch
from throughtime.layers.layer import Passage
from throughtime.layers.options import merge_directions


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Inside, the module is in eval mode; afterwards in the mode it had."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def pad_packed(batch: Batch) -> Batch:
    """A packed batch, which has no direct inputs, padded; another as it is."""
    if batch.batch_sizes is None:
        return batch
    alive = packed_mask(batch.batch_sizes.to(batch.x.device))
    return batch._replace(x=unpack(batch.x, alive), lengths=alive.sum(0), batch_sizes=None)


def find_alive_steps(batch: Batch) -> Tensor:
    """(T, B) bool: step t lies inside row b of a padded batch."""
    T, B = batch.x.shape[:2]
    steps = torch.arange(T, device=batch.x.device).unsqueeze(1)
    if batch.lengths is None:
        return (steps >= 0).expand(T, B)
    return steps < batch.lengths.to(batch.x.device)


def move_to_front(v: Tensor, alive: Tensor) -> Tensor:
    """(T, B, ...) with each row's steps first."""
    if bool(alive.all()):
        return v
    return reorder(v, (~alive).to(torch.int8).argsort(dim=0, stable=True))


def move_to_end(v: Tensor, alive: Tensor) -> Tensor:
    """(T, B, ...) with each row's steps last, and zeros before them."""
    if bool(alive.all()):
        return v
    order = alive.to(torch.int8).argsort(dim=0, stable=True)
    inside = reorder(alive, order).view(*order.shape, *[1] * (v.dim() - 2))
    return reorder(v, order).masked_fill(~inside, 0)


def group_by_length(batch: Batch, rows: int | None) -> Iterator[tuple[int, Tensor]]:
    """Each length and the numbers of its rows, for the `rows` longest of a padded batch."""
    T, B = batch.x.shape[:2]
    if batch.lengths is None:
        yield T, torch.arange(B, device=batch.x.device)[:rows]
        return
    lengths = batch.lengths.to(batch.x.device)
    first = lengths.argsort(descending=True, stable=True)[:rows]
    for n in lengths[first].unique().flip(0).tolist():
        if n:
            yield n, first[lengths[first] == n]


def take_rows(batch: Batch, steps: int, rows: Tensor) -> Batch:
    """The first steps of some rows of a padded batch."""
    return Batch(
        x=batch.x[:steps, rows],
        state=batch.state and tuple(tuple(v[:, rows] for v in s) for s in batch.state),
        inputs=batch.inputs and {n: v[:steps, rows] for n, v in batch.inputs.items()},
    )


def reorder(v: Tensor, order: Tensor) -> Tensor:
    """(T, B, ...) with each row's steps in an order (T, B)."""
    where = order.view(*order.shape, *[1] * (v.dim() - 2)).expand_as(v)
    return v.gather(0, where)


def join_batches(parts: list[Batch], layer: Passage) -> Batch:
    """Batches of one module as one, padded to the longest."""
    T = max(len(p.x) for p in parts)

    def long(v: Tensor) -> Tensor:
        return pad(v, [0, 0] * (v.dim() - 1) + [0, T - len(v)])

    lengths = torch.cat([
        torch.full((p.x.shape[1],), len(p.x), device=p.x.device) if p.lengths is None else p.lengths
        for p in parts
    ])  # fmt: skip
    inputs = parts[0].inputs and {
        n: torch.cat([long((p.inputs or {})[n]) for p in parts], 1) for n in parts[0].inputs
    }
    states = [
        layer.initial_state(p.x.shape[1]) if p.state is None else p.state for p in parts
    ]  # fmt: skip
    return Batch(
        x=torch.cat([long(p.x) for p in parts], 1),
        state=tuple(
            tuple(torch.cat(v, 1) for v in zip(*layers, strict=True))
            for layers in zip(*states, strict=True)
        ),
        lengths=None if bool((lengths == T).all()) else lengths,
        inputs=inputs,
    )


def restructure(form: Any, values: Any) -> Any:
    """The values in the form of a tuple of tuples."""
    if isinstance(form, Tensor):
        return next(values)
    return tuple(restructure(part, values) for part in form)


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


def check_passage(layer: object) -> None:
    """Raises TypeError where a layer is none of this package."""
    if not isinstance(layer, Passage):
        kind = f"{type(layer).__module__}.{type(layer).__qualname__}"
        raise TypeError(
            f"layer must be a recurrent layer of throughtime, got a {kind}; convert one of "
            "torch.nn with throughtime.from_torch"
        )


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
        TypeError: the layer is none of this package.
        ShapeError: no step.
        OptionError: the batch has resets, or is not finite.
    """
    check_passage(layer)
    if batch.reset is not None or batch.batch_sizes is not None:
        raise OptionError("steps are looked at in padded batches without reset; cut at the resets")
    alive = find_alive_steps(batch)
    if not bool(alive.any()):
        raise ShapeError(
            f"a diagnosis needs at least one step, got {tuple(batch.x.shape[:2])} steps and rows"
        )
    if not bool(batch.x[alive].isfinite().all()):
        raise OptionError("a diagnosis needs finite inputs, got NaN or infinity")
    with eval_mode(layer):
        results = layer.carry(batch, record=True)[1]
        starts = layer.initial_state(batch.x.shape[1]) if batch.state is None else batch.state
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
