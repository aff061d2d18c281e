"""Calls that somebody looks on, and tensors without plain memory: right values, or an error."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import functional
from torch.fx.experimental.proxy_tensor import make_fx
from torch.masked import masked_tensor
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads
from torch.testing import assert_close
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.flop_counter import FlopCounterMode

import throughtime
from tests.scan.calls import Names
from throughtime import Recurrent, cells
from throughtime.errors import BackendError, TransformError

KINDS = ("RNN", "GRU", "LSTM")
every_kind = pytest.mark.parametrize("kind", KINDS)


def pair(kind: str, *sizes: int, **options: Any) -> tuple[nn.Module, nn.Module]:
    """torch's layer and ours, with the same weights in float64."""
    judge = getattr(nn, kind)(*sizes, dtype=torch.float64, **options)
    layer = getattr(throughtime, kind)(*sizes, dtype=torch.float64, **options)
    layer.load_state_dict(judge.state_dict())
    return judge, layer


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


@pytest.fixture(autouse=True)
def quiet_traces() -> Iterator[None]:
    """Of torch's own about tracing, which come with torch.nn's layers too."""
    with warnings.catch_warnings():
        for said in (".*torch.jit.trace", "Converting a tensor", "Using len"):
            warnings.filterwarnings("ignore", said)
        yield


# Batched gradients


@every_kind
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}])
def test_batched_gradients_equal_those_of_torch(kind: str, options: dict[str, Any]) -> None:
    judge, layer = pair(kind, 3, 5, **options)
    x = random(4, 2, 3)

    def jacobian(net: nn.Module, **how: Any) -> Any:
        return functional.jacobian(lambda v: net(v)[0][-1], x, vectorize=True, **how)

    assert_close(jacobian(layer), jacobian(judge))
    again = [jacobian(net, create_graph=True).square().sum() for net in (layer, judge)]
    found = [
        torch.autograd.grad(v, tuple(net.parameters()))
        for v, net in zip(again, (layer, judge), strict=True)
    ]
    assert_close(found[0], found[1])


def test_a_vectorised_hessian_and_vmap_over_grad_equal_those_of_torch() -> None:
    judge, layer = pair("GRU", 2, 3)
    x = random(3, 2, 2)

    def hessian(net: nn.Module) -> Any:
        return functional.hessian(lambda v: net(v)[0].square().sum(), x, vectorize=True)

    def vmapped(net: nn.Module) -> Tensor:
        z = x.clone().requires_grad_()
        y = net(z)[0]
        every = torch.eye(y.numel(), dtype=x.dtype).view(-1, *y.shape)
        return torch.func.vmap(lambda d: torch.autograd.grad(y, z, d, retain_graph=True)[0])(every)

    assert_close(hessian(layer), hessian(judge))
    assert_close(vmapped(layer), vmapped(judge))


@pytest.mark.parametrize("options", [{}, {"checkpoint_every": 2}, {"clip_gradient": 0.1}])
def test_batched_gradients_of_own_cells_equal_one_after_the_other(options: dict[str, Any]) -> None:
    layer = Recurrent(cells.LEM(), 2, 3, dtype=torch.float64, **options)
    x = random(5, 2, 2).requires_grad_()
    inputs = (x, *layer.parameters())
    y, _ = layer(x)
    d = random(3, *y.shape)
    found = torch.autograd.grad(y, inputs, d, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(y, inputs, v, retain_graph=True) for v in d]
    assert_close(found, tuple(torch.stack(v) for v in zip(*each, strict=True)))


def test_gradients_batched_twice() -> None:
    judge, layer = pair("GRU", 2, 3)
    x = random(3, 2, 2).requires_grad_()
    d = random(2, 4, 3, 2, 3)

    def twice(net: nn.Module) -> Tensor:
        y = net(x)[0]

        def once(v: Tensor) -> Tensor:
            return torch.autograd.grad(y, x, v, is_grads_batched=True, retain_graph=True)[0]

        return torch.stack([once(v) for v in d])

    assert_close(twice(layer), twice(judge))


# Tracing


@every_kind
@pytest.mark.parametrize("grad", [True, False])
def test_a_trace_gives_the_values_of_other_data_steps_and_rows(kind: str, grad: bool) -> None:
    _, layer = pair(kind, 3, 5, num_layers=2, bidirectional=True)
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(layer, (random(7, 3, 3),))
        for shape in ((7, 3, 3), (11, 3, 3), (7, 5, 3)):
            x = random(*shape)
            assert_close(traced(x)[0], layer(x)[0])


