"""Rows of several lengths in one batch: which steps are theirs, and how to align them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from throughtime.layers.batch import Batch
from throughtime.layers.layer import Passage


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
