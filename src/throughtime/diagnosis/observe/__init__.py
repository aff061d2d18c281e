"""A model under examination: inputs, outputs and incoming gradients of its recurrent modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.backends.call import Result
from throughtime.diagnosis.observe.calls import State
from throughtime.layers.batch import Batch
from throughtime.layers.drop_in.cells import DropInCell
from throughtime.layers.drop_in.checks import check_cell_dimensions, check_cell_sizes
from throughtime.layers.recurrent import Recurrent, SequenceLayer


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


def list_tensors(value: Any) -> list[Tensor]:
    """All tensors in a tuple of tuples, in order."""
    if isinstance(value, Tensor):
        return [value]
    return [] if value is None else [v for part in value for v in list_tensors(part)]


Key = tuple[str, int, int]
"""Name of a module, number of a layer in it, and direction: 0 forward, 1 backward."""


def key_of(part: Any) -> Key:
    """The key of what is measured of one layer and direction."""
    return part.name, part.layer, part.direction


def locate(name: str, layer: int, direction: int = 0) -> str:
    """A layer and direction in words."""
    return f"layer {layer}{f' of {name}' if name else ''}{', backward' if direction else ''}"
