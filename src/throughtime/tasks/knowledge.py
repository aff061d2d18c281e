"""What each layer of a trained model knows, as rows for results.json: linear maps are asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from throughtime import probe
from throughtime.errors import OptionError, ShapeError


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
