"""What classes are made from: their options, and what their file says."""

from __future__ import annotations

from dataclasses import dataclass, field

from throughtime.tasks.recipe import FileRecipe, option
from throughtime.tasks.tables.task import BUILTIN


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
class Labels:
    """What the file says, all of it plain, for config.json.

    Attributes:
        digest: SHA-256 of the file, and of the test's own behind it.
        read: what people are shown before training, name and words.
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

    digest: str
    read: list[list[str]]
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
