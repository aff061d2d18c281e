"""One step at a time with carried state, for a layer or a whole model of such layers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from throughtime.errors import OptionError, ShapeError
from throughtime.layers.batch import States
from throughtime.layers.passage import Passage


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
        OptionError: a layer runs backward or is dilated, so that it cannot go step by step.
    """

    def __init__(self, model: nn.Module, batch: int = 1) -> None:
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise OptionError(f"batch must be a positive integer, got {batch!r}")
        self.batch = batch
        self._source = model
        self._check()
        self._copy_model()

    def _check(self) -> None:
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
        self._steps = [_Step(layer, self.batch) for layer in layers]
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
        if len(state) != len(self._steps):
            raise ShapeError(
                f"state must hold one entry for each of {len(self._steps)} recurrent layers, "
                f"got {len(state)}"
            )
        for step, value in zip(self._steps, state, strict=True):
            step.set(value)

    def reset(self, rows: Sequence[int] | Tensor | None = None) -> None:
        """Put all rows, or those given by number or as a bool mask, back to their first state."""
        for step in self._steps:
            step.reset(rows)

    def __call__(self, x: Any) -> Any:
        """One step.

        Args:
            x: (B, I), with batch 1 also (I,); a tensor or a NumPy array.

        Returns:
            The model's output for this step, (B, O) or (O,), of the kind that x is.
        """
        v = torch.from_numpy(x) if isinstance(x, np.ndarray) else x
        flat = v.dim() == 1 and self.batch == 1
        v = v.unsqueeze(0) if flat else v
        if v.dim() != 2 or v.shape[0] != self.batch:
            raise ShapeError(
                f"one step of this stream is ({self.batch}, I), one row for each of its batch, "
                f"got {tuple(x.shape)}"
            )
        with torch.no_grad():
            y = self._model(v.unsqueeze(self._time))
        y = (y[0] if isinstance(y, tuple) else y).squeeze(self._time)
        y = y.squeeze(0) if flat else y
        return y.numpy() if isinstance(x, np.ndarray) else y


class _Step(nn.Module):
    """A layer that carries its own state from call to call."""

    def __init__(self, layer: Any, batch: int) -> None:
        super().__init__()
        if layer.backend == "auto":
            layer.backend = "reference"
        self.layer = layer
        self.batch = batch
        self.state: States = layer.initial_state(batch)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        batch, border = self.layer.enter(x, None, **kwargs)
        y, results = self.layer.carry(replace(batch, state=self.state))
        self.state = tuple(r.final for r in results)
        return self.layer.leave(y, self.state, border)

    def reset(self, rows: Sequence[int] | Tensor | None) -> None:
        fresh = self.layer.initial_state(self.batch)
        if rows is None:
            self.state = fresh
            return
        chosen = torch.as_tensor(rows)
        mask = torch.zeros(self.batch, dtype=torch.bool)
        mask[chosen] = True
        mask = mask.to(fresh[0][0].device).unsqueeze(-1)
        self.state = _select(mask, fresh, self.state)

    def set(self, state: States) -> None:
        shapes = [[tuple(v.shape) for v in s] for s in self.state]
        given = [[tuple(v.shape) for v in s] for s in state]
        if given != shapes:
            raise ShapeError(f"the state of a layer of this stream must be {shapes}, got {given}")
        self.state = tuple(tuple(v.detach().clone() for v in s) for s in state)


def _select(mask: Tensor, new: States, old: States) -> States:
    return tuple(
        tuple(torch.where(mask, a, b) for a, b in zip(x, y, strict=True))
        for x, y in zip(new, old, strict=True)
    )
