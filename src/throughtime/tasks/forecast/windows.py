"""Windows of history and future over series, scaled, each in the split its future lies in.

The options and facts they are made by too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from throughtime.tasks.forecast.series import Series, usual_values
from throughtime.tasks.recipe import FileRecipe, option
from throughtime.tasks.tables import Numbers, fill_forward, log_gaps
from throughtime.tasks.tables.task import SIDES, FileFacts
from throughtime.tasks.task import Batch, BuiltWhenIndexed, make_generator


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
class Facts(FileFacts):
    """The facts in the file that later steps need.

    Attributes:
        time, series: columns, "" where there is none.
        form: how times are written.
        step: the time of a step, in seconds or in the numbers of the column.
        even: whether every time is a whole number of steps after the first.
        targets, inputs, known: columns; inputs are known of the past alone.
        periods: seconds of the cycles that the calendar has and the data may follow.
        season: steps after which the training part resembles itself best; 1: there is none.
        follow: how far what is usual at a step of the season moves to the last value there.
        length: steps of history.
        ends: the times at which the validation and the test part begin.
        masked: the inputs that miss values in the training part.
        scales: of every series by its name, over its targets, inputs and known columns.
        whole: the scale of all series together, for those that training had not.
    """

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


_MOST = 2000  # windows that validation and test are scored on


@dataclass(frozen=True)
class Channels:
    """Which columns of a step's input are what.

    targets, scaled, the last seen one where one is missing | whether each is seen | log of the
    steps since the last was seen | where times are uneven, of those since the row before |
    inputs | of those that miss some, whether each is seen | where a season is followed, how far
    the targets last were from what is usual, and what is usual | known columns, then sine and
    cosine of each cycle
    """

    targets: int
    inputs: int
    masked: int
    known: int
    uneven: int
    seasonal: bool

    @property
    def width(self) -> int:
        """Of a step."""
        return self.anomaly + 2 * self.targets * self.seasonal + self.known

    @property
    def anomaly(self) -> int:
        """The place of the targets' distances from what is usual, which follows them."""
        return self.gap + 1 + self.uneven + self.inputs + self.masked

    @property
    def gap(self) -> int:
        """The place of the steps since a target was seen."""
        return 2 * self.targets


def make_channels(facts: Facts) -> Channels:
    """The channels for a file's columns."""
    known = len(facts.known) + 2 * len(facts.periods)
    masked, uneven = len(facts.masked), int(not facts.even)
    seasonal = 1 < facts.season <= facts.length
    return Channels(len(facts.targets), len(facts.inputs), masked, known, uneven, seasonal)


