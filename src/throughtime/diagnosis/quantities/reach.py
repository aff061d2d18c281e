"""How far back one training step reaches: the gradient of every state, by its lag.

It takes one forward and one backward pass for all layers and directions; `walk` one a mark.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from throughtime.backends.call import Call, Result
from throughtime.diagnosis.observe import LayerDirection, WatchedRows
from throughtime.diagnosis.observe.calls import State
from throughtime.diagnosis.observe.every_state import (
    MarkedWalk,
    detach_call,
    orient,
    run_to_marks,
    walk,
    weigh_outputs,
)
from throughtime.diagnosis.quantities.gates import measure_share_at_ends, record_activities
from throughtime.errors import OptionError, ShapeError
from throughtime.layers import SequenceLayer
from throughtime.layers.batch import Batch
from throughtime.layers.options import merge_directions
from throughtime.scan import scan


def measure_norms_by_lag(
    layer: SequenceLayer, rows: WatchedRows
) -> list[tuple[MarkedWalk, Tensor | None]]:
    """Every layer and direction: its states at a few marks, and (T, B) the norms by lag, 0 first.

    The norms are those of the gradient by all states of a step side by side, of the loss that
    sends these gradients back to the last step; None where it does not see the layer. The layer
    has no dilation, and the rows are of one length; elsewhere than on the CPU it loops over time.
    """
    with torch.enable_grad():
        calls, results = _carry(layer, rows.batch)
        reached = _send_back(layer, results, rows, _list_leaves(calls))
    return [
        (_mark(call, r, number, d), _find_norms(call, d) if reached else None)
        for number, (call, r) in enumerate(zip(calls, results, strict=True))
        for d in range(layer.directions)
    ]


def _carry(layer: SequenceLayer, batch: Batch) -> tuple[list[Call], list[Result]]:
    """The call of each layer, and its result."""
    x = batch.x.detach().requires_grad_(bool(layer.cell.layout.input_gates))
    calls: list[Call] = []
    results: list[Result] = []

    def run(_: int, call: Call) -> Tensor:
        call = detach_call(call)
        T, B, D = *call.x.shape[:2], call.directions
        if call.x.requires_grad:  # a start with a gradient would cost all weights' sums, too
            call = call._replace(state=tuple(v.detach() for v in call.start()))
        call = call._replace(norms=call.x.new_zeros(T, B, D, len(layer.cell.state_names)))
        calls.append(call)
        results.append(scan(call))
        return results[-1].sequences[0]

    layer.through(batch._replace(x=x), run)
    return calls, results


def _list_leaves(calls: list[Call]) -> list[Tensor]:
    """The leaves of gradients that pass every state."""
    x = calls[0].x
    return [x] if x.requires_grad else [v for call in calls for v in call.start()]


def _send_back(
    layer: SequenceLayer, results: list[Result], rows: WatchedRows, leaves: list[Tensor]
) -> bool:
    """Send the gradients at each direction's last step on to the leaves; False: there are none."""
    sent = [] if rows.d_outputs is None else [_find_ends(layer, results[-1], rows.d_outputs)]
    for result, d_state in zip(results, rows.d_final or (), strict=rows.d_final is not None):
        sent += zip(result.final, d_state, strict=True)
    sent = [(v, d) for v, d in sent if v.requires_grad]
    if sent:
        values, gradients = zip(*sent, strict=True)
        torch.autograd.grad(values, leaves, gradients, allow_unused=True)
    return bool(sent)


def _find_ends(layer: SequenceLayer, result: Result, d_y: Tensor) -> tuple[Tensor, Tensor]:
    """The outputs of each direction's last step, other steps as constants, and their gradients.

    What a residual adds to them is a constant, as all earlier outputs are.
    """
    y, merge = result.sequences[0], layer.options.merge
    if layer.directions == 1:
        return merge_directions(y[-1:], merge), d_y[-1:]
    first, last = y[:1], y[-1:]
    both = (
        torch.cat((first[:, :, :1].detach(), first[:, :, 1:]), 2),
        torch.cat((last[:, :, :1], last[:, :, 1:].detach()), 2),
    )
    return merge_directions(torch.cat(both), merge), d_y[:: len(d_y) - 1]


def _find_norms(call: Call, d: int) -> Tensor:
    assert call.norms is not None
    norms: Tensor = call.norms[:, :, d].double().norm(dim=-1)
    return norms if d else norms.flip(0)


