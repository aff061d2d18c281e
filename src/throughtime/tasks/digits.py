"""Digits: handwritten, 8 x 8, read one pixel at a time from the upper left.

Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits (1998), as scikit-learn
bundles it; one pixel a step as in Le, Jaitly and Hinton, A Simple Way to Initialize Recurrent
Networks of Rectified Linear Units (2015).
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from throughtime.errors import missing_extra
from throughtime.tasks.memory import PublishedTask
from throughtime.tasks.task import Batch

_EVERY = 7  # image n is in the test split when n % 7 is 0, in the validation split when it is 1
_WHITE = 16  # the brightest pixel


class Digits(PublishedTask):
    """Reads a digit pixel by pixel, 64 steps: 1283 to train on, 257 to choose by, 257 to test."""

    name = "digits"

    def split(self, name: str) -> Batch:
        """Pixels between 0 and 1."""
        inputs, truth = _load()
        place = torch.arange(len(truth), device="cpu") % _EVERY
        chosen = {"test": place == 0, "validation": place == 1, "train": place > 1}[name]
        return inputs[:, chosen], truth[chosen]


@cache
def _load() -> tuple[Tensor, Tensor]:
    """Every image, (64, 1797, 1), and its digit, (1797,)."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise missing_extra("scikit-learn", "data") from error
    pixels, digits = load_digits(return_X_y=True)
    inputs = torch.tensor(pixels / _WHITE, dtype=torch.float32, device="cpu")
    return inputs.T[..., None].contiguous(), torch.tensor(digits, device="cpu")
