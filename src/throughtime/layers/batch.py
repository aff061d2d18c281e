"""A batch as the user gives it and as the layers see it, time-major; and the way back.

With a dilation of d the state at t follows the one at t - d, so the steps t = j (mod d) form a
sequence: a batch of B sequences of T steps is one of d B sequences of T / d steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from throughtime.backends.call import Call, Result, packed_mask, unpack
from throughtime.errors import OptionError, ShapeError
from throughtime.layers.checks import (
    check_inputs,
    check_lengths,
    check_packed,
    check_reset,
    check_starts,
    check_state,
    check_x,
)

if TYPE_CHECKING:
    from throughtime.layers.layer import Passage

States = tuple[tuple[Tensor, ...], ...]
"""Over layers, over the cell's states: (D, B, width)."""


class Batch(NamedTuple):
    """A batch as the layers see it: time-major, padded or packed.

    Attributes:
        x: (T, B, I), or packed (N, I) when `batch_sizes` is given.
        state: where it starts; None starts at each layer's initial state.
        lengths: (B,), steps of each row; None means T.
        reset: (T, B) bool.
        batch_sizes: (T,), of a packed batch.
        inputs: name -> (T, B, width), inputs multiplied by no matrix; every layer reads them.
        recurrent_masks: over layers, recurrent dropout's mask (D, B, width), drawn before; None
            draws one for this call.
        norms: over layers, (T, B, D, states) that backward fills, or None.
    """

    x: Tensor
    state: States | None = None
    lengths: Tensor | None = None
    reset: Tensor | None = None
    batch_sizes: Tensor | None = None
    inputs: Mapping[str, Tensor] | None = None
    recurrent_masks: tuple[Tensor | None, ...] | None = None
    norms: tuple[Tensor, ...] | None = None

    def first_rows(self, rows: int) -> Batch:
        """The first `rows` rows of a padded batch."""
        state, masks = self.state, self.recurrent_masks
        return Batch(
            x=self.x[:, :rows],
            state=state and tuple(tuple(v[:, :rows] for v in s) for s in state),
            lengths=None if self.lengths is None else self.lengths[:rows],
            reset=None if self.reset is None else self.reset[:, :rows],
            inputs=self.inputs and {n: v[:, :rows] for n, v in self.inputs.items()},
            recurrent_masks=masks and tuple(m if m is None else m[:, :rows] for m in masks),
        )


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


def list_tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for v in value:
            yield from list_tensors(v)
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from list_tensors(v)


def map_tensors(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same tuples, lists and mappings with each tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(v, change) for v in value))
    if isinstance(value, tuple | list):
        return type(value)(map_tensors(v, change) for v in value)
    if isinstance(value, Mapping):
        changed = {k: map_tensors(v, change) for k, v in value.items()}
        return changed if type(value) is dict else type(value)(changed)  # type: ignore[call-arg]
    return value


def fold(call: Call, d: int) -> Call:
    """The call whose batch is the d interleaved sequences of every row, (T/d, d B, I)."""
    T, B = call.x.shape[:2]
    lengths = call.lengths
    if lengths is None and T % d:
        lengths = torch.full((B,), T, device=call.x.device)
    return call._replace(
        x=_fold(call.x, d),
        inputs={n: _fold(v, d) for n, v in (call.inputs or {}).items()},
        reset=None if call.reset is None else _fold(_spread(call.reset, d), d),
        lengths=None if lengths is None else _fold_lengths(lengths, d),
    )


def unfold(result: Result, call: Call, d: int) -> Result:
    """The result of the folded call in the steps of the call itself.

    The final state of a row is that of the chain its last step belongs to (in the backward
    direction its first).
    """
    T, B = call.x.shape[:2]
    sequences = tuple(s.unflatten(1, (d, B)).flatten(0, 1)[:T] for s in result.sequences)
    rows = torch.arange(B, device=call.x.device)
    steps = torch.full_like(rows, T) if call.lengths is None else call.lengths.to(rows.device)
    last = (steps - 1).clamp_min(0) % d
    final = tuple(
        torch.stack([v.unflatten(0, (d, B))[last if i == 0 else 0, rows] for i, v in enumerate(s)])
        for s in result.final
    )
    return Result(sequences, final)


def end_in_last_sequences(result: Result, call: Call) -> Result:
    """The result with both directions' final states those of the last sequence of each row.

    The backward direction goes on past a reset to the sequences before; its state for the last one
    is that after the step where this one begins.

    Args:
        result: of two directions, with the sequences of all states.
        call: padded, with resets.
    """
    T, B = call.x.shape[:2]
    if call.reset is None or not T:
        return result
    steps, rows = torch.arange(T, device=call.x.device), torch.arange(B, device=call.x.device)
    begins = call.reset
    if call.lengths is not None:
        begins = begins & (steps.unsqueeze(1) < call.lengths.to(call.x.device))
    first = torch.where(begins, steps.unsqueeze(1), 0).amax(0)
    final = tuple(
        torch.stack((v[0], torch.where(begins.any(0).unsqueeze(1), s[first, rows, 1], v[1])))
        for v, s in zip(result.final, result.sequences, strict=True)
    )
    return Result(result.sequences, final)


def _fold(v: Tensor, d: int) -> Tensor:
    """(T, B, ...) to (ceil(T / d), d B, ...), with zeros after the end."""
    T = v.shape[0]
    # Not by pad, which torch 2.9 refuses where there are no rows.
    padded = torch.cat((v, v.new_zeros(-T % d, *v.shape[1:])))
    chains: Tensor = padded.reshape(padded.shape[0] // d, d * v.shape[1], *v.shape[2:])
    return chains


def _fold_lengths(lengths: Tensor, d: int) -> Tensor:
    """Steps of chain j of a row with n steps: ceil((n - j) / d)."""
    chains = torch.arange(d, device=lengths.device).unsqueeze(1)
    return torch.div(lengths - chains + d - 1, d, rounding_mode="floor").clamp_min(0).flatten()


def _spread(reset: Tensor, d: int) -> Tensor:
    """A reset before t as one in every chain, at its first step from t on."""
    shifted = [
        torch.cat((reset.new_zeros(i, *reset.shape[1:]), reset))[: reset.shape[0]] for i in range(d)
    ]
    return torch.stack(shifted).any(0)
