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
from throughtime.layers import drop_in
from throughtime.layers.drop_in import cells
from throughtime.layers.drop_in.base import DropIn
from throughtime.layers.drop_in.cells import DropInCell
from throughtime.layers.layer import Passage
from throughtime.layers.options import Options
from throughtime.layers.through_time import StepNetwork
from throughtime.torch_private import parametrize_anew

_OURS: dict[type[nn.Module], Any] = {
    nn.RNN: drop_in.RNN, nn.LSTM: drop_in.LSTM, nn.GRU: drop_in.GRU, nn.RNNCell: cells.RNNCell,
    nn.LSTMCell: cells.LSTMCell, nn.GRUCell: cells.GRUCell,
}  # fmt: skip
_ARGUMENTS = (
    "input_size", "hidden_size", "num_layers", "nonlinearity", "bias", "batch_first", "dropout",
    "bidirectional",
)  # fmt: skip
_find_class: Any = parametrize.type_before_parametrizations
# torch's operations for a recurrent layer or one step of it, as graphs name them.
_OPERATIONS = frozenset(
    f"{kind}{step}" for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu") for step in ("", "_cell")
)


def from_torch(model: nn.Module, *, in_place: bool = False, backend: str = "auto") -> nn.Module:
    """Convert every torch.nn RNN, LSTM, GRU and their cells inside a model to this package's.

    Names, weights, ties between weights, `training`, `requires_grad` and the keys of state_dict
    stay; parametrised weights stay parametrised; hooks are carried over, with a warning that names
    their layer. Subclasses, which may compute something else, and scripted, traced, quantised and
    exported layers are left as they are, with a warning.

    Args:
        model: any module, or one of torch's layers itself.
        in_place: change this model, whose layers then hold the same `Parameter` objects, so that
            an existing optimiser still works; left out, the model stays as it is and a copy is
            converted.
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
    for module, name in _list_convertible(model):
        kind = _OURS[_find_class(module)]
        ours[module] = _convert(name, module, kind, backend=backend)
    return _replace(model, ours) if in_place else _copy_with(model, ours)


def to_torch(model: nn.Module, *, in_place: bool = False) -> nn.Module:
    """Convert every RNN, LSTM, GRU of this package and their cells inside a model to torch.nn's.

    It keeps what `from_torch` keeps: weights and their ties, names, parametrisations, hooks and
    `training`. Layers without an equal in torch.nn are refused, all of them by name. torch's
    layers take no `lengths`, `starts` or `reset`: a model that passes them has to pack.

    Args:
        model: any module, or one of our layers itself.
        in_place: change this model, whose layers then hold the same `Parameter` objects; left
            out, a copy is converted.

    Returns:
        The converted model; with `in_place` the model itself, unless it is a layer of ours.

    Raises:
        TypeError: the model is no module.
        OptionError: a layer has no equal in torch.nn, or torch cannot copy the model.
    """
    _check_module(model)
    reasons = [
        f"{n or 'the model'} is {r}" for n, m in model.named_modules() if (r := _explain_refusal(m))
    ]
    if reasons:
        raise OptionError(
            f"to_torch gives torch.nn's RNN, LSTM, GRU and their cells, and {'; '.join(reasons)}"
        )
    if not in_place:
        model = _copy(model, {})
    kinds = {ours: torch_kind for torch_kind, ours in _OURS.items()}
    new: dict[nn.Module, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, DropIn | DropInCell):
            torch_kind = next(kinds[k] for k in type(module).__mro__ if k in kinds)
            new[module] = _convert(name or "the model", module, torch_kind)
    return _replace(model, new)


def _check_module(model: object) -> None:
    if not isinstance(model, nn.Module):
        text = repr(model)  # a torch.export.ExportedProgram's fills pages
        short = text if len(text) < 80 else f"a {type(model).__name__}"
        raise TypeError(f"model must be a torch.nn.Module, whose layers are converted, got {short}")


def _explain_refusal(module: nn.Module) -> str | None:
    """Why a module of this package has no equal in torch.nn; None for all other modules."""
    kind = _find_class(module)
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
        return f"a {kind.__name__} of {module.cell!r}, {_explain_lack(module)}"
    return None


def _explain_lack(layer: Passage) -> str:
    """Why a layer of any cell has no equal in torch.nn."""
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


def _replace(model: nn.Module, new: dict[nn.Module, nn.Module]) -> nn.Module:
    """The model with its layers replaced."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in new:
                parent._modules[name] = new[child]
    return new.get(model, model)


