"""Memory tasks: sequences drawn afresh, one recurrent layer, a linear read-out.

Every batch and every held-out sequence is drawn from (seed, split, number) alone. The held-out
splits are the same for every seed of training.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, one_hot

from throughtime import Recurrent, initialise
from throughtime.errors import DataError
from throughtime.tasks.recipe import Recipe, build_cell
from throughtime.tasks.task import (
    Batch,
    BuiltWhenIndexed,
    DiagnosisInput,
    Example,
    Score,
    Task,
    start_options,
)

_SOLVED = 0.02
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
    """A task whose answer depends on what was read long ago; a subclass draws its sequences.

    Attributes:
        inputs, outputs: numbers of a step.
        every_step: whether each step has an answer.
        secret: index of the inputs (T, B, inputs) that determine the answer.
    """

    inputs: ClassVar[int]
    outputs: ClassVar[int]
    every_step: ClassVar[bool] = False
    secret: ClassVar[Any]
    monitor = "error"
    ignores: ClassVar[tuple[str, ...]] = ("directions", "merge", "dropout", "smoothing")
    rule: ClassVar[str]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        name: {"directions": 1, "hidden": 32, "batch_size": 32, "lr": 2e-3, "schedule": "constant",
               "warmup": 0, "steps": steps, "validate_every": 100, "dropout": 0.0}
        for name, steps in (("quick", 1000), ("full", 10000))
    }  # fmt: skip

    @property
    def steps(self) -> int:
        """Steps over which a model must remember; `chrono` takes them, `timescales` three times."""
        return self.recipe.length

    def line(self) -> float:
        """The metric `monitor` from which down the task counts as solved."""
        return _SOLVED

    @abstractmethod
    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """`count` sequences (T, B, inputs) and what is right."""

    def hide(self, inputs: Tensor) -> Tensor:
        """A copy of the sequences without what determines the answer: the leak test's input."""
        bare = inputs.clone()
        bare[self.secret] = 0
        return bare

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

    @property
    def row_axes(self) -> tuple[int, ...]:
        return 1, int(self.every_step)

    def measure(self, answers: Tensor, truth: Tensor) -> dict[str, float]:
        """The metrics: the share of wrong answers, unless a task says otherwise."""
        return {self.monitor: float((answers.argmax(-1) != truth).double().mean())}

    def right(self, answers: Tensor, truth: Tensor) -> Tensor:
        """Which sequences are answered right, (B,)."""
        right = answers.argmax(-1) == truth
        return right.all(0) if self.every_step else right

    def chance(self, split: str) -> dict[str, float]:
        """Of any answer where all are as likely, unless a task says otherwise."""
        return {self.monitor: 1 - 1 / self.outputs}

    def prepare_diagnosis(self, model: nn.Module, batches: int, rows: int) -> DiagnosisInput:
        drawn = (self.epoch(0)[n] for n in range(batches))
        along = self.row_axes[1]
        few = [(x[:, :rows], y.narrow(along, 0, min(rows, y.shape[along]))) for x, y in drawn]
        return DiagnosisInput(model, few, self.distance)

    def held_out(self, split: str) -> Batch:
        """The sequences that `validation` or `test` is scored on, the same for every seed."""
        return self.batch(split, 0, _HELD_OUT)

    def held_out_rows(self, split: str) -> int:
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
        along = self.row_axes[1]
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


class Adding(MemoryTask):
    """Adds two numbers that stand far apart, one marked in each half.

    Source: Hochreiter and Schmidhuber, Long Short-Term Memory (1997), in the form of Tallec and
    Ollivier, Can Recurrent Neural Networks Warp Time? (2018).
    """

    name = "adding"
    monitor = "mse"
    in_percent = False
    inputs, outputs = 2, 1
    rule = f"mse: mean squared error of the sum; solved: below {_SOLVED}"

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """Values U(0, 1) and two marks (T, B, 2), one in each half; the marked ones' sum (B,)."""
        length, rows = self.recipe.length, torch.arange(count)
        values = torch.rand(length, count, generator=generator)
        marks = torch.zeros_like(values)
        middle = length // 2
        for low, high in ((0, middle), (middle, length)):
            marks[torch.randint(low, high, (count,), generator=generator), rows] = 1
        return torch.stack([values, marks], -1), (values * marks).sum(0)

    def hide(self, inputs: Tensor) -> Tensor:
        values, marks = inputs.unbind(-1)
        return torch.stack([values * (1 - marks), marks], -1)

    def distance(self, answers: Tensor, truth: Tensor) -> Tensor:
        return mse_loss(answers[..., 0], truth)

    def measure(self, answers: Tensor, truth: Tensor) -> dict[str, float]:
        return {"mse": float(self.distance(answers, truth))}

    def right(self, answers: Tensor, truth: Tensor) -> Tensor:
        return (answers[..., 0] - truth).square() < _SOLVED

    def chance(self, split: str) -> dict[str, float]:
        """The variance of the sum of two U(0, 1): of the answer 1, always."""
        return {"mse": 1 / 6}


