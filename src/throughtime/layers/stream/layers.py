"""A model one step at a time, layer by layer: each part in a call of its own."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from throughtime.backends.cpu.stream.memory import Array
from throughtime.errors import OptionError
from throughtime.layers.batch import States
from throughtime.layers.layer import Passage
from throughtime.layers.stream.frozen import Frozen
from throughtime.layers.stream.parts import (
    dtypes_of_arrays,
    each_tensor,
    is_flat,
    one_step,
    tensors_in,
    written,
)
from throughtime.layers.stream.step import Step


class LayerByLayer:
    """A copy of the model, its weights those of the frozen one, whose layers carry their states.

    Args:
        frozen: the model.
        batch: B.

    Attributes:
        model: the copy.
        steps: what stands in the layers' places.
        timed: of each tensor that the model gives, whether it has a step for each of x; None
            where nobody has looked.
        tokens: whether it is known to take one whole number for each row.
    """

    def __init__(self, frozen: Frozen, batch: int) -> None:
        self.batch, self.time = batch, int(frozen.batch_first)
        shared = {id(v): v for v in frozen.model.parameters()}
        model = copy.deepcopy(frozen.model, shared)
        layers = [m for m in model.modules() if isinstance(m, Passage)]
        self.steps = [
            Step(layer, batch, stack) for layer, stack in zip(layers, frozen.stacks, strict=True)
        ]
        wrapped = dict(zip(layers, self.steps, strict=True))
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if child in wrapped:
                    setattr(parent, name, wrapped[child])
        self.model: nn.Module = wrapped[model] if isinstance(model, Passage) else model
        self.timed: list[bool] | None = None
        self.tokens = False

    @property
    def states(self) -> list[States]:
        """Of each layer."""
        return [step.state for step in self.steps]

    @states.setter
    def states(self, states: list[States]) -> None:
        for step, state in zip(self.steps, states, strict=True):
            step.state = state

    def step(self, x: Any, rows: Array | None, out: Any, given: dict[str, Any]) -> Any:
        """One step of all rows, or of these; one that raises is no step of any layer."""
        batch = self.batch if rows is None else len(rows)
        v = self._entered(x, batch, given)
        for step in self.steps:
            step.now.rows = rows
        kept = [step.kept() for step in self.steps]
        try:
            y = self._run(v, given, is_flat(x, batch))
            if isinstance(x, np.ndarray):
                y = each_tensor(y, lambda v: v.cpu().numpy())
            return y if out is None else written(out, y)
        except BaseException:
            for step, state in zip(self.steps, kept, strict=True):
                step.restore(state)
            raise
        finally:
            for step in self.steps:
                step.now.rows = None

    def _entered(self, x: Any, batch: int, given: dict[str, Any]) -> Tensor:
        """x as a sequence of one step; direct inputs likewise, in their place."""
        arrays = dtypes_of_arrays(x, given.get("inputs"))
        for step in self.steps:
            step.now.arrays = arrays
        border = batch, self.steps[0].device, self.time
        if self.tokens and getattr(x, "shape", None) == (batch, 1):
            x = x[:, 0]
        v = one_step("x", x, *border)
        if isinstance(given.get("inputs"), Mapping):
            given["inputs"] = {n: one_step(n, i, *border) for n, i in given["inputs"].items()}
        return v

    def _run(self, v: Tensor, given: Mapping[str, Any], flat: bool) -> Any:
        """The model over a sequence of one step; what it gives, without the dimension of steps."""
        y = self.call(v, given)
        timed = iter(self.timed or [])

        def one(v: Tensor) -> Tensor:
            v = v.squeeze(self.time) if next(timed, v.dim() > 1) else v
            return v.squeeze(0) if flat and v.dim() else v

        return each_tensor(y, one)

    def call(self, v: Tensor, given: Mapping[str, Any]) -> Any:
        """The model over a sequence of one step."""
        for step in self.steps:
            step.now.calls, step.now.given = 0, []
        with torch.no_grad():
            y = self._outputs(self.model(v, **given))
        if any(step.now.calls != 1 for step in self.steps):
            raise OptionError(
                "a stream needs a model that calls each of its recurrent layers once a step"
            )
        return y

    def _outputs(self, y: Any) -> Any:
        """What a model gives but for its layers' states, which the stream carries."""
        if not isinstance(y, tuple) or hasattr(y, "_fields"):
            return y
        places = {v.data_ptr() for step in self.steps for v in step.now.given}
        found = tuple(v for v in y if not _is_state(v, places))
        return (found or y)[0] if len(found) < 2 else found


def _is_state(value: Any, places: set[int]) -> bool:
    tensors = list(tensors_in(value))
    return bool(tensors) and all(v.data_ptr() in places for v in tensors)
