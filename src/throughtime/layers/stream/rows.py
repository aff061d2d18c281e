"""Rows of a stream: chosen by number or as a mask, read from its state and written back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from throughtime.backends.cpu.stream.memory import Array
from throughtime.errors import ShapeError
from throughtime.layers.batch import States
from throughtime.layers.checks import check_state
from throughtime.layers.layer import Passage


def number_rows(rows: Any, batch: int) -> Array:
    """Rows by number or as a bool mask, each at most once, as numbers in their order."""
    chosen = np.asarray(rows)
    if chosen.dtype.kind in "iu" and chosen.ndim == 1:
        numbers = chosen.astype(np.int64, copy=False)
        taken = np.zeros(batch, bool)
        if not len(numbers) or (numbers.min() >= 0 and numbers.max() < batch):
            taken[numbers] = True
            if np.count_nonzero(taken) == len(numbers):
                return numbers
            firsts = np.unique(numbers, return_index=True)[1]
            wrong = np.delete(numbers, firsts)[0]
            raise ShapeError(f"rows must differ, got {wrong} twice")
    return mask_rows(rows, batch).nonzero().reshape(-1).numpy()


def mask_rows(rows: Any, batch: int) -> Tensor:
    """Rows by number or as a bool mask, as a bool mask (B,)."""
    numbers = torch.as_tensor(rows, device="cpu")
    if numbers.dtype == torch.bool:
        if numbers.shape != (batch,):
            raise ShapeError(f"rows as a bool mask must be ({batch},), got {tuple(numbers.shape)}")
        return numbers
    numbers = numbers.to(torch.int64) if numbers.numel() == 0 else numbers
    if numbers.is_floating_point() or numbers.is_complex():
        raise TypeError(f"rows must be numbers of rows or a bool mask, got {numbers.dtype}")
    wrong = numbers[(numbers < 0) | (numbers >= batch)]
    if wrong.numel():
        raise ShapeError(f"rows must be from 0 to {batch - 1}, got {int(wrong[0])}")
    mask = torch.zeros(batch, dtype=torch.bool, device="cpu")
    return mask.index_fill_(0, numbers.reshape(-1).long(), True)


def check_row(row: Any, batch: int) -> int:
    """The number of one row."""
    if isinstance(row, bool) or not isinstance(row, int | np.integer):
        raise TypeError(f"row must be the number of a row, got {row!r}")
    if not 0 <= row < batch:
        raise ShapeError(f"row must be from 0 to {batch - 1}, got {row}")
    return int(row)


def select_rows(state: States, rows: Any) -> States:
    """The state of some rows, or of all (None)."""
    if rows is None:
        return state
    return tuple(tuple(v[:, rows] for v in s) for s in state)


def replace_rows(state: States, rows: Any, new: States) -> States:
    """The state with some rows replaced."""
    if rows is None:
        return new
    states = tuple(tuple(v.clone() for v in s) for s in state)
    for s, part in zip(states, new, strict=True):
        for v, w in zip(s, part, strict=True):
            v[:, rows] = w
    return states


def check_states(layers: list[Passage], state: Any, rows: int) -> list[States]:
    """Copies of states that the layers can continue from.

    Raises:
        ShapeError, TypeError: the state of a layer does not fit.
    """
    if not isinstance(state, tuple | list) or len(state) != len(layers):
        got = len(state) if isinstance(state, tuple | list) else type(state).__name__
        raise ShapeError(
            f"state must hold one entry for each of {len(layers)} recurrent layers, got {got}"
        )
    return [_check_state(layer, value, rows) for layer, value in zip(layers, state, strict=True)]


def _check_state(layer: Passage, state: Any, rows: int) -> States:
    states = check_state(layer, state, rows, True)
    if states is None:
        raise ShapeError("the state of a layer of this stream must be its tensors, got None")
    return tuple(tuple(v.detach().clone() for v in s) for s in states)
