"""What a batch is, how a model and a loss are called with it, and what is refused."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from throughtime.errors import NotFiniteError, OptionError, ShapeError
from throughtime.layers import SequenceLayer
from throughtime.layers.batch import list_tensors

MOST = 16
"""The most batches of an iterable that are used."""

_RULE = (
    "a batch is the model's input or a tuple (input, target), and an input that is a tuple of "
    "tensors is given as several arguments, a dict by their names; a list is several batches"
)


def list_batches(batches: Any) -> list[Any]:
    """One batch or the first of several, as a list of them.

    A batch is a tensor, a dict or a tuple (input, target); any other iterable is several.
    """
    if isinstance(batches, Tensor | tuple | Mapping):
        several = [batches]
    elif isinstance(batches, Iterable):
        # Torch's loaders make lists of a data set's tuples.
        several = [tuple(b) if isinstance(b, list) else b for b in islice(batches, MOST)]
    else:
        raise OptionError(
            f"batches must be a tensor, a tuple (input, target), a dict or an iterable of these, "
            f"got {type(batches).__name__}"
        )
    if not several:
        raise ShapeError("a diagnosis needs at least one batch, got none")
    for batch in several:
        _check(batch)
    return several


def _check(batch: Any) -> None:
    if not isinstance(batch, Tensor | tuple | Mapping):
        raise OptionError(
            f"a batch must be a tensor or a tuple (input, target), or a dict, "
            f"got {type(batch).__name__}"
        )
    if isinstance(batch, tuple | Mapping) and not batch:
        raise ShapeError(f"a batch without input was given; {_RULE}")
    x, _ = _split_target(batch)
    values = x.values() if isinstance(x, Mapping) else x if _is_several(x) else (x,)
    if not any(True for _ in list_tensors(tuple(values))):
        kinds = ", ".join(dict.fromkeys(type(v).__name__ for v in values))
        raise OptionError(f"the model's inputs must be tensors, got {kinds}; {_RULE}")


def _is_several(x: Any) -> bool:
    return isinstance(x, tuple | list) and not isinstance(x, PackedSequence)


def _split_target(batch: Any) -> tuple[Any, tuple[Any, ...]]:
    """The input, and what comes after it."""
    if isinstance(batch, Tensor | PackedSequence | Mapping):
        return batch, ()
    return batch[0], tuple(batch[1:])


@dataclass(frozen=True)
class Inputs:
    """What a model and a loss are called with.

    Attributes:
        args, kwargs: of the model.
        target: of the loss, after the output.
        named: of the loss by name: the entries of a dict that the model does not take.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: tuple[Any, ...]
    named: dict[str, Any]


def split(model: nn.Module, batch: Any, loss: Callable[..., Any] | None) -> Inputs:
    """A batch as the arguments of a model and a loss.

    A dict's values are keyword arguments; those that the model does not take go to the loss. A
    model whose only argument is none of the keys gets the dict itself.
    """
    x, target = _split_target(batch)
    if not isinstance(x, Mapping):
        inputs = Inputs(tuple(x) if _is_several(x) else (x,), {}, target, {})
    else:
        inputs = _split_dict(model, {str(k): v for k, v in x.items()}, target, loss)
    if not _takes(model.forward, inputs.args, inputs.kwargs):
        count = len(inputs.args)
        what = f"{count} input{'s' if count != 1 else ''}"
        if isinstance(x, Mapping):
            what = f"a dict of {', '.join(map(str, x))}"
        raise OptionError(
            f"the model cannot be called with {what}, it takes "
            f"{inspect.signature(model.forward)}; {_RULE}"
        )
    return inputs


def _split_dict(
    model: nn.Module, x: dict[str, Any], target: tuple[Any, ...], loss: Callable[..., Any] | None
) -> Inputs:
    signature = _find_signature(model.forward)
    parameters = [*signature.parameters.values()] if signature else []
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    kwargs = {k: v for k, v in x.items() if takes_all or k in names}
    if not kwargs and len(parameters) == 1:
        alone = loss is None or target or _takes(_find_function(loss), (None,), {})
        return Inputs((x,), {}, target if alone else (x,), {})
    return Inputs((), kwargs, target, {k: v for k, v in x.items() if k not in kwargs})


def call_model(model: nn.Module, inputs: Inputs) -> Any:
    """The model's output; an OptionError where it fails on a dict of which it takes no key."""
    try:
        return model(*inputs.args, **inputs.kwargs)
    except (TypeError, AttributeError) as error:
        if not (inputs.args and isinstance(inputs.args[0], Mapping)):
            raise
        raise OptionError(
            f"the model takes {inspect.signature(model.forward)}, which none of the keys "
            f"{', '.join(map(str, inputs.args[0]))} names, so it was given the dict itself, and "
            f"raised {type(error).__name__}: {error}; {_RULE}"
        ) from error


def compute_loss(loss: Callable[..., Tensor], output: Any, inputs: Inputs) -> Tensor:
    """The loss of an output: the first of a tuple, or all that a dict or object holds."""
    function, target, keywords = _find_function(loss), inputs.target, inputs.named
    y = find_first_tensor(output) if isinstance(output, Tensor | tuple | list) else output
    attempts: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...] = (((y, *target), {}),)
    if keywords and not target:
        attempts = (((y, *keywords.values()), {}), ((y,), keywords), ((y,), {}))
    for args, kwargs in attempts:
        if _takes(function, args, kwargs):
            return loss(*args, **kwargs)
    what = "output and target" if target else "the output alone, for there is no target"
    if keywords and not target:
        what = f"the output and {', '.join(keywords)}"
    raise OptionError(
        f"the loss cannot be called with {what}, it takes {inspect.signature(function)}; {_RULE}"
    )


