"""A cell is tried at the sizes of its layer: heads, pairs and constants of H numbers run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from throughtime import Cell, Recurrent
from throughtime.errors import CellError


class InHeads(Cell):
    """Four heads, each of which normalises its own units."""

    gates = ("g", "o")
    state = ("h",)

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        g = torch.tanh(a.g + U.g @ s.h).unflatten(-1, (4, -1))
        g = g / (1 + g.norm(dim=-1, keepdim=True))
        return (g.flatten(-2) * torch.sigmoid(a.o),)


class InPairs(Cell):
    """Pairs of units that turn, each by an angle of its own."""

    gates = ("h",)
    state = ("h",)

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        x, y = s.h.chunk(2, -1)
        angle = torch.linspace(0, 1, s.h.shape[-1] // 2, dtype=s.h.dtype)
        turned = (x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos())
        return (torch.tanh(a.h + torch.cat(turned, -1)),)


def test_heads_and_pairs_run_at_the_sizes_of_their_layer() -> None:
    x = torch.randn(5, 2, 3)
    layer = Recurrent(InHeads(), 3, 8, return_state=False, backend="reference")
    W, U = layer.weight_ih_l0, layer.weight_hh_l0
    h, rows = torch.zeros(2, 8), []
    for x_t in x:
        b, c = layer.bias_ih_l0, layer.bias_hh_l0[:8]
        g = torch.tanh(x_t @ W[:8].T + b[:8] + h @ U[:8].T + c).view(2, 4, 2)
        g = g / (1 + torch.linalg.vector_norm(g, dim=-1, keepdim=True))
        h = g.reshape(2, 8) * torch.sigmoid(x_t @ W[8:].T + b[8:])
        rows.append(h)
    torch.testing.assert_close(layer(x), torch.stack(rows))
    assert Recurrent(InPairs(), 3, 10, return_state=False, backend="reference")(x).shape == (
        5,
        2,
        10,
    )


def test_a_size_that_a_cell_cannot_take_is_told_with_its_line() -> None:
    text = r"InHeads.step must be able to take .*at hidden_size 9 it raises .*(?s:.)*unflatten\("
    with pytest.raises(CellError, match=text):
        Recurrent(InHeads(), 3, 9)
