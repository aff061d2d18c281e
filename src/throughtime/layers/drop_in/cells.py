"""RNNCell, LSTMCell and GRUCell as torch.nn has them: one step of the equations, as a module."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from throughtime import backends
from throughtime.backends import Choice, check_backend, cpu
from throughtime.backends.call import Call, is_traced
from throughtime.backends.torch_kernels import (
    STEPS,
    carries_stack,
)
from throughtime.cells import Cell
from throughtime.cells.elman import Elman
from throughtime.cells.gru import GRU
from throughtime.cells.lstm import LSTM
from throughtime.layers.checks import check_counts
from throughtime.layers.drop_in.checks import check_cell_dimensions, check_cell_sizes
from throughtime.layers.module import CellModule, GateRows, write_node
from throughtime.scan import scan
from throughtime.scan.prepared import BACKENDS, ShortStep


class PastRNNCellBase:
    """Precedes torch.nn.RNNCellBase among a cell's bases, so that it makes no second weights."""

    def __init__(self) -> None:
        _after_rnn_cell_base(self).__init__()


def _after_rnn_cell_base(cell: Any) -> Any:
    return super(nn.RNNCellBase, cell)


class DropInCell(CellModule, PastRNNCellBase, nn.RNNCellBase):
    """One step of a cell, with the parameters and the call of torch.nn's; also an RNNCellBase.

    Attributes:
        kind: the name of torch's class.
        input_size, hidden_size, bias: as given.
        backend: who computes it, or "auto".
    """

    kind: ClassVar[str]
    _quantised_otherwise = "quantise throughtime.to_torch(model)"
    directions = 1
    weight_ih: nn.Parameter
    weight_hh: nn.Parameter
    bias_ih: nn.Parameter | None  # type: ignore[assignment]
    bias_hh: nn.Parameter | None  # type: ignore[assignment]
    _short: ShortStep

    def __init__(
        self, gates: int, input_size: int, hidden_size: int, bias: bool, device: Any, dtype: Any,
        backend: str,
    ) -> None:  # fmt: skip
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias
        self.backend = check_backend(backend)
        rows = gates * hidden_size
        shapes = {"weight_ih": (rows, input_size), "weight_hh": (rows, hidden_size)}
        biases = {"bias_ih": (rows,), "bias_hh": (rows,)}
        for name, shape in (shapes | biases).items():
            left_out = name in biases and not bias
            empty = None if left_out else torch.empty(shape, device=device, dtype=dtype)
            self.register_parameter(name, None if empty is None else nn.Parameter(empty))
        self.reset_parameters()
        self._prepare()

    def _prepare(self) -> None:
        super()._prepare()
        vars(self)["_short"] = ShortStep()

    @property
    def cell(self) -> Cell:
        """The equations, which each subclass names."""
        raise NotImplementedError

    @property
    def hidden_sizes(self) -> tuple[int]:
        """H, as a layer of one cell has it."""
        return (self.hidden_size,)

    def reset_parameters(self) -> None:
        """torch's default start: U(-1/sqrt(H), 1/sqrt(H))."""
        bound = 1 / math.sqrt(self.hidden_size) if self.hidden_size > 0 else 0
        for weight in self.parameters():
            nn.init.uniform_(weight, -bound, bound)

    def gate(self, name: str) -> GateRows:
        """One gate's rows of the weights, by its name in the equations."""
        return GateRows(self, name, 0, False)

    def weights(self, layer: int = 0, d: int = 0) -> dict[str, Tensor]:
        """Name -> tensor, read at every call, since a user may replace a parameter."""
        return {name: getattr(self, name) for name in self.weight_names()}

    def weight_names(self, layer: int = 0, d: int = 0) -> dict[str, str]:
        """Name -> name, as a layer of one cell has it."""
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if self.bias else 2]
        return dict(zip(names, names, strict=True))

    def explain(self, batch: int = 1) -> str:
        """Which backend a step would take, and why not those before it."""
        check_counts(batch=batch)
        like = self.weight_ih
        x = torch.zeros(batch, self.input_size, dtype=like.dtype, device=like.device)
        if self._takes_kernel(x):
            reason = cpu.refuses_cell(self.cell, like) if self.backend == "auto" else None
            return str(Choice("torch", {} if reason is None else {"cpu": reason}))
        return backends.explain(self._call(x, None), self.backend)

    def _call(self, x: Tensor, state: tuple[Tensor, ...] | None) -> Call:
        start = None if state is None else tuple(v.unsqueeze(0) for v in state)
        return Call(self.cell, self.hidden_size, x.unsqueeze(0), (self.weights(),), start)

    def _step(self, input: Tensor, state: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
        """The new state after one step of a batch (B, I) or of one row (I,)."""
        if self._observer is not None:
            new: tuple[Tensor, ...] = self._observer(input, state)
            return new
        if self.backend in BACKENDS and "_short" in vars(self):
            result = self._short.step(self, input, state)
            if result is not None:
                return result
        check_cell_dimensions(self, input, state)
        single = input.dim() == 1
        x = input.unsqueeze(0) if single else input
        if state is None:
            zeros = torch.zeros(x.shape[0], self.hidden_size, dtype=x.dtype, device=x.device)
            state = (zeros, zeros) if self.kind == "LSTMCell" else (zeros,)
        elif single:
            state = tuple(v.unsqueeze(0) for v in state)
        if self._takes_kernel(x):
            new = self.step_by_torch(x, state)
        else:
            check_cell_sizes(self, x, state)
            new = tuple(v.squeeze(0) for v in scan(self._call(x, state), self.backend).final)
        return tuple(v.squeeze(0) for v in new) if single else new

    def _takes_kernel(self, x: Tensor) -> bool:
        """Whether torch's own kernel takes the call; with "auto", where nothing is compiled."""
        if not carries_stack(self.backend):
            return False
        if self.backend != "auto" or is_traced():
            return True
        return cpu.refuses_cell(self.cell, x) is not None

    def step_by_torch(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """One step by torch's own kernel."""
        plain = self.plain_parameters()
        try:
            weights = plain["weight_ih"], plain["weight_hh"], plain["bias_ih"], plain["bias_hh"]
        except KeyError:
            weights = self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh
        kernel = STEPS[str(self.cell.torch_equivalent)]
        if self.kind == "LSTMCell":
            return kernel(x, state, *weights)  # type: ignore[no-any-return]
        return (kernel(x, state[0], *weights),)

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """h_t from x_t, (B, I) or (I,), and h_{t-1}, (B, H) or (H,); left out, zero."""
        if isinstance(input, Proxy):
            return write_node(self, input, hx)
        return self._step(input, None if hx is None else (hx,))[0]

    def extra_repr(self) -> str:
        """As torch.nn writes it."""
        words = [str(self.input_size), str(self.hidden_size)]
        if self.bias is not True:
            words.append(f"bias={self.bias}")
        return ", ".join(words)


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
        if self.nonlinearity not in _ELMAN:
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        return _ELMAN[self.nonlinearity]

    def extra_repr(self) -> str:
        """As torch.nn writes it."""
        words = super().extra_repr()
        return (
            words if self.nonlinearity == "tanh" else f"{words}, nonlinearity={self.nonlinearity}"
        )


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
            return write_node(self, input, hx)
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
