"""Training that keeps only every k-th state: backward computes each segment of time again.

Forward runs each segment without what backward needs. Backward takes the last segment first: once
more forward, now with all that is needed, and at once its derivative, whose gradients by weights
are added to those of the segments before in the same chains as a whole sequence has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from throughtime.backends import OPAQUE, Opaque, Segments, choose
from throughtime.backends.call import (
    Call,
    Gradients,
    Result,
    has_plain_memory,
    is_watched,
    packed_mask,
    plain_gradients,
    sequence_count,
)
from throughtime.errors import BackendError, ShapeError
from throughtime.scan import begin_norms, is_recorded, scan
from throughtime.scan.autograd import check_no_norms, derivative, placed
from throughtime.scan.operator import Form, flatten, flatten_gradients, unflatten
from throughtime.torch_private import dual_level


class Turn:
    """The order in which the backward direction reads the steps of each row.

    Turning twice is doing nothing except for steps after a row's end, which are zeros afterwards.

    Args:
        call: with steps (T, B).
    """

    def __init__(self, call: Call) -> None:
        T, B = call.x.shape[:2]
        self._whole = call.lengths is None
        steps = torch.arange(T, device=call.x.device).unsqueeze(1)
        ends = torch.full((B,), T, device=call.x.device) if call.lengths is None else call.lengths
        self._order = ends.to(call.x.device) - 1 - steps  # below 0 after the end
        self._steps = steps

    def call(self, call: Call) -> Call:
        """The call of this one backward direction as a forward one."""
        return call._replace(
            x=self._read(call.x), reset=self._reset(call.reset),
            norms=None if call.norms is None else torch.zeros_like(call.norms),
            inputs={n: self._read(v) for n, v in (call.inputs or {}).items()},
            zoneout=None if call.zoneout is None else tuple(
                self._read(v[0]).unsqueeze(0) for v in call.zoneout
            ),
        )  # fmt: skip

    def back(self, v: Tensor) -> Tensor:
        """(T, B, ...) of one order in the other, zero after a row's end."""
        if self._whole:
            return self._read(v)
        alive = (self._order >= 0).view(*self._order.shape, *[1] * (v.dim() - 2))
        return torch.where(alive, self._read(v), 0)

    def _reset(self, reset: Tensor | None) -> Tensor | None:
        """Between t and t - 1 it is one before the step that reads t - 1."""
        if reset is None:
            return None
        T, order = len(self._order), self._order
        return reset.gather(0, (order + 1).clamp(0, T - 1)) & (self._steps > 0) & (order >= 0)

    def _read(self, v: Tensor) -> Tensor:
        """(T, B, ...) with each row's steps in this order."""
        if self._whole:
            return v.flip(0)
        rows = torch.arange(self._order.shape[1], device=v.device)
        return v[self._order.clamp(min=0), rows]


def segments(call: Call, every: int) -> Iterator[tuple[int, Call]]:
    """The first step and the call of each piece of time, without the state it starts from."""
    x = call.x.split(every)
    inputs = {n: v.split(every) for n, v in (call.inputs or {}).items()}
    reset = None if call.reset is None else call.reset.split(every)
    zoneout = None if call.zoneout is None else [v.split(every, 1) for v in call.zoneout]
    for i, part in enumerate(x):
        lengths = call.lengths
        if lengths is not None:
            lengths = (lengths - i * every).clamp(0, len(part))
        yield i * every, call._replace(
            x=part, inputs={n: v[i] for n, v in inputs.items()}, lengths=lengths,
            reset=None if reset is None else reset[i],
            norms=None if call.norms is None else call.norms[i * every : i * every + len(part)],
            zoneout=None if zoneout is None else tuple(v[i] for v in zoneout),
        )  # fmt: skip


