"""Sequences run so that every state, or every marked one, is a node of the graph.

Between marks the layer's backend runs, so a walk costs about a call of the layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import pad

from throughtime.backends import reference
from throughtime.backends.call import Call, Result
from throughtime.diagnosis.observe import LayerDirection, WatchedRows, locate
from throughtime.diagnosis.observe.calls import Calls, ModuleCall, State, gradients_by
from throughtime.diagnosis.observe.steps import Steps, move_to_end
from throughtime.errors import NotFiniteError, ShapeError
from throughtime.layers import SequenceLayer
from throughtime.layers.batch import Batch, States
from throughtime.scan import scan
from throughtime.scan.segments import Turn


@dataclass(frozen=True)
class Chain:
    """Rows that run side by side.

    Attributes:
        states: the start, then after each step the cell's states, each (1, B, width), in the
            direction's order.
        alive: (T, B) bool in the same order, whether the step lies inside the row.
    """

    states: tuple[State, ...]
    alive: Tensor


@dataclass(frozen=True)
class Path(LayerDirection):
    """All sequences of one layer and direction; its states are nodes of the graph of the loss.

    Attributes:
        chains: whose rows are those of the path, one chain after the other.
    """

    chains: tuple[Chain, ...]

    @property
    def steps(self) -> int:
        """T, of the longest row."""
        return max(int(c.alive.sum(0).max()) for c in self.chains)

    @property
    def alive(self) -> Tensor:
        """(T, B) bool in the direction's order; every row ends with the last step."""
        return self.align_ends([c.alive for c in self.chains])

    def by_chain(self, value: Tensor) -> list[Tensor]:
        """(T, B, N) of each chain: the total gradient of a value by the states after each step,
        side by side, in the chain's order; zero outside of a row."""
        flat = [v for c in self.chains for state in c.states[1:] for v in state]
        each = iter(gradients_by(value, flat))
        parts = []
        for c in self.chains:
            d = torch.cat([torch.cat([next(each) for _ in s], -1) for s in c.states[1:]])
            parts.append(torch.where(c.alive.unsqueeze(-1), d, 0))
        return parts

    def align_ends(self, parts: Sequence[Tensor]) -> Tensor:
        """Values of each chain, (T, B, ...), as one; every row ends with the last step."""
        T = self.steps
        rows = [_align_ends(v, c.alive, T) for v, c in zip(parts, self.chains, strict=True)]
        return torch.cat(rows, 1)

    def cut_at_gradient(self, parts: Sequence[Tensor]) -> Path:
        """The path whose rows end at the last step with a gradient, for each chain (T, B, N).

        A row without any gradient stays as it is.
        """
        chains = []
        for c, d in zip(self.chains, parts, strict=True):
            later = (d != 0).any(-1).flip(0).cumsum(0).flip(0) > 0
            chains.append(replace(c, alive=c.alive & (later | ~later[0])))
        return replace(self, chains=tuple(chains))

    def gradients(self, value: Tensor) -> Tensor:
        """(T, B, N): the total gradient of a value by the states side by side after each step.

        Every row ends with the last step, and is zero before its first.
        """
        return self.align_ends(self.by_chain(value))


def find_state_gradients(value: Tensor, states: Sequence[State]) -> Tensor:
    """(states, B, N): the total gradient of a value by each state, its parts side by side."""
    each = iter(gradients_by(value, [v for state in states for v in state]))
    return torch.cat([torch.cat([next(each) for _ in state], -1) for state in states])


def list_paths(calls: Calls, layers: dict[str, SequenceLayer]) -> tuple[Path, ...]:
    """Every layer and direction of the modules that ran, in the order of their first calls."""
    every = []
    for name in calls.by_name:
        chains, layer = calls.sequences(name), layers[name]
        for number in range(len(layer.hidden_sizes)):
            for d in range(layer.directions):
                at = number * layer.directions + d
                parts = tuple(_join_walks(chain, at, d) for chain in chains)
                every.append(Path(name, number, d, parts))
    return tuple(every)


def _join_walks(calls: list[ModuleCall], at: int, d: int) -> Chain:
    """The walks of calls that continue each other as one."""
    first, *rest = (call.walks[at] for call in calls)
    states = (*first, *(state for walk in rest for state in walk[1:]))
    alive = torch.cat([call.alive for call in calls])
    return Chain(states, alive.flip(0) if d else alive)


def _align_ends(v: Tensor, alive: Tensor, T: int) -> Tensor:
    """(T, B, ...): each row's steps at the end, zeros before them."""
    v = move_to_end(v, alive)
    more = T - len(v)
    return v[-more:] if more < 0 else pad(v, [0, 0] * (v.dim() - 1) + [more, 0])


