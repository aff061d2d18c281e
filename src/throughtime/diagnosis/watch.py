"""Watching a model train: what its recurrent layers were given, gave, and were sent back."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from throughtime.diagnosis.observe import arguments, tensors
from throughtime.errors import OptionError
from throughtime.layers.convert import from_torch
from throughtime.layers.sequence import SequenceLayer


@dataclass
class Given:
    """One call of a recurrent module in a training step; its tensors are detached.

    Attributes:
        name: the module's name in the model.
        layer: ours in its place, over the very same weights.
        x: as it was given.
        state: likewise; None where it was left out.
        given: what else the call was given.
        outputs: (T, B, O) or packed, in the user's layout.
        d_outputs: of the loss by the outputs, once its gradient came back.
        final: the form of the final state.
        d_final: of the loss by each tensor of the final state, in order.
    """

    name: str
    layer: SequenceLayer
    x: Any
    state: Any
    given: dict[str, Any]
    outputs: Any
    final: Any
    d_outputs: Tensor | None = None
    d_final: dict[int, Tensor] = field(default_factory=dict)


class Watch:
    """Hooks on every recurrent module of a model, which remember the calls of one training step.

    They keep no graph alive, compute nothing, and do nothing where no gradient is recorded.

    Args:
        model: whose modules are watched.

    Raises:
        OptionError: it has no recurrent layer that can be watched.
    """

    def __init__(self, model: nn.Module) -> None:
        self.calls: list[Given] = []
        found = {name: ours for name, m in model.named_modules() if (ours := _ours(m)) is not None}
        if not found:
            raise OptionError(
                "the model has no recurrent layer of torch.nn or throughtime to watch, and cells "
                "that a loop steps are not watched; leave the callback out, and look at the model "
                "with throughtime.diagnose"
            )
        modules = dict(model.named_modules())
        self._handles = [self._hook(name, modules[name], found[name]) for name in found]

    def _hook(self, name: str, module: nn.Module, ours: SequenceLayer) -> RemovableHandle:
        def seen(_: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            if torch.is_grad_enabled():
                self.calls.append(_remembered(name, ours, args, kwargs, out))

        return module.register_forward_hook(seen, with_kwargs=True)

    def clear(self) -> None:
        """Forget the calls."""
        self.calls.clear()

    def close(self) -> None:
        """Take the hooks away."""
        self.clear()
        for handle in self._handles:
            handle.remove()


def _ours(module: nn.Module) -> SequenceLayer | None:
    """A recurrent module as our layer; torch's keep their weights, which ours then shares."""
    if isinstance(module, nn.RNNBase) and not isinstance(module, SequenceLayer):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of hooks, which the layer made here never runs
            module = from_torch(module, in_place=True)
    return module if isinstance(module, SequenceLayer) else None


def _remembered(name: str, ours: SequenceLayer, args: Any, kwargs: Any, out: Any) -> Given:
    x, state, given = arguments(args, kwargs)
    y, final = (
        out if isinstance(out, tuple) and not isinstance(out, PackedSequence) else (out, None)
    )
    call = Given(name, ours, _detached(x), _detached(state), given, _detached(y), _detached(final))
    data = y.data if isinstance(y, PackedSequence) else y
    if data.requires_grad:
        data.register_hook(lambda d: setattr(call, "d_outputs", d))
    for place, v in enumerate(tensors(final)):
        if v.requires_grad:
            v.register_hook(partial(_keep_final, call, place))
    return call


def _keep_final(call: Given, place: int, d: Tensor | None) -> None:
    if d is not None:  # torch calls with nothing where a neighbour alone has a gradient
        call.d_final[place] = d


def _detached(value: Any) -> Any:
    """Tensors in tuples and packed sequences, apart from their graph."""
    if isinstance(value, PackedSequence):
        return value._replace(data=value.data.detach())
    if isinstance(value, Tensor):
        return value.detach()
    return tuple(_detached(v) for v in value) if isinstance(value, tuple | list) else value
