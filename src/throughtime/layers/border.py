"""The border of a layer: here the user's layout becomes time-major, and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from throughtime.backends.call import packed_mask, unpack
from throughtime.errors import OptionError
from throughtime.layers.batch import Batch, States
from throughtime.layers.checks import (
    check_inputs,
    check_lengths,
    check_reset,
    check_state,
    check_x,
)
from throughtime.layers.passage import Passage


class Border(NamedTuple):
    """How a batch came in, so that its results go out the same way.

    Attributes:
        batch_first: x came as (B, T, I).
        batched: x came with a batch dimension.
        packed: the PackedSequence x came as.
        alive: (T, B) the steps of a packed batch that had to be padded.
    """

    batch_first: bool
    batched: bool = True
    packed: PackedSequence | None = None
    alive: Tensor | None = None

    def output(self, y: Tensor, time: int = 0) -> Any:
        """Outputs in the layout x came in; `time` is the dimension that holds the steps."""
        if self.packed is not None:
            data = y if self.alive is None else y[self.alive]
            return PackedSequence(
                data, self.packed.batch_sizes, self.packed.sorted_indices,
                self.packed.unsorted_indices,
            )  # fmt: skip
        if not self.batched:
            return y.squeeze(time + 1)
        return y.transpose(time, time + 1) if self.batch_first else y

    def state(self, v: Tensor) -> Tensor:
        """A state (D, B, width) in the order and shape of the user's rows."""
        if not self.batched:
            return v.squeeze(1)
        if self.packed is not None and self.packed.unsorted_indices is not None:
            return v.index_select(1, self.packed.unsorted_indices)
        return v


def enter(
    layer: Passage, x: Any, state: States | None, *, batch_first: bool,
    lengths: Any = None, reset: Any = None, inputs: Mapping[str, Tensor] | None = None,
    checked: bool = False,
) -> tuple[Batch, Border]:  # fmt: skip
    """The batch in the layers' own layout, and the way back; `checked` skips what is known."""
    if isinstance(x, PackedSequence):
        return _enter_packed(layer, x, state, lengths, reset, inputs)
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
    return Batch(x, state, lengths, reset, None, inputs), border


def _time_major(v: Tensor, border: Border) -> Tensor:
    if not border.batched:
        return v.unsqueeze(1)
    return v.transpose(0, 1) if border.batch_first else v


def _enter_packed(
    layer: Passage, x: PackedSequence, state: States | None, lengths: Any, reset: Any,
    inputs: Any,
) -> tuple[Batch, Border]:  # fmt: skip
    if lengths is not None or inputs:
        raise OptionError(
            "a PackedSequence holds its own lengths and no direct inputs, so lengths and inputs "
            "go with a padded x only; unpack it with torch.nn.utils.rnn.pad_packed_sequence"
        )
    check_x(layer, x.data, packed=True)
    check_inputs(layer, inputs, x.data)
    B, T = int(x.batch_sizes[0]), len(x.batch_sizes)
    state = check_state(layer, state, B, True)
    if state is not None and x.sorted_indices is not None:
        state = tuple(tuple(v.index_select(1, x.sorted_indices) for v in s) for s in state)
    if reset is None and set(layer.dilations) == {1}:
        return Batch(x.data, state, None, None, x.batch_sizes), Border(False, packed=x)
    if reset is not None:
        reset = check_reset(reset, (T, B)).to(x.data.device)
        reset = reset if x.sorted_indices is None else reset.index_select(1, x.sorted_indices)
    alive = packed_mask(x.batch_sizes.to(x.data.device))
    padded = unpack(x.data, alive)
    return Batch(padded, state, alive.sum(0), reset), Border(False, packed=x, alive=alive)
