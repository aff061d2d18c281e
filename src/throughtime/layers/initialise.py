"""Initial values: where a network starts decides how far back it can learn.

A cell's file declares which gate keeps the old state (`keeps`, `writes`), so every recipe here
serves every gated cell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from numbers import Real
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from throughtime.errors import OptionError
from throughtime.layers.drop_in.cells import DropInCell
from throughtime.layers.layer import Passage
from throughtime.layers.module import GateRows, check_writable

Recurrence = Literal["torch", "orthogonal", "identity"]
Startable = Passage | DropInCell
"""A module with the weights of a cell's equations."""


@torch.no_grad()
def initialise(
    model: nn.Module, recurrence: Recurrence | None = None, *, gain: float = 1.0,
    forget_bias: float | None = None, chrono: float | None = None,
    timescales: tuple[float, float] | None = None,
) -> nn.Module:  # fmt: skip
    """Initialise every recurrent layer and cell of this package inside a model, in place.

    All layers and both directions; each gate separately. `recurrence` draws the matrices, one of
    the other three the biases of the gates that keep and write a state; both may be given.

    Args:
        model: a layer, or any module with layers in it.
        recurrence: "torch": everything U(-1/sqrt(H), 1/sqrt(H)), vectors as the cell declares.
            "orthogonal": each U_g an orthogonal matrix times `gain`, biases 0: a bias moves a
            unit off the middle of its function, to where its slope shrinks the gradient.
            "identity": each U_g the identity times `gain`, W of standard deviation 0.001, biases 0.
        gain: the scale of "orthogonal" and "identity".
        forget_bias: the bias b of the gates that keep a state: sigmoid(b) of it survives a step.
        chrono: T_max, steps; each unit's b = ln(u), u uniform in [1, T_max - 1].
            A gate that writes gets -b.
        timescales: (lo, hi), steps; each unit's time scale tau log-uniform between them,
            b = ln(tau - 1). A gate that writes gets -3 b / 4, so about tau^(-3/4): between
            1 / tau, with which tau equal inputs add up to size one, and 1 / sqrt(tau), with which
            noise does. Every other bias is 0: the state would sum up a constant, too.

    Returns:
        The model.

    Raises:
        OptionError: no layer to initialise, or a recipe that a layer's cell or options exclude.

    Source: Henaff, Szlam and LeCun, Recurrent Orthogonal Networks and Long-Memory Tasks (2016);
    Le, Jaitly and Hinton, A Simple Way to Initialize Recurrent Networks of Rectified Linear Units
    (2015) for the identity; Jozefowicz, Zaremba and Sutskever, An Empirical Exploration of
    Recurrent Network Architectures (2015) for the forget bias; Tallec and Ollivier, Can Recurrent
    Neural Networks Warp Time? (2018) for chrono. The time scales are ours; docs/memory.md has what
    each part of them is good for.
    """
    layers = [m for m in model.modules() if isinstance(m, Startable)]
    if not layers:
        raise OptionError("initialise needs a model with a recurrent layer of throughtime in it")
    _check_number("gain", gain)
    biases = _choose_biases(forget_bias, chrono, timescales)
    for layer in layers:
        _check_start(layer, recurrence, biases is not None)
    for layer in layers:
        if recurrence == "torch":
            layer.reset_parameters()
        elif recurrence is not None:
            _start_matrices(layer, recurrence, gain)
        if biases is not None:
            _start_biases(layer, biases)
    return model


class Biases(NamedTuple):
    """The biases of a start.

    Attributes:
        draw: b of the gates that keep a state, in the tensor's shape.
        writes: a gate that writes gets -b times this; with 0 it is unchanged.
        alone: every other bias becomes 0.
    """

    draw: Callable[[Tensor], Tensor]
    writes: float = 0.0
    alone: bool = False


