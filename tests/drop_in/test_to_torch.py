"""to_torch is the way back: torch.nn's layers with the very weights, or a refusal by name."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import throughtime
from tests.drop_in.pairs import KINDS, table, tensors
from tests.drop_in.test_convert import Model, draw, theirs_left
from throughtime import Recurrent, cells, compat, to_torch, unroll
from throughtime.errors import OptionError


def same_bits(found: Any, expected: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tensors(found), tensors(expected), strict=True))


def test_there_and_back_is_the_model_itself() -> None:
    model, x = Model(), draw()
    model.encoder.weight_hh_l1.requires_grad_(False)
    model.rnn.eval()
    ours = throughtime.from_torch(model)
    back = to_torch(ours)
    assert theirs_left(ours) == [] and repr(back) == repr(model)
    assert [type(m) for m in back.modules()] == [type(m) for m in model.modules()]
    assert [m.training for m in back.modules()] == [m.training for m in model.modules()]
    assert back.again is back.rnn
    expected, found = dict(model.named_parameters()), dict(back.named_parameters())
    assert list(found) == list(expected)
    assert all(torch.equal(found[n], v) and found[n] is not v for n, v in expected.items())
    assert [v.requires_grad for v in found.values()] == [v.requires_grad for v in expected.values()]
    assert vars(back.encoder).keys() == vars(model.encoder).keys()
    assert torch.equal(back.eval()(x), model.eval()(x))
    assert torch.equal(copy.deepcopy(back).double()(x), model(x))


def test_in_place_keeps_the_very_parameters() -> None:
    model = throughtime.from_torch(Model()).eval()
    weights, x = list(model.parameters()), draw()
    expected = model(x)
    assert to_torch(model, in_place=True) is model
    assert len(theirs_left(model)) == 4
    assert all(a is b for a, b in zip(model.parameters(), weights, strict=True))
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("module", [throughtime, compat])
@pytest.mark.parametrize("kind", KINDS)
def test_every_option_of_a_layer(kind: str, module: Any) -> None:
    for case in table(kind, 2, True):
        ours = case.build(module, backend="torch")
        theirs = to_torch(ours)
        assert type(theirs) is getattr(nn, kind)
        x, hx = case.draw()
        assert same_bits(theirs(x, hx), ours(x, hx))


@pytest.mark.parametrize("kind", ["RNNCell", "LSTMCell", "GRUCell"])
def test_cells(kind: str) -> None:
    ours = getattr(compat, kind)(3, 4, bias=False)
    theirs, x = to_torch(ours), torch.randn(2, 3)
    assert type(theirs) is getattr(nn, kind)
    torch.testing.assert_close(theirs(x), ours(x))


def test_pairs_that_torch_has() -> None:
    x = torch.randn(5, 2, 3)
    for pair, projected in (((4, 4), 0), ((4, 2), 2)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch's, of projections on a CPU
            ours = throughtime.LSTM(3, pair)
            theirs: Any = to_torch(ours)
            assert theirs.proj_size == projected
            torch.testing.assert_close(theirs(x), ours(x))


def test_a_nonlinearity_comes_along() -> None:
    assert to_torch(throughtime.RNN(3, 4, nonlinearity="relu")).mode == "RNN_RELU"
    assert to_torch(throughtime.RNNCell(3, 4, nonlinearity="relu")).nonlinearity == "relu"


def test_what_hangs_on_a_layer_comes_along() -> None:
    model, seen = nn.Sequential(throughtime.GRU(3, 4), throughtime.GRU(4, 4)), []
    model[1].weight_ih_l0 = nn.Parameter(torch.randn(12, 4))
    model[1].weight_hh_l0 = model[1].weight_ih_l0
    model[0].note = "first"
    model[0].register_forward_hook(lambda module, args, result: seen.append(type(module)))
    with pytest.warns(UserWarning, match="1 hooks of 0 were carried over") as caught:
        theirs = to_torch(model)
    assert caught[0].filename == __file__
    assert theirs[0].note == "first" and theirs[1].weight_hh_l0 is theirs[1].weight_ih_l0
    theirs[0](torch.randn(5, 2, 3))
    assert seen == [nn.GRU]


@pytest.mark.parametrize("in_place", [False, True])
def test_parametrised_weights_stay_parametrised(in_place: bool) -> None:
    ours, x = throughtime.LSTM(3, 4), torch.randn(5, 2, 3)
    parametrizations.spectral_norm(ours, "weight_hh_l0")
    parametrizations.weight_norm(ours, "weight_ih_l0")
    before = copy.deepcopy(ours.state_dict())
    theirs = to_torch(ours, in_place=in_place)
    assert isinstance(theirs, nn.LSTM) and theirs.training
    after = theirs.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[n], before[n]) for n in before)
    torch.testing.assert_close(theirs.eval()(x), ours.eval()(x))
    theirs(x)[0].sum().backward()
    assert all(p.grad is not None for p in theirs.parametrizations.parameters())


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("in_place", [False, True])
def test_the_old_weight_norm(in_place: bool) -> None:
    ours, x = throughtime.GRU(3, 4), torch.randn(5, 2, 3)
    nn.utils.weight_norm(ours, "weight_hh_l0")
    expected = ours(x)[0]
    theirs = to_torch(ours, in_place=in_place)
    torch.testing.assert_close(theirs(x)[0], expected)
    nn.utils.remove_weight_norm(theirs, "weight_hh_l0")
    torch.testing.assert_close(theirs(x)[0], expected)


class Own(throughtime.GRU):
    """A program's own subclass, which may compute anything."""


