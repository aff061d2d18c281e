"""MNIST-1D: ten strokes over 40 steps, each padded, scaled, shifted, sheared and noisy.

Source: Greydanus and Kobak, Scaling Down Deep Learning with MNIST-1D (2024). The package `mnist1d`
makes the data here, from the seed of the paper; nothing is downloaded.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch
from torch import Tensor

from throughtime.errors import missing_extra
from throughtime.tasks.memory import PublishedTask
from throughtime.tasks.task import Batch

_TRAIN, _NOT_TEST = 3500, 4000


class MNIST1D(PublishedTask):
    """Tells ten strokes apart by the last state alone: 3500 to train on, 500 to choose by.

    The test split is the published one of 1000; what is chosen by is the end of the published
    training split of 4000.
    """

    name = "mnist1d"

    def split(self, name: str) -> Batch:
        """Values of mean 0 and variance 1 over all sequences and steps."""
        inputs, truth = _load()
        first, last = {
            "train": (0, _TRAIN), "validation": (_TRAIN, _NOT_TEST), "test": (_NOT_TEST, None),
        }[name]  # fmt: skip
        return inputs[:, first:last], truth[first:last]


@cache
def _load() -> tuple[Tensor, Tensor]:
    """Every sequence, (40, 5000, 1), the published test split last, and its class, (5000,)."""
    try:
        from mnist1d.data import get_dataset_args, make_dataset
    except ModuleNotFoundError as error:
        raise missing_extra("mnist1d", "data") from error
    with _keep_random_state():
        made = make_dataset(get_dataset_args())
    values = np.concatenate([made["x"], made["x_test"]])
    truth = np.concatenate([made["y"], made["y_test"]])
    inputs = torch.tensor(values, dtype=torch.float32, device="cpu")
    return inputs.T[..., None].contiguous(), torch.tensor(truth, device="cpu")


@contextmanager
def _keep_random_state() -> Iterator[None]:
    """Puts back the state of chance that Python and NumPy share, which the package seeds."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