def carry_recorded(
    name: str, layer: SequenceLayer, calls: Calls, batch: Batch
) -> tuple[Tensor, list[Result]]:
    """`Passage.carry` step by step, its states recorded."""
    call = calls.begin(name, layer, batch)
    calls.fault = calls.fault or _check_input(name, call)
    finals: list[State] = []
    last = len(layer.hidden_sizes) - 1

    def run(number: int, one: Call) -> Tensor:
        cut, outputs = calls.last_only and number == last, []
        for d in range(layer.directions):
            states = _walk(one, d, call.alive)
            names = layer.cell.state_names
            calls.fault = calls.fault or _check_states(states, call, names, (name, number, d))
            call.walks.append(states)
            outputs.append(_join_outputs(states, call.alive, d, cut))
        ends = [walk[-1] for walk in call.walks[-layer.directions :]]
        finals.append(tuple(torch.cat(v) for v in zip(*ends, strict=True)))
        return torch.stack(outputs, 2)

    y = layer.through(call.batch, run, cut=calls.last_only)
    y, states = calls.end(call, y, tuple(finals))
    results = [Result((y,), state) for state in states]
    return y if batch.batch_sizes is None else y[call.alive], results


def _check_input(name: str, call: ModuleCall) -> NotFiniteError | None:
    """The first input of a call that is not finite; a ShapeError without steps or rows."""
    batch, alive = call.batch, call.alive
    if not batch.x.numel() or not bool(alive.any()):
        raise ShapeError(f"a diagnosis needs steps and rows, got x of {tuple(batch.x.shape)}")
    for what, v in (("input", batch.x), *(batch.inputs or {}).items()):
        step = find_first_step(torch.where(alive.unsqueeze(-1), v, 0))
        if step is not None:
            step += call.first_step
            return NotFiniteError(
                f"the {what} of layer {name or 'of the model'} is NaN or infinity, first at step "
                f"{step} (counted from 0)", "input", name, step,
            )  # fmt: skip
    return None


def find_first_step(v: Tensor) -> int | None:
    """The first t at which (T, ...) has NaN or infinity; None where it has none."""
    bad = torch.nonzero(~v.isfinite().flatten(1).all(1))
    return int(bad[0]) if len(bad) else None


def _check_states(
    states: Sequence[State], call: ModuleCall, names: tuple[str, ...], place: tuple[str, int, int]
) -> NotFiniteError | None:
    """The first state that is not finite, in the direction's order."""
    bad = []
    for i, name in enumerate(names):
        step = find_first_step(torch.cat([state[i].detach() for state in states[1:]]))
        if step is not None:
            bad.append((step, i, name))
    if not bad:
        return None
    module, number, d = place
    step, _, name = min(bad)
    t = len(states) - 2 - step if d else call.first_step + step
    layer = locate(module, number) + (", backward," if d else "")
    text = f"state {name} of {layer} is NaN or infinity, first at step {t} (counted from 0)"
    return NotFiniteError(text, "state", module, t)


def _walk(call: Call, d: int, alive: Tensor) -> tuple[State, ...]:
    """Run one step a call of the plain loop, in the direction's order; T + 1 states."""
    T, ragged = call.x.shape[0], call.lengths is not None
    call_d = call.direction(d)
    start = (v if v.requires_grad else v.detach().requires_grad_() for v in call_d.start())
    states = [tuple(start)]
    for t in reversed(range(T)) if d else range(T):
        step = slice(t, t + 1)
        zoneout = call_d.zoneout and tuple(v[:, step] for v in call_d.zoneout)
        inputs = call.inputs and {n: v[step] for n, v in call.inputs.items()}
        step_call = call_d._replace(
            x=call.x[step], state=states[-1], zoneout=zoneout, inputs=inputs,
            lengths=alive[t].long() if ragged else None,
        )  # fmt: skip
        states.append(reference.run(step_call).final)
    return tuple(states)


def _join_outputs(states: Sequence[State], alive: Tensor, d: int, cut: bool) -> Tensor:
    """(T, B, width) in the order of time, zero after a row's end.

    With `cut` all but each row's last step are constants.
    """
    outputs = [state[0][0] for state in states[1:]]
    whole = bool(alive.all())
    if cut and (whole or d):  # backward every row ends with the last step
        outputs = [v.detach() for v in outputs[:-1]] + outputs[-1:]
    y = torch.stack(outputs[::-1] if d else outputs)
    if whole:
        return y
    if cut and not d:
        last = alive & ~torch.cat((alive[1:], torch.zeros_like(alive[:1])))
        y = torch.where(last.unsqueeze(-1), y, y.detach())
    return torch.where(alive.unsqueeze(-1), y, 0)


