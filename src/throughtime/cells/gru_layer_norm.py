"""The gated recurrent unit with layer normalisation."""

from __future__ import annotations

from typing import Any

from torch import sigmoid, tanh
from torch.nn.functional import layer_norm

from throughtime.cell.contract import Cell


class GRULayerNorm(Cell):
    """The gated recurrent unit whose summed inputs are normalised, each gate by its own statistics.

    Source: Ba, Kiros and Hinton, Layer Normalization (2016), equation 4 (W x and U h are summed,
    then normalised) for every gate of torch's GRU; the reset acts before the sum. The paper's
    supplement normalises W x and U h apart instead.
    """

    gates = ("r", "z", "n")
    state = ("h",)
    keeps = {"bias_z": 1}
    vectors = {f"gain_{g}": 1.0 for g in "rzn"} | {f"bias_{g}": 0.0 for g in "rzn"}

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        units = s.h.shape[-1:]
        r = sigmoid(layer_norm(a.r + U.r @ s.h, units, p.gain_r, p.bias_r))
        z = sigmoid(layer_norm(a.z + U.z @ s.h, units, p.gain_z, p.bias_z))
        n = tanh(layer_norm(a.n + r * (U.n @ s.h), units, p.gain_n, p.bias_n))
        h = (1 - z) * n + z * s.h
        return (h,)
