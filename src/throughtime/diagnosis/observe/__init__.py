"""A model's recurrent modules observed: run in another way, or watched in a training step.

`observe_modules` runs what is given in place of each call; `Watch` records the calls as they are,
and `choose_rows` takes a few rows of one to run again.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from throughtime.backends.call import Result, packed_mask, unpack
from throughtime.diagnosis.observe.calls import State
from throughtime.diagnosis.observe.steps import pad_packed, restructure
from throughtime.errors import OptionError, ShapeError
from throughtime.layers import Recurrent, SequenceLayer
from throughtime.layers.batch import Batch, Border, States, list_tensors, map_tensors
from throughtime.layers.drop_in.cells import DropInCell
from throughtime.layers.drop_in.checks import check_cell_dimensions, check_cell_sizes
from throughtime.layers.drop_in.convert import from_torch

Key = tuple[str, int, int]
"""Name of a module, number of a layer in it, and direction: 0 forward, 1 backward."""


@dataclass(frozen=True)
class LayerDirection:
    """One layer and direction of a model; what is measured of one extends it.

    Attributes:
        name: the module's name in the model; empty when it is the model.
        layer: number of the layer in the module.
        direction: 0 forward; 1 backward, whose last step is the first of the sequence.
    """

    name: str
    layer: int
    direction: int

    @property
    def key(self) -> Key:
        """Its name, layer and direction, by which measurements of one are found."""
        return self.name, self.layer, self.direction


def locate(name: str, layer: int, direction: int = 0) -> str:
    """A layer and direction in words."""
    return f"layer {layer}{f' of {name}' if name else ''}{', backward' if direction else ''}"


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch computes on one thread; afterwards on as many as before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


Carry = Callable[[str, SequenceLayer, Batch], tuple[Tensor, list[Result]]]
"""Module's name, layer and batch -> outputs and each layer's result, as `Passage.carry`."""


@contextmanager
def observe_modules(
    modules: Mapping[str, tuple[nn.Module, SequenceLayer]], carry: Carry
) -> Iterator[None]:
    """Inside, every call of these modules runs `carry`.

    Args:
        modules: name -> a layer or cell, and that layer or the cell's layer.
        carry: called instead of the layer's `carry` or the cell's step.
    """
    with ExitStack() as inside:
        for name, (module, layer) in modules.items():
            carried = partial(carry, name, layer)
            if isinstance(module, DropInCell):
                inside.enter_context(module.observe(partial(_step, module, carried)))
            else:
                assert isinstance(module, SequenceLayer)
                inside.enter_context(module.observe(carried))
        yield


def as_layer(module: nn.Module) -> SequenceLayer:
    """A layer of a cell's equations and weights; a layer itself."""
    if isinstance(module, SequenceLayer):
        return module
    assert isinstance(module, DropInCell)
    layer = Recurrent(
        module.cell, module.input_size, module.hidden_size, bias=module.bias, device="meta"
    )
    for short, name in layer.weight_names(0, 0).items():
        if isinstance(weight := module._parameters.get(short), nn.Parameter):
            layer._parameters[name] = weight
        else:  # a parametrised one is computed at each call
            del layer._parameters[name]
    vars(layer)["weights"] = lambda *_: module.weights()
    return layer.train(module.training)


def _step(
    cell: DropInCell, carry: Callable[[Batch], tuple[Tensor, list[Result]]], input: Tensor,
    state: State | None,
) -> State:  # fmt: skip
    """`DropInCell._step` through a layer of one step."""
    check_cell_dimensions(cell, input, state)
    single = input.dim() == 1
    x = input.unsqueeze(0) if single else input
    if state is not None:
        state = tuple(v.unsqueeze(0) for v in state) if single else state
    zeros = tuple(x.new_zeros(x.shape[0], cell.hidden_size) for _ in cell.cell.state_names)
    check_cell_sizes(cell, x, zeros if state is None else state)
    start = None if state is None else (tuple(v.unsqueeze(0) for v in state),)
    (result,) = carry(Batch(x.unsqueeze(0), start))[1]
    return tuple(v[0, 0] if single else v[0] for v in result.final)


def read_arguments(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, Any, dict[str, Any]]:
    """x, state and the other arguments of a call, whatever their names in its layer."""
    others = ("x", "input", "state", "hx", "gradient_norms")
    options = {k: v for k, v in kwargs.items() if k not in others}
    x = args[0] if args else kwargs.get("x", kwargs.get("input"))
    state = args[1] if len(args) > 1 else kwargs.get("state", kwargs.get("hx"))
    return x, state, options


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

    @property
    def words(self) -> str:
        """The module in a sentence."""
        return self.name or "the model"

    def time_major(self, value: Any) -> Tensor:
        """(T, B, width) of its x, its outputs or a gradient by them, in the user's layout."""
        v: Tensor = value.data if isinstance(value, PackedSequence) else value
        if isinstance(self.x, PackedSequence):
            return unpack(v, packed_mask(self.x.batch_sizes.to(v.device)))
        if v.dim() < 3:
            return v.unsqueeze(1)
        return v.transpose(0, 1) if self.layer.batch_first else v


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
    x, state, seen, last = map_tensors((x, state, y, final), Tensor.detach)
    call = WatchedCall(name, ours, x, state, options, seen, last)
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
    d_final = _read_final_gradient(call)
    d_y = None if call.d_outputs is None else call.time_major(call.d_outputs)
    batch = pad_packed(batch)
    if d_y is not None and border.back is not None:  # rows that begin late were moved to step 0
        flat = d_y.flatten(0, 1)
        d_y = torch.zeros_like(flat).index_copy(0, border.back, flat).view_as(d_y)
    chosen = _find_longest(batch)[:rows]
    T = batch.x.shape[0] if batch.lengths is None else int(batch.lengths[chosen].max())
    inputs = batch.inputs and {n: v[:T, chosen] for n, v in batch.inputs.items()}
    state, d_final = map_tensors((batch.state, d_final), lambda v: v[:, chosen].detach())
    few = Batch(batch.x[:T, chosen], state, inputs=inputs)
    return WatchedRows(few, None if d_y is None else d_y[:T, chosen].to(few.x), d_final)


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
        dtype = weight.dtype
        x, state, options = map_tensors(
            (x, state, options), lambda v: v.to(dtype) if v.is_floating_point() else v
        )
    return call.layer.enter(x, state, **options)


def _read_final_gradient(call: WatchedCall) -> States | None:
    """The gradient by the final states in the layer's layout."""
    if not call.d_final:
        return None
    gradients = (
        call.d_final.get(i, torch.zeros_like(v)) for i, v in enumerate(list_tensors(call.final))
    )
    return _make_batch(call, restructure(call.final, gradients))[0].state


def _find_longest(batch: Batch) -> Tensor:
    """The numbers of the rows with the most steps."""
    if batch.lengths is None:
        return torch.arange(batch.x.shape[1], device=batch.x.device)
    return torch.nonzero(batch.lengths == batch.lengths.max()).flatten()