REFUSED: dict[str, tuple[Any, str]] = {
    "another cell": (
        lambda: Recurrent(cells.MGU(), 3, 4),
        r"is a Recurrent of MGU\(\), equations that torch.nn has no layer for",
    ),
    "sizes": (
        lambda: Recurrent(cells.LSTM(), 3, [6, 4]),
        r"whose layers have the sizes \(6, 4\), where torch.nn's have one size",
    ),
    "options": (
        lambda: Recurrent(cells.GRU(), 3, 4, zoneout=0.1, learn_initial=True),
        r"of GRU\(\), with zoneout, learn_initial, which torch.nn's layers do not have",
    ),
    "a layer torch has otherwise": (
        lambda: Recurrent(cells.Elman("relu"), 3, 4),
        "whose state is a tuple over layers; throughtime.RNN has torch.nn's state",
    ),
    "a wide h": (
        lambda: throughtime.LSTM(3, (4, 6)),
        "is an LSTM whose h has 6 numbers and its c 4, where torch.nn's h is never wider",
    ),
    "a subclass": (
        lambda: Own(3, 4),
        "is a .*test_to_torch.Own, a subclass of throughtime's layer that may compute",
    ),
    "an unrolled layer": (
        lambda: unroll(throughtime.GRU(3, 4), 2),
        "step is an unrolled layer, which reads the parts of a layer of throughtime",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_torch_has_no_equal_of_is_refused_by_name(name: str) -> None:
    build, text = REFUSED[name]
    model = nn.ModuleDict({"plain": throughtime.GRU(3, 4), "other": build()})
    with pytest.raises(OptionError, match=f"to_torch gives torch.nn's .*, and other.*{text}"):
        to_torch(model, in_place=True)
    assert type(model["plain"]) is throughtime.GRU


def test_all_that_is_refused_is_named() -> None:
    with pytest.raises(OptionError, match=r"and 0 is .*Own, .*; 1 is a Recurrent of MGU\(\)"):
        to_torch(nn.Sequential(Own(3, 4), Recurrent(cells.MGU(), 3, 4)))
    with pytest.raises(OptionError, match="and the model is a Recurrent"):
        to_torch(Recurrent(cells.MGU(), 3, 4))
    with pytest.raises(TypeError, match="model must be a torch.nn.Module, .*, got 3$"):
        to_torch(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="whose layers are converted, got a list$"):
        to_torch([0] * 100)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per")
def test_torchs_tools_take_the_result() -> None:
    model, x = nn.Sequential(throughtime.LSTM(64, 128)).eval(), torch.randn(5, 2, 64)
    theirs = to_torch(model)
    assert same_bits(torch.jit.script(theirs)(x), theirs(x))
    quantised = torch.ao.quantization.quantize_dynamic(theirs, {nn.LSTM}, torch.qint8)
    assert type(quantised[0]).__module__.startswith("torch.ao.nn.quantized")
    torch.testing.assert_close(quantised(x)[0], theirs(x)[0], rtol=0.05, atol=0.05)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("spec", [{nn.LSTM}, {nn.Linear}, {throughtime.LSTM}, None])
def test_quantisation_says_that_it_passes_our_layers_over(spec: Any) -> None:
    model = nn.Sequential(throughtime.LSTM(3, 4), throughtime.GRUCell(4, 4))
    with pytest.warns(UserWarning, match="torch's quantisation knows torch.nn's own") as caught:
        quantised = torch.ao.quantization.quantize_dynamic(model, spec, torch.qint8)
    said = [str(w.message) for w in caught if w.category is UserWarning]
    assert [w.filename for w in caught if w.category is UserWarning] == [__file__] * 2
    assert "leaves this throughtime LSTM as it is; quantise throughtime.to_torch(model)" in said[0]
    assert "leaves this throughtime GRUCell as it is" in said[1]
    assert type(quantised[0]) is throughtime.LSTM and not hasattr(quantised[0], "qconfig")
    with pytest.warns(UserWarning, match="this throughtime Recurrent .*; a Stream of it takes"):
        torch.ao.quantization.quantize_dynamic(Recurrent(cells.GRU(), 3, 4), spec, torch.qint8)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_layer_that_is_left_out_of_quantisation_by_its_user_is_left_without_a_word() -> None:
    model = nn.Sequential(throughtime.LSTM(3, 4))
    model[0].qconfig = None
    assert model[0].qconfig is None and copy.deepcopy(model)[0].qconfig is None
    torch.ao.quantization.quantize_dynamic(model, {nn.LSTM}, torch.qint8)
    del model[0].qconfig
    with pytest.raises(AttributeError, match="qconfig"):
        model[0].qconfig  # noqa: B018
