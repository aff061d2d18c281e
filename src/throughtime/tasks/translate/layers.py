"""What each layer of an encoder knows of the units around: which was before, and which follows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from throughtime.tasks.knowledge import ask_layers
from throughtime.tasks.translate.facts import PADDING
from throughtime.tasks.translate.model import Translator

_LABELS, _TEXTS, _BATCHES = 12, 60, 6  # most frequent units that are asked for; sources


class Encoder(nn.Module):
    """The encoder of a translator, of one input: sources (T, B).

    Args:
        translator: the model.
    """

    def __init__(self, translator: Translator) -> None:
        super().__init__()
        self.source, self.encoder = translator.source, translator.encoder

    def forward(self, source: Tensor) -> Tensor:
        """The encoder's outputs (T, B, E)."""
        lengths = (source != PADDING).sum(0)
        read: Tensor = self.encoder(self.source(source), lengths=lengths)[0]
        return read


def probe_layers(model: Translator, sources: Sequence[Tensor]) -> list[dict[str, Any]]:
    """A row for the input and each layer, of the unit before and of the one behind.

    One of the most frequent units is asked for. Where there are too few sources a row says why
    nothing was measured.
    """
    few = list(sources[:_TEXTS])
    parts = [few[k::_BATCHES] for k in range(min(_BATCHES, len(few)))]
    counted = Counter(int(unit) for one in few for unit in one)
    label = {unit: n for n, (unit, _) in enumerate(counted.most_common(_LABELS))}
    inputs = [pad_sequence(part, padding_value=PADDING) for part in parts]
    rows: list[dict[str, Any]] = []
    for name, by in (("unit before", 1), ("unit behind", -1)):
        marks = [_labels(x, label, by) for x in inputs]
        rows += ask_layers(name, Encoder(model), inputs, marks)
    return rows


def _labels(source: Tensor, label: dict[int, int], by: int) -> Tensor:
    """Of each place of sources (T, B), the label of the unit `by` steps before; -1 for none."""
    moved = source.roll(by, 0)
    moved[0 if by > 0 else -1] = PADDING
    marks = torch.full_like(source, -1)
    for unit, n in label.items():
        marks[moved == unit] = n
    marks[source == PADDING] = -1
    return marks
