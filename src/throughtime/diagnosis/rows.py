"""A few rows of a watched call, in the layer's own layout, ready to be run again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from throughtime.backends.call import packed_mask, unpack
from throughtime.diagnosis.alignment import alike
from throughtime.diagnosis.observe import tensors
from throughtime.diagnosis.watch import Given
from throughtime.errors import OptionError, ShapeError
from throughtime.layers.batch import Batch, States
from throughtime.layers.border import Border

ROWS = 8
"""How many rows of a training batch are looked at."""


@dataclass(frozen=True)
class Rows:
    """A few whole sequences of one call, time-major.

    Attributes:
        batch: what the layer read.
        d_outputs: (T, B, O), of the loss by the outputs; None where it does not read them.
        d_final: of the loss by the final states; None where it does not read them.
    """

    batch: Batch
    d_outputs: Tensor | None
    d_final: States | None


def rows_of(call: Given, rows: int | None = ROWS) -> Rows:
    """The first whole sequences of a call, at most so many; all rows for None.

    Of ragged batches the rows that are longest. What autocast rounded is in the weights' dtype.

    Raises:
        OptionError: the call has resets, or the layer is dilated.
        ShapeError: it has no rows or no steps.
    """
    batch, border = _entered(call, call.state)
    if batch.reset is not None or max(call.layer.dilations, default=1) > 1:
        raise OptionError(
            f"gradients by lag are measured without resets and dilation, which layer "
            f"{call.name or 'of the model'} has"
        )
    d_y, d_final = call.d_outputs, _entered_final(call)
    if batch.batch_sizes is not None:
        alive = packed_mask(batch.batch_sizes.to(batch.x.device))
        d_y = None if d_y is None else unpack(d_y, alive)
        batch = batch._replace(x=unpack(batch.x, alive), lengths=alive.sum(0), batch_sizes=None)
    elif d_y is not None:
        d_y = _time_major(d_y, call.layer.batch_first)
        if border.back is not None:  # rows that begin late were moved to step 0
            flat = d_y.flatten(0, 1)
            d_y = torch.zeros_like(flat).index_copy(0, border.back, flat).view_as(d_y)
    kept = _longest(batch)[:rows]
    T = batch.x.shape[0] if batch.lengths is None else int(batch.lengths[kept].max())
    inputs = batch.inputs and {n: v[:T, kept] for n, v in batch.inputs.items()}
    few = Batch(batch.x[:T, kept], _rows(batch.state, kept), inputs=inputs)
    return Rows(few, None if d_y is None else d_y[:T, kept].to(few.x), _rows(d_final, kept))


def _entered(call: Given, state: Any) -> tuple[Batch, Border]:
    """The batch in the layer's own layout and its weights' dtype, and the way back."""
    weight = next(call.layer.parameters(), None)
    x, given = call.x, call.given
    data = x.data if isinstance(x, PackedSequence) else x
    if not data.numel():
        raise ShapeError(
            f"layer {call.name or 'of the model'} is given no steps or rows, x of "
            f"{tuple(data.shape)}"
        )
    if weight is not None and weight.dtype != data.dtype:
        x, state, given = _cast((x, state, given), weight.dtype)
    return call.layer.enter(x, state, **given)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Tensors of real numbers in tuples, dicts and packed sequences, in another dtype."""
    if isinstance(value, PackedSequence):
        return value._replace(data=value.data.to(dtype))
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {n: _cast(v, dtype) for n, v in value.items()}
    return tuple(_cast(v, dtype) for v in value) if isinstance(value, tuple | list) else value


def _entered_final(call: Given) -> States | None:
    """The gradient by the final states in the layer's own layout."""
    if not call.d_final:
        return None
    found = (call.d_final.get(i, torch.zeros_like(v)) for i, v in enumerate(tensors(call.final)))
    return _entered(call, alike(call.final, found))[0].state


def _time_major(d: Tensor, batch_first: bool) -> Tensor:
    if d.dim() == 2:
        return d.unsqueeze(1)
    return d.transpose(0, 1) if batch_first else d


def _longest(batch: Batch) -> Tensor:
    """The numbers of the rows that have as many steps as any."""
    if batch.lengths is None:
        return torch.arange(batch.x.shape[1], device=batch.x.device)
    return torch.nonzero(batch.lengths == batch.lengths.max()).flatten()


def _rows(states: States | None, kept: Tensor) -> States | None:
    return states and tuple(tuple(v[:, kept].detach() for v in s) for s in states)
