"""A model one step at a time, layer by layer, each part in one call; x and y as users have them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from throughtime.backends import choose
from throughtime.backends.cpu.stream.memory import Array
from throughtime.backends.cpu.stream.stack import Stack
from throughtime.backends.cpu.stream.stream import CompiledStream
from throughtime.errors import OptionError, ShapeError
from throughtime.layers.batch import Border, States, list_tensors, map_tensors
from throughtime.layers.layer import Passage
from throughtime.layers.stream.frozen import Frozen


@dataclass
class Now:
    """The step being taken.

    Attributes:
        rows: numbers of the rows that step; None for all.
        calls: how often the model has called the layer in this step.
        arrays: dtypes of the inputs that are NumPy arrays, for errors with NumPy's cure.
        states: those that the layer has returned in this step.
    """

    rows: Array | None = None
    calls: int = 0
    arrays: frozenset[torch.dtype] = frozenset()
    states: list[Tensor] = field(default_factory=list)


class Step(nn.Module):
    """A layer that carries its own state from call to call.

    Args:
        layer: the layer.
        batch: B.
        stack: the layer as one call of compiled code, or None.

    Attributes:
        layer: the layer; a model finds the layer's attributes here too.
        chooses: whether the layer's backend is "auto"; then compiled code runs where it takes the
            layer, else the reference: both give the bits of the whole sequence.
        compiled: whether compiled code takes the layer.
        names: of the layer's weights, which a model may set at each call.
        batch: B.
        now: the step being taken.
    """

    def __init__(self, layer: Any, batch: int, stack: Stack | None) -> None:
        super().__init__()
        self.layer = layer
        self.chooses = layer.backend == "auto"
        counts = range(len(layer.widths)) if self.chooses else ()
        calls = (layer._example(i, 1, batch) for i in counts)
        self.compiled = self.chooses and all(choose(call).name == "cpu" for call in calls)
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
        return self._state[0][0].device

    @property
    def state(self) -> States:
        """The state that the next step starts from."""
        return self._state if self._call is None else tuple(self._call.read())

    @state.setter
    def state(self, state: States) -> None:
        self._state = state
        if self._call is not None:
            self._call.write(state)

    def save(self) -> Any:
        """The state of the rows that step, for `restore`."""
        if self._call is None:
            return self._state
        return self._call.save(slice(None) if self.now.rows is None else self.now.rows)

    def restore(self, state: Any) -> None:
        """Set the state to one from `save`."""
        if self._call is None:
            self._state = state
        else:
            self._call.restore(state, slice(None) if self.now.rows is None else self.now.rows)

    def forward(self, x: Tensor, state: Any = None, **options: Any) -> Any:
        """One step, a sequence of one, from the state carried."""
        if state is not None or options.pop("hx", None) is not None:
            raise OptionError(
                "a stream carries the state of its layers, so a model must not give them one; "
                "set the stream's state instead"
            )
        self.now.calls += 1
        if self._call is not None and not options and type(x) is Tensor and x.dim() == 3:
            result = self._call_compiled(x, self._call)
            if result is not None:
                return result
        self._check_array("x", x)
        inputs = options.get("inputs")
        for name, v in inputs.items() if isinstance(inputs, Mapping) else ():
            self._check_array(f"input {name}", v)
        if self.chooses:
            rounded = torch.is_autocast_enabled("cpu")
            self.layer.backend = "cpu" if self.compiled and not rounded else "reference"
        batch, border = self.layer.enter(x, None, **options)
        whole = self.state
        y, results = self.layer.carry_call(batch._replace(state=_select_rows(whole, self.now.rows)))
        new = tuple(r.final for r in results)
        self.state = replace_rows(whole, self.now.rows, new)
        return self._leave(y, new, border)

    def _call_compiled(self, x: Tensor, call: CompiledStream) -> Any:
        """One call of compiled code, or None where it does not take x."""
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
        result = self.layer.leave(y, states, border)
        self.now.states = list(list_tensors(result[1]))
        return result

    def _check_array(self, name: str, v: Any) -> None:
        """Raise for an array of another precision, with the cure for arrays."""
        wanted, device = self._state[0][0].dtype, self._state[0][0].device.type
        if isinstance(v, Tensor) and v.dtype in self.now.arrays and v.dtype != wanted:
            if not torch.is_autocast_enabled(device):
                kind = str(wanted).removeprefix("torch.")
                cure = f"convert it with .astype(numpy.{kind})"
                if not hasattr(np, kind):
                    cure = f"give a tensor, since NumPy has no {kind}"
                raise TypeError(f"{name} must be {wanted} as the weights, got {v.dtype}; {cure}")

    def __getattr__(self, name: str) -> Any:
        modules = self.__dict__.get("_modules", {})
        if name in modules or "layer" not in modules:
            return super().__getattr__(name)
        return getattr(modules["layer"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("names", ()):
            self._state, self._call = self.state, None  # packed weights are the old ones
            setattr(self.layer, name, value)
        else:
            super().__setattr__(name, value)


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
            y = self._run(v, options, _is_flat(x, batch))
            if isinstance(x, np.ndarray):
                y = map_tensors(y, lambda v: v.cpu().numpy())
            return y if out is None else _write_out(out, y)
        except BaseException:
            for step, state in zip(self.steps, states, strict=True):
                step.restore(state)
            raise
        finally:
            for step in self.steps:
                step.now.rows = None

    def _make_sequences(self, x: Any, batch: int, options: dict[str, Any]) -> Tensor:
        """x as a sequence of one step; direct inputs likewise, in place."""
        arrays = _find_array_dtypes(x, options.get("inputs"))
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

        def is_state(value: Any) -> bool:
            tensors = list(list_tensors(value))
            return bool(tensors) and all(v.data_ptr() in places for v in tensors)

        outputs = tuple(v for v in y if not is_state(v))
        return (outputs or y)[0] if len(outputs) < 2 else outputs


def make_sequence(name: str, x: Any, batch: int, device: torch.device, time: int) -> Tensor:
    """A tensor or array (B, I), or of one row (I,), as a sequence of one step; or tokens (B,)."""
    if not isinstance(x, Tensor | np.ndarray):
        raise TypeError(f"{name} must be a tensor or a NumPy array, got {type(x).__name__}")
    v = x if isinstance(x, Tensor) else torch.from_numpy(x.copy()).to(device)
    if _are_tokens(v, batch):
        v = v if isinstance(x, Tensor) else v.long()  # embeddings take few of NumPy's dtypes
        return v.reshape(batch).unsqueeze(time)
    v = v.unsqueeze(0) if v.dim() == 1 and batch == 1 else v
    if v.dim() != 2 or v.shape[0] != batch:
        raise ShapeError(
            f"one step of this stream is ({batch}, I), one row for each of its batch, "
            f"got {tuple(x.shape)} for {name}"
        )
    return v.unsqueeze(time)


def _are_tokens(x: Tensor | Array, batch: int) -> bool:
    """Whether x holds one whole number for each row, which a model looks up."""
    if isinstance(x, Tensor):
        whole = not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)
    else:
        whole = x.dtype.kind in "iu"
    return whole and (x.shape == (batch,) or (batch == 1 and x.ndim == 0))


def _is_flat(x: Any, batch: int) -> bool:
    """Whether x is one row alone, without the dimension of rows."""
    if batch != 1 or not isinstance(x, Tensor | np.ndarray):
        return False
    return x.ndim == 0 or (x.ndim == 1 and not _are_tokens(x, 1))


def _find_array_dtypes(x: Any, inputs: Any) -> frozenset[torch.dtype]:
    """The dtypes of the inputs that are NumPy arrays."""
    values = [x, *(inputs.values() if isinstance(inputs, Mapping) else ())]
    kinds = {v.dtype for v in values if isinstance(v, np.ndarray)}
    return frozenset(torch.from_numpy(np.empty(0, kind)).dtype for kind in kinds)


def _write_out(out: Any, y: Any) -> Any:
    """`out` with the result in it; it must be of the result's kind, shape and dtype."""
    if type(out) is not type(y) or out.shape != y.shape or out.dtype != y.dtype:
        got = f"{tuple(out.shape)} {out.dtype}" if hasattr(out, "dtype") else ""
        raise ShapeError(
            f"out must be a {type(y).__name__} {tuple(y.shape)} {y.dtype} as the result is, "
            f"got a {type(out).__name__} {got}".rstrip()
        )
    out[...] = y
    return out


def _select_rows(state: States, rows: Any) -> States:
    """The state of some rows, or of all (None)."""
    if rows is None:
        return state
    return tuple(tuple(v[:, rows] for v in s) for s in state)


def replace_rows(state: States, rows: Any, new: States) -> States:
    if rows is None:
        return new
    states = tuple(tuple(v.clone() for v in s) for s in state)
    for s, part in zip(states, new, strict=True):
        for v, w in zip(s, part, strict=True):
            v[:, rows] = w
    return states
