"""What a task is: data, model, loss, metric and chance level in one contract; layers, passes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, fields
from typing import Any, ClassVar, overload

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from throughtime import Recurrent, initialise
from throughtime.errors import DataError, OptionError
from throughtime.tasks.picture import Picture
from throughtime.tasks.recipe import (
    Recipe,
    build_cell,
    did_you_mean,
    find_python_file,
    report_line,
    short,
)

Batch = tuple[Tensor, ...]
IGNORED = -100  # a target that the loss leaves out


@dataclass(frozen=True)
class Example:
    """One held-out item as people read it: the question, the answer, the right answer."""

    given: str
    answer: str
    truth: str
    right: bool


@dataclass(frozen=True)
class Score:
    """The metrics of a split, the rule they follow, and some examples.

    `notes` say what of another file the training had not, in words.
    """

    split: str
    rule: str
    items: int
    metrics: dict[str, float]
    examples: tuple[Example, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DiagnosisInput:
    """A task and a model of it as `throughtime.diagnose` takes them.

    Attributes:
        model: of one input.
        batches: (input, target) of the training data.
        loss: of the model's output and a target.
    """

    model: nn.Module
    batches: list[tuple[Tensor, Tensor]]
    loss: Callable[[Tensor, Tensor], Tensor]


class Task(ABC):
    """A task made for one recipe; `Task(recipe)` reads no data until it is asked for some."""

    name: ClassVar[str]
    monitor: ClassVar[str]  # what early stopping and the best weights go by; less is better
    presets: ClassVar[Mapping[str, Mapping[str, Any]]]  # preset -> fields of the recipe

    options: ClassVar[type[Recipe]] = Recipe  # the fields of its recipes
    ignores: ClassVar[tuple[str, ...]] = ()  # fields of the recipe that mean nothing here
    in_percent: ClassVar[bool] = True  # its metrics, between 0 and 1, are shown in percent
    higher_is_better: ClassVar[bool] = False  # of the first metric, by which baselines are judged
    item_name: ClassVar[str] = ""  # of what its model is asked, say WORD; empty: of nothing

    def __init__(self, recipe: Recipe) -> None:
        usual = [{f.name: f.default for f in fields(recipe)}, *self.presets.values()]
        for name in self.ignores:
            value = getattr(recipe, name)
            if value not in [values[name] for values in usual if name in values]:
                self.refuse_unread({name: value})
        if find_python_file(recipe.cell) is None:
            build_cell(recipe.cell)
        self.recipe = recipe

    @classmethod
    def refuse_unread(cls, values: Mapping[str, Any]) -> None:
        """Raises OptionError where a field of the recipe is given that means nothing here."""
        names = [f.name for f in fields(cls.options)]
        for name, value in values.items():
            if name not in names:
                hint = did_you_mean(name, names)
                raise OptionError(f"{cls.name} has no option {name}, got {value!r} for it{hint}")
            if name in cls.ignores:
                raise OptionError(
                    f"{name} must be left out, since {cls.name} does not read it, got {value!r}"
                )

    @classmethod
    def settle(cls, recipe: Recipe) -> Recipe:
        """The recipe with all that the task finds in its data, when a run begins.

        Raises:
            DataError: the data cannot be learned from.
        """
        return recipe

    def describe_data(self) -> list[tuple[str, str]]:
        """What was read of the user's data, as name and words; empty for built-in data."""
        return []

    @abstractmethod
    def model(self) -> nn.Module:
        """A fresh model; its initial weights are drawn from torch's generator."""

    @abstractmethod
    def epoch(self, number: int) -> Sequence[Batch]:
        """The training batches of one pass, in an order that only (seed, number) decides.

        Every pass has the same number of batches; a batch is built when it is indexed.
        """

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The number to make small, as a scalar (nats); the distance of answers, as a rule."""
        inputs, truth = batch
        return self.distance(model(inputs), truth)

    def distance(self, answers: Tensor, truth: Tensor) -> Tensor:
        """Mean cross entropy, in nats, of logits (..., C) where classes (...) are not IGNORED."""
        return cross_entropy(
            answers.flatten(0, -2), truth.flatten(), ignore_index=IGNORED,
            label_smoothing=self.recipe.smoothing,
        )  # fmt: skip

    @property
    def row_axes(self) -> tuple[int, ...]:
        """The axis of rows in each tensor of a batch; empty: rows, or batches, depend on others."""
        return ()

    def weight(self, batch: Batch) -> float:
        """What its loss weighs: loss times weight, summed over parts of a batch, is the whole's."""
        return batch[0].shape[self.row_axes[0]]

    @abstractmethod
    def score(self, model: nn.Module, split: str) -> Score:
        """The metrics of `model`, in eval mode, on `validation` or `test`."""

    @abstractmethod
    def chance(self, split: str) -> dict[str, float]:
        """What one reaches on `split` without looking at the input, for the same metrics."""

    def baselines(self, split: str) -> dict[str, dict[str, float]]:
        """What simple answers reach on `split`, by their names, for the same metrics."""
        return {"chance": self.chance(split)}

    def findings(self, model: nn.Module) -> dict[str, list[dict[str, Any]]]:
        """Tables on a trained model, besides its figures, by name, as rows; for results.json."""
        return {}

    def evaluate(self, model: nn.Module, file: str) -> tuple[Score, dict[str, dict[str, float]]]:
        """The metrics of `model`, and of the baselines, on the items of a file that has the truth.

        Raises:
            OptionError: the task's items come from no file.
            DataError: the file cannot be taken; names the column or the row.
        """
        raise OptionError(
            f"a run of {self.name} is measured on its own held-out items, got the file {file}; "
            "leave it out"
        )

    @abstractmethod
    def answer(self, model: nn.Module, items: Sequence[str]) -> list[str]:
        """The model's answer to each item a user typed.

        Raises:
            DataError: an item cannot be taken; says which and why.
        """

    def write(
        self, model: nn.Module, prompt: str, length: int, temperature: float, seed: int
    ) -> Iterator[str]:
        """What `model`, in eval mode, writes after a prompt, piece by piece.

        Args:
            prompt: it goes on from; "" for the beginning of a line.
            length: pieces: characters or words.
            temperature: that the logits are divided by; 0: always the likeliest.
            seed: of what is drawn.

        Raises:
            OptionError: the task's models write no text, or a number is outside its rule.
        """
        raise OptionError(f"a run that writes is one of language, got one of {self.name}")

    def check_item(self, item: str) -> None:
        """Checks an item that a user typed; `answer` takes all that pass.

        Raises:
            DataError: it cannot; says why.
        """
        if not item:
            raise DataError(f"what {self.name} is asked must not be empty, got ''; leave it out")
        if any("\udc80" <= sign <= "\udcff" for sign in item):  # bytes of a file, or of a shell
            raise DataError(
                f"what {self.name} is asked must be UTF-8, and {short(item)} is not; convert it, "
                "say with iconv -f latin1 -t utf-8"
            )

    def describe_unseen(self, items: Sequence[str]) -> list[str]:
        """What training had not of items that a user typed, in words; often nothing."""
        return []

    def format_metric(self, value: float) -> str:
        return f"{100 * value:.2f} %" if self.in_percent else f"{value:.4g}"

    def step_bytes(self) -> int:
        """What a step's data and outputs take in memory at the least; 0 where it is not known."""
        return 0

    def pictures(self, model: nn.Module) -> list[Picture]:
        """What the page of a run shows of the test part besides its figures."""
        return []

    def prepare_diagnosis(self, model: nn.Module, batches: int, rows: int) -> DiagnosisInput:
        """The task and a model of it, in eval mode, as a diagnosis takes them.

        Args:
            batches: at most so many.
            rows: at most so many sequences in each, all of one length.

        Raises:
            OptionError: the task does not say how.
        """
        raise OptionError(f"{self.name} does not say how its model can be diagnosed")


