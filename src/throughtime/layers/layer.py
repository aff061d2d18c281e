"""A layer's parameters, and how it carries a batch through all layers and directions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.backends import check_backend
from throughtime.backends.call import Call, Result, row_count, step_count
from throughtime.cell.layout import parameter_shapes
from throughtime.cells import Cell
from throughtime.compiler.trace import trace
from throughtime.errors import OptionError
from throughtime.layers.batch import Batch, States, end_in_last_sequences, fold, unfold
from throughtime.layers.module import CellModule, GateRows, warn_uncompiled
from throughtime.layers.options import (
    Options,
    draw_recurrent_mask,
    draw_zoneout_masks,
    drop_weights,
    find_merged_width,
    merge_directions,
)
from throughtime.scan import scan
from throughtime.scan.segments import scan_in_segments


class Weights(CellModule):
    """The parameters of layers x directions of one cell; a subclass initialises them.

    Attributes:
        cell: the equations.
        input_size: width of the input.
        hidden_sizes: H of each layer.
        directions: 1 or 2.
        bias: whether W and U carry biases.
        options: what is done around the cell.
        backend: the backend's name, or "auto".
        output_size: width of the outputs.
        widths: for each layer, the widths of the cell's states.
        dilations: d of each layer.
        batch_first: whether the user's x and outputs are (B, T, width).
    """

    batch_first: bool

    def __init__(
        self, cell: Cell, input_size: int, hidden_sizes: Sequence[int], *, directions: int,
        bias: bool, options: Options, backend: str, device: Any, dtype: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        trace(cell)  # raises where it is no cell, or cannot be traced
        self.cell = cell
        self.input_size = input_size
        self.hidden_sizes = tuple(hidden_sizes)
        self.directions = directions
        self.bias = bias
        self.options = options
        self.backend = check_backend(backend)
        self.widths = tuple(cell.widths(h) for h in self.hidden_sizes)
        self._output_sizes = tuple(
            find_merged_width(w[0], directions, options.merge) for w in self.widths
        )
        self.output_size = self._output_sizes[-1]
        self.dilations = _spread_over_layers(options.dilation, len(self.hidden_sizes))
        self._check_options()
        self._names = [
            [self._register(layer, d, device, dtype) for d in range(directions)]
            for layer in range(len(self.hidden_sizes))
        ]
        self._prepare()
        if self.backend == "auto":
            warn_uncompiled(cell, self.hidden_sizes, device)

    @property
    def is_plain(self) -> bool:
        """Whether no option acts around the cell, except dropout between layers."""
        return replace(self.options, dropout=0.0) == Options()

    def _check_options(self) -> None:
        """Check the options that depend on the cell and the sizes."""
        zoneout, names = self.options.zoneout, self.cell.state_names
        for name in zoneout if isinstance(zoneout, Mapping) else ():
            if name not in names:
                raise OptionError(
                    f"zoneout by name must name states of the cell, which are {', '.join(names)}; "
                    f"got {name!r}"
                )
        for option in ("recurrent_dropout", "weight_dropout"):
            if getattr(self.options, option) and not self.cell.layout.recurrent_gates:
                raise OptionError(
                    f"{option} acts on U of the gates, and {type(self.cell).__name__} multiplies "
                    f"its state by none, so it must be 0, got {getattr(self.options, option)}"
                )
        for name, width in self.cell.inputs.items():
            if len({self.cell.width(width, h) for h in self.hidden_sizes}) > 1:
                raise OptionError(
                    f"every layer reads the input {name}, whose width is {width}, so hidden_size "
                    f"must be the same for all layers, got {self.hidden_sizes}"
                )
        sizes = set(self._output_sizes)
        if self.options.residual and len(sizes) > 1:
            raise OptionError(
                f"residual adds each layer's input to its output, so all layers must give the same "
                f"width, got {', '.join(map(str, self._output_sizes))}"
            )

    def _register(self, layer: int, d: int, device: Any, dtype: Any) -> dict[str, str]:
        """Make empty parameters for one layer and direction; returns short name -> name."""
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

    def gate(self, name: str, layer: int = 0, reverse: bool = False) -> GateRows:
        """One gate's rows of the weights, by its name in the equations."""
        return GateRows(self, name, layer, reverse)

    def weight_names(self, layer: int, d: int) -> dict[str, str]:
        """Short name -> the parameter's name."""
        return self._names[layer][d]

    def weights(self, layer: int, d: int) -> dict[str, Tensor]:
        """Short name -> tensor, read at every call, since a user may replace a parameter."""
        names, plain = self._names[layer][d], self.plain_parameters()
        # A parameter that is replaced or parametrised is no longer among the plain ones.
        weights = {short: plain.get(name) for short, name in names.items()}
        return {s: getattr(self, names[s]) if v is None else v for s, v in weights.items()}


def _spread_over_layers(values: tuple[int, ...], layers: int) -> tuple[int, ...]:
    if len(values) not in (1, layers):
        raise OptionError(
            f"dilation must be one number or one for each of {layers} layers, got {len(values)}"
        )
    return values * layers if len(values) == 1 else values


