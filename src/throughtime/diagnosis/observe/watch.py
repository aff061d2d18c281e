"""What one training step gave its recurrent layers, and a few rows of it, ready to be run again."""

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
from throughtime.diagnosis.observe.alignment import alike
from throughtime.diagnosis.observe.observe import arguments, tensors
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
        layer: ours in its place, over the very same weights.
        x: as it was given.
        state: likewise; None where it was left out.
        given: what else the call was given.
        outputs: (T, B, O) or packed, in the user's layout.
        d_outputs: of the loss by the outputs, once its gradient came back.
        final: the form of the final state.
        d_final: of the loss by each tensor of the final state, in order.
    """

    name: str
    layer: SequenceLayer
    x: Any
    state: Any
    given: dict[str, Any]
    outputs: Any
    final: Any
    d_outputs: Tensor | None = None
    d_final: dict[int, Tensor] = field(default_factory=dict)


class Watch:
    """Hooks on every recurrent module of a model, which remember the calls of one training step.

    They keep no graph alive, compute nothing, and do nothing where no gradient is recorded.

    Args:
        model: whose modules are watched.

    Raises:
        OptionError: it has no recurrent layer that can be watched.
    """

    def __init__(self, model: nn.Module) -> None:
        self.calls: list[WatchedCall] = []
        found = {name: ours for name, m in model.named_modules() if (ours := _ours(m)) is not None}
        if not found:
            raise OptionError(
                "the model has no recurrent layer of torch.nn or throughtime to watch, and cells "
                "that a loop steps are not watched; leave the watch out, and look at the model "
                "with throughtime.diagnose"
            )
        modules = dict(model.named_modules())
        self._handles = [self._hook(name, modules[name], found[name]) for name in found]

    def _hook(self, name: str, module: nn.Module, ours: SequenceLayer) -> RemovableHandle:
        def seen(_: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            if torch.is_grad_enabled():
                self.calls.append(_remembered(name, ours, args, kwargs, out))

        return module.register_forward_hook(seen, with_kwargs=True)

    def clear(self) -> None:
        """Forget the calls."""
        self.calls.clear()

    def close(self) -> None:
        """Take the hooks away."""
        self.clear()
        for handle in self._handles:
            handle.remove()


def _ours(module: nn.Module) -> SequenceLayer | None:
    """A recurrent module as our layer; torch's keep their weights, which ours then shares."""
    if isinstance(module, nn.RNNBase) and not isinstance(module, SequenceLayer):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of hooks, which the layer made here never runs
            module = from_torch(module, in_place=True)
    return module if isinstance(module, SequenceLayer) else None


def _remembered(name: str, ours: SequenceLayer, args: Any, kwargs: Any, out: Any) -> WatchedCall:
    x, state, given = arguments(args, kwargs)
    y, final = (
        out if isinstance(out, tuple) and not isinstance(out, PackedSequence) else (out, None)
    )
    call = WatchedCall(
        name, ours, _detached(x), _detached(state), given, _detached(y), _detached(final)
    )
    data = y.data if isinstance(y, PackedSequence) else y
    if data.requires_grad:
        data.register_hook(lambda d: setattr(call, "d_outputs", d))
    for place, v in enumerate(tensors(final)):
        if v.requires_grad:
            v.register_hook(partial(_keep_final, call, place))
    return call


def _keep_final(call: WatchedCall, place: int, d: Tensor | None) -> None:
    if d is not None:  # torch calls with nothing where a neighbour alone has a gradient
        call.d_final[place] = d


def _detached(value: Any) -> Any:
    """Tensors in tuples and packed sequences, apart from their graph."""
    if isinstance(value, PackedSequence):
        return value._replace(data=value.data.detach())
    if isinstance(value, Tensor):
        return value.detach()
    return tuple(_detached(v) for v in value) if isinstance(value, tuple | list) else value


ROWS = 8
"""How many rows of a training batch are looked at."""


