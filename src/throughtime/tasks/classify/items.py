"""The sequences of a table, also as tensors; the options and facts they are made by; a table made
here, so that the task runs with no file."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np
import torch
from torch import Tensor

from throughtime.errors import DataError
from throughtime.tasks.recipe import FileRecipe, did_you_mean, option, short
from throughtime.tasks.tables import DataTable, Numbers, fill_forward, log_gaps
from throughtime.tasks.tables.clock import find_step, read_times
from throughtime.tasks.tables.task import BUILTIN, FileFacts


@dataclass(frozen=True, kw_only=True)
class ClassifyRecipe(FileRecipe):
    """A recipe with the columns of a table and their roles."""

    task: str = option("classify", "What is learned")
    data: str = option(BUILTIN, "File to learn from; builtin: waves made here")
    label: str = option("", "Column of classes; needed with a file")
    time: str = option("", "Column of time; empty: found, or the order of rows")
    series: str = option("", "Column that tells sequences apart; empty: each row is a sequence")
    test: str = option("", "File whose sequences are the test; empty: a part of --data")
    group: str = option("", "Column whose rows stay on one side of the split, say a person")
    frames: int = option(
        0, "Steps that are read together; 0: 24 where sequences have 150 or more, else 1",
        at_least=0,
    )  # fmt: skip
    noise: float = option(0.3, "Noise on inputs in training, in deviations", at_least=0)
    crop: float = option(
        0.0, "Largest share of a sequence cut off in training", at_least=0, below=1
    )


@dataclass(frozen=True, kw_only=True)
class Labels(FileFacts):
    """The facts in the file, and in that of the test.

    Attributes:
        label, time, series: columns; without one of series, each row is a sequence.
        inputs: the columns of a step; of a row that is a sequence, one, "value".
        columns: that are read as numbers.
        classes: sorted; weights: of each in the loss.
        splits: the numbers of the sequences of each.
        means, deviations: of the inputs in the training part.
        step: the time between rows in the middle, where they are uneven or values are missing; 0
            where each step is as the others.
        frames: steps that are read together.
    """

    label: str
    time: str
    series: str
    columns: list[str]
    classes: list[str]
    inputs: list[str] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    splits: dict[str, list[int]] = field(default_factory=dict)
    means: list[float] = field(default_factory=list)
    deviations: list[float] = field(default_factory=list)
    step: float = 0.0
    frames: int = 1

    @property
    def width(self) -> int:
        """Numbers of a step: inputs, whether each is seen, and the time since one was."""
        return 2 * len(self.inputs) + 2 * (self.step > 0)


@dataclass(frozen=True)
class Sequences:
    """As in a file: name, steps (T, inputs) with NaN where missing, label, times (T,)."""

    names: list[str]
    values: list[Numbers]
    labels: list[str]
    times: list[Numbers]

    def with_others(self, others: Sequences) -> Sequences:
        """These, followed by others."""
        parts = ((getattr(self, f.name), getattr(others, f.name)) for f in fields(self))
        return Sequences(*(one + other for one, other in parts))


def list_sequences(table: DataTable, facts: Labels, labelled: bool) -> Sequences:
    """The sequences of a table, in the order in which they begin.

    Raises:
        DataError: the label changes within a sequence, or is missing; names the row.
    """
    whole = np.stack([table.numbers(column) for column in facts.columns], 1)
    labels = table.texts(facts.label) if labelled else [""] * len(whole)
    if not facts.series:
        names = [str(table.first + row) for row in range(len(whole))]
        values = [_cut_end(row)[:, None] for row in whole]
        return Sequences(names, values, labels, [np.arange(float(len(one))) for one in values])
    places: dict[str, list[int]] = {}
    for row, name in enumerate(table.texts(facts.series)):
        places.setdefault(name, []).append(row)
    times = read_times(table, facts.time).values if facts.time else None
    sequences = Sequences([], [], [], [])
    for name, rows in places.items():
        odd = next((row for row in rows if labels[row] != labels[rows[0]]), None)
        if odd is not None:
            raise DataError(
                f"column {facts.label} must be the same within series {name}, and it is "
                f"{labels[rows[0]]} in {table.place(rows[0])} and {labels[odd]} in "
                f"{table.place(odd)}; mend it, or name another --series"
            )
        order = sorted(rows, key=lambda row: row if times is None else float(times[row]))
        sequences.names.append(name)
        sequences.values.append(whole[order])
        sequences.labels.append(labels[rows[0]])
        sequences.times.append(np.arange(float(len(rows))) if times is None else times[order])
    return sequences


def content_key(steps: Tensor) -> tuple[int, bytes]:
    """What equal sequences have in common."""
    return len(steps), steps.numpy().tobytes()


def check_classes(table: DataTable, facts: Labels) -> None:
    """Raises DataError where a table has a class that the training had not; names the row."""
    for row, label in enumerate(table.texts(facts.label)):
        if label not in facts.classes:
            raise DataError(
                f"column {facts.label} must hold classes of the training, "
                f"{', '.join(facts.classes[:20])}, and {table.place(row)} has {short(label)}"
                f"{did_you_mean(label, facts.classes)}"
            )


def _cut_end(row: Numbers) -> Numbers:
    """A row as a sequence: up to its last value that is there."""
    seen = np.flatnonzero(np.isfinite(row))
    return row[: int(seen[-1]) + 1 if len(seen) else 1]


@dataclass(frozen=True)
class Items:
    """Sequences as a net reads them.

    Attributes:
        names: of each.
        steps: (T, width) each: inputs, scaled, the last seen one where one is missing | whether
            each is seen | where values are missing or times uneven, log of the steps since
            something was seen and since the row before.
        truth: (N,) numbers of their classes.
    """

    names: list[str]
    steps: list[Tensor]
    truth: Tensor

    def of(self, numbers: list[int]) -> Items:
        """Some of them."""
        return Items([self.names[n] for n in numbers], [self.steps[n] for n in numbers],
                     self.truth[numbers])  # fmt: skip

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs (T, B, width), padded at the end, lengths (B,) and truth (B,)."""
        chosen = [self.steps[row] for row in rows.tolist()]
        lengths = torch.tensor([len(one) for one in chosen])
        return torch.nn.utils.rnn.pad_sequence(chosen), lengths, self.truth[rows]


