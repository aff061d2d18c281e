"""A layer that goes one step at a time: what a stream puts in a layer's place in the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from throughtime.backends import choose
from throughtime.backends.cpu.stream.memory import Array
from throughtime.backends.cpu.stream.stack import Stack
from throughtime.backends.cpu.stream.stream import CompiledStream
from throughtime.errors import OptionError
from throughtime.layers.batch import States
from throughtime.layers.border import Border
from throughtime.layers.stream.parts import tensors_in
from throughtime.layers.stream.rows import chosen_rows, with_rows


def _is_compiled(layer: Any, batch: int) -> bool:
    """Whether compiled code takes the layer's steps, as it takes its whole sequences."""
    layers = range(len(layer.widths))
    calls = (layer._example(i, 1, batch, False, False, False) for i in layers)
    return all(choose(call).name == "cpu" for call in calls)


@dataclass
class Now:
    """The step being taken.

    Attributes:
        rows: numbers of those that step; None for all.
        calls: how often the model has called the layer in this step.
        arrays: dtypes of what was given as NumPy arrays, which are told so when they are wrong.
        given: the states that the layer gave in this step.
    """

    rows: Array | None = None
    calls: int = 0
    arrays: frozenset[torch.dtype] = frozenset()
    given: list[Tensor] = field(default_factory=list)


class Step(nn.Module):
    """A layer that carries its own state from call to call.

    Args:
        layer: the layer.
        batch: B.
        stack: the layer as one call of compiled code, or None.

    Attributes:
        layer: the layer; a model finds the layer's attributes here too.
        chooses: whether the layer leaves the backend open; then compiled code runs where it takes
            the layer, and else the reference: both give the bits of the whole sequence.
        compiled: whether it takes it.
        names: of the layer's weights, which a model may set anew at each call.
        batch: B.
        now: the step being taken.
    """

    def __init__(self, layer: Any, batch: int, stack: Stack | None) -> None:
        super().__init__()
        self.layer = layer
        self.compiled = layer.backend == "auto" and _is_compiled(layer, batch)
        self.chooses = layer.backend == "auto"
        self.names = {n for layer in layer._names for short in layer for n in short.values()}
        self.batch = batch
        self.now = Now()
        self._state: States = layer.initial_state(batch)
        self._call = None if stack is None else CompiledStream(stack, batch)
        self._border = Border(layer.batch_first)
        if self._call is not None:
            self._call.write(self._state)

    @property
    def device(self) -> torch.device:
        """Where its state lies."""
        return self._state[0][0].device

    @property
    def state(self) -> States:
        """Where the next step starts."""
        return self._state if self._call is None else tuple(self._call.read())

    @state.setter
    def state(self, state: States) -> None:
        self._state = state
        if self._call is not None:
            self._call.write(state)

    def kept(self) -> Any:
        """What `restore` takes, the state of the rows that step."""
        if self._call is None:
            return self._state
        return self._call.kept(slice(None) if self.now.rows is None else self.now.rows)

    def restore(self, kept: Any) -> None:
        """The state as it was."""
        if self._call is None:
            self._state = kept
        else:
            self._call.restore(kept, slice(None) if self.now.rows is None else self.now.rows)

    def forward(self, x: Tensor, state: Any = None, **given: Any) -> Any:
        """One step, a sequence of one, from the state carried."""
        if state is not None or given.pop("hx", None) is not None:
            raise OptionError(
                "a stream carries the state of its layers, so a model must not give them one; "
                "set the stream's state instead"
            )
        self.now.calls += 1
        if self._call is not None and not given and type(x) is Tensor and x.dim() == 3:
            found = self._call_compiled(x, self._call)
            if found is not None:
                return found
        self._check_array("x", x)
        inputs = given.get("inputs")
        for name, v in inputs.items() if isinstance(inputs, Mapping) else ():
            self._check_array(f"input {name}", v)
        if self.chooses:
            rounded = torch.is_autocast_enabled("cpu")
            self.layer.backend = "cpu" if self.compiled and not rounded else "reference"
        batch, border = self.layer.enter(x, None, **given)
        whole = self.state
        y, results = self.layer.carry_call(batch._replace(state=chosen_rows(whole, self.now.rows)))
        new = tuple(r.final for r in results)
        self.state = with_rows(whole, self.now.rows, new)
        return self._leave(y, new, border)

    def _call_compiled(self, x: Tensor, call: CompiledStream) -> Any:
        """One call of compiled code, or None where x is not plainly what it takes."""
        time = int(self.layer.batch_first)
        if x.shape[time] != 1:
            return None
        y = call.step(x.select(time, 0), None, {}, self.now.rows)
        if y is None:
            return None
        if getattr(self.layer, "return_state", True):
            states = tuple(call.read(slice(None) if self.now.rows is None else self.now.rows))
        else:
            states = ()
        return self._leave(y.unsqueeze(0), states, self._border)

    def _leave(self, y: Tensor, states: States, border: Border) -> Any:
        if not getattr(self.layer, "return_state", True):
            return border.output(y)
        found = self.layer.leave(y, states, border)
        self.now.given = list(tensors_in(found[1]))
        return found

    def _check_array(self, name: str, v: Any) -> None:
        """An array of another precision is told how arrays are converted."""
        wanted, device = self._state[0][0].dtype, self._state[0][0].device.type
        if isinstance(v, Tensor) and v.dtype in self.now.arrays and v.dtype != wanted:
            if not torch.is_autocast_enabled(device):
                kind = str(wanted).removeprefix("torch.")
                cure = f"convert it with .astype(numpy.{kind})"
                if not hasattr(numpy, kind):
                    cure = f"give a tensor, since NumPy has no {kind}"
                raise TypeError(f"{name} must be {wanted} as the weights, got {v.dtype}; {cure}")

    def __getattr__(self, name: str) -> Any:
        modules = self.__dict__.get("_modules", {})
        if name in modules or "layer" not in modules:
            return super().__getattr__(name)
        return getattr(modules["layer"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("names", ()):
            self._state, self._call = self.state, None  # packed weights are those of then
            setattr(self.layer, name, value)
        else:
            super().__setattr__(name, value)
