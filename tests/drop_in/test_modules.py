"""As modules the drop-ins are torch.nn's: weights, names, repr, copies, dtypes and devices."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import throughtime
from tests.drop_in.pairs import KINDS, Case, table, tensors
from tests.tolerance import TOLERANCE

CELLS = ("RNNCell", "LSTMCell", "GRUCell")
CONSTANTS = (
    "mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout",
    "bidirectional", "proj_size", "_flat_weights_names", "_all_weights",
)  # fmt: skip


def both(kind: str, *args: Any, **options: Any) -> tuple[Any, Any]:
    """torch's module and ours, each drawn from the same seed."""
    found = []
    for module in (nn, throughtime):
        torch.manual_seed(3)
        found.append(getattr(module, kind)(*args, **options))
    return found[0], found[1]


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_weights_same_names_same_repr(kind: str) -> None:
    for case in [c for b in (False, True) for c in table(kind, 2, b) if not c.state]:
        torch.manual_seed(3)
        theirs = case.build(nn)
        after = torch.rand(1)
        torch.manual_seed(3)
        ours = case.build(throughtime)
        assert torch.equal(after, torch.rand(1))
        assert repr(ours) == repr(theirs)
        expected, found = theirs.state_dict(), ours.state_dict()
        assert list(found) == list(expected)
        assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
        assert all(torch.equal(found[n], expected[n]) for n in expected)


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("bias", [True, False])
def test_a_cells_start_and_repr_are_torchs(kind: str, bias: bool) -> None:
    theirs, ours = both(kind, 3, 5, bias)
    assert repr(ours) == repr(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(ours.state_dict()[n], v) for n, v in theirs.state_dict().items())
    assert (ours.bias_ih is None) == (theirs.bias_ih is None)


def test_repr_shows_every_option() -> None:
    options = {"bias": False, "batch_first": True, "dropout": 0.5, "bidirectional": True}
    for kind, more in (("RNN", {}), ("LSTM", {"proj_size": 2}), ("GRU", {})):
        theirs, ours = both(kind, 3, 5, 2, **options, **more)
        assert repr(ours) == repr(theirs)
    assert repr(both("RNNCell", 3, 5, False, "relu")[1]) == repr(nn.RNNCell(3, 5, False, "relu"))


@pytest.mark.parametrize("kind", [*KINDS, *CELLS])
def test_arguments_stand_in_torchs_order(kind: str) -> None:
    ours = list(inspect.signature(getattr(throughtime, kind)).parameters.values())
    given = [p.name for p in ours if p.kind is p.POSITIONAL_OR_KEYWORD]
    if kind in CELLS:
        assert given == list(inspect.signature(getattr(nn, kind)).parameters)
        return
    third = ["nonlinearity"] if kind == "RNN" else []
    last = ["proj_size"] if kind == "LSTM" else []
    assert given == [
        "input_size", "hidden_size", "num_layers", *third, "bias", "batch_first", "dropout",
        "bidirectional", *last, "device", "dtype",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_attributes_are_torchs(kind: str) -> None:
    third = ("relu",) if kind == "RNN" else ()
    theirs, ours = both(kind, 3, 5, 2, *third, False, True, 0.5, True)
    for name in CONSTANTS:
        assert getattr(ours, name) == getattr(theirs, name), name
    for name in ("all_weights", "_flat_weights"):
        expected, found = tensors(getattr(theirs, name)), tensors(getattr(ours, name))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), name
    assert ours.flatten_parameters() is None
    ours.dropout = 0.25
    assert ours.dropout == 0.25 and "dropout=0.25" in repr(ours)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_load_both_ways(kind: str) -> None:
    for case in table(kind, 2, True):
        theirs, ours = case.build(nn), case.build(throughtime)
        theirs.load_state_dict(ours.state_dict(), strict=True)
        x, hx = case.draw()
        torch.testing.assert_close(
            tensors(ours(x, hx)), tensors(theirs(x, hx)), rtol=1e-12, atol=1e-12
        )
        ours.load_state_dict(case.build(nn).state_dict(), strict=True)


def test_a_state_dict_saved_by_torch_loads() -> None:
    theirs = nn.LSTM(3, 5, 2, bidirectional=True)
    stored = io.BytesIO()
    torch.save(theirs.state_dict(), stored)
    stored.seek(0)
    ours = throughtime.LSTM(3, 5, 2, bidirectional=True, backend="torch")
    ours.load_state_dict(torch.load(stored, weights_only=True))
    x = torch.randn(4, 2, 3)
    assert torch.equal(ours(x)[0], theirs(x)[0])