def encode_items(sequences: Sequences, facts: Labels) -> Items:
    """Scaled by the training part."""
    means, deviations = np.array(facts.means), np.array(facts.deviations)
    steps = []
    for one, times in zip(sequences.values, sequences.times, strict=True):
        scaled = (one - means) / deviations
        seen = np.isfinite(scaled)
        parts = [fill_forward(scaled), seen]
        if facts.step > 0:
            every = np.ones(len(one), bool)
            parts += [log_gaps(times, rows, facts.step) for rows in (seen.any(1), every)]
        steps.append(torch.from_numpy(np.concatenate(parts, 1).astype(np.float32)))
    number = {name: place for place, name in enumerate(facts.classes)}
    truth = torch.tensor([number.get(label, -1) for label in sequences.labels])
    return Items(sequences.names, steps, truth)


def find_gaps(values: list[Numbers], times: list[Numbers]) -> float:
    """The step in the middle where values are missing or times uneven; 0 where neither is."""
    differences = np.concatenate([np.zeros(0), *(np.diff(one) for one in times)])
    missing = not all(np.isfinite(one).all() for one in values)
    step, even = find_step(differences[differences > 0])
    even = even and bool(np.allclose(differences, step, rtol=1e-3))
    return step if missing or not even else 0.0


_SHAPES, _WAVES = ("chirp", "saw", "sine"), 240


def make_waves() -> DataTable:
    """Three shapes in two channels, 20 to 40 steps with noise, whose means say nothing."""
    import polars as pl

    generator = np.random.default_rng(11)
    parts = []
    for number in range(_WAVES):
        shape = _SHAPES[number % len(_SHAPES)]
        steps = int(generator.integers(20, 41))
        phase = np.arange(steps) / 8 + generator.random()
        turn = phase * (1 + phase / 6) if shape == "chirp" else phase
        wave = 2 * (turn % 1) - 1 if shape == "saw" else np.sin(2 * np.pi * turn)
        noise = 0.3 * generator.standard_normal((2, steps))
        parts.append(
            pl.DataFrame({
                "wave": [f"w{number:03}"] * steps, "shape": [shape] * steps,
                "a": np.round(wave + noise[0], 4), "b": np.round(-wave / 2 + noise[1], 4),
            })
        )  # fmt: skip
    return DataTable(pl.concat(parts), "builtin", "made here")
