"""The gated recurrent unit for values that are missing and gaps of time."""

from __future__ import annotations

from typing import Any

from torch import exp, relu, sigmoid, tanh

from throughtime.cell.contract import Cell


class GRUD(Cell):
    """The gated recurrent unit with decay: what it knows fades with the time since it was seen.

    It reads two direct inputs, each one number a row and step: `gap`, the time since the last
    observation, and `mask`, 1 where the step was observed and 0 where it is missing. There x must
    hold the last observed value, and x must be standardised: its mean, to which it decays, is 0.

    Source: Che, Purushotham, Cho, Sontag and Liu, Recurrent Neural Networks for Multivariate Time
    Series with Missing Values (2018), where all variables of a step are
    observed or missing together. The decay of the input stands behind W, with one rate a unit and
    for b with it, not one rate a variable in front; a mask and gap of each variable are left out,
    since no matrix multiplies a direct input. For masks of variables append them to x: W then
    holds the paper's V. The rates start at 0.1 a unit of time, where they can learn.
    """

    gates = ("r", "z", "n")
    state = ("h",)
    inputs = {"gap": 1, "mask": 1}
    keeps = {"z": -1}
    vectors = {
        "rate_h": 0.1, "shift_h": 0.0, "rate_x": 0.1, "shift_x": 0.0,
        "v_r": 0.0, "v_z": 0.0, "v_n": 0.0,
    }  # fmt: skip

    def step(self, a: Any, U: Any, s: Any, p: Any) -> tuple[Any]:
        decay_h = exp(-relu(p.rate_h * a.gap + p.shift_h))
        decay_x = exp(-relu(p.rate_x * a.gap + p.shift_x))
        x = a.mask + (1 - a.mask) * decay_x
        old = decay_h * s.h
        r = sigmoid(x * a.r + U.r @ old + p.v_r * a.mask)
        z = sigmoid(x * a.z + U.z @ old + p.v_z * a.mask)
        n = tanh(x * a.n + U.n @ (r * old) + p.v_n * a.mask)
        h = (1 - z) * old + z * n
        return (h,)
