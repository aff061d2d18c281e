"""Machine code made from the cell's own equations: forward and backward over whole sequences."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from throughtime.backends.call import Call, Gradients, Result
from throughtime.backends.cpu import backward_pass, forward_pass, gradients
from throughtime.backends.cpu.deferred import Queue
from throughtime.backends.cpu.gradients import GradientSums
from throughtime.backends.cpu.look import see_input, see_layer
from throughtime.backends.cpu.operands import masks_of, plan_of
from throughtime.backends.cpu.unshare import call_apart, cell_apart, gradients_together
from throughtime.backends.transforms import no_rule
from throughtime.cells import Cell
from throughtime.compiler.passes.masks import NO_MASKS
from throughtime.compiler.plan import plan
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
    found = plan(cell, NO_MASKS, hidden_size)
    return found if isinstance(found, str) else None


@functools.cache
def _no_machine() -> str | None:
    return machine.reason() if machine.host() is None else None


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


def forward(
    call: Call, keep: bool, to: Sequence[Tensor] = (), kept: Sequence[Tensor] = (),
    queue: Queue | None = None,
) -> tuple[Result, list[Tensor]]:  # fmt: skip
    """The result, and what `backward` needs beside the call; nothing with keep=False.

    Args:
        call: what to carry.
        keep: whether `backward` will be called.
        to: where the sequences are written, contiguous and of their shapes; empty is fresh.
        kept: what a call of at least as many steps kept, to be written over; empty is fresh.
        queue: where the work waits; all values are there once it has run. None is now.
    """
    return forward_pass.run(call_apart(call), keep, to, kept[0] if kept else None, queue)


def for_segments(call: Call) -> Call:
    """The call with all that its segments would each copy: weights for every product of a step,
    numbers side by side."""
    return see_layer(see_input(call_apart(call)), call.x.shape[-1])


def queue_for(call: Call) -> Queue | None:
    """Where the work on segments of a call may wait; None where each has direct inputs or masks,
    of which a copy would wait too."""
    return None if plan_of(call).lines else Queue()


def kept_shapes(call: Call) -> list[tuple[int, ...]]:
    """The shapes of what `forward` keeps, in the numbers of x."""
    return forward_pass.kept_shapes(cell_apart(call))


def sums_for(call: Call) -> GradientSums:
    """Where backward passes of calls with the same weights add up what they say of them."""
    call = call_apart(call)
    return gradients.sums_for(call, plan_of(call))


def backward(
    call: Call, kept: Sequence[Tensor], d_results: Sequence[Tensor | None], wants_x: bool,
    wants_weights: bool, sums: GradientSums | None = None, d_x: Tensor | None = None,
    queue: Queue | None = None,
) -> Gradients:  # fmt: skip
    """The derivative.

    Args:
        call: as `forward` had it.
        kept: the output sequence, and what `forward` kept.
        d_results: gradients by the sequences, recorded ones too, and by the final states; None is
            zero.
        wants_x: whether the gradient by x is asked for.
        wants_weights: whether one by any weight is.
        sums: to which gradients by the weights, and what resets carry to `initial`, are added: the
            result then has the sums so far.
        d_x: where the gradient by x is written, contiguous and of x's shape; None is fresh.
        queue: where the work waits; then gradients by the state at the start alone are given, and
            all is there once the queue has run. None is now.
    """
    call = call_apart(call)
    found = backward_pass.run(call, kept, d_results, wants_x, wants_weights, sums, d_x, queue)
    return gradients_together(call.cell, found)
