"""Where backward writes the norms of gradients, as the user gives it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from throughtime.errors import OptionError, ShapeError
from throughtime.layers.batch import Batch
from throughtime.layers.border import Border
from throughtime.layers.passage import Passage


def enter_norms(
    layer: Passage, norms: Sequence[Tensor], batch: Batch, border: Border
) -> tuple[Tensor, ...]:
    """Time-major views (T, B, D, states) of a tensor for each layer, each checked."""
    if border.packed is not None or border.back is not None or set(layer.dilations) != {1}:
        raise OptionError(
            "gradient_norms go with a padded x and no dilation, and with no starts; unpack a "
            "PackedSequence with torch.nn.utils.rnn.pad_packed_sequence and give its lengths, and "
            "pad on the right in place of giving starts"
        )
    count = len(layer.hidden_sizes)
    if len(norms) != count:
        raise ShapeError(f"gradient_norms must hold {count} tensors, one a layer, got {len(norms)}")
    return tuple(_time_major(layer, v, batch, border) for v in norms)


def _time_major(layer: Passage, v: Any, batch: Batch, border: Border) -> Tensor:
    T, B = batch.x.shape[:2]
    rows = ((B, T) if border.batch_first else (T, B)) if border.batched else (T,)
    shape = (*rows, layer.directions, len(layer.cell.state_names))
    if not isinstance(v, Tensor) or tuple(v.shape) != shape:
        found = tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__
        raise ShapeError(f"gradient_norms must each be {shape}, x's rows and steps, got {found}")
    if v.requires_grad or v.dtype != batch.x.dtype or v.device != batch.x.device:
        raise OptionError(
            f"gradient_norms must be {batch.x.dtype} on {batch.x.device} as x, without gradient"
        )
    if not border.batched:
        return v.unsqueeze(1)
    return v.transpose(0, 1) if border.batch_first else v
