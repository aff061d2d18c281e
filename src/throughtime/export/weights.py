"""Weights in fewer bytes: matrices as float32, bfloat16 or int8, and what each makes of a model."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import nn

from throughtime.errors import OptionError
from throughtime.export.program import Values

KINDS: Final = ("float32", "bfloat16", "int8")

_MOST: Final = 127
"""The largest whole number that a weight of int8 is."""

SCALE_SHIFT: Final = 20
SCALE_START: Final = 0x33800000
"""A scale is one byte: bits 20 to 27 of a float32, above 2**-24, eight steps to each doubling."""

_SCALES: Final = ((np.arange(256, dtype=np.uint32) << SCALE_SHIFT) + SCALE_START).view(np.float32)
_LARGEST: Final = float(_MOST * _SCALES[-1])


class Narrow(NamedTuple):
    """A matrix of int8: the lines' scales times whole numbers.

    Attributes:
        whole: (lines, columns), int8.
        code: (lines,), uint8; a scale is the float32 of bits SCALE_START + code 2**SCALE_SHIFT.
    """

    whole: np.ndarray[Any, Any]
    code: np.ndarray[Any, Any]


def check_kind(weights: str) -> None:
    """Raises OptionError: there is no such kind of weights."""
    if weights not in KINDS:
        raise OptionError(f"weights must be one of {', '.join(KINDS)}, got {weights!r}")


def narrowed(matrix: Values) -> Narrow:
    """A matrix as int8: each line by itself, with the least scale that holds its largest number.

    That number is rounded away from zero, all others to the nearest, so that a matrix that was
    rounded so before stays the same.
    """
    sizes = np.abs(matrix).astype(np.float64)
    largest = sizes.max(1, initial=0.0)
    code = np.searchsorted(_MOST * _SCALES.astype(np.float64), largest)
    ratio = matrix / _SCALES[code].astype(np.float64)[:, None]
    away = np.copysign(np.ceil(np.abs(ratio)), ratio)
    whole = np.where(sizes == largest[:, None], away, np.rint(ratio))
    return Narrow(whole.astype(np.int8), code.astype(np.uint8))


def halves(matrix: Values) -> np.ndarray[Any, Any]:
    """The upper halves of numbers that are bfloat16 already, as uint16."""
    bits = np.ascontiguousarray(matrix, np.float32).view(np.uint32)
    return (bits >> 16).astype(np.uint16)


@torch.no_grad()
def round_weights(model: nn.Module, weights: str) -> None:
    """Round the matrices of a resting model in place to what an export with such weights holds.

    A program's matrices are blocks of lines of these, and every line is rounded by itself.

    Raises:
        OptionError: a number is too large for int8.
    """
    if weights == "float32":
        return
    for name, v in model.named_parameters():
        if v.dim() == 2:
            v.copy_(v.to(torch.bfloat16) if weights == "bfloat16" else _rounded(v, name))


def _rounded(v: torch.Tensor, name: str) -> torch.Tensor:
    largest = float(v.abs().max()) if v.numel() else 0.0
    if largest > _LARGEST:
        raise OptionError(
            f"weights of int8 must lie between -{_LARGEST:g} and {_LARGEST:g}, got one of size "
            f"{largest:g} in {name}; use bfloat16"
        )
    whole, code = narrowed(v.numpy())
    return torch.from_numpy(whole.astype(np.float32) * _SCALES[code][:, None])


def matrix_bytes(lines: int, columns: int, weights: str) -> int:
    """Bytes of a matrix; of int8 with one more a line, its scale."""
    each = {"float32": 4, "bfloat16": 2, "int8": 1}[weights]
    return lines * (columns * each + (weights == "int8"))
