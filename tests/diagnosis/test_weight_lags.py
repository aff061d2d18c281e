"""Weight gradients by lag: they sum to `.grad`, and each is what a network cut in time gives."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.cells.table import CELLS
from throughtime import GRU, LSTM, Cell, Recurrent, cells
from throughtime.diagnosis.quantities.weight_lags import weight_lags
from throughtime.errors import OptionError

T, B = 9, 2


def _x(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def _every_step(y: Tensor) -> Tensor:
    return (y.cos() * _x(*y.shape)).sum()


def _by_copies(layer: Recurrent, x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """(T, P): G_k with a copy of the weights for each step and a loss for each step alone.

    The gradient of the loss at step t by the copy used at step u belongs to lag t - u.
    """
    parts = torch.zeros(T, sum(p.numel() for p in layer.parameters()), dtype=torch.float64)
    copies = [copy.deepcopy(layer) for _ in range(T)]
    outputs, state = [], None
    for t in range(T):
        y, state = copies[t](x[t : t + 1], state)
        outputs.append(y[0])
    y = torch.stack(outputs)
    (d_y,) = torch.autograd.grad(loss(y), y, retain_graph=True)
    for t in range(T):
        for u in range(t + 1):
            weights = list(copies[u].parameters())
            found = torch.autograd.grad(
                outputs[t], weights, d_y[t], retain_graph=True, allow_unused=True
            )
            parts[t - u] += torch.cat([
                (torch.zeros_like(w) if v is None else v).flatten()
                for w, v in zip(weights, found, strict=True)
            ])  # fmt: skip
    return parts


@pytest.mark.parametrize(
    "cell", [cells.LSTM(), cells.GRU(), cells.Elman(), cells.Skip(2)], ids=repr
)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("loss", [_every_step, lambda y: y[-1].sum()], ids=["all", "last"])
def test_every_lag_is_that_of_copied_weights(cell: Cell, residual: bool, loss: Any) -> None:
    torch.manual_seed(1)
    layer = Recurrent(cell, 3, [4, 4], residual=residual, dtype=torch.float64, backend="reference")
    x = _x(T, B, 3)
    parts = _by_copies(layer, x, loss)
    (found,) = weight_lags(layer, lambda: loss(layer(x)[0]))
    assert found.norm_by_lag == pytest.approx(parts.norm(dim=1).tolist(), rel=1e-9, abs=1e-14)
    g, sums = parts.sum(0), parts.cumsum(0)
    assert found.share_by_lag == pytest.approx((sums.norm(dim=1) / g.norm()).tolist(), rel=1e-9)
    cosines = (sums @ g) / (sums.norm(dim=1) * g.norm())
    assert found.cosine_by_lag == pytest.approx(cosines.tolist(), rel=1e-9)
    assert found.unexplained_share < 1e-12


@pytest.mark.parametrize("cell", CELLS, ids=repr)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_lags_sum_to_the_gradient(cell: Cell, bidirectional: bool) -> None:
    torch.manual_seed(1)
    layer = Recurrent(cell, 3, 5, bidirectional=bidirectional, merge="mul", dtype=torch.float64)
    x = _x(T, B, 3)
    inputs = {n: _x(T, B, cell.width(w, 5)).abs() for n, w in cell.inputs.items()}
    for found in weight_lags(layer, lambda: _every_step(layer(x, inputs=inputs or None)[0])):
        assert found.unexplained_share < 1e-10
        assert found.cosine_by_lag[-1] == pytest.approx(1)


class Tagger(nn.Module):
    """Batch-first layers in float32 whose last state counts as well as each output."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.below, self.layer, self.head = nn.Linear(2, 3), layer, nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        y, state = self.layer(self.below(x))
        last = state[1] if isinstance(state, tuple) else state
        found: Tensor = self.head(y).pow(2).mean() + last.sin().sum()
        return found


@pytest.mark.parametrize("kind", [LSTM, GRU])
def test_drop_ins_inside_a_model_whose_last_state_counts(kind: Any) -> None:
    torch.manual_seed(0)
    model = Tagger(kind(3, 5, num_layers=2, batch_first=True, dropout=0.5))
    x = torch.randn(B, T, 2)
    (found,) = weight_lags(model.layer, lambda: model(x))
    assert found.unexplained_share < 1e-5
    assert model.layer.training
    assert all(p.grad is None for p in model.parameters())
    assert found.steps_to(0.99) == next(k for k in range(T) if min(found.cosine_by_lag[k:]) >= 0.99)