def _pickled(layer: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(layer))


def _saved(layer: nn.Module) -> Any:
    stored = io.BytesIO()
    torch.save(layer, stored)
    stored.seek(0)
    return torch.load(stored, weights_only=False)


@pytest.mark.parametrize("again", [copy.deepcopy, _pickled, _saved])
@pytest.mark.parametrize("kind", [*KINDS, *CELLS])
def test_copies_compute_the_same_and_stand_alone(kind: str, again: Any) -> None:
    layer = getattr(throughtime, kind)(3, 5)
    x = torch.randn(2, 3) if kind in CELLS else torch.randn(4, 2, 3)
    copied = again(layer)
    before = tensors(copied(x))
    assert all(torch.equal(a, b) for a, b in zip(before, tensors(layer(x)), strict=True))
    assert repr(copied) == repr(layer)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.zero_()
    assert all(torch.equal(a, b) for a, b in zip(tensors(copied(x)), before, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_dtypes_and_devices_move_as_torchs(kind: str) -> None:
    theirs, ours = both(kind, 3, 5, 2, bidirectional=True)
    for dtype in (torch.float64, torch.bfloat16):
        x = torch.randn(4, 2, 3).to(dtype)
        found, expected = tensors(ours.to(dtype)(x)), tensors(theirs.to(dtype)(x))
        assert all(v.dtype == dtype for v in found)
        exact = {"rtol": 0, "atol": 0}  # what is not compiled is torch's kernel
        torch.testing.assert_close(found, expected, **TOLERANCE.get(dtype, exact))
    assert {p.dtype for p in ours.half().parameters()} == {torch.float16}
    meta = getattr(throughtime, kind)(3, 5, device="meta", dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in meta.parameters()} == {("meta", torch.float64)}
    assert {p.device.type for p in meta.to_empty(device="cpu").parameters()} == {"cpu"}


@pytest.mark.parametrize("kind", [*KINDS, *CELLS])
def test_skip_init_draws_nothing(kind: str) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    layer = nn.utils.skip_init(getattr(throughtime, kind), 3, 5)
    assert torch.equal(torch.get_rng_state(), before)
    assert {p.device.type for p in layer.parameters()} == {"cpu"}


@pytest.mark.parametrize("kind", KINDS)
def test_shared_memory(kind: str) -> None:
    layer = getattr(throughtime, kind)(3, 5).share_memory()
    assert all(p.is_shared() for p in layer.parameters())
    assert layer(torch.randn(4, 2, 3))[0].shape == (4, 2, 5)


@pytest.mark.parametrize("kind", [*KINDS, *CELLS])
def test_docstrings_can_be_read(kind: str) -> None:
    said = getattr(throughtime, kind).__doc__
    for word in ("h_t = ", "Args:", "input_size", "hidden_size", "bias", "device", "backend"):
        assert word in said
    assert getattr(throughtime, kind).forward.__doc__


def test_a_training_step_of_an_optimiser_is_torchs() -> None:
    case = Case("LSTM", "batched", False, {"num_layers": 2})
    theirs, ours = case.pair()
    x, _ = case.draw()
    for _ in range(3):
        for layer in (theirs, ours):
            optimiser = torch.optim.Adam(layer.parameters(), lr=0.1)
            optimiser.zero_grad()
            layer(x)[0].square().mean().backward()
            optimiser.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_start_of_the_users_own_can_read_the_layer(kind: str) -> None:
    """Programs override reset_parameters, which the constructor calls."""

    class Own(getattr(throughtime, kind)):
        def reset_parameters(self) -> None:
            names = [*CONSTANTS, *(("nonlinearity",) if kind == "RNN" else ())]
            self.seen = {name: getattr(self, name) for name in names}
            for name in self._flat_weights_names:
                nn.init.constant_(getattr(self, name), self.hidden_size)

    layer = Own(3, 5, 2, batch_first=True, bidirectional=True)
    theirs = getattr(nn, kind)(3, 5, 2, batch_first=True, bidirectional=True)
    assert layer.seen == {name: getattr(theirs, name) for name in layer.seen}
    assert all(torch.equal(v, torch.full_like(v, 5)) for v in layer.parameters())


def test_half_precision_by_autocast_is_torchs() -> None:
    theirs, ours = both("LSTM", 3, 5, 2)
    x = torch.randn(4, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = tensors(ours(x)), tensors(theirs(x))
    assert [v.dtype for v in found] == [v.dtype for v in expected]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
