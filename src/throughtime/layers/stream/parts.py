"""The parts of a model in order, for a compiled stream, or why it cannot be one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from throughtime.backends import cpu
from throughtime.backends.call import Call
from throughtime.backends.cpu.stream.memory import Array
from throughtime.backends.cpu.stream.part import LookupTable, Part, PartProduct, PartSum
from throughtime.cell.contract import activation_function
from throughtime.errors import ShapeError
from throughtime.layers.layer import Passage
from throughtime.layers.readout import Readout
from throughtime.layers.stream.chain import NoParts, PartChain, Parts, add_function
from throughtime.layers.stream.forward import follow


def make_sequence(name: str, x: Any, batch: int, device: torch.device, time: int) -> Tensor:
    """A tensor or array (B, I), or of one row (I,), as a sequence of one step; or tokens (B,)."""
    if not isinstance(x, Tensor | np.ndarray):
        raise TypeError(f"{name} must be a tensor or a NumPy array, got {type(x).__name__}")
    v = x if isinstance(x, Tensor) else torch.from_numpy(x.copy()).to(device)
    if are_tokens(v, batch):
        v = v if isinstance(x, Tensor) else v.long()  # embeddings take few of NumPy's dtypes
        return v.reshape(batch).unsqueeze(time)
    v = v.unsqueeze(0) if v.dim() == 1 and batch == 1 else v
    if v.dim() != 2 or v.shape[0] != batch:
        raise ShapeError(
            f"one step of this stream is ({batch}, I), one row for each of its batch, "
            f"got {tuple(x.shape)} for {name}"
        )
    return v.unsqueeze(time)


def are_tokens(x: Tensor | Array, batch: int) -> bool:
    """Whether x holds one whole number for each row, which a model looks up."""
    if isinstance(x, Tensor):
        whole = not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)
    else:
        whole = x.dtype.kind in "iu"
    return whole and (x.shape == (batch,) or (batch == 1 and x.ndim == 0))


def is_flat(x: Any, batch: int) -> bool:
    """Whether x is one row alone, without the dimension of rows."""
    if batch != 1 or not isinstance(x, Tensor | np.ndarray):
        return False
    return x.ndim == 0 or (x.ndim == 1 and not are_tokens(x, 1))


def list_tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for v in value:
            yield from list_tensors(v)
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from list_tensors(v)


def map_tensors(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same tuples, lists and mappings with each tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(v, change) for v in value))
    if isinstance(value, tuple | list):
        return type(value)(map_tensors(v, change) for v in value)
    if isinstance(value, Mapping):
        changed = {k: map_tensors(v, change) for k, v in value.items()}
        return changed if type(value) is dict else type(value)(changed)  # type: ignore[call-arg]
    return value


def find_array_dtypes(x: Any, inputs: Any) -> frozenset[torch.dtype]:
    """The dtypes of the inputs that are NumPy arrays."""
    values = [x, *(inputs.values() if isinstance(inputs, Mapping) else ())]
    kinds = {v.dtype for v in values if isinstance(v, np.ndarray)}
    return frozenset(torch.from_numpy(np.empty(0, kind)).dtype for kind in kinds)


def write_out(out: Any, y: Any) -> Any:
    """`out` with the result in it; it must be of the result's kind, shape and dtype."""
    if type(out) is not type(y) or out.shape != y.shape or out.dtype != y.dtype:
        got = f"{tuple(out.shape)} {out.dtype}" if hasattr(out, "dtype") else ""
        raise ShapeError(
            f"out must be a {type(y).__name__} {tuple(y.shape)} {y.dtype} as the result is, "
            f"got a {type(out).__name__} {got}".rstrip()
        )
    out[...] = y
    return out


def find_parts(model: nn.Module) -> tuple[Parts | str, bool]:
    """The parts of a frozen model, each with its sources, or why there are none.

    Returns:
        The parts or the reason, and whether a user's `forward` was traced: then they must be tried.
    """
    chain = PartChain(_find_first_width(model))
    try:
        add(chain, model)
        chain.end()
        if not isinstance(model, Passage) and any(_reads_inputs(p.part) for p in chain.parts):
            raise NoParts(f"a layer in a {type(model).__name__} reads direct inputs")
        if chain.layers != [m for m in model.modules() if isinstance(m, Passage)]:
            raise NoParts("the model calls its layers in another order, or not once each")
        return chain.parts, chain.traced
    except NoParts as reason:
        return str(reason), chain.traced


def _find_first_width(model: nn.Module) -> int | None:
    """The input width of the first part that has one; the parts before it keep the width."""
    for module in model.modules():
        if isinstance(module, Passage):
            return module.input_size
        if type(module) is nn.Linear:
            return module.in_features
        if type(module) is nn.Embedding:
            return None
    return None


def _reads_inputs(part: Part) -> bool:
    return isinstance(part, Call) and bool(part.inputs)


def add(chain: PartChain, model: nn.Module) -> None:
    """Add the parts of a model to the chain."""
    if isinstance(model, Passage):
        _add_layers(chain, model)
        return
    kind = type(model)
    if model._forward_hooks or model._forward_pre_hooks:
        raise NoParts(f"a {kind.__name__} of the model has hooks")
    if "parametrizations" in model._modules:
        raise NoParts(f"a {kind.__name__} of the model computes its weights anew at each call")
    if isinstance(model, nn.Sequential) and kind is nn.Sequential:
        for child in model:
            add(chain, child)
    elif isinstance(model, Readout):
        _add_readout(chain, model)
    elif kind in (
        nn.Dropout,
        nn.AlphaDropout,
        nn.Identity,
    ):  # which in eval mode give what they take, state too
        pass
    elif isinstance(model, nn.Linear) and kind is nn.Linear:
        chain.add(PartProduct(model.weight, model.bias))
    elif isinstance(model, nn.Embedding) and _is_table(model) and not chain.last:
        chain.add(LookupTable(model.weight))
    elif model._modules and not kind.__module__.startswith(("torch.", "throughtime.")):
        chain.traced = True
        follow(chain, model, add)
    else:
        add_function(chain, model, kind.__name__)


def _is_table(model: nn.Embedding) -> bool:
    """Whether it only looks rows up."""
    return type(model) is nn.Embedding and model.max_norm is None


def _add_readout(chain: PartChain, model: Readout) -> None:
    """Add its network, which takes outputs alone, and its activation; a state passes by."""
    state, chain.with_state = chain.with_state, False
    add(chain, model.network)
    if model.activation is not activation_function("identity"):
        add_function(chain, model.activation, "readout's activation")
    chain.with_state = state


def _add_layers(chain: PartChain, layer: Any) -> None:
    """Add the calls of its layers, each but the first with its residual."""
    for number, call in enumerate(_list_calls(layer)):
        below = chain.last
        chain.add(call)
        if layer.options.residual and number:
            chain.add(PartSum(), below, chain.last)
    chain.layers.append(layer)
    chain.with_state = bool(getattr(layer, "return_state", True))


def _list_calls(layer: Any) -> list[Call]:
    """The call of one step of each layer."""
    if type(layer).__module__.partition(".")[0] != "throughtime" or "parametrizations" in dict(
        layer.named_children()
    ):
        raise NoParts(f"{type(layer).__name__} is changed in your own code")
    if layer.backend not in ("auto", "cpu"):
        raise NoParts(f"a layer has backend={layer.backend!r}")
    calls = [layer._example(i, 1, 1, False, False, False) for i in range(len(layer.widths))]
    for call in calls:
        reason = cpu.refuses(call)
        if reason is not None:
            raise NoParts(reason)
    return calls
