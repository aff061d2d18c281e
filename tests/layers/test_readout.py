"""Readouts, gates and unrolled layers against their formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import throughtime
from tests.cells.table import CELLS
from throughtime import Cell, Gate, Readout, Recurrent, cells, unroll
from throughtime.errors import OptionError, ShapeError


def test_a_readout_is_its_formula_and_hands_the_state_on() -> None:
    layer, readout = Recurrent(cells.GRU(), 3, 4), Readout(4, 2, activation="tanh")
    x = torch.randn(5, 2, 3)
    h, state = layer(x)
    W, b = readout.network.weight, readout.network.bias
    y, handed = nn.Sequential(layer, readout)(x)
    assert_close(y, torch.tanh(h @ W.T + b))
    assert_close(handed, state)
    assert_close(readout(h), y)


def test_a_readout_may_be_any_network() -> None:
    network = nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 2))
    h = torch.randn(5, 2, 4)
    assert_close(Readout(network=network)(h), network(h))
    with pytest.raises(OptionError, match="Readout takes sizes or a network, and got both"):
        Readout(4, 2, network=network)
    with pytest.raises(OptionError, match="Readout needs input_size and output_size, or a net"):
        Readout(4)


def test_a_gate_is_its_formula_from_its_input_or_from_another() -> None:
    x, other = torch.randn(5, 2, 3), torch.randn(5, 2, 6)
    gate = Gate(3)
    W, b = gate.network.weight, gate.network.bias
    assert_close(gate(x), x * torch.sigmoid(x @ W.T + b))
    network = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    assert_close(Gate(3, network)(x, other), x * torch.sigmoid(network(other)))


def _joined(x: Tensor, state: Any) -> Tensor:
    """(T, B, I) and a layer's state as one row of numbers for each sequence."""
    flat = [v[0] for part in state for v in part]
    return torch.cat((x.transpose(0, 1).flatten(1), *flat), -1)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "residual": True}, {"bias": False}])
@pytest.mark.parametrize("cell", [cell for cell in CELLS if not cell.inputs], ids=repr)
def test_the_unrolled_gradient_is_back_propagation_through_time(
    cell: Cell, options: dict[str, Any]
) -> None:
    layer = Recurrent(cell, 2, 3, dtype=torch.float64, **options)
    x = torch.randn(5, 3, 2, dtype=torch.float64, requires_grad=True)
    state = tuple(
        tuple(torch.rand_like(v).requires_grad_() for v in part) for part in layer.initial_state(3)
    )
    y, last = layer(x, state)
    unrolled = unroll(layer, 5)
    expected, found = _joined(y, last), unrolled(_joined(x, state))
    assert_close(found, expected, rtol=1e-12, atol=1e-12)
    d = torch.randn_like(found)
    leaves = [x, *(v for part in state for v in part), *layer.parameters()]
    assert_close(
        torch.autograd.grad(found, leaves, d, materialize_grads=True),
        torch.autograd.grad(expected, leaves, d, materialize_grads=True),
        rtol=1e-11,
        atol=1e-12,
    )


def test_unrolled_steps_share_the_layers_weights() -> None:
    layer = throughtime.LSTM(2, 3)
    unrolled = unroll(layer, 4)
    assert {id(p) for p in unrolled.parameters()} == {id(p) for p in layer.parameters()}
    assert len(unrolled.steps) == 4
    assert len({id(step) for step in unrolled.steps}) == 1
    assert list(unrolled.state_dict()) == [f"step.layer.{name}" for name in layer.state_dict()]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: unroll(nn.LSTM(2, 3), 4), "unroll takes a layer of throughtime, got LSTM"),
        (lambda: unroll(throughtime.GRU(2, 3), 0), "steps must be a positive integer, got 0"),
        (
            lambda: unroll(throughtime.GRU(2, 3, bidirectional=True), 2),
            "unroll shows one direction; build the layer with bidirectional=False",
        ),
        (
            lambda: unroll(Recurrent(cells.GRU(), 2, 3, zoneout=0.1), 2),
            "unroll shows the equations alone; build the layer without dropouts",
        ),
    ],
)
def test_what_cannot_be_unrolled_is_told(make: Any, text: str) -> None:
    with pytest.raises(OptionError, match=text):
        make()


def test_a_wrong_width_is_told() -> None:
    unrolled = unroll(throughtime.GRU(2, 3), 4)
    with pytest.raises(ShapeError, match=r"4 unrolled steps take \(B, 11\): 4 x 2 inputs and 3"):
        unrolled(torch.zeros(2, 10))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Readout(0, 2), "^input_size must be a positive integer, got 0$"),
        (lambda: Readout(2, 2.0), "^output_size must be a positive integer, got 2.0$"),
        (lambda: Readout(2), "^Readout needs input_size and output_size, or a network$"),
        (lambda: Readout(2, 2, network=nn.Linear(2, 2)), "sizes or a network, and got both$"),
        (
            lambda: Readout(2, 2, dtype=torch.int64),
            "^dtype must be a floating point dtype of torch",
        ),
        (lambda: Readout(network=nn.Linear(2, 2), dtype=torch.float64), "those of the network; mo"),
        (lambda: Readout(network=torch.tanh), "^network must be a torch.nn.Module, got builtin"),
        (lambda: Readout(2, 2, activation=["tanh"]), "or a function, got .'tanh'.$"),
        (lambda: Gate(True), "^size must be a positive integer, got True$"),
        (
            lambda: Gate(2, dtype="float32"),
            "^dtype must be a floating point dtype of torch, got 'f",
        ),
        (
            lambda: Gate(2, nn.Linear(3, 2), device="cpu"),
            "device and dtype are those of the network",
        ),
        (lambda: Gate(2, torch.tanh), "^network must be a torch.nn.Module, got builtin"),
    ],
)
def test_bad_readouts_and_gates(make: Any, text: str) -> None:
    with pytest.raises((OptionError, TypeError), match=text):
        make()


def test_readouts_and_gates_have_a_device_and_a_dtype() -> None:
    for part in (Readout(3, 2, dtype=torch.float64), Gate(3, dtype=torch.float64)):
        assert part(torch.randn(4, 3, dtype=torch.float64)).dtype == torch.float64
    for part in (Readout(3, 2, device="meta"), Gate(3, device="meta")):
        assert {v.device.type for v in part.parameters()} == {"meta"}


def test_a_readout_takes_a_packed_sequence() -> None:
    layer, readout = Recurrent(cells.GRU(), 3, 4), Readout(4, 2)
    packed = nn.utils.rnn.pack_sequence([torch.randn(n, 3) for n in (2, 5)], enforce_sorted=False)
    outputs, state = layer(packed)
    y, handed = readout((outputs, state))
    assert_close(y.data, readout(outputs.data))
    assert_close(y.unsorted_indices, packed.unsorted_indices)
    assert_close(handed, state)


def test_the_state_of_empty_rows_is_not_the_callers_own() -> None:
    for backend in ("torch", "reference"):
        layer = Recurrent(cells.LSTM(), 2, 3, backend=backend)
        given = tuple(tuple(torch.randn_like(v) for v in part) for part in layer.initial_state(2))
        _, last = layer(torch.randn(4, 2, 2), given, lengths=[0, 0])
        assert_close(last, given)
        assert all(a.data_ptr() != b.data_ptr() for a, b in zip(last[0], given[0], strict=True))
