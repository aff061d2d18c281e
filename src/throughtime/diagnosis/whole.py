"""A call of a layer carried whole, whose backward writes the norm of every state's gradient.

One pass forward and one back for all layers and directions, where `walk` takes one a mark.
"""

from __future__ import annotations

import torch
from torch import Tensor

from throughtime.backends.call import Call, Result
from throughtime.diagnosis.calls import State
from throughtime.diagnosis.rows import Rows
from throughtime.diagnosis.walk import Walk, apart, in_own_order, states_at
from throughtime.layers.batch import Batch
from throughtime.layers.merge import merged
from throughtime.layers.sequence import SequenceLayer
from throughtime.scan import scan


def norms_by_lag(layer: SequenceLayer, rows: Rows) -> list[tuple[Walk, Tensor | None]]:
    """Every layer and direction: its states at a few marks, and (T, B) the norms by lag, 0 first.

    The norms are those of the gradient by all states of a step side by side, of the loss that
    sends these gradients back to the last step; None where it does not see the layer.

    Args:
        layer: without dilation.
        rows: time-major, of one length of at least 2 steps, without resets; on the CPU this is
            fast, elsewhere a loop over time.
    """
    with torch.enable_grad():
        calls, results = _carried(layer, rows.batch)
        seen = _sent_back(layer, results, rows, _leaves(calls))
    return [
        (_marked(call, r, number, d), _by_lag(call, d) if seen else None)
        for number, (call, r) in enumerate(zip(calls, results, strict=True))
        for d in range(layer.directions)
    ]


def _carried(layer: SequenceLayer, batch: Batch) -> tuple[list[Call], list[Result]]:
    """What each layer is called with, and gives."""
    x = batch.x.detach().requires_grad_(bool(layer.cell.layout.input_gates))
    calls: list[Call] = []
    results: list[Result] = []

    def run(_: int, call: Call) -> Tensor:
        call = apart(call)
        T, B, D = *call.x.shape[:2], call.directions
        if call.x.requires_grad:  # the start would have all weights' sums made, too
            call = call._replace(state=tuple(v.detach() for v in call.start()))
        call = call._replace(norms=call.x.new_zeros(T, B, D, len(layer.cell.state_names)))
        calls.append(call)
        results.append(scan(call))
        return results[-1].sequences[0]

    layer.through(batch._replace(x=x), run)
    return calls, results


def _leaves(calls: list[Call]) -> list[Tensor]:
    """What gradients go back to on their way past every state."""
    x = calls[0].x
    return [x] if x.requires_grad else [v for call in calls for v in call.start()]


def _sent_back(
    layer: SequenceLayer, results: list[Result], rows: Rows, leaves: list[Tensor]
) -> bool:
    """Let what came back to each direction's own last step go on to the leaves; False: nothing."""
    sent = [] if rows.d_outputs is None else [_ends(layer, results[-1], rows.d_outputs)]
    for result, d_state in zip(results, rows.d_final or (), strict=rows.d_final is not None):
        sent += zip(result.final, d_state, strict=True)
    sent = [(v, d) for v, d in sent if v.requires_grad]
    if sent:
        values, gradients = zip(*sent, strict=True)
        torch.autograd.grad(values, leaves, gradients, allow_unused=True)
    return bool(sent)


def _ends(layer: SequenceLayer, result: Result, d_y: Tensor) -> tuple[Tensor, Tensor]:
    """The outputs of each direction's own last step, other steps as constants, and what came back.

    What a residual adds to them is a constant, as all earlier outputs are.
    """
    y, merge = result.sequences[0], layer.options.merge
    if layer.directions == 1:
        return merged(y[-1:], merge), d_y[-1:]
    first, last = y[:1], y[-1:]
    both = (
        torch.cat((first[:, :, :1].detach(), first[:, :, 1:]), 2),
        torch.cat((last[:, :, :1], last[:, :, 1:].detach()), 2),
    )
    return merged(torch.cat(both), merge), d_y[:: len(d_y) - 1]


def _by_lag(call: Call, d: int) -> Tensor:
    assert call.norms is not None
    norms: Tensor = call.norms[:, :, d].double().norm(dim=-1)
    return norms if d else norms.flip(0)


@torch.no_grad()
def _marked(call: Call, result: Result, number: int, d: int) -> Walk:
    """The states a third of the steps back and one step back.

    The output is one of them; where there are others, they are carried there once more.
    """
    lags = sorted({0, 1, (len(call.x) - 1) // 3}, reverse=True)
    one, _ = in_own_order(call.direction(d)._replace(norms=None), d)
    states: tuple[State, ...]
    if len(result.final) == 1:
        T, y = len(one.x), result.sequences[0][:, :, d].detach()
        at = [k if d else T - 1 - k for k in lags]
        states = tuple((v.unsqueeze(0),) for v in y[at])
    else:
        last = tuple(v[d : d + 1].detach() for v in result.final)
        states = (*states_at(one, lags[:-1]), last)
    return Walk(number, d, tuple(lags), states, one)
