"""Compiled code under torch's transforms equals the reference under them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from tests.compiled.own import Apart, ThreeStates
from throughtime import Recurrent, cells
from throughtime.backends import cpu, reference
from throughtime.errors import BackendError

CELLS = [cells.LSTM(), cells.GRU(), ThreeStates(), Apart()]
every_cell = pytest.mark.parametrize("cell", CELLS, ids=repr)
NEAR: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}


pytestmark = pytest.mark.usefixtures("fresh_compiler")


def _pair(cell: Any, **options: Any) -> tuple[Recurrent, Recurrent]:
    """A compiled layer, and the same with the reference."""
    layer = Recurrent(cell, 3, 5, dtype=torch.float64, backend="cpu", **options)
    plain = copy.deepcopy(layer)
    plain.backend = "reference"
    return layer, plain


def _x(T: int = 4, B: int = 2) -> Tensor:
    return torch.randn(T, B, 3, dtype=torch.float64)


def _loss(layer: Recurrent) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        y, state = functional_call(layer, weights, (x,))
        return y.square().sum() + sum(v.sin().sum() for part in state for v in part)

    return loss


def _weights(layer: Recurrent) -> dict[str, Tensor]:
    return {name: v.detach() for name, v in layer.named_parameters()}


@every_cell
def test_torch_func(cell: Any) -> None:
    layer, plain = _pair(cell)
    x, weights = _x(), _weights(layer)
    ours, theirs = _loss(layer), _loss(plain)
    assert_close(grad(ours)(weights, x), grad(theirs)(weights, x), **NEAR)
    rows = x.transpose(0, 1).unsqueeze(2)
    per_row = vmap(grad(ours), in_dims=(None, 0))(weights, rows)
    assert_close(per_row, vmap(grad(theirs), in_dims=(None, 0))(weights, rows), **NEAR)
    found, wanted = (jacrev(lambda x, m=m: m(x)[0])(x) for m in (layer, plain))
    assert_close(found, wanted, **NEAR)
    found, wanted = (
        vmap(lambda x, m=m: m(x)[0], in_dims=2, out_dims=2)(torch.stack((x, x + 1), 2))
        for m in (layer, plain)
    )
    assert_close(found, wanted, **NEAR)


@every_cell
def test_second_derivatives(cell: Any) -> None:
    layer, plain = _pair(cell)
    x, weights = _x(3, 1), _weights(layer)

    def of_gradient(one: Recurrent) -> Tensor:
        loss = _loss(one)
        return grad(lambda x: grad(loss, 1)(weights, x).square().sum())(x)

    with pytest.raises(BackendError, match="one derivative below torch.func, not one of another"):
        of_gradient(layer)
    layer.backend = "auto"
    assert_close(of_gradient(layer), of_gradient(plain), **NEAR)
    layer.backend = "cpu"
    grads = []
    for one in (layer, plain):
        v = x.clone().requires_grad_()
        (d_x,) = torch.autograd.grad(one(v)[0].square().sum(), v, create_graph=True)
        grads.append(torch.autograd.grad(d_x.square().sum(), [v, *one.parameters()]))
    assert_close(grads[0], grads[1], **NEAR)


def test_finite_differences_of_the_gradient() -> None:
    layer, _ = _pair(cells.GRU(), learn_initial=True)
    x = _x(2, 1).requires_grad_()
    weights = dict(layer.named_parameters())

    def outputs(x: Tensor, *values: Tensor) -> Tensor:
        given = dict(zip(weights, values, strict=True))
        return functional_call(layer, given, (x,))[0]

    assert torch.autograd.gradgradcheck(outputs, (x, *weights.values()), fast_mode=True)


def test_forward_mode_goes_to_the_reference() -> None:
    layer, plain = _pair(cells.LSTM())
    layer.backend = "auto"
    x, direction = _x(3, 1), _x(3, 1)
    weights, ours, theirs = _weights(layer), _loss(layer), _loss(plain)
    found = jvp(lambda x: ours(weights, x), (x,), (direction,))
    assert_close(found, jvp(lambda x: theirs(weights, x), (x,), (direction,)), **NEAR)
    found, wanted = (hessian(lambda x, f=f: f(weights, x))(x) for f in (ours, theirs))
    assert_close(found, wanted, rtol=1e-8, atol=1e-10)


@every_cell
def test_a_graph_may_be_walked_twice(cell: Any) -> None:
    layer, _ = _pair(cell, num_layers=2, bidirectional=True)
    x = _x().requires_grad_()
    leaves = [x, *layer.parameters()]
    total = layer(x)[0].square().sum()
    first = torch.autograd.grad(total, leaves, retain_graph=True)
    graph = torch.autograd.grad(total, leaves, create_graph=True)
    again = torch.autograd.grad(total, leaves)
    for a, b, c in zip(first, graph, again, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


@every_cell
def test_compile_trains_as_eager_does(cell: Any) -> None:
    layer, plain = _pair(cell, num_layers=2, bidirectional=True)
    eager, compiled = (
        copy.deepcopy(layer),
        torch.compile(layer, fullgraph=True, backend="aot_eager"),
    )
    for one, module in ((eager, eager), (layer, compiled), (plain, plain)):
        torch.manual_seed(3)
        optimizer = torch.optim.SGD(one.parameters(), 0.1)
        for T, B in ((5, 2), (5, 2), (7, 3)):
            optimizer.zero_grad()
            module(_x(T, B), lengths=torch.tensor([T, 0, 3])[:B])[0].square().sum().backward()
            optimizer.step()
    assert_close(dict(layer.named_parameters()), dict(eager.named_parameters()), **NEAR)
    assert_close(dict(layer.named_parameters()), dict(plain.named_parameters()), **NEAR)


def test_export_keeps_time_and_batch_free(tmp_path: Path) -> None:
    layer, plain = _pair(cells.LSTM(), bidirectional=True, num_layers=2)
    sizes = {0: torch.export.Dim("T", min=2, max=99), 1: torch.export.Dim("B", min=2, max=99)}
    program = torch.export.export(layer, (_x(),), dynamic_shapes=({**sizes},))
    torch.export.save(program, tmp_path / "layer.pt2")
    x = _x(9, 7)
    found = torch.export.load(tmp_path / "layer.pt2").module()(x)
    assert_close(found, plain(x), **NEAR)


@every_cell
def test_checkpoints_copies_and_pickles(cell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, _ = _pair(cell, learn_initial=True)
    x = _x()
    wanted = torch.autograd.grad(layer(x)[0].square().sum(), list(layer.parameters()))
    y = checkpoint(lambda x: layer(x)[0], x, use_reentrant=False)
    found = torch.autograd.grad(y.square().sum(), list(layer.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x)[0], layer(x)[0])


def test_nothing_of_this_went_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled code is asked for first derivatives, or the tests above prove nothing."""
    seen: list[str] = []
    back = cpu.backward
    monkeypatch.setattr(cpu, "backward", lambda *a: seen.append("cpu") or back(*a))
    monkeypatch.setattr(reference, "run", lambda call: seen.append("reference"))
    layer, _ = _pair(cells.LSTM())
    grad(_loss(layer))(_weights(layer), _x())
    vmap(grad(_loss(layer)), in_dims=(None, 0))(_weights(layer), _x().unsqueeze(0))
    assert seen == ["cpu", "cpu"]
