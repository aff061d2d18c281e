"""GRU-D, LEM, coRNN and sLSTM over whole sequences: NumPy loops, and limits that are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from throughtime import Cell, Recurrent, cells, initialise

T, B, I, H = 7, 3, 4, 5
Arrays = dict[str, np.ndarray]


def layer_of(cell: Cell, **options: Any) -> Recurrent:
    torch.manual_seed(3)
    layer = Recurrent(cell, I, H, dtype=torch.float64, **options)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.normal_(0, 0.5)
    return layer


def blocks(layer: Recurrent, count: int) -> tuple[np.ndarray, ...]:
    """W (gates, H, I), U (gates, H, H), and both biases (gates, H)."""
    given = {n: v.detach().numpy() for n, v in layer.named_parameters()}
    W, U = given["weight_ih_l0"].reshape(-1, H, I), given["weight_hh_l0"].reshape(count, H, H)
    return W, U, given["bias_ih_l0"].reshape(-1, H), given["bias_hh_l0"].reshape(count, H)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def lem(layer: Recurrent, x: np.ndarray, inputs: Arrays) -> np.ndarray:
    W, U, b, c = blocks(layer, 4)
    y = z = np.zeros((B, H))
    outputs = []
    for u in x:
        t, r, target = (u @ W[k].T + b[k] + y @ U[k].T + c[k] for k in (0, 1, 2))
        z = z + 0.7 * sigmoid(t) * (np.tanh(target) - z)
        y = y + 0.7 * sigmoid(r) * (np.tanh(u @ W[3].T + b[3] + z @ U[3].T + c[3]) - y)
        outputs.append(y)
    return np.stack(outputs)


def cornn(layer: Recurrent, x: np.ndarray, inputs: Arrays) -> np.ndarray:
    W, U, b, c = blocks(layer, 2)
    y = z = np.zeros((B, H))
    outputs = []
    for u in x:
        driven = np.tanh(u @ W[0].T + b[0] + y @ U[0].T + c[0] + z @ U[1].T + c[1])
        z = z + 0.1 * driven - 0.1 * 1.5 * y - 0.1 * 0.8 * z
        y = y + 0.1 * z
        outputs.append(y)
    return np.stack(outputs)


def slstm(layer: Recurrent, x: np.ndarray, inputs: Arrays) -> np.ndarray:
    """The paper's sums without its stabiliser: c and n with exp as it is."""
    W, U, b, d = blocks(layer, 4)
    h = c = n = np.zeros((B, H))
    outputs = []
    for u in x:
        i, f, z, o = (u @ W[k].T + b[k] + h @ U[k].T + d[k] for k in range(4))
        keep = sigmoid(f) if layer.cell.arguments["forget"] == "sigmoid" else np.exp(f)
        c = keep * c + np.exp(i) * np.tanh(z)
        n = keep * n + np.exp(i)
        h = sigmoid(o) * c / n
        outputs.append(h)
    return np.stack(outputs)


def gru_d(layer: Recurrent, x: np.ndarray, inputs: Arrays) -> np.ndarray:
    W, U, b, c = blocks(layer, 3)
    p = {n: v.detach().numpy() for n, v in layer.named_parameters()}
    h = np.zeros((B, H))
    outputs = []
    for u, gap, mask in zip(x, inputs["gap"], inputs["mask"], strict=True):
        fade = {
            w: np.exp(-np.maximum(0, gap * p[f"rate_{w}_l0"] + p[f"shift_{w}_l0"])) for w in "hx"
        }
        h = fade["h"] * h
        seen = [np.where(mask == 1, 1, fade["x"]) * (u @ W[k].T + b[k]) for k in range(3)]
        seen = [v + mask * p[f"v_{g}_l0"] for v, g in zip(seen, "rzn", strict=True)]
        r, z = (sigmoid(seen[k] + h @ U[k].T + c[k]) for k in (0, 1))
        h = (1 - z) * h + z * np.tanh(seen[2] + (r * h) @ U[2].T + c[2])
        outputs.append(h)
    return np.stack(outputs)


