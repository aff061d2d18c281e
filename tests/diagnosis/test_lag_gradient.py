"""The lag gradient: equal to a loop by hand with retain_grad, and right about known networks."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from throughtime import Recurrent, cells
from throughtime.diagnosis.observe.batches import list_batches
from throughtime.diagnosis.observe.examined import ExaminedModel
from throughtime.diagnosis.quantities.lag_gradient import lag_gradients
from throughtime.errors import OptionError, ShapeError

T, B = 12, 4


def _x(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(3))


class Classifier(nn.Module):
    """A recurrent layer and a linear read-out of its last output."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.layer, self.out = layer, nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.layer(x)[0][-1])
        return y


def _by_hand(model: Classifier, kind: str, x: Tensor) -> list[float]:
    """ln rho of a one-layer network, with torch's own cell in a loop and retain_grad."""
    layer: Any = model.layer
    made = {"RNN": nn.RNNCell, "LSTM": nn.LSTMCell, "GRU": nn.GRUCell}[kind](3, 8)
    made.load_state_dict({n.removesuffix("_l0"): v for n, v in layer.state_dict().items()})
    state = torch.zeros(B, 16 if kind == "LSTM" else 8)
    states = []
    for t in range(T):
        new = made(x[t], tuple(state.split(8, 1)) if kind == "LSTM" else state)
        state = torch.cat(new, 1) if kind == "LSTM" else new
        state.requires_grad_().retain_grad()
        states.append(state)
    model.out(state[:, :8]).square().mean().backward()
    grads = torch.stack([s.grad.double().norm(dim=1) for s in states if s.grad is not None])
    rho: list[float] = (grads.flip(0) / grads[-1]).log().mean(1).tolist()
    return rho


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_rho_is_that_of_a_loop_with_retain_grad(kind: str) -> None:
    torch.manual_seed(0)
    model = Classifier(getattr(nn, kind)(3, 8), 8)
    x = _x(T, B, 3)
    seen = ExaminedModel(model).run(x, lambda y: y.square().mean(), last_only=True)
    (found,) = lag_gradients(seen)
    expected = [v / math.log(10) for v in _by_hand(model, kind, x)]
    rho = [10**v for v in found.log10_rho_by_lag]
    assert rho == pytest.approx([10**v for v in expected], rel=1e-5)


def test_a_linear_chain_loses_what_its_weight_says() -> None:
    layer = Recurrent(cells.Elman("identity"), 1, 1, bias=False)
    with torch.no_grad():
        for name, p in layer.named_parameters():
            p.fill_(0.5 if "hh" in name else 1.0)
    (found,) = lag_gradients(ExaminedModel(layer).run(_x(T, B, 1), last_only=True))
    assert found.log10_rho_by_lag == pytest.approx([k * math.log10(0.5) for k in range(T)])
    assert (found.horizon_e_steps, found.horizon_1e3_steps) == (2, 10)
    assert found.slope_nats_per_step == pytest.approx(math.log(0.5))
    assert found.omega == pytest.approx((T - 1) * 0.25)


def test_both_layers_and_directions_are_mirrored() -> None:
    torch.manual_seed(0)
    layer = nn.GRU(3, 8, bidirectional=True)
    x = _x(T, B, 3)
    with torch.no_grad():
        for name, p in layer.named_parameters():
            if name.endswith("_reverse"):
                p.copy_(dict(layer.named_parameters())[name.removesuffix("_reverse")])

    def loss(y: Tensor) -> Tensor:
        return y[-1, :, :8].sum() + y[0, :, 8:].sum()

    both = lag_gradients(ExaminedModel(layer).run(x, loss, last_only=True))
    (turned,) = [g for g in lag_gradients(ExaminedModel(layer).run(x.flip(0), loss, last_only=True))
                 if g.direction == 0]  # fmt: skip
    backward = next(g for g in both if g.direction == 1)
    assert backward.log10_rho_by_lag == pytest.approx(turned.log10_rho_by_lag, rel=1e-5)


def test_earlier_losses_do_not_count() -> None:
    torch.manual_seed(0)
    model = nn.LSTM(3, 8)
    x = _x(T, B, 3)
    whole = lag_gradients(ExaminedModel(model).run(x, lambda y: y.sum(), last_only=True))
    last = lag_gradients(ExaminedModel(model).run(x, lambda y: y[-1].sum(), last_only=True))
    assert whole == last


def test_the_model_stays_as_it_is() -> None:
    model = Classifier(nn.LSTM(3, 8, dropout=0.5, num_layers=2), 8).train()
    before, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    lag_gradients(ExaminedModel(model).run(_x(T, B, 3), last_only=True))
    assert model.training and type(model.layer) is nn.LSTM
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(rng, torch.get_rng_state())


def _half() -> nn.Module:
    return nn.LSTM(3, 8).half()


def _frozen() -> nn.Module:
    return nn.LSTM(3, 8).requires_grad_(False)


@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: nn.Linear(3, 3), "no recurrent layer"),
        (_half, "float16"),
        (_frozen, "frozen"),
        (lambda: torch.compile(Classifier(nn.GRU(3, 8), 8)), "compiled"),
        (lambda: nn.DataParallel(nn.LSTM(3, 8)), "wrapped"),
        (lambda: Recurrent(cells.GRU(), 3, 8, dilation=2), "dilated"),
    ],
)
def test_a_model_that_cannot_be_looked_at_is_refused(model: Any, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        ExaminedModel(model())


@pytest.mark.parametrize(
    ("x", "loss", "error", "words"),
    [
        (_x(1, B, 3), None, ShapeError, "at least 2 steps"),
        (_x(T, 0, 3), None, ShapeError, "steps and rows"),
        (_x(T, B, 3), lambda y: y.sum() * math.nan, OptionError, "finite from the start"),
        (_x(T, B, 3), lambda y: y.detach().sum(), OptionError, "detach"),
        (_x(T, B, 3), lambda y: y, OptionError, "one number"),
        (_x(T, B, 3), lambda y: y[0].sum(), OptionError, "no gradient"),
        (_x(T, B, 3) * math.inf, None, OptionError, "NaN or infinity"),
    ],
)
def test_bad_input_is_refused(x: Tensor, loss: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        lag_gradients(ExaminedModel(nn.GRU(3, 8)).run(x, loss, last_only=True))


def test_no_batch_is_refused() -> None:
    with pytest.raises(ShapeError, match="at least one batch"):
        list_batches([])
