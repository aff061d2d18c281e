"""gradient_norms and clip_gradient: a loop by hand, all backends alike, every option, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence
from torch.testing import assert_close

from tests.cells.table import CELLS as ALL
from tests.layers.own import Decaying
from tests.tolerance import TOLERANCE
from throughtime import Cell, Recurrent, cells
from throughtime.errors import BackendError, OptionError, ShapeError, TransformError

T, B, I, H = 9, 4, 3, 5
DOUBLE: Any = {"dtype": torch.float64}
EXACT: Any = TOLERANCE[torch.float64]
CELLS: list[Cell] = [*ALL, Decaying()]
GIVEN: dict[str, dict[str, Any]] = {
    "all": {},
    "lengths": {"lengths": [9, 0, 5, 1]},
    "reset": {"reset": torch.arange(T * B).view(T, B) % 5 == 2},
    "both": {"lengths": [3, 9, 0, 8], "reset": torch.arange(T * B).view(T, B) % 3 == 1},
}


def layer_of(cell: Cell, **options: Any) -> Recurrent:
    torch.manual_seed(2)
    layer = Recurrent(cell, I, H, **{**DOUBLE, **options})
    with torch.no_grad():
        for weight in layer.parameters():
            weight.normal_(0, 0.5)
    return layer


def room(layer: Recurrent, *rows: int, **kind: Any) -> list[Tensor]:
    """Norms to be written, full of what no norm is."""
    shape = (*(rows or (T, B)), layer.directions, len(layer.cell.state_names))
    return [torch.full(shape, -1.0, **(kind or DOUBLE)) for _ in layer.hidden_sizes]


def seen(layer: Recurrent, **given: Any) -> list[Tensor]:
    """Gradients by x and the weights, and norms, of one loss over outputs and final states."""
    draw = torch.Generator().manual_seed(6)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, **DOUBLE)

    norms, x = room(layer), drawn(T, B, I).requires_grad_()
    widths = {n: layer.cell.width(w, H) for n, w in layer.cell.inputs.items()}
    inputs = {n: drawn(T, B, w).sigmoid() for n, w in widths.items()} or None
    y, state = layer(x, inputs=inputs, gradient_norms=norms, **given)
    loss = (y * drawn(*y.shape)).sum()
    loss = loss + sum((v * drawn(*v.shape)).sum() for part in state for v in part)
    leaves = [x, *layer.parameters()]
    return [*torch.autograd.grad(loss, leaves, materialize_grads=True), *norms]


def by_hand(c: float) -> tuple[list[Tensor], Tensor]:
    """An LSTM's gradients step by step, in plain Python: those by the weights, and norms."""
    layer = layer_of(cells.LSTM())
    draw = torch.Generator().manual_seed(6)
    x, d_y = (torch.randn(T, B, n, generator=draw, **DOUBLE) for n in (I, H))
    d_h, d_c = (torch.randn(1, B, H, generator=draw, **DOUBLE)[0] for _ in range(2))
    weights = list(layer.parameters())
    states = [[torch.zeros(B, H, **DOUBLE)] * 2]
    for t in range(T):
        states.append([v[0].detach() for v in layer(x[t : t + 1], (tuple(
            v.unsqueeze(0) for v in states[-1]),))[1][0]])  # fmt: skip
    total, norms = [torch.zeros_like(w) for w in weights], torch.zeros(T, B, 1, 2, **DOUBLE)
    for t in reversed(range(T)):
        d = [d_h + d_y[t], d_c]
        for b in range(B):
            sizes = [float(v[b].square().sum()) for v in d]
            norms[t, b, 0] = torch.tensor(sizes, **DOUBLE).sqrt()
            n = sum(sizes) ** 0.5
            d = [torch.cat([v[:b], v[b : b + 1] * min(1, c / n), v[b + 1 :]]) for v in d]
        old = tuple(v.requires_grad_() for v in states[t])
        new = layer(x[t : t + 1], (tuple(v.unsqueeze(0) for v in old),))[1][0]
        pairs = sum((a[0] * v).sum() for a, v in zip(new, d, strict=True))
        d_h, d_c, *found = torch.autograd.grad(pairs, [*old, *weights])
        total = [a + b for a, b in zip(total, found, strict=True)]
    return total, norms