def test_a_linear_unit_by_hand() -> None:
    """h_t = h_{t-1} / 2 + w x_t, loss h_T, x = 1: by w 2^-k; by the 1/2, h_{T-1-k} 2^-k."""
    layer = Recurrent(cells.IndRNN("identity"), 1, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.get_parameter("u_l0").fill_(0.5)
        layer.get_parameter("weight_ih_l0").fill_(1)
    (found,) = weight_lags(
        layer, lambda: layer(torch.ones(6, 1, 1, dtype=torch.float64))[0][-1].sum()
    )
    h = [2 - 2.0**-t * 2 for t in range(6)]
    by_hand = [2.0**-k * (1 + h[5 - k] ** 2) ** 0.5 for k in range(6)]
    assert found.norm_by_lag == pytest.approx(by_hand)


def test_frozen_weights_are_left_out() -> None:
    """With u frozen the parts are those of w alone: 2^-k."""
    layer = Recurrent(cells.IndRNN("identity"), 1, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.get_parameter("u_l0").fill_(0.5).requires_grad_(False)
    x = torch.ones(6, 1, 1, dtype=torch.float64)
    (found,) = weight_lags(layer, lambda: layer(x)[0][-1].sum())
    assert found.norm_by_lag == pytest.approx([2.0**-k for k in range(6)])
    nn.utils.parametrizations.weight_norm(layer, "weight_ih_l0")
    with pytest.raises(OptionError, match="the layer's weights are parametrised; remove"):
        weight_lags(layer, lambda: layer(x)[0][-1].sum())


def test_a_gradient_that_dies_ends_in_zeros() -> None:
    """Beyond the lag at which nothing comes back all parts are 0, and the cosine stays."""
    layer = Recurrent(cells.Elman("identity"), 1, 3, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.get_parameter("weight_hh_l0").copy_(torch.diag(torch.ones(2), 1))
    x = _x(T, B, 1)
    (found,) = weight_lags(layer, lambda: layer(x)[0][-1].sum())
    assert [v > 0 for v in found.norm_by_lag] == [True] * 3 + [False] * (T - 3)
    assert found.cosine_by_lag[2:] == pytest.approx([1] * (T - 2))


def test_what_cannot_be_taken_apart_is_refused() -> None:
    layer = Recurrent(cells.GRU(), 3, 4, dtype=torch.float64, return_state=False)
    x = _x(T, B, 3)
    for loss, text in (
        (lambda: (layer(x) + layer(x)).sum(), "must run once in the loss, it ran 2 times"),
        (lambda: x.sum(), "must run once in the loss, it ran 0 times"),
        (lambda: layer(x), "the loss must be one finite number"),
        (lambda: layer(x * torch.nan).sum(), "the loss must be one finite number, got nan"),
        (lambda: layer(x).sum() * 0, "gradient of the layer's weights is zero"),
        (lambda: layer(x, lengths=[0, 0]).sum(), "needs at least one step|is zero"),
        (lambda: layer(x[:0]).sum(), "needs at least one step|is zero"),
    ):
        with pytest.raises((OptionError, ValueError), match=text):
            weight_lags(layer, loss)
    frozen = copy.deepcopy(layer).requires_grad_(False)
    with pytest.raises(OptionError, match="no weight of the layer trains"):
        weight_lags(frozen, lambda: frozen(x).sum())
    for options in ({"dilation": 2}, {"zoneout": 0.1}):
        other = Recurrent(cells.GRU(), 3, 4, **options)
        with pytest.raises(OptionError, match="layers without zoneout and dilation"):
            weight_lags(other, lambda: x.sum())
    deep = Recurrent(cells.GRU(), 3, [4, 4], bidirectional=True)
    with pytest.raises(OptionError, match="several bidirectional layers a path goes back and for"):
        weight_lags(deep, lambda: x.sum())


@pytest.mark.parametrize("kind", [LSTM, GRU])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_last_state_alone_of_rows_and_of_a_single_row(kind: Any, bidirectional: bool) -> None:
    """A loss of h_n alone, which starts at a state given, with and without a batch."""
    torch.manual_seed(0)
    layer = kind(3, 5, bidirectional=bidirectional, dtype=torch.float64)
    D = 2 if bidirectional else 1
    for x, start in ((_x(T, B, 3), _x(D, B, 5)), (_x(T, 3), _x(D, 5))):
        given = (start, start.clone()) if kind is LSTM else start

        def loss(x: Tensor = x, given: Any = given) -> Tensor:
            state = layer(x, given)[1]
            h: Tensor = state[0] if kind is LSTM else state
            return h.sin().sum()  # noqa: B023

        for found in weight_lags(layer, loss):
            assert found.unexplained_share < 1e-10
            assert len(found.norm_by_lag) == T


def test_states_of_every_layer_count() -> None:
    torch.manual_seed(0)
    layer = Recurrent(cells.LSTM(), 3, [5, 4], batch_first=True, dtype=torch.float64)
    x = _x(B, T, 3)
    (found,) = weight_lags(layer, lambda: sum(v.cos().sum() for part in layer(x)[1] for v in part))
    assert found.unexplained_share < 1e-10
