"""One step at a time with carried state, for a layer or a model of such layers."""

from __future__ import annotations

from collections.abc import Sequence
from threading import RLock
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from throughtime.backends.cpu.stream.memory import Array
from throughtime.backends.cpu.stream.stream import CompiledStream
from throughtime.errors import ShapeError
from throughtime.layers.batch import States
from throughtime.layers.checks import check_size, check_state
from throughtime.layers.layer import Passage
from throughtime.layers.stream.frozen import Frozen, freeze
from throughtime.layers.stream.layers import LayerByLayer, make_sequence, replace_rows
from throughtime.layers.stream.probe import StepForm, probe


class Stream:
    """A model that takes one time step a call and carries its state.

    The weights are those of the moment it was made (or of the last `refresh()`), in eval mode,
    without gradient; streams of one model share them. Layers with backend "auto" run on compiled
    code where it takes them, else on the reference; step by step, both have the bits of their
    whole sequence. A plain stack of compiled layers, linear parts and functions of single rows
    takes a step in one call; `explain()` reports whether, or why not. Threads that step the same
    stream wait for each other.

    Args:
        model: a layer of this package, or a module built of them and of parts that compute each
            time step alone (such as a linear readout).
        batch: B, rows that run side by side; `rows` changes it.
        weights: torch.bfloat16: the matrices of a float32 model are rounded to bfloat16, and
            compiled steps read half the bytes; sums, biases and states stay float32. None:
            unchanged.

    Raises:
        OptionError: a layer is bidirectional or dilated, so it cannot go step by step; the state
            of a part could not be carried; a part computes across steps; or weights cannot be
            rounded.
    """

    def __init__(
        self, model: nn.Module, batch: int = 1, weights: torch.dtype | None = None
    ) -> None:
        check_size("batch", batch)
        self.batch, self.weights = batch, weights
        self._make_lock()
        self._source = model
        self._form: StepForm | None = None
        self._open(freeze(model, weights), batch)
        self._tried = self._try()

    def _make_lock(self) -> None:
        """Make the lock that threads wait for."""
        self._lock = RLock()
        self._acquire, self._release = self._lock.acquire, self._lock.release

    def _open(self, frozen: Frozen, batch: int, states: list[States] | None = None) -> None:
        """Continue with this model and `batch` rows, from states or from the initial ones."""
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

    def _try(self) -> bool:
        """Compare random steps with the whole sequence; returns whether the model took them."""
        if self._compiled is not None or self._layered is None:
            return True
        if len(self._frozen.layers) == 1 and self._frozen.model is self._frozen.layers[0]:
            return True
        return self._set_form(probe(self._frozen, self.batch))

    def _try_like(self, x: Any, batch: int, options: dict[str, Any]) -> None:
        """The same, on random steps like the first x."""
        if self._layered is not None and not options:
            border = batch, self._layered.steps[0].device, self._layered.time
            self._set_form(probe(self._frozen, batch, make_sequence("x", x, *border)))
        self._tried = True

    def _set_form(self, form: StepForm | None) -> bool:
        """Set what random steps have shown of the model's inputs and outputs; None: nothing."""
        self._form = form
        if form is not None and self._layered is not None:
            self._layered.timed, self._layered.tokens = form
        return form is not None

    def refresh(self) -> None:
        """Take the model's present weights; the state stays, in the weights' dtype.

        If the state no longer fits the model, it raises, and the stream stays as it was.
        """
        with self._lock:
            frozen = freeze(self._source, self.weights)
            likes = [layer.initial_state(1)[0][0] for layer in frozen.layers]
            old = self._states()
            moved = [
                tuple(tuple(v.to(like) for v in s) for s in state)
                for state, like in zip(old, likes, strict=False)
            ]
            # The states of layers that are gone are checked too, and raise.
            states = _check_states(frozen.layers, [*moved, *old[len(moved) :]], self.batch)
            self._open(frozen, self.batch, states)
            self._tried = self._try()

    def _states(self, rows: Any = slice(None)) -> list[States]:
        """Copies of the layers' states."""
        if self._compiled is None:
            assert self._layered is not None
            return [
                tuple(tuple(v[:, rows].clone() for v in s) for s in state)
                for state in self._layered.states
            ]
        states = iter(self._compiled.read(rows))
        return [tuple(next(states) for _ in layer.hidden_sizes) for layer in self._frozen.layers]

    def _put(self, states: Sequence[States], rows: Any = None) -> None:
        """Set the states of all rows or of some."""
        if self._compiled is not None:
            flat = [s for state in states for s in state]
            self._compiled.write(flat, slice(None) if rows is None else rows)
        else:
            assert self._layered is not None
            old = self._layered.states
            self._layered.states = [
                replace_rows(was, rows, state) for was, state in zip(old, states, strict=True)
            ]

    def explain(self) -> str:
        """Whether a step is one call of compiled code, and why not."""
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
            self._put(_check_states(self._frozen.layers, state, self.batch))

    def save(self, row: int) -> tuple[States, ...]:
        """A copy of one row's state, as the state of a stream of one row."""
        with self._lock:
            row = _check_row(row, self.batch)
            return tuple(self._states(slice(row, row + 1)))

    def load(self, row: int, state: tuple[States, ...]) -> None:
        """Set one row's state to one from `save`; other rows stay as they are."""
        with self._lock:
            row = _check_row(row, self.batch)
            self._put(_check_states(self._frozen.layers, state, 1), [row])

    def rows(self, batch: int) -> Stream:
        """Continue with `batch` rows: the last leave, or new ones begin after the present ones.

        Returns:
            The stream itself.
        """
        with self._lock:
            check_size("batch", batch)
            return self._regroup(list(range(min(batch, self.batch))), batch)

    def keep(self, rows: Sequence[int] | Tensor) -> Stream:
        """Continue with these rows alone, in this order, by number or as a bool mask.

        Returns:
            The stream itself.
        """
        with self._lock:
            numbers = _number_rows(rows, self.batch).tolist()
            check_size("batch", len(numbers))
            return self._regroup(numbers, len(numbers))

    def _regroup(self, rows: list[int], batch: int) -> Stream:
        """Continue with these rows, and new ones after them, `batch` in all."""
        first = [layer.initial_state(batch) for layer in self._frozen.layers]
        if self._compiled is not None:
            flat = [s for state in first for s in state]
            self._compiled = self._compiled.resized(rows, flat)
            self.batch, self._layered = batch, None
            return self
        old = self._states(rows)
        first_rows = slice(0, len(rows))
        states = [replace_rows(a, first_rows, b) for a, b in zip(first, old, strict=True)]
        self._open(self._frozen, batch, states)
        self._set_form(self._form)
        return self

    def reset(self, rows: Sequence[int] | Tensor | None = None) -> None:
        """Reset all rows, or some by number or as a bool mask, to their initial state."""
        with self._lock:
            layers = self._frozen.layers
            if rows is None:
                self._put([layer.initial_state(self.batch) for layer in layers])
                return
            chosen = _mask_rows(rows, self.batch).nonzero().reshape(-1).numpy()
            if len(chosen):
                self._put([layer.initial_state(len(chosen)) for layer in layers], chosen)

    def __call__(self, x: Any, *, out: Any = None, **options: Any) -> Any:
        """One step.

        Args:
            x: (B, I), with batch 1 also (I,); for a model that begins with an embedding (B,), whole
                numbers; a tensor or a NumPy array.
            out: written with the result, of its kind, shape and dtype; left out, a new one is made.
            options: the model's other arguments: for a layer whose cell reads direct inputs,
                `inputs`, a mapping of tensors or arrays as x.

        Returns:
            The model's output for this step, (B, O) or (O,), of x's kind; or `out`. A model with
            several tensors returns these in their tuple, list or mapping, without the layers'
            states.

        Raises:
            TypeError, ShapeError: x or `out` does not fit; then no step was taken.
        """
        self._acquire()  # a third of what a with statement costs
        try:
            if self._compiled is not None:
                y = self._compiled.step(x, out, options)
                if y is not None:
                    return y
            return self._step(x, None, out, options)
        finally:
            self._release()

    def step(
        self, x: Any, rows: Sequence[int] | Tensor | None = None, *, out: Any = None, **options: Any
    ) -> Any:
        """One step of some rows; the others stay as they are.

        Args:
            x: (n, I), a row for each of n; as a call takes it.
            rows: their numbers, in the order of x, or a bool mask; None: all rows.
            out, options: as a call takes them.

        Returns:
            The outputs of these rows, in their order.
        """
        if rows is None:
            return self(x, out=out, **options)
        with self._lock:
            numbers = _number_rows(rows, self.batch)
            if self._compiled is not None:
                y = self._compiled.step(x, out, options, numbers)
                if y is not None:
                    return y
            return self._step(x, numbers, out, options)

    def _step(self, x: Any, rows: Any, out: Any, options: dict[str, Any]) -> Any:
        """One step, layer by layer."""
        x = np.asarray(x) if isinstance(x, np.generic) else x
        if not self._tried:
            self._try_like(x, self.batch if rows is None else len(rows), options)
        if self._compiled is None:
            assert self._layered is not None
            return self._layered.step(x, rows, out, options)
        layered = self._layered or LayerByLayer(self._frozen, self.batch)
        layered.states = self._states()
        y = layered.step(x, rows, out, options)
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
            names = ("batch", "weights", "_source", "_frozen", "_tried", "_form")
            attributes = {n: getattr(self, n) for n in names}
            return attributes | {"state": self.state}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.batch, self.weights, self._source = (state[n] for n in ("batch", "weights", "_source"))
        self._make_lock()
        self._tried = state["_tried"]
        self._open(state["_frozen"], self.batch, list(state["state"]))
        self._set_form(state["_form"])

    def __repr__(self) -> str:
        weights = "" if self.weights is None else f", weights={self.weights}"
        return f"Stream({self._source!r}, batch={self.batch}{weights})"


