"""Linear memory capacity: networks whose memory is known, and a loop that does the same."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from throughtime import LSTM, Recurrent, cells, initialise
from throughtime.diagnosis.quantities.capacity import memory_capacity, read_back
from throughtime.errors import OptionError, ShapeError


def _linear(matrix: Tensor, into: Tensor, **options: Any) -> Recurrent:
    """h_t = U h_{t-1} + w u_t."""
    n = len(matrix)
    layer = Recurrent(cells.Elman("identity"), 1, n, bias=False, dtype=torch.float64, **options)
    with torch.no_grad():
        for direction in range(layer.directions):
            weights = layer.weights(0, direction)
            weights["weight_hh"].copy_(matrix)
            weights["weight_ih"].copy_(into.unsqueeze(1))
    return layer


def _shift_register(n: int, **options: Any) -> Recurrent:
    """Unit i hands what it holds to unit i + 1; the input goes into the first."""
    return _linear(torch.diag(torch.ones(n - 1), -1), torch.eye(n)[0], **options)


@pytest.mark.parametrize("n", [1, 7, 32])
def test_a_shift_register_of_n_units_remembers_n_inputs(n: int) -> None:
    (found,) = memory_capacity(_shift_register(n), lags=2 * n + 5)
    assert found.capacity == pytest.approx(n, rel=0.01)
    assert found.memory_steps == n - 1  # and lag 0
    assert found.r2_by_lag[:n] == pytest.approx([1] * n, abs=1e-3)
    assert sum(found.r2_by_lag[n:]) < 0.01
    assert found.lags_suffice


def test_both_directions_remember_their_own_past() -> None:
    found = memory_capacity(_shift_register(5, bidirectional=True), lags=12)
    assert [f.direction for f in found] == [0, 1]
    assert [f.capacity for f in found] == pytest.approx([5, 5], rel=0.01)


@pytest.mark.parametrize("a", [0.3, 0.9])
def test_a_leaky_unit_s_curve_is_the_formula(a: float) -> None:
    """h_t = a h_{t-1} + u_t: r^2(k) = a^(2k) (1 - a^2), in all 1."""
    matrix, into = torch.tensor([[a]], dtype=torch.float64), torch.ones(1)
    (found,) = memory_capacity(_linear(matrix, into), lags=40, samples=200_000)
    formula = [a ** (2 * k) * (1 - a * a) for k in range(41)]
    assert found.r2_by_lag == pytest.approx(formula, abs=0.006)
    assert found.capacity == pytest.approx(1, abs=0.03)
    assert found.memory_steps == (0 if a < 0.7 else -1)


def _r2_by_hand(states: Tensor, u: Tensor, k: int, edge: int) -> float:
    """Fit and correlation with sums written out; the ridge as N more rows of the fit."""
    T, B, N = states.shape
    places = [(t, b) for t in range(edge, T - edge) for b in range(B)]
    fit = [(t, b) for t, b in places if b < B // 2]
    held = [(t, b) for t, b in places if b >= B // 2]
    mean = torch.stack([states[t, b] for t, b in fit]).mean(0)
    rows = torch.stack([states[t, b] - mean for t, b in fit])
    target = torch.stack([u[t - k, b] for t, b in fit])
    ridge = math.sqrt(1e-6 * float((rows**2).sum()) / N)
    rows = torch.cat((rows, ridge * torch.eye(N, dtype=torch.float64)))
    target = torch.cat((target - target.mean(), torch.zeros(N, dtype=torch.float64)))
    weights = torch.linalg.lstsq(rows, target.unsqueeze(1)).solution.squeeze(1)
    guess = [float((states[t, b] - mean) @ weights) for t, b in held]
    truth = [float(u[t - k, b]) for t, b in held]
    r = torch.corrcoef(torch.tensor([guess, truth], dtype=torch.float64))[0, 1]
    return float(r**2)


def test_every_number_is_a_loop_s() -> None:
    torch.manual_seed(1)
    layer = Recurrent(cells.GRU(), 1, 4, dtype=torch.float64)
    u = torch.rand(240, 4, dtype=torch.float64) - 0.5
    states = layer.trace(u.unsqueeze(-1))[0]["h"][:, :, 0].detach()
    found = read_back(states, u, 6)
    by_hand = [_r2_by_hand(states, u, k, 100) for k in range(7)]
    line = 8 / (40 * 2)
    assert (found.noise_line, found.held_out_steps) == (line, 80)
    assert found.r2_by_lag == pytest.approx([v if v >= line else 0 for v in by_hand], rel=1e-9)
    assert found.capacity == pytest.approx(sum(found.r2_by_lag))


def test_noise_is_remembered_by_nobody() -> None:
    """States that know nothing of the signal: what held-out data gives stays under the line."""
    draw = torch.Generator().manual_seed(0)
    states, u = torch.randn(900, 8, 20, generator=draw), torch.rand(900, 8, generator=draw)
    found = read_back(states, u, 200)
    assert found.capacity < 0.02
    assert found.memory_steps == -1


def test_capacity_tells_starts_apart() -> None:
    """An orthogonal network remembers its input several times longer than torch's start does."""
    torch.manual_seed(0)
    plain = Recurrent(cells.Elman(), 1, 32)
    (before,) = memory_capacity(plain)
    (after,) = memory_capacity(initialise(plain, "orthogonal"))  # type: ignore[arg-type]
    assert after.capacity > 2 * before.capacity
    assert after.capacity <= 32


