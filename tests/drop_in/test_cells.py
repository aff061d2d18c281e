"""RNNCell, LSTMCell and GRUCell compute torch.nn's step, and raise its errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

import throughtime
from tests.drop_in.pairs import tensors
from tests.drop_in.test_errors import outcome
from throughtime.errors import BackendError, OptionError

TOLERANCE = {"rtol": 1e-12, "atol": 1e-12}
BACKENDS = ("auto", "torch", "reference")
CELLS = {
    "tanh": ("RNNCell", {}),
    "relu": ("RNNCell", {"nonlinearity": "relu"}),
    "LSTM": ("LSTMCell", {}),
    "GRU": ("GRUCell", {}),
}


def pair(name: str, backend: str = "auto", **more: Any) -> tuple[Any, Any]:
    """torch's cell and ours with its weights, in double precision."""
    kind, options = CELLS[name]
    theirs = getattr(nn, kind)(3, 5, dtype=torch.float64, **options, **more)
    ours = getattr(throughtime, kind)(3, 5, dtype=torch.float64, backend=backend, **options, **more)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def state(name: str, *shape: int) -> Any:
    h, c = torch.randn(2, *shape, 5, dtype=torch.float64, requires_grad=True).unbind()
    return (h, c) if name == "LSTM" else h


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(4,), (), (0,)])
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("name", CELLS)
def test_values_and_gradients_are_torchs(
    name: str, given: bool, rows: tuple[int, ...], bias: bool, backend: str
) -> None:
    theirs, ours = pair(name, backend, bias=bias)
    x = torch.randn(*rows, 3, dtype=torch.float64, requires_grad=True)
    hx = state(name, *rows) if given else None
    expected, found = tensors(theirs(x, hx)), tensors(ours(x, hx))
    torch.testing.assert_close(found, expected, **TOLERANCE)
    d_results = [torch.randn_like(v) for v in expected]
    inputs = [x, *tensors(hx)]
    torch.testing.assert_close(
        torch.autograd.grad(found, [*inputs, *ours.parameters()], d_results),
        torch.autograd.grad(expected, [*inputs, *theirs.parameters()], d_results),
        **TOLERANCE,
    )


CALLS: dict[str, Callable[[str], tuple[Any, ...]]] = {
    "x of 3 dimensions": lambda n: (torch.zeros(4, 2, 3).double(),),
    "x of none": lambda n: (torch.zeros(()).double(),),
    "x too wide": lambda n: (torch.zeros(2, 4).double(),),
    "x alone too wide": lambda n: (torch.zeros(4).double(),),
    "x no tensor": lambda n: ([0.0, 0.0, 0.0],),
    "state for another batch": lambda n: (torch.zeros(2, 3).double(), state(n, 3)),
    "state of 3 dimensions": lambda n: (torch.zeros(2, 3).double(), state(n, 2, 2)),
    "state without batch": lambda n: (torch.zeros(2, 3).double(), state(n)),
    "state with batch, x alone": lambda n: (torch.zeros(3).double(), state(n, 2)),
    "state too wide": lambda n: (torch.zeros(2, 3).double(), wide(n)),
}