_READ = {"gap": 1, "mask": 1}  # direct inputs that a task has, and their width
_SHORTEST = 3  # steps of a time scale that a start can be given


def start_options(recipe: Recipe) -> dict[str, Any]:
    """The start a recipe names, as `throughtime.initialise` takes it.

    Raises:
        OptionError: its horizon is too short.
    """
    horizon, length = recipe.horizon, recipe.length
    if 0 < horizon < _SHORTEST:
        raise OptionError(
            f"horizon must be 0 or a whole number of at least {_SHORTEST}, got {horizon}"
        )
    starts: dict[str, dict[str, Any]] = {
        "torch": {"recurrence": "torch"},
        "orthogonal": {"recurrence": "orthogonal"},
        "identity": {"recurrence": "identity"},
        "forget": {"forget_bias": 1.0},
        "chrono": {"chrono": horizon or length},
        "timescales": {"recurrence": "orthogonal", "timescales": (2, horizon or 3 * length)},
    }
    return starts[recipe.start]


def make_layers(recipe: Recipe, width: int, reads: bool = False) -> Recurrent:
    """The recurrent layers of a recipe.

    Args:
        recipe: cell, layers, directions, merge, hidden, dropout and start.
        width: of the input.
        reads: whether each step has the time since something was seen, and whether it was.

    Raises:
        OptionError: the cell reads what the task has not, or reads it backward, or it has no such
            start.
    """
    with report_line(find_python_file(recipe.cell)):
        cell = build_cell(recipe.cell)
        for name, wide in cell.inputs.items():
            if not reads or _READ.get(name) != wide:
                has = "gap and mask, one number each" if reads else "no direct inputs"
                raise OptionError(
                    f"cell {recipe.cell} must read what {recipe.task} has, {has}, and it reads "
                    f"{name}; choose another cell"
                )
        if cell.inputs and recipe.directions == 2:
            raise OptionError(
                f"cell {recipe.cell} reads the time since something was seen, which has one "
                "direction, got directions 2; give --directions 1"
            )
        layers = Recurrent(
            cell, width, recipe.hidden, num_layers=recipe.layers,
            bidirectional=recipe.directions == 2, merge=recipe.merge,
            dropout=recipe.dropout if recipe.layers > 1 else 0.0,
        )  # fmt: skip
        if recipe.start != "torch":
            initialise(layers, **start_options(recipe))
        return layers


