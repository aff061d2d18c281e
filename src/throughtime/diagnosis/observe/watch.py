"""The recorded calls of recurrent layers in one training step, and a few rows to run again."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from throughtime.backends.call import packed_mask, unpack
from throughtime.diagnosis.observe import list_tensors, read_arguments
from throughtime.diagnosis.observe.steps import restructure
from throughtime.errors import OptionError, ShapeError
from throughtime.layers.batch import Batch, States
from throughtime.layers.border import Border
from throughtime.layers.drop_in.convert import from_torch
from throughtime.layers.recurrent import SequenceLayer


@dataclass
class WatchedCall:
    """One call of a recurrent module in a training step; its tensors are detached.

    Attributes:
        name: the module's name in the model.
        layer: this package's layer for it, with the same weights.
        x: of the call.
        state: likewise; None where it was left out.
        options: the call's other arguments.
        outputs: (T, B, O) or packed, in the user's layout.
        d_outputs: of the loss by the outputs, after the backward pass.
        final: the form of the final state.
        d_final: of the loss by each tensor of the final state, in order.
    """

    name: str
    layer: SequenceLayer
    x: Any
    state: Any
    options: dict[str, Any]
    outputs: Any
    final: Any
    d_outputs: Tensor | None = None
    d_final: dict[int, Tensor] = field(default_factory=dict)


class Watch:
    """Hooks on every recurrent module of a model that record the calls of one training step.

    They keep no graph alive, compute nothing, and do nothing without gradients.

    Args:
        model: whose modules are watched.

    Raises:
        OptionError: it has no recurrent layer that can be watched.
    """

    def __init__(self, model: nn.Module) -> None:
        self.calls: list[WatchedCall] = []
        named = ((name, _as_watched_layer(m)) for name, m in model.named_modules())
        layers = {name: layer for name, layer in named if layer is not None}
        if not layers:
            raise OptionError(
                "the model has no recurrent layer of torch.nn or throughtime to watch, and cells "
                "that a loop steps are not watched; leave the watch out, and look at the model "
                "with throughtime.diagnose"
            )
        modules = dict(model.named_modules())
        self._handles = [self._hook(name, modules[name], layers[name]) for name in layers]

    def _hook(self, name: str, module: nn.Module, ours: SequenceLayer) -> RemovableHandle:
        def record(_: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            if torch.is_grad_enabled():
                self.calls.append(_record(name, ours, args, kwargs, out))

        return module.register_forward_hook(record, with_kwargs=True)

    def clear(self) -> None:
        """Forget the calls."""
        self.calls.clear()

    def close(self) -> None:
        """Remove the hooks."""
        self.clear()
        for handle in self._handles:
            handle.remove()


def _as_watched_layer(module: nn.Module) -> SequenceLayer | None:
    """A recurrent module as this package's layer, which shares the weights of torch's."""
    if isinstance(module, nn.RNNBase) and not isinstance(module, SequenceLayer):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of hooks, which this layer never runs
            module = from_torch(module, in_place=True)
    return module if isinstance(module, SequenceLayer) else None


def _record(name: str, ours: SequenceLayer, args: Any, kwargs: Any, out: Any) -> WatchedCall:
    x, state, options = read_arguments(args, kwargs)
    y, final = (
        out if isinstance(out, tuple) and not isinstance(out, PackedSequence) else (out, None)
    )
    call = WatchedCall(name, ours, _detach(x), _detach(state), options, _detach(y), _detach(final))
    data = y.data if isinstance(y, PackedSequence) else y
    if data.requires_grad:
        data.register_hook(lambda d: setattr(call, "d_outputs", d))
    for place, v in enumerate(list_tensors(final)):
        if v.requires_grad:
            v.register_hook(partial(_record_final, call, place))
    return call


def _record_final(call: WatchedCall, place: int, d: Tensor | None) -> None:
    if d is not None:  # torch passes None where only another tensor has a gradient
        call.d_final[place] = d


def _detach(value: Any) -> Any:
    """Tensors in tuples and packed sequences, detached."""
    if isinstance(value, PackedSequence):
        return value._replace(data=value.data.detach())
    if isinstance(value, Tensor):
        return value.detach()
    return tuple(_detach(v) for v in value) if isinstance(value, tuple | list) else value


ROWS = 8
"""How many rows of a training batch are measured."""


@dataclass(frozen=True)
class WatchedRows:
    """A few whole sequences of one call, time-major.

    Attributes:
        batch: the layer's input.
        d_outputs: (T, B, O), of the loss by the outputs; None where it does not use them.
        d_final: of the loss by the final states; None where it does not use them.
    """

    batch: Batch
    d_outputs: Tensor | None
    d_final: States | None


def choose_rows(call: WatchedCall, rows: int | None = ROWS) -> WatchedRows:
    """The first whole sequences of a call, at most `rows`; None: all.

    Of ragged batches, the longest rows. Values that autocast rounded are in the weights' dtype.

    Raises:
        OptionError: the call has resets, or the layer is dilated.
        ShapeError: it has no rows or no steps.
    """
    batch, border = _make_batch(call, call.state)
    if batch.reset is not None or max(call.layer.dilations, default=1) > 1:
        raise OptionError(
            f"gradients by lag are measured without resets and dilation, which layer "
            f"{call.name or 'of the model'} has"
        )
    d_y, d_final = call.d_outputs, _read_final_gradient(call)
    if batch.batch_sizes is not None:
        alive = packed_mask(batch.batch_sizes.to(batch.x.device))
        d_y = None if d_y is None else unpack(d_y, alive)
        batch = batch._replace(x=unpack(batch.x, alive), lengths=alive.sum(0), batch_sizes=None)
    elif d_y is not None:
        d_y = _make_time_major(d_y, call.layer.batch_first)
        if border.back is not None:  # rows that begin late were moved to step 0
            flat = d_y.flatten(0, 1)
            d_y = torch.zeros_like(flat).index_copy(0, border.back, flat).view_as(d_y)
    chosen = _find_longest(batch)[:rows]
    T = batch.x.shape[0] if batch.lengths is None else int(batch.lengths[chosen].max())
    inputs = batch.inputs and {n: v[:T, chosen] for n, v in batch.inputs.items()}
    few = Batch(batch.x[:T, chosen], _take_rows(batch.state, chosen), inputs=inputs)
    return WatchedRows(
        few, None if d_y is None else d_y[:T, chosen].to(few.x), _take_rows(d_final, chosen)
    )


def _make_batch(call: WatchedCall, state: Any) -> tuple[Batch, Border]:
    """The batch in the layer's layout and its weights' dtype, and the way back."""
    weight = next(call.layer.parameters(), None)
    x, options = call.x, call.options
    data = x.data if isinstance(x, PackedSequence) else x
    if not data.numel():
        raise ShapeError(
            f"layer {call.name or 'of the model'} is given no steps or rows, x of "
            f"{tuple(data.shape)}"
        )
    if weight is not None and weight.dtype != data.dtype:
        x, state, options = _cast((x, state, options), weight.dtype)
    return call.layer.enter(x, state, **options)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Tensors of real numbers in tuples, dicts and packed sequences, in another dtype."""
    if isinstance(value, PackedSequence):
        return value._replace(data=value.data.to(dtype))
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {n: _cast(v, dtype) for n, v in value.items()}
    return tuple(_cast(v, dtype) for v in value) if isinstance(value, tuple | list) else value


def _read_final_gradient(call: WatchedCall) -> States | None:
    """The gradient by the final states in the layer's layout."""
    if not call.d_final:
        return None
    gradients = (
        call.d_final.get(i, torch.zeros_like(v)) for i, v in enumerate(list_tensors(call.final))
    )
    return _make_batch(call, restructure(call.final, gradients))[0].state


def _make_time_major(d: Tensor, batch_first: bool) -> Tensor:
    if d.dim() == 2:
        return d.unsqueeze(1)
    return d.transpose(0, 1) if batch_first else d


def _find_longest(batch: Batch) -> Tensor:
    """The numbers of the rows with the most steps."""
    if batch.lengths is None:
        return torch.arange(batch.x.shape[1], device=batch.x.device)
    return torch.nonzero(batch.lengths == batch.lengths.max()).flatten()


def _take_rows(states: States | None, rows: Tensor) -> States | None:
    return states and tuple(tuple(v[:, rows].detach() for v in s) for s in states)