def find_own_loss(output: Any) -> Tensor | None:
    """The loss among a model's outputs: a single number, or the one called loss; else None."""
    if isinstance(output, Tensor):
        return output if output.dim() == 0 else None
    numbers = {n: v for n, v in _list_members(output) if isinstance(v, Tensor) and v.dim() == 0}
    numbers = {n: v for n, v in numbers.items() if v.requires_grad}
    if "loss" in numbers or len(numbers) == 1:
        return numbers.get("loss", next(iter(numbers.values())))
    if numbers:
        raise OptionError(
            f"the model gives several numbers ({', '.join(numbers)}); say which is the loss, as "
            f"in loss=lambda output: output[{next(iter(numbers))!r}]"
        )
    return None


def find_first_tensor(output: Any) -> Any:
    """A model's output, or the first tensor or PackedSequence in it; an error without one."""
    if isinstance(output, Tensor | PackedSequence):
        return output
    for _, value in _list_members(output):
        if value is None or isinstance(value, int | float | str):
            continue
        return find_first_tensor(value)
    raise OptionError(
        f"the model must give a tensor, or a tuple, dict or object with one in it, "
        f"got {type(output).__name__}"
    )


def _list_members(output: Any) -> list[tuple[Any, Any]]:
    """Names and values of a model's outputs."""
    if isinstance(output, Mapping):
        return [*output.items()]
    if isinstance(output, tuple | list) and not isinstance(output, PackedSequence):
        return [*enumerate(output)]
    return [*getattr(output, "__dict__", {}).items()]


def _find_function(loss: Callable[..., Any]) -> Callable[..., Any]:
    return loss.forward if isinstance(loss, nn.Module) else loss


def _find_signature(function: Callable[..., Any]) -> inspect.Signature | None:
    """None for a function in C without a signature."""
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return None


def _takes(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    signature = _find_signature(function)
    try:
        return signature is None or signature.bind(*args, **kwargs) is not None
    except TypeError:
        return False


def check_plain(model: nn.Module) -> None:
    """Refuse what is no module, and a compiled or wrapped one."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {model!r}")
    for name, module in model.named_modules():
        words = f"module {name}" if name else "the model"
        if isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel):
            kind = type(module).__name__
            raise OptionError(f"{words} is wrapped in {kind}; give the one in its .module")
        if hasattr(module, "_orig_mod"):
            raise OptionError(f"{words} is compiled by torch.compile; give what it was made from")


def make_copy_error(error: BaseException) -> OptionError:
    """The error for a model that torch cannot copy, with the usual reason."""
    return OptionError(
        f"torch cannot copy this model ({str(error).split('.')[0]}); where it keeps a tensor of an "
        f"earlier call as an attribute, delete or detach that"
    )


def check_layers(layers: dict[str, SequenceLayer]) -> None:
    """Refuse recurrent layers whose gradients through time cannot be measured, or none."""
    if not layers:
        raise OptionError(
            "the model has no recurrent layer of torch.nn or throughtime to look at, and no cell; "
            "equations written out in a loop of your own and subclasses of torch's layers cannot "
            "be seen, so make them a Cell for throughtime.Recurrent"
        )
    if not any(p.requires_grad for layer in layers.values() for p in layer.parameters()):
        raise OptionError("every weight of the recurrent layers is frozen; unfreeze them first")
    for name, layer in layers.items():
        words = f"layer {name}" if name else "the layer"
        dtypes = {p.dtype for p in layer.parameters()}
        if not dtypes <= {torch.float32, torch.float64}:
            raise OptionError(
                f"{words} is in {' and '.join(sorted(map(str, dtypes)))}, in which gradients "
                f"vanish early; "
                f"call model.float() first"
            )
        if max(layer.dilations, default=1) > 1:
            raise OptionError(f"{words} is dilated, so its states at one step are not one state")


def check_weights(model: nn.Module) -> None:
    """Refuse weights that are no numbers; the NotFiniteError names the first."""
    for name, p in model.named_parameters():
        if not bool(p.isfinite().all()):
            text = f"parameter {name} has NaN or infinity in it before any step"
            raise NotFiniteError(text, "parameter", name)


def check_loss(value: Any, output: Any) -> None:
    """Refuse a loss that is not finite, no single number, or depends on nothing that trains."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = tuple(value.shape) if isinstance(value, Tensor) else repr(value)
        raise OptionError(f"the loss must be a tensor with one number, got {got}; take its mean")
    if not bool(value.isfinite()):
        y = value if output is value else find_first_tensor(output)
        y = y.data if isinstance(y, PackedSequence) else y
        if output is not value and not bool(y.isfinite().all()):
            text = "the model's output is NaN or infinity, while all states before it are finite"
            raise NotFiniteError(text, "output")
        text = f"the loss must be finite from the start, got {value.item()} of a finite output"
        raise NotFiniteError(text, "loss")
    if not value.requires_grad:
        raise OptionError("the loss depends on nothing that trains; do not detach the output")