def run_layers(layers: Recurrent, x: Tensor, gap: Tensor, mask: Tensor, **options: Any) -> Any:
    """Outputs and states.

    Args:
        layers: of `make_layers`.
        x: (T, B, width).
        gap: (T, B, 1) steps since something was seen before; mask: (T, B, 1), 1 where it is seen.
        options: as the layers take them.
    """
    direct = {"gap": gap, "mask": mask}
    read = {name: direct[name] for name in layers.cell.inputs}
    return layers(x, inputs=read, **options) if read else layers(x, **options)


def find_usual_length(lengths: Sequence[int], count: int) -> list[int]:
    """The numbers of the first `count` items of the most frequent length; OptionError for none."""
    if not lengths:
        raise OptionError("a diagnosis needs sequences of two steps or more, and training has none")
    ((length, _),) = Counter(lengths).most_common(1)
    return [n for n, one in enumerate(lengths) if one == length][:count]


# 2^32 over the golden ratio: seeds lie far apart, and the passes of one follow each other.
_ODD = 2_654_435_769
_WINDOW = 8  # batches within which items are sorted by length: less padding


def make_generator(seed: int, number: int) -> torch.Generator:
    """What draws the order of a run's pass."""
    # torch's generator on the CPU looks at the low 32 bits of a seed only.
    return torch.Generator().manual_seed((seed * _ODD + number) % 2**32)


def deal_batches(lengths: Tensor, batch_size: int, draw: torch.Generator) -> list[Tensor]:
    """The numbers of items (N,) in batches: shuffled, and sorted by length within windows."""
    batches: list[Tensor] = []
    order = torch.randperm(len(lengths), generator=draw, device="cpu")
    for window in order.split(batch_size * _WINDOW):
        batches += window[torch.argsort(lengths[window], stable=True)].split(batch_size)
    return batches


def group_by_length(items: Sequence[Sized], count: int) -> list[list[int]]:
    """The numbers of all items, `count` of near lengths together."""
    order = sorted(range(len(items)), key=lambda n: len(items[n]))
    return [order[k : k + count] for k in range(0, len(order), count)]


class BuiltWhenIndexed(Sequence[Batch]):
    """Batches of which each is built when it is indexed."""

    @abstractmethod
    def build(self, place: int) -> Batch:
        """One of them, by its number."""

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Batch]: ...
    def __getitem__(self, index: int | slice) -> Batch | Sequence[Batch]:
        places = range(len(self))[index]  # an IndexError ends a loop over all
        return self.build(places) if isinstance(places, int) else [*map(self.build, places)]


class Batches(BuiltWhenIndexed):
    """The batches of one pass over items of many lengths, near ones together.

    Args:
        build: from the number of a group and those of its items to a batch of them.
        groups: of each the lengths (N,) by which its items are put together.
        recipe: its seed and batch size.
        number: of the pass.
    """

    def __init__(
        self, build: Callable[[int, Tensor], Batch], groups: Sequence[Tensor], recipe: Recipe,
        number: int,
    ) -> None:  # fmt: skip
        draw = make_generator(recipe.seed, number)
        plan = [
            (group, rows)
            for group, lengths in enumerate(groups)
            for rows in deal_batches(lengths, recipe.batch_size, draw)
        ]
        order = torch.randperm(len(plan), generator=draw, device="cpu").tolist()
        self._plan = [plan[place] for place in order]
        self._build = build

    def __len__(self) -> int:
        return len(self._plan)

    def build(self, place: int) -> Batch:
        return self._build(*self._plan[place])
