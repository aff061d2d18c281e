"""RNN, LSTM and GRU as torch.nn has them: same arguments, weights, results, errors and repr."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from torch import nn

from throughtime.backends.torch_kernels import quiet_projections
from throughtime.cells import Cell
from throughtime.cells.elman import Elman
from throughtime.cells.gru import GRU as GRUEquations
from throughtime.cells.lstm import LSTM as LSTMEquations
from throughtime.cells.lstm_projected import LSTMProjected
from throughtime.layers.drop_in.base import DropIn
from throughtime.layers.drop_in.checks import (
    check_arguments,
    check_nothing_projected,
    check_pair,
    check_projection,
)


@lru_cache(typed=True)
def _share_cell(kind: Callable[..., Cell], *numbers: int | str) -> Cell:
    """The one cell that all layers of these equations share, so that it is traced once."""
    return kind(*numbers)


class RNN(DropIn):
    """The vanilla recurrent network: torch.nn.RNN's arguments, weights and results.

        h_t = tanh(W x_t + b + U h_{t-1} + b')      or relu

    Args:
        input_size: width I of the input.
        hidden_size: H, width of the state.
        num_layers: L, each layer reading the outputs of the one below.
        nonlinearity: "tanh" or "relu".
        bias: whether W and U carry biases.
        batch_first: input and output are (B, T, width); states never are.
        dropout: share of a layer's outputs dropped before the next, in training.
        bidirectional: run a second, backward direction; outputs are concatenated.
        device, dtype: of the weights.
        backend: who computes it; a named backend runs or raises, "auto" chooses.

    Source: Elman, Finding Structure in Time (1990).
    """

    kind = "RNN"

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, nonlinearity: str = "tanh",
        bias: bool = True, batch_first: bool = False, dropout: float = 0.0,
        bidirectional: bool = False, device: Any = None, dtype: Any = None, *,
        backend: str = "auto", proj_size: None = None,
    ) -> None:  # fmt: skip
        check_nothing_projected(proj_size)
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(
                f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'."
            )
        check_arguments(input_size, hidden_size, num_layers, bias, batch_first, dropout)
        vars(self)["nonlinearity"] = nonlinearity  # a start of the user's own may read it
        super().__init__(
            _share_cell(Elman, nonlinearity), input_size, hidden_size, num_layers, bias,
            batch_first, dropout, bidirectional, device, dtype, backend,
        )  # fmt: skip


class LSTM(DropIn):
    """Long short-term memory: torch.nn.LSTM's arguments, weights and results.

        i, f, o = sigmoid(W x_t + b + U h_{t-1} + b')    each with its own W, U, b, b'
        g = tanh(W x_t + b + U h_{t-1} + b')
        c_t = f * c_{t-1} + i * g
        h_t = o * tanh(c_t)                              or V (o * tanh(c_t)) with a projection

    Args:
        input_size: width I of the input.
        hidden_size: H, width of h and c; or a pair (long, short), widths of c and of h. An equal
            pair needs no projection; short may exceed long.
        num_layers: L, each layer reading the outputs of the one below.
        bias: whether W and U carry biases.
        batch_first: input and output are (B, T, width); states never are.
        dropout: share of a layer's outputs dropped before the next, in training.
        bidirectional: run a second, backward direction; outputs are concatenated.
        proj_size: the width of h, below hidden_size; 0 projects nothing.
        device, dtype: of the weights.
        backend: who computes it; a named backend runs or raises, "auto" chooses.

    Source: Hochreiter and Schmidhuber (1997) with the forget gate of Gers et al. (2000); the
    projection of Sak et al. (2014).
    """

    kind = "LSTM"

    def __init__(
        self, input_size: int, hidden_size: int | tuple[int, int], num_layers: int = 1,
        bias: bool = True, batch_first: bool = False, dropout: float = 0.0,
        bidirectional: bool = False, proj_size: int = 0, device: Any = None, dtype: Any = None, *,
        backend: str = "auto",
    ) -> None:  # fmt: skip
        pair = isinstance(hidden_size, tuple)
        sizes: Any = check_pair(hidden_size, proj_size) if pair else (hidden_size, proj_size)
        long, short = sizes
        check_arguments(input_size, long, num_layers, bias, batch_first, dropout)
        if not pair:
            check_projection(long, short)
        projected = short not in (0, long)
        if pair and projected:
            quiet_projections()
        cell = _share_cell(LSTMProjected, short) if projected else _share_cell(LSTMEquations)
        super().__init__(
            cell, input_size, long, num_layers, bias, batch_first, dropout, bidirectional,
            device, dtype, backend,
        )  # fmt: skip

    # Called by programs that write their own `forward`, for a state of two tensors.
    check_forward_args = nn.LSTM.check_forward_args  # type: ignore[assignment]
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    permute_hidden = nn.LSTM.permute_hidden  # type: ignore[assignment]


class GRU(DropIn):
    """The gated recurrent unit: torch.nn.GRU's arguments, weights and results.

        r, z = sigmoid(W x_t + b + U h_{t-1} + b')       each with its own W, U, b, b'
        n = tanh(W x_t + b + r * (U h_{t-1} + b'))
        h_t = (1 - z) * n + z * h_{t-1}

    Args:
        input_size: width I of the input.
        hidden_size: H, width of the state.
        num_layers: L, each layer reading the outputs of the one below.
        bias: whether W and U carry biases.
        batch_first: input and output are (B, T, width); states never are.
        dropout: share of a layer's outputs dropped before the next, in training.
        bidirectional: run a second, backward direction; outputs are concatenated.
        device, dtype: of the weights.
        backend: who computes it; a named backend runs or raises, "auto" chooses.

    Source: Cho et al. (2014), with the reset after the product as in cuDNN.
    """

    kind = "GRU"

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True,
        batch_first: bool = False, dropout: float = 0.0, bidirectional: bool = False,
        device: Any = None, dtype: Any = None, *, backend: str = "auto", proj_size: None = None,
    ) -> None:  # fmt: skip
        check_nothing_projected(proj_size)
        check_arguments(input_size, hidden_size, num_layers, bias, batch_first, dropout)
        super().__init__(
            _share_cell(GRUEquations), input_size, hidden_size, num_layers, bias, batch_first,
            dropout, bidirectional, device, dtype, backend,
        )  # fmt: skip
