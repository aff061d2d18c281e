"""Modules after and before a recurrence: readouts of its state, gates on its input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from throughtime.cell.contract import activation_function
from throughtime.errors import OptionError
from throughtime.layers.checks import check_dtype, check_size


class Readout(nn.Module):
    """y_t = s_y(W_y h_t + b_y), or any network of h_t, after the state is updated.

    Args:
        input_size: width of h_t.
        output_size: width of y_t.
        activation: s_y: "identity", "tanh", "relu", "sigmoid", or any function.
        network: a module in place of W_y h_t + b_y; sizes, device and dtype are then left out.
        device, dtype: of the weights.

    It takes a layer's outputs (..., input_size), or its (outputs, state) and returns the state too.
    """

    def __init__(
        self, input_size: int | None = None, output_size: int | None = None, *,
        activation: str | Callable[[Tensor], Tensor] = "identity",
        network: nn.Module | None = None, device: Any = None, dtype: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if network is None:
            if input_size is None or output_size is None:
                raise OptionError("Readout needs input_size and output_size, or a network")
            check_size("input_size", input_size)
            check_size("output_size", output_size)
            network = nn.Linear(input_size, output_size, device=device, dtype=check_dtype(dtype))
        elif input_size is not None or output_size is not None:
            raise OptionError("Readout takes sizes or a network, and got both")
        else:
            _check_network(network, device, dtype)
        self.network = network
        self.activation = activation_function(activation)

    def forward(self, h: Any) -> Any:
        """y of outputs (..., input_size), or (y, state) of a layer's (outputs, state)."""
        if isinstance(h, PackedSequence):
            return h._replace(data=self(h.data))
        if isinstance(h, tuple):
            outputs, state = h
            return self(outputs), state
        return self.activation(self.network(h))


class Gate(nn.Module):
    """A gate: x * sigmoid(W x + b), each input times a number from 0 (shut) to 1 (open).

    Args:
        size: width of x.
        network: a module in place of W x + b; its outputs go through the sigmoid.
        device, dtype: of the weights; left out with a network.
    """

    def __init__(
        self, size: int, network: nn.Module | None = None, *, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        check_size("size", size)
        if network is None:
            network = nn.Linear(size, size, device=device, dtype=check_dtype(dtype))
        else:
            _check_network(network, device, dtype)
        self.network = network

    def forward(self, x: Tensor, by: Tensor | None = None) -> Tensor:
        """x times the sigmoid of the network of `by`, or of x where `by` is left out."""
        opened: Tensor = torch.sigmoid(self.network(x if by is None else by))
        return x * opened


def _check_network(network: object, device: Any, dtype: Any) -> None:
    if not isinstance(network, nn.Module):
        raise TypeError(f"network must be a torch.nn.Module, got {type(network).__name__}")
    if device is not None or dtype is not None:
        raise OptionError("device and dtype are those of the network; move it with network.to(...)")
