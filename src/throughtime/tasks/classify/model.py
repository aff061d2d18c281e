"""The model: recurrent layers both ways; the mean of their outputs and their last states tell."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from throughtime import Recurrent
from throughtime.tasks.classify.labels import Labels
from throughtime.tasks.recipe import Recipe, cell_called


class Classifier(nn.Module):
    """Sequences (T, B, width) with lengths (B,) to logits (B, classes).

        logits = W [mean_t y_t, h_1, ..., h_D] + b      h_d: each direction's last state

    Args:
        recipe: cell, directions, merge, layers, hidden and dropout.
        labels: columns and classes.
    """

    def __init__(self, recipe: Recipe, labels: Labels) -> None:
        super().__init__()
        between = recipe.dropout if recipe.layers > 1 else 0.0
        self.recurrent = Recurrent(
            cell_called(recipe.cell), 2 * len(labels.inputs), recipe.hidden,
            num_layers=recipe.layers, bidirectional=recipe.directions == 2, merge=recipe.merge,
            dropout=between,
        )  # fmt: skip
        self.dropout = nn.Dropout(recipe.dropout)
        read = self.recurrent.output_size + recipe.directions * recipe.hidden
        self.readout = nn.Linear(read, len(labels.classes))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Logits."""
        out, state = self.recurrent(x, lengths=lengths)
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
