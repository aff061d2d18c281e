"""A layer is a module like any other: start values, copies, dtypes, transforms of its weights."""

from __future__ import annotations

import copy
import io
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

from tests.layers.own import Decaying, LowRank
from tests.layers.plain import agree, build, flat, gru, kept, lstm, plain, random, weights_of
from throughtime import Cell, Recurrent, cells

BACKENDS = ("auto", "reference")


class Vectors(Cell):
    gates = ("h",)
    state = ("h",)
    vectors = {"u": 0.25, "v": -2.0}

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        return (torch.tanh(a.h + p.u * s.h + p.v),)


def test_start_values() -> None:
    sizes = (49, 400)
    for cell in (cells.LSTM(), LowRank(3), cells.Skip(3)):
        layer = Recurrent(cell, 90, sizes, bidirectional=True)
        for name, value in layer.named_parameters():
            bound = 1 / math.sqrt(sizes[int("_l1" in name)])
            assert value.abs().max() <= bound, name
            if value.numel() > 5000:
                assert value.abs().max() > 0.99 * bound, name
                assert abs(float(value.detach().mean())) < 0.05 * bound, name
                uniform = bound / math.sqrt(3)
                assert float(value.detach().std()) == pytest.approx(uniform, rel=0.05), name


def test_vectors_start_at_their_declared_value_and_states_at_zero() -> None:
    layer = Recurrent(Vectors(), 3, [4, 5], bidirectional=True, learn_initial=True)
    found = {
        n: set(v.tolist()) for n, v in layer.named_parameters() if n[0] in "uv" or n[:2] == "in"
    }
    values = {"u": {0.25}, "v": {-2.0}, "initial_h": {0.0}}
    assert found == {
        f"{name}_l{k}{end}": value
        for name, value in values.items() for k in range(2) for end in ("", "_reverse")
    }  # fmt: skip


def test_reset_parameters_starts_anew() -> None:
    layer = Recurrent(Vectors(), 3, 4, learn_initial=True)
    torch.manual_seed(5)
    fresh = Recurrent(Vectors(), 3, 4, learn_initial=True).state_dict()
    with torch.no_grad():
        for value in layer.parameters():
            value.fill_(9)
    torch.manual_seed(5)
    layer.reset_parameters()
    assert fresh.keys() == layer.state_dict().keys()
    assert all(torch.equal(v, fresh[n]) for n, v in layer.state_dict().items())


def make() -> Recurrent:
    return build(
        cells.LSTM(), 3, [4, 2], bidirectional=True, merge="sum", zoneout={"c": 0.3},
        learn_initial=True,
    ).eval()  # fmt: skip


def expected(layer: Recurrent, x: Tensor) -> Any:
    zones = [tuple(torch.full((2, *x.shape[:2], w), m, dtype=x.dtype) for m in (0, 0.3))
             for w in (4, 2)]  # fmt: skip
    return plain(layer, lstm, x, zones=zones, merge=sum)[:2]


def _saved(layer: Recurrent) -> Recurrent:
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def _loaded(layer: Recurrent) -> Recurrent:
    other = make()
    other.load_state_dict(layer.state_dict())
    return other


COPIES: dict[str, Any] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
    "save": _saved,
    "state_dict": _loaded,
}


@pytest.mark.parametrize("kind", COPIES)
def test_copies(kind: str) -> None:
    layer, x = make(), random(5, 2, 3)
    wanted = [v.detach().clone() for v in flat(expected(layer, x))]
    layer(x)  # a layer that has been used copies as well
    other = COPIES[kind](layer)
    with torch.no_grad():
        for value in layer.parameters():
            value.zero_()
    agree(other(x), wanted)
    agree(other(x), expected(other, x), [x, *other.parameters()])
    assert (repr(other), other.cell) == (repr(layer), layer.cell)


