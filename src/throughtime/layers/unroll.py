"""A layer unrolled in time: an explicit feed-forward network, for teaching and as an oracle."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from throughtime.cell.contract import Names
from throughtime.cell.layout import WeightMatrix
from throughtime.errors import OptionError, ShapeError
from throughtime.layers.checks import check_size
from throughtime.layers.layer import Passage
from throughtime.layers.options import Options


class StepNetwork(nn.Module):
    """One time step as a feed-forward network: [x_t, s_{t-1}] to [y_t, s_t].

    Attributes:
        layer: the layer whose weights it shares.
        state_size: width of all states of all layers side by side.
    """

    def __init__(self, layer: Passage) -> None:
        super().__init__()
        self.layer = layer
        self.state_size = sum(w for widths in layer.widths for w in widths)

    def forward(self, z: Tensor) -> Tensor:
        """(B, I + state_size) to (B, O + state_size)."""
        layer = self.layer
        sizes = [layer.input_size, *(w for widths in layer.widths for w in widths)]
        x, *states = z.split(sizes, -1)
        new: list[Tensor] = []
        for number, widths in enumerate(layer.widths):
            s = states[len(new) : len(new) + len(widths)]
            below, new_state = x, self._step(number, x, s)
            x = new_state[0] + below if layer.options.residual and number else new_state[0]
            new.extend(new_state)
        return torch.cat((x, *new), -1)

    def _step(self, number: int, x: Tensor, s: list[Tensor]) -> tuple[Tensor, ...]:
        """The equations of one layer, its matrices split by gate."""
        cell, hidden = self.layer.cell, self.layer.hidden_sizes[number]
        weights, layout = self.layer.weights(number, 0), self.layer.cell.layout
        a, U = {}, {}
        for i, gate in enumerate(layout.input_gates):
            rows = slice(i * hidden, (i + 1) * hidden)
            a[gate] = linear(x, weights["weight_ih"][rows], _select_rows(weights, "bias_ih", rows))
        for i, gate in enumerate(layout.recurrent_gates):
            rows = slice(i * hidden, (i + 1) * hidden)
            U[gate] = WeightMatrix(
                weights["weight_hh"][rows], _select_rows(weights, "bias_hh", rows)
            )
        for name in layout.products:
            U[name] = WeightMatrix(weights[f"weight_{name}"])
        p = {name: weights[name] for name in layout.vectors}
        state = dict(zip(cell.state_names, s, strict=True))
        return cell.step(Names("a", a), Names("U", U), Names("s", state), Names("p", p))


def _select_rows(weights: dict[str, Tensor], name: str, rows: slice) -> Tensor | None:
    return weights[name][rows] if name in weights else None


class Unrolled(nn.Module):
    """A layer over a fixed number of steps as one deep feed-forward network, the weights shared.

    Attributes:
        step: the `StepNetwork` of every time step.
    """

    def __init__(self, layer: Passage, steps: int) -> None:
        super().__init__()
        self.step = StepNetwork(layer)
        self.input_size, self.output_size = layer.input_size, layer.output_size
        self.state_size = self.step.state_size
        self._count = steps

    @property
    def steps(self) -> tuple[StepNetwork, ...]:
        """One network a time step, all the same object, so that its weights are saved once."""
        return (self.step,) * self._count

    def forward(self, z: Tensor) -> Tensor:
        """All inputs and the first state to all outputs and the last state.

        Args:
            z: (B, T I + state_size): x_1, ..., x_T side by side, then the state, layer by layer.

        Returns:
            (B, T O + state_size): y_1, ..., y_T side by side, then the last state.
        """
        T = self._count
        width = T * self.input_size + self.state_size
        if z.dim() != 2 or z.shape[-1] != width:
            raise ShapeError(
                f"{T} unrolled steps take (B, {width}): {T} x {self.input_size} inputs and "
                f"{self.state_size} of state side by side, got {tuple(z.shape)}"
            )
        *inputs, s = z.split([self.input_size] * T + [self.state_size], -1)
        outputs: list[Tensor] = []
        for step, x in zip(self.steps, inputs, strict=True):
            y, s = step(torch.cat((x, s), -1)).split([self.output_size, self.state_size], -1)
            outputs.append(y)
        return torch.cat((*outputs, s), -1)


def unroll(layer: Any, steps: int) -> Unrolled:
    """The layer as an explicit feed-forward module over `steps` time steps.

    Its gradient is that of back-propagation through time, which is defined by unrolling.

    Args:
        layer: a layer of this package, of one direction and without masks or dilation.
        steps: T, at least 1.

    Raises:
        OptionError: the layer has two directions or an option that one step cannot show.

    Source: Werbos, Backpropagation Through Time: What It Does and How to Do It (1990).
    """
    if not isinstance(layer, Passage):
        raise OptionError(f"unroll takes a layer of throughtime, got {type(layer).__name__}")
    check_size("steps", steps)
    if layer.directions == 2:
        raise OptionError("unroll shows one direction; build the layer with bidirectional=False")
    plain = Options(residual=layer.options.residual, merge=layer.options.merge)
    if layer.options != plain or layer.cell.inputs:
        raise OptionError(
            "unroll shows the equations alone; build the layer without dropouts, zoneout, "
            "dilation, learned initial state or direct inputs"
        )
    return Unrolled(layer, steps)