@torch.no_grad()
def _mark(call: Call, result: Result, number: int, d: int) -> MarkedWalk:
    """The states a third of the steps back and one step back.

    A single state is the output; several are computed again up to there.
    """
    lags = sorted({0, 1, (len(call.x) - 1) // 3}, reverse=True)
    one, _ = orient(call.direction(d)._replace(norms=None), d)
    states: tuple[State, ...]
    if len(result.final) == 1:
        T, y = len(one.x), result.sequences[0][:, :, d].detach()
        at = [k if d else T - 1 - k for k in lags]
        states = tuple((v.unsqueeze(0),) for v in y[at])
    else:
        last = tuple(v[d : d + 1].detach() for v in result.final)
        states = (*run_to_marks(one, lags[:-1]), last)
    return MarkedWalk(number, d, tuple(lags), states, one)


@dataclass(frozen=True)
class Pulse(LayerDirection):
    """One layer and direction in one training step.

    rho(k) is that of `LagGradient`: on the CPU at every lag, elsewhere at lags that triple and
    between them on the line through ln rho.

    Attributes:
        steps: T.
        log10_rho: lag -> log10 rho(lag), at the lags measured; empty where the loss does not see
            the layer's last step.
        saturated: the share of a bounded function's values, at a few steps, that stand at its
            ends; of several functions the largest, None where there are none.
    """

    steps: int
    log10_rho: dict[int, float]
    saturated: float | None

    @property
    def place(self) -> str:
        """The layer's name, as in `encoder.0` and `encoder.0.backward`."""
        return f"{self.name or 'model'}.{self.layer}{'.backward' if self.direction else ''}"

    def horizon_steps(self) -> int | None:
        """The first lag at which rho is below 1/1000; None where there is none."""
        level, before = -3.0, (0, 0.0)
        for k, value in self.log10_rho.items():
            if value < level:
                drop = before[1] - value
                part = (before[1] - level) / drop if math.isfinite(drop) else 1.0
                return min(k, math.floor(before[0] + part * (k - before[0])) + 1)
            before = k, value
        return None

    def at(self, lag: int) -> float:
        """log10 rho(lag)."""
        below = max(k for k in self.log10_rho if k <= lag)
        above = min(k for k in self.log10_rho if k >= lag)
        low, high = self.log10_rho[below], self.log10_rho[above]
        if below == above or not math.isfinite(high - low):
            return high
        return low + (high - low) * (lag - below) / (above - below)


def measure_pulses(
    name: str, layer: SequenceLayer, rows: WatchedRows, lag: int | None
) -> tuple[Pulse, ...]:
    """Measure every layer and direction of a module without dilation, on rows of a training step.

    Raises:
        ShapeError: sequences of one step.
        OptionError: the numbers are not finite, or a cell declares its gates wrongly.
    """
    T = rows.batch.x.shape[0]
    if T < 2:
        raise ShapeError(f"layer {name or 'of the model'} is given sequences of one step")
    lags = list_lags(T, lag)
    return tuple(
        Pulse(name, w.layer, w.direction, T, rho, _measure_saturation(w))
        for w, rho in _measure_reach(layer, rows, lags)
    )


def list_lags(steps: int, lag: int | None) -> list[int]:
    """0, ..., (T - 1) / 9, (T - 1) / 3, T - 1; and `lag` where it is below T."""
    lags, k = {0} if lag is None or lag >= steps else {0, lag}, steps - 1
    while k:
        lags.add(k)
        k //= 3
    return sorted(lags)


def _measure_reach(
    layer: SequenceLayer, rows: WatchedRows, lags: list[int]
) -> Iterator[tuple[MarkedWalk, dict[int, float]]]:
    """log10 rho by lag, for the loss that sends these gradients back to the last step."""
    if rows.batch.x.device.type == "cpu":
        for marked, norms in measure_norms_by_lag(layer, rows):
            yield marked, {} if norms is None else _log10_rho(range(len(norms)), norms)
        return
    y, finals, walks = walk(layer, rows.batch, lags, last_only=True)
    sent = weigh_outputs(y, finals, rows)
    for marked in walks:
        norms = None if sent is None else marked.gradients(sent).double().norm(dim=-1).flip(0)
        yield marked, {} if norms is None else _log10_rho(marked.lags[::-1], norms)


def _log10_rho(lags: Sequence[int], norms: Tensor) -> dict[int, float]:
    """Of the norms (lags, B), lag 0 first."""
    norms = norms[:, norms[0] > 0]  # a row that the loss does not see has no ratio
    if not norms.shape[1]:
        return {}
    if not bool(norms.isfinite().all()):
        raise OptionError("a gradient by the states is NaN or infinity")
    return dict(zip(lags, (norms / norms[0]).log10().mean(1).tolist(), strict=True))


@torch.no_grad()
def _measure_saturation(marked: MarkedWalk) -> float | None:
    shares = [measure_share_at_ends(f) for f in record_activities(marked.steps())]
    return max(torch.stack(shares).tolist()) if shares else None
