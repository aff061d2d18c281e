"""The plain loop: the cell's own `step` on real tensors. It is the judge of every other backend.

Nothing is hoisted out of the loop and the traced graph is never used, so it shares no code with
what it judges; every device, dtype and feature of autograd works because torch does all of it.

Under autocast products are rounded as torch rounds them, and the state, which sums over steps, is
not: it keeps the dtype of the weights, and so do the outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from throughtime.backends.call import Call, Result, is_rounded, packed_mask, sequence_count
from throughtime.cell.contract import Names, check_new_state
from throughtime.cell.layout import WeightMatrix

name = "reference"

State = tuple[Tensor, ...]


def refuses(call: Call) -> str | None:
    """It takes every call."""
    return None


def run(call: Call) -> Result:
    """Carry the cell through time, one step and one direction after the other."""
    if call.batch_sizes is not None:
        return _run_packed(call)
    if is_rounded(call.x):
        call = call.in_weights_dtype()
    if call.lengths is not None:
        alive = _alive(call)
        # After a row's end nothing is looked at, resets included.
        reset = None if call.reset is None else call.reset & alive.squeeze(-1)
        x = torch.where(alive, call.x, 0)
        inputs = {n: torch.where(alive, v, 0) for n, v in (call.inputs or {}).items()}
        call = call._replace(x=x, inputs=inputs, reset=reset)
    parts = [_run_direction(call, d) for d in range(call.directions)]
    return Result(
        sequences=tuple(torch.stack(s, 2) for s in zip(*(p.sequences for p in parts), strict=True)),
        final=tuple(torch.stack(s) for s in zip(*(p.final for p in parts), strict=True)),
    )


def _run_packed(call: Call) -> Result:
    assert call.batch_sizes is not None
    result = run(call.padded())
    alive = packed_mask(call.batch_sizes.to(call.x.device))
    return result._replace(sequences=tuple(s[alive] for s in result.sequences))


def _run_direction(call: Call, d: int) -> Result:
    """One direction: sequences (T, B, width) and the final state (B, width)."""
    T, B = call.x.shape[0], call.x.shape[1]
    widths = call.cell.widths(call.hidden_size)
    count = sequence_count(call)
    steps: list[list[Tensor]] = [[call.x.new_empty(0)] * T for _ in range(count)]
    final = tuple(v[d].clone() for v in call.start())
    for t, state, output in _walk(call, d, final):
        final = state
        for i in range(count):
            steps[i][t] = output[i]
    sequences = tuple(
        torch.stack(v) if T else call.x.new_zeros(0, B, w)
        for v, w in zip(steps, widths[:count], strict=True)
    )
    return Result(sequences, final)


def _walk(call: Call, d: int, s: State) -> Iterator[tuple[int, State, State]]:
    """Step after step: t, the state after it, and the same with zeros after a row's end."""
    T = call.x.shape[0]
    U, p, roots = matrices(call, d), vectors(call, d), _roots(call, d)
    rounded = is_rounded(call.x)
    alive = None if call.lengths is None else _alive(call)
    rows = None if alive is None else _stand_ins(alive.squeeze(-1))
    for t in reversed(range(T)) if d else range(T):
        s = _reset(call, d, t, s)
        new = _step(call, d, t, s, U, p) if rows is None else _step(call, d, t, s, U, p, rows[t])
        if rounded:
            new = tuple(n.to(o.dtype) for n, o in zip(new, s, strict=True))
        if call.zoneout is not None:
            new = tuple(m[d, t] * o + (1 - m[d, t]) * n
                        for m, o, n in zip(call.zoneout, s, new, strict=True))  # fmt: skip
        if call.clip is not None or call.norms is not None:
            new = watched(
                new, call.clip, None if call.norms is None else call.norms[t, :, d], roots
            )
        if alive is None:
            s = new
            yield t, s, s
        else:
            s = tuple(torch.where(alive[t], n, o) for n, o in zip(new, s, strict=True))
            yield t, s, tuple(torch.where(alive[t], n, 0) for n in new)


def _step(
    call: Call, d: int, t: int, s: State, U: Names, p: Names, rows: Tensor | None = None
) -> State:
    """The cell's own equations at step t, of the rows given."""
    cell, weights = call.cell, call.weights[d]
    a: dict[str, Tensor] = {n: v[t] for n, v in (call.inputs or {}).items()}
    if rows is not None:
        a = {n: v[rows] for n, v in a.items()}
        s = tuple(v[rows] for v in s)
    if cell.layout.input_gates:
        # A product's bits depend on how its operands are aligned, so each step gets its own tensor:
        # that makes step by step the same as the whole.
        x_t = call.x[t].clone(memory_format=torch.contiguous_format)
        x_t = x_t if rows is None else x_t[rows]
        pre = linear(x_t, weights["weight_ih"], weights.get("bias_ih"))
        blocks = pre.split(call.hidden_size, -1)
        a.update(zip(cell.layout.input_gates, blocks, strict=True))
    named = Names("s", dict(zip(cell.state_names, s, strict=True)))
    new = cell.step(Names("a", a), U, named, p)
    check_new_state(cell, new, [(v.shape[0], v.shape[1]) for v in s])
    return new


