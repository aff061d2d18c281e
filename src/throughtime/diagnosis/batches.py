"""What a batch is: the model's input, or a tuple of input and target; and calls made with it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from throughtime.errors import OptionError, ShapeError

MOST = 16
"""How many batches of an iterable are looked at."""

_RULE = (
    "a batch is the model's input or a tuple (input, target), and an input that is a tuple of "
    "tensors is given as several arguments; a list is several batches"
)


def as_batches(batches: Any) -> list[Any]:
    """One batch or the first of several, as a list of them.

    Args:
        batches: a tensor, a tuple (input, target), or any other iterable of these.

    Raises:
        ShapeError: there is none.
        OptionError: it is none of these.
    """
    if isinstance(batches, Tensor | tuple):
        found = [batches]
    elif isinstance(batches, Iterable):
        found = [_one(b) for b in islice(batches, MOST)]
    else:
        raise OptionError(
            f"batches must be a tensor, a tuple (input, target) or an iterable of these, "
            f"got {type(batches).__name__}"
        )
    if not found:
        raise ShapeError("a diagnosis needs at least one batch, got none")
    for batch in found:
        _check(batch)
    return found


def _one(batch: Any) -> Any:
    """A loader of torch's makes lists of what a data set gives as tuples."""
    return tuple(batch) if isinstance(batch, list) else batch


def _check(batch: Any) -> None:
    if not isinstance(batch, Tensor | tuple):
        raise OptionError(
            f"a batch must be a tensor or a tuple (input, target), got {type(batch).__name__}"
        )
    if isinstance(batch, tuple) and not batch:
        raise ShapeError(f"a batch without input was given; {_RULE}")
    for x in parts(batch)[0]:
        _check_input(x)


def _check_input(x: Any) -> None:
    if isinstance(x, tuple | list) and not isinstance(x, PackedSequence):
        for part in x:  # a state, as torch's LSTM takes it
            _check_input(part)
    elif not isinstance(x, Tensor | PackedSequence):
        raise OptionError(f"the model's inputs must be tensors, got {type(x).__name__}; {_RULE}")


def parts(batch: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The arguments of the model, and those of the loss behind the output."""
    whole = isinstance(batch, Tensor | PackedSequence)
    x, *target = (batch,) if whole else batch
    several = isinstance(x, tuple | list) and not isinstance(x, PackedSequence)
    return (tuple(x) if several else (x,)), tuple(target)


def called(model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """The model's output.

    Raises:
        OptionError: it takes another number of inputs.
    """
    if not _takes(model.forward, inputs):
        raise OptionError(
            f"the model cannot be called with {len(inputs)} "
            f"input{'s' if len(inputs) != 1 else ''}, it takes {inspect.signature(model.forward)}; "
            f"{_RULE}"
        )
    return model(*inputs)


def judged(loss: Callable[..., Tensor], output: Tensor, target: tuple[Any, ...]) -> Tensor:
    """The loss of an output.

    Raises:
        OptionError: it takes another number of arguments.
    """
    function = loss.forward if isinstance(loss, nn.Module) else loss
    if not _takes(function, (output, *target)):
        given = "output and target" if target else "the output alone, for there is no target"
        raise OptionError(
            f"the loss cannot be called with {given}, it takes {inspect.signature(function)}; "
            f"{_RULE}"
        )
    return loss(output, *target)


def _takes(function: Callable[..., Any], given: tuple[Any, ...]) -> bool:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # one in C, which does not say
        return True
    try:
        signature.bind(*given)
    except TypeError:
        return False
    return True
