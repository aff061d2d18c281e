"""What every layer shares: parameters by torch's names, and the way through layers and time."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.backends import check_backend, choose
from throughtime.backends.call import Call, Result
from throughtime.cells import Cell
from throughtime.cells.parameters import parameter_shapes
from throughtime.compiler.trace import trace
from throughtime.errors import CellError, OptionError
from throughtime.layers.dilation import fold, unfold
from throughtime.layers.gate import Gate
from throughtime.layers.masks import recurrent_mask, weight_dropped, zoneout_masks
from throughtime.layers.merge import merged, merged_width
from throughtime.layers.options import Options
from throughtime.scan import scan

States = tuple[tuple[Tensor, ...], ...]
"""Over layers, over the cell's states: (D, B, width)."""


@dataclass(frozen=True)
class Batch:
    """A batch as the layers see it: time-major, padded or packed.

    Attributes:
        x: (T, B, I), or packed (N, I) when `batch_sizes` is given.
        state: where it starts; None starts at each layer's initial state.
        lengths: (B,), steps of each row; None means T.
        reset: (T, B) bool.
        batch_sizes: (T,), of a packed batch.
        inputs: name -> (T, B, width), inputs of the first layer multiplied by no matrix.
    """

    x: Tensor
    state: States | None = None
    lengths: Tensor | None = None
    reset: Tensor | None = None
    batch_sizes: Tensor | None = None
    inputs: Mapping[str, Tensor] | None = None


