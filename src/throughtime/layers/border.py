"""The border of a layer: the only place where the user's layout becomes time-major."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from throughtime.backends.call import packed_mask, unpack
from throughtime.errors import OptionError, ShapeError
from throughtime.layers.batch import Batch, States
from throughtime.layers.checks import (
    check_inputs,
    check_lengths,
    check_packed,
    check_reset,
    check_starts,
    check_state,
    check_x,
)
from throughtime.layers.layer import Passage


class Border(NamedTuple):
    """The layout of the user's x, in which the results are returned.

    Attributes:
        batch_first: x is (B, T, I).
        batched: x has a batch dimension.
        packed: x, if it is a PackedSequence.
        alive: (T, B) the steps of a packed batch that had to be padded.
        back: (T B,) where `align` has moved each step and row.
    """

    batch_first: bool
    batched: bool = True
    packed: PackedSequence | None = None
    alive: Tensor | None = None
    back: Tensor | None = None

    def output(self, y: Tensor) -> Any:
        """Outputs in the layout of the user's x."""
        if self.back is not None:
            y = _reorder(y, self.back)
        if self.packed is not None:
            data = y if self.alive is None else y[self.alive]
            return PackedSequence(
                data, self.packed.batch_sizes, self.packed.sorted_indices,
                self.packed.unsorted_indices,
            )  # fmt: skip
        if not self.batched:
            return y.squeeze(1)
        return y.transpose(0, 1) if self.batch_first else y

    def state(self, v: Tensor) -> Tensor:
        """A state (D, B, width) in the order and shape of the user's rows."""
        if not self.batched:
            return v.squeeze(1)
        if self.packed is not None and self.packed.unsorted_indices is not None:
            return v.index_select(1, self.packed.unsorted_indices)
        return v


def enter(
    layer: Passage, x: Any, state: States | None, *, batch_first: bool,
    lengths: Any = None, starts: Any = None, reset: Any = None,
    inputs: Mapping[str, Tensor] | None = None, checked: bool = False,
) -> tuple[Batch, Border]:  # fmt: skip
    """The batch in the layers' layout, and the way back; `checked` skips the checks of x."""
    if isinstance(x, PackedSequence):
        _check_packed_alone(lengths, starts, inputs)
        return _enter_packed(layer, x, state, reset, inputs)
    if not checked:
        check_x(layer, x)
        check_inputs(layer, inputs, x)
    border = Border(batch_first, x.dim() == 3)
    layout = x.shape[:-1]
    x = _time_major(x, border)
    T, B = x.shape[0], x.shape[1]
    if not checked:
        state = check_state(layer, state, B, border.batched)
    if lengths is not None:
        lengths = check_lengths(lengths, T, B, x.device)
    if reset is not None:
        reset = check_reset(reset, tuple(layout))
        reset = _time_major(reset, border).to(x.device)
    if inputs is not None:
        inputs = {n: _time_major(v, border) for n, v in inputs.items()}
    batch = Batch(x, state, lengths, reset, None, inputs)
    if starts is None:
        return batch, border
    return align(batch, border, check_starts(starts, lengths, T, B, x.device))


def align(batch: Batch, border: Border, starts: Tensor) -> tuple[Batch, Border]:
    """A padded batch whose rows begin at `starts`, moved so that they begin at step 0."""
    T, B = batch.x.shape[:2]
    if not T:
        return batch, border
    steps = torch.arange(T, device=batch.x.device).unsqueeze(1)
    rows = torch.arange(B, device=batch.x.device)
    order, back = (((steps + s) % T * B + rows).flatten() for s in (starts, -starts))
    aligned = batch._replace(
        x=_reorder(batch.x, order),
        lengths=(T if batch.lengths is None else batch.lengths) - starts,
        reset=None if batch.reset is None else _reorder(batch.reset, order),
        inputs=batch.inputs and {n: _reorder(v, order) for n, v in batch.inputs.items()},
    )
    return aligned, border._replace(back=back)


def _reorder(v: Tensor, order: Tensor) -> Tensor:
    """(T, B, ...) with each row's steps in another order."""
    moved: Tensor = v.flatten(0, 1).index_select(0, order).unflatten(0, v.shape[:2])
    return moved


def _time_major(v: Tensor, border: Border) -> Tensor:
    if not border.batched:
        return v.unsqueeze(1)
    return v.transpose(0, 1) if border.batch_first else v


def _check_packed_alone(lengths: Any, starts: Any, inputs: Any) -> None:
    if lengths is not None or starts is not None or inputs:
        raise OptionError(
            "a PackedSequence holds its own lengths and no direct inputs, so lengths, starts and "
            "inputs go with a padded x only; unpack it with torch.nn.utils.rnn.pad_packed_sequence"
        )


def _enter_packed(
    layer: Passage, x: PackedSequence, state: States | None, reset: Any, inputs: Any
) -> tuple[Batch, Border]:
    check_x(layer, x.data, packed=True)
    check_inputs(layer, inputs, x.data)
    sizes = check_packed(x)
    B, T = int(sizes[0]), len(sizes)
    state = check_state(layer, state, B, True)
    if state is not None and x.sorted_indices is not None:
        state = tuple(tuple(v.index_select(1, x.sorted_indices) for v in s) for s in state)
    if reset is None and set(layer.dilations) == {1}:
        return Batch(x.data, state, None, None, sizes), Border(False, packed=x)
    if reset is not None:
        reset = check_reset(reset, (T, B)).to(x.data.device)
        reset = reset if x.sorted_indices is None else reset.index_select(1, x.sorted_indices)
    alive = packed_mask(sizes.to(x.data.device))
    padded = unpack(x.data, alive)
    return Batch(padded, state, alive.sum(0), reset), Border(False, packed=x, alive=alive)


def enter_norms(
    layer: Passage, norms: Sequence[Tensor], batch: Batch, border: Border
) -> tuple[Tensor, ...]:
    """Time-major views (T, B, D, states) of a tensor for each layer, each checked."""
    if border.packed is not None or border.back is not None or set(layer.dilations) != {1}:
        raise OptionError(
            "gradient_norms go with a padded x and no dilation, and with no starts; unpack a "
            "PackedSequence with torch.nn.utils.rnn.pad_packed_sequence and give its lengths; pad "
            "on the right instead of giving starts"
        )
    count = len(layer.hidden_sizes)
    if not isinstance(norms, Sequence) or len(norms) != count:
        got = len(norms) if isinstance(norms, Sequence) else type(norms).__name__
        raise ShapeError(f"gradient_norms must hold {count} tensors, one a layer, got {got}")
    return tuple(_norms_time_major(layer, v, batch, border) for v in norms)


def _norms_time_major(layer: Passage, v: Any, batch: Batch, border: Border) -> Tensor:
    T, B = batch.x.shape[:2]
    rows = ((B, T) if border.batch_first else (T, B)) if border.batched else (T,)
    shape = (*rows, layer.directions, len(layer.cell.state_names))
    if not isinstance(v, Tensor) or tuple(v.shape) != shape:
        got = tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__
        raise ShapeError(f"gradient_norms must each be {shape}, x's rows and steps, got {got}")
    if v.requires_grad or v.dtype != batch.x.dtype or v.device != batch.x.device:
        raise OptionError(
            f"gradient_norms must be {batch.x.dtype} on {batch.x.device} as x, without gradient"
        )
    return _time_major(v, border)