LOOPS: list[tuple[Cell, Callable[..., np.ndarray]]] = [
    (cells.LEM(0.7), lem),
    (cells.CoRNN(0.1, 1.5, 0.8), cornn),
    (cells.SLSTM(), slstm),
    (cells.SLSTM("exp"), slstm),
    (cells.GRUD(), gru_d),
]


def data(cell: Cell) -> tuple[Tensor, dict[str, Tensor]]:
    x = torch.randn(T, B, I, dtype=torch.float64)
    if not cell.inputs:
        return x, {}
    mask = torch.rand(T, B, 1).round().double()
    return x, {"gap": 5 * torch.rand(T, B, 1, dtype=torch.float64), "mask": mask}


@pytest.mark.parametrize(("cell", "loop"), LOOPS, ids=[repr(c) for c, _ in LOOPS])
def test_a_layer_is_the_papers_loop(cell: Cell, loop: Callable[..., np.ndarray]) -> None:
    layer = layer_of(cell)
    x, inputs = data(cell)
    y, _ = layer(x, inputs=inputs or None)
    expected = loop(layer, x.numpy(), {n: v.numpy() for n, v in inputs.items()})
    torch.testing.assert_close(y.detach(), torch.from_numpy(expected), rtol=1e-12, atol=1e-12)


def test_gru_d_without_gaps_is_a_gru() -> None:
    """No gap and all observed: the older GRU, its z the other way round and V in the bias."""
    with_gaps, plain = layer_of(cells.GRUD()), layer_of(cells.GRUResetBefore())
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            weight.copy_(getattr(with_gaps, name))
            weight.view(3, -1)[1].neg_()
        with_gaps.shift_h_l0.zero_()
        for k, sign in enumerate((1, -1, 1)):
            v = (with_gaps.v_r_l0, with_gaps.v_z_l0, with_gaps.v_n_l0)[k]
            plain.bias_ih_l0[k * H : (k + 1) * H] += sign * v
    x = torch.randn(T, B, I, dtype=torch.float64)
    none, full = (torch.full((T, B, 1), v, dtype=torch.float64) for v in (0.0, 1.0))
    y, _ = with_gaps(x, inputs={"gap": none, "mask": full})
    torch.testing.assert_close(y, plain(x)[0], rtol=1e-12, atol=1e-12)