def test_small_inputs_lie_over_one_another_in_an_orthogonal_network() -> None:
    """Without biases it is nearly linear on them and forgets none, so that none is read well."""
    torch.manual_seed(0)
    layer = initialise(Recurrent(cells.Elman(), 1, 32), "orthogonal")
    (found,) = memory_capacity(layer, scale=0.1)  # type: ignore[arg-type]
    assert found.memory_steps == -1
    assert 0.1 < found.r2_by_lag[60] and found.r2_by_lag[0] < 0.4


def test_every_layer_is_measured() -> None:
    """Three units that shift what the last of four below gives them: lags 3, 4, 5."""
    layer = Recurrent(cells.Elman("identity"), 1, [4, 3], bias=False, dtype=torch.float64)
    with torch.no_grad():
        for number, n in enumerate((4, 3)):
            weights = layer.weights(number, 0)
            weights["weight_hh"].copy_(torch.diag(torch.ones(n - 1), -1))
            weights["weight_ih"].zero_()[0, -1] = 1
    below, above = memory_capacity(layer, lags=9)
    assert [below.capacity, above.capacity] == pytest.approx([4, 3], rel=0.01)
    assert above.r2_by_lag == pytest.approx([0, 0, 0, 1, 1, 1, 0, 0, 0, 0], abs=1e-3)


def test_a_layer_in_training_is_left_as_it_was() -> None:
    layer = LSTM(3, 8, num_layers=2, dropout=0.5)
    found = memory_capacity(layer)
    assert [(f.layer, f.state_width) for f in found] == [(0, 16), (1, 16)]
    assert layer.training
    assert found == memory_capacity(layer)  # no dropout was drawn


def test_a_state_that_never_moves_knows_nothing() -> None:
    layer = _linear(torch.zeros(3, 3), torch.zeros(3))
    (found,) = memory_capacity(layer, lags=5)
    assert (found.capacity, found.memory_steps) == (0, -1)


def test_what_cannot_be_measured_is_refused() -> None:
    states, noise = torch.randn(210, 2, 3), torch.rand(210, 2)
    with pytest.raises(OptionError, match="the signal is constant, so there is nothing to rem"):
        read_back(states, torch.ones(210, 2), 4)
    with pytest.raises(OptionError, match="states of layer 0 must be finite"):
        read_back(states * math.nan, noise, 4)
    with pytest.raises(
        ShapeError, match="4 lags need at least 2 rows of 202 steps, got 2 rows of 1"
    ):
        read_back(states[:1], noise[:1], 4)
    exploding = _linear(2 * torch.eye(2), torch.ones(2))
    with pytest.raises(OptionError, match="states of layer 0 must be finite"):
        memory_capacity(exploding, samples=20_000)
    for name, value in (("lags", 0), ("samples", True)):
        with pytest.raises(OptionError, match=f"{name} must be an integer of at least"):
            memory_capacity(exploding, **{name: value})
    with pytest.raises(OptionError, match="scale must be a finite number above 0, got 0"):
        memory_capacity(exploding, scale=0)
