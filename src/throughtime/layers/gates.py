"""One gate of a layer, by its name in the equations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from throughtime.cells import Cell
from throughtime.errors import OptionError, ShapeError


class Owner(Protocol):
    """A module with weights of a cell: a layer, or one step of it."""

    @property
    def cell(self) -> Cell:
        """The equations."""

    @property
    def hidden_sizes(self) -> tuple[int, ...]:
        """H of each layer."""

    @property
    def directions(self) -> int:
        """1 or 2."""

    def weights(self, layer: int, d: int) -> Mapping[str, Tensor]:
        """Short name -> tensor."""

    def weight_names(self, layer: int, d: int) -> Mapping[str, str]:
        """Short name -> the parameter's name."""


def check_writable(owner: Any, names: Iterable[str]) -> None:
    """The weights are parameters: writing into one computed by a parametrisation has no effect."""
    for name in names:
        if name not in owner._parameters:
            raise OptionError(
                f"{name} of {type(owner).__name__} is parametrised, so writing into it has no "
                f"effect; write before its parametrisation"
            )


class GateRows:
    """A gate's rows of the weights: views, so that writing into them changes the layer.

    Attributes:
        name: the gate's name in the cell's equations.
    """

    def __init__(self, owner: Owner, name: str, layer: int, reverse: bool) -> None:
        if name not in owner.cell.gates:
            raise OptionError(f"gate must be one of {', '.join(owner.cell.gates)}, got {name!r}")
        layers = len(owner.hidden_sizes)
        if not 0 <= layer < layers:
            raise OptionError(f"layer must be from 0 to {layers - 1}, got {layer}")
        if reverse and owner.directions == 1:
            raise OptionError("reverse is for layers of two directions, this one has one")
        self.name = name
        self._owner, self._layer, self._direction = owner, layer, int(reverse)

    @property
    def weight_ih(self) -> Tensor | None:
        """W_g, (H, I); None when the equations never read it."""
        return self._rows("weight_ih")

    @property
    def weight_hh(self) -> Tensor | None:
        """U_g, (H, width of the output); None when the equations never read it."""
        return self._rows("weight_hh")

    @property
    def bias_ih(self) -> Tensor | None:
        """The bias added to W_g x, (H,), if there is one."""
        return self._rows("bias_ih")

    @property
    def bias_hh(self) -> Tensor | None:
        """The bias added to U_g h, (H,), if there is one."""
        return self._rows("bias_hh")

    @property
    def bias(self) -> Tensor:
        """The sum of the gate's biases, (H,); setting it writes the first and zeroes the other."""
        return torch.stack(self._biases()).sum(0)

    @bias.setter
    def bias(self, value: Tensor | float) -> None:
        first, *rest = self._biases()
        names = self._owner.weight_names(self._layer, self._direction)
        check_writable(self._owner, (n for short, n in names.items() if short.startswith("bias_")))
        new = torch.as_tensor(value, dtype=first.dtype, device=first.device)
        if new.dim() and new.shape != first.shape:
            raise ShapeError(
                f"the bias of gate {self.name} must be a number or {tuple(first.shape)}, "
                f"got {tuple(new.shape)}"
            )
        with torch.no_grad():
            first.copy_(new)
            for other in rest:
                other.zero_()

    def _biases(self) -> list[Tensor]:
        biases = [v for v in (self.bias_ih, self.bias_hh) if v is not None]
        if not biases:
            read = any(n.startswith("bias_") for n in self._owner.weights(0, 0))
            cure = "the equations never read it" if read else "build the layer with bias=True"
            raise OptionError(f"gate {self.name} has no bias; {cure}")
        return biases

    def _rows(self, name: str) -> Tensor | None:
        weights = self._owner.weights(self._layer, self._direction)
        layout = self._owner.cell.layout
        gates = layout.input_gates if name.endswith("_ih") else layout.recurrent_gates
        if name not in weights or self.name not in gates:
            return None
        hidden = self._owner.hidden_sizes[self._layer]
        start = gates.index(self.name) * hidden
        return weights[name][start : start + hidden]
