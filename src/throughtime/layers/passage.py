"""The way of a batch through all layers, and through time in each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from throughtime.backends.call import Call, Result
from throughtime.layers.batch import Batch, States
from throughtime.layers.dilation import fold, unfold
from throughtime.layers.masks import recurrent_mask, weight_dropped, zoneout_masks
from throughtime.layers.merge import merged
from throughtime.layers.weights import Weights
from throughtime.scan import scan, scan_in_segments


class Passage(Weights):
    """Layers that can carry a batch through time."""

    def carry(self, batch: Batch, record: bool = False) -> tuple[Tensor, list[Result]]:
        """Through all layers: the outputs, and each layer's result."""
        y, results = batch.x, []
        for layer in range(len(self.hidden_sizes)):
            below_it = batch._replace(x=y) if layer else batch
            result = self._carry_layer(layer, below_it, record)
            below, y = y, merged(result.sequences[0], self.options.merge, batch.lengths)
            if self.options.residual and layer:
                y = y + below
            if self.options.dropout and self.training and layer + 1 < len(self.hidden_sizes):
                y = nn.functional.dropout(y, self.options.dropout)
            results.append(result)
        return y, results

    def through(
        self, batch: Batch, run: Callable[[int, Call], Tensor], *, cut: bool = False
    ) -> Tensor:
        """Through all layers without the masks of training, each call carried by `run`.

        Args:
            batch: time-major and padded, for layers without dilation.
            run: from a layer's number and its call to its outputs (T, B, D, width).
            cut: what a residual adds to the last layer's outputs counts as a constant.

        Returns:
            The outputs (T, B, O).
        """
        y, last = batch.x, len(self.hidden_sizes) - 1
        was_training, self.training = self.training, False
        try:
            for layer in range(last + 1):
                call = self._masked(self._call(layer, batch._replace(x=y)), 1)
                below, y = y, merged(run(layer, call), self.options.merge, batch.lengths)
                if self.options.residual and layer:
                    y = y + (below.detach() if cut and layer == last else below)
        finally:
            self.training = was_training
        return y

    def _carry_layer(self, layer: int, batch: Batch, record: bool) -> Result:
        call, d = self._call(layer, batch, record), self.dilations[layer]
        if d == 1:
            return self._scan(self._masked(call, 1))
        folded = self._masked(fold(call, d), d)
        return unfold(self._scan(folded), call, d)

    def _scan(self, call: Call) -> Result:
        every = self.options.checkpoint_every
        if every is None:
            return scan(call, self.backend)
        return scan_in_segments(call, self.backend, every)

    def _call(self, layer: int, batch: Batch, record: bool = False) -> Call:
        """What one layer has to carry through time."""
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
            clip=None if clip is None else batch.x.new_tensor(clip),
            norms=None if batch.norms is None else batch.norms[layer],
        )

    def _masked(self, call: Call, d: int) -> Call:
        """The call with its random masks; those of a sequence are shared by its d chains."""
        options = self.options
        if not (options.recurrent_dropout or options.has_zoneout or options.weight_dropout):
            return call
        widths = self.cell.widths(call.hidden_size)
        D, T, B = self.directions, call.steps, call.rows
        mask = call.recurrent_mask
        if mask is None:
            mask = recurrent_mask(call.x, (D, B // d, widths[0]), options, self.training)
        return call._replace(
            weights=tuple(weight_dropped(w, options, self.training) for w in call.weights),
            recurrent_mask=None if mask is None else mask.repeat(1, d, 1),
            zoneout=zoneout_masks(
                call.x, self.cell, [(D, T, B, w) for w in widths], options, self.training
            ),
        )

    def with_recurrent_masks(self, batch: Batch) -> Batch:
        """The padded batch with recurrent dropout's masks, for several calls that share them."""
        D, B = self.directions, batch.x.shape[1]
        shapes = [(D, B, widths[0]) for widths in self.widths]
        masks = [recurrent_mask(batch.x, s, self.options, self.training) for s in shapes]
        return batch._replace(recurrent_masks=tuple(masks))

    def initial_state(self, rows: int) -> States:
        """The state that sequences start from: over layers and states, (D, B, width)."""
        calls = (self._call(i, Batch(self._zeros(i, 1, rows))) for i in range(len(self.widths)))
        return tuple(tuple(v.clone() for v in call.initial_rows()) for call in calls)

    def _zeros(self, layer: int, steps: int, batch: int) -> Tensor:
        width = self.input_size if layer == 0 else self._output_sizes[layer - 1]
        like = next(self.parameters(), torch.empty(0))
        return torch.zeros(steps, batch, width, dtype=like.dtype, device=like.device)
