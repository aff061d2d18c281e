"""RNNCell, LSTMCell and GRUCell as torch.nn has them: one step of the equations, as a module."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.fx import Proxy

from throughtime.cells import Cell
from throughtime.cells.elman import Elman
from throughtime.cells.gru import GRU
from throughtime.cells.lstm import LSTM
from throughtime.layers.drop_in_cell import DropInCell
from throughtime.layers.graphs import written

_ELMAN = {"tanh": Elman("tanh"), "relu": Elman("relu")}


class RNNCell(DropInCell):
    """One step of the vanilla recurrent network, with torch.nn.RNNCell's weights and results.

        h_t = tanh(W x_t + b + U h_{t-1} + b')      or relu

    Args:
        input_size: width I of the input.
        hidden_size: H, width of the state.
        bias: whether W and U carry biases.
        nonlinearity: "tanh" or "relu".
        device, dtype: of the weights.
        backend: who computes it; a named backend runs or raises, "auto" chooses.

    Source: Elman, Finding Structure in Time (1990).
    """

    kind = "RNNCell"
    nonlinearity: str

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, nonlinearity: str = "tanh",
        device: Any = None, dtype: Any = None, *, backend: str = "auto",
    ) -> None:  # fmt: skip
        vars(self)["nonlinearity"] = nonlinearity
        super().__init__(1, input_size, hidden_size, bias, device, dtype, backend)

    def _prepare(self) -> None:
        if self.nonlinearity in _ELMAN:  # another one is refused when it is called, as torch's
            super()._prepare()

    @property
    def cell(self) -> Cell:
        """The equations."""
        if self.nonlinearity not in _ELMAN:
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        return _ELMAN[self.nonlinearity]

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """h_t from x_t, (B, I) or (I,), and h_{t-1}, (B, H) or (H,); left out, zero."""
        if isinstance(input, Proxy):
            return written(self, input, hx)
        return self._step(input, None if hx is None else (hx,))[0]

    def extra_repr(self) -> str:
        """As torch.nn writes it."""
        said = super().extra_repr()
        return said if self.nonlinearity == "tanh" else f"{said}, nonlinearity={self.nonlinearity}"


class LSTMCell(DropInCell):
    """One step of long short-term memory, with torch.nn.LSTMCell's weights and results.

        i, f, o = sigmoid(W x_t + b + U h_{t-1} + b')    each with its own W, U, b, b'
        g = tanh(W x_t + b + U h_{t-1} + b')
        c_t = f * c_{t-1} + i * g
        h_t = o * tanh(c_t)

    Args:
        input_size: width I of the input.
        hidden_size: H, width of h and c.
        bias: whether W and U carry biases.
        device, dtype: of the weights.
        backend: who computes it; a named backend runs or raises, "auto" chooses.

    Source: Hochreiter and Schmidhuber (1997) with the forget gate of Gers et al. (2000).
    """

    kind = "LSTMCell"
    cell = LSTM()

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, device: Any = None,
        dtype: Any = None, *, backend: str = "auto",
    ) -> None:  # fmt: skip
        super().__init__(4, input_size, hidden_size, bias, device, dtype, backend)

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """(h_t, c_t) from x_t, (B, I) or (I,), and (h_{t-1}, c_{t-1}); left out, zero."""
        if isinstance(input, Proxy):
            return written(self, input, hx)
        h, c = self._step(input, hx)
        return h, c


class GRUCell(DropInCell):
    """One step of the gated recurrent unit, with torch.nn.GRUCell's weights and results.

        r, z = sigmoid(W x_t + b + U h_{t-1} + b')       each with its own W, U, b, b'
        n = tanh(W x_t + b + r * (U h_{t-1} + b'))
        h_t = (1 - z) * n + z * h_{t-1}

    Args:
        input_size: width I of the input.
        hidden_size: H, width of the state.
        bias: whether W and U carry biases.
        device, dtype: of the weights.
        backend: who computes it; a named backend runs or raises, "auto" chooses.

    Source: Cho et al. (2014), with the reset after the product as in cuDNN.
    """

    kind = "GRUCell"
    cell = GRU()

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, device: Any = None,
        dtype: Any = None, *, backend: str = "auto",
    ) -> None:  # fmt: skip
        super().__init__(3, input_size, hidden_size, bias, device, dtype, backend)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """h_t from x_t, (B, I) or (I,), and h_{t-1}, (B, H) or (H,); left out, zero."""
        if isinstance(input, Proxy):
            return written(self, input, hx)
        return self._step(input, None if hx is None else (hx,))[0]