class Segmented(torch.autograd.Function):
    """`Direct`, with a state for each segment in place of what a backend keeps."""

    @staticmethod
    def forward(
        ctx: Any, call: Call, backend: str, every: int, form: Form, *tensors: Tensor | None
    ) -> Any:
        parts = [Direction(call, d, every, OPAQUE[backend]) for d in range(call.directions)]
        runs = [part.forward() for part in parts]
        ctx.cell, ctx.backend, ctx.every, ctx.form = call.cell, backend, every, form
        ctx.norms = call.norms
        ctx.save_for_backward(*tensors, *(v for _, borders in runs for v in borders))
        ctx.set_materialize_grads(False)
        results = [result for result, _ in runs]
        sequences = _join((r.sequences for r in results), 2)
        return (*sequences, *_join((r.final for r in results), 0))

    @staticmethod
    def backward(ctx: Any, *d_given: Tensor | None) -> Any:
        needs = ctx.needs_input_grad[4:]
        saved = ctx.saved_tensors  # read once: a checkpoint around the layer allows no more
        tensors, borders = saved[: len(needs)], saved[len(needs) :]
        call = unflatten(ctx.cell, ctx.form, tensors)._replace(norms=ctx.norms)
        count = -(-len(call.x) // ctx.every) - 1
        wrong = [len(v) for v in borders if len(v) != count]
        if count and wrong:
            raise ShapeError(f"{count} borders of segments were kept, got {wrong[0]}")
        backend = OPAQUE[ctx.backend]
        d_results, plain = plain_gradients(d_given)
        if torch.is_grad_enabled() or not plain or is_watched():
            # The derivative of this derivative, or many at once, need the whole sequence.
            check_no_norms(ctx.norms)
            with torch.no_grad():
                result, kept = backend.forward(call, True)
            given = (ctx.cell.key, ctx.backend, ctx.form, needs, 1 + len(kept))
            some = derivative(given, (*tensors, result.sequences[0], *kept, *d_results))
            return (*[None] * 4, *placed(some, needs))
        states = len(call.cell.state_names)
        each = []
        for d in range(call.directions):
            part = Direction(call, d, ctx.every, backend)
            own = borders[d * states : (d + 1) * states]
            one = _of_direction(d_results, d, len(d_results) - states)
            each.append(part.backward(own, one, needs[0], any(needs[1:])))
        flat = flatten_gradients(call, _all(each))
        return (*[None] * 4, *(v if need else None for v, need in zip(flat, needs, strict=True)))


@dataclass(frozen=True)
class Direction:
    """One direction of a call, a segment at a time.

    Attributes:
        whole: the call.
        d: which direction.
        every: k, steps of a segment.
        backend: who computes.
    """

    whole: Call
    d: int
    every: int
    backend: Opaque

    def forward(self) -> tuple[Result, list[Tensor]]:
        """The result, and for each state (segments - 1, B, width): where the others start."""
        parts, turn = self._parts()
        call = parts.call
        borders: list[tuple[Tensor, ...]] = []
        state, sequences = call.start(), self._room(call)
        for first, segment in segments(call, self.every):
            if first:
                borders.append(state)
            to = [v[first : first + len(segment.x)] for v in sequences]
            state = parts.forward(segment._replace(state=state), to)
        parts.finish()
        kept = [torch.cat(s) for s in zip(*borders, strict=True)]
        in_time = tuple(v if turn is None else turn.back(v) for v in sequences)
        return Result(in_time, state), kept or [v.new_empty(0) for v in state]

    def backward(
        self, borders: Sequence[Tensor], d_results: Sequence[Tensor | None], wants_x: bool,
        wants_weights: bool,
    ) -> Gradients:  # fmt: skip
        """The derivative, of x and inputs in the order of time."""
        parts, turn = self._parts()
        call = parts.call
        *d_y, d_state = *_back(turn, d_results[: -len(borders)]), list(d_results[-len(borders) :])
        x, inputs = call.x.new_empty(call.x.shape) if wants_x else None, dict[str, Tensor]()
        for i, (first, segment) in reversed(list(enumerate(segments(call, self.every)))):
            state = tuple(v[i - 1 : i] for v in borders) if i else call.start()
            if i == 0:  # what this one gives is wanted at once
                parts.finish()
            steps = slice(first, first + len(segment.x))
            d_part = [None if v is None else v[steps] for v in d_y]
            grads = parts.backward(
                segment._replace(state=state), [*d_part, *d_state], wants_x, wants_weights,
                None if x is None else x[steps],
            )  # fmt: skip
            for name, v in grads.inputs.items():
                if name not in inputs:
                    inputs[name] = v.new_empty((len(call.x), *v.shape[1:]))
                inputs[name][steps] = v
            d_state = list(grads.start)
        if turn is not None and call.norms is not None:
            self.whole.norms[:, :, self.d :].copy_(turn.back(call.norms))  # type: ignore[index]
        (d_x,) = _back(turn, [x])
        if turn is not None:
            inputs = {name: turn.back(v) for name, v in inputs.items()}
        return grads._replace(x=d_x, inputs=inputs)

    def _room(self, call: Call) -> list[Tensor]:
        """For the sequences of all steps."""
        widths, B = call.cell.widths(call.hidden_size), call.x.shape[1]
        return [call.x.new_empty((len(call.x), B, 1, w)) for w in widths[: sequence_count(call)]]

    def _parts(self) -> tuple[Segments, Turn | None]:
        """This direction as a forward one, in segments, and how it was turned."""
        one = self.whole.direction(self.d)
        turn = Turn(one) if self.d else None
        return self.backend.segments(one if turn is None else turn.call(one)), turn


def _back(turn: Turn | None, values: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Sequences in the other order of time, where there is one."""
    return [v if v is None or turn is None else turn.back(v) for v in values]


def _all(each: Sequence[Gradients]) -> Gradients:
    """Of all directions."""
    xs = [g.x for g in each if g.x is not None]
    inputs = {n: [g.inputs[n] for g in each] for n in each[0].inputs}
    initial = [g.initial for g in each if g.initial is not None]
    return Gradients(
        _add(xs) if xs else None,
        tuple(w for g in each for w in g.weights),
        {n: _add(v) for n, v in inputs.items()},
        _join((g.start for g in each), 0),
        _join(initial, 0) if initial else None,
    )


def _add(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def _join(groups: Iterable[Sequence[Tensor]], dim: int) -> tuple[Tensor, ...]:
    """Of one tensor after the other the directions as one."""
    parts = zip(*groups, strict=True)
    return tuple(p[0] if len(p) == 1 else torch.cat(p, dim) for p in parts)


def _of_direction(
    d_results: Sequence[Tensor | None], d: int, sequences: int
) -> list[Tensor | None]:
    """One direction's part of gradients by sequences (T, B, D, width) and final states."""
    return [
        None if v is None else v[:, :, d : d + 1] if i < sequences else v[d : d + 1]
        for i, v in enumerate(d_results)
    ]


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
        or dual_level() >= 0
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
    values = Segmented.apply(call, name, every, form, *tensors)  # type: ignore[no-untyped-call]
    count = sequence_count(call)
    return Result(tuple(values[:count]), tuple(values[count:]))


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
    return Result(_join((p.sequences for p in parts), 2), _join((p.final for p in parts), 0))


def _run(call: Call, backend: str, every: int) -> Result:
    """One forward direction, segment after segment."""
    pieces, state, count = [], call.state, sequence_count(call)
    for _, segment in segments(call, every):

        def run(state: tuple[Tensor, ...] | None, segment: Call = segment) -> tuple[Tensor, ...]:
            result = scan(segment._replace(state=state), backend)
            return (*result.sequences, *result.final)

        values = checkpoint(run, state, use_reentrant=False, preserve_rng_state=False)
        pieces.append(values[:count])
        state = values[count:]
    assert state is not None
    return Result(tuple(torch.cat(s) for s in zip(*pieces, strict=True)), state)
