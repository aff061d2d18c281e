"""A call of a layer carried from mark to mark: the states at the marks are nodes of the graph.

Between marks whoever computes the layer computes it, so a walk costs about a call of the layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from throughtime.backends.call import Call
from throughtime.diagnosis.observe.calls import State
from throughtime.diagnosis.observe.every_state import by_states
from throughtime.diagnosis.observe.steps import Steps
from throughtime.diagnosis.observe.watch import Rows
from throughtime.layers.batch import Batch, States
from throughtime.layers.sequence import SequenceLayer
from throughtime.scan import scan
from throughtime.scan.turned import Turn


@dataclass(frozen=True)
class Walk:
    """One layer and direction.

    Attributes:
        layer: number of the layer in its module.
        direction: 0 forward, 1 backward.
        lags: how many steps before the own last one each mark lies, largest first, 0 last.
        states: at each mark the cell's states, each (1, B, width).
        call: what the direction ran, turned to its own order.
    """

    layer: int
    direction: int
    lags: tuple[int, ...]
    states: tuple[State, ...]
    call: Call

    def gradients(self, value: Tensor) -> Tensor:
        """(marks, B, N): the total gradient of a value by the states side by side at each mark."""
        return by_states(value, self.states)

    def steps(self) -> Steps:
        """The steps that follow the marks, the last mark aside; what they lead to is left out."""
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
) -> tuple[Tensor, States, tuple[Walk, ...]]:
    """Run a layer without the masks of training and without gradients of its weights.

    Args:
        layer: without dilation.
        batch: time-major rows of one length, without resets.
        lags: of the marks, each from 0 to T - 1.
        last_only: outputs before each direction's own last step count as constants.

    Returns:
        The outputs (T, B, O), the final states, and the walks of every layer and direction.
    """
    marks, count = sorted({0, *lags}, reverse=True), len(layer.hidden_sizes)
    finals: list[State] = []
    walks: list[Walk] = []

    def run(number: int, call: Call) -> Tensor:
        cut = last_only and number + 1 == count
        ways = (call.direction(d) for d in range(layer.directions))
        parts = [_one_way(one, number, d, marks, cut) for d, one in enumerate(ways)]
        own = [w for w, _ in parts]
        walks.extend(own)
        finals.append(tuple(torch.cat(v) for v in zip(*(w.states[-1] for w in own), strict=True)))
        return torch.stack([out for _, out in parts], 2)

    with torch.enable_grad():
        y = layer.through(batch._replace(x=batch.x.detach()), run, cut=last_only)
    return y, tuple(finals), tuple(walks)


def _one_way(call: Call, number: int, d: int, lags: list[int], cut: bool) -> tuple[Walk, Tensor]:
    """From mark to mark in the direction's own order; the outputs (T, B, width) in time's order."""
    call, turn = in_own_order(apart(call), d)
    states, outputs = [], []
    for y, state in _parts(call, lags):
        states.append(state)
        # The last output is the state itself, so that all that hangs on it hangs on the mark.
        outputs += [y[:-1].detach() if cut else y[:-1]]
        outputs += [state[0].detach() if cut and len(states) < len(lags) else state[0]]
    y = torch.cat(outputs)
    return Walk(number, d, tuple(lags), tuple(states), call), y if turn is None else turn.back(y)


def apart(call: Call) -> Call:
    """The call with its weights as constants, and gradients by the state it starts from."""
    weights = tuple({n: w.detach() for n, w in v.items()} for v in call.weights)
    start = tuple(v.detach().requires_grad_() for v in call.start())
    return call._replace(weights=weights, state=start, initial=None)


def in_own_order(call: Call, d: int) -> tuple[Call, Turn | None]:
    """A call of one direction as a forward one, and the way back for what it gives."""
    turn = Turn(call) if d else None
    return (call if turn is None else turn.call(call)), turn


def states_at(call: Call, lags: Sequence[int]) -> Iterator[State]:
    """The states of a forward call so many steps before its last, largest lag first."""
    return (state for _, state in _parts(call, lags))


def _parts(call: Call, lags: Sequence[int]) -> Iterator[tuple[Tensor, State]]:
    """Outputs up to each mark, from the one before on, and the state there."""
    state = call.start()
    for start, end in pairwise([0, *(len(call.x) - k for k in lags)]):
        y, state = _part(call._replace(state=state), slice(start, end))
        yield y, state


def _part(call: Call, steps: slice) -> tuple[Tensor, State]:
    """The outputs of some steps, and the state after them."""
    inputs = call.inputs and {n: v[steps] for n, v in call.inputs.items()}
    zoneout = call.zoneout and tuple(v[:, steps] for v in call.zoneout)
    (y,), state = scan(call._replace(x=call.x[steps], inputs=inputs, zoneout=zoneout))
    return y[:, :, 0], state


def sent_back(y: Tensor, finals: States, rows: Rows) -> Tensor | None:
    """A scalar of which the outputs and final states have the gradients that came back."""
    parts = [] if rows.d_outputs is None else [(y * rows.d_outputs).sum()]
    for state, d_state in zip(finals, rows.d_final or (), strict=rows.d_final is not None):
        parts += [(v * d).sum() for v, d in zip(state, d_state, strict=True)]
    total = torch.stack(parts).sum() if parts else None
    return total if total is not None and total.requires_grad else None