_SYMBOLS, _WORD = 8, 10
_BLANK, _SIGNAL = _SYMBOLS, _SYMBOLS + 1


class Copy(MemoryTask):
    """Says ten symbols again after `length` steps: a long silence, then a signal.

    Source: Hochreiter and Schmidhuber (1997), in the form of Tallec and Ollivier (2018).
    """

    name = "copy"
    monitor = "nats"
    in_percent = False
    inputs, outputs, every_step = _SYMBOLS + 2, _SYMBOLS + 1, True
    secret = slice(_WORD)
    rule = "nats: cross entropy a step, blanks among them; solved: half of chance"

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """One-hot symbols (T + 20, B, 10) and what to say at each step, (T + 20, B)."""
        word = torch.randint(_SYMBOLS, (_WORD, count), generator=generator)
        symbols = torch.full((self.recipe.length + 2 * _WORD, count), _BLANK)
        truth = symbols.clone()
        symbols[:_WORD] = word
        symbols[-_WORD - 1] = _SIGNAL
        truth[-_WORD:] = word
        return one_hot(symbols, self.inputs).float(), truth

    def measure(self, answers: Tensor, truth: Tensor) -> dict[str, float]:
        return {"nats": float(self.distance(answers, truth))}

    def line(self) -> float:
        """Half of what one reaches without a word of it."""
        return self.chance("test")["nats"] / 2

    def chance(self, split: str) -> dict[str, float]:
        """Of blanks up to the signal and any of the eight symbols after it: 10 ln 8 / (T + 20)."""
        return {"nats": _WORD * math.log(_SYMBOLS) / (self.recipe.length + 2 * _WORD)}


_NOISE = 0.2


class Latch(MemoryTask):
    """Remembers a sign from the first step to the last, with noise between.

    Source: the idea of Bengio, Simard and Frasconi, Learning Long-Term Dependencies with Gradient
    Descent is Difficult (1994).
    """

    name = "latch"
    inputs, outputs = 1, 2
    secret = 0
    rule = f"error: share of wrong signs; solved: at most {_SOLVED}"

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """x_0 = +1 or -1, x_t = N(0, 0.2^2) after it; the class is the sign."""
        inputs = _NOISE * torch.randn(self.recipe.length, count, 1, generator=generator)
        bits = torch.randint(2, (count,), generator=generator)
        inputs[0, :, 0] = 2.0 * bits - 1
        return inputs, bits


_SIGNS, _DISTRACTORS = 2, 4
_PLACES = ((0.1, 0.2), (0.5, 0.6))  # shares of the length, both ends included


class Order(MemoryTask):
    """Tells AA, AB, BA and BB apart, the two signs far apart among distractors.

    Source: Hochreiter and Schmidhuber, Long Short-Term Memory (1997), task 6a.
    """

    name = "order"
    inputs, outputs = _SIGNS + _DISTRACTORS, 4
    secret = (..., slice(_SIGNS))
    rule = f"error: share of wrong orders of four; solved: at most {_SOLVED}"

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """One-hot symbols (T, B, 6), A and B the first two; the class is 2 * first + second."""
        length, rows = self.recipe.length, torch.arange(count)
        symbols = torch.randint(_SIGNS, self.inputs, (length, count), generator=generator)
        signs = torch.randint(_SIGNS, (2, count), generator=generator)
        for sign, (low, high) in zip(signs, _PLACES, strict=True):
            first, last = int(low * length), int(high * length)
            symbols[torch.randint(first, last + 1, (count,), generator=generator), rows] = sign
        return one_hot(symbols, self.inputs).float(), 2 * signs[0] + signs[1]


class Parity(MemoryTask):
    """Tells whether the ones up to each step are odd in number: every step matters, far or near."""

    name = "parity"
    inputs, outputs, every_step = 1, 2, True
    secret = ...
    rule = f"error: share of wrong parities, over all steps; solved: at most {_SOLVED}"

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """Bits as +1 and -1 (T, B, 1); the parity of those so far, (T, B)."""
        bits = torch.randint(2, (self.recipe.length, count), generator=generator)
        return (2.0 * bits - 1)[..., None], bits.cumsum(0) % 2
