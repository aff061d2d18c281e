"""The panels of a report: bands, torch's own start, the few rows, and the reasons for gaps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import throughtime
from throughtime import LSTM, from_torch, initialise
from throughtime.diagnosis.quantities.weight_lags import weight_lags
from throughtime.diagnosis.report import Report
from throughtime.errors import OptionError

T, B, H = 24, 5, 8


def _x(seed: int, steps: int = T) -> Tensor:
    return torch.rand(steps, B, 3, generator=torch.Generator().manual_seed(seed))


def _curve(report: Report) -> tuple[float, ...]:
    return report.lag_gradients[0].log10_rho_by_lag


def test_a_band_goes_from_least_to_greatest_of_three_batches() -> None:
    torch.manual_seed(0)
    layer, batches = nn.GRU(3, H), [_x(s) for s in range(4)]
    (band,) = throughtime.diagnose(layer, batches).bands
    curves = [_curve(throughtime.diagnose(layer, x)) for x in batches[:3]]
    assert band.batches == 3
    for k in range(T):
        values = sorted(c[k] for c in curves)
        assert band.lowest_log10_rho_by_lag[k] == pytest.approx(values[0], rel=1e-6)
        assert band.highest_log10_rho_by_lag[k] == pytest.approx(values[2], rel=1e-6)


def test_torch_s_own_start_is_that_of_no_weights_of_the_model() -> None:
    torch.manual_seed(0)
    found = []
    for tau in (10.0, 100.0):
        layer = initialise(LSTM(3, H), timescales=(tau, 2 * tau))
        state = torch.get_rng_state()
        report = throughtime.diagnose(layer, _x(0))
        assert torch.equal(state, torch.get_rng_state())
        found.append(report.torch_default)
    assert found[0] == found[1]
    own = [_own_start(seed) for seed in range(8)]
    assert min(own) < found[0][0].log10_rho_by_lag[-1] < max(own)


def _own_start(seed: int) -> float:
    """log10 rho(T - 1) of a fresh torch.nn.LSTM."""
    torch.manual_seed(seed)
    return _curve(throughtime.diagnose(nn.LSTM(3, H), _x(0)))[-1]


@pytest.mark.parametrize("bidirectional", [False, True])
def test_weight_lags_of_few_rows_are_those_of_a_loss_of_these_rows(bidirectional: bool) -> None:
    torch.manual_seed(0)
    layer: Any = from_torch(nn.LSTM(3, H, bidirectional=bidirectional).double())
    x = _x(0).double()

    def loss(rows: int) -> Tensor:
        y, (h, _) = layer(x)
        value: Tensor = y[:, :rows].square().sum() + h[:, :rows].sum()
        return value

    few = weight_lags(layer, lambda: loss(B), rows=2)
    alone = weight_lags(layer, lambda: loss(2))
    assert len(few) == len(alone) == 1 + bidirectional
    for a, b in zip(few, alone, strict=True):
        assert a.norm_by_lag == pytest.approx(b.norm_by_lag, rel=1e-9)
        assert a.cosine_by_lag == pytest.approx(b.cosine_by_lag, abs=1e-9)
        assert a.unexplained_share < 1e-9


class Two(nn.Module):
    """Two recurrent modules, one behind the other."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.GRU(3, H, batch_first=True), nn.LSTM(H, 6, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.up(self.down(x)[0])[0]
        return y


def test_every_panel_names_every_module_and_survives_json() -> None:
    torch.manual_seed(0)
    batches = [_x(s).transpose(0, 1) for s in range(2)]
    report = throughtime.diagnose(Two(), batches, lambda y: y.square().mean(), lag=5)
    for panel in (report.connectivity, report.capacities, report.weight_lags, report.modules,
                  report.bands, report.torch_default, report.lag_gradients):  # fmt: skip
        assert [v.name for v in panel] == ["down", "up"]  # type: ignore[attr-defined]
    assert report.missing == () and report.evenness is not None
    assert {s.name for s in report.evenness.shares} == {"down", "up"}
    assert report.clipping is not None and report.clipping.threshold is None
    assert report.clipping.clip_rate is None and report.clipping.split_half_cosine > 0.5
    assert len(report.capacities[0].r2_by_lag) == 2 * H + 1
    assert Report.from_json(report.to_json()) == report


def _reasons(report: Report) -> dict[str, str]:
    return {m.quantity: m.reason for m in report.missing}


def test_what_cannot_be_measured_has_its_reason() -> None:
    short = throughtime.diagnose(nn.GRU(3, H), _x(0, 8))
    reasons = _reasons(short)
    assert set(reasons) == {"bands", "jacobians", "clipping"}
    assert "more than 10 steps, got 8" in reasons["jacobians"]
    assert "at least 2 batches, got 1" in reasons["bands"]
    assert "at least 2 batches, got 1" in reasons["clipping"]
    assert short.bands == () and short.clipping is None and short.modules[0].jacobians == ()
    stack = throughtime.diagnose(nn.GRU(3, H, 2, bidirectional=True), _x(0))
    assert "several bidirectional layers" in _reasons(stack)["weight_lags"]
    assert stack.weight_lags == () and len(stack.capacities) == 4
    assert (
        "takes minutes" in _reasons(throughtime.diagnose(nn.GRU(3, 1100), _x(0, 4)))["capacities"]
    )


@pytest.mark.parametrize("clip", [0, -1.0, math.inf, math.nan, True])
def test_a_clip_outside_its_rule_is_refused(clip: Any) -> None:
    with pytest.raises(OptionError, match="clip must be a finite number above 0, got"):
        throughtime.diagnose(nn.GRU(3, H), _x(0), clip=clip)


@pytest.mark.parametrize("truncation", [0, True, 2.5])
def test_a_truncation_outside_its_rule_is_refused(truncation: Any) -> None:
    with pytest.raises(OptionError, match="truncation must be a positive number of steps, got"):
        throughtime.diagnose(nn.GRU(3, H), _x(0), truncation=truncation)


def test_a_long_iterable_is_not_run_through() -> None:
    taken = []

    def endless() -> Any:
        while True:
            taken.append(0)
            yield _x(len(taken))

    report = throughtime.diagnose(nn.GRU(3, H), endless())
    assert len(taken) == 16 and report.clipping is not None and len(report.clipping.norms) == 16


def test_updates_are_measured_where_the_weights_before_are_given() -> None:
    torch.manual_seed(0)
    layer = nn.GRU(3, H)
    before = {n: v.clone() for n, v in layer.state_dict().items()}
    with torch.no_grad():
        for p in layer.parameters():
            p *= 1.01
    found = throughtime.diagnose(layer, _x(0), before=before).evenness
    assert found is not None and found.kind == "update"
    assert [s.ratio for s in found.shares] == pytest.approx([0.01] * 12, rel=1e-3)
