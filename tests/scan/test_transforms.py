"""The operator under torch's transforms: right, or refused; never silently wrong."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap
from torch.testing import assert_close

from throughtime import Recurrent, cells
from throughtime.errors import BackendError, TransformError

CELLS = [cells.LSTM(), cells.GRU(), cells.LSTMPeephole()]
every_cell = pytest.mark.parametrize("cell", CELLS, ids=repr)


pytestmark = pytest.mark.usefixtures("fresh_compiler")


def _layer(cell: Any, **options: Any) -> Recurrent:
    return Recurrent(cell, 3, 4, dtype=torch.float64, **options)


def _x(T: int = 5, B: int = 2) -> Tensor:
    return torch.randn(T, B, 3, dtype=torch.float64)


def _loss(layer: Recurrent) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        y, state = functional_call(layer, weights, (x,))
        return y.square().sum() + sum(v.sin().sum() for part in state for v in part)

    return loss


def _weights(layer: Recurrent) -> dict[str, Tensor]:
    return {name: v.detach() for name, v in layer.named_parameters()}


@every_cell
def test_compile_is_one_graph_and_trains_at_any_size(cell: Any) -> None:
    layer = _layer(cell, num_layers=2, bidirectional=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for T, B in ((5, 2), (7, 3)):
        x = _x(T, B).requires_grad_()
        rows = {"lengths": torch.tensor([T, 0, 3])[:B], "reset": torch.rand(T, B) < 0.3}
        leaves = [x, *layer.parameters()]
        expected, found = layer(x, **rows), compiled(x, **rows)
        assert_close(found, expected, rtol=1e-12, atol=1e-12)
        assert_close(
            torch.autograd.grad(found[0].square().sum(), leaves),
            torch.autograd.grad(expected[0].square().sum(), leaves),
            rtol=1e-12,
            atol=1e-12,
        )


@every_cell
def test_compile_is_one_graph_without_a_gradient(cell: Any) -> None:
    layer, x = _layer(cell), _x()
    expected = layer(x)
    for context in (torch.no_grad, torch.inference_mode):
        torch._dynamo.reset()
        with context():
            found = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
        assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch._dynamo.reset()
    found = torch.compile(layer.requires_grad_(False), fullgraph=True, backend="aot_eager")(x)
    assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_compile_takes_one_tensor_in_two_places() -> None:
    """Tied weights, one tensor as both states, x as the state: gradients add up."""
    layer = Recurrent(cells.LSTM(), 3, 3, num_layers=2, dtype=torch.float64)
    layer.weight_hh_l0 = layer.weight_ih_l0
    layer.weight_ih_l1 = layer.weight_ih_l0
    x = torch.randn(1, 2, 3, dtype=torch.float64, requires_grad=True)
    leaves = [x, *layer.parameters()]

    def call(run: Any) -> tuple[Tensor, ...]:
        y, state = run(x, ((x, x), (x, x)))
        loss = y.square().sum() + state[0][1].sum()
        return (y, *torch.autograd.grad(loss, leaves))

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert_close(call(compiled), call(layer), rtol=1e-12, atol=1e-12)


@every_cell
@pytest.mark.parametrize("how", [torch.no_grad, torch.inference_mode, None])
def test_compiled_inference_is_one_graph(cell: Any, how: Any) -> None:
    """Without a gradient, by a context or since no weight asks for one."""
    layer = _layer(cell, num_layers=2, bidirectional=True).requires_grad_(how is not None)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    with how() if how else nullcontext():
        for T, B in ((5, 2), (7, 3)):
            x = _x(T, B)
            assert_close(compiled(x), layer(x), rtol=1e-12, atol=1e-12)


@every_cell
def test_export_keeps_time_and_batch_free(cell: Any, tmp_path: Path) -> None:
    layer = _layer(cell, bidirectional=True, num_layers=2)
    sizes = {0: torch.export.Dim("T", min=2, max=99), 1: torch.export.Dim("B", min=2, max=99)}
    program = torch.export.export(layer, (_x(),), dynamic_shapes=({**sizes},))
    torch.export.save(program, tmp_path / "layer.pt2")
    loaded = torch.export.load(tmp_path / "layer.pt2").module()
    x = _x(9, 7)
    assert_close(loaded(x)[0], layer(x)[0], rtol=1e-12, atol=1e-12)
    with pytest.raises(TransformError, match="no derivative of its own, so neither an exported"):
        loaded(x)[0].sum().backward()


@every_cell
def test_torch_func_agrees_with_autograd(cell: Any) -> None:
    layer, x = _layer(cell), _x()
    weights, loss = _weights(layer), _loss(layer)
    found = grad(loss)(weights, x)
    expected = torch.autograd.grad(
        loss(dict(layer.named_parameters()), x), list(layer.parameters())
    )
    assert_close(tuple(found.values()), expected, rtol=1e-12, atol=1e-12)
    rows = x.transpose(0, 1).unsqueeze(2)
    per_row = vmap(grad(loss), in_dims=(None, 0))(weights, rows)
    assert_close({n: v.sum(0) for n, v in per_row.items()}, found, rtol=1e-10, atol=1e-12)


@every_cell
def test_an_ensemble_is_its_members(cell: Any) -> None:
    members = [_layer(cell) for _ in range(3)]
    weights, _ = torch.func.stack_module_state(members)  # type: ignore[arg-type]
    x = _x()
    found = vmap(lambda w: functional_call(members[0], w, (x,))[0])(weights)
    assert_close(found, torch.stack([m(x)[0] for m in members]), rtol=1e-12, atol=1e-12)


@every_cell
def test_forward_mode_agrees_with_reverse_mode(cell: Any) -> None:
    layer, x = _layer(cell), _x(3, 1)
    weights, loss = _weights(layer), _loss(layer)
    direction = torch.randn_like(x)
    _, slope = jvp(lambda x: loss(weights, x), (x,), (direction,))
    gradient = grad(loss, argnums=1)(weights, x)
    assert_close(slope, (gradient * direction).sum(), rtol=1e-10, atol=1e-12)
    second = hessian(lambda x: loss(weights, x))(x).reshape(x.numel(), -1)
    expected = jacrev(lambda x: grad(loss, argnums=1)(weights, x))(x).reshape(x.numel(), -1)
    assert_close(second, expected, rtol=1e-8, atol=1e-10)
    with torch.autograd.forward_ad.dual_level():
        y = loss(weights, torch.autograd.forward_ad.make_dual(x, direction))
        assert_close(torch.autograd.forward_ad.unpack_dual(y).tangent, slope)


@every_cell
def test_double_backward_agrees_with_the_reference(cell: Any) -> None:
    found = []
    layer, x = _layer(cell), _x().requires_grad_()
    for backend in ("auto", "reference"):
        layer.backend = backend
        (d_x,) = torch.autograd.grad(layer(x)[0].square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(d_x.square().sum(), list(layer.parameters())))
    assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "transform",
    [
        lambda layer: grad(lambda x: layer(x)[0].sum()),
        lambda layer: lambda x: jvp(lambda x: layer(x)[0].sum(), (x,), (x,)),
    ],
    ids=["grad", "jvp"],
)
def test_torch_func_inside_compile_is_refused(transform: Any) -> None:
    layer = _layer(cells.GRU())
    compiled = torch.compile(transform(layer), fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="called below torch.func inside a compiled function"):
        compiled(_x())


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_vmap_over_no_entries_gives_none(backend: str) -> None:
    layer = _layer(cells.GRU(), backend=backend)
    none = torch.empty(5, 0, 2, 3, dtype=torch.float64)
    assert vmap(lambda x: layer(x)[0], in_dims=1)(none).shape == (0, 5, 2, 4)
    assert vmap(grad(lambda x: layer(x)[0].sum()), in_dims=1)(none).shape == (0, 5, 2, 3)


def test_vmap_inside_compile_is_right_without_a_gradient() -> None:
    layer = _layer(cells.GRU(), return_state=False).requires_grad_(False)
    x = _x(4, 3)

    def rows(x: Tensor) -> Tensor:
        return vmap(lambda v: layer(v.unsqueeze(1)).squeeze(1), in_dims=1, out_dims=1)(x)

    compiled = torch.compile(rows, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x), layer(x), rtol=1e-12, atol=1e-12)


def test_a_tangent_into_the_raw_op_is_refused() -> None:
    from tests.scan.calls import make_call
    from throughtime.scan.operator import flatten

    call = make_call(grad=False)
    form, tensors = flatten(call)
    with torch.autograd.forward_ad.dual_level():
        tensors[0] = torch.autograd.forward_ad.make_dual(call.x, torch.ones_like(call.x))
        with pytest.raises(TransformError, match="has no forward-mode derivative; call the layer"):
            torch.ops.throughtime.scan_forward(call.cell.key, "auto", list(form), False, tensors)


def test_inference_mode_equals_training() -> None:
    layer, x = _layer(cells.LSTM()), _x()
    with torch.inference_mode():
        found = layer(x)[0]
    assert_close(found, layer(x)[0].detach(), rtol=1e-12, atol=1e-12)


@every_cell
def test_derivatives_of_derivatives_agree_with_the_references(cell: Any) -> None:
    """Compiled code has one derivative below torch.func; where more are asked, `auto` knows."""
    found: dict[str, list[Tensor]] = {}
    layer, x = _layer(cell), _x(3, 1)
    for backend in ("auto", "reference"):
        layer.backend = backend
        weights = {n: v.detach().requires_grad_() for n, v in layer.named_parameters()}
        loss = _loss(layer)
        first = grad(lambda x, w=weights, loss=loss: loss(w, x))
        second = jacrev(first)(x)
        third = grad(lambda x, first=first: jacrev(first)(x).sin().sum())(x)
        mixed = torch.autograd.grad(first(x).square().sum(), list(weights.values()))
        found[backend] = [jacrev(lambda x: layer(x)[0])(x), second, third, *mixed]
    assert_close(found["auto"], found["reference"], rtol=1e-9, atol=1e-11)


def test_a_named_compiled_backend_tells_that_it_has_one_derivative() -> None:
    layer = _layer(cells.LSTMPeephole(), backend="cpu")
    with pytest.raises(BackendError, match="have one derivative below torch.func, not one of an"):
        jacrev(grad(lambda x: layer(x)[0].square().sum()))(_x())


def test_a_compiled_layer_runs_where_others_have_tangents() -> None:
    layer, x = _layer(cells.LSTM()), _x()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    expected = compiled(x)[0]
    with torch.autograd.forward_ad.dual_level():
        assert torch.equal(compiled(x)[0], expected)
