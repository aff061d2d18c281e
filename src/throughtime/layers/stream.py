"""One step at a time with carried state, for a layer or a whole model of such layers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from throughtime.errors import OptionError, ShapeError
from throughtime.layers.batch import States
from throughtime.layers.drop_in_cell import DropInCell
from throughtime.layers.passage import Passage
from throughtime.layers.stream_step import Step


class Stream:
    """A model that takes one time step a call and carries its state.

    The weights are those of the moment it was made (or of the last `refresh()`), in eval mode,
    without gradient. Layers with backend "auto" run on the reference here, whose step by step has
    the same bits as its whole sequence of the same batch.

    Args:
        model: a layer of this package, or a module built of them and of parts that look at each
            time step alone (a linear readout, say).
        batch: B, rows that run side by side.

    Raises:
        OptionError: a layer runs backward or is dilated, so that it cannot go step by step, or
            the state of a part could not be carried.
    """

    def __init__(self, model: nn.Module, batch: int = 1) -> None:
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise OptionError(f"batch must be a positive integer, got {batch!r}")
        self.batch = batch
        self._source = model
        self._check()
        self._copy_model()

    def _check(self) -> None:
        _check_carried(self._source)
        layers = [m for m in self._source.modules() if isinstance(m, Passage)]
        if not layers:
            raise OptionError("a stream needs a model with a recurrent layer of throughtime in it")
        for layer in layers:
            if layer.directions == 2:
                raise OptionError(
                    "a bidirectional layer needs the whole sequence, so it has no stream; "
                    "build it with bidirectional=False"
                )
            if set(layer.dilations) != {1}:
                raise OptionError(
                    "a dilated layer keeps no old states, so it has no stream; use dilation=1"
                )
        held = [m for parent in self._source.modules() for m in parent._modules.values()]
        if any(held.count(layer) > 1 for layer in layers):
            raise OptionError(
                "a layer stands in the model twice, and a stream cannot tell its two states apart; "
                "use a copy.deepcopy of it, or a layer of its own"
            )
        if len({layer.batch_first for layer in layers}) > 1:
            raise OptionError("the layers of a stream must agree on batch_first")

    def refresh(self) -> None:
        """Take the model's weights as they are now; the state stays."""
        state = self.state
        self._copy_model()
        self.state = state

    def _copy_model(self) -> None:
        """A frozen copy of the model in which every layer carries its own state."""
        model = copy.deepcopy(self._source).eval().requires_grad_(False)
        layers = [m for m in model.modules() if isinstance(m, Passage)]
        self._steps = [Step(layer, self.batch) for layer in layers]
        wrapped = dict(zip(layers, self._steps, strict=True))
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if child in wrapped:
                    setattr(parent, name, wrapped[child])
        self._model = wrapped[model] if isinstance(model, Passage) else model
        self._time = 1 if layers[0].batch_first else 0

    @property
    def state(self) -> tuple[States, ...]:
        """A copy of the state: over the model's recurrent layers, each as its `state`."""
        return tuple(tuple(tuple(v.clone() for v in s) for s in step.state) for step in self._steps)

    @state.setter
    def state(self, state: tuple[States, ...]) -> None:
        if not isinstance(state, tuple | list) or len(state) != len(self._steps):
            got = len(state) if isinstance(state, tuple | list) else type(state).__name__
            raise ShapeError(
                f"state must hold one entry for each of {len(self._steps)} recurrent layers, "
                f"got {got}"
            )
        for step, value in zip(self._steps, state, strict=True):
            step.set(value)

    def reset(self, rows: Sequence[int] | Tensor | None = None) -> None:
        """Put all rows, or those given by number or as a bool mask, back to their first state."""
        for step in self._steps:
            step.reset(rows)

    def __call__(self, x: Any, **given: Any) -> Any:
        """One step.

        Args:
            x: (B, I), with batch 1 also (I,); a tensor or a NumPy array.
            given: what else the model takes: for a layer whose cell reads direct inputs,
                `inputs`, a mapping of tensors or arrays as x.

        Returns:
            The model's output for this step, (B, O) or (O,), of the kind that x is.
        """
        flat = getattr(x, "ndim", 0) == 1 and self.batch == 1
        arrays = _dtypes_of_arrays(x, given.get("inputs"))
        for step in self._steps:
            step.arrays = arrays
        v = self._one_step("x", x)
        if isinstance(given.get("inputs"), Mapping):
            given["inputs"] = {n: self._one_step(n, i) for n, i in given["inputs"].items()}
        with torch.no_grad():
            calls = [step.calls for step in self._steps]
            y = self._model(v, **given)
        if any(step.calls != n + 1 for step, n in zip(self._steps, calls, strict=True)):
            raise OptionError(
                "a stream needs a model that calls each of its recurrent layers once a step; "
                "the state it carries is no longer right, so make a new stream"
            )
        y = (y[0] if isinstance(y, tuple) else y).squeeze(self._time)
        y = y.squeeze(0) if flat else y
        return y.cpu().numpy() if isinstance(x, np.ndarray) else y

    def _one_step(self, name: str, x: Any) -> Tensor:
        """A tensor or array (B, I) or (I,) as a sequence of one step."""
        if not isinstance(x, Tensor | np.ndarray):
            raise TypeError(f"{name} must be a tensor or a NumPy array, got {type(x).__name__}")
        device = self._steps[0].state[0][0].device
        v = x if isinstance(x, Tensor) else torch.from_numpy(x.copy()).to(device)
        v = v.unsqueeze(0) if v.dim() == 1 and self.batch == 1 else v
        if v.dim() != 2 or v.shape[0] != self.batch:
            raise ShapeError(
                f"one step of this stream is ({self.batch}, I), one row for each of its batch, "
                f"got {tuple(x.shape)} for {name}"
            )
        return v.unsqueeze(self._time)

    def __repr__(self) -> str:
        return f"Stream({self._source!r}, batch={self.batch})"


def _check_carried(model: nn.Module) -> None:
    """No part of the model keeps a state that the stream does not know."""
    for name, part in model.named_modules():
        kind, place = type(part), name or "the model"
        if isinstance(part, nn.RNNCellBase | DropInCell):
            raise OptionError(
                f"{place} is a {kind.__name__}, one step whose state a stream does not carry; "
                f"use a layer in its place: throughtime.RNN, LSTM or GRU"
            )
        if isinstance(part, nn.RNNBase) and not isinstance(part, Passage):
            raise OptionError(
                f"{place} is a torch.nn {kind.__name__}, which would start from zero at every "
                f"step; convert it, as in Stream(throughtime.from_torch(model))"
            )


def _dtypes_of_arrays(x: Any, inputs: Any) -> frozenset[torch.dtype]:
    given = [x, *(inputs.values() if isinstance(inputs, Mapping) else ())]
    kinds = {v.dtype for v in given if isinstance(v, np.ndarray)}
    return frozenset(torch.from_numpy(np.empty(0, kind)).dtype for kind in kinds)
