"""What each layer of a trained model knows, as rows for results.json: linear maps are asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from throughtime import probe
from throughtime.errors import OptionError, ShapeError

_LABELS, _TEXTS, _BATCHES = 12, 60, 6  # most frequent units that are asked for; sequences


def ask_layers(
    name: str, model: nn.Module, inputs: Sequence[Tensor], truth: Sequence[Tensor],
    kinds: Sequence[Tensor] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """A row for the input and each layer; one that says why where there are too few sequences.

    Args:
        name: of what is asked for.
        model: of one input.
        inputs: batches.
        truth: labels (T, B) of each, -1 where there is none.
        kinds: what stands at each place, (T, B); shuffled labels are drawn by it.
    """
    try:
        found = probe(model, inputs, truth, types=kinds)
    except (OptionError, ShapeError) as error:
        return [{"of": name, "not measured": str(error)}]
    return [
        {
            "of": name, "place": "input" if one.layer is None else f"layer {one.layer}",
            "accuracy": one.accuracy, "shuffled_labels": one.control_accuracy,
            "most_frequent": one.majority_share, "held_out": one.held_out_count,
        }
        for one in found
    ]  # fmt: skip


def ask_for_neighbours(
    model: nn.Module, sources: Sequence[Tensor], padding: int
) -> list[dict[str, Any]]:
    """A row for the input and each layer, of the unit before and of the one behind.

    One of the most frequent units is asked for. Where there are too few sources a row says why
    nothing was measured.
    """
    few = list(sources[:_TEXTS])
    parts = [few[k::_BATCHES] for k in range(min(_BATCHES, len(few)))]
    counted = Counter(int(unit) for one in few for unit in one)
    label = {unit: n for n, (unit, _) in enumerate(counted.most_common(_LABELS))}
    inputs = [pad_sequence(part, padding_value=padding) for part in parts]
    rows: list[dict[str, Any]] = []
    for name, by in (("unit before", 1), ("unit behind", -1)):
        marks = [_labels(x, label, by, padding) for x in inputs]
        rows += ask_layers(name, model, inputs, marks)
    return rows


def _labels(source: Tensor, label: dict[int, int], by: int, padding: int) -> Tensor:
    """Of each place of sources (T, B), the label of the unit `by` steps before; -1 for none."""
    moved = source.roll(by, 0)
    moved[0 if by > 0 else -1] = padding
    marks = torch.full_like(source, -1)
    for unit, n in label.items():
        marks[moved == unit] = n
    marks[source == padding] = -1
    return marks