def _choose_biases(
    forget_bias: float | None, chrono: float | None, timescales: tuple[float, float] | None
) -> Biases | None:
    """The biases that the arguments choose, checked."""
    if sum(v is not None for v in (forget_bias, chrono, timescales)) > 1:
        raise OptionError(
            "forget_bias, chrono and timescales set the same biases; give one of them"
        )
    if forget_bias is not None:
        value = _check_number("forget_bias", forget_bias)
        return Biases(lambda like: torch.full_like(like, value))
    if chrono is not None:
        longest = _check_number("chrono", chrono)
        if not longest > 2:
            raise OptionError(f"chrono must be a number of steps above 2, got {chrono!r}")
        return Biases(lambda like: torch.empty_like(like).uniform_(1, longest - 1).log(), writes=1)
    if timescales is None:
        return None
    return _make_log_uniform(timescales)


def _make_log_uniform(timescales: tuple[float, float]) -> Biases:
    pair = isinstance(timescales, tuple | list) and len(timescales) == 2
    low, high = (_check_number("timescales", v) for v in timescales) if pair else (0, 0)
    if not 1 < low <= high:
        raise OptionError(
            f"timescales must be (lo, hi) in steps with 1 < lo <= hi, got {timescales!r}"
        )
    ends = torch.tensor([low, high], dtype=torch.float64, device="cpu").log().tolist()
    return Biases(
        lambda like: torch.empty_like(like).uniform_(*ends).exp().sub(1).log(), 0.75, alone=True
    )


def _check_number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise OptionError(f"{name} must be a finite number, got {value!r}")
    return float(value)


def _check_start(layer: Startable, recurrence: str | None, biases: bool) -> None:
    name = type(layer.cell).__name__
    for number, d in _list_parts(layer):
        check_writable(layer, layer.weight_names(number, d).values())
    if recurrence not in (None, "torch", "orthogonal", "identity"):
        raise OptionError(
            f"recurrence must be torch, orthogonal, identity or None, got {recurrence!r}"
        )
    if recurrence in ("orthogonal", "identity") and not layer.cell.layout.recurrent_gates:
        raise OptionError(f"{name} has no recurrent matrix to make {recurrence}")
    if biases and not layer.cell.keeps:
        raise OptionError(
            f"{name} has no gate that keeps its state, so no bias sets its time scale; "
            f"start it orthogonal or as the identity"
        )
    if biases and not layer.bias and set(layer.cell.keeps) & set(layer.cell.gates):
        raise OptionError(f"a start of the gates' biases needs them; build {name} with bias=True")


def _list_parts(layer: Startable) -> Iterator[tuple[int, int]]:
    """Every pair of a layer's number and direction."""
    return product(range(len(layer.hidden_sizes)), range(layer.directions))


def _start_matrices(layer: Startable, recurrence: str, gain: float) -> None:
    for number, d in _list_parts(layer):
        weights = layer.weights(number, d)
        for block in weights["weight_hh"].split(layer.hidden_sizes[number]):
            if recurrence == "orthogonal":
                nn.init.orthogonal_(block, gain)
            else:
                nn.init.eye_(block).mul_(gain)
        if recurrence == "identity" and "weight_ih" in weights:
            nn.init.normal_(weights["weight_ih"], std=1e-3)
        _zero_biases(weights)


def _zero_biases(weights: Mapping[str, Tensor]) -> None:
    for name in ("bias_ih", "bias_hh"):
        if name in weights:
            nn.init.zeros_(weights[name])


def _start_biases(layer: Startable, biases: Biases) -> None:
    for number, d in _list_parts(layer):
        weights = layer.weights(number, d)
        if biases.alone:
            _zero_biases(weights)
        some = next(iter(weights.values()))
        bias = biases.draw(some.new_empty(layer.hidden_sizes[number]))
        for name, sign in layer.cell.keeps.items():
            _set_bias(layer, number, d, name, sign * bias)
        for name, sign in layer.cell.writes.items() if biases.writes else ():
            _set_bias(layer, number, d, name, -sign * biases.writes * bias)


def _set_bias(layer: Startable, number: int, d: int, name: str, value: Tensor) -> None:
    if name in layer.cell.vectors:
        layer.weights(number, d)[name].copy_(value)
    else:
        GateRows(layer, name, number, bool(d)).bias = value
