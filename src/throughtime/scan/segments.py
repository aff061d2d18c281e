"""Training that keeps only every k-th state: backward computes each segment of time again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from throughtime.backends.call import Call, Result, packed_mask
from throughtime.scan.door import scan


def scan_in_segments(call: Call, backend: str, every: int) -> Result:
    """The same as `scan`; for backward, each direction keeps its states at segment borders only.

    Backward goes from the last segment to the first and runs each once more before its
    derivative, with the masks of the call. Where nothing is recorded, and below torch.compile and
    torch.func, which have no place for it, this is `scan`.

    Args:
        call: as `scan` takes it.
        backend: likewise.
        every: k, steps of a segment.

    Source: Chen, Xu, Zhang and Guestrin, Training Deep Nets with Sublinear Memory Cost (2016).
    """
    transformed = torch.compiler.is_compiling() or (
        torch._C._functorch.get_dynamic_layer_stack_depth() > 0
        or torch.autograd.forward_ad._current_level >= 0
    )
    if transformed or not torch.is_grad_enabled() or call.x.shape[0] == 0:
        return scan(call, backend)
    if call.batch_sizes is not None:
        alive = packed_mask(call.batch_sizes.to(call.x.device))
        result = scan_in_segments(call.padded(), backend, every)
        return result._replace(sequences=tuple(s[alive] for s in result.sequences))
    parts = []
    for d in range(call.directions):
        one = call.direction(d)
        parts.append(_run(one, backend, every) if d == 0 else _run_back(one, backend, every))
    return Result(
        tuple(torch.cat(s, 2) for s in zip(*(p.sequences for p in parts), strict=True)),
        tuple(torch.cat(s) for s in zip(*(p.final for p in parts), strict=True)),
    )


def _run(call: Call, backend: str, every: int) -> Result:
    """One forward direction, segment after segment."""
    pieces, state = [], call.state
    count = len(call.cell.widths(call.hidden_size)) if call.record else 1
    for segment in _segments(call, every):

        def run(state: tuple[Tensor, ...] | None, segment: Call = segment) -> tuple[Tensor, ...]:
            result = scan(segment._replace(state=state), backend)
            return (*result.sequences, *result.final)

        found = checkpoint(run, state, use_reentrant=False, preserve_rng_state=False)
        pieces.append(found[:count])
        state = found[count:]
    assert state is not None
    return Result(tuple(torch.cat(s) for s in zip(*pieces, strict=True)), state)


def _segments(call: Call, every: int) -> Iterator[Call]:
    """The call's pieces of time, without the state each starts from."""
    x = call.x.split(every)
    inputs = {n: v.split(every) for n, v in (call.inputs or {}).items()}
    reset = None if call.reset is None else call.reset.split(every)
    zoneout = None if call.zoneout is None else [v.split(every, 1) for v in call.zoneout]
    for i, part in enumerate(x):
        lengths = call.lengths
        if lengths is not None:
            lengths = (lengths - i * every).clamp(0, len(part))
        yield call._replace(
            x=part, inputs={n: v[i] for n, v in inputs.items()}, lengths=lengths,
            reset=None if reset is None else reset[i],
            zoneout=None if zoneout is None else tuple(v[i] for v in zoneout),
        )  # fmt: skip


def _run_back(call: Call, backend: str, every: int) -> Result:
    """The backward direction: each row from its own end, as a forward one, and turned back."""
    T, B = call.x.shape[:2]
    steps = torch.arange(T, device=call.x.device).unsqueeze(1)
    ends = torch.full((B,), T) if call.lengths is None else call.lengths
    order = ends.to(call.x.device) - 1 - steps  # of what a step reads; below 0 behind the end
    reset = call.reset
    if reset is not None:  # between t and t - 1: before the step that reads t - 1
        reset = reset.gather(0, (order + 1).clamp(0, T - 1)) & (steps > 0) & (order >= 0)
    turned = call._replace(
        x=_turned(call.x, order), reset=reset,
        inputs={n: _turned(v, order) for n, v in (call.inputs or {}).items()},
        zoneout=None if call.zoneout is None else tuple(
            _turned(v[0], order).unsqueeze(0) for v in call.zoneout
        ),
    )  # fmt: skip
    result = _run(turned, backend, every)
    return result._replace(sequences=_back(result.sequences, order))


def _turned(v: Tensor, order: Tensor) -> Tensor:
    """(T, B, ...) with each row's steps in this order."""
    rows = torch.arange(order.shape[1], device=order.device)
    return v[order.clamp(min=0), rows]


def _back(sequences: Sequence[Tensor], order: Tensor) -> tuple[Tensor, ...]:
    """Sequences in the order of time, zero behind a row's end."""
    alive = (order >= 0).view(*order.shape, 1, 1)
    return tuple(torch.where(alive, _turned(v, order), 0) for v in sequences)
