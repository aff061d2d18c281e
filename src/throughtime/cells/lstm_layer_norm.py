"""Long short-term memory with layer normalisation."""

from __future__ import annotations

from typing import Any

from torch import sigmoid, tanh
from torch.nn.functional import layer_norm

from throughtime.cell.contract import Cell


class LSTMLayerNorm(Cell):
    """Long short-term memory whose summed inputs are normalised, each gate by its own statistics.

    Source: Ba, Kiros and Hinton, Layer Normalization (2016): equation 4 (W x and U h are summed,
    then normalised) for every gate; as in its supplement, h sees the normalised c, while c itself
    is carried as it is.
    """

    gates = ("i", "f", "g", "o")
    state = ("h", "c")
    keeps = {"bias_f": 1}
    writes = {"bias_i": 1}
    vectors = {f"gain_{g}": 1.0 for g in "ifgoc"} | {f"bias_{g}": 0.0 for g in "ifgoc"}

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any, Any]:
        units = s.c.shape[-1:]
        i = sigmoid(layer_norm(a.i + U.i @ s.h, units, p.gain_i, p.bias_i))
        f = sigmoid(layer_norm(a.f + U.f @ s.h, units, p.gain_f, p.bias_f))
        g = tanh(layer_norm(a.g + U.g @ s.h, units, p.gain_g, p.bias_g))
        o = sigmoid(layer_norm(a.o + U.o @ s.h, units, p.gain_o, p.bias_o))
        c = f * s.c + i * g
        h = o * tanh(layer_norm(c, units, p.gain_c, p.bias_c))
        return h, c
