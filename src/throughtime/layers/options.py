"""What stands around a cell: options, masks, the merge of two directions; gates and readouts.

A layer does the former itself; gates before it and readouts after it are modules of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.nn.utils.rnn import PackedSequence

from throughtime.cell.contract import activation_function
from throughtime.cells import Cell
from throughtime.errors import OptionError
from throughtime.layers.checks import check_dtype, check_size


def draw_recurrent_mask(
    x: Tensor, shape: tuple[int, ...], options: Options, training: bool
) -> Tensor | None:
    """Recurrent dropout's mask, (D, B, width), one for a whole sequence.

    Source: Gal and Ghahramani, A Theoretically Grounded Application of Dropout in Recurrent
    Neural Networks (2016); the mask is shared by the gates.
    """
    if not training or not options.recurrent_dropout:
        return None
    return dropout(x.new_ones(shape), options.recurrent_dropout)


def draw_zoneout_masks(
    x: Tensor, cell: Cell, shapes: list[tuple[int, ...]], options: Options, training: bool
) -> tuple[Tensor, ...] | None:
    """Zoneout's m for each state, (D, T, B, width): 0 or 1 in training, as int16; else its mean.

    Source: Krueger et al., Zoneout (2017).
    """
    if not options.has_zoneout:
        return None
    masks = []
    for name, shape in zip(cell.state_names, shapes, strict=True):
        share = options.zoneout_of(name)
        if training and 0 < share < 1:
            masks.append(_draw_mask(shape, share, x))
        else:
            masks.append(x.new_full((1,), share).expand(shape))
    return tuple(masks)


def _draw_mask(shape: tuple[int, ...], share: float, x: Tensor) -> Tensor:
    """1 with probability `share`, else 0; in a fifth of the time of `bernoulli_` on a CPU.

    A draw of 64 bits makes four numbers of the mask, so `share` is rounded to 16 bits: an error
    below the random one of a mask of a million numbers.
    """
    count, below = math.prod(shape), min(max(round(share * 2**16), 1), 2**16 - 1) - 2**15
    draws = torch.randint(-(2**63), 2**63 - 1, (-(-count // 4),), device=x.device)
    numbers = draws.view(torch.int16)[:count].view(shape)
    return numbers.lt_(below)


def drop_weights(
    weights: Mapping[str, Tensor], options: Options, training: bool
) -> Mapping[str, Tensor]:
    """The weights with DropConnect on the recurrent matrix.

    Source: Merity, Keskar and Socher, Regularizing and Optimizing LSTM Language Models (2018).
    """
    if not training or not options.weight_dropout or "weight_hh" not in weights:
        return weights
    dropped = dropout(weights["weight_hh"], options.weight_dropout)
    return {name: dropped if name == "weight_hh" else v for name, v in weights.items()}


Merge = Literal["concat", "sum", "mean", "mul"] | Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Options:
    """What a layer does around its cell; each is off by default.

    Attributes:
        merge: how the outputs of two directions become one.
        dropout: share of a layer's outputs dropped before the next layer.
        residual: every layer after the first adds its input to its output.
        recurrent_dropout: share of the state dropped before U, one mask a sequence.
        zoneout: share of the state's units that keep their old value, of all states or by name.
        weight_dropout: share of the recurrent weights dropped, one mask a call.
        dilation: d, a number or one a layer: h_t follows h_{t-d}.
        learn_initial: whether the state a sequence starts from is a parameter.
        checkpoint_every: k, training keeps every k-th state and computes the rest again.
        clip_gradient: c, the largest norm of a row's gradient by its states at a step.
    """

    merge: Merge = "concat"
    dropout: float = 0.0
    residual: bool = False
    recurrent_dropout: float = 0.0
    zoneout: float | Mapping[str, float] = 0.0
    weight_dropout: float = 0.0
    dilation: tuple[int, ...] = field(default=(1,))
    learn_initial: bool = False
    checkpoint_every: int | None = None
    clip_gradient: float | None = None

    def __post_init__(self) -> None:
        if not callable(self.merge) and self.merge not in ("concat", "sum", "mean", "mul"):
            raise OptionError(
                f"merge must be concat, sum, mean, mul or a function of two tensors, "
                f"got {self.merge!r}"
            )
        for name in ("dropout", "recurrent_dropout", "weight_dropout"):
            _check_share(name, getattr(self, name))
        for share in self._zoneouts:
            _check_share("zoneout", share)
        for d in self.dilation:
            check_size("dilation", d)
        k = self.checkpoint_every
        if k is not None and (isinstance(k, bool) or not isinstance(k, int) or k < 1):
            raise OptionError(f"checkpoint_every must be a positive integer or None, got {k!r}")
        c = self.clip_gradient
        if c is not None and (isinstance(c, bool) or not isinstance(c, int | float) or not c > 0):
            raise OptionError(f"clip_gradient must be a number above 0 or None, got {c!r}")

    def zoneout_of(self, state: str) -> float:
        return self.zoneout.get(state, 0.0) if isinstance(self.zoneout, Mapping) else self.zoneout

    @property
    def _zoneouts(self) -> Iterable[float]:
        return self.zoneout.values() if isinstance(self.zoneout, Mapping) else [self.zoneout]

    @property
    def has_zoneout(self) -> bool:
        return any(self._zoneouts)


def _check_share(name: str, share: float) -> None:
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise OptionError(f"{name} must be a number from 0 to 1, got {share!r}")


def merge_directions(y: Tensor, merge: Merge, lengths: Tensor | None = None) -> Tensor:
    """The outputs of one or two directions as one.

    Args:
        y: (..., D, W), the outputs of each direction.
        merge: "concat" gives (..., D W); "sum", "mean", "mul" and most functions (..., W).
        lengths: (B,), steps of each row of y (T, B, D, W); outputs after a row's end are zero,
            whatever a function returns for zeros.
    """
    if merge == "concat" or y.shape[-2] == 1:
        return y.flatten(-2)
    forward, backward = y.unbind(-2)
    if callable(merge):
        y_merged = merge(forward, backward)
        if lengths is None:
            return y_merged
        steps = torch.arange(y.shape[0], device=y.device).unsqueeze(1)
        return torch.where((steps < lengths.to(y.device)).unsqueeze(-1), y_merged, 0)
    if merge == "mul":
        return forward * backward
    total = forward + backward
    return total / 2 if merge == "mean" else total


def find_merged_width(width: int, directions: int, merge: Merge) -> int:
    """The width of the outputs after `merge`."""
    if merge == "concat":
        return width * directions
    if not callable(merge) or directions == 1:
        return width
    if isinstance(merge, torch.nn.Module) and merge.state_dict():
        raise OptionError(
            f"merge must be a function without tensors of its own, which the layer would not hold, "
            f"got {type(merge).__name__}; use merge='concat' and put the module after the layer"
        )
    try:
        zeros = torch.zeros(2, 2, 3, width, device="cpu")
        outputs = merge(zeros[0], zeros[1])
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(
            f"merge must take two tensors (..., {width}), the forward and the backward outputs; "
            f"from (2, 3, {width}) it raised {error!r}"
        ) from error
    if not isinstance(outputs, Tensor) or outputs.shape[:-1] != (2, 3):
        got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise OptionError(
            f"merge must return (..., width) for two tensors (..., {width}); for (2, 3, {width}) "
            f"it returned {got}"
        )
    return outputs.shape[-1]


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
