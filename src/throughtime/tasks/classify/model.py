"""The model: recurrent layers both ways; the mean of their outputs and their last states tell."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from throughtime.tasks.classify.labels import Labels
from throughtime.tasks.layers import make_layers, run_layers
from throughtime.tasks.recipe import Recipe


class Classifier(nn.Module):
    """Sequences (T, B, width) with lengths (B,) to logits (B, classes).

        logits = W [mean_t y_t, h_1, ..., h_D] + b      h_d: each direction's last state

    Args:
        recipe: cell, directions, merge, layers, hidden and dropout.
        labels: columns and classes.
    """

    def __init__(self, recipe: Recipe, labels: Labels) -> None:
        super().__init__()
        self.inputs, self.gaps = len(labels.inputs), labels.step > 0
        self.recurrent = make_layers(recipe, labels.width, reads=True)
        self.dropout = nn.Dropout(recipe.dropout)
        last = self.recurrent.cell.widths(recipe.hidden)[0]
        read = self.recurrent.output_size + recipe.directions * last
        self.readout = nn.Linear(read, len(labels.classes))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Logits."""
        seen = x[..., self.inputs : 2 * self.inputs].amax(-1, keepdim=True)
        gap = torch.ones_like(seen)
        if self.gaps:
            gap = torch.expm1(x[..., 2 * self.inputs, None] + math.log(2))
        out, state = run_layers(self.recurrent, x, gap, seen, lengths=lengths)
        mean = out.sum(0) / lengths[:, None]  # outputs behind a row's end are zero
        last = torch.cat([*state[-1][0]], -1)
        logits: Tensor = self.readout(self.dropout(torch.cat([mean, last], -1)))
        return logits


class Unpadded(nn.Module):
    """A classifier of one input: sequences of one length.

    Args:
        classifier: the model.
    """

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.classifier(x, torch.full((x.shape[1],), len(x)))
        return logits