def _roots(call: Call, d: int) -> list[Tensor]:
    """What of a call gradients may be asked by, where their norms are."""
    if call.norms is None or not torch.is_grad_enabled():
        return []
    given = (call.x, *call.weights[d].values(), *(call.state or ()), *(call.initial or ()))
    return [v for v in (*given, *(call.inputs or {}).values()) if v.requires_grad]


def _reset(call: Call, d: int, t: int, s: State) -> State:
    """The state before step t of this direction, put back to `initial` where a reset says so."""
    if call.reset is None:
        return s
    before = t + 1 if d else t
    if before == call.x.shape[0]:
        return s
    reset = call.reset[before].unsqueeze(-1)
    return tuple(torch.where(reset, i[d], v) for i, v in zip(call.initial_rows(), s, strict=True))


def _stand_ins(alive: Tensor) -> Tensor:
    """(T, B) the row that each row is stepped as: itself, or after its end one that lives.

    What a row computes after its end is thrown away, and so is its gradient; but 0 times the
    infinite slope of an equation that is singular at zeros, or NaN, would reach the weights.
    """
    own = torch.arange(alive.shape[1], device=alive.device).expand_as(alive)
    if alive.shape[1] == 0:
        return own
    first = alive.to(torch.int8).argmax(1, keepdim=True)
    return torch.where(alive | ~alive.any(1, keepdim=True), own, first)


def _alive(call: Call) -> Tensor:
    """(T, B, 1) bool: step t lies inside row b."""
    assert call.lengths is not None
    steps = torch.arange(call.x.shape[0], device=call.x.device)
    return (steps.unsqueeze(1) < call.lengths.to(call.x.device)).unsqueeze(-1)


def matrices(call: Call, d: int) -> Names:
    """`U` of the cell's equations: a block of weight_hh for each gate, and the products."""
    cell, weights = call.cell, call.weights[d]
    mask = None if call.recurrent_mask is None else call.recurrent_mask[d]
    named: dict[str, WeightMatrix] = {}
    for i, gate in enumerate(cell.layout.recurrent_gates):
        block = slice(i * call.hidden_size, (i + 1) * call.hidden_size)
        bias = weights["bias_hh"][block] if "bias_hh" in weights else None
        named[gate] = WeightMatrix(weights["weight_hh"][block], bias, mask)
    for product in cell.layout.products:
        named[product] = WeightMatrix(weights[f"weight_{product}"])
    return Names("U", named)


def vectors(call: Call, d: int) -> Names:
    weights: Mapping[str, Tensor] = call.weights[d]
    return Names("p", {n: weights[n] for n in call.cell.layout.vectors})


def watched(
    state: State, clip: Tensor | None, norms: Tensor | None, roots: Sequence[Tensor]
) -> State:
    """The new states of a step, whose gradients will be looked at.

    Each is a variable of its own: what a cell computes from its own new c, as an LSTM's h, is no
    path by which the state c matters to the loss.

    Args:
        state: each (B, width).
        clip: (), the largest norm of a row's gradients, all states side by side; None clips none.
        norms: (B, states), to be filled with the norm of each row's gradient by each state,
            before clipping.
        roots: what gradients are asked by; a state that depends on none of them has one too.
    """
    if clip is not None:
        state = tuple(_Clipped.apply(clip, *state))  # type: ignore[no-untyped-call]
    if norms is not None:
        state = tuple(
            v.view_as(v) if v.requires_grad or not roots else _Rooted.apply(v, *roots)  # type: ignore[no-untyped-call]
            for v in state
        )
        for k, v in enumerate(state):
            if v.requires_grad:
                v.register_hook(partial(_write_norm, norms[:, k]))
    return state


def _write_norm(to: Tensor, d: Tensor | None) -> None:
    """A hook: the norm of each row of a gradient, squares summed in float64."""
    to.copy_(torch.zeros_like(to) if d is None else d.detach().double().norm(dim=-1))


class _Rooted(torch.autograd.Function):
    """A state as it is, which backward reaches on its way to the roots, and goes no further."""

    generate_vmap_rule = True

    @staticmethod
    def forward(v: Tensor, *roots: Tensor) -> Any:
        return v.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.count = len(inputs)

    @staticmethod
    def backward(ctx: Any, d: Any) -> Any:
        return (None,) * ctx.count


class _Clipped(torch.autograd.Function):
    """States as they are; rows of their gradients times c / n where their norm n is above c."""

    generate_vmap_rule = True

    @staticmethod
    def forward(clip: Tensor, *state: Tensor) -> Any:
        return tuple(v.clone() for v in state)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *d: Any) -> Any:
        c = ctx.saved_tensors[0].double()
        square = torch.stack([v.double().square().sum(-1, keepdim=True) for v in d]).sum(0)
        over = square > c.square()
        scale = torch.where(over, c / torch.where(over, square, 1).sqrt(), 1)
        return (None, *(v * scale.to(v.dtype) for v in d))
