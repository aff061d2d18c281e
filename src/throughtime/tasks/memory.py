"""What the memory tasks share: sequences, drawn afresh or published, one recurrent layer, a linear
read-out.

Every batch and every held-out sequence is drawn from (seed, split, number) alone. The held-out
splits are the same for every seed of training.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from throughtime import Recurrent, initialise
from throughtime.errors import DataError
from throughtime.tasks.layers import build_cell, start_options
from throughtime.tasks.recipe import Recipe
from throughtime.tasks.task import (
    Batch,
    BuiltWhenIndexed,
    DiagnosisInput,
    Example,
    Score,
    Task,
    mean_nats,
)

_BATCHES, _HELD_OUT, _EXAMPLES = 100, 512, 4
_SPLITS = {"train": 0, "validation": 1, "test": 2}


class Rememberer(nn.Module):
    """One recurrent layer that reads forward, and a linear map of its outputs.

    Args:
        recipe: cell, hidden, layers, start, horizon and length.
        inputs: numbers a step.
        outputs: numbers out.
        every_step: answers at every step, (T, B, outputs), or at the last alone, (B, outputs).
    """

    def __init__(self, recipe: Recipe, inputs: int, outputs: int, every_step: bool) -> None:
        super().__init__()
        self.every_step = every_step
        self.recurrent = Recurrent(
            build_cell(recipe.cell), inputs, recipe.hidden, num_layers=recipe.layers
        )
        self.readout = nn.Linear(recipe.hidden, outputs)
        initialise(self, **start_options(recipe))

    def forward(self, inputs: Tensor) -> Tensor:
        """Answers to sequences (T, B, inputs)."""
        out = self.recurrent(inputs)[0]
        answers: Tensor = self.readout(out if self.every_step else out[-1])
        return answers

    def plain_stack(self) -> list[nn.Module]:
        """The parts in the order in which a step goes through them, for an export."""
        return [self.recurrent, self.readout]


class MemoryTask(Task):
    """A task whose answer depends on what was read long ago; a subclass draws its sequences."""

    inputs: ClassVar[int]
    outputs: ClassVar[int]
    every_step: ClassVar[bool] = False
    ignores: ClassVar[tuple[str, ...]] = ("directions", "merge", "dropout", "smoothing")
    rule: ClassVar[str]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        name: {
            "directions": 1,
            "hidden": 32,
            "batch_size": 32,
            "lr": 2e-3,
            "schedule": "constant",
            "warmup": 0,
            "steps": steps,
            "validate_every": 100,
            "dropout": 0.0,
        }
        for name, steps in (("quick", 1000), ("full", 10000))
    }

    @property
    def steps(self) -> int:
        """Steps over which a model must remember; `chrono` takes them, `timescales` three times."""
        return self.recipe.length

    def line(self) -> float:
        """The metric `monitor` from which down the task counts as solved."""
        return 0.02

    @abstractmethod
    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """`count` sequences (T, B, inputs) and what is right."""

    @abstractmethod
    def hide(self, inputs: Tensor) -> Tensor:
        """A copy of the sequences without what determines the answer: the leak test's input."""

    def model(self) -> nn.Module:
        recipe = replace(self.recipe, length=self.steps)
        return Rememberer(recipe, self.inputs, self.outputs, self.every_step)

    def epoch(self, number: int) -> Sequence[Batch]:
        return _Epoch(self, number)

    def batch(self, split: str, number: int, count: int) -> Batch:
        """`count` sequences that (split, number) decides, with the run's seed in training."""
        seed = self.recipe.seed if split == "train" else 0
        place = (seed * 3 + _SPLITS[split]) * 2**24 + number
        with torch.device("cpu"):  # where the generator is, whatever torch's default device
            return self.draw(count, torch.Generator().manual_seed(place))

    def step_bytes(self) -> int:
        rows = max(self.recipe.batch_size, self.held_out_rows("test"))
        return 4 * rows * self.steps * (self.inputs + self.recipe.hidden * self.recipe.layers)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        inputs, truth = batch
        return self.distance(model(inputs), truth)

    @property
    def row_axes(self) -> tuple[int, ...]:
        return 1, 1 if self.every_step else 0

    def distance(self, answers: Tensor, truth: Tensor) -> Tensor:
        """What training makes small: cross entropy in nats, unless a task says otherwise."""
        return mean_nats(answers, truth)

    def measure(self, answers: Tensor, truth: Tensor) -> dict[str, float]:
        """The metrics: the share of wrong answers, unless a task says otherwise."""
        return {self.monitor: float((answers.argmax(-1) != truth).double().mean())}

    def right(self, answers: Tensor, truth: Tensor) -> Tensor:
        """Which sequences are answered right, (B,)."""
        return answers.argmax(-1) == truth

    def prepare_diagnosis(self, model: nn.Module, batches: int, rows: int) -> DiagnosisInput:
        drawn = (self.epoch(0)[n] for n in range(batches))
        along = 1 if self.every_step else 0
        few = [(x[:, :rows], y.narrow(along, 0, min(rows, y.shape[along]))) for x, y in drawn]
        return DiagnosisInput(model, few, self.distance)

    def held_out(self, split: str) -> Batch:
        """The sequences that `validation` or `test` is scored on, the same for every seed."""
        return self.batch(split, 0, _HELD_OUT)

    def held_out_rows(self, split: str) -> int:
        """How many those are."""
        return _HELD_OUT

    def score(self, model: nn.Module, split: str) -> Score:
        inputs, truth = self.held_out(split)
        with torch.no_grad():
            answers = model(inputs)
        right = self.right(answers, truth).tolist()
        examples = tuple(
            Example(f"sequence {n}", _write_answer(one), _write_answer(two), bool(right[n]))
            for n, (one, two) in enumerate(self._few(answers, truth))
        )
        where = f"{split}: {len(right)} sequences of {self.steps} steps kept out of training"
        return Score(where, self.rule, len(right), self.measure(answers, truth), examples)

    def answer(self, model: nn.Module, items: Sequence[str]) -> list[str]:
        """The answer to held-out sequence number 0, 1, ... of the test split."""
        inputs, truth = self.held_out("test")
        with torch.no_grad():
            answers = self._few(model(inputs), truth, inputs.shape[1])
        return [_write_answer(answers[_parse_number(item, len(answers))][0]) for item in items]

    def check_item(self, item: str) -> None:
        _parse_number(item, self.held_out_rows("test"))

    def _few(
        self, answers: Tensor, truth: Tensor, count: int = _EXAMPLES
    ) -> list[tuple[Tensor, Tensor]]:
        """Answer and truth of the first sequences."""
        shown = answers.argmax(-1) if self.outputs > 1 else answers[..., 0]
        along = 1 if self.every_step else 0
        pairs = zip(shown.unbind(along), truth.unbind(along), strict=True)
        return list(pairs)[:count]


