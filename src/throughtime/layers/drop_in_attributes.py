"""The attributes of torch.nn's recurrent layers, as programs read and set them."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any, cast

from torch import Tensor, nn

from throughtime.layers.sequence import SequenceLayer


class PastRNNBase:
    """Stands before torch.nn.RNNBase among the bases of a layer, and passes on what RNNBase does.

    So a layer is a torch.nn.RNNBase, and has its methods, without a second set of weights or a list
    of them. Classes after RNNBase, mixins of the user's own among them, are called as after a layer
    of torch's.
    """

    def __init__(self) -> None:
        _after_rnn_base(self).__init__()

    def __getstate__(self) -> Any:
        return _after_rnn_base(self).__getstate__()

    def __setstate__(self, state: Any) -> None:
        _after_rnn_base(self).__setstate__(state)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        return _after_rnn_base(self)._apply(fn, recurse)

    def _replicate_for_data_parallel(self) -> Any:
        return _after_rnn_base(self)._replicate_for_data_parallel()

    def _weights_have_changed(self) -> bool:
        return False  # they are read by name at every call


def _after_rnn_base(layer: Any) -> Any:
    return super(nn.RNNBase, layer)


class TorchAttributes(SequenceLayer):
    """A layer that can be read like torch.nn's.

    Attributes:
        mode: torch's name of the equations: "RNN_TANH", "RNN_RELU", "LSTM" or "GRU".
        input_size, hidden_size, num_layers, bias, batch_first, bidirectional, proj_size: as given.
    """

    mode: str
    hidden_size: int
    num_layers: int
    bidirectional: bool
    proj_size: int

    @property
    def dropout(self) -> float:
        """Share of a layer's outputs dropped before the next; may be set at any time."""
        return self.options.dropout

    @dropout.setter
    def dropout(self, value: float) -> None:
        self.options = replace(self.options, dropout=float(value))

    @cached_property
    def _all_weights(self) -> list[list[str]]:
        return [list(names.values()) for layer in self._names for names in layer]

    @cached_property
    def _flat_weights_names(self) -> list[str]:
        return [name for names in self._all_weights for name in names]

    @property
    def _flat_weights(self) -> list[Tensor | None]:
        # Read at every setting of a weight, by torch.nn.RNNBase.
        plain = self.plain_parameters()
        return [
            plain[name] if name in plain else getattr(self, name, None)
            for name in self._flat_weights_names
        ]

    @_flat_weights.setter
    def _flat_weights(self, values: list[Tensor | None]) -> None:
        for name, value in zip(self._flat_weights_names, values, strict=True):
            if value is not getattr(self, name, None):
                setattr(self, name, value)

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """For each layer and direction its weights, in torch's order."""
        return [[getattr(self, name) for name in names] for names in self._all_weights]

    def flatten_parameters(self) -> None:
        """Put the weights side by side for cuDNN; on all but its GPUs there is nothing to do."""
        first = next(self.parameters(), None)
        if first is not None and first.is_cuda and self.proj_size < self.hidden_size:
            nn.RNNBase.flatten_parameters(cast(Any, self))

    def _init_flat_weights(self) -> None:
        self.flatten_parameters()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        moved: Any = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.flatten_parameters()
        return moved

    def extra_repr(self) -> str:
        """As torch.nn writes it."""
        words = [str(self.input_size), str(self.hidden_size)]
        if self.proj_size > self.hidden_size:
            words[1] = f"({self.hidden_size}, {self.proj_size})"
        elif self.proj_size:
            words.append(f"proj_size={self.proj_size}")
        defaults = {
            "num_layers": 1, "bias": True, "batch_first": False, "dropout": 0,
            "bidirectional": False,
        }  # fmt: skip
        for name, default in defaults.items():
            if getattr(self, name) != default:
                words.append(f"{name}={getattr(self, name)}")
        return ", ".join(words)
