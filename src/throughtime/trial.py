"""What a law gives a layer: x, and the direct inputs of cells that read some, always cut alike."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError

from throughtime.layers.recurrent import Recurrent


@dataclass(frozen=True)
class Trial:
    """A batch for a layer of any cell.

    Attributes:
        x: (T, B, I), standard normal at first.
        inputs: name -> (T, B, width), from 0.1 to 1, as a gap of time or a mask may be.
    """

    x: Tensor
    inputs: dict[str, Tensor]

    def run(self, layer: Recurrent, state: Any = None, **given: Any) -> Any:
        """The layer's call."""
        return layer(self.x, state, inputs=self.inputs or None, **given)

    def __getitem__(self, part: Any) -> Trial:
        """Some of the steps and rows."""
        return self.map(lambda v: v[part])

    def map(self, change: Callable[[Tensor], Tensor]) -> Trial:
        """The same change of x and of every direct input."""
        return Trial(change(self.x), {n: change(v) for n, v in self.inputs.items()})

    def filled(self, part: Any, value: float) -> Trial:
        """The same with some steps and rows overwritten."""

        def change(v: Tensor) -> Tensor:
            v = v.clone()
            v[part] = value
            return v

        return self.map(change)

    def leaves(self) -> list[Tensor]:
        """x and the direct inputs, each with a gradient of its own from now on."""
        return [v.requires_grad_() for v in (self.x, *self.inputs.values())]


def trial(layer: Recurrent, steps: int, rows: int, dtype: torch.dtype = torch.float64) -> Trial:
    """Random steps for all rows."""
    x = torch.randn(steps, rows, layer.input_size, dtype=dtype)
    inputs = {}
    for name in layer.cell.layout.inputs:
        width = layer.cell.width(layer.cell.inputs[name], layer.hidden_sizes[0])
        inputs[name] = 0.1 + 0.9 * torch.rand(steps, rows, width, dtype=dtype)
    return Trial(x, inputs)


def check_gradients(layer: Recurrent, data: Trial) -> None:
    """Raises when a gradient is not the finite difference, and names it."""
    weights = dict(layer.named_parameters())
    names = ["x", *data.inputs, *weights]

    def outputs(x: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(names[1:], values, strict=True))
        inputs = {n: given.pop(n) for n in data.inputs}
        y, state = torch.func.functional_call(layer, given, (x,), {"inputs": inputs or None})
        # In fast mode gradcheck mixes up results when one of them, an old state that is only
        # handed on, depends on nothing; so each depends on x, by nothing.
        nothing = 0 * x.sum()
        return (y, *(v + nothing for part in state for v in part))

    try:
        torch.autograd.gradcheck(outputs, (*data.leaves(), *weights.values()), fast_mode=True)
    except GradcheckError as error:
        said = str(error).strip().partition("\n\n")[0]  # behind it stand whole matrices
        named = re.sub(r"input (\d+)", lambda found: names[int(found[1])], said)
        raise AssertionError(named) from None
