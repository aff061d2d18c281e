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


class Narrow(NamedTuple):
    """A matrix of int8: the lines' numbers times whole numbers.

    Attributes:
        whole: (lines, columns), int8.
        scale: (lines,), float32.
    """

    whole: np.ndarray[Any, Any]
    scale: Values


def check_kind(weights: str) -> None:
    """Raises OptionError: there is no such kind of weights."""
    if weights not in KINDS:
        raise OptionError(f"weights must be one of {', '.join(KINDS)}, got {weights!r}")


def narrowed(matrix: Values) -> Narrow:
    """A matrix as int8: each line's largest number becomes 127 or -127, the others the nearest."""
    largest = np.abs(matrix).max(1, initial=0.0).astype(np.float32)
    scale = np.where(largest > 0, largest / np.float32(_MOST), np.float32(1)).astype(np.float32)
    whole = np.clip(np.rint(matrix / scale[:, None]), -_MOST, _MOST).astype(np.int8)
    return Narrow(whole, scale)


def halves(matrix: Values) -> np.ndarray[Any, Any]:
    """The upper halves of numbers that are bfloat16 already, as uint16."""
    bits = np.ascontiguousarray(matrix, np.float32).view(np.uint32)
    return (bits >> 16).astype(np.uint16)


@torch.no_grad()
def round_weights(model: nn.Module, weights: str) -> None:
    """Round the matrices of a resting model in place to what an export with such weights holds.

    A program's matrices are blocks of lines of these, and every line is rounded by itself.
    """
    if weights == "float32":
        return
    for v in model.parameters():
        if v.dim() == 2:
            v.copy_(v.to(torch.bfloat16) if weights == "bfloat16" else _rounded(v))


def _rounded(v: torch.Tensor) -> torch.Tensor:
    whole, scale = narrowed(v.numpy())
    return torch.from_numpy(whole.astype(np.float32) * scale[:, None])


def matrix_bytes(lines: int, columns: int, weights: str) -> int:
    """Bytes of a matrix; of int8 with one float32 a line."""
    each = {"float32": 4, "bfloat16": 2, "int8": 1}[weights]
    return lines * columns * each + (4 * lines if weights == "int8" else 0)
