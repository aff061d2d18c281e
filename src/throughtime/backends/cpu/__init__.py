"""Machine code made from the cell's own equations: forward and backward over whole sequences."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from throughtime.backends.call import Call, Gradients, Result, no_rule
from throughtime.backends.cpu import backward_pass, forward_pass, gradients
from throughtime.backends.cpu.block import Queue
from throughtime.backends.cpu.look import check_input, check_layer
from throughtime.backends.cpu.operands import join_gradients, unshare_call, unshare_cell
from throughtime.backends.cpu.schedule import masks_of, plan_of
from throughtime.cells import Cell
from throughtime.compiler.passes import NO_MASKS
from throughtime.compiler.plan import why_unplanned
from throughtime.compiler.runtime import machine

name = "cpu"


def refuses(call: Call) -> str | None:
    """Why no machine code can carry this call, or None."""
    return refuses_cell(call.cell, call.x, call.hidden_size) or _kind(call)


def refuses_cell(cell: Cell, x: Tensor, hidden_size: int | None = None) -> str | None:
    """Why no plain call of this cell on such an input can be carried, or None."""
    if x.device.type != "cpu":
        return f"it computes on the processor, and the input is on {x.device.type}"
    if x.dtype not in (torch.float32, torch.float64):
        return f"it computes in float32 and float64, and the input is {_word(x.dtype)}"
    if torch.is_autocast_enabled("cpu"):
        return "autocast rounds products, which compiled code does not"
    reason = _no_machine() or no_rule()
    if reason is not None:
        return reason
    return why_unplanned(cell, hidden_size)


_no_machine = functools.cache(machine.reason)  # asked at every call


def _kind(call: Call) -> str | None:
    """What the compiled loops do not offer."""
    x, others = call.x, [v for w in call.weights for v in w.values()]
    if call.state or call.initial or call.inputs:
        others += [*(call.state or ()), *(call.initial or ()), *(call.inputs or {}).values()]
    others += [v for v in (call.clip, call.norms) if v is not None]
    if masks_of(call) is not NO_MASKS:
        zones = [v for v in call.zoneout or () if v.dtype != torch.int16]
        masks = [v for v in (call.recurrent_mask, *zones) if v is not None]
        if any(v.requires_grad for v in masks):
            return "compiled code has no gradient by masks"
        others += masks
    dtype, is_cpu = x.dtype, x.is_cpu
    for v in others:
        if v.dtype != dtype or v.is_cpu != is_cpu:
            kind = _word(dtype)
            return f"weights, states, inputs and masks must be {kind} on cpu like the input"
    return None


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def forward(call: Call, keep: bool) -> tuple[Result, list[Tensor]]:
    """The result, and what `backward` needs besides the call; nothing with keep=False."""
    return forward_pass.run(unshare_call(call), keep)


def kept_shapes(call: Call) -> list[tuple[int, ...]]:
    """The shapes of what `forward` keeps, in the numbers of x."""
    call = unshare_cell(call)
    return [forward_pass.kept_shape(call, plan_of(call))]


def backward(
    call: Call, kept: Sequence[Tensor], d_results: Sequence[Tensor | None], wants_x: bool,
    wants_weights: bool,
) -> Gradients:  # fmt: skip
    """The derivative.

    Args:
        call: as `forward` had it.
        kept: the output sequence, and what `forward` kept.
        d_results: gradients by the sequences, recorded ones too, and by the final states; None is
            zero.
        wants_x: whether the gradient by x is asked for.
        wants_weights: whether one by any weight is.
    """
    call = unshare_call(call)
    grads = backward_pass.run(call, kept, d_results, wants_x, wants_weights)
    return join_gradients(call.cell, grads)


class SegmentRuns:
    """Segments of time, which see one copy of a call, add up gradients and wait for each other.

    They wait but where a call has direct inputs or masks, of which a copy would wait too.
    """

    def __init__(self, call: Call) -> None:
        self.call = check_layer(check_input(unshare_call(call)), call.x.shape[-1])
        self._queue = None if plan_of(self.call).lines else Queue()
        self._sums: gradients.GradientSums | None = None
        self._room: list[Tensor] = []

    def forward(self, segment: Call, to: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The final states; sequences are written to `to`."""
        return forward_pass.run(segment, False, to, None, self._queue)[0].final

    def backward(
        self, segment: Call, d_results: Sequence[Tensor | None], wants_x: bool,
        wants_weights: bool, d_x: Tensor | None,
    ) -> Gradients:  # fmt: skip
        """The derivative of a segment that is run once more, with the gradients of all so far."""
        if self._sums is None:
            self._sums = gradients.sums_for(self.call, plan_of(self.call))
        y, saved = self._kept(segment)
        once_more = segment._replace(record=False)
        kept = forward_pass.run(once_more, True, [y], saved, self._queue)[1]
        grads = backward_pass.run(
            segment, [y, *kept], d_results, wants_x, wants_weights, self._sums, d_x, self._queue
        )
        return join_gradients(segment.cell, grads)

    def _kept(self, segment: Call) -> tuple[Tensor, Tensor]:
        """For the output of a segment, and for what its forward pass keeps."""
        if not self._room or len(self._room[0]) < len(segment.x):
            alone = segment._replace(record=False)
            width = segment.cell.widths(segment.hidden_size)[0]
            shapes = [
                (*segment.x.shape[:2], 1, width),
                forward_pass.kept_shape(alone, plan_of(alone)),
            ]
            self._room = [segment.x.new_empty(shape) for shape in shapes]
        y, saved = self._room
        return y[: len(segment.x)], saved

    def finish(self) -> None:
        """Run what waits, and from now on wait for nothing."""
        if self._queue is not None:
            self._queue.run()
        self._queue = None


segments = SegmentRuns
