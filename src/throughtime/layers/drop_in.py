"""RNN, LSTM and GRU as torch.nn has them: same arguments, weights, results, errors and repr."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from throughtime.backends.torch import carries_stack, run_stack
from throughtime.cells import Cell
from throughtime.cells.elman import Elman
from throughtime.cells.gru import GRU as GRUEquations
from throughtime.cells.lstm import LSTM as LSTMEquations
from throughtime.cells.lstm_projected import LSTMProjected
from throughtime.layers.border import enter
from throughtime.layers.drop_in_checks import (
    check_arguments,
    check_dimensions,
    check_input,
    check_nothing_projected,
    check_pair,
    check_projection,
    check_state,
)
from throughtime.layers.options import Options
from throughtime.layers.sequence import SequenceLayer, States


class DropIn(SequenceLayer):
    """What the three share: torch.nn's call, and its attributes.

    Attributes:
        mode: torch's name of the equations: "RNN_TANH", "RNN_RELU", "LSTM" or "GRU".
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
        proj_size: as given.
    """

    kind: ClassVar[str]

    @abstractmethod
    def __init__(
        self, cell: Cell, input_size: int, hidden_size: int, num_layers: int, bias: bool,
        batch_first: bool, dropout: float, bidirectional: bool, device: Any, dtype: Any,
        backend: str,
    ) -> None:  # fmt: skip
        super().__init__(
            cell, input_size, tuple(hidden_size for _ in range(num_layers)),
            directions=2 if bidirectional else 1, bias=bias,
            options=Options(dropout=float(dropout)), backend=backend, device=device, dtype=dtype,
        )  # fmt: skip
        self.mode = str(cell.torch_equivalent)
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.batch_first = batch_first
        self.bidirectional = bidirectional
        self.proj_size = int(getattr(cell, "proj_size", 0))

    def forward(
        self, input: Any, hx: Any = None, *, lengths: Tensor | Iterable[int] | None = None,
        reset: Tensor | None = None,
    ) -> Any:  # fmt: skip
        """Carry a batch of sequences through all layers.

        Args:
            input: (T, B, I), with batch_first (B, T, I), without a batch (T, I); or a
                PackedSequence.
            hx: where it starts: h0, or (h0, c0) for an LSTM, each (L D, B, width), without a
                batch (L D, width); left out, zeros.
            lengths: (B,) steps of each row of a padded input, in any order, 0 is legal; outputs
                behind a row's end are zero.
            reset: bool, the input's shape without its width: True puts the state back to zero
                before that step (in the backward direction, after it).

        Returns:
            (output, h_n), or (output, (h_n, c_n)) for an LSTM, as torch.nn.

        Raises:
            ValueError, RuntimeError: what torch.nn raises, with its text.
            ShapeError, OptionError: lengths or reset do not fit.
        """
        x, state, rows = self._checked(input, hx)
        if lengths is None and reset is None and carries_stack(self.backend) and len(input):
            return self._run_stack(input, x, state, rows)
        return self._run_layers(input, state, lengths, reset)

    def _checked(self, input: Any, hx: Any) -> tuple[Tensor, tuple[Tensor, ...] | None, int]:
        """The input with a batch dimension or packed, the states (L D, B, width), and B."""
        state = None if hx is None else (hx if self._two else (hx,))
        weight = self._parameters.get("weight_ih_l0")
        dtype = (self.weight_ih_l0 if weight is None else weight).dtype
        if isinstance(input, PackedSequence):
            x, rows = input.data, int(input.batch_sizes[0])
            check_input(self, x, dtype, 2)
        else:
            check_dimensions(self, input, state)
            x = input
            if x.dim() == 2:
                x = x.unsqueeze(0 if self.batch_first else 1)
                state = None if state is None else tuple(v.unsqueeze(1) for v in state)
            rows = x.shape[0 if self.batch_first else 1]
            check_input(self, x, dtype, 3)
        if state is not None:
            check_state(self, state, rows)
        return x, state, rows

    def _run_stack(
        self, input: Any, x: Tensor, state: tuple[Tensor, ...] | None, rows: int
    ) -> Any:
        """All layers in one call of torch's kernel, as torch.nn makes it: same bits, same speed."""
        packed = input if isinstance(input, PackedSequence) else None
        start: Any = self._zeros_like(x, rows) if state is None else state
        if packed is not None and packed.sorted_indices is not None and state is not None:
            start = tuple(v.index_select(1, packed.sorted_indices) for v in state)
        start = start if self._two else start[0]
        options = (
            self.bias, self.num_layers, self.options.dropout, self.training, self.bidirectional,
        )  # fmt: skip
        kernel, weights = KERNELS[self.mode], self._flat_weights
        if packed is None:
            y, *final = kernel(x, start, weights, *options, self.batch_first)
        else:
            y, *final = kernel(x, packed.batch_sizes, start, weights, *options)
        return self._left(y, final, input, packed)

    @property
    def _flat_weights(self) -> list[Tensor]:
        """Every weight in torch's order, read by name at every call: any swap of one is seen."""
        try:
            return [self._parameters[name] for name in self._flat_weights_names]
        except KeyError:
            return [getattr(self, name) for name in self._flat_weights_names]