@dataclass(frozen=True)
class _Epoch(BuiltWhenIndexed):
    """A pass: batches that are drawn when they are indexed."""

    task: MemoryTask
    number: int

    def __len__(self) -> int:
        return _BATCHES

    def build(self, place: int) -> Batch:
        if not 0 <= place < _BATCHES:
            raise IndexError(place)
        number = self.number * _BATCHES + place
        return self.task.batch("train", number, self.task.recipe.batch_size)


def _parse_number(item: str, count: int) -> int:
    if item.isdecimal() and len(item) < 10 and int(item) < count:
        return int(item)
    raise DataError(f"a held-out sequence is a whole number below {count}, got {item!r}; say, 0")


def _write_answer(answer: Tensor) -> str:
    if answer.is_floating_point():
        return f"{answer.item():.3f}"
    return " ".join(str(one) for one in answer.flatten().tolist())


_SOLVED_PUBLISHED = 0.1


class PublishedTask(MemoryTask):
    """A task on sequences that others collected, in ten classes; a subclass reads its splits.

    They are fixed; a training batch is drawn with replacement by (seed, number) alone.
    """

    ignores = (*MemoryTask.ignores, "length")
    monitor = "error"
    inputs, outputs = 1, 10
    rule = f"error: share of wrong digits of ten; solved: at most {_SOLVED_PUBLISHED}"
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
        return _SOLVED_PUBLISHED

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

    def hide(self, inputs: Tensor) -> Tensor:
        """All but the last step: what is left to a model without memory."""
        return torch.cat([torch.zeros_like(inputs[:-1]), inputs[-1:]])

    def chance(self, split: str) -> dict[str, float]:
        """Of the digit that training has most often, always."""
        often = self.split("train")[1].bincount().argmax()
        return {"error": float((self.split(split)[1] != often).double().mean())}
