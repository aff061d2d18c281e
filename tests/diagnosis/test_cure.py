"""The cure: how far the gradient reaches before and after, and what is left alone."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import throughtime
from throughtime import LSTM, Recurrent, cells, initialise
from throughtime.diagnosis.cure import cure, find_start
from throughtime.errors import OptionError

T, B, H = 200, 16, 64


class Model(nn.Module):
    """An embedding, a recurrent layer, a head, and a scale without reset_parameters."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.embed, self.layer, self.head = nn.Embedding(5, 3), layer, nn.Linear(H, 1)
        self.scale = nn.ParameterList([nn.Parameter(torch.full((1,), 7.0))])


def _rho(layer: Any) -> float:
    """log10 of ||dL/ds_0|| / ||dL/ds_T||, L a drawn sum of h_T, by autograd alone."""
    draw = torch.Generator().manual_seed(0)
    x, w = torch.rand(T, B, 3, generator=draw), torch.randn(B, H, generator=draw)
    states = 2 if layer.mode == "LSTM" else 1
    s = [torch.zeros(1, B, H, requires_grad=True) for _ in range(states)]
    y, _ = layer(x, tuple(s) if states == 2 else s[0])
    back = torch.autograd.grad((y[-1] * w).sum(), s)
    size = torch.cat(back, -1).norm(dim=-1).log10().mean() - w.norm(dim=-1).log10().mean()
    return float(size)


@pytest.mark.parametrize(
    ("layer", "recipe", "reach"),
    [
        (lambda: nn.LSTM(3, H), "timescales", -1.5),
        (lambda: nn.GRU(3, H), "timescales", -1.5),
        (lambda: nn.RNN(3, H), "orthogonal", -6.0),
        (lambda: nn.RNN(3, H, nonlinearity="relu"), "identity", -0.5),
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_the_gradient_reaches_200_steps_back(
    layer: Any, recipe: str, reach: float, seed: int
) -> None:
    torch.manual_seed(seed)
    model = Model(layer())
    found = cure(model, lag=T)
    assert _rho(model.layer) < -15
    assert reach < _rho(found.model.layer) < 0.6
    assert type(found.model.layer) is type(model.layer)
    (started,) = found.started
    assert (started.name, started.recipe) == ("layer", recipe)
    assert type(model.layer).__name__ != "LSTM" or started.words == (
        "LSTM: time scales of 2 to 600 steps, orthogonal matrices"
    )


def test_the_model_is_left_alone_and_the_copy_is_untrained() -> None:
    model = Model(LSTM(3, H))
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(7)
    found = cure(model, lag=20)
    assert all(bool((p == 7).all()) for p in model.parameters())
    old = [n for n, p in found.model.named_parameters() if bool((p == 7).any())]
    assert old == ["scale.0"]
    assert found.kept == ("scale",)
    assert found.lag_steps == 20
    head: Any = found.model.get_submodule("head")
    assert float(head.weight.detach().abs().max()) <= 1 / math.sqrt(H)


def _trained(model: nn.Module) -> None:
    model(torch.randn(4, 2, 3))[0].sum().backward()
    torch.optim.SGD(model.parameters(), 1e-4).step()


@pytest.mark.parametrize(
    "change",
    [
        lambda new: new.load_state_dict(LSTM(3, 8).state_dict()),
        lambda new: initialise(new, "orthogonal"),
        lambda new: new.reset_parameters(),
        _trained,
    ],
    ids=["loaded", "initialised", "reset", "trained"],
)
def test_a_start_is_told_of_while_the_weights_are_those_it_gave(change: Any) -> None:
    model = LSTM(3, 8)
    found = cure(model, lag=9)
    new, words = found.model, found.started[0].words.removeprefix("LSTM: ")
    assert vars(new).keys() == vars(model).keys(), "nothing is put on the user's module"
    assert (find_start(new), find_start(model)) == (words, "")
    new(torch.randn(4, 2, 3))
    assert find_start(new.double()) == words, "the numbers are the same"
    new.float()
    new.load_state_dict(copy.deepcopy(new.state_dict()))
    assert find_start(new) == words
    change(new)
    assert find_start(new) == ""


def test_a_report_forgets_the_cure_when_the_old_weights_are_loaded() -> None:
    model, x = nn.LSTM(3, 8), torch.rand(20, 4, 3)
    new = cure(model, lag=9).model
    assert "cured LSTM" in str(throughtime.diagnose(new, x, lag=9))
    new.load_state_dict(model.state_dict())
    report = throughtime.diagnose(new, x, lag=9)
    assert report.modules[0].start == ""
    assert "cured LSTM:" not in str(report) and "started by" not in str(report)


def test_the_copy_trains_and_shares_nothing() -> None:
    model = Model(nn.GRU(3, H))
    new = cure(model, lag=20).model
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in new.parameters()}
    y: Tensor = new.layer(torch.randn(4, 2, 3))[0]  # type: ignore[operator]
    y.sum().backward()
    assert all(p.grad is not None for p in new.get_submodule("layer").parameters())


def test_every_layer_gets_its_own_recipe() -> None:
    model = nn.ModuleDict(
        {
            "a": nn.GRUCell(2, 4),
            "b": Recurrent(cells.MGU(), 2, 4),
            "c": Recurrent(cells.LSTM(), 2, 4, bias=False),
            "d": Recurrent(cells.IndRNN(), 2, 4),
            "e": nn.LSTM(2, 4, num_layers=2, bidirectional=True),
        }
    )
    found = cure(model, lag=10)
    recipes = [(s.name, s.recipe) for s in found.started]
    assert recipes == [
        ("a", "timescales"), ("b", "timescales"), ("c", "orthogonal"), ("d", "none"),
        ("e", "timescales"),
    ]  # fmt: skip
    assert found.kept == ()
    weights = dict(found.model.get_submodule("e").named_parameters())
    for suffix in ("l0", "l0_reverse", "l1", "l1_reverse"):
        b = (weights[f"bias_ih_{suffix}"] + weights[f"bias_hh_{suffix}"]).detach()[4:8]
        tau = 1 + b.exp()
        assert 2 - 1e-4 <= float(tau.min()) <= float(tau.max()) <= 30 + 1e-3


def test_weights_are_kept_when_asked() -> None:
    model = Model(nn.GRU(3, H))
    found = cure(model, lag=20, keep_weights=True)
    for a, b in zip(model.parameters(), found.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert found.started == ()
    assert found.kept == ("embed", "layer", "head", "scale")


@dataclass(frozen=True)
class Report:
    """As much of a report as a cure reads."""

    lag: int


def test_the_lag_comes_from_the_report_or_the_call() -> None:
    model = nn.GRU(2, 4)
    assert cure(model, Report(9)).lag_steps == 9
    assert cure(model, Report(9), lag=4).lag_steps == 4
    assert cure(model, Report(9)).started[0].words == (
        "GRU: time scales of 2 to 27 steps, orthogonal matrices"
    )


def test_what_cannot_be_cured_is_refused() -> None:
    for lag in (None, 0, True, 2.5):
        with pytest.raises(OptionError, match="lag must be a positive number of steps, or in a re"):
            cure(nn.GRU(2, 4), lag=lag)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="no recurrent layer of throughtime or torch.nn to cure"):
        cure(nn.Linear(2, 4), lag=3)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got 3"):
        cure(3, lag=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="report must be a Report, got 99; name the lag: lag=99"):
        cure(nn.GRU(2, 4), 99)  # type: ignore[arg-type]
    wrapped = nn.utils.parametrizations.weight_norm(copy.deepcopy(nn.GRU(2, 4)), "weight_hh_l0")
    with pytest.raises(OptionError, match="parametri"):
        cure(wrapped, lag=3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM])