class Windows:
    """Every window of some series: `length` steps read, `horizon` steps after them forecast.

    Args:
        series: on their steps.
        facts: columns, scales and ends.
        horizon: steps to forecast.
    """

    def __init__(self, series: list[Series], facts: Facts, horizon: int) -> None:
        self.series, self.facts, self.horizon = series, facts, horizon
        self.channels, self.length = make_channels(facts), facts.length
        self.firsts = np.cumsum([0, *(len(one) for one in series)])
        count = int(self.firsts[-1])
        self.steps = torch.empty(count, self.channels.width)
        self.truth = torch.empty(count, self.channels.targets)
        for one, begin, end in zip(series, self.firsts[:-1], self.firsts[1:], strict=True):
            self.steps[begin:end], self.truth[begin:end] = encode(one, facts)
        scales = [find_scale(one, facts) for one in series]
        self.means, self.deviations = (torch.tensor(np.stack(s)) for s in zip(*scales, strict=True))

    @cached_property
    def origins(self) -> dict[str, Tensor]:
        """Split -> the first future step of each of its windows, among all steps."""
        parts = [self._sides(number) for number in range(len(self.series))]
        origins = {}
        for side, split in enumerate(SIDES):
            every = np.concatenate([at[sides == side] for at, sides in parts])
            origins[split] = torch.from_numpy(every)
        return origins

    @property
    def dropped(self) -> int:
        """Windows whose future lies on both sides of a border."""
        return sum(int((sides < 0).sum()) for _, sides in map(self._sides, range(len(self.series))))

    def unseen(self) -> tuple[Tensor, int]:
        """Windows whose future no training saw, and how many others there are.

        Of a series of the training they are those after its last border; of other series, and
        where rows alone count the time, all.
        """
        unseen, left = [], 0
        for number, one in enumerate(self.series):
            at, sides = self._sides(number)
            old = bool(self.facts.time) and one.name in self.facts.scales
            chosen = at[sides == len(SIDES) - 1] if old else at
            unseen.append(chosen)
            left += len(at) - len(chosen)
        return thin(torch.from_numpy(np.concatenate(unseen)), _MOST), left

    def _sides(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The windows of a series and which side each belongs to: 0, 1, 2; -1 for none."""
        one, first = self.series[number], int(self.firsts[number])
        at = np.arange(self.length, len(one) - self.horizon + 1)
        side: NDArray[np.int64] = np.searchsorted(self.facts.ends, one.times, side="right")
        sides = np.where(side[at] == side[at + self.horizon - 1], side[at], -1)
        seen = torch.isfinite(self.truth[first : first + len(one)]).any(1).numpy()
        sums = np.cumsum(np.concatenate([[0], seen]))
        useful = (sums[at] > sums[at - self.length]) & (sums[at + self.horizon] > sums[at])
        return at[useful] + first, sides[useful]

    @cached_property
    def learned(self) -> Tensor:
        """The training windows that are trained on.

        Where a season is followed, those whose history lies after the first season, in which
        nothing is apart from what is usual; all, if those are few.
        """
        train = self.origins["train"]
        first = torch.from_numpy(self.firsts)[self.series_of(train)]
        later = train[train - first >= self.length + self.facts.season]
        return later if self.channels.seasonal and 4 * len(later) > len(train) else train

    def few(self, split: str) -> Tensor:
        """The windows that a split is scored on, at even distances when they are many."""
        return thin(self.origins[split], _MOST)

    def cut(self, origins: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs (length + horizon, B, width) and truth (horizon, B, targets), NaN if missing.

        Of the future, the inputs hold what is known ahead alone.
        """
        future = torch.arange(self.horizon)[:, None] + origins
        ahead = self.steps[future].clone()
        ahead[..., : self.channels.width - self.channels.known] = 0
        return torch.cat([self.steps[self._history(origins)], ahead]), self.truth[future]

    def past(self, origins: Tensor) -> Tensor:
        """Targets of the histories (length, B, D), what is missing between two on a line."""
        count = self.channels.targets
        inputs = self.steps[:, : 2 * count][self._history(origins)]
        return interpolate_seen(inputs[..., :count], inputs[..., count:])

    def seasons(self, origins: Tensor) -> tuple[Tensor, Tensor]:
        """How far the targets of histories are from what is usual, and what is; (length, B, D)."""
        count, first = self.channels.targets, self.channels.anomaly
        history = self._history(origins)
        seen = self.steps[:, count : 2 * count][history]
        anomaly, usual = self.steps[:, first : first + 2 * count][history].split(count, -1)
        return interpolate_seen(anomaly, seen), usual

    def _history(self, origins: Tensor) -> Tensor:
        return torch.arange(-self.length, 0)[:, None] + origins

    def series_of(self, origins: Tensor) -> Tensor:
        """The number of each window's series."""
        ends = torch.from_numpy(self.firsts[1:])
        return torch.searchsorted(ends, origins, right=True)

    @cached_property
    def naive(self) -> Tensor:
        """Mean error of the season before, in the training part of each series; (series, targets).

        What `mase` divides by.
        """
        lag, means = self.facts.season, []
        for number, one in enumerate(self.series):
            inside = self.truth[self.firsts[number] : self.firsts[number + 1]].double()
            inside = inside[torch.from_numpy(one.times < self.facts.ends[0])]
            errors = (inside[lag:] - inside[:-lag]).abs() * self.deviations[number]
            means.append(errors.nanmean(0))
        stacked = torch.stack(means)
        return torch.where(stacked > 0, stacked, self.deviations)


class Pass(BuiltWhenIndexed):
    """The batches of a pass, inputs (T, B, width) and truth (horizon, B, D); built when indexed.

    Only (seed, number) decides their order. All but the last are full; where there are fewer
    windows than a batch has, it is one batch.
    """

    def __init__(self, windows: Windows, batch_size: int, seed: int, number: int) -> None:
        generator = make_generator(seed, number)
        train = windows.learned
        self._windows = windows
        self._parts = train[torch.randperm(len(train), generator=generator)].split(batch_size)

    def __len__(self) -> int:
        return len(self._parts)

    def build(self, place: int) -> Batch:
        return self._windows.cut(self._parts[place])


def interpolate_seen(values: Tensor, seen: Tensor) -> Tensor:
    """Histories (T, B, D) with what was not seen on the line from the last value to the next.

    Where none follows it stays the last one, so that nothing after the history is read.

    Args:
        values: the last seen one where one is missing.
        seen: 1 where a value was seen, else 0.
    """
    if bool(seen.all()):
        return values
    steps = torch.arange(len(values))[:, None, None].expand_as(values)
    last = torch.where(seen > 0, steps, -1).cummax(0).values.clamp(min=0)
    following = torch.where(seen > 0, steps, len(values)).flip(0).cummin(0).values.flip(0)
    follows = following < len(values)
    after = values.gather(0, following.clamp(max=len(values) - 1))
    share = (steps - last) / (following - last).clamp(min=1)
    return torch.where(follows, values + share * (after - values), values)


def thin(origins: Tensor, most: int) -> Tensor:
    """At most so many of them, at even distances."""
    return origins[:: max(1, -(-len(origins) // most))].contiguous()


def find_scale(series: Series, facts: Facts) -> tuple[Numbers, Numbers]:
    """Mean and deviation of the targets of a series; of all series for an unknown one."""
    means, deviations = facts.scales.get(series.name, facts.whole)
    count = len(facts.targets)
    return np.array(means[:count], np.float64), np.array(deviations[:count], np.float64)


def encode(series: Series, facts: Facts) -> tuple[Tensor, Tensor]:
    """The steps of a series as a net reads them, (n, width), and its scaled targets, (n, D)."""
    channels = make_channels(facts)
    means, deviations = facts.scales.get(series.name, facts.whole)
    scaled = (series.values - np.array(means)) / np.array(deviations)
    targets, rest = scaled[:, : channels.targets], scaled[:, channels.targets :]
    inputs, known = rest[:, : channels.inputs], rest[:, channels.inputs :]
    seen = np.isfinite(targets)
    angles = [2 * np.pi * series.times / period for period in facts.periods]
    cycles = [turn(angle)[:, None] for angle in angles for turn in (np.sin, np.cos)]
    gaps = [log_gaps(series.times, seen.any(1), facts.step)]
    if channels.uneven:
        gaps.append(log_gaps(series.times, np.ones(len(series), bool), facts.step))
    masks = np.isfinite(inputs[:, [facts.inputs.index(name) for name in facts.masked]])
    parts = [fill_forward(targets), seen, *gaps, fill_forward(inputs), masks]
    if channels.seasonal:
        usual = usual_values(targets, facts.season, facts.follow)
        parts += [fill_forward(targets - usual), usual]
    parts += [np.nan_to_num(known), *cycles]
    steps = np.concatenate([part.astype(np.float32) for part in parts], 1)
    return torch.from_numpy(steps), torch.from_numpy(targets.astype(np.float32))