@pytest.mark.parametrize("c", [0.3, 2.0, 1e9])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_an_lstm_is_a_loop_by_hand(backend: str, c: float) -> None:
    weights, norms = by_hand(c)
    found = seen(layer_of(cells.LSTM(), backend=backend, clip_gradient=c))
    assert_close(found[1:], [*weights, norms], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
@pytest.mark.parametrize("c", [None, 0.5])
@pytest.mark.parametrize("cell", CELLS, ids=repr)
def test_compiled_code_is_the_reference(cell: Cell, c: float | None, given: dict[str, Any]) -> None:
    options = {"bidirectional": True, "clip_gradient": c, "learn_initial": True}
    expected = seen(layer_of(cell, backend="reference", **options), **given)
    for every in (None, 4):
        layer = layer_of(cell, backend="cpu", checkpoint_every=every, **options)
        assert_close(seen(layer, **given), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
@pytest.mark.parametrize("cell", [*CELLS, cells.Skip(3), cells.Skip(12, "sigmoid")], ids=repr)
def test_states_that_depend_on_no_parameter_yet(cell: Cell, given: dict[str, Any]) -> None:
    """From zeros, which are no parameter: as the first steps of Skip, whose states are copies."""
    expected = seen(layer_of(cell, backend="reference", bidirectional=True), **given)
    for every in (None, 4):
        layer = layer_of(cell, backend="cpu", checkpoint_every=every, bidirectional=True)
        assert_close(seen(layer, **given), expected, rtol=1e-9, atol=1e-10)


def test_the_first_states_of_a_skip_by_hand() -> None:
    """After one step each state is its own variable, the copies among them."""
    layer = layer_of(cells.Skip(3), backend="reference")
    norms, x = room(layer, 1, 1), torch.randn(1, 1, I, **DOUBLE)
    weights = torch.arange(1.0, H + 1, **DOUBLE)
    states = layer(x, gradient_norms=norms)[1][0]
    sum((k * (v * weights).sum() for k, v in enumerate(states, 1)), start=0 * x.sum()).backward()
    expected = weights.norm() * torch.arange(1.0, len(states) + 1, **DOUBLE)
    assert_close(norms[0][0, 0, 0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("c", [None, 0.5])
@pytest.mark.parametrize("cell", [cells.LSTM(), cells.GRUResetBefore(), cells.SLSTM()], ids=repr)
def test_masks_as_the_reference_has_them(cell: Cell, c: float | None) -> None:
    """Gradients are those by the states after zoneout."""
    options = {"zoneout": 0.3, "recurrent_dropout": 0.4, "clip_gradient": c, "bidirectional": True}
    found = []
    for backend, every in (("reference", None), ("cpu", None), ("cpu", 4)):
        layer = layer_of(cell, backend=backend, checkpoint_every=every, **options)
        torch.manual_seed(5)
        found.append(seen(layer, lengths=[9, 0, 5, 1]))
    assert_close(found[1], found[0], rtol=1e-9, atol=1e-10)
    assert_close(found[2], found[0], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("options", [
    {"recurrent_dropout": 0.4}, {"zoneout": 0.3}, {"checkpoint_every": 4},
    {"num_layers": 3, "residual": True, "merge": "sum"},
], ids=str)  # fmt: skip
def test_a_wide_clip_is_none(options: dict[str, Any]) -> None:
    layers = [layer_of(cells.GRU(), bidirectional=True, clip_gradient=c, **options)
              for c in (None, 1e9)]  # fmt: skip
    x = torch.randn(T, B, I, **DOUBLE)
    found = []
    for layer in layers:
        torch.manual_seed(4)
        found.append(torch.autograd.grad(layer(x)[0].square().sum(), list(layer.parameters())))
    assert_close(found[1], found[0], **EXACT)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_float32_gradients_whose_squares_overflow(backend: str) -> None:
    layer = layer_of(cells.GRU(), backend=backend, clip_gradient=2.0, dtype=torch.float32)
    norms = room(layer, dtype=torch.float32)
    y, _ = layer(torch.randn(T, B, I), gradient_norms=norms)
    y[-1, :, 0].sum().mul(1e30).backward()
    assert_close(norms[0][-1, :, 0, 0], torch.full((B,), 1e30))
    assert (norms[0][:-1] <= 10).all()


def test_norms_are_in_the_layout_of_x() -> None:
    layer = layer_of(cells.LSTM(), backend="cpu", bidirectional=True)
    turned = layer_of(cells.LSTM(), backend="cpu", bidirectional=True, batch_first=True)
    x, (n,), (m,), (one,) = torch.randn(T, B, I, **DOUBLE), room(layer), room(layer, B, T), room(
        layer, T)  # fmt: skip
    layer(x, gradient_norms=[n])[0].square().sum().backward()
    turned(x.transpose(0, 1), gradient_norms=[m])[0].square().sum().backward()
    layer(x[:, 2], gradient_norms=[one])[0].square().sum().backward()
    assert_close(m.transpose(0, 1), n, **EXACT)
    assert_close(one, n[:, 2], **EXACT)


def test_norms_before_a_backward_pass_are_zero() -> None:
    layer = layer_of(cells.GRU())
    (n,) = room(layer)
    layer(torch.randn(T, B, I, **DOUBLE), gradient_norms=[n])
    assert torch.equal(n, torch.zeros_like(n))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_second_derivatives_of_what_is_clipped(backend: str) -> None:
    """Both backends differentiate the reference's clipped gradient."""
    layer = layer_of(cells.GRU(), backend=backend, clip_gradient=0.5)
    x = torch.linspace(-1, 1, T * B * I, **DOUBLE).view(T, B, I).requires_grad_()
    (d,) = torch.autograd.grad(layer(x)[0].square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(d.square().sum(), x)
    plain = layer_of(cells.GRU(), backend="reference", clip_gradient=0.5)
    (e,) = torch.autograd.grad(plain(x)[0].square().sum(), x, create_graph=True)
    (wanted,) = torch.autograd.grad(e.square().sum(), x)
    assert_close(second, wanted, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("wrong", [0, -1.0, True, "1", float("nan")])
def test_a_clip_that_cannot_be(wrong: Any) -> None:
    with pytest.raises(OptionError, match="clip_gradient must be a number above 0 or None, got"):
        layer_of(cells.LSTM(), clip_gradient=wrong)


def test_norms_that_cannot_be() -> None:
    layer, x = layer_of(cells.LSTM(), backend="cpu"), torch.randn(T, B, I, **DOUBLE)
    with pytest.raises(ShapeError, match="must hold 1 tensors, one a layer, got 2"):
        layer(x, gradient_norms=room(layer) * 2)
    with pytest.raises(ShapeError, match="must hold 1 tensors, one a layer, got Tensor"):
        layer(x, gradient_norms=room(layer)[0])
    with pytest.raises(ShapeError, match=r"must each be \(9, 4, 1, 2\), .* got \(4, 9, 1, 2\)"):
        layer(x, gradient_norms=room(layer, B, T))
    with pytest.raises(OptionError, match=r"must be torch.float64 on cpu as x, without gradient"):
        layer(x, gradient_norms=[v.float() for v in room(layer)])
    with pytest.raises(OptionError, match="go with a padded x and no dilation"):
        layer(pack_padded_sequence(x, torch.tensor([9, 4, 4, 1])), gradient_norms=room(layer))


def test_where_norms_are_refused() -> None:
    layer, x = layer_of(cells.GRU(), backend="cpu"), torch.randn(T, B, I, **DOUBLE)
    norms = room(layer)
    with pytest.raises(TransformError, match="written by a plain backward pass"):
        torch.func.grad(lambda x: layer(x, gradient_norms=norms)[0].sum())(x)
    y = layer(x, gradient_norms=norms)[0].sum()
    with pytest.raises(TransformError, match="no norms of gradients with create_graph=True"):
        torch.autograd.grad(y, list(layer.parameters()), create_graph=True)
    other = layer_of(cells.GRU(), backend="reference", checkpoint_every=3)
    with pytest.raises(BackendError, match="records no norms of gradients between checkpoints"):
        other(x, gradient_norms=room(other))
    with pytest.raises(BackendError, match="does not offer norms of gradients at each step"):
        layer_of(cells.GRU(), backend="torch")(x, gradient_norms=norms)
    with pytest.raises(BackendError, match="does not offer clipping at each step"):
        layer_of(cells.GRU(), backend="torch", clip_gradient=1.0)(x)
