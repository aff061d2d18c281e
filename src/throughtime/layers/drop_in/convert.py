"""From torch.nn's recurrent layers to ours and back, anywhere inside a model."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from throughtime.backends import check_backend
from throughtime.errors import OptionError
from throughtime.layers.drop_in import cells, layers
from throughtime.layers.drop_in.base import DropIn
from throughtime.layers.drop_in.cells import DropInCell
from throughtime.layers.layer import Passage
from throughtime.layers.options import Options
from throughtime.layers.unroll import StepNetwork
from throughtime.torch_private import parametrize_anew

_OURS: dict[type[nn.Module], Any] = {
    nn.RNN: layers.RNN,
    nn.LSTM: layers.LSTM,
    nn.GRU: layers.GRU,
    nn.RNNCell: cells.RNNCell,
    nn.LSTMCell: cells.LSTMCell,
    nn.GRUCell: cells.GRUCell,
}
_ARGUMENTS = (
    "input_size", "hidden_size", "num_layers", "nonlinearity", "bias", "batch_first", "dropout",
    "bidirectional",
)  # fmt: skip
# torch's operations that carry a recurrent layer or one step of it, as graphs name them.
_OPERATIONS = frozenset(
    f"{kind}{step}" for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu") for step in ("", "_cell")
)


def from_torch(model: nn.Module, *, in_place: bool = False, backend: str = "auto") -> nn.Module:
    """Every torch.nn RNN, LSTM, GRU and their cells inside a model become ours.

    Names, weights, ties between weights, `training` and `requires_grad` stay, so do state_dict's
    keys; parametrised weights stay parametrised; hooks are carried over, with a warning that names
    their layer. What may be a recurrent layer and is no plain one of torch.nn's is left as it is,
    with a warning too: subclasses, which may compute something else, and scripted, traced,
    quantised and exported layers.

    Args:
        model: any module, or one of torch's layers itself.
        in_place: change this model, whose layers then hold the very same `Parameter` objects, so
            that an optimiser made before goes on; left out, the model stays as it is and a copy
            is converted.
        backend: who computes the converted layers, or "auto".

    Returns:
        The converted model; with `in_place` the model itself, unless it is a layer of torch's.

    Raises:
        TypeError: the model is no module.
        OptionError: torch cannot copy the model.
    """
    _check_module(model)
    check_backend(backend)
    ours = {}
    for module, name in _convertible(model):
        kind = _OURS[_kind(module)]
        ours[module] = _converted(name, module, kind, backend=backend)
    return _replaced(model, ours) if in_place else _copied(model, ours)


def to_torch(model: nn.Module, *, in_place: bool = False) -> nn.Module:
    """Every RNN, LSTM, GRU of ours and their cells inside a model become torch.nn's: the way back.

    What `from_torch` keeps is kept here: weights and their ties, names, parametrisations, hooks
    and `training`. Layers that have no equal in torch.nn are refused, all of them by name. torch's
    layers take no `lengths`, `starts` or `reset`: a model whose own code gives them has to pack.

    Args:
        model: any module, or one of our layers itself.
        in_place: change this model, whose layers then hold the very same `Parameter` objects;
            left out, a copy is converted.

    Returns:
        The converted model; with `in_place` the model itself, unless it is a layer of ours.

    Raises:
        TypeError: the model is no module.
        OptionError: a layer has no equal in torch.nn, or torch cannot copy the model.
    """
    _check_module(model)
    reasons = [f"{n or 'the model'} is {r}" for n, m in model.named_modules() if (r := _refused(m))]
    if reasons:
        raise OptionError(
            f"to_torch gives torch.nn's RNN, LSTM, GRU and their cells, and {'; '.join(reasons)}"
        )
    if not in_place:
        model = _copy(model, {})
    kinds = {ours: theirs for theirs, ours in _OURS.items()}
    new: dict[nn.Module, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, DropIn | DropInCell):
            theirs = next(kinds[k] for k in type(module).__mro__ if k in kinds)
            new[module] = _converted(name or "the model", module, theirs)
    return _replaced(model, new)


def _kind(module: nn.Module) -> Any:
    """Its class, without the one that a parametrisation makes of it."""
    return parametrize.type_before_parametrizations(module)


def _check_module(model: object) -> None:
    if not isinstance(model, nn.Module):
        text = repr(model)  # a torch.export.ExportedProgram's fills pages
        short = text if len(text) < 80 else f"a {type(model).__name__}"
        raise TypeError(f"model must be a torch.nn.Module, whose layers are converted, got {short}")


def _refused(module: nn.Module) -> str | None:
    """What a module of ours is that torch.nn has no equal of; None: it has one, or is not ours."""
    kind = _kind(module)
    if isinstance(module, StepNetwork):
        return "an unrolled layer, which reads the parts of a layer of throughtime"
    if isinstance(module, DropIn | DropInCell):
        if not kind.__module__.startswith("throughtime."):
            return (
                f"a {kind.__module__}.{kind.__qualname__}, a subclass of throughtime's layer that "
                f"may compute something else"
            )
        if getattr(module, "proj_size", 0) > module.hidden_size:
            return (
                f"an LSTM whose h has {module.proj_size} numbers and its c {module.hidden_size}, "
                f"where torch.nn's h is never wider"
            )
    elif isinstance(module, Passage):
        return f"a {kind.__name__} of {module.cell!r}, {_lacking(module)}"
    return None


def _lacking(layer: Passage) -> str:
    """What keeps a layer of any cell from being one of torch.nn's."""
    if layer.cell.torch_equivalent is None:
        return "equations that torch.nn has no layer for"
    plain = vars(Options())
    options = [n for n, v in vars(layer.options).items() if n != "dropout" and v != plain[n]]
    if options:
        return f"with {', '.join(options)}, which torch.nn's layers do not have"
    if len(set(layer.hidden_sizes)) > 1:
        return f"whose layers have the sizes {layer.hidden_sizes}, where torch.nn's have one size"
    name = layer.cell.torch_equivalent.partition("_")[0]
    return f"whose state is a tuple over layers; throughtime.{name} has torch.nn's state"


