"""from_torch puts our layers in place of torch's, with all that hangs on them."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import throughtime
from tests.drop_in.pairs import KINDS, Case, table, tensors
from throughtime import compat
from throughtime.errors import OptionError

TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}


class Model(nn.Module):
    """Recurrent layers at every depth, one of them used under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.LSTM(3, 4, 2, bidirectional=True, dropout=0.25, proj_size=2)
        self.middle = nn.ModuleDict({"gru": nn.GRU(4, 4, bias=False), "norm": nn.LayerNorm(4)})
        self.rnn = nn.RNN(4, 4, nonlinearity="relu")
        self.again = self.rnn
        self.step = nn.LSTMCell(4, 4)
        self.out = nn.Linear(4, 2)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        y = self.middle["gru"](self.encoder(x)[0])[0]
        y = self.again(self.rnn(self.middle["norm"](y))[0])[0]
        return self.out(self.step(y[-1])[0])


def theirs_left(model: nn.Module) -> list[nn.Module]:
    """Modules of torch's own recurrent classes."""
    found = [m for m in model.modules() if isinstance(m, nn.RNNBase | nn.RNNCellBase)]
    return [m for m in found if not type(m).__module__.startswith("throughtime.")]


def draw() -> Tensor:
    return torch.randn(5, 2, 3, dtype=torch.float64)


def test_a_model_becomes_ours_and_stays_as_it_was() -> None:
    model, x = Model(), draw()
    model.encoder.weight_hh_l1.requires_grad_(False)
    model.rnn.eval()
    before, kinds = repr(model), [type(m) for m in model.modules()]
    ours = throughtime.from_torch(model)
    assert repr(ours) == before == repr(model)
    assert [type(m) for m in model.modules()] == kinds
    assert theirs_left(ours) == []
    assert isinstance(ours.encoder, throughtime.LSTM) and ours.again is ours.rnn
    assert [m.training for m in ours.modules()] == [m.training for m in model.modules()]
    expected, found = dict(model.named_parameters()), dict(ours.named_parameters())
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value) and found[name] is not value
        assert found[name].requires_grad == value.requires_grad
    torch.testing.assert_close(ours.eval()(x), model.eval()(x), **TOLERANCE)
    with torch.no_grad():
        for value in found.values():
            value.zero_()
    assert not torch.equal(ours(x), model(x))


