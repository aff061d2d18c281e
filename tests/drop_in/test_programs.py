"""What real programs do to a recurrent layer of torch.nn keeps working on ours."""

from __future__ import annotations

import copy
import itertools
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jvp, stack_module_state, vmap
from torch.nn.utils import parametrizations

from tests.drop_in.pairs import KINDS, Case, leaves, run, tensors

TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}
BACKENDS = ("auto", "reference")


def equal(found: Any, expected: Any) -> None:
    torch.testing.assert_close(tensors(found), tensors(expected), **TOLERANCE)


def pair(kind: str, backend: str = "auto", **options: Any) -> tuple[Any, Any, torch.Tensor]:
    """torch's layer, ours with its weights, and a random input."""
    case = Case(kind, "batched", False, options)
    theirs, ours = case.pair(backend)
    return theirs, ours, case.draw()[0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_writing_into_data_is_seen(kind: str, backend: str) -> None:
    theirs, ours, x = pair(kind, backend)
    for layer in (theirs, ours):
        layer(x)
        layer.bias_hh_l0.data[1:3] = 2.0
        layer.weight_hh_l0.data.copy_(torch.eye(5).repeat(len(layer.bias_hh_l0) // 5, 1))
    equal(ours(x), theirs(x))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_drop_connect_by_hand(kind: str, backend: str) -> None:
    """The recurrent weight is deleted, and a plain tensor of its name set before every call."""
    theirs, ours, x = pair(kind, backend, num_layers=2)
    gradients = []
    for layer in (theirs, ours):
        raw = nn.Parameter(layer.weight_hh_l0.detach().clone())
        del layer._parameters["weight_hh_l0"]
        layer.register_parameter("weight_hh_l0_raw", raw)
        layer.flatten_parameters = lambda: None
        torch.manual_seed(5)
        for _ in range(2):
            layer.weight_hh_l0 = nn.functional.dropout(raw, 0.5)
            y = layer(x)[0]
        gradients.append(torch.autograd.grad(y.square().sum(), [raw, *layer.parameters()][:3]))
    equal(gradients[1], gradients[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_that_is_gone_is_named(kind: str) -> None:
    _, ours, x = pair(kind)
    del ours.weight_hh_l0
    with pytest.raises(AttributeError, match="has no attribute 'weight_hh_l0'"):
        ours(x)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_assigned_as_a_list(kind: str) -> None:
    theirs, ours, x = pair(kind)
    fresh = [nn.Parameter(torch.randn_like(v)) for v in theirs._flat_weights]
    for layer in (theirs, ours):
        for name, value in zip(layer._flat_weights_names, fresh, strict=True):
            setattr(layer, name, value)
        layer._flat_weights = fresh
    equal(ours(x), theirs(x))
    with pytest.raises(TypeError, match="cannot assign 'torch.DoubleTensor' as parameter"):
        ours._flat_weights = [v.detach() for v in fresh]


def test_forget_bias_by_the_usual_loop() -> None:
    _, ours, _ = pair("LSTM", num_layers=2, bidirectional=True)
    for name in itertools.chain.from_iterable(ours._all_weights):
        if "bias" in name:
            bias = getattr(ours, name)
            n = bias.size(0)
            bias.data[n // 4 : n // 2].fill_(0.5)
    for layer, reverse in itertools.product((0, 1), (False, True)):
        assert torch.equal(ours.gate("f", layer, reverse).bias, torch.ones(5).double())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "parametrise",
    [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal],
)
@pytest.mark.parametrize("kind", KINDS)
def test_parametrised_weights(kind: str, parametrise: Any, backend: str) -> None:
    theirs, ours, x = pair(kind, backend)
    for layer in (theirs, ours):
        torch.manual_seed(4)
        parametrise(layer, "weight_hh_l0")
    ours.load_state_dict(theirs.state_dict(), strict=True)
    # In training a spectral norm goes on by a step at every reading; torch.nn reads several times.
    theirs.eval()
    ours.eval()
    d_results: list[torch.Tensor] = []
    expected = run(theirs, x, None, d_results)
    equal(run(ours, x, None, d_results), expected)
    names = [n for n, _ in theirs.named_parameters()]
    assert [n for n, _ in ours.named_parameters()] == names
    equal(copy.deepcopy(ours)(x), ours(x))


@pytest.mark.parametrize("kind", KINDS)
def test_the_old_weight_norm(kind: str) -> None:
    theirs, ours, x = pair(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        for layer in (theirs, ours):
            nn.utils.weight_norm(layer, "weight_hh_l0")
    d_results: list[torch.Tensor] = []
    expected = run(theirs, x, None, d_results)
    equal(run(ours, x, None, d_results), expected)
    nn.utils.remove_weight_norm(ours, "weight_hh_l0")
    equal(ours(x), theirs(x))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_functional_call(kind: str, backend: str) -> None:
    theirs, ours, x = pair(kind, backend)
    before = ours(x)
    weights = {n: torch.randn_like(v, requires_grad=True) for n, v in ours.named_parameters()}
    expected = functional_call(theirs, weights, (x,))[0]
    found = functional_call(ours, weights, (x,))[0]
    equal(found, expected)
    wanted = list(weights.values())
    equal(
        torch.autograd.grad(found.sum(), wanted),
        torch.autograd.grad(expected.sum(), wanted),
    )
    equal(ours(x), before)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_ensemble_under_vmap(kind: str, backend: str) -> None:
    layers = [pair(kind, backend, num_layers=2, bidirectional=True)[1] for _ in range(3)]
    x = pair(kind)[2]
    weights, buffers = stack_module_state(layers)
    found = vmap(lambda w, b: functional_call(layers[0], (w, b), (x,)))(weights, buffers)
    equal(found, [torch.stack(v) for v in zip(*(tensors(m(x)) for m in layers), strict=True)])


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_each_sample(kind: str) -> None:
    _, ours, x = pair(kind)
    weights = {n: v.detach() for n, v in ours.named_parameters()}

    def loss(w: dict[str, torch.Tensor], row: torch.Tensor) -> torch.Tensor:
        return functional_call(ours, w, (row,))[0].square().sum()

    found = vmap(grad(loss), in_dims=(None, 1))(weights, x)
    for b in range(x.shape[1]):
        y = ours(x[:, b])[0].square().sum()
        expected = torch.autograd.grad(y, list(ours.parameters()))
        equal([v[b] for v in found.values()], expected)


# torch scripts its rules for forward mode when it is first used.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_forward_mode_and_hessian(kind: str) -> None:
    _, ours, x = pair(kind)
    v = torch.randn_like(x)
    y, d_y = jvp(lambda x: ours(x)[0], (x,), (v,))
    step = 1e-6
    central = (ours(x + step * v)[0] - ours(x - step * v)[0]) / (2 * step)
    equal(y, ours(x)[0])
    torch.testing.assert_close(d_y, central, rtol=1e-7, atol=1e-8)
    small = x[:2, :1]
    found = hessian(lambda x: ours(x)[0].square().sum())(small)
    n = small.numel()
    expected = torch.autograd.functional.hessian(lambda x: ours(x)[0].square().sum(), small)
    torch.testing.assert_close(found.reshape(n, n), expected.reshape(n, n), **TOLERANCE)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_two_backward_passes_through_one_graph(kind: str, backend: str) -> None:
    theirs, ours, x = pair(kind, backend, num_layers=2)
    found = []
    for layer in (theirs, ours):
        y = layer(x)[0]
        y.sum().backward(retain_graph=True)
        y.square().sum().backward()
        found.append([p.grad for p in layer.parameters()])
    equal(found[1], found[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_double_backward(kind: str, backend: str) -> None:
    theirs, ours, x = pair(kind, backend)
    found = []
    for layer in (theirs, ours):
        x_, _, _ = leaves(x, None)
        y = layer(x_)[0].square().sum()
        (d_x,) = torch.autograd.grad(y, x_, create_graph=True)
        penalty = (d_x.norm() - 1).square()
        wanted = [p for n, p in layer.named_parameters()]
        found.append(torch.autograd.grad(penalty, [x_, *wanted], allow_unused=True))
    assert all((a is None) == (b is None) for a, b in zip(*found, strict=True))
    equal(found[1], found[0])


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind: str) -> None:
    _, ours, x = pair(kind, "reference", bidirectional=True)
    assert torch.autograd.gradcheck(lambda x: ours(x)[0], (x[:2, :2].clone().requires_grad_(),))


@pytest.mark.parametrize("kind", KINDS)
def test_hooks_see_torchs_arguments_and_results(kind: str) -> None:
    _, ours, x = pair(kind)
    seen: list[Any] = []
    ours.register_forward_pre_hook(lambda module, args: seen.append(args))
    ours.register_forward_hook(lambda module, args, result: seen.append(result))
    result = ours(x)
    assert seen[0] == (x,)
    assert seen[1] is result


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_weights_get_no_gradient(kind: str) -> None:
    _, ours, x = pair(kind)
    ours.weight_hh_l0.requires_grad_(False)
    ours(x)[0].sum().backward()
    assert ours.weight_hh_l0.grad is None
    assert ours.weight_ih_l0.grad is not None


@pytest.mark.parametrize("kind", KINDS)
def test_keywords_and_forms_of_the_call(kind: str) -> None:
    theirs, ours, x = pair(kind)
    hx = tuple(torch.randn(1, 3, 5).double() for _ in range(2))
    state: Any = hx if kind == "LSTM" else hx[0]
    equal(ours(input=x, hx=state), theirs(input=x, hx=state))
    if kind == "LSTM":
        equal(ours(x, list(hx)), theirs(x, list(hx)))
        assert isinstance(ours(x)[1], tuple)
    empty = x[:, :0]
    equal(ours(empty), theirs(empty))