def _copy_with(model: nn.Module, ours: dict[nn.Module, nn.Module]) -> nn.Module:
    """A deep copy of the model in which each layer is a copy of the new one."""
    memo: dict[int, Any] = {}
    for module, new in ours.items():
        memo[id(module)] = _copy(new, memo)
    return _copy(model, memo)


def _copy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A deep copy, including the result that an old weight_norm keeps and recomputes at a call."""
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


def _list_convertible(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Every module to convert, with its name; warns of recurrent modules that are left."""
    scripted: set[nn.Module] = set()  # parts of modules that were warned of
    for name, module in model.named_modules():
        if module in scripted:
            continue
        kind = _find_class(module)
        if kind in _OURS:
            yield module, name or "the model"
        elif (what := _describe_lookalike(module, kind)) is not None:
            if isinstance(module, torch.jit.ScriptModule):
                scripted.update(module.modules())
            warnings.warn(f"{name or 'the model'} is {what}", stacklevel=3)


def _describe_lookalike(module: nn.Module, kind: Any) -> str | None:
    """A recurrent module that is neither this package's nor torch.nn's, in words; else None."""
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
    graph = getattr(module, "inlined_graph", None)  # a frozen one has no submodules
    return graph is not None and any(graph.findNode(f"aten::{n}") for n in _OPERATIONS)


def _is_a_graph_of_a_layer(module: nn.Module, names: set[str]) -> bool:
    """Whether a graph of torch.fx or torch.export has operations of a recurrent layer."""
    graph = getattr(module, "graph", None)
    if not isinstance(graph, torch.fx.Graph):
        return False
    places = {f"torch.nn.modules.rnn.{name}" for name in names}
    for node in graph.nodes:
        if node.op == "call_function":
            operation = getattr(node.target, "__name__", "").partition(".")[0]
            if operation in _OPERATIONS or places & set(_list_classes_around(node)):
                return True
    return False


def _list_classes_around(node: Any) -> Iterator[str]:
    """The classes of the modules around an operation of a graph, by name."""
    for _, kind in (node.meta.get("nn_module_stack") or {}).values():
        yield kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"


def _convert(name: str, module: Any, kind: Any, **more: Any) -> nn.Module:
    """A layer of `kind` that replaces another, with its weights, hooks and attributes."""
    new, plain = _build_empty(module, kind, **more), _build_empty(module, _find_class(module))
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


def _build_empty(module: Any, kind: Any, **more: Any) -> nn.Module:
    """A layer of `kind` with the options of another, on the meta device."""
    options = {n: getattr(module, n) for n in _ARGUMENTS if hasattr(module, n)}
    if getattr(module, "proj_size", 0):
        options["proj_size"] = module.proj_size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer: nn.Module = kind(**options, device="meta", **more)
    return layer


def _list_weights(new: nn.Module) -> None:
    """Build torch.nn's list of weights, in eval mode so that a spectral norm takes no step."""
    if isinstance(new, nn.RNNBase):
        training = [(m, m.training) for m in new.modules()]
        new.eval()
        with torch.no_grad():
            new._init_flat_weights()
        for module, was in training:
            module.training = was


def _warn_of_hooks(name: str, module: nn.Module) -> None:
    """Warn of the user's hooks; those of torch.nn.utils work on any layer."""
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values(),
             *module._backward_hooks.values(), *module._backward_pre_hooks.values()]  # fmt: skip
    users = [h for h in hooks if not type(h).__module__.startswith("torch.nn.utils")]
    if users:
        warnings.warn(
            f"{len(users)} hooks of {name} were carried over to the new layer; one that holds a "
            f"reference to the old layer still reads that",
            stacklevel=4,
        )