class SequenceLayer(nn.Module, ABC):
    """Layers x directions of one cell over whole sequences.

    Attributes:
        cell: the equations.
        input_size: width of the input.
        hidden_sizes: H of each layer.
        directions: 1 or 2.
        bias: whether W and U carry biases.
        options: what is done around the cell.
        backend: who computes it, or "auto".
        output_size: width of the outputs.
        widths: of each layer, the widths of the cell's states.
        dilations: d of each layer.
    """

    def __init__(
        self, cell: Cell, input_size: int, hidden_sizes: Sequence[int], *, directions: int,
        bias: bool, options: Options, backend: str, device: Any, dtype: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        if not isinstance(cell, Cell):
            raise CellError(f"cell must be an instance of a Cell, got {cell!r}")
        trace(cell)
        self.cell = cell
        self.input_size = input_size
        self.hidden_sizes = tuple(hidden_sizes)
        self.directions = directions
        self.bias = bias
        self.options = options
        self.backend = check_backend(backend)
        self.widths = tuple(cell.widths(h) for h in self.hidden_sizes)
        self._output_sizes = tuple(
            merged_width(w[0], directions, options.merge) for w in self.widths
        )
        self.output_size = self._output_sizes[-1]
        self.dilations = _per_layer(options.dilation, len(self.hidden_sizes))
        self._check_residual()
        self._names = [
            [self._register(layer, d, device, dtype) for d in range(directions)]
            for layer in range(len(self.hidden_sizes))
        ]
        self.reset_parameters()

    def _check_residual(self) -> None:
        sizes = set(self._output_sizes)
        if self.options.residual and len(sizes) > 1:
            raise OptionError(
                f"residual adds each layer's input to its output, so all layers must give the same "
                f"width, got {', '.join(map(str, self._output_sizes))}"
            )

    def _register(self, layer: int, d: int, device: Any, dtype: Any) -> dict[str, str]:
        """Empty parameters of one layer and direction; gives short name -> name."""
        hidden = self.hidden_sizes[layer]
        width = self.input_size if layer == 0 else self._output_sizes[layer - 1]
        shapes = parameter_shapes(self.cell, width, hidden, self.bias)
        if self.options.learn_initial:
            for state, w in zip(self.cell.state_names, self.widths[layer], strict=True):
                shapes[f"initial_{state}"] = (w,)
        suffix = f"_l{layer}{'_reverse' if d else ''}"
        for name, shape in shapes.items():
            empty = torch.empty(shape, device=device, dtype=dtype)
            self.register_parameter(name + suffix, nn.Parameter(empty))
        return {name: name + suffix for name in shapes}

    def reset_parameters(self) -> None:
        """torch's default start: U(-1/sqrt(H), 1/sqrt(H)); vectors as their cell declares."""
        for layer, directions in enumerate(self._names):
            bound = 1 / math.sqrt(self.hidden_sizes[layer]) if self.hidden_sizes[layer] else 0
            for short, name in (pair for names in directions for pair in names.items()):
                value = getattr(self, name)
                if short in self.cell.vectors:
                    nn.init.constant_(value, self.cell.vectors[short])
                elif short.startswith("initial_"):
                    nn.init.zeros_(value)
                else:
                    nn.init.uniform_(value, -bound, bound)

    def gate(self, name: str, layer: int = 0, reverse: bool = False) -> Gate:
        """One gate's rows of the weights, by its name in the equations."""
        return Gate(self, name, layer, reverse)

    def weights(self, layer: int, d: int) -> dict[str, Tensor]:
        """Short name -> tensor, read by name at every call so that any swap of one is seen."""
        return {short: getattr(self, name) for short, name in self._names[layer][d].items()}

    def _carry(self, batch: Batch, record: bool = False) -> tuple[Tensor, list[Result]]:
        """Through all layers: the outputs, and each layer's result."""
        y, results = batch.x, []
        for layer in range(len(self.hidden_sizes)):
            result = self._carry_layer(layer, replace(batch, x=y), record)
            below, y = y, merged(result.sequences[0], self.options.merge)
            if self.options.residual and layer:
                y = y + below
            if self.options.dropout and self.training and layer + 1 < len(self.hidden_sizes):
                y = nn.functional.dropout(y, self.options.dropout)
            results.append(result)
        return y, results

    def _carry_layer(self, layer: int, batch: Batch, record: bool) -> Result:
        call, d = self._call(layer, batch, record), self.dilations[layer]
        if d == 1:
            return scan(self._masked(call, 1), self.backend)
        folded = self._masked(fold(call, d), d)
        return unfold(scan(folded, self.backend), call, d)

    def _call(self, layer: int, batch: Batch, record: bool = False) -> Call:
        """What one layer has to carry through time."""
        weights = [self.weights(layer, d) for d in range(self.directions)]
        initial = None
        if self.options.learn_initial:
            names = [f"initial_{s}" for s in self.cell.state_names]
            initial = tuple(torch.stack([w.pop(n) for w in weights]) for n in names)
        return Call(
            cell=self.cell,
            hidden_size=self.hidden_sizes[layer],
            x=batch.x,
            weights=tuple(weight_dropped(w, self.options, self.training) for w in weights),
            state=None if batch.state is None else batch.state[layer],
            initial=initial,
            lengths=batch.lengths,
            reset=batch.reset,
            batch_sizes=batch.batch_sizes,
            inputs=batch.inputs,
            record=record,
        )

    def _masked(self, call: Call, d: int) -> Call:
        """The call with its random masks; those of a sequence are shared by its d chains."""
        options = self.options
        if not (options.recurrent_dropout or options.has_zoneout):
            return call
        widths = self.cell.widths(call.hidden_size)
        D, T, B = self.directions, call.x.shape[0], call.rows
        mask = recurrent_mask(call.x, (D, B // d, widths[0]), options, self.training)
        return replace(
            call,
            recurrent_mask=None if mask is None else mask.repeat(1, d, 1),
            zoneout=zoneout_masks(
                call.x, self.cell, [(D, T, B, w) for w in widths], options, self.training
            ),
        )

    def explain(self, steps: int = 16, batch: int = 1) -> str:
        """Which backend each layer would take for such a batch, and why not those before it."""
        lines = []
        for layer in range(len(self.hidden_sizes)):
            call = self._call(layer, Batch(self._zeros(layer, steps, batch)))
            folded = fold(call, self.dilations[layer]) if self.dilations[layer] > 1 else call
            choice = choose(self._masked(folded, self.dilations[layer]), self.backend)
            lines.append(f"layer {layer}: {choice}")
        for operation, line in trace(self.cell).unsupported:
            lines.append(f"  {operation} has no rule, which keeps the cell uncompiled: {line}")
        return "\n".join(lines)

    def _zeros(self, layer: int, steps: int, batch: int) -> Tensor:
        width = self.input_size if layer == 0 else self._output_sizes[layer - 1]
        parameter = next(self.parameters())
        return torch.zeros(steps, batch, width, dtype=parameter.dtype, device=parameter.device)


def _per_layer(values: tuple[int, ...], layers: int) -> tuple[int, ...]:
    if len(values) not in (1, layers):
        raise OptionError(
            f"dilation must be one number or one for each of {layers} layers, got {len(values)}"
        )
    return values * layers if len(values) == 1 else values