@dataclass(frozen=True)
class MarkedWalk:
    """One layer and direction.

    Attributes:
        layer: number of the layer in its module.
        direction: 0 forward, 1 backward.
        lags: how many steps before the last one each mark lies, largest first, 0 last.
        states: at each mark the cell's states, each (1, B, width).
        call: the direction's call, in its order.
    """

    layer: int
    direction: int
    lags: tuple[int, ...]
    states: tuple[State, ...]
    call: Call

    def gradients(self, value: Tensor) -> Tensor:
        """(marks, B, N): the total gradient of a value by the states side by side at each mark."""
        return find_state_gradients(value, self.states)

    def steps(self) -> Steps:
        """The steps that follow the marks, except the last mark, without the states after."""
        call, at = self.call, [len(self.call.x) - k for k in self.lags[:-1]]
        return Steps(
            layer=self.layer, direction=self.direction, dilation=1, cell=call.cell,
            x=call.x.detach()[at].flatten(0, 1),
            inputs={n: v[at].flatten(0, 1) for n, v in (call.inputs or {}).items()},
            before=tuple(torch.cat([v[0] for v in part]).detach() for part in
                         zip(*self.states[:-1], strict=True)),
            after=(), weights=dict(call.weights[0]),
        )  # fmt: skip


def walk(
    layer: SequenceLayer, batch: Batch, lags: Sequence[int], *, last_only: bool
) -> tuple[Tensor, States, tuple[MarkedWalk, ...]]:
    """Run a layer without the masks of training and without gradients of its weights.

    Args:
        layer: without dilation.
        batch: time-major rows of one length, without resets.
        lags: of the marks, each from 0 to T - 1.
        last_only: outputs before each direction's last step count as constants.

    Returns:
        The outputs (T, B, O), the final states, and the walks of every layer and direction.
    """
    marks, count = sorted({0, *lags}, reverse=True), len(layer.hidden_sizes)
    finals: list[State] = []
    walks: list[MarkedWalk] = []

    def run(number: int, call: Call) -> Tensor:
        cut = last_only and number + 1 == count
        calls_by_direction = (call.direction(d) for d in range(layer.directions))
        parts = [_one_way(one, number, d, marks, cut) for d, one in enumerate(calls_by_direction)]
        walks_here = [w for w, _ in parts]
        walks.extend(walks_here)
        finals.append(
            tuple(torch.cat(v) for v in zip(*(w.states[-1] for w in walks_here), strict=True))
        )
        return torch.stack([out for _, out in parts], 2)

    with torch.enable_grad():
        y = layer.through(batch._replace(x=batch.x.detach()), run, cut=last_only)
    return y, tuple(finals), tuple(walks)


def _one_way(
    call: Call, number: int, d: int, lags: list[int], cut: bool
) -> tuple[MarkedWalk, Tensor]:
    """Run from mark to mark in the direction's order; the outputs (T, B, width) are in time's."""
    call, turn = orient(detach_call(call), d)
    states, outputs = [], []
    for y, state in _run_parts(call, lags):
        states.append(state)
        # The last output is the state itself, so its gradient passes through the mark.
        outputs += [y[:-1].detach() if cut else y[:-1]]
        outputs += [state[0].detach() if cut and len(states) < len(lags) else state[0]]
    y = torch.cat(outputs)
    return MarkedWalk(
        number, d, tuple(lags), tuple(states), call
    ), y if turn is None else turn.back(y)


def detach_call(call: Call) -> Call:
    """The call with its weights as constants, and gradients by the state it starts from."""
    weights = tuple({n: w.detach() for n, w in v.items()} for v in call.weights)
    start = tuple(v.detach().requires_grad_() for v in call.start())
    return call._replace(weights=weights, state=start, initial=None)


def orient(call: Call, d: int) -> tuple[Call, Turn | None]:
    """A call of one direction as a forward one, and the turn that puts its outputs back."""
    turn = Turn(call) if d else None
    return (call if turn is None else turn.call(call)), turn


def run_to_marks(call: Call, lags: Sequence[int]) -> Iterator[State]:
    """The states of a forward call at lags before its last step, largest lag first."""
    return (state for _, state in _run_parts(call, lags))


def _run_parts(call: Call, lags: Sequence[int]) -> Iterator[tuple[Tensor, State]]:
    """The outputs from mark to mark, each with the state at its end."""
    state = call.start()
    for start, end in pairwise([0, *(len(call.x) - k for k in lags)]):
        y, state = _run_part(call._replace(state=state), slice(start, end))
        yield y, state


def _run_part(call: Call, steps: slice) -> tuple[Tensor, State]:
    """The outputs of some steps, and the state after them."""
    inputs = call.inputs and {n: v[steps] for n, v in call.inputs.items()}
    zoneout = call.zoneout and tuple(v[:, steps] for v in call.zoneout)
    (y,), state = scan(call._replace(x=call.x[steps], inputs=inputs, zoneout=zoneout))
    return y[:, :, 0], state


def weigh_outputs(y: Tensor, finals: States, rows: WatchedRows) -> Tensor | None:
    """A scalar whose gradients by outputs and final states are the recorded ones; None: none."""
    parts = [] if rows.d_outputs is None else [(y * rows.d_outputs).sum()]
    for state, d_state in zip(finals, rows.d_final or (), strict=rows.d_final is not None):
        parts += [(v * d).sum() for v, d in zip(state, d_state, strict=True)]
    total = torch.stack(parts).sum() if parts else None
    return total if total is not None and total.requires_grad else None