def test_state_dict_names_are_torchs() -> None:
    layer = Recurrent(cells.GRU(), 3, 4, num_layers=2, bidirectional=True)
    ours = {n: tuple(v.shape) for n, v in layer.state_dict().items()}
    theirs = nn.GRU(3, 4, num_layers=2, bidirectional=True).state_dict()
    assert ours == {n: tuple(v.shape) for n, v in theirs.items()}
    with pytest.raises(RuntimeError, match='Missing key.*"weight_hh_l1"'):
        layer.load_state_dict({n: v for n, v in theirs.items() if n != "weight_hh_l1"})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("dtype", "close"),
    [(torch.float32, 1e-5), (torch.bfloat16, 4e-2), (torch.float16, 5e-3)],
    ids=str,
)
@pytest.mark.parametrize("lengths", [None, [4, 0, 2]], ids=["full", "ragged"])
def test_other_dtypes(dtype: torch.dtype, close: float, backend: str, lengths: Any) -> None:
    exact = build(cells.GRU(), 3, 4, bidirectional=True, backend=backend)
    layer = copy.deepcopy(exact).to(dtype)
    exact.load_state_dict({n: v.double() for n, v in layer.state_dict().items()})
    x = torch.randn(4, 3, 3, dtype=dtype)
    y, ((h,),) = layer(x, lengths=lengths)
    wanted, last, _ = plain(exact, gru, x.double(), lengths=lengths)
    assert y.dtype == h.dtype == dtype
    torch.testing.assert_close(y.double(), wanted, rtol=close, atol=close)
    torch.testing.assert_close(h.double(), last[0][0], rtol=close, atol=close)
    y.float().square().sum().backward()
    wanted.square().sum().backward()
    for found, exactly in zip(layer.parameters(), exact.parameters(), strict=True):
        scale = float(exactly.grad.abs().max())
        torch.testing.assert_close(
            found.grad.double(), exactly.grad, rtol=9 * close, atol=9 * close * scale
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["lstm", "gru", "elman", "lstm_layer_norm"])
@pytest.mark.parametrize("lengths", [None, [4, 0, 2]], ids=["full", "ragged"])
def test_autocast_rounds_products_and_keeps_float32_gradients(
    kind: str, backend: str, lengths: Any
) -> None:
    cell = {c.lower(): c for c in cells.available()}[kind.replace("_", "")]
    layer = Recurrent(getattr(cells, cell)(), 3, 4, num_layers=2, backend=backend)
    x = torch.randn(4, 3, 3)
    y, state = layer(x, lengths=lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, last = layer(x, lengths=lengths)
        again, _ = layer(x.bfloat16(), last, lengths=lengths)  # what came out may go in
    tolerance: Any = {"rtol": 5e-2, "atol": 5e-2, "check_dtype": False}
    torch.testing.assert_close(rounded, y, **tolerance)
    torch.testing.assert_close(flat(last), flat(state), **tolerance)
    torch.testing.assert_close(again, layer(x, state, lengths=lengths)[0], **tolerance)
    assert not torch.equal(rounded.float(), y), "autocast did nothing"
    rounded.float().square().sum().backward()
    for value in layer.parameters():
        assert value.grad.dtype == torch.float32 and value.grad.isfinite().all()


def test_autocast_gives_the_bits_of_torch() -> None:
    ours, theirs = Recurrent(cells.LSTM(), 3, 4), nn.LSTM(3, 4)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(5, 2, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ours(x)[0], theirs(x)[0])


def test_built_on_meta() -> None:
    for layer in (
        Recurrent(Decaying(), 3, 4, learn_initial=True, device="meta", dtype=torch.float64),
        _under_meta(),
    ):
        assert all(v.is_meta for v in layer.parameters())
        torch.manual_seed(3)
        layer.to_empty(device="cpu").reset_parameters()
        torch.manual_seed(3)
        fresh = Recurrent(Decaying(), 3, 4, learn_initial=True, dtype=torch.float64)
        for found, wanted in zip(layer.parameters(), fresh.parameters(), strict=True):
            assert torch.equal(found, wanted)
    layer = Recurrent(cells.MGU(), 3, 4, device="meta", bidirectional=True)
    y, ((h,),) = layer(torch.randn(5, 2, 3, device="meta"), lengths=[5, 2])
    assert (y.shape, y.device.type, h.shape) == ((5, 2, 8), "meta", (2, 2, 4))


def _under_meta() -> Recurrent:
    with torch.device("meta"):
        return Recurrent(Decaying(), 3, 4, learn_initial=True, dtype=torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_functional_call(backend: str) -> None:
    layer, other = (build(cells.GRU(), 3, [4, 2], backend=backend) for _ in range(2))
    x, weights = random(5, 2, 3), dict(other.named_parameters())
    y, state = functional_call(layer, weights, (x,), {"lengths": [5, 2]})
    wanted = plain(other, gru, x, lengths=[5, 2])[:2]
    agree((y, state), wanted, [x, *weights.values()])


def test_parametrized_weights() -> None:
    layer, x = build(cells.LSTM(), 3, 4), random(5, 2, 3)
    weight_norm(layer, "weight_hh_l0", dim=0)
    spectral_norm(layer, "weight_ih_l0")
    layer.eval()
    g, v = layer.parametrizations.weight_hh_l0.parameters()
    with torch.no_grad():
        g.mul_(1.7)
    hand = build(cells.LSTM(), 3, 4)
    hand.load_state_dict({n: getattr(layer, n).detach() for n in hand.state_dict()})
    agree(hand.weight_hh_l0, g * v / v.norm(dim=1, keepdim=True))
    agree(layer(x), plain(hand, lstm, x)[:2], [x])
    y = layer(x)[0].sum()
    d_g = torch.autograd.grad(y, g)[0]
    d_w = torch.autograd.grad(plain(hand, lstm, x)[0].sum(), hand.weight_hh_l0)[0]
    agree(d_g, (d_w * v / v.norm(dim=1, keepdim=True)).sum(1, keepdim=True))


def test_a_weight_swapped_for_a_plain_tensor() -> None:
    layer, x = build(cells.GRU(), 3, 4), random(5, 2, 3)
    raw = layer.weight_hh_l0.detach().clone().requires_grad_()
    del layer.weight_hh_l0
    layer.weight_hh_l0 = raw * 0.5
    wanted = build(cells.GRU(), 3, 4)
    wanted.load_state_dict({**layer.state_dict(), "weight_hh_l0": (raw * 0.5).detach()})
    assert torch.equal(weights_of(wanted, 0, 0)["weight_hh"], layer.weight_hh_l0)
    agree(layer(x), plain(wanted, gru, x)[:2], [x])
    found = torch.autograd.grad(layer(x)[0].sum(), raw)[0]
    agree(found, torch.autograd.grad(plain(wanted, gru, x)[0].sum(), wanted.weight_hh_l0)[0] / 2)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpoints_give_the_same_gradients(reentrant: bool) -> None:
    layer = build(cells.LSTM(), 3, 4, recurrent_dropout=0.3, zoneout=0.2)
    x = random(5, 2, 3)
    torch.manual_seed(1)
    mask = [nn.functional.dropout(torch.ones(1, 2, 4, dtype=x.dtype), 0.3)]
    zones = [tuple(kept(0.2, 1, 5, 2, 4) for _ in "hc")]
    torch.manual_seed(1)
    y, state = checkpoint(layer, x, use_reentrant=reentrant)
    # torch's reentrant kind follows tensors that are outputs themselves, and none in a tuple
    (y.square().sum() + (0 if reentrant else state[0][1].sum())).backward()
    found = [x.grad, *(v.grad for v in layer.parameters())]
    y, state, _ = plain(layer, lstm, x, masks=mask, zones=zones)
    total = y.square().sum() + (0 if reentrant else state[0][1].sum())
    agree(found, torch.autograd.grad(total, [x, *layer.parameters()]))
