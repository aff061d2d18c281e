"""Random masks of the options: drawn once before the loop, from torch's generator."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import dropout

from throughtime.cells import Cell
from throughtime.layers.options import Options


def recurrent_mask(
    x: Tensor, shape: tuple[int, ...], options: Options, training: bool
) -> Tensor | None:
    """Recurrent dropout's mask, (D, B, width), one for a whole sequence.

    Source: Gal and Ghahramani, A Theoretically Grounded Application of Dropout in Recurrent
    Neural Networks (2016); the mask is shared by the gates.
    """
    if not training or not options.recurrent_dropout:
        return None
    return dropout(x.new_ones(shape), options.recurrent_dropout)


def zoneout_masks(
    x: Tensor, cell: Cell, shapes: list[tuple[int, ...]], options: Options, training: bool
) -> tuple[Tensor, ...] | None:
    """Zoneout's m for each state, (D, T, B, width): 0 or 1 in training, as int16; else its mean.

    Source: Krueger et al., Zoneout (2017).
    """
    if not options.has_zoneout:
        return None
    masks = []
    for name, shape in zip(cell.state_names, shapes, strict=True):
        share = options.zoneout_of(name)
        if training and 0 < share < 1:
            masks.append(_drawn(shape, share, x))
        else:
            masks.append(x.new_full((1,), share).expand(shape))
    return tuple(masks)


def _drawn(shape: tuple[int, ...], share: float, x: Tensor) -> Tensor:
    """1 with probability `share`, else 0; in a fifth of the time of `bernoulli_` on a CPU.

    A draw of 64 bits makes four of the mask's numbers, for which `share` is rounded to 16 bits:
    less than what a mask of a million numbers has by chance.
    """
    count, below = math.prod(shape), min(max(round(share * 2**16), 1), 2**16 - 1) - 2**15
    draws = torch.randint(-(2**63), 2**63 - 1, (-(-count // 4),), device=x.device)
    drawn = draws.view(torch.int16)[:count].view(shape)
    return drawn.lt_(below)


def weight_dropped(
    weights: Mapping[str, Tensor], options: Options, training: bool
) -> Mapping[str, Tensor]:
    """The weights with DropConnect on the recurrent matrix.

    Source: Merity, Keskar and Socher, Regularizing and Optimizing LSTM Language Models (2018).
    """
    if not training or not options.weight_dropout or "weight_hh" not in weights:
        return weights
    dropped = dropout(weights["weight_hh"], options.weight_dropout)
    return {name: dropped if name == "weight_hh" else v for name, v in weights.items()}
