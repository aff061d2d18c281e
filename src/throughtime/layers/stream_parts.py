"""What a compiled stream is made of: the parts of a model in order, or why it cannot be one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.backends import cpu
from throughtime.backends.call import Call
from throughtime.backends.cpu.stream_part import (
    Part,
    Placed,
    Product,
    RowFunction,
    Sum,
    Table,
    like,
    output_width,
)
from throughtime.cells.cell import activation_function
from throughtime.compiler.row_plan import row_plan
from throughtime.layers.passage import Passage
from throughtime.layers.readout import Readout

Parts = list[Placed]


class _NoParts(Exception):
    """The model is no plain stack of what compiled streams take; the text says why."""


def parts_of(model: nn.Module) -> Parts | str:
    """The parts of a frozen model, each with what it reads, or why not."""
    try:
        chain = _Chain(_first_width(model))
        _add(chain, model)
        chain.end()
        if not isinstance(model, Passage) and any(_reads_inputs(p.part) for p in chain.parts):
            raise _NoParts(f"a layer in a {type(model).__name__} reads direct inputs")
        return chain.parts
    except _NoParts as reason:
        return str(reason)


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


class _Chain:
    """Parts one behind the other, while they are found.

    Args:
        width: of what is given to the first.

    Attributes:
        parts: so far.
        with_state: whether the last gives (outputs, state), which few parts take.
    """

    def __init__(self, width: int | None) -> None:
        self.parts: Parts = []
        self.with_state = False
        self._width = width
        self._kinds: dict[Any, None] = {}

    @property
    def last(self) -> int:
        """The place of what the last part gives."""
        return len(self.parts)

    @property
    def width(self) -> int:
        """How many numbers a row has there."""
        if self._width is None:
            raise _NoParts("the model does not begin with a layer, a linear part or an embedding")
        return self._width

    def add(self, part: Part, *sources: int) -> None:
        """One that reads what the last gives, or what these places hold."""
        if self.with_state:
            raise _NoParts("a layer that gives its state stands before a part that takes none")
        tensor, takes = like(part), self._width
        if tensor is not None:
            takes = tensor.shape[-1]
            if not isinstance(part, Table) and self._width not in (None, takes):
                raise _NoParts(
                    f"a part takes {takes} numbers and the one before it gives {self._width}"
                )
            self.hold(tensor)
        assert takes is not None
        self.parts.append(Placed(part, sources or (self.last,)))
        self._width = output_width(part, takes)

    def hold(self, tensor: Tensor) -> None:
        """One of the tensors that parts compute with, which are all of one kind."""
        self._kinds[tensor.dtype, tensor.device] = None

    def end(self) -> None:
        """All parts are there."""
        if len(self._kinds) > 1:
            raise _NoParts("the parts of the model have different dtypes or devices")


def _add(chain: _Chain, model: nn.Module) -> None:
    """The parts of a model behind those that are there."""
    if isinstance(model, Passage):
        _add_layers(chain, model)
        chain.with_state = bool(getattr(model, "return_state", True))
        return
    kind = type(model)
    if model._forward_hooks or model._forward_pre_hooks:
        raise _NoParts(f"a {kind.__name__} of the model has hooks")
    if "parametrizations" in model._modules:
        raise _NoParts(f"a {kind.__name__} of the model computes its weights anew at each call")
    if isinstance(model, nn.Sequential) and kind is nn.Sequential:
        for child in model:
            _add(chain, child)
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
    elif isinstance(model, nn.Embedding) and _is_table(model) and not chain.parts:
        chain.add(Table(model.weight))
    else:
        _add_function(chain, model, kind.__name__)


def _is_table(model: nn.Embedding) -> bool:
    """Whether it looks rows up and does no more."""
    return type(model) is nn.Embedding and model.max_norm is None


def _add_readout(chain: _Chain, model: Readout) -> None:
    """Its network, which takes outputs alone, and its activation; it hands a state on."""
    state, chain.with_state = chain.with_state, False
    _add(chain, model.network)
    if model.activation is not activation_function("identity"):
        _add_function(chain, model.activation, "readout's activation")
    chain.with_state = state


def _add_layers(chain: _Chain, layer: Any) -> None:
    """The calls of its layers, and behind each but the first its residual."""
    for number, call in enumerate(_calls(layer)):
        below = chain.last
        chain.add(call)
        if layer.options.residual and number:
            chain.add(Sum(), below, chain.last)


def _calls(layer: Any) -> list[Call]:
    """A call for each layer of one step."""
    if type(layer).__module__.partition(".")[0] != "throughtime" or "parametrizations" in dict(
        layer.named_children()
    ):
        raise _NoParts(f"{type(layer).__name__} is changed in your own code")
    if layer.backend not in ("auto", "cpu"):
        raise _NoParts(f"a layer has backend={layer.backend!r}")
    calls = [layer._example(i, 1, 1, False, False, False) for i in range(len(layer.widths))]
    for call in calls:
        reason = cpu.refuses(call)
        if reason is not None:
            raise _NoParts(reason)
    return calls


def _add_function(chain: _Chain, function: Callable[[Any], Any], name: str) -> None:
    """A function of each row alone, as far as the compiler knows its operations."""
    known = f"the model holds a {name}, which its own code computes"
    module = function if isinstance(function, nn.Module) else None
    if chain.with_state or (module is not None and module._modules):
        raise _NoParts(known)
    width = chain.width
    tensors = {} if module is None else _vectors(module, width)
    run = _runner(module, tuple(tensors)) if module is not None else lambda x, p: function(x)
    plan = row_plan(name, run, width, tuple(tensors))
    if isinstance(plan, str):
        raise _NoParts(f"{known}: {plan}")
    for v in tensors.values():
        chain.hold(v)
    if not _is_of_rows(function, width, next(iter(tensors.values()), torch.empty(0, device="cpu"))):
        raise _NoParts(f"{known}: it does not look at each row of a sequence alone")
    chain.add(RowFunction(plan, tensors, width))


@torch.no_grad()
def _is_of_rows(function: Callable[[Any], Any], width: int, like: Tensor) -> bool:
    """Whether a sequence (T, B, width) goes through it as its rows do, one by one."""
    with torch.random.fork_rng(devices=[]):
        x = torch.randn(3, 2, width, dtype=like.dtype, device=like.device)
        try:
            whole = function(x.clone())
            rows = torch.cat([function(row.clone()) for row in x.flatten(0, 1).split(1)])
        except (TypeError, ValueError, RuntimeError, IndexError):
            return False
    if whole.shape != x.shape or rows.shape != (6, width):
        return False
    return torch.allclose(whole.flatten(0, 1), rows, rtol=1e-3, atol=1e-5, equal_nan=True)


def _vectors(module: nn.Module, width: int) -> dict[str, Any]:
    """Its parameters and buffers that have one number for each number of a row."""
    held = {**module._parameters, **module._buffers}
    return {n: v for n, v in held.items() if v is not None and tuple(v.shape) == (width,)}


def _runner(module: nn.Module, names: tuple[str, ...]) -> Callable[[Any, Any], Any]:
    """The module's forward with symbols in the place of these tensors."""

    def run(x: Any, p: Any) -> Any:
        twin = object.__new__(type(module))
        twin.__dict__.update(module.__dict__)
        for held in ("_parameters", "_buffers"):
            rest = {n: v for n, v in module.__dict__[held].items() if n not in names}
            twin.__dict__[held] = rest
        twin.__dict__.update({n: p[n] for n in names})
        if twin.__dict__.get("inplace") is True:  # nobody else reads what stands before it
            twin.__dict__["inplace"] = False
        return twin.forward(x)

    return run
