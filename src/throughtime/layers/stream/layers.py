"""A model one step at a time, layer by layer, each part in one call."""

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
    find_array_dtypes,
    is_flat,
    list_tensors,
    make_sequence,
    map_tensors,
    write_out,
)
from throughtime.layers.stream.step import Step


class LayerByLayer:
    """A copy of the frozen model, with the same weights, whose layers carry their states.

    Args:
        frozen: the model.
        batch: B.

    Attributes:
        model: the copy.
        steps: the steps that replace its layers.
        timed: for each tensor that the model returns, whether it has a dimension of steps; None
            while unknown.
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
        """The state of each layer."""
        return [step.state for step in self.steps]

    @states.setter
    def states(self, states: list[States]) -> None:
        for step, state in zip(self.steps, states, strict=True):
            step.state = state

    def step(self, x: Any, rows: Array | None, out: Any, options: dict[str, Any]) -> Any:
        """One step of all rows, or of these; if it raises, every layer keeps its old state."""
        batch = self.batch if rows is None else len(rows)
        v = self._make_sequences(x, batch, options)
        for step in self.steps:
            step.now.rows = rows
        states = [step.save() for step in self.steps]
        try:
            y = self._run(v, options, is_flat(x, batch))
            if isinstance(x, np.ndarray):
                y = map_tensors(y, lambda v: v.cpu().numpy())
            return y if out is None else write_out(out, y)
        except BaseException:
            for step, state in zip(self.steps, states, strict=True):
                step.restore(state)
            raise
        finally:
            for step in self.steps:
                step.now.rows = None

    def _make_sequences(self, x: Any, batch: int, options: dict[str, Any]) -> Tensor:
        """x as a sequence of one step; direct inputs likewise, in place."""
        arrays = find_array_dtypes(x, options.get("inputs"))
        for step in self.steps:
            step.now.arrays = arrays
        border = batch, self.steps[0].device, self.time
        if self.tokens and getattr(x, "shape", None) == (batch, 1):
            x = x[:, 0]
        v = make_sequence("x", x, *border)
        if isinstance(options.get("inputs"), Mapping):
            options["inputs"] = {
                n: make_sequence(n, i, *border) for n, i in options["inputs"].items()
            }
        return v

    def _run(self, v: Tensor, options: Mapping[str, Any], flat: bool) -> Any:
        """The model's outputs for a sequence of one step, without the dimension of steps."""
        y = self.call(v, options)
        timed = iter(self.timed or [])

        def one(v: Tensor) -> Tensor:
            v = v.squeeze(self.time) if next(timed, v.dim() > 1) else v
            return v.squeeze(0) if flat and v.dim() else v

        return map_tensors(y, one)

    def call(self, v: Tensor, options: Mapping[str, Any]) -> Any:
        """The model's outputs for a sequence of one step."""
        for step in self.steps:
            step.now.calls, step.now.states = 0, []
        with torch.no_grad():
            y = self._outputs(self.model(v, **options))
        if any(step.now.calls != 1 for step in self.steps):
            raise OptionError(
                "a stream needs a model that calls each of its recurrent layers once a step"
            )
        return y

    def _outputs(self, y: Any) -> Any:
        """The model's outputs without its layers' states, which the stream carries."""
        if not isinstance(y, tuple) or hasattr(y, "_fields"):
            return y
        places = {v.data_ptr() for step in self.steps for v in step.now.states}
        outputs = tuple(v for v in y if not _is_state(v, places))
        return (outputs or y)[0] if len(outputs) < 2 else outputs


def _is_state(value: Any, places: set[int]) -> bool:
    tensors = list(list_tensors(value))
    return bool(tensors) and all(v.data_ptr() in places for v in tensors)
