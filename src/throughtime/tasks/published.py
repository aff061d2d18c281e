"""Memory tasks on sequences that others collected, in ten classes."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from throughtime.errors import import_extra
from throughtime.tasks.memory import MemoryTask
from throughtime.tasks.task import Batch

_SOLVED = 0.1


class PublishedTask(MemoryTask):
    """A memory task on fixed sequences; a subclass reads its splits.

    A training batch is drawn with replacement by (seed, number) alone.
    """

    ignores = (*MemoryTask.ignores, "length")
    inputs, outputs = 1, 10
    secret = slice(-1)  # the last step is what is left to a model without memory
    rule = f"error: share of wrong digits of ten; solved: at most {_SOLVED}"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        name: {**MemoryTask.presets[name], "hidden": 64, "lr": 5e-3, "steps": steps}
        for name, steps in (("quick", 2000), ("full", 10000))
    }

    @abstractmethod
    def split(self, name: str) -> Batch:
        """Sequences (T, N, 1) and classes (N,) of `train`, `validation` or `test`."""

    @property
    def steps(self) -> int:
        return len(self.split("train")[0])

    def line(self) -> float:
        return _SOLVED

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        inputs, truth = self.split("train")
        drawn = torch.randint(len(truth), (count,), generator=generator, device="cpu")
        return inputs[:, drawn], truth[drawn]

    def batch(self, split: str, number: int, count: int) -> Batch:
        """As drawn in training; of the other splits the first `count`."""
        if split == "train":
            return super().batch(split, number, count)
        inputs, truth = self.split(split)
        return inputs[:, :count], truth[:count]

    def held_out(self, split: str) -> Batch:
        return self.split(split)

    def held_out_rows(self, split: str) -> int:
        return len(self.split(split)[1])

    def chance(self, split: str) -> dict[str, float]:
        """Of the digit that training has most often, always."""
        often = self.split("train")[1].bincount().argmax()
        return {"error": float((self.split(split)[1] != often).double().mean())}


_EVERY = 7  # image n is in the test split when n % 7 is 0, in the validation split when it is 1
_WHITE = 16  # the brightest pixel


class Digits(PublishedTask):
    """Reads a digit pixel by pixel, 64 steps: 1283 to train on, 257 to choose by, 257 to test.

    Handwritten, 8 x 8, read from the upper left.

    Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits (1998), as scikit-learn
    bundles it; one pixel a step as in Le, Jaitly and Hinton, A Simple Way to Initialize Recurrent
    Networks of Rectified Linear Units (2015).
    """

    name = "digits"

    def split(self, name: str) -> Batch:
        """Pixels between 0 and 1."""
        inputs, truth = read_digits()
        place = torch.arange(len(truth), device="cpu") % _EVERY
        chosen = {"test": place == 0, "validation": place == 1, "train": place > 1}[name]
        return inputs[:, chosen], truth[chosen]


@cache
def read_digits() -> tuple[Tensor, Tensor]:
    """Every image, (64, 1797, 1), and its digit, (1797,)."""
    datasets = import_extra("sklearn.datasets", "data", "scikit-learn")
    pixels, digits = datasets.load_digits(return_X_y=True)
    return _time_major(pixels / _WHITE, digits)


def _time_major(values: Any, classes: Any) -> tuple[Tensor, Tensor]:
    """Sequences (N, T) as (T, N, 1), and their classes."""
    inputs = torch.tensor(values, dtype=torch.float32, device="cpu")
    return inputs.T[..., None].contiguous(), torch.tensor(classes, device="cpu")


_TRAIN, _NOT_TEST = 3500, 4000


class MNIST1D(PublishedTask):
    """Tells ten strokes apart by the last state alone: 3500 to train on, 500 to choose by.

    Ten strokes over 40 steps, each padded, scaled, shifted, sheared and noisy. The test split is
    the published one of 1000; what is chosen by is the end of the published training split of 4000.

    Source: Greydanus and Kobak, Scaling Down Deep Learning with MNIST-1D (2024). The package
    `mnist1d` makes the data here, from the seed of the paper; nothing is downloaded.
    """

    name = "mnist1d"

    def split(self, name: str) -> Batch:
        """Values of mean 0 and variance 1 over all sequences and steps."""
        inputs, truth = make_mnist1d()
        first, last = {
            "train": (0, _TRAIN), "validation": (_TRAIN, _NOT_TEST), "test": (_NOT_TEST, None),
        }[name]  # fmt: skip
        return inputs[:, first:last], truth[first:last]


@cache
def make_mnist1d() -> tuple[Tensor, Tensor]:
    """Every sequence, (40, 5000, 1), the published test split last, and its class, (5000,)."""
    package = import_extra("mnist1d.data", "data")
    with _keep_random_state():
        made = package.make_dataset(package.get_dataset_args())
    values, classes = (np.concatenate([made[n], made[f"{n}_test"]]) for n in "xy")
    return _time_major(values, classes)


@contextmanager
def _keep_random_state() -> Iterator[None]:
    """Puts back the state of chance that Python and NumPy share, which the package seeds."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