def test_in_place_keeps_the_very_parameters() -> None:
    model, x = Model().eval(), draw()
    expected, weights = model(x), list(model.parameters())
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    assert throughtime.from_torch(model, in_place=True) is model
    assert theirs_left(model) == []
    assert all(a is b for a, b in zip(model.parameters(), weights, strict=True))
    torch.testing.assert_close(model(x), expected, **TOLERANCE)
    model(x).sum().backward()
    optimiser.step()
    assert not torch.equal(model(x), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_of_a_layer(kind: str) -> None:
    for case in table(kind, 2, True):
        theirs = case.build(nn)
        ours = throughtime.from_torch(theirs, backend="reference")
        assert type(ours) is getattr(throughtime, kind) and ours.backend == "reference"
        x, hx = case.draw()
        torch.testing.assert_close(tensors(ours(x, hx)), tensors(theirs(x, hx)), **TOLERANCE)


@pytest.mark.parametrize("kind", ["RNNCell", "LSTMCell", "GRUCell"])
def test_cells(kind: str) -> None:
    theirs = getattr(nn, kind)(3, 4, bias=False)
    ours = throughtime.from_torch(theirs)
    x = torch.randn(2, 3)
    assert type(ours) is getattr(throughtime, kind)
    torch.testing.assert_close(tensors(ours(x)), tensors(theirs(x)))


def test_tied_weights_stay_tied() -> None:
    model = nn.ModuleList([nn.GRU(4, 4), nn.GRU(4, 4)])
    model[1].weight_hh_l0 = model[0].weight_hh_l0
    ours = throughtime.from_torch(model)
    assert ours[1].weight_hh_l0 is ours[0].weight_hh_l0
    assert ours[0].weight_hh_l0 is not model[0].weight_hh_l0


@pytest.mark.parametrize(
    "parametrise",
    [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal],
)
@pytest.mark.parametrize("in_place", [False, True])
def test_parametrised_weights_stay_parametrised(parametrise: Any, in_place: bool) -> None:
    model, x = Model().eval(), draw()
    parametrise(model.encoder, "weight_hh_l0")
    parametrise(model.rnn, "weight_ih_l0")
    expected, stored = model(x), model.state_dict()
    ours = throughtime.from_torch(model, in_place=in_place)
    torch.testing.assert_close(ours(x), expected, **TOLERANCE)
    assert list(ours.state_dict()) == list(stored)
    ours(x).sum().backward()
    assert all(p.grad is not None for p in ours.encoder.parametrizations.parameters())


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(
    ("norm", "remove", "raw"),
    [
        (nn.utils.weight_norm, nn.utils.remove_weight_norm, "weight_hh_l1_v"),
        (nn.utils.spectral_norm, nn.utils.remove_spectral_norm, "weight_hh_l1_orig"),
    ],
)
def test_the_old_norms(norm: Any, remove: Any, raw: str, in_place: bool) -> None:
    case = Case("LSTM", "batched", False, {"num_layers": 2})
    theirs, x = case.build(nn), case.draw()[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        norm(theirs, "weight_hh_l1")
    theirs.eval()
    ours = throughtime.from_torch(theirs, in_place=in_place)
    torch.testing.assert_close(ours(x)[0], theirs(x)[0], **TOLERANCE)
    ours(x)[0].sum().backward()
    assert getattr(ours, raw).grad is not None
    remove(ours, "weight_hh_l1")
    torch.testing.assert_close(ours(x)[0], theirs(x)[0], **TOLERANCE)


class Own(nn.LSTM):
    """A program's own subclass, which may compute anything."""


def test_subclasses_are_left_alone_with_a_warning() -> None:
    model = nn.ModuleDict({"own": Own(3, 4), "compat": compat.GRU(3, 4), "plain": nn.GRU(3, 4)})
    with pytest.warns(UserWarning, match="own is a .*Own, a subclass of torch's layer") as caught:
        ours = throughtime.from_torch(model)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert [type(m) for m in ours.values()] == [Own, compat.GRU, throughtime.GRU]


def test_hooks_are_carried_over_and_reported() -> None:
    model, seen = nn.Sequential(nn.GRU(3, 4)), []
    model[0].register_forward_hook(lambda module, args, result: seen.append(type(module)))
    with pytest.warns(UserWarning, match="1 hooks of 0 were carried over to the new layer"):
        ours = throughtime.from_torch(model)
    ours(torch.randn(5, 2, 3))
    assert seen == [throughtime.GRU]


def test_what_torch_cannot_copy_is_told() -> None:
    model = nn.Sequential(nn.GRU(3, 4))
    model.scale = torch.ones(1, requires_grad=True) * 2
    with pytest.raises(OptionError, match="torch cannot copy this model .* with in_place=True"):
        throughtime.from_torch(model)
    assert type(throughtime.from_torch(model, in_place=True)[0]) is throughtime.GRU


def test_attributes_that_users_set_come_along() -> None:
    layer = nn.LSTM(3, 4)
    layer.note = "first"
    assert throughtime.from_torch(layer).note == "first"


class Net(nn.Module):
    """What torch's tools make other modules of."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.step, self.head = nn.LSTM(3, 6), nn.GRUCell(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.step(self.rnn(x)[0][-1]))


def made(how: str, net: nn.Module, x: Tensor) -> nn.Module:
    """What a tool of torch makes of a model."""
    if "script" in how:
        scripted = torch.jit.script(net)
        if how == "a frozen script":
            return torch.jit.freeze(scripted)
        return nn.Sequential(nn.Identity(), scripted) if how == "a scripted part" else scripted
    if how == "a trace":
        return torch.jit.trace(net, (x,))
    if how == "quantised":
        return torch.ao.quantization.quantize_dynamic(net, {nn.LSTM, nn.GRUCell}, torch.qint8)
    program = torch.export.export(net, (x,))
    if how == "an export, decomposed":
        return program.run_decompositions().module()
    return torch.export.unflatten(program) if how == "an export in parts" else program.module()


LEFT = "so it is left as it is; convert the model that it was made from"


@pytest.mark.parametrize(
    ("how", "texts"),
    [
        ("a script", ["the model is TorchScript with a recurrent layer"]),
        ("a frozen script", ["the model is TorchScript with a recurrent layer"]),
        ("a scripted part", ["1 is TorchScript with a recurrent layer"]),
        ("a trace", ["the model is TorchScript with a recurrent layer"]),
        ("quantised", ["rnn is torch's quantised LSTM", "step is torch's quantised GRUCell"]),
        ("an export", ["the model is a graph with a recurrent layer"]),
        ("an export, decomposed", ["the model is a graph with a recurrent layer"]),
        ("an export in parts", ["rnn is a graph with a rec", "step is a graph with a rec"]),
    ],
)
def test_what_torchs_tools_made_is_left_alone_with_a_warning(how: str, texts: list[str]) -> None:
    x = torch.randn(5, 2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = made(how, Net().eval(), x)
        expected = model(x)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # torch cannot copy what it took apart again.
        ours = throughtime.from_torch(model, in_place=how == "an export in parts")
    said = [str(w.message) for w in caught if w.category is UserWarning]
    assert [w.filename for w in caught if LEFT in str(w.message)] == [__file__] * len(texts)
    assert all(t in s and LEFT in s for s, t in zip(said, texts, strict=True))
    assert torch.equal(ours(x), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_holds_no_recurrent_layer_is_copied_without_a_word() -> None:
    linear, x = nn.Linear(3, 2), torch.randn(4, 3)
    scripted = nn.Sequential(torch.jit.script(linear), torch.fx.symbolic_trace(nn.Linear(2, 2)))
    assert torch.equal(throughtime.from_torch(scripted)(x), scripted(x))


def test_a_graph_converts_the_layers_it_calls() -> None:
    x = torch.randn(5, 2, 3)
    model = torch.fx.symbolic_trace(nn.Sequential(nn.LSTM(3, 4)))
    ours = throughtime.from_torch(model)
    assert theirs_left(ours) == []
    torch.testing.assert_close(ours(x)[0], model(x)[0])


def test_the_hidden_parts_of_a_subclass_are_converted() -> None:
    layer = Own(3, 4)
    layer.inner = nn.GRU(3, 4)
    with pytest.warns(UserWarning, match="the model is a .*Own, a subclass of torch's layer"):
        ours = throughtime.from_torch(layer)
    assert type(ours) is Own and type(ours.inner) is throughtime.GRU


def test_a_model_without_recurrent_layers_is_a_plain_copy() -> None:
    model = nn.Linear(3, 4)
    found = throughtime.from_torch(model)
    assert type(found) is nn.Linear and found is not model
    with pytest.raises(OptionError, match="backend must be one of auto, .*, got 'fast'"):
        throughtime.from_torch(model, backend="fast")
