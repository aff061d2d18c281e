"""What a compiled stream is made of: the parts of a model in order, or why it cannot be one."""

from __future__ import annotations

from typing import Any

from torch import nn

from throughtime.backends import cpu
from throughtime.backends.call import Call
from throughtime.backends.cpu.stream_layer import Part, Product, Residual
from throughtime.cells.cell import activation_function
from throughtime.layers.passage import Passage
from throughtime.layers.readout import Readout

Parts = list[Part]


class _NoParts(Exception):
    """The model is no plain stack of what compiled streams take; the text says why."""


def parts_of(model: nn.Module, batch: int) -> Parts | str:
    """The parts of a frozen model, layers and linear parts one behind the other, or why not."""
    try:
        found = _parts(_pieces(model), batch)
        if not isinstance(model, Passage) and any(_reads_inputs(part) for part in found):
            raise _NoParts(f"a layer in a {type(model).__name__} reads direct inputs")
        return found
    except _NoParts as reason:
        return str(reason)


def _reads_inputs(part: Part) -> bool:
    return isinstance(part, Call) and bool(part.inputs)


def _parts(pieces: list[nn.Module], batch: int) -> Parts:
    found: Parts = []
    for piece, after in zip(pieces, [*pieces[1:], _Reads()], strict=True):
        if isinstance(piece, Passage):
            found += _layers(piece, batch)
            if getattr(piece, "return_state", True) and not isinstance(after, _Reads):
                raise _NoParts("a layer that gives its state stands before a part that takes none")
        elif isinstance(piece, nn.Linear):
            found.append(Product(piece.weight, piece.bias))
    _check_fit(found)
    return found


class _Reads(nn.Module):
    """Marks, before a readout's product, that it takes (outputs, state)."""


def _pieces(model: nn.Module) -> list[nn.Module]:
    """The parts in order, sequences and readouts opened."""
    if isinstance(model, Passage):
        return [model]
    if model._forward_hooks or model._forward_pre_hooks:
        raise _NoParts(f"a {type(model).__name__} of the model has hooks")
    if type(model) is nn.Sequential:
        return [piece for child in model for piece in _pieces(child)]
    if type(model) is Readout:
        if model.activation is not activation_function("identity"):
            raise _NoParts("a readout has an activation, which its own code computes")
        return [_Reads(), *_pieces(model.network)]
    if type(model) in (nn.Linear, nn.Dropout):  # which in eval mode gives what it takes
        return [model]
    raise _NoParts(f"the model holds a {type(model).__name__}, which its own code computes")


def _layers(layer: Any, batch: int) -> Parts:
    """The calls of its layers, and behind each but the first its residual."""
    calls = _calls(layer, batch)
    if not layer.options.residual:
        return list(calls)
    return [*calls[:1], *(part for call in calls[1:] for part in (call, Residual()))]


def _calls(layer: Any, batch: int) -> list[Call]:
    """A call for each layer of one step."""
    if type(layer).__module__.partition(".")[0] != "throughtime" or "parametrizations" in dict(
        layer.named_children()
    ):
        raise _NoParts(f"{type(layer).__name__} is changed in your own code")
    if layer.backend not in ("auto", "cpu"):
        raise _NoParts(f"a layer has backend={layer.backend!r}")
    calls = [layer._example(i, 1, batch, False, False, False) for i in range(len(layer.widths))]
    for call in calls:
        reason = cpu.refuses(call)
        if reason is not None:
            raise _NoParts(reason)
    return calls


def _check_fit(parts: Parts) -> None:
    """Every part takes what the one before gives."""
    kinds, width = set(), None
    for part in parts:
        if isinstance(part, Residual):
            continue
        like = part.weight if isinstance(part, Product) else part.x
        takes = like.shape[-1]
        if width is not None and width != takes:
            raise _NoParts(f"a part takes {takes} numbers and the one before it gives {width}")
        width = len(like) if isinstance(part, Product) else part.cell.widths(part.hidden_size)[0]
        kinds.add((like.dtype, like.device))
    if len(kinds) > 1:
        raise _NoParts("the parts of the model have different dtypes or devices")