@dataclass(frozen=True)
class WatchedRows:
    """A few whole sequences of one call, time-major.

    Attributes:
        batch: what the layer read.
        d_outputs: (T, B, O), of the loss by the outputs; None where it does not read them.
        d_final: of the loss by the final states; None where it does not read them.
    """

    batch: Batch
    d_outputs: Tensor | None
    d_final: States | None


def rows_of(call: WatchedCall, rows: int | None = ROWS) -> WatchedRows:
    """The first whole sequences of a call, at most so many; all rows for None.

    Of ragged batches the rows that are longest. What autocast rounded is in the weights' dtype.

    Raises:
        OptionError: the call has resets, or the layer is dilated.
        ShapeError: it has no rows or no steps.
    """
    batch, border = _entered(call, call.state)
    if batch.reset is not None or max(call.layer.dilations, default=1) > 1:
        raise OptionError(
            f"gradients by lag are measured without resets and dilation, which layer "
            f"{call.name or 'of the model'} has"
        )
    d_y, d_final = call.d_outputs, _entered_final(call)
    if batch.batch_sizes is not None:
        alive = packed_mask(batch.batch_sizes.to(batch.x.device))
        d_y = None if d_y is None else unpack(d_y, alive)
        batch = batch._replace(x=unpack(batch.x, alive), lengths=alive.sum(0), batch_sizes=None)
    elif d_y is not None:
        d_y = _time_major(d_y, call.layer.batch_first)
        if border.back is not None:  # rows that begin late were moved to step 0
            flat = d_y.flatten(0, 1)
            d_y = torch.zeros_like(flat).index_copy(0, border.back, flat).view_as(d_y)
    kept = _longest(batch)[:rows]
    T = batch.x.shape[0] if batch.lengths is None else int(batch.lengths[kept].max())
    inputs = batch.inputs and {n: v[:T, kept] for n, v in batch.inputs.items()}
    few = Batch(batch.x[:T, kept], _rows(batch.state, kept), inputs=inputs)
    return WatchedRows(few, None if d_y is None else d_y[:T, kept].to(few.x), _rows(d_final, kept))


def _entered(call: WatchedCall, state: Any) -> tuple[Batch, Border]:
    """The batch in the layer's own layout and its weights' dtype, and the way back."""
    weight = next(call.layer.parameters(), None)
    x, given = call.x, call.given
    data = x.data if isinstance(x, PackedSequence) else x
    if not data.numel():
        raise ShapeError(
            f"layer {call.name or 'of the model'} is given no steps or rows, x of "
            f"{tuple(data.shape)}"
        )
    if weight is not None and weight.dtype != data.dtype:
        x, state, given = _cast((x, state, given), weight.dtype)
    return call.layer.enter(x, state, **given)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Tensors of real numbers in tuples, dicts and packed sequences, in another dtype."""
    if isinstance(value, PackedSequence):
        return value._replace(data=value.data.to(dtype))
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {n: _cast(v, dtype) for n, v in value.items()}
    return tuple(_cast(v, dtype) for v in value) if isinstance(value, tuple | list) else value


def _entered_final(call: WatchedCall) -> States | None:
    """The gradient by the final states in the layer's own layout."""
    if not call.d_final:
        return None
    found = (call.d_final.get(i, torch.zeros_like(v)) for i, v in enumerate(tensors(call.final)))
    return _entered(call, alike(call.final, found))[0].state


def _time_major(d: Tensor, batch_first: bool) -> Tensor:
    if d.dim() == 2:
        return d.unsqueeze(1)
    return d.transpose(0, 1) if batch_first else d


def _longest(batch: Batch) -> Tensor:
    """The numbers of the rows that have as many steps as any."""
    if batch.lengths is None:
        return torch.arange(batch.x.shape[1], device=batch.x.device)
    return torch.nonzero(batch.lengths == batch.lengths.max()).flatten()


def _rows(states: States | None, kept: Tensor) -> States | None:
    return states and tuple(tuple(v[:, kept].detach() for v in s) for s in states)