def test_a_start_in_half_precision_is_that_of_float32_rounded(
    kind: type[nn.RNNBase], dtype: torch.dtype
) -> None:
    layer, found = kind(3, 8), []
    for model in (layer, kind(3, 8).to(dtype)):
        torch.manual_seed(0)
        found.append(cure(model, lag=20).model)
    for new, expected in zip(found[1].parameters(), found[0].parameters(), strict=True):
        assert new.dtype == dtype and torch.equal(new, expected.to(dtype))


def test_what_is_frozen_keeps_its_weights() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.LSTM(3, 8), nn.LSTM(8, 8), nn.Linear(8, 2), nn.Linear(2, 1))
    model[0].requires_grad_(False)
    model[3].requires_grad_(False)
    found = cure(model, lag=20)
    assert [s.name for s in found.started] == ["1"] and found.kept == ("0", "3")
    for (name, new), (_, old) in zip(
        found.model.named_parameters(), model.named_parameters(), strict=True
    ):
        assert torch.equal(new, old) == (name[0] in "03"), name


class Keeps(nn.Module):
    """Remembers its last output with the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.GRU(3, 8)

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.layer(x)[0]
        return self.last


@pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")
def test_a_model_that_is_none_or_cannot_be_copied_is_refused() -> None:
    with pytest.raises(OptionError, match="is frozen, so a new start would stay untrained; unfr"):
        cure(nn.LSTM(3, 8).requires_grad_(False), lag=20)
    with pytest.raises(OptionError, match="the model is wrapped in DataParallel; give the one in"):
        cure(nn.DataParallel(nn.LSTM(3, 8)), lag=20)
    with pytest.raises(OptionError, match="the model is compiled by torch.compile; give what it"):
        cure(torch.compile(nn.LSTM(3, 8)), lag=20)  # type: ignore[arg-type]
    model, x = Keeps(), torch.rand(12, 4, 3)
    model(x)
    for call in (lambda: cure(model, lag=5), lambda: throughtime.diagnose(model, x)):
        with pytest.raises(OptionError, match=r"torch cannot copy this model \(Only Te.* detach"):
            call()
    del model.last
    assert cure(model, lag=5).started and throughtime.diagnose(model, x).steps == 12