class Passage(Weights):
    """Layers that can carry a batch through time."""

    def carry_call(self, batch: Batch) -> tuple[Tensor, list[Result]]:
        """Carry the batch by the observer, if there is one, or by the layer."""
        return self.carry(batch) if self._observer is None else self._observer(batch)

    def carry(self, batch: Batch, record: bool = False) -> tuple[Tensor, list[Result]]:
        """Carry a batch through all layers: the outputs, and each layer's result."""
        y, results = batch.x, []
        for layer in range(len(self.hidden_sizes)):
            below_it = batch._replace(x=y) if layer else batch
            result = self._carry_layer(layer, below_it, record)
            below, y = y, merge_directions(result.sequences[0], self.options.merge, batch.lengths)
            if self.options.residual and layer:
                y = y + below
            if self.options.dropout and self.training and layer + 1 < len(self.hidden_sizes):
                y = nn.functional.dropout(y, self.options.dropout)
            results.append(result)
        return y, results

    def through(
        self, batch: Batch, run: Callable[[int, Call], Tensor], *, cut: bool = False
    ) -> Tensor:
        """Carry a batch through all layers without the masks of training, each call by `run`.

        Args:
            batch: time-major and padded, for layers without dilation.
            run: from a layer's number and its call to its outputs (T, B, D, width).
            cut: detach what a residual adds to the last layer's outputs.

        Returns:
            The outputs (T, B, O).
        """
        y, last = batch.x, len(self.hidden_sizes) - 1
        was_training, self.training = self.training, False
        try:
            for layer in range(last + 1):
                call = self._masked(self._call(layer, batch._replace(x=y)), 1)
                below, y = y, merge_directions(run(layer, call), self.options.merge, batch.lengths)
                if self.options.residual and layer:
                    y = y + (below.detach() if cut and layer == last else below)
        finally:
            self.training = was_training
        return y

    def _carry_layer(self, layer: int, batch: Batch, record: bool) -> Result:
        cut = self.directions == 2 and batch.reset is not None
        call, d = self._call(layer, batch, record or cut), self.dilations[layer]
        if d == 1:
            result = self._scan(self._masked(call, 1))
        else:
            result = unfold(self._scan(self._masked(fold(call, d), d)), call, d)
        return end_in_last_sequences(result, call) if cut else result

    def _scan(self, call: Call) -> Result:
        every = self.options.checkpoint_every
        if every is None:
            return scan(call, self.backend)
        return scan_in_segments(call, self.backend, every)

    def _call(self, layer: int, batch: Batch, record: bool = False) -> Call:
        """The call of one layer."""
        weights = [self.weights(layer, d) for d in range(self.directions)]
        initial, clip = None, self.options.clip_gradient
        if self.options.learn_initial:
            names = [f"initial_{s}" for s in self.cell.state_names]
            initial = tuple(torch.stack([w.pop(n) for w in weights]) for n in names)
        return Call(
            cell=self.cell,
            hidden_size=self.hidden_sizes[layer],
            x=batch.x,
            weights=tuple(weights),
            state=None if batch.state is None else batch.state[layer],
            initial=initial,
            lengths=batch.lengths,
            reset=batch.reset,
            batch_sizes=batch.batch_sizes,
            inputs=batch.inputs,
            recurrent_mask=batch.recurrent_masks[layer] if batch.recurrent_masks else None,
            record=record,
            clip=None if clip is None else batch.x.new_full((), clip),
            norms=None if batch.norms is None else batch.norms[layer],
        )

    def _masked(self, call: Call, d: int) -> Call:
        """The call with its random masks; those of a sequence are shared by its d chains."""
        options = self.options
        if not (options.recurrent_dropout or options.has_zoneout or options.weight_dropout):
            return call
        widths = self.cell.widths(call.hidden_size)
        D, T, B = self.directions, step_count(call), row_count(call)
        mask = call.recurrent_mask
        if mask is None:
            mask = draw_recurrent_mask(call.x, (D, B // d, widths[0]), options, self.training)
        return call._replace(
            weights=tuple(drop_weights(w, options, self.training) for w in call.weights),
            recurrent_mask=None if mask is None else mask.repeat(1, d, 1),
            zoneout=draw_zoneout_masks(
                call.x, self.cell, [(D, T, B, w) for w in widths], options, self.training
            ),
        )

    def with_recurrent_masks(self, batch: Batch) -> Batch:
        """The padded batch with recurrent dropout's masks, for several calls that share them."""
        D, B = self.directions, batch.x.shape[1]
        shapes = [(D, B, widths[0]) for widths in self.widths]
        masks = [draw_recurrent_mask(batch.x, s, self.options, self.training) for s in shapes]
        return batch._replace(recurrent_masks=tuple(masks))

    def initial_state(self, rows: int) -> States:
        """The state that sequences start from: over layers and states, (D, B, width)."""
        calls = (self._call(i, Batch(self._zeros(i, 1, rows))) for i in range(len(self.widths)))
        return tuple(tuple(v.clone() for v in call.initial_rows()) for call in calls)

    def _zeros(self, layer: int, steps: int, batch: int) -> Tensor:
        width = self.input_size if layer == 0 else self._output_sizes[layer - 1]
        like = next(self.parameters(), torch.empty(0, device="cpu"))
        return torch.zeros(steps, batch, width, dtype=like.dtype, device=like.device)
