"""A call of a layer carried whole, whose backward writes the norm of every state's gradient.

One pass forward and one back for all layers and directions, where `walk` takes one a mark.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from throughtime.backends.call import Call, Result
from throughtime.diagnose.path import State
from throughtime.diagnose.walk import Walk, apart, in_own_order, sent_back, states_at
from throughtime.diagnose.watch import Rows
from throughtime.layers.batch import Batch
from throughtime.layers.merge import merged
from throughtime.layers.sequence import SequenceLayer
from throughtime.scan import scan


def norms_by_lag(
    layer: SequenceLayer, rows: Rows, lags: Sequence[int]
) -> list[tuple[Walk, Tensor | None]]:
    """Every layer and direction: its states at the marks, and (T, B) the norms by lag, 0 first.

    The norms are those of the gradient by all states of a step side by side, of the loss that
    sends these gradients back to the last step; None where it does not see the layer.

    Args:
        layer: without dilation.
        rows: time-major, of one length, without resets; on the CPU this is fast.
        lags: of the marks, each from 0 to T - 1.
    """
    was_training = layer.training
    layer.training = False
    try:
        with torch.enable_grad():
            y, calls, results = _through_layers(layer, rows.batch)
        sent = sent_back(y, tuple(r.final for r in results), rows)
        if sent is not None:
            starts = [v for call in calls for v in call.state or ()]
            torch.autograd.grad(sent, starts, allow_unused=True)
        marks = sorted({0, *lags}, reverse=True)
        return [
            (_marked(call, r, number, d, marks), None if sent is None else _by_lag(call, d))
            for number, (call, r) in enumerate(zip(calls, results, strict=True))
            for d in range(layer.directions)
        ]
    finally:
        layer.training = was_training


def _through_layers(layer: SequenceLayer, batch: Batch) -> tuple[Tensor, list[Call], list[Result]]:
    """The outputs, of which all but each direction's own last are constants; calls and results."""
    y, calls, results = batch.x.detach(), [], []
    for number in range(len(layer.hidden_sizes)):
        call = apart(layer._masked(layer._call(number, batch._replace(x=y)), 1))
        T, B, D = *call.x.shape[:2], call.directions
        call = call._replace(norms=call.x.new_zeros(T, B, D, len(layer.cell.state_names)))
        result, cut = scan(call), number + 1 == len(layer.hidden_sizes)
        outputs = _last_only(result.sequences[0]) if cut else result.sequences[0]
        below, y = y, merged(outputs, layer.options.merge)
        if layer.options.residual and number:
            y = y + (below.detach() if cut else below)
        calls.append(call)
        results.append(result)
    return y, calls, results


def _last_only(y: Tensor) -> Tensor:
    """(T, B, D, width) of which gradients reach each direction's own last step alone."""
    last = torch.zeros(len(y), 1, y.shape[2], 1, dtype=torch.bool, device=y.device)
    last[-1, :, 0] = True
    last[0, :, 1:] = True
    return torch.where(last, y, y.detach())


def _by_lag(call: Call, d: int) -> Tensor:
    assert call.norms is not None
    norms = call.norms[:, :, d].double().norm(dim=-1)
    return norms if d else norms.flip(0)


@torch.no_grad()
def _marked(call: Call, result: Result, number: int, d: int, lags: list[int]) -> Walk:
    """The states at the marks: the output is one, and others are carried there once more."""
    one, _ = in_own_order(call.direction(d)._replace(norms=None), d)
    states: tuple[State, ...]
    if len(result.final) == 1:
        T, y = len(one.x), result.sequences[0][:, :, d].detach()
        at = [k if d else T - 1 - k for k in lags]
        states = tuple((v.unsqueeze(0),) for v in y[at])
    else:
        states = tuple(states_at(one, lags))
    return Walk(number, d, tuple(lags), states, one)
