"""What a forecast is made from: its options, and what its file says."""

from __future__ import annotations

from dataclasses import dataclass, field

from throughtime.tasks.recipe import FileRecipe, option

Scale = tuple[list[float], list[float]]  # mean and deviation of each column


@dataclass(frozen=True, kw_only=True)
class ForecastRecipe(FileRecipe):
    """A recipe with the columns of a table and their roles."""

    task: str = option("forecast", "What is learned")
    data: str = option(
        "builtin", "File, or files by comma or *, to learn from; builtin: two series made here"
    )
    target: str = option("", "Columns to forecast, by comma; needed with a file")
    time: str = option("", "Column of time; empty: found, or the order of rows")
    series: str = option("", "Column that tells series apart; empty: found, or one series")
    known: str = option("", "Columns known for the future too, by comma")
    horizon: int = option(24, "Steps to forecast", at_least=1)
    length: int = option(0, "Steps of history a forecast reads; 0: found in the data", at_least=0)
    held_out: float = option(0.15, "Share of the steps kept for the test", above=0, below=0.4)
    validation: float = option(
        0.0, "Share of the steps that choose the weights; 0: as many as the test", at_least=0,
        below=0.4,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the file says, as far as later steps go by it; all of it plain, for config.json.

    Attributes:
        digest: SHA-256 of the file.
        read: what people are shown before training, name and words.
        time, series: columns, "" where there is none.
        form: how times are written.
        step: the time of a step, in seconds or in the numbers of the column.
        even: whether every time is a whole number of steps after the first.
        targets, inputs, known: columns; inputs are known of the past alone.
        periods: seconds of the cycles that the calendar has and the data may follow.
        season: steps after which the training part resembles itself best; 1: none was found.
        follow: how far what is usual at a step of the season goes to what was seen there last.
        length: steps of history.
        ends: the times at which the validation and the test part begin.
        masked: the inputs that miss values in the training part.
        scales: of every series by its name, over its targets, inputs and known columns.
        whole: the scale of all series together, for those that training had not.
    """

    digest: str
    read: list[list[str]]
    time: str
    series: str
    form: str
    step: float
    even: bool
    targets: list[str]
    inputs: list[str]
    known: list[str]
    periods: list[float]
    season: int = 1
    follow: float = 1.0
    length: int = 1
    ends: list[float] = field(default_factory=list)
    masked: list[str] = field(default_factory=list)
    scales: dict[str, list[list[float]]] = field(default_factory=dict)
    whole: list[list[float]] = field(default_factory=list)
