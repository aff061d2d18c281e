"""One step at a time with carried state, for a layer or a whole model of such layers."""

from __future__ import annotations

from collections.abc import Sequence
from threading import RLock
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from throughtime.backends.cpu.stream.stream import CompiledStream
from throughtime.errors import OptionError
from throughtime.layers.batch import States
from throughtime.layers.stream.frozen import Frozen, frozen_model
from throughtime.layers.stream.layers import LayerByLayer
from throughtime.layers.stream.parts import one_step
from throughtime.layers.stream.probe import Found, probe
from throughtime.layers.stream.rows import (
    check_row,
    checked_states,
    row_mask,
    row_numbers,
    with_rows,
)


class Stream:
    """A model that takes one time step a call and carries its state.

    The weights are those of the moment it was made (or of the last `refresh()`), in eval mode,
    without gradient; streams of one model share them. Layers with backend "auto" run on compiled
    code here where it takes them, and else on the reference: step by step both have the bits of
    their whole sequence. A plain stack of compiled layers, linear parts and what looks at each row
    alone takes a step in one call; `explain()` says so, or why not. Threads that step one stream at
    once wait for each other.

    Args:
        model: a layer of this package, or a module built of them and of parts that look at each
            time step alone (a linear readout, say).
        batch: B, rows that run side by side; `rows` changes it.
        weights: torch.bfloat16: the matrices of a float32 model are rounded to bfloat16, and
            compiled steps read half the bytes; sums, biases and states stay float32. None: as
            they are.

    Raises:
        OptionError: a layer runs backward or is dilated, so that it cannot go step by step, or
            the state of a part could not be carried, or a part looks over time, or its weights
            cannot be rounded.
    """

    def __init__(
        self, model: nn.Module, batch: int = 1, weights: torch.dtype | None = None
    ) -> None:
        self.batch, self.weights = _checked_batch(batch), weights
        self._make_lock()
        self._source = model
        self._told: Found | None = None
        self._open(frozen_model(model, weights), batch)
        self._proven = self._is_proven()

    def _make_lock(self) -> None:
        """What threads that step one stream at once wait for."""
        self._lock = RLock()
        self._acquire, self._release = self._lock.acquire, self._lock.release

    def _open(self, frozen: Frozen, batch: int, states: list[States] | None = None) -> None:
        """Go on with this model and so many rows, from states or from the first one."""
        states = (
            [layer.initial_state(batch) for layer in frozen.layers] if states is None else states
        )
        compiled, layered = None, None
        if frozen.stack is not None:
            compiled = CompiledStream(frozen.stack, batch)
        else:
            layered = LayerByLayer(frozen, batch)
        self.batch, self._frozen, self._compiled, self._layered = batch, frozen, compiled, layered
        self._put(states)

    def _is_proven(self) -> bool:
        """Whether steps are known to be those of the whole: random ones are taken and compared."""
        if self._compiled is not None or self._layered is None:
            return True
        if len(self._frozen.layers) == 1 and self._frozen.model is self._frozen.layers[0]:
            return True
        return self._learn(probe(self._frozen, self.batch))

    def _prove(self, x: Any, batch: int, given: dict[str, Any]) -> None:
        """The same, when the first x tells what the model takes."""
        if self._layered is not None and not given:
            border = batch, self._layered.steps[0].device, self._layered.time
            self._learn(probe(self._frozen, batch, one_step("x", x, *border)))
        self._proven = True

    def _learn(self, found: Found | None) -> bool:
        """Keep what steps have told, if they have."""
        self._told = found
        if found is not None and self._layered is not None:
            self._layered.timed, self._layered.tokens = found
        return found is not None

    def refresh(self) -> None:
        """Take the model's weights as they are now; the state stays, in the weights' own dtype.

        Where the model has changed so that the state fits no longer, it raises, and the stream
        goes on as it was.
        """
        with self._lock:
            frozen = frozen_model(self._source, self.weights)
            likes = [layer.initial_state(1)[0][0] for layer in frozen.layers]
            moved = [
                tuple(tuple(v.to(like) for v in s) for s in state)
                for state, like in zip(self._states(), likes, strict=False)
            ]
            states = checked_states(frozen.layers, _as_many(moved, self._states()), self.batch)
            self._open(frozen, self.batch, states)
            self._proven = self._is_proven()

    def _states(self, rows: Any = slice(None)) -> list[States]:
        """Copies of the layers' states."""
        if self._compiled is None:
            assert self._layered is not None
            return [
                tuple(tuple(v[:, rows].clone() for v in s) for s in state)
                for state in self._layered.states
            ]
        found = iter(self._compiled.read(rows))
        return [tuple(next(found) for _ in layer.hidden_sizes) for layer in self._frozen.layers]

    def _put(self, states: Sequence[States], rows: Any = None) -> None:
        """Go on from these, of all rows or of some."""
        if self._compiled is not None:
            flat = [s for state in states for s in state]
            self._compiled.write(flat, slice(None) if rows is None else rows)
        else:
            assert self._layered is not None
            old = self._layered.states
            self._layered.states = [
                with_rows(was, rows, state) for was, state in zip(old, states, strict=True)
            ]

    def explain(self) -> str:
        """Whether a step is one call of compiled code, and if not, why not."""
        if self._compiled is not None:
            return "compiled: a step of the whole model is one call"
        return f"layer by layer, since {self._frozen.parts}"

    @property
    def state(self) -> tuple[States, ...]:
        """A copy of the state: over the model's recurrent layers, each as its `state`."""
        with self._lock:
            return tuple(self._states())

    @state.setter
    def state(self, state: tuple[States, ...]) -> None:
        with self._lock:
            self._put(checked_states(self._frozen.layers, state, self.batch))

    def save(self, row: int) -> tuple[States, ...]:
        """A copy of one row's state, as the state of a stream of one row."""
        with self._lock:
            row = check_row(row, self.batch)
            return tuple(self._states(slice(row, row + 1)))

    def load(self, row: int, state: tuple[States, ...]) -> None:
        """Let one row go on from a state that `save` gave; other rows stay as they are."""
        with self._lock:
            row = check_row(row, self.batch)
            self._put(checked_states(self._frozen.layers, state, 1), [row])

    def rows(self, batch: int) -> Stream:
        """Go on with so many rows: the last leave, or new ones begin behind those that are there.

        Returns:
            The stream itself.
        """
        with self._lock:
            _checked_batch(batch)
            return self._regroup(list(range(min(batch, self.batch))), batch)

    def keep(self, rows: Sequence[int] | Tensor) -> Stream:
        """Go on with these rows alone, in this order, given by number or as a bool mask.

        Returns:
            The stream itself.
        """
        with self._lock:
            numbers = row_numbers(rows, self.batch).tolist()
            return self._regroup(numbers, _checked_batch(len(numbers)))

    def _regroup(self, rows: list[int], batch: int) -> Stream:
        """These rows, and new ones behind them."""
        first = [layer.initial_state(batch) for layer in self._frozen.layers]
        if self._compiled is not None:
            flat = [s for state in first for s in state]
            self._compiled = self._compiled.resized(rows, flat)
            self.batch, self._layered = batch, None
            return self
        old = self._states(rows)
        kept = slice(0, len(rows))
        states = [with_rows(a, kept, b) for a, b in zip(first, old, strict=True)]
        self._open(self._frozen, batch, states)
        self._learn(self._told)
        return self

    def reset(self, rows: Sequence[int] | Tensor | None = None) -> None:
        """Put all rows, or those given by number or as a bool mask, back to their first state."""
        with self._lock:
            layers = self._frozen.layers
            if rows is None:
                self._put([layer.initial_state(self.batch) for layer in layers])
                return
            chosen = row_mask(rows, self.batch).nonzero().reshape(-1).numpy()
            if len(chosen):
                self._put([layer.initial_state(len(chosen)) for layer in layers], chosen)

    def __call__(self, x: Any, *, out: Any = None, **given: Any) -> Any:
        """One step.

        Args:
            x: (B, I), with batch 1 also (I,); for a model that begins with an embedding (B,), whole
                numbers; a tensor or a NumPy array.
            out: where the result goes, of its kind, shape and dtype; left out, a new one is made.
            given: what else the model takes: for a layer whose cell reads direct inputs,
                `inputs`, a mapping of tensors or arrays as x.

        Returns:
            The model's output for this step, (B, O) or (O,), of the kind that x is; or `out`. Of a
            model that gives several tensors, these in their tuple, list or mapping, but for the
            layers' states.

        Raises:
            TypeError, ShapeError: x or `out` does not fit; no step was taken then.
        """
        self._acquire()  # a third of what a with statement costs
        try:
            if self._compiled is not None:
                y = self._compiled.step(x, out, given)
                if y is not None:
                    return y
            return self._step(x, None, out, given)
        finally:
            self._release()

    def step(
        self, x: Any, rows: Sequence[int] | Tensor | None = None, *, out: Any = None, **given: Any
    ) -> Any:
        """One step of some rows; the others stay as they are.

        Args:
            x: (n, I), a row for each of n; as a call takes it.
            rows: their numbers, in the order of x, or a bool mask; None: all rows.
            out, given: as a call takes them.

        Returns:
            The outputs of these rows, in their order.
        """
        if rows is None:
            return self(x, out=out, **given)
        with self._lock:
            numbers = row_numbers(rows, self.batch)
            if self._compiled is not None:
                y = self._compiled.step(x, out, given, numbers)
                if y is not None:
                    return y
            return self._step(x, numbers, out, given)

    def _step(self, x: Any, rows: Any, out: Any, given: dict[str, Any]) -> Any:
        """One step, layer by layer."""
        x = np.asarray(x) if isinstance(x, np.generic) else x
        if not self._proven:
            self._prove(x, self.batch if rows is None else len(rows), given)
        if self._compiled is None:
            assert self._layered is not None
            return self._layered.step(x, rows, out, given)
        layered = self._layered or LayerByLayer(self._frozen, self.batch)
        layered.states = self._states()
        y = layered.step(x, rows, out, given)
        self._layered = layered
        self._put(layered.states)
        return y

    @property
    def _model(self) -> nn.Module:
        """The model as it runs layer by layer."""
        if self._layered is None:
            self._layered = LayerByLayer(self._frozen, self.batch)
        return self._layered.model

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            kept = ("batch", "weights", "_source", "_frozen", "_proven", "_told")
            found = {n: getattr(self, n) for n in kept}
            return found | {"state": self.state}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.batch, self.weights, self._source = (state[n] for n in ("batch", "weights", "_source"))
        self._make_lock()
        self._proven = state["_proven"]
        self._open(state["_frozen"], self.batch, list(state["state"]))
        self._learn(state["_told"])

    def __repr__(self) -> str:
        weights = "" if self.weights is None else f", weights={self.weights}"
        return f"Stream({self._source!r}, batch={self.batch}{weights})"


def _checked_batch(batch: Any) -> int:
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise OptionError(f"batch must be a positive integer, got {batch!r}")
    return batch


def _as_many(states: list[States], old: list[States]) -> list[States]:
    """The states, and of layers that are gone the old ones, so that it is told."""
    return [*states, *old[len(states) :]]
