"""One pass whose backward writes norms sees what a walk from mark to mark sees."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tolerance import TOLERANCE
from throughtime import GRU, LSTM, RNN, Recurrent, cells
from throughtime.diagnosis.observe import WatchedRows
from throughtime.diagnosis.observe.every_state import walk, weigh_outputs
from throughtime.diagnosis.quantities.reach import measure_norms_by_lag
from throughtime.layers.batch import Batch

T, B, I, H = 13, 3, 4, 5


def of_both(a: Tensor, b: Tensor) -> Tensor:
    """A merge that is not linear."""
    return a * b.tanh()


LAYERS: dict[str, Any] = {
    "lstm": lambda: LSTM(I, H),
    "two layers": lambda: GRU(I, H, 2),
    "both ways": lambda: LSTM(I, H, 2, bidirectional=True),
    "projected": lambda: LSTM(I, H, proj_size=3),
    "merged": lambda: Recurrent(cells.GRU(), I, (H, 7), bidirectional=True, merge=of_both),
    "residual": lambda: Recurrent(cells.Elman(), I, (H, H, H), residual=True),
    "zoneout": lambda: Recurrent(cells.LSTM(), I, H, zoneout=0.2),
    "clipped": lambda: Recurrent(cells.LSTM(), I, H, clip_gradient=1e-3),
    "learned start": lambda: Recurrent(cells.GRU(), I, H, learn_initial=True),
}


def rows_for(layer: Any, final: bool) -> WatchedRows:
    x = torch.randn(T, B, I)
    d_final = tuple(tuple(torch.randn_like(v) for v in s) for s in layer.initial_state(B))
    return WatchedRows(Batch(x), torch.randn(T, B, layer.output_size), d_final if final else None)


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_the_norms_are_those_of_the_gradients_at_every_mark(kind: str, final: bool) -> None:
    torch.manual_seed(0)
    layer = LAYERS[kind]().double()
    torch.set_default_dtype(torch.float64)
    try:
        rows = rows_for(layer, final)
    finally:
        torch.set_default_dtype(torch.float32)
    y, finals, walks = walk(layer, rows.batch, range(T), last_only=True)
    sent = weigh_outputs(y, finals, rows)
    assert sent is not None
    found = measure_norms_by_lag(layer, rows)
    assert [(w.layer, w.direction) for w, _ in found] == [(w.layer, w.direction) for w in walks]
    for walked, (marked, norms) in zip(walks, found, strict=True):
        expected = walked.gradients(sent).norm(dim=-1).flip(0)
        torch.testing.assert_close(norms, expected, **TOLERANCE[torch.float64])
        for lag, state in zip(marked.lags, marked.states, strict=True):
            other = walked.states[walked.lags.index(lag)]
            torch.testing.assert_close(state, other, **TOLERANCE[torch.float64])
        torch.testing.assert_close(marked.steps().x[-B:], walked.steps().x[-B:])


def test_a_loss_that_reads_nothing_has_no_norms_and_layers_stay_as_they_were() -> None:
    layer = RNN(I, H).train()
    found = measure_norms_by_lag(layer, WatchedRows(Batch(torch.randn(T, B, I)), None, None))
    assert [n for _, n in found] == [None]
    assert layer.training and all(p.grad is None for p in layer.parameters())


def test_a_loop_of_torchs_operations_has_the_same_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no compiled code takes a cell, as on another device, norms are the reference's."""
    torch.manual_seed(0)
    layer = LSTM(I, H)
    rows = rows_for(layer, True)
    ((_, compiled),) = measure_norms_by_lag(layer, rows)
    monkeypatch.setattr("throughtime.backends.cpu.refuses", lambda _: "not here")
    monkeypatch.setattr("throughtime.backends.torch_kernels.refuses", lambda _: "not here")
    ((_, looped),) = measure_norms_by_lag(layer, rows)
    torch.testing.assert_close(compiled, looped, rtol=1e-4, atol=1e-8)