def _replaced(model: nn.Module, new: dict[nn.Module, nn.Module]) -> nn.Module:
    """The model with its layers in their places."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in new:
                parent._modules[name] = new[child]
    return new.get(model, model)


def _copied(model: nn.Module, ours: dict[nn.Module, nn.Module]) -> nn.Module:
    """A deep copy of the model in which each layer is a copy of ours."""
    memo: dict[int, Any] = {}
    for module, new in ours.items():
        memo[id(module)] = _copy(new, memo)
    return _copy(model, memo)


def _copy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A deep copy; of what an old weight_norm computed last, and computes anew at a call, too."""
    for module in model.modules():
        if isinstance(module, DropIn | DropInCell):
            results = [v for v in vars(module).values() if isinstance(v, Tensor) and not v.is_leaf]
            memo.update((id(v), v.detach().clone()) for v in results)
    try:
        return copy.deepcopy(model, memo)
    except RuntimeError as error:
        raise OptionError(
            f"torch cannot copy this model ({error}); convert the model itself with in_place=True"
        ) from error


def _convertible(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Every module to convert, with its name; warns of what only looks like one."""
    scripted: set[nn.Module] = set()  # parts of what is said to be left as it is
    for name, module in model.named_modules():
        if module in scripted:
            continue
        kind = _kind(module)
        if kind in _OURS:
            yield module, name or "the model"
        elif (what := _looks_like_a_layer(module, kind)) is not None:
            if isinstance(module, torch.jit.ScriptModule):
                scripted.update(module.modules())
            warnings.warn(f"{name or 'the model'} is {what}", stacklevel=3)


def _looks_like_a_layer(module: nn.Module, kind: Any) -> str | None:
    """What a module is that is recurrent and neither ours nor one of torch.nn's layers."""
    left = "so it is left as it is; convert the model that it was made from"
    if isinstance(module, DropIn | DropInCell):
        return None
    names = {k.__name__ for k in _OURS}
    if kind.__module__.startswith("torch.ao.nn.") and kind.__name__ in names:
        return f"torch's quantised {kind.__name__}, {left}"
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return (
            f"a {kind.__module__}.{kind.__qualname__}, a subclass of torch's layer that may "
            f"compute something else, so it is left as it is"
        )
    if isinstance(module, torch.jit.ScriptModule) and _scripts_a_layer(module, names):
        return f"TorchScript with a recurrent layer in it, {left}"
    if _is_a_graph_of_a_layer(module, names):
        return f"a graph with a recurrent layer in it, {left}"
    return None


def _scripts_a_layer(module: Any, names: set[str]) -> bool:
    if any(getattr(part, "original_name", "") in names for part in module.modules()):
        return True
    graph = getattr(module, "inlined_graph", None)  # of a frozen one, whose parts are gone
    return graph is not None and any(graph.findNode(f"aten::{n}") for n in _OPERATIONS)


def _is_a_graph_of_a_layer(module: nn.Module, names: set[str]) -> bool:
    """Whether operations of a recurrent layer stand in a graph of torch.fx or torch.export."""
    graph = getattr(module, "graph", None)
    if not isinstance(graph, torch.fx.Graph):
        return False
    places = {f"torch.nn.modules.rnn.{name}" for name in names}
    for node in graph.nodes:
        if node.op == "call_function":
            operation = getattr(node.target, "__name__", "").partition(".")[0]
            if operation in _OPERATIONS or places & set(_kinds_around(node)):
                return True
    return False


def _kinds_around(node: Any) -> Iterator[str]:
    """The modules that an operation of a graph was part of, by the names of their classes."""
    for _, kind in (node.meta.get("nn_module_stack") or {}).values():
        yield kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"


def _converted(name: str, module: Any, kind: Any, **more: Any) -> nn.Module:
    """A layer of `kind` in the place of another, with everything that hangs on that."""
    new, plain = _empty(module, kind, **more), _empty(module, _kind(module))
    _warn_of_hooks(name, module)
    weights = set(new._parameters)
    for container in vars(nn.Module()):  # parameters, submodules, hooks and all
        setattr(new, container, getattr(module, container))
    of_the_class = {*vars(plain), "_all_weights", "_flat_weights_names"}
    for attribute, value in vars(module).items():
        users = attribute not in of_the_class and not hasattr(new, attribute)
        if attribute in weights or users:
            setattr(new, attribute, value)
    if parametrize.is_parametrized(module):
        parametrize_anew(new, list(module.parametrizations))
    _list_weights(new)
    return new


def _empty(module: Any, kind: Any, **more: Any) -> nn.Module:
    """A layer of `kind` with the options of another and no weights yet."""
    options = {n: getattr(module, n) for n in _ARGUMENTS if hasattr(module, n)}
    if getattr(module, "proj_size", 0):
        options["proj_size"] = module.proj_size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer: nn.Module = kind(**options, device="meta", **more)
    return layer


def _list_weights(new: nn.Module) -> None:
    """The list that torch.nn keeps of its weights, read without a step of a spectral norm."""
    if isinstance(new, nn.RNNBase):
        training = [(m, m.training) for m in new.modules()]
        new.eval()
        with torch.no_grad():
            new._init_flat_weights()
        for module, was in training:
            module.training = was


def _warn_of_hooks(name: str, module: nn.Module) -> None:
    """The hooks of the user's own; those of torch.nn.utils work on whatever they are called for."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values(),
             *module._backward_hooks.values(), *module._backward_pre_hooks.values()]  # fmt: skip
    own = [h for h in hooks if not type(h).__module__.startswith("torch.nn.utils")]
    if own:
        warnings.warn(
            f"{len(own)} hooks of {name} were carried over to the new layer; one that holds on to "
            f"the old layer by itself still looks at that",
            stacklevel=4,
        )
