"""The graph of every cell: value and derivative equal autograd's through its own step."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from tests.cells.table import CELLS
from tests.compiler.interpret import Given, assert_equal_to_autograd
from throughtime import cells
from throughtime.cells import Cell
from throughtime.compiler import derivative, trace
from throughtime.compiler.graph import broadcast


@pytest.mark.parametrize("cell", CELLS, ids=repr)
def test_value_and_gradients_equal_autograd(cell: Cell) -> None:
    assert_equal_to_autograd(cell, Given(cell, hidden_size=5, rows=3))


class Everything(Cell):
    """All that a cell can declare, and its awkward corners."""

    gates = ("f", "k")
    state = {"h": "small", "c": "hidden_size", "m": 4, "old": "small"}
    vectors = {"u": 0.3, "v": -0.2}
    products = {"hr": ("h", "c"), "mm": ("m", "hidden_size")}
    inputs = {"gap": 1, "mask": "hidden_size"}
    small = 2

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, ...]:
        decay = torch.exp(-a.gap * torch.relu(p.u))  # (B, 1) with (H,)
        f = torch.sigmoid(a.f + U.f @ s.h + p.v * p.v)
        c = decay * s.c + a.mask * f * (U.f @ s.old) + a.gap
        c = c / (1 + c.abs().sum(-1, keepdim=True))
        m = U.mm @ (c * p.u) + s.m
        h = U.hr @ torch.tanh(c) + U.hr @ c
        return h, c, m, h


def test_every_declaration_at_once() -> None:
    assert_equal_to_autograd(Everything(), Given(Everything(), hidden_size=3, rows=4))


def test_a_matrix_used_twice_has_two_products() -> None:
    graph = trace(Everything())
    assert [p.matrix for p in graph.products] == ["f", "f", "mm", "hr", "hr"]
    assert {p.matrix for p in derivative(graph).products} == {"f", "mm", "hr"}


def test_the_derivative_begins_with_the_step() -> None:
    for cell in CELLS:
        graph = trace(cell)
        back = derivative(graph)
        assert back.nodes[: len(graph.nodes)] == graph.nodes
        assert back.forward == len(graph.nodes)
        for index, node in enumerate(back.nodes):
            assert all(i < index for i in node.inputs)


def test_equal_work_is_written_once() -> None:
    for cell in CELLS:
        for graph in (trace(cell), derivative(trace(cell))):
            nodes = [(n.op, n.inputs, n.constants) for n in graph.nodes]
            assert len(set(nodes)) == len(nodes)


def test_the_key_is_the_content_and_not_the_size() -> None:
    keys = {repr(cell): trace(cell).key for cell in CELLS}
    assert keys.pop("LSTMProjected(proj_size=2)") == keys["LSTMProjected(proj_size=9)"]
    assert len(set(keys.values())) == len(keys)
    assert trace(cells.GRU()).key == trace(cells.GRU()).key
    assert trace(cells.GRU()).key != derivative(trace(cells.GRU())).key


def test_the_key_knows_every_number() -> None:
    def leaky(slope: float) -> Cell:
        return cells.Elman(lambda x: torch.nn.functional.leaky_relu(x, slope))

    assert trace(leaky(0.1)).key == trace(leaky(0.1)).key != trace(leaky(0.1000001)).key


def test_the_text_of_a_graph() -> None:
    text = str(trace(cells.GRU())).splitlines()
    assert text[0] == "GRU: 19 nodes, 3 products"
    assert text[1].endswith("r = sigmoid(a.r + U.r @ s.h)")
    assert [line.split("#")[0].rstrip() for line in text[2:6]] == [
        "    t0   = a.r                              (B, hidden_size)",
        "    t1   = s.h                              (B, hidden_size)",
        "    t2   = U.r @ t1                         (B, hidden_size)",
        "    t3   = t0 + t2                          (B, hidden_size)",
    ]
    assert text[-1] == "  h = t18"
    back = str(derivative(trace(cells.GRU())))
    assert "\nderivative\n" in back
    assert "\n  d_s.h = t" in back and "\n  d_U.n += t" in back
    odd = str(trace(cells.Elman(torch.lgamma)))
    assert odd.splitlines()[-1].startswith("  no rule for lgamma: elman.py:")


def test_broadcast() -> None:
    H = "hidden_size"
    assert broadcast() == ()
    assert broadcast((), ("B", H)) == ("B", H)
    assert broadcast((H,), ("B", "1")) == ("B", H)
    assert broadcast(("1",), ("B", "1")) == ("B", "1")
    assert broadcast((H,), ("B", "proj_size")) is None


MAKE_FX = """
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from tests.cells.table import CELLS
from tests.compiler.interpret import Given, by_graph, step

for cell in {type(cell): cell for cell in CELLS}.values():
    given = Given(cell, hidden_size=3, rows=2)
    names, values = zip(*given.named().items())
    d = [given.random(given.rows, w) for w in cell.widths(given.hidden_size)]

    def whole(values, d):
        def run(*values):
            for name, value in zip(names, values):
                group, _, word = name.partition(".")
                getattr(given, group)[word] = value
            return step(cell, given)
        new, back = torch.func.vjp(run, *values)
        return new, back(tuple(d))

    new, gradients = make_fx(whole)(list(values), d)(list(values), d)
    for name, value in zip(names, values):
        group, _, word = name.partition(".")
        getattr(given, group)[word] = value
    ours, ours_back = by_graph(cell, given, d)
    torch.testing.assert_close(list(new), ours, rtol=1e-12, atol=1e-12)
    for name, gradient in zip(names, gradients):
        torch.testing.assert_close(ours_back[name], gradient, rtol=1e-12, atol=1e-12)
print("equal")
"""


def test_the_whole_graph_equals_make_fx() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MAKE_FX],
        env={"PYTHONPATH": ":".join(["."] + sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "equal\n", done.stderr
