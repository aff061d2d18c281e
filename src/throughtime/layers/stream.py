"""One step at a time with carried state, for a layer or a whole model of such layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from throughtime.backends.cpu.stream import CompiledStream
from throughtime.errors import OptionError
from throughtime.layers.batch import States
from throughtime.layers.passage import Passage
from throughtime.layers.stream_given import one_step, written
from throughtime.layers.stream_model import check_streamable, frozen, round_matrices
from throughtime.layers.stream_parts import Parts, parts_of
from throughtime.layers.stream_step import Step, dtypes_of_arrays, set_states


class Stream:
    """A model that takes one time step a call and carries its state.

    The weights are those of the moment it was made (or of the last `refresh()`), in eval mode,
    without gradient. Layers with backend "auto" run on compiled code here where it takes them, and
    else on the reference: step by step both have the bits of their whole sequence. A plain stack of
    compiled layers and linear parts takes a step in one call; `explain()` says so, or why not. One
    stream must not be stepped by two threads at once.

    Args:
        model: a layer of this package, or a module built of them and of parts that look at each
            time step alone (a linear readout, say).
        batch: B, rows that run side by side.
        weights: torch.bfloat16: the matrices of a float32 model are rounded to bfloat16, and
            compiled steps read half the bytes; sums, biases and states stay float32. None: as
            they are.

    Raises:
        OptionError: a layer runs backward or is dilated, so that it cannot go step by step, or
            the state of a part could not be carried, or its weights cannot be rounded.
    """

    def __init__(
        self, model: nn.Module, batch: int = 1, weights: torch.dtype | None = None
    ) -> None:
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise OptionError(f"batch must be a positive integer, got {batch!r}")
        self.batch, self.weights = batch, weights
        self._source = model
        self._model, self._steps, parts = self._build()
        self._compile(parts)
        self._time = 1 if self._steps[0].layer.batch_first else 0

    def refresh(self) -> None:
        """Take the model's weights as they are now; the state stays, in the weights' own dtype.

        Where the model has changed so that the state fits no longer, it raises, and the stream
        goes on as it was.
        """
        model, steps, parts = self._build()
        self._pull()
        likes = [step.state[0][0] for step in steps]
        moved = [
            [[v.to(like) for v in s] for s in step.state]
            for step, like in zip(self._steps, likes, strict=False)
        ]
        set_states(steps, moved)
        self._model, self._steps = model, steps
        self._compile(parts)

    def _compile(self, parts: Parts | str) -> None:
        """One call of compiled code for the whole step, where that takes the model."""
        self._parts = parts
        self._compiled = None
        if not isinstance(parts, str):
            self._compiled = CompiledStream(parts, self.batch, self.weights is not None)
        self._push()

    def _pull(self) -> None:
        """The layers' states as compiled steps have left them."""
        if self._compiled is not None:
            states = iter(self._compiled.read())
            for step in self._steps:
                step.state = tuple(next(states) for _ in step.state)

    def _push(self) -> None:
        """The compiled state as the layers have it."""
        if self._compiled is not None:
            self._compiled.write([s for step in self._steps for s in step.state])

    def explain(self) -> str:
        """Whether a step is one call of compiled code, and if not, why not."""
        if self._compiled is not None:
            return "compiled: a step of the whole model is one call"
        return f"layer by layer, since {self._parts}"

    def _build(self) -> tuple[nn.Module, list[Step], Parts | str]:
        """A frozen copy of the model in which every layer carries its own state; and its parts."""
        check_streamable(self._source)
        model = frozen(self._source)
        round_matrices(model, self.weights)
        parts = parts_of(model, self.batch)
        layers = [m for m in model.modules() if isinstance(m, Passage)]
        steps = [Step(layer, self.batch) for layer in layers]
        wrapped = dict(zip(layers, steps, strict=True))
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if child in wrapped:
                    setattr(parent, name, wrapped[child])
        return (wrapped[model] if isinstance(model, Passage) else model), steps, parts

    @property
    def state(self) -> tuple[States, ...]:
        """A copy of the state: over the model's recurrent layers, each as its `state`."""
        self._pull()
        return tuple(tuple(tuple(v.clone() for v in s) for s in step.state) for step in self._steps)

    @state.setter
    def state(self, state: tuple[States, ...]) -> None:
        set_states(self._steps, state)
        self._push()

    def reset(self, rows: Sequence[int] | Tensor | None = None) -> None:
        """Put all rows, or those given by number or as a bool mask, back to their first state."""
        self._pull()
        for step in self._steps:
            step.reset(rows)
        self._push()

    def __call__(self, x: Any, *, out: Any = None, **given: Any) -> Any:
        """One step.

        Args:
            x: (B, I), with batch 1 also (I,); a tensor or a NumPy array.
            out: where the result goes, of its kind, shape and dtype; left out, a new one is made.
            given: what else the model takes: for a layer whose cell reads direct inputs,
                `inputs`, a mapping of tensors or arrays as x.

        Returns:
            The model's output for this step, (B, O) or (O,), of the kind that x is; or `out`.

        Raises:
            TypeError, ShapeError: x or `out` does not fit; no step was taken then.
        """
        if self._compiled is not None:
            y = self._compiled.step(x, out, given)
            if y is not None:
                return y
        self._pull()
        y = self._step(x, out, given)
        self._push()
        return y

    def _step(self, x: Any, out: Any, given: dict[str, Any]) -> Any:
        """One step, layer by layer."""
        flat = getattr(x, "ndim", 0) == 1 and self.batch == 1
        arrays = dtypes_of_arrays(x, given.get("inputs"))
        border = self.batch, self._steps[0].state[0][0].device, self._time
        for step in self._steps:
            step.arrays = arrays
        v = one_step("x", x, *border)
        if isinstance(given.get("inputs"), Mapping):
            given["inputs"] = {n: one_step(n, i, *border) for n, i in given["inputs"].items()}
        states = [step.state for step in self._steps]
        try:
            y = self._run(v, given, flat)
            found = y.cpu().numpy() if isinstance(x, np.ndarray) else y
            found = found if out is None else written(out, found)
            states = [step.state for step in self._steps]
        finally:  # a step that raises is no step of any layer
            for step, state in zip(self._steps, states, strict=True):
                step.state = state
        return found

    def _run(self, v: Tensor, given: Mapping[str, Any], flat: bool) -> Tensor:
        """The model over a sequence of one step."""
        for step in self._steps:
            step.calls = 0
        with torch.no_grad():
            y = self._model(v, **given)
        if any(step.calls != 1 for step in self._steps):
            raise OptionError(
                "a stream needs a model that calls each of its recurrent layers once a step"
            )
        out: Tensor = (y[0] if isinstance(y, tuple) else y).squeeze(self._time)
        return out.squeeze(0) if flat else out

    def __getstate__(self) -> dict[str, Any]:
        self._pull()
        return {**vars(self), "_compiled": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._compile(self._parts)

    def __repr__(self) -> str:
        weights = "" if self.weights is None else f", weights={self.weights}"
        return f"Stream({self._source!r}, batch={self.batch}{weights})"
