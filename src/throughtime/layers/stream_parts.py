"""What a compiled stream is made of: the parts of a model in order, or why it cannot be one."""

from __future__ import annotations

from typing import Any

from torch import nn

from throughtime.backends import cpu
from throughtime.backends.call import Call
from throughtime.backends.cpu.stream_part import Part, Product, Sum, Table
from throughtime.cells.cell import activation_function
from throughtime.layers.passage import Passage
from throughtime.layers.readout import Readout
from throughtime.layers.stream_chain import Chain, NoParts, Parts, add_function
from throughtime.layers.stream_forward import follow


def parts_of(model: nn.Module) -> tuple[Parts | str, bool]:
    """The parts of a frozen model, each with what it reads, or why not.

    Returns:
        Them, and whether a forward of a user's own was followed: then they must be tried.
    """
    chain = Chain(_first_width(model))
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


def _first_width(model: nn.Module) -> int | None:
    """What the first part that tells takes; of the parts before it each gives what it takes."""
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


def add(chain: Chain, model: nn.Module) -> None:
    """The parts of a model behind those that are there."""
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
        chain.add(Product(model.weight, model.bias))
    elif isinstance(model, nn.Embedding) and _is_table(model) and not chain.last:
        chain.add(Table(model.weight))
    elif model._modules and not kind.__module__.startswith(("torch.", "throughtime.")):
        chain.traced = True
        follow(chain, model, add)
    else:
        add_function(chain, model, kind.__name__)


def _is_table(model: nn.Embedding) -> bool:
    """Whether it looks rows up and does no more."""
    return type(model) is nn.Embedding and model.max_norm is None


def _add_readout(chain: Chain, model: Readout) -> None:
    """Its network, which takes outputs alone, and its activation; it hands a state on."""
    state, chain.with_state = chain.with_state, False
    add(chain, model.network)
    if model.activation is not activation_function("identity"):
        add_function(chain, model.activation, "readout's activation")
    chain.with_state = state


def _add_layers(chain: Chain, layer: Any) -> None:
    """The calls of its layers, and behind each but the first its residual."""
    for number, call in enumerate(_calls(layer)):
        below = chain.last
        chain.add(call)
        if layer.options.residual and number:
            chain.add(Sum(), below, chain.last)
    chain.layers.append(layer)
    chain.with_state = bool(getattr(layer, "return_state", True))


def _calls(layer: Any) -> list[Call]:
    """A call for each layer of one step."""
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
