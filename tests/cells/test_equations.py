"""Each cell's step against its formulas written a second time, unit by unit, in plain Python."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.compiler.interpret import Given, step
from throughtime import cells
from throughtime.cells import Cell

Row = list[float]
Formulas = Callable[[Any, Any, Any, Any], dict[str, Row]]
"""From a, U, s, p of one row, as lists of numbers, to the new state."""

tanh = math.tanh


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def dot(matrix: list[Row], v: Row) -> Row:
    return [sum(m * x for m, x in zip(row, v, strict=True)) for row in matrix]


def gate(f: Callable[[float], float], *summands: Row) -> Row:
    return [f(sum(values)) for values in zip(*summands, strict=True)]


def times(x: Row, y: Row) -> Row:
    return [a * b for a, b in zip(x, y, strict=True)]


def elman(f: Callable[[float], float]) -> Formulas:
    return lambda a, U, s, p: {"h": gate(f, a["h"], dot(U["h"], s["h"]))}


def lstm(a: Any, U: Any, s: Any, p: Any) -> dict[str, Row]:
    i = gate(sigmoid, a["i"], dot(U["i"], s["h"]))
    f = gate(sigmoid, a["f"], dot(U["f"], s["h"]))
    g = gate(tanh, a["g"], dot(U["g"], s["h"]))
    o = gate(sigmoid, a["o"], dot(U["o"], s["h"]))
    c = [fk * ck + ik * gk for fk, ck, ik, gk in zip(f, s["c"], i, g, strict=True)]
    return {"h": [ok * tanh(ck) for ok, ck in zip(o, c, strict=True)], "c": c}


def lstm_projected(a: Any, U: Any, s: Any, p: Any) -> dict[str, Row]:
    new = lstm(a, U, s, p)
    return {"h": dot(U["hr"], new["h"]), "c": new["c"]}


def lstm_peephole(a: Any, U: Any, s: Any, p: Any) -> dict[str, Row]:
    i = gate(sigmoid, a["i"], dot(U["i"], s["h"]), times(p["w_ci"], s["c"]))
    f = gate(sigmoid, a["f"], dot(U["f"], s["h"]), times(p["w_cf"], s["c"]))
    g = gate(tanh, a["g"], dot(U["g"], s["h"]))
    c = [fk * ck + ik * gk for fk, ck, ik, gk in zip(f, s["c"], i, g, strict=True)]
    o = gate(sigmoid, a["o"], dot(U["o"], s["h"]), times(p["w_co"], c))
    return {"h": [ok * tanh(ck) for ok, ck in zip(o, c, strict=True)], "c": c}


def lstm_coupled(a: Any, U: Any, s: Any, p: Any) -> dict[str, Row]:
    i = gate(sigmoid, a["i"], dot(U["i"], s["h"]))
    g = gate(tanh, a["g"], dot(U["g"], s["h"]))
    o = gate(sigmoid, a["o"], dot(U["o"], s["h"]))
    c = [(1 - ik) * ck + ik * gk for ck, ik, gk in zip(s["c"], i, g, strict=True)]
    return {"h": [ok * tanh(ck) for ok, ck in zip(o, c, strict=True)], "c": c}


def gru(a: Any, U: Any, s: Any, p: Any) -> dict[str, Row]:
    r = gate(sigmoid, a["r"], dot(U["r"], s["h"]))
    z = gate(sigmoid, a["z"], dot(U["z"], s["h"]))
    n = gate(tanh, a["n"], times(r, dot(U["n"], s["h"])))
    return {"h": [zk * hk + (1 - zk) * nk for zk, hk, nk in zip(z, s["h"], n, strict=True)]}


def gru_reset_before(a: Any, U: Any, s: Any, p: Any) -> dict[str, Row]:
    r = gate(sigmoid, a["r"], dot(U["r"], s["h"]))
    z = gate(sigmoid, a["z"], dot(U["z"], s["h"]))
    n = gate(tanh, a["n"], dot(U["n"], times(r, s["h"])))
    return {"h": [zk * hk + (1 - zk) * nk for zk, hk, nk in zip(z, s["h"], n, strict=True)]}


def mgu(a: Any, U: Any, s: Any, p: Any) -> dict[str, Row]:
    f = gate(sigmoid, a["f"], dot(U["f"], s["h"]))
    n = gate(tanh, a["n"], dot(U["n"], times(f, s["h"])))
    return {"h": [(1 - fk) * hk + fk * nk for fk, hk, nk in zip(f, s["h"], n, strict=True)]}


def indrnn(f: Callable[[float], float]) -> Formulas:
    return lambda a, U, s, p: {"h": gate(f, a["h"], times(p["u"], s["h"]))}


def skip(d: int, f: Callable[[float], float]) -> Formulas:
    def formulas(a: Any, U: Any, s: Any, p: Any) -> dict[str, Row]:
        past = ["h", *(f"h{k}" for k in range(1, d))]
        h = gate(f, a["h"], dot(U["h"], s["h"]), dot(U["skip"], s[past[-1]]))
        return {"h": h} | {new: s[old] for old, new in zip(past, past[1:], strict=False)}

    return formulas


def normalised(x: Row, gain: Row, bias: Row) -> Row:
    mean = sum(x) / len(x)
    variance = sum((v - mean) ** 2 for v in x) / len(x)
    scale = (variance + 1e-5) ** -0.5
    return [(v - mean) * scale * g + b for v, g, b in zip(x, gain, bias, strict=True)]


def normalised_gate(name: str, x: Row, y: Row, p: Any) -> Row:
    return normalised(gate(float, x, y), p[f"gain_{name}"], p[f"bias_{name}"])


def lstm_layer_norm(a: Any, U: Any, s: Any, p: Any) -> dict[str, Row]:
    v = {g: normalised_gate(g, a[g], dot(U[g], s["h"]), p) for g in "ifgo"}
    c = [
        sigmoid(f) * ck + sigmoid(i) * tanh(g)
        for f, ck, i, g in zip(v["f"], s["c"], v["i"], v["g"], strict=True)
    ]
    seen = normalised(c, p["gain_c"], p["bias_c"])
    return {"h": [sigmoid(o) * tanh(ck) for o, ck in zip(v["o"], seen, strict=True)], "c": c}


def gru_layer_norm(a: Any, U: Any, s: Any, p: Any) -> dict[str, Row]:
    r = gate(sigmoid, normalised_gate("r", a["r"], dot(U["r"], s["h"]), p))
    z = gate(sigmoid, normalised_gate("z", a["z"], dot(U["z"], s["h"]), p))
    n = gate(tanh, normalised_gate("n", a["n"], times(r, dot(U["n"], s["h"])), p))
    return {"h": [zk * hk + (1 - zk) * nk for zk, hk, nk in zip(z, s["h"], n, strict=True)]}


def relu(x: float) -> float:
    return max(x, 0.0)


def gru_d(a: Any, U: Any, s: Any, p: Any) -> dict[str, Row]:
    gap, mask = a["gap"][0], a["mask"][0]

    def decay(what: str) -> Row:
        rates = zip(p[f"rate_{what}"], p[f"shift_{what}"], strict=True)
        return [math.exp(-max(0, w * gap + b)) for w, b in rates]

    def read(name: str) -> Row:
        """W of m x + (1 - m) d x, and V m."""
        parts = zip(a[name], decay("x"), p[f"v_{name}"], strict=True)
        return [mask * x + (1 - mask) * d * x + v * mask for x, d, v in parts]

    old = times(decay("h"), s["h"])
    r = gate(sigmoid, read("r"), dot(U["r"], old))
    z = gate(sigmoid, read("z"), dot(U["z"], old))
    n = gate(tanh, read("n"), dot(U["n"], times(r, old)))
    return {"h": [(1 - zk) * hk + zk * nk for zk, hk, nk in zip(z, old, n, strict=True)]}


def lem(dt: float) -> Formulas:
    def formulas(a: Any, U: Any, s: Any, p: Any) -> dict[str, Row]:
        def stepped(old: Row, gap: str, new: Row) -> Row:
            d = gate(sigmoid, a[gap], dot(U[gap], s["y"]))
            return [o - dt * k * o + dt * k * n for o, k, n in zip(old, d, new, strict=True)]

        z = stepped(s["z"], "t", gate(tanh, a["z"], dot(U["z"], s["y"])))
        return {"y": stepped(s["y"], "r", gate(tanh, a["y"], dot(U["y"], z))), "z": z}

    return formulas


def cornn(dt: float, gamma: float, epsilon: float) -> Formulas:
    def formulas(a: Any, U: Any, s: Any, p: Any) -> dict[str, Row]:
        force = gate(tanh, a["y"], dot(U["y"], s["y"]), dot(U["z"], s["z"]))
        z = [
            v + dt * f - dt * gamma * y - dt * epsilon * v
            for v, f, y in zip(s["z"], force, s["y"], strict=True)
        ]
        return {"y": [y + dt * v for y, v in zip(s["y"], z, strict=True)], "z": z}

    return formulas


def slstm(forget: Callable[[float], float]) -> Formulas:
    def formulas(a: Any, U: Any, s: Any, p: Any) -> dict[str, Row]:
        i, f, z, o = (gate(float, a[g], dot(U[g], s["h"])) for g in "ifzo")
        rows = []
        for ik, fk, zk, ok, c, n, m in zip(i, f, z, o, s["c"], s["n"], s["m"], strict=True):
            new_m = max(math.log(forget(fk)) + m, ik)
            keep, write = math.exp(math.log(forget(fk)) + m - new_m), math.exp(ik - new_m)
            new_c, new_n = keep * c + write * tanh(zk), keep * n + write
            rows.append((sigmoid(ok) * new_c / new_n, new_c, new_n, new_m))
        return dict(zip(("h", "c", "n", "m"), map(list, zip(*rows, strict=True)), strict=True))

    return formulas


FORMULAS: list[tuple[Cell, Formulas]] = [
    (cells.Elman(), elman(tanh)),
    (cells.Elman("relu"), elman(relu)),
    (cells.Elman("sigmoid"), elman(sigmoid)),
    (cells.Elman("identity"), elman(float)),
    (cells.LSTM(), lstm),
    (cells.LSTMProjected(2), lstm_projected),
    (cells.LSTMProjected(7), lstm_projected),
    (cells.LSTMPeephole(), lstm_peephole),
    (cells.LSTMCoupled(), lstm_coupled),
    (cells.LSTMLayerNorm(), lstm_layer_norm),
    (cells.GRU(), gru),
    (cells.GRUResetBefore(), gru_reset_before),
    (cells.GRULayerNorm(), gru_layer_norm),
    (cells.MGU(), mgu),
    (cells.IndRNN(), indrnn(relu)),
    (cells.IndRNN("tanh"), indrnn(tanh)),
    (cells.Skip(2), skip(2, tanh)),
    (cells.Skip(5, "relu"), skip(5, relu)),
    (cells.GRUD(), gru_d),
    (cells.LEM(), lem(1)),
    (cells.LEM(0.3), lem(0.3)),
    (cells.CoRNN(), cornn(0.042, 2.7, 4.7)),
    (cells.CoRNN(0.3, 1.5, 0.8), cornn(0.3, 1.5, 0.8)),
    (cells.SLSTM(), slstm(sigmoid)),
    (cells.SLSTM("exp"), slstm(math.exp)),
]


def listed(group: dict[str, torch.Tensor], row: int | None = None) -> dict[str, Any]:
    return {n: (v if row is None else v[row]).tolist() for n, v in group.items()}


@pytest.mark.parametrize(("cell", "formulas"), FORMULAS, ids=[repr(c) for c, _ in FORMULAS])
def test_step_is_its_formulas(cell: Cell, formulas: Formulas) -> None:
    given = Given(cell, hidden_size=5, rows=3)
    new = step(cell, given)
    for b in range(given.rows):
        expected = formulas(
            listed(given.a, b), listed(given.U), listed(given.s, b), listed(given.p)
        )
        assert list(expected) == list(cell.state_names)
        for value, numbers in zip(new, expected.values(), strict=True):
            expected_row = torch.tensor(numbers, dtype=torch.float64)
            torch.testing.assert_close(value[b], expected_row, rtol=1e-12, atol=1e-12)


def test_every_cell_has_its_formulas_here() -> None:
    assert {type(cell) for cell, _ in FORMULAS} == set(cells.available().values())


TORCH: list[tuple[Cell, Callable[[int, int], Any]]] = [
    (cells.Elman(), lambda I, H: nn.RNNCell(I, H)),
    (cells.Elman("relu"), lambda I, H: nn.RNNCell(I, H, nonlinearity="relu")),
    (cells.LSTM(), lambda I, H: nn.LSTMCell(I, H)),
    (cells.GRU(), lambda I, H: nn.GRUCell(I, H)),
]


class _Matrix:
    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        self.weight, self.bias = weight, bias

    def __matmul__(self, v: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(v, self.weight, self.bias)


class _Names:
    def __init__(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values)


def blocks(cell: Cell, value: torch.Tensor) -> dict[str, torch.Tensor]:
    return dict(zip(cell.gates, value.chunk(len(cell.gates), 0), strict=True))


@pytest.mark.parametrize(("cell", "build"), TORCH, ids=[repr(c) for c, _ in TORCH])
def test_step_is_torchs_cell(cell: Cell, build: Callable[[int, int], Any]) -> None:
    torch.manual_seed(7)
    I, H, B = 3, 5, 4
    theirs = build(I, H).double()
    x = torch.randn(B, I, dtype=torch.float64)
    state = [torch.randn(B, H, dtype=torch.float64) for _ in cell.state_names]
    a = (x @ theirs.weight_ih.T + theirs.bias_ih).T
    weights, biases = blocks(cell, theirs.weight_hh), blocks(cell, theirs.bias_hh)
    new = cell.step(
        _Names({g: v.T for g, v in blocks(cell, a).items()}),
        _Names({g: _Matrix(weights[g], biases[g]) for g in cell.gates}),
        _Names(dict(zip(cell.state_names, state, strict=True))),
        _Names({}),
    )
    expected = theirs(x, state[0] if len(state) == 1 else tuple(state))
    for value, other in zip(new, (expected,) if len(state) == 1 else expected, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-12, atol=1e-12)


def test_projected_step_is_torchs_layer() -> None:
    torch.manual_seed(8)
    I, H, P, B = 3, 5, 2, 4
    cell = cells.LSTMProjected(P)
    theirs = nn.LSTM(I, H, proj_size=P).double()
    x = torch.randn(1, B, I, dtype=torch.float64)
    h, c = (torch.randn(1, B, w, dtype=torch.float64) for w in (P, H))
    a = (x[0] @ theirs.weight_ih_l0.T + theirs.bias_ih_l0).T
    weights, biases = blocks(cell, theirs.weight_hh_l0), blocks(cell, theirs.bias_hh_l0)
    matrices = {g: _Matrix(weights[g], biases[g]) for g in cell.gates}
    no_bias = torch.zeros(P, dtype=torch.float64)
    new_h, new_c = cell.step(
        _Names({g: v.T for g, v in blocks(cell, a).items()}),
        _Names(matrices | {"hr": _Matrix(theirs.weight_hr_l0, no_bias)}),
        _Names({"h": h[0], "c": c[0]}),
        _Names({}),
    )
    expected, (_, expected_c) = theirs(x, (h, c))
    torch.testing.assert_close(new_h, expected[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(new_c, expected_c[0], rtol=1e-12, atol=1e-12)


def test_skip_reads_d_steps_back_and_carries_d_states() -> None:
    cell = cells.Skip(3, "identity")
    given = Given(cell, hidden_size=2, rows=1)
    h = {0: given.s["h"], -1: given.s["h1"], -2: given.s["h2"]}
    for t in range(1, 9):
        h[t], given.s["h1"], given.s["h2"] = step(cell, given)
        given.s["h"] = h[t]
        expected = given.a["h"] + h[t - 1] @ given.U["h"].T + h[t - 3] @ given.U["skip"].T
        torch.testing.assert_close(h[t], expected, rtol=1e-12, atol=1e-12)
    assert sum(cells.Skip(64).widths(16)) * 4 == 64 * 16 * 4  # bytes of state a row: 64 times