def _number_rows(rows: Any, batch: int) -> Array:
    """Rows by number or as a bool mask, each at most once, as numbers in their order."""
    try:
        chosen = np.asarray(rows)
    except ValueError as error:  # lists of several lengths
        raise TypeError(f"rows must be numbers of rows or a bool mask, got {rows!r}") from error
    if chosen.dtype.kind in "iu" and chosen.ndim == 1:
        numbers = chosen.astype(np.int64, copy=False)
        taken = np.zeros(batch, bool)
        if not len(numbers) or (numbers.min() >= 0 and numbers.max() < batch):
            taken[numbers] = True
            if np.count_nonzero(taken) == len(numbers):
                return numbers
            firsts = np.unique(numbers, return_index=True)[1]
            wrong = np.delete(numbers, firsts)[0]
            raise ShapeError(f"rows must differ, got {wrong} twice")
    return _mask_rows(rows, batch).nonzero().reshape(-1).numpy()


def _mask_rows(rows: Any, batch: int) -> Tensor:
    """Rows by number or as a bool mask, as a bool mask (B,)."""
    try:
        numbers = torch.as_tensor(rows, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:  # words
        raise TypeError(f"rows must be numbers of rows or a bool mask, got {rows!r}") from error
    if numbers.dtype == torch.bool:
        if numbers.shape != (batch,):
            raise ShapeError(f"rows as a bool mask must be ({batch},), got {tuple(numbers.shape)}")
        return numbers
    numbers = numbers.to(torch.int64) if numbers.numel() == 0 else numbers
    if numbers.is_floating_point() or numbers.is_complex():
        raise TypeError(f"rows must be numbers of rows or a bool mask, got {numbers.dtype}")
    wrong = numbers[(numbers < 0) | (numbers >= batch)]
    if wrong.numel():
        raise ShapeError(f"rows must be from 0 to {batch - 1}, got {int(wrong[0])}")
    mask = torch.zeros(batch, dtype=torch.bool, device="cpu")
    return mask.index_fill_(0, numbers.reshape(-1).long(), True)


def _check_row(row: Any, batch: int) -> int:
    if isinstance(row, bool) or not isinstance(row, int | np.integer):
        raise TypeError(f"row must be the number of a row, got {row!r}")
    if not 0 <= row < batch:
        raise ShapeError(f"row must be from 0 to {batch - 1}, got {row}")
    return int(row)


def _check_states(layers: list[Passage], state: Any, rows: int) -> list[States]:
    """Copies of states that the layers can continue from.

    Raises:
        ShapeError, TypeError: the state of a layer does not fit.
    """
    if not isinstance(state, tuple | list) or len(state) != len(layers):
        got = len(state) if isinstance(state, tuple | list) else type(state).__name__
        raise ShapeError(
            f"state must hold one entry for each of {len(layers)} recurrent layers, got {got}"
        )
    copies = []
    for layer, value in zip(layers, state, strict=True):
        states = check_state(layer, value, rows, True)
        if states is None:
            raise ShapeError("the state of a layer of this stream must be its tensors, got None")
        copies.append(tuple(tuple(v.detach().clone() for v in s) for s in states))
    return copies
