"""Classify: a class for each sequence of the users' own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from throughtime.tasks.classify.find import find_labels, hash_source, read_source, read_test
from throughtime.tasks.classify.items import (
    ClassifyRecipe,
    Items,
    Labels,
    check_classes,
    content_key,
    encode_items,
    list_sequences,
)
from throughtime.tasks.picture import Picture, draw_confusion
from throughtime.tasks.recipe import Recipe, check_unchanged
from throughtime.tasks.tables import DataTable
from throughtime.tasks.tables.clock import merge_time
from throughtime.tasks.tables.task import TableTask, check_like_training, find_unseen
from throughtime.tasks.task import (
    Batch,
    DiagnosisInput,
    Example,
    Score,
    find_usual_length,
    make_generator,
    make_layers,
    run_layers,
)


class Classifier(nn.Module):
    """Sequences (T, B, width) with lengths (B,) to logits (B, classes).

    Mean and maximum of the outputs and the last states are read:

        logits = W [mean_t y_t, max_t y_t, h_1, ..., h_D] + b      h_d: each direction's last state

    Long sequences are read in frames of F steps, a new one every F / 6, of which the level is read
    apart from the shape: y are the outputs over

        e_k = relu(E [x_k - m_k, ..., x_{k+F-1} - m_k, m_k] + c)      m_k: the frame's mean

    Args:
        recipe: cell, directions, merge, layers, hidden and dropout.
        labels: columns, classes and frames.
    """

    def __init__(self, recipe: Recipe, labels: Labels) -> None:
        super().__init__()
        self.inputs, self.gaps, self.frames = len(labels.inputs), labels.step > 0, labels.frames
        self.every = max(1, self.frames // 6)
        width, one = labels.width, labels.frames == 1
        self.embedding = None if one else nn.Linear((self.frames + 1) * width, recipe.hidden)
        self.recurrent = make_layers(recipe, width if one else recipe.hidden, reads=one)
        self.dropout = nn.Dropout(recipe.dropout)
        last = self.recurrent.cell.widths(recipe.hidden)[0]
        read = 2 * self.recurrent.output_size + recipe.directions * last
        self.readout = nn.Linear(read, len(labels.classes))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Logits."""
        if self.embedding is not None:
            x, lengths = self._framed(x, lengths)
            out, state = self.recurrent(self.dropout(x), lengths=lengths)
        else:
            seen = x[..., self.inputs : 2 * self.inputs].amax(-1, keepdim=True)
            gap = torch.ones_like(seen)
            if self.gaps:
                gap = torch.expm1(x[..., 2 * self.inputs, None] + math.log(2))
            out, state = run_layers(self.recurrent, x, gap, seen, lengths=lengths)
        inside = torch.arange(len(out))[:, None, None] < lengths[:, None]
        mean = out.sum(0) / lengths[:, None]  # outputs after a row's end are zero
        most = out.masked_fill(~inside, -math.inf).amax(0)
        last = torch.cat([*state[-1][0]], -1)
        logits: Tensor = self.readout(self.dropout(torch.cat([mean, most, last], -1)))
        return logits

    def _framed(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Frames (K, B, hidden), and how many whole ones each row has, at least one."""
        assert self.embedding is not None
        lacking = max(0, self.frames - len(x))
        cut = nn.functional.pad(x, (0, 0, 0, 0, 0, lacking)).unfold(0, self.frames, self.every)
        means = cut.mean(-1, keepdim=True)
        whole = torch.cat([cut - means, means], -1).flatten(2)
        count = (lengths - self.frames).div(self.every, rounding_mode="floor").clamp(min=0) + 1
        return torch.relu(self.embedding(whole)), count


class Unpadded(nn.Module):
    """A classifier of one input: sequences of one length.

    Args:
        classifier: the model.
    """

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.classifier(x, torch.full((x.shape[1],), len(x)))
        return logits


def augment(
    x: Tensor, lengths: Tensor, inputs: int, noise: float, crop: float
) -> tuple[Tensor, Tensor]:
    """A batch as training has it: with noise, and of each sequence a part.

    Args:
        x: (T, B, width), its first `inputs` columns the values.
        lengths: (B,).
        inputs: how many columns get noise.
        noise: in deviations.
        crop: the largest share that is cut off.
    """
    if crop:
        shorter = (lengths * (1 - crop * torch.rand(len(lengths)))).ceil().long().clamp(min=1)
        first = (torch.rand(len(lengths)) * (lengths - shorter + 1)).long()
        places = first + torch.arange(int(shorter.max()))[:, None]
        x = x.gather(0, places.clamp(max=len(x) - 1)[..., None].expand(-1, -1, x.shape[-1]))
        x = x.masked_fill((torch.arange(len(x))[:, None] >= shorter)[..., None], 0.0)
        lengths = shorter
    if noise:
        drawn = noise * torch.randn(*x.shape[:2], inputs)
        x = torch.cat([x[..., :inputs] + drawn, x[..., inputs:]], -1)
    return x, lengths


_RIDGE = 1e-3


def make_baselines(train: Items, classes: int) -> dict[str, Callable[[Items], Tensor]]:
    """Name -> from sequences to logits (N, classes)."""
    shares = (one_hot(train.truth, classes).double().mean(0) + 1e-9).log()
    return {
        "majority": lambda items: shares.expand(len(items.names), classes),
        "linear on means": _fit_linear(train, classes),
    }


def _fit_linear(train: Items, classes: int) -> Callable[[Items], Tensor]:
    """Logistic regression on the mean of each input, fitted to its optimum by L-BFGS."""
    x = _mean_inputs(train)
    weights = torch.zeros(x.shape[1], classes, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        loss = cross_entropy(x @ weights, train.truth) + _RIDGE * weights.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        search.step(closure)
    fitted = weights.detach()
    return lambda items: _mean_inputs(items) @ fitted


def _mean_inputs(items: Items) -> Tensor:
    means = torch.stack([one.double().mean(0) for one in items.steps])
    return torch.cat([torch.ones(len(means), 1, dtype=torch.float64), means], 1)


if TYPE_CHECKING:
    import polars as pl

_EXAMPLES, _AT_ONCE = 6, 256
RULE = (
    "error: share of wrong classes; balanced_error: its mean over the classes; nats: cross entropy"
)


class Classify(TableTask[ClassifyRecipe, Labels]):
    """Tells the class of each sequence of your file, beside majority and a linear model."""

    name = "classify"
    options, facts_kind = ClassifyRecipe, Labels
    monitor = "nats"
    ignores = ("length",)
    together = _AT_ONCE
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {"hidden": 64, "batch_size": 32, "lr": 4e-3, "steps": 400, "warmup": 50,
                  "validate_every": 50, "dropout": 0.5, "smoothing": 0.1},
        "full": {"hidden": 96, "batch_size": 32, "lr": 3e-3, "steps": 3000, "warmup": 100,
                 "validate_every": 100, "dropout": 0.5, "smoothing": 0.1},
    }  # fmt: skip

    @classmethod
    def find_facts(cls, recipe: ClassifyRecipe) -> Labels:
        return find_labels(recipe)

    @cached_property
    def _items(self) -> dict[str, Items]:
        """The sequences of each split.

        Raises:
            DataError: the file is another one than when the run began.
        """
        table = read_source(self.recipe)
        check_unchanged(table.name, hash_source(self.recipe), self.facts.digest)
        sequences = list_sequences(merge_time(table, self.facts.time), self.facts, labelled=True)
        other = read_test(self.recipe, self.facts)
        items = encode_items(sequences.with_others(other) if other else sequences, self.facts)
        return {split: items.of(numbers) for split, numbers in self.facts.splits.items()}

    @property
    def series(self) -> str:
        return self.facts.series

    def model(self) -> nn.Module:
        return Classifier(self.recipe, self.facts)

    def epoch(self, number: int) -> Sequence[Batch]:
        """Every training sequence once, in an order that only (seed, number) decides."""
        generator = make_generator(self.recipe.seed, number)
        train = self._items["train"]
        order = torch.randperm(len(train.names), generator=generator)
        return [train.batch(part) for part in order.split(self.recipe.batch_size)]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross entropy; each class weighs as much as any other. In training inputs are varied."""
        inputs, lengths, truth = batch
        recipe, weights = self.recipe, torch.tensor(self.facts.weights)
        if model.training:
            count = len(self.facts.inputs)
            inputs, lengths = augment(inputs, lengths, count, recipe.noise, recipe.crop)
        logits = model(inputs, lengths)
        return cross_entropy(logits, truth, weight=weights, label_smoothing=recipe.smoothing)

    @property
    def row_axes(self) -> tuple[int, ...]:
        return 1, 0, 0

    def weight(self, batch: Batch) -> float:
        """The sum of what its classes weigh."""
        return float(torch.tensor(self.facts.weights)[batch[2]].sum())

    def score(self, model: nn.Module, split: str) -> Score:
        items = self._items[split]
        where = f"{len(items.names)} sequences kept out of training, split by a hash of each"
        return self._score(model, items, f"{split}: {where}")

    def _score(self, model: nn.Module, items: Items, where: str) -> Score:
        logits = answers(model, items)
        right = (logits.argmax(-1) == items.truth).tolist()
        classes = self.facts.classes
        chosen = range(0, len(right), max(1, len(right) // _EXAMPLES))
        examples = tuple(
            Example(items.names[n], classes[int(logits[n].argmax())],
                    classes[int(items.truth[n])], right[n])
            for n in chosen
        )  # fmt: skip
        return Score(where, RULE, len(right), measure(logits, items.truth), examples)

    def baselines(self, split: str) -> dict[str, dict[str, float]]:
        """The most frequent class, and a linear model on the means of each sequence."""
        return self._simple_on(self._items[split])

    def _simple_on(self, items: Items) -> dict[str, dict[str, float]]:
        return {name: measure(answer(items), items.truth) for name, answer in self._simple.items()}

    def measure_on(
        self, model: nn.Module, table: DataTable
    ) -> tuple[Score, dict[str, dict[str, float]]]:
        """On the sequences of a table that no training saw."""
        facts = self.facts
        table = merge_time(table, facts.time)
        check_like_training(table, [*facts.columns, facts.time, facts.series, facts.label])
        check_classes(table, facts)
        every = encode_items(list_sequences(table, facts, labelled=True), facts)
        trained_on = [*self._items["train"].steps, *self._items["validation"].steps]
        contents = [*map(content_key, every.steps)]
        new = find_unseen(table, "sequences", contents, map(content_key, trained_on))
        items, left = every.of(new), len(every.steps) - len(new)
        where = f"{table.name}: {len(new)} sequences"
        where += f"; {left} that the training saw are left out" if left else ""
        return self._score(model, items, where), self._simple_on(items)

    @cached_property
    def _simple(self) -> dict[str, Any]:
        return dict(make_baselines(self._items["train"], len(self.facts.classes)))

    def predict(self, model: nn.Module, table: DataTable) -> tuple[pl.DataFrame, list[str]]:
        """The class of each sequence, and how probable each class is."""
        import polars as pl

        facts = self.facts
        table = merge_time(table, facts.time)
        check_like_training(table, [*facts.columns, facts.time, facts.series])
        items = encode_items(list_sequences(table, facts, labelled=False), facts)
        shares = answers(model, items).softmax(-1).double()
        columns: dict[str, Any] = {facts.series or "row": items.names}
        columns[facts.label] = [facts.classes[n] for n in shares.argmax(-1).tolist()]
        for number, name in enumerate(facts.classes):
            columns[f"p_{name}"] = shares[:, number].tolist()
        return pl.DataFrame(columns), []

    def pictures(self, model: nn.Module) -> list[Picture]:
        """The confusion matrix of the test part."""
        items = self._items["test"]
        return [draw_confusion(answers(model, items).argmax(-1), items.truth, self.facts.classes)]

    def prepare_diagnosis(self, model: nn.Module, batches: int, rows: int) -> DiagnosisInput:
        """Training sequences of the most frequent length, which need no padding."""
        train = self._items["train"]
        chosen = find_usual_length([*map(len, train.steps)], batches * rows)
        few = [train.batch(part) for part in torch.tensor(chosen).split(rows)]
        return DiagnosisInput(Unpadded(model), [(x, truth) for x, _, truth in few], cross_entropy)


@torch.no_grad()
def answers(model: nn.Module, items: Items) -> Tensor:
    """Logits (N, classes) of sequences, in their order."""
    every = torch.arange(len(items.names)).split(_AT_ONCE)
    return torch.cat([model(*items.batch(part)[:2]) for part in every])


def measure(logits: Tensor, truth: Tensor) -> dict[str, float]:
    """The metrics of logits (N, classes)."""
    wrong = (logits.argmax(-1) != truth).double()
    by_class = [wrong[truth == one].mean() for one in truth.unique()]
    return {
        "error": float(wrong.mean()),
        "balanced_error": float(torch.stack(by_class).mean()),
        "nats": float(cross_entropy(logits.double(), truth)),
    }