@pytest.mark.parametrize(
    "layer",
    [
        Recurrent(cells.LEM(), 3, 4, bidirectional=True),
        Recurrent(cells.LSTM(), 3, 4, zoneout=0.1).eval(),
        Recurrent(cells.LSTM(), 3, 4, checkpoint_every=2),
        throughtime.GRU(3, 4, backend="cpu"),
        throughtime.GRU(3, 4, backend="reference"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_a_trace_of_what_torch_has_not_holds_the_operator(layer: nn.Module) -> None:
    traced = torch.jit.trace(layer, (torch.randn(6, 3, 3),))
    for shape in ((6, 3, 3), (9, 2, 3), (1, 1, 3)):
        x = torch.randn(shape)
        assert_close(traced(x)[0], layer(x)[0])


def test_a_traced_operator_refuses_to_train() -> None:
    traced = torch.jit.trace(throughtime.GRU(3, 4, backend="cpu"), (torch.randn(6, 3, 3),))
    with pytest.raises(TransformError, match="has no derivative of its own"):
        traced(torch.randn(6, 3, 3))[0].sum().backward()


@every_kind
def test_a_graph_of_make_fx_computes_and_holds_no_constant(kind: str) -> None:
    _, layer = pair(kind, 3, 5)
    graph = make_fx(lambda v: layer(v)[0])(random(4, 2, 3))
    x = random(4, 2, 3)
    assert_close(graph(x), layer(x)[0])


# Tensors without plain memory


@every_kind
def test_fake_tensors_give_shapes_wherever_they_stand(kind: str) -> None:
    layer = getattr(throughtime, kind)(3, 5, 2, bidirectional=True)
    x, shape = torch.randn(6, 2, 3), (6, 2, 10)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake, h = mode.from_tensor(x).requires_grad_(), mode.from_tensor(torch.randn(4, 2, 5))
        weights = {n: mode.from_tensor(p) for n, p in layer.named_parameters()}
        made_here = getattr(throughtime, kind)(3, 5)(torch.randn(6, 2, 3))[0]
    assert made_here.shape == (6, 2, 5)
    state = (h, h) if kind == "LSTM" else h
    for y in (layer(fake)[0], layer(x, state)[0], torch.func.functional_call(layer, weights, x)[0]):
        assert type(y) is type(fake)
        assert y.shape == shape
    layer(fake)[0].sum().backward()
    assert fake.grad is not None
    assert fake.grad.shape == x.shape


def test_a_wrapper_of_two_tensors_goes_through_torchs_own_operations() -> None:
    judge, layer = pair("GRU", 3, 5)
    x = TwoTensor(random(4, 2, 3), random(4, 2, 3))
    found = layer(x)[0]
    assert isinstance(found, TwoTensor)
    assert_close((found.a, found.b), (judge(x.a)[0], judge(x.b)[0]))
    own = Recurrent(cells.LEM(), 3, 5, dtype=torch.float64)
    assert_close(own(x)[0].b, own(x.b)[0])


def test_a_named_backend_says_that_it_reads_plain_memory() -> None:
    layer = throughtime.GRU(3, 5, backend="cpu")
    x = torch.randn(4, 2, 3)
    with pytest.raises(BackendError, match="reads plain memory, and is given a TwoTensor; use"):
        layer(TwoTensor(x, x.clone()))


@every_kind
def test_a_sign_that_waits_counts_in_both_directions(kind: str) -> None:
    judge, layer = pair(kind, 1, 4)
    x = torch.randn(5, 2, 1, dtype=torch.complex128).conj().imag
    h = torch.randn(1, 2, 4, dtype=torch.complex128).conj().imag
    assert x.is_neg()
    state = (h, h) if kind == "LSTM" else h
    d = torch.randn(5, 2, 4, dtype=torch.complex128)

    def run(net: nn.Module) -> list[Tensor]:
        y = net(x, state)[0]
        torch.complex(torch.zeros_like(y), y).conj().backward(d)  # which gives y a negative bit
        return [y, *(p.grad for p in net.parameters() if p.grad is not None)]

    assert_close(run(layer), run(judge))


def test_zeros_that_lie_nowhere_are_zeros() -> None:
    judge, layer = pair("LSTM", 3, 4)
    x = torch._efficientzerotensor((5, 2, 3), dtype=torch.float64)
    h = torch._efficientzerotensor((1, 2, 4), dtype=torch.float64)
    expected = judge(torch.zeros_like(x) + 0, (torch.zeros_like(h) + 0,) * 2)[0]
    assert_close(layer(x, (h, h))[0], expected)


def test_functional_tensors_and_functionalize() -> None:
    judge, layer = pair("GRU", 3, 4)
    own = Recurrent(cells.LEM(), 3, 4, dtype=torch.float64)
    x = random(5, 2, 3)
    found = layer(torch._to_functional_tensor(x))[0]
    assert_close(torch._from_functional_tensor(found), judge(x)[0])
    for net in (layer, own):
        assert_close(torch.func.functionalize(lambda v, net=net: net(v)[0])(x), net(x)[0])


@pytest.mark.parametrize("change", [lambda v: v.to_mkldnn(), lambda v: v.to_sparse()])
def test_other_layouts_are_refused_with_the_cure(change: Callable[[Tensor], Tensor]) -> None:
    x, h = torch.randn(4, 2, 3), torch.randn(1, 2, 5)
    said = r"must be dense tensors, got one of layout torch.*; convert it with .to_dense"
    with pytest.raises(TypeError, match=said):
        throughtime.GRU(3, 5)(change(x))
    with pytest.raises(TypeError, match=said):
        Recurrent(cells.GRU(), 3, 5)(x, ((change(h),),))


@pytest.mark.filterwarnings("ignore:.*prototype", "ignore:.*not implemented in __torch_dispatch__")
def test_masked_tensors_are_refused_by_torch() -> None:
    x, h = torch.randn(4, 2, 3), torch.randn(1, 2, 5)
    layer = throughtime.GRU(3, 5)
    for given in ((masked_tensor(x, x > 0),), (x, masked_tensor(h, h > 0))):
        with pytest.raises(TypeError, match="__torch_dispatch__ handlers returned NotImplemented"):
            layer(*given)


def test_a_parameter_of_a_class_of_the_users_own_is_plain() -> None:
    class Named(nn.Parameter):
        pass

    _, layer = pair("GRU", 3, 4)
    x = random(5, 2, 3)
    expected = layer(x)[0]
    for name, p in list(layer.named_parameters()):
        setattr(layer, name, Named(p.detach()))
    assert torch.equal(layer(x)[0], expected)


def test_gradients_of_single_samples_equal_torchs() -> None:
    judge, layer = (net.float() for net in pair("GRU", 3, 4, batch_first=True))
    x = torch.randn(3, 6, 3)
    for net in (judge, layer):
        call_for_per_sample_grads(net)(x)[0].sum().backward()
    for ours, torchs in zip(layer.parameters(), judge.parameters(), strict=True):
        assert_close(ours.grad_sample, torchs.grad_sample)


# Modes


def test_a_mode_sees_the_operator_forward_and_backward() -> None:
    judge, layer = pair("GRU", 3, 4)
    x = random(5, 2, 3)
    with Names() as names:
        y = layer(x)[0]
    assert "throughtime::scan_forward" in names.seen
    assert_close(y, judge(x)[0])
    with Names() as names:
        layer(x)[0].sum().backward()
    assert "throughtime::scan_backward" in names.seen
    y = layer(x)[0].sum()
    with Names() as names:  # only backward is looked on
        y.backward()
    assert "throughtime::scan_backward" in names.seen


@pytest.mark.parametrize("kind", ["RNN", "GRU"])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}])
def test_flops_are_those_of_torch(kind: str, options: dict[str, Any]) -> None:
    """torch.nn.LSTM itself counts none, for its kernel on a CPU has no formula."""
    D, layers = (2, 2) if options else (1, 1)
    x, h = random(5, 2, 3).requires_grad_(), random(D * layers, 2, 4).requires_grad_()

    def flops(net: nn.Module) -> tuple[int, int]:
        with FlopCounterMode(display=False) as forward:
            y = net(x, h)[0].sum()
        with FlopCounterMode(display=False) as backward:
            y.backward()
        return forward.get_total_flops(), backward.get_total_flops()

    judge, layer = pair(kind, 3, 4, **options)
    assert flops(layer) == flops(judge)


def test_flops_of_what_torch_does_not_count() -> None:
    with FlopCounterMode(display=False) as counted:
        throughtime.LSTM(3, 4)(torch.randn(5, 2, 3))
    assert counted.get_total_flops() == 2 * 5 * 2 * (4 * 4 * 3 + 4 * 4 * 4)


@every_kind
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_third_and_fourth_derivatives_equal_those_of_torch(kind: str, backend: str) -> None:
    judge, layer = pair(kind, 2, 3)
    layer.backend = backend  # type: ignore[assignment]
    x = random(3, 2, 2).requires_grad_()

    def orders(net: nn.Module) -> list[Tensor]:
        inputs, value = (x, *net.parameters()), net(x)[0].square().sum()
        found = []
        for order in range(4):
            grads = torch.autograd.grad(value, inputs, create_graph=order < 3)
            found += list(grads)
            value = torch.stack([v.square().sum() for v in grads]).sum()
        return found

    for _ in range(3):
        assert_close(orders(layer), orders(judge))
