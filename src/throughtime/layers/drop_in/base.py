"""What RNN, LSTM and GRU share: the call of torch.nn, its attributes, errors and repr."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.utils.rnn import PackedSequence

from throughtime.backends import cpu
from throughtime.backends.call import is_traced
from throughtime.backends.torch_kernels import (
    KERNELS,
    carries_stack,
)
from throughtime.cells import Cell
from throughtime.layers import SequenceLayer
from throughtime.layers.batch import Batch, Border, States, enter
from throughtime.layers.checks import check_packed, count_first_rows
from throughtime.layers.drop_in.checks import check_dimensions, check_input, check_state
from throughtime.layers.module import check_nothing_more, write_node
from throughtime.layers.options import Options
from throughtime.scan.prepared import BACKENDS, ShortWay


class PastRNNBase:
    """Precedes torch.nn.RNNBase among the bases of a layer and skips its methods.

    So a layer is a torch.nn.RNNBase without a second set of weights or a list of them. Classes
    after RNNBase, such as a user's mixins, are called as after a layer of torch's.
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
    """A layer with the attributes of torch.nn's.

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
        """Put the weights side by side for cuDNN; does nothing on other devices."""
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


class DropIn(TorchAttributes, PastRNNBase, nn.RNNBase):  # type: ignore[misc, override]
    """A layer with the call of torch.nn's; also a torch.nn.RNNBase.

    Attributes:
        kind: the name of torch's class.
    """

    kind: ClassVar[str]
    _quantised_otherwise = "quantise throughtime.to_torch(model)"
    _short_kind = ShortWay

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
        self.reset_parameters()
        self.flatten_parameters()

    def forward(
        self, input: Any, hx: Any = None, *nothing: None,
        lengths: Tensor | Iterable[int] | None = None,
        starts: Tensor | Iterable[int] | None = None, reset: Tensor | None = None,
    ) -> Any:  # fmt: skip
        """Carry a batch of sequences through all layers.

        Args:
            input: (T, B, I), with batch_first (B, T, I), without a batch (T, I); or a
                PackedSequence.
            hx: where it starts: h0, or (h0, c0) for an LSTM, each (L D, B, width), without a
                batch (L D, width); left out, zeros.
            lengths: (B,) the step at which each row of a padded input ends, T where left out, in
                any order, 0 is legal; outputs from there on are zero.
            starts: (B,) the step at which each row begins, 0 where left out, for batches padded on
                the left: row b is the steps from starts[b] to lengths[b] - 1.
            reset: bool, the input's shape without its width: True puts the state back to zero
                before that step (in the backward direction, after it).
            nothing: for torch.onnx.export, which passes keyword defaults by position.

        Returns:
            (output, h_n), or (output, (h_n, c_n)) for an LSTM, as torch.nn.

        Raises:
            ValueError, RuntimeError: what torch.nn raises, with its text.
            ShapeError, OptionError: lengths, starts or reset do not fit.
        """
        if type(input) is Proxy:
            return write_node(self, input, hx, lengths=lengths, starts=starts, reset=reset)
        if nothing:
            check_nothing_more(self, nothing)
        plain = lengths is None and starts is None and reset is None and self._observer is None
        if plain and self.backend in BACKENDS:
            result = self._run_short(input, hx)
            if result is not None:
                return result
        x, state, rows = self._check_call(input, hx)
        if plain and self._takes_stack(x):
            return self._run_stack(input, x, state, rows)
        batch, border = self._enter(input, state, lengths=lengths, starts=starts, reset=reset)
        y, results = self.carry_call(batch)
        return self.leave(y, tuple(r.final for r in results), border)

    def _run_short(self, x: Any, state: Any) -> Any:
        """The result of a plain call by the prepared layer, or None where it does not take it."""
        several = self.mode == "LSTM"
        start = () if state is None else state if several else (state,)
        if type(start) is not tuple and type(start) is not list:
            return None
        result = self._short.run(self, x, start)
        if result is None:
            return None
        return result[0], (tuple(result[1:]) if several else result[1])

    def enter(self, x: Any, state: Any = None, **options: Any) -> tuple[Batch, Border]:
        """The user's batch, checked, in the layers' layout; and the way back."""
        return self._enter(x, self._check_call(x, state)[1], **options)

    def _enter(
        self, x: Any, state: tuple[Tensor, ...] | None, **options: Any
    ) -> tuple[Batch, Border]:
        """Enter with torch's states (L D, B, width) split by layer, (D, B, width)."""
        states: States | None = None
        if state is not None:
            states = tuple(zip(*(v.split(self.directions) for v in state), strict=True))
        return enter(self, x, states, batch_first=self.batch_first, checked=True, **options)

    def leave_state(self, states: States, border: Border) -> Any:
        """The state as torch.nn returns it: h_n, or (h_n, c_n)."""
        final = tuple(border.state(torch.cat(part)) for part in zip(*states, strict=True))
        return final if self.mode == "LSTM" else final[0]

    def _check_call(self, input: Any, hx: Any) -> tuple[Tensor, tuple[Tensor, ...] | None, int]:
        """The input with a batch dimension or packed, the states (L D, B, width), and B."""
        state = None if hx is None else (hx if self.mode == "LSTM" else (hx,))
        weight = next(iter(self._parameters.values()), None)  # a parametrised one costs a call
        dtype: torch.dtype = (self.all_weights[0][0] if weight is None else weight).dtype
        if isinstance(input, PackedSequence):
            x, rows = input.data, count_first_rows(input)
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
            check_state(self, state, rows, dtype)
        return x, state, rows

    def _takes_stack(self, x: Tensor) -> bool:
        """Whether torch's kernel takes the call; it needs a time step, cuDNN a short h."""
        steps = x.shape[1 if self.batch_first else 0]
        if not carries_stack(self.backend) or not steps:
            return False
        if self.backend == "auto" and cpu.refuses_cell(self.cell, x) is None:
            return is_traced()  # tracing writes one operator of torch's for all layers
        return not (x.is_cuda and self.proj_size > self.hidden_size)

    def _run_stack(self, input: Any, x: Tensor, state: tuple[Tensor, ...] | None, rows: int) -> Any:
        """All layers in one call of torch's kernel, as torch.nn makes it: same bits, same speed."""
        packed = input if isinstance(input, PackedSequence) else None
        if state is None:
            layers = self.num_layers * self.directions
            state = tuple(x.new_zeros(layers, rows, w) for w in self.widths[0])
        elif packed is not None and packed.sorted_indices is not None:
            state = tuple(v.index_select(1, packed.sorted_indices) for v in state)
        start = state if self.mode == "LSTM" else state[0]
        try:
            plain = self.plain_parameters()
            weights: Any = [plain[name] for name in self._flat_weights_names]
        except KeyError:  # one of them was swapped for a plain tensor, or is parametrised
            weights = [getattr(self, name) for name in self._flat_weights_names]
        options = (
            self.bias, self.num_layers, self.options.dropout, self.training, self.bidirectional,
        )  # fmt: skip
        kernel = KERNELS[self.mode]
        if packed is None:
            y, *final = kernel(x, start, weights, *options, self.batch_first)
        else:
            y, *final = kernel(x, check_packed(packed), start, weights, *options)
            y = PackedSequence(y, *packed[1:])
            if packed.unsorted_indices is not None:
                final = [v.index_select(1, packed.unsorted_indices) for v in final]
        if packed is None and input.dim() == 2:
            y, final = y.squeeze(0 if self.batch_first else 1), [v.squeeze(1) for v in final]
        return y, (tuple(final) if self.mode == "LSTM" else final[0])