def wide(name: str) -> Any:
    return (
        tuple(torch.cat((v, v), 1) for v in tensors(state(name, 2)))
        if name == "LSTM"
        else (torch.zeros(2, 10).double())
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wrong", CALLS)
@pytest.mark.parametrize("name", CELLS)
def test_bad_calls_raise_torchs_errors(name: str, wrong: str, backend: str) -> None:
    theirs, ours = pair(name, backend)
    args = CALLS[wrong](name)
    expected = outcome(lambda: theirs(*args))
    assert expected is not None
    if expected[0] is AttributeError:  # what Python says of a list is no word of torch.nn's
        words = "got list of 3; convert it with torch.tensor"
        expected = TypeError, f"input must be a tensor, {words}"
    assert outcome(lambda: ours(*args)) == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_state_for_an_lstm_is_refused(backend: str) -> None:
    theirs, ours = pair("LSTM", backend)
    x, h = torch.zeros(2, 3).double(), torch.zeros(2, 5).double()
    assert outcome(lambda: ours(x, (h,))) == outcome(lambda: theirs(x, (h,)))
    assert outcome(lambda: ours(x, (h,))) == (RuntimeError, "lstm_cell expects two hidden states")


@pytest.mark.parametrize("kind", ["RNNCell", "LSTMCell", "GRUCell"])
@pytest.mark.parametrize("sizes", [(3, -5), (-3, 5), (3, 5.0)])
def test_bad_sizes_raise_torchs_errors(kind: str, sizes: tuple[Any, Any]) -> None:
    expected = outcome(lambda: getattr(nn, kind)(*sizes))
    assert expected is not None
    assert outcome(lambda: getattr(throughtime, kind)(*sizes)) == expected


def test_an_unknown_nonlinearity_is_told_at_the_call() -> None:
    found = []
    for module in (nn, throughtime):
        cell = module.RNNCell(3, 5, nonlinearity="sigmoid")
        found.append((repr(cell), outcome(lambda cell=cell: cell(torch.zeros(2, 3)))))
    assert found[0] == found[1]
    assert found[1][1] == (RuntimeError, "Unknown nonlinearity: sigmoid")


@pytest.mark.parametrize("name", CELLS)
def test_swapped_weights_are_seen(name: str) -> None:
    theirs, ours = pair(name)
    x = torch.randn(2, 3, dtype=torch.float64)
    weights = {n: torch.randn_like(v) for n, v in ours.named_parameters()}
    expected = functional_call(theirs, weights, (x,))
    torch.testing.assert_close(functional_call(ours, weights, (x,)), expected, **TOLERANCE)
    for cell in (theirs, ours):
        del cell.weight_hh
        cell.weight_hh = weights["weight_hh"]
        cell.bias_ih.data.fill_(0.5)
    torch.testing.assert_close(ours(x), theirs(x), **TOLERANCE)


@pytest.mark.parametrize("name", CELLS)
def test_transforms(name: str) -> None:
    cells = [pair(name)[1] for _ in range(3)]
    x = torch.randn(4, 3, dtype=torch.float64)
    weights, buffers = stack_module_state(cells)
    found = vmap(lambda w, b: tensors(functional_call(cells[0], (w, b), (x,)))[0])(weights, buffers)
    torch.testing.assert_close(found, torch.stack([tensors(c(x))[0] for c in cells]), **TOLERANCE)

    def loss(row: torch.Tensor) -> torch.Tensor:
        return tensors(cells[0](row))[0].square().sum()

    expected = torch.stack([grad(loss)(row) for row in x])
    torch.testing.assert_close(vmap(grad(loss))(x), expected, **TOLERANCE)


def test_a_named_backend_runs_or_raises() -> None:
    _, ours = pair("GRU", "torch")
    with pytest.raises(BackendError, match="backend 'torch' cannot run this call"):
        vmap(ours)(torch.randn(2, 4, 3).double())
    assert ours.explain() == "torch"
    assert pair("GRU", "reference")[1].explain() == "reference"
    with torch.autograd.forward_ad.dual_level():  # a named backend that refuses is told, not raised
        said = pair("GRU", "torch")[1].explain()
    assert said.startswith(
        "none, since backend 'torch' cannot run this call: torch's recurrent ker"
    )
    assert pair("GRU", "cpu")[1].explain() == "cpu"


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_have_the_bits_of_the_whole(name: str, dtype: torch.dtype) -> None:
    cell = pair(name)[1].to(dtype)
    kind = {"tanh": "RNN", "relu": "RNN"}.get(name, name)
    layer = getattr(throughtime, kind)(3, 5, **({"nonlinearity": name} if kind == "RNN" else {}))
    layer.to(dtype).load_state_dict({f"{n}_l0": v for n, v in cell.state_dict().items()})
    x, state, found = torch.randn(4, 2, 3, dtype=dtype), None, []
    for step in x:
        state = cell(step, state)
        found.append(state[0] if name == "LSTM" else state)
    assert cell.explain() == "cpu"
    assert torch.equal(torch.stack(found), layer(x)[0])


@pytest.mark.parametrize("rows", [33, 70, 150])
def test_so_have_steps_of_many_rows_while_gradients_are_recorded(rows: int) -> None:
    layer, cell = throughtime.LSTM(9, 220), throughtime.LSTMCell(9, 220)
    cell.load_state_dict({n.removesuffix("_l0"): v for n, v in layer.state_dict().items()})
    x, state = torch.randn(2, rows, 9), None
    steps = [state := cell(v, state) for v in x]
    assert cell.explain(rows) == layer.explain(1, rows).removeprefix("layer 0: ") == "cpu"
    whole = layer(x)[0]
    single = layer(x[:1])[0][0]
    for found, wanted in ((steps[0][0], whole[0]), (steps[1][0], whole[1]), (single, whole[0])):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell"])
@pytest.mark.parametrize("backend", ["auto", "cpu", "reference"])
def test_a_state_of_another_dtype_is_named(kind: str, backend: str) -> None:
    module = getattr(throughtime, kind)(3, 5, backend=backend)
    single = kind.endswith("Cell")
    x, h = torch.randn(2, 3) if single else torch.randn(4, 2, 3), torch.zeros(2, 5)
    h = (h if single else h[None]).double()
    name = r"hx\[0\]" if kind.startswith("LSTM") else "hx"
    rule = rf"^{name} must be torch.float32 as the weights, got torch.float64; convert it with \.to"
    with pytest.raises(RuntimeError, match=rule):
        module(x, (h, h) if kind.startswith("LSTM") else h)


def test_gates_by_name() -> None:
    _, ours = pair("LSTM")
    ours.gate("f").bias = 1.0
    assert torch.equal(ours.bias_ih[5:10], torch.ones(5).double())
    assert torch.equal(ours.bias_hh[5:10], torch.zeros(5).double())
    assert torch.equal(ours.gate("o").weight_hh, ours.weight_hh[15:])
    with pytest.raises(OptionError, match="gate must be one of i, f, g, o, got 'z'"):
        ours.gate("z")
