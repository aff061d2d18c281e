"""Training that keeps only every k-th state: backward computes each segment of time again."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from throughtime.backends import OPAQUE, choose
from throughtime.backends.call import Call, Result, packed_mask
from throughtime.errors import BackendError
from throughtime.scan.cut import segments
from throughtime.scan.door import begin_norms, is_recorded, scan
from throughtime.scan.form import flatten
from throughtime.scan.plain import has_plain_memory, is_watched
from throughtime.scan.segmented import Segmented
from throughtime.scan.turned import Turn


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
    transformed = (
        torch.compiler.is_compiling()
        or is_watched()
        or not has_plain_memory(call)
        or torch.autograd.forward_ad._current_level >= 0
    )
    if transformed or not torch.is_grad_enabled() or call.x.shape[0] == 0:
        return scan(call, backend)
    if call.batch_sizes is not None:
        alive = packed_mask(call.batch_sizes.to(call.x.device))
        result = scan_in_segments(call.padded(), backend, every)
        return result._replace(sequences=tuple(s[alive] for s in result.sequences))
    name = choose(call, backend).name
    if name not in OPAQUE and call.norms is not None:
        raise BackendError(
            f"backend {name!r} records no norms of gradients between checkpoints; use "
            f"backend='cpu', or leave out checkpoint_every"
        )
    if name not in OPAQUE:
        return _open(call, name, every)
    form, tensors = flatten(call)
    if not is_recorded(tensors):
        return scan(call, name)
    begin_norms(call)
    found = Segmented.apply(call, name, every, form, *tensors)  # type: ignore[no-untyped-call]
    count = call.sequences
    return Result(tuple(found[:count]), tuple(found[count:]))


def _open(call: Call, backend: str, every: int) -> Result:
    """By torch's own checkpoints, for what torch's own operations compute."""
    parts = []
    for d in range(call.directions):
        one = call.direction(d)
        turn = Turn(one) if d else None
        result = _run(one if turn is None else turn.call(one), backend, every)
        if turn is not None:
            result = result._replace(sequences=tuple(turn.back(v) for v in result.sequences))
        parts.append(result)
    return Result(
        tuple(torch.cat(s, 2) for s in zip(*(p.sequences for p in parts), strict=True)),
        tuple(torch.cat(s) for s in zip(*(p.final for p in parts), strict=True)),
    )


def _run(call: Call, backend: str, every: int) -> Result:
    """One forward direction, segment after segment."""
    pieces, state, count = [], call.state, call.sequences
    for _, segment in segments(call, every):

        def run(state: tuple[Tensor, ...] | None, segment: Call = segment) -> tuple[Tensor, ...]:
            result = scan(segment._replace(state=state), backend)
            return (*result.sequences, *result.final)

        found = checkpoint(run, state, use_reentrant=False, preserve_rng_state=False)
        pieces.append(found[:count])
        state = found[count:]
    assert state is not None
    return Result(tuple(torch.cat(s) for s in zip(*pieces, strict=True)), state)
