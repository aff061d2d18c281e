"""A layer that goes one step at a time: what a stream puts in a layer's place in the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from throughtime.backends import choose
from throughtime.errors import OptionError, ShapeError
from throughtime.layers.batch import States
from throughtime.layers.checks import check_state


def _is_compiled(layer: Any, batch: int) -> bool:
    """Whether compiled code takes the layer's steps, as it takes its whole sequences."""
    layers = range(len(layer.widths))
    calls = (layer._example(i, 1, batch, False, False, False) for i in layers)
    return all(choose(call).name == "cpu" for call in calls)


class Step(nn.Module):
    """A layer that carries its own state from call to call.

    Attributes:
        layer: the layer; a model finds the layer's attributes here too.
        chooses: whether the layer leaves the backend open; then compiled code runs where it takes
            the layer, and else the reference: both give the bits of the whole sequence.
        compiled: whether it takes it.
        names: of the layer's weights, which a model may set anew at each call.
        batch: B.
        state: where the next step starts.
        calls: how often the model has called it in this step.
        arrays: dtypes of what was given as NumPy arrays, which are told so when they are wrong.
    """

    def __init__(self, layer: Any, batch: int) -> None:
        super().__init__()
        self.layer = layer
        self.compiled = layer.backend == "auto" and _is_compiled(layer, batch)
        self.chooses = layer.backend == "auto"
        self.names = {n for layer in layer._names for short in layer for n in short.values()}
        self.batch = batch
        self.state: States = layer.initial_state(batch)
        self.calls = 0
        self.arrays: frozenset[torch.dtype] = frozenset()

    def forward(self, x: Tensor, state: Any = None, **given: Any) -> Any:
        """One step, a sequence of one, from the state carried."""
        if state is not None or given.pop("hx", None) is not None:
            raise OptionError(
                "a stream carries the state of its layers, so a model must not give them one; "
                "set the stream's state instead"
            )
        self.calls += 1
        self._check_array("x", x)
        inputs = given.get("inputs")
        for name, v in inputs.items() if isinstance(inputs, Mapping) else ():
            self._check_array(f"input {name}", v)
        if self.chooses:
            rounded = torch.is_autocast_enabled("cpu")
            self.layer.backend = "cpu" if self.compiled and not rounded else "reference"
        batch, border = self.layer.enter(x, None, **given)
        y, results = self.layer.carry(batch._replace(state=self.state))
        self.state = tuple(r.final for r in results)
        return self.layer.leave(y, self.state, border)

    def _check_array(self, name: str, v: Any) -> None:
        """An array of another precision is told how arrays are converted."""
        wanted, device = self.state[0][0].dtype, self.state[0][0].device.type
        if isinstance(v, Tensor) and v.dtype in self.arrays and v.dtype != wanted:
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
            setattr(self.layer, name, value)
        else:
            super().__setattr__(name, value)

    def reset(self, rows: Sequence[int] | Tensor | None) -> None:
        """Put all rows, or those given, back to their first state."""
        fresh = self.layer.initial_state(self.batch)
        if rows is None:
            self.state = fresh
            return
        mask = _rows(rows, self.batch).to(fresh[0][0].device).unsqueeze(-1)
        self.state = _select(mask, fresh, self.state)

    def checked(self, state: Any) -> States:
        """A copy of a state that this layer can go on from."""
        found = check_state(self.layer, state, self.batch, True)
        if found is None:
            raise ShapeError("the state of a layer of this stream must be its tensors, got None")
        return tuple(tuple(v.detach().clone() for v in s) for s in found)


def _rows(rows: Any, batch: int) -> Tensor:
    """Rows given by number or as a bool mask, as a bool mask (B,)."""
    chosen = torch.as_tensor(rows, device="cpu")
    if chosen.dtype == torch.bool:
        if chosen.shape != (batch,):
            raise ShapeError(f"rows as a bool mask must be ({batch},), got {tuple(chosen.shape)}")
        return chosen
    chosen = chosen.to(torch.int64) if chosen.numel() == 0 else chosen
    if chosen.is_floating_point() or chosen.is_complex():
        raise TypeError(f"rows must be numbers of rows or a bool mask, got {chosen.dtype}")
    wrong = chosen[(chosen < 0) | (chosen >= batch)]
    if wrong.numel():
        raise ShapeError(f"rows must be from 0 to {batch - 1}, got {int(wrong[0])}")
    found = torch.zeros(batch, dtype=torch.bool, device="cpu")
    return found.index_fill_(0, chosen.reshape(-1).long(), True)


def _select(mask: Tensor, new: States, old: States) -> States:
    return tuple(
        tuple(torch.where(mask, a, b) for a, b in zip(x, y, strict=True))
        for x, y in zip(new, old, strict=True)
    )


def set_states(steps: list[Step], state: Any) -> None:
    """Put each layer's state in its place, all of them or none."""
    if not isinstance(state, tuple | list) or len(state) != len(steps):
        got = len(state) if isinstance(state, tuple | list) else type(state).__name__
        raise ShapeError(
            f"state must hold one entry for each of {len(steps)} recurrent layers, got {got}"
        )
    found = [step.checked(value) for step, value in zip(steps, state, strict=True)]
    for step, value in zip(steps, found, strict=True):
        step.state = value


def dtypes_of_arrays(x: Any, inputs: Any) -> frozenset[torch.dtype]:
    """The dtypes of what is given as NumPy arrays."""
    given = [x, *(inputs.values() if isinstance(inputs, Mapping) else ())]
    kinds = {v.dtype for v in given if isinstance(v, numpy.ndarray)}
    return frozenset(torch.from_numpy(numpy.empty(0, kind)).dtype for kind in kinds)
