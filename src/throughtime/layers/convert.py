"""From torch.nn's recurrent layers to ours, anywhere inside a model."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from throughtime.backends import check_backend
from throughtime.errors import OptionError
from throughtime.layers import drop_in, drop_in_cells
from throughtime.layers.drop_in_cell import DropInCell
from throughtime.layers.drop_in_layer import DropIn

_OURS: dict[type[nn.Module], Any] = {
    nn.RNN: drop_in.RNN,
    nn.LSTM: drop_in.LSTM,
    nn.GRU: drop_in.GRU,
    nn.RNNCell: drop_in_cells.RNNCell,
    nn.LSTMCell: drop_in_cells.LSTMCell,
    nn.GRUCell: drop_in_cells.GRUCell,
}
_ARGUMENTS = (
    "input_size", "hidden_size", "num_layers", "nonlinearity", "bias", "batch_first", "dropout",
    "bidirectional",
)  # fmt: skip


def from_torch(model: nn.Module, *, in_place: bool = False, backend: str = "auto") -> nn.Module:
    """Every torch.nn RNN, LSTM, GRU and their cells inside a model become ours.

    Names, weights, ties between weights, `training` and `requires_grad` stay, so do state_dict's
    keys; parametrised weights stay parametrised; hooks are carried over, with a warning that names
    their layer. Subclasses of torch's layers may compute something else, so they are left alone,
    with a warning too.

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
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model must be a torch.nn.Module, whose layers are converted, got {model!r}"
        )
    check_backend(backend)
    ours = {}
    for module, name in _convertible(model):
        ours[module] = _converted(name, module, backend)
    if not in_place:
        return _copied(model, ours)
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in ours:
                parent._modules[name] = ours[child]
    return ours.get(model, model)


def _copied(model: nn.Module, ours: dict[nn.Module, nn.Module]) -> nn.Module:
    """A deep copy of the model in which each layer is a copy of ours."""
    memo: dict[int, Any] = {}
    try:
        for module, new in ours.items():
            for name, value in vars(new).items():
                if isinstance(value, Tensor):  # an old weight_norm's, which comes anew at each call
                    setattr(new, name, value.detach())
            memo[id(module)] = copy.deepcopy(new, memo)
        return copy.deepcopy(model, memo)
    except RuntimeError as error:
        raise OptionError(
            f"torch cannot copy this model ({error}); convert the model itself with in_place=True"
        ) from error


def _convertible(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Every module to convert, with its name; warns of those that look like one."""
    for name, module in model.named_modules():
        kind = parametrize.type_before_parametrizations(module)
        if kind in _OURS:
            yield module, name or "the model"
        elif isinstance(module, tuple(_OURS)) and not isinstance(module, DropIn | DropInCell):
            warnings.warn(
                f"{name or 'the model'} is a {kind.__module__}.{kind.__qualname__}, a subclass of "
                f"torch's layer that may compute something else, so it is left as it is",
                stacklevel=3,
            )


def _converted(name: str, module: Any, backend: str) -> nn.Module:
    """Our layer in place of torch's, with everything that hangs on it."""
    kind = parametrize.type_before_parametrizations(module)
    given = {n: getattr(module, n) for n in _ARGUMENTS if hasattr(module, n)}
    if getattr(module, "proj_size", 0):
        given["proj_size"] = module.proj_size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours: nn.Module = _OURS[kind](**given, device="meta", backend=backend)
    _warn_of_hooks(name, module)
    weights = set(ours._parameters)
    for container in vars(nn.Module()):  # parameters, submodules, hooks and all
        setattr(ours, container, getattr(module, container))
    for attribute, value in vars(module).items():
        if attribute in weights or not _is_torchs(attribute, ours):
            setattr(ours, attribute, value)
    if parametrize.is_parametrized(module):
        parametrize._inject_new_class(ours)
        for weight in module.parametrizations:
            parametrize._inject_property(ours, weight)
    return ours


def _is_torchs(attribute: str, ours: nn.Module) -> bool:
    """Whether an attribute comes with the class, and was not set by the user."""
    return hasattr(ours, attribute) or attribute == "_flat_weight_refs"


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