def test_gru_d_forgets_over_a_long_gap() -> None:
    """After an endless gap neither the past nor a missing x says anything."""
    layer = layer_of(cells.GRUD())
    with torch.no_grad():
        layer.rate_h_l0.fill_(0.2)
        layer.rate_x_l0.fill_(0.2)
    gap, mask = torch.zeros(T, B, 1), torch.ones(T, B, 1)
    gap[4], mask[4] = 1e4, 0.0
    inputs = {"gap": gap.double(), "mask": mask.double()}
    x, other = (torch.randn(T, B, I, dtype=torch.float64) for _ in range(2))
    other[5:] = x[5:]
    y, z = layer(x, inputs=inputs)[0], layer(other, inputs=inputs)[0]
    torch.testing.assert_close(y[4:], z[4:], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(y[:4], z[:4])


def test_a_new_gru_d_can_learn_its_rates() -> None:
    layer = Recurrent(cells.GRUD(), I, H, dtype=torch.float64)
    x, inputs = data(layer.cell)
    layer(x, inputs=inputs)[0].square().sum().backward()
    assert all((v.grad != 0).any() for v in layer.parameters())


def test_lem_with_open_gates_is_a_network_of_two_layers() -> None:
    """dt = 1 and open gates: z = tanh(W x + U y), y = tanh(W x + U z), nothing kept."""
    layer = layer_of(cells.LEM())
    with torch.no_grad():
        layer.bias_ih_l0[: 2 * H] = 1e3
    W, U, b, c = (torch.from_numpy(v) for v in blocks(layer, 4))
    x = torch.randn(T, B, I, dtype=torch.float64)
    y, _ = layer(x)
    before = torch.cat((torch.zeros(1, B, H, dtype=torch.float64), y[:-1]))
    z = torch.tanh(x @ W[2].T + b[2] + before @ U[2].T + c[2])
    expected = torch.tanh(x @ W[3].T + b[3] + z @ U[3].T + c[3])
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


def test_cornn_swings_as_an_oscillator() -> None:
    """Without input and products y'' = -gamma y - epsilon y', whose solution is known."""
    gamma, epsilon, dt, steps = 4.0, 0.5, 1e-3, 3000
    layer = Recurrent(cells.CoRNN(dt, gamma, epsilon), 1, 1, dtype=torch.float64)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.zero_()
        one, zero = (torch.full((1, 1, 1), v, dtype=torch.float64) for v in (1.0, 0.0))
        y, _ = layer(torch.zeros(steps, 1, 1, dtype=torch.float64), ((one, zero),))
    t = dt * torch.arange(1, steps + 1, dtype=torch.float64)
    omega = math.sqrt(gamma - epsilon**2 / 4)
    swing = torch.cos(omega * t) + epsilon / (2 * omega) * torch.sin(omega * t)
    error = (y[:, 0, 0] - torch.exp(-epsilon * t / 2) * swing).abs().max()
    assert error < 2 * dt  # a method of first order


@pytest.mark.parametrize("forget", ["sigmoid", "exp"])
@pytest.mark.parametrize("size", [-1000.0, 1000.0])
def test_slstm_stays_finite_and_right_for_huge_gates(forget: str, size: float) -> None:
    """A number added to every input gate cancels in h, where exp of it is 0 or inf too."""
    layer = layer_of(cells.SLSTM(forget))
    x = torch.randn(T, B, I, dtype=torch.float64)
    y, _ = layer(x)
    with torch.no_grad():
        layer.bias_ih_l0[:H] += size
    huge, _ = layer(x)
    torch.testing.assert_close(huge, y, rtol=1e-9, atol=1e-9)
    huge.sum().backward()
    assert all(v.grad.isfinite().all() for v in layer.parameters())


def test_slstm_that_forgets_nothing_is_a_mean() -> None:
    """Input gate 1, forget gate 1, output gate 1: h is the mean of all tanh(z) so far."""
    layer = layer_of(cells.SLSTM())
    with torch.no_grad():
        layer.weight_hh_l0.zero_()
        layer.bias_hh_l0.zero_()
        layer.weight_ih_l0[: 2 * H].zero_()
        layer.weight_ih_l0[3 * H :].zero_()
        layer.bias_ih_l0.copy_(torch.tensor([0.0, 1e3, 0.0, 1e3]).repeat_interleave(H))
    x = torch.randn(T, B, I, dtype=torch.float64)
    values = torch.tanh(x @ layer.weight_ih_l0[2 * H : 3 * H].T)
    expected = values.cumsum(0) / torch.arange(1, T + 1).view(-1, 1, 1)
    torch.testing.assert_close(layer(x)[0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("bias", "share"), [(40.0, 1.0), (-40.0, 0.0)])
def test_slstm_keeps_its_memory_by_the_declared_gate(bias: float, share: float) -> None:
    """Of a change of c exp(m), the memory without its stabiliser, all or nothing is left."""
    layer = initialise(Recurrent(cells.SLSTM(), I, H, dtype=torch.float64), forget_bias=bias)
    h, c, n, m = (torch.rand(1, B, H, dtype=torch.float64) for _ in range(4))
    with torch.no_grad():
        layer.weight_hh_l0.zero_()
        x = torch.randn(20 if share else 1, B, I, dtype=torch.float64)
        after = [layer(x, ((h, old, n, m),))[1][0] for old in (c, c + 1)]
    first, second = (new_c * new_m.exp() for _, new_c, _, new_m in after)
    expected = share * m.exp()
    torch.testing.assert_close(second - first, expected, rtol=1e-9, atol=1e-9)
