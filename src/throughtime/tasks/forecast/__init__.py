"""Forecast: the next steps of the users' own series, with what is sure of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from throughtime.errors import DataError
from throughtime.tasks.forecast.ahead import (
    RULE,
    followed,
    forecast,
    measure,
    new_series,
    predict,
    series_like,
)
from throughtime.tasks.forecast.baselines import fit_ground, make_baselines
from throughtime.tasks.forecast.find import border, find_facts, series_of
from throughtime.tasks.forecast.model import Forecaster, pinball
from throughtime.tasks.forecast.options import Facts, ForecastRecipe
from throughtime.tasks.forecast.pictures import make_pictures
from throughtime.tasks.forecast.windows import Pass, Windows
from throughtime.tasks.picture import Picture
from throughtime.tasks.tables.clock import written
from throughtime.tasks.tables.table import DataTable
from throughtime.tasks.tables.task import TableTask
from throughtime.tasks.task import Batch, Example, Posed, Score

if TYPE_CHECKING:
    import polars as pl

_EXAMPLES = 6


class Forecast(TableTask[ForecastRecipe, Facts]):
    """Forecasts columns of your file, step by step ahead, beside the usual baselines."""

    name = "forecast"
    options, facts_kind = ForecastRecipe, Facts
    monitor = "pinball"
    ignores = ("directions", "merge", "start", "smoothing")
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "quick": {"directions": 1, "hidden": 32, "batch_size": 64, "lr": 3e-3, "steps": 600,
                  "warmup": 50, "validate_every": 100, "length": 0, "horizon": 24},
        "full": {"directions": 1, "hidden": 64, "batch_size": 64, "lr": 2e-3, "steps": 4000,
                 "warmup": 100, "validate_every": 200, "length": 0, "horizon": 24},
    }  # fmt: skip

    @classmethod
    def find_facts(cls, recipe: ForecastRecipe) -> Facts:
        return find_facts(recipe)

    def read(self) -> list[tuple[str, str]]:
        rows = super().read()
        counts = ", ".join(f"{name} {len(at)}" for name, at in self._windows.origins.items())
        dropped = self._windows.dropped
        return [*rows, ("windows", f"{counts}; {dropped} that cross a border are left out")]

    @cached_property
    def _windows(self) -> Windows:
        """Every window of the file, which is as it was when the run began.

        Raises:
            DataError: it is another one, or a split has no window.
        """
        recipe, facts = self.options_given, self.facts
        series = series_of(recipe, facts)
        windows = Windows(series, facts, recipe.horizon)
        for split, origins in windows.origins.items():
            if not len(origins):
                raise DataError(
                    f"{recipe.data} must have {facts.length} steps and a horizon of "
                    f"{recipe.horizon} after them with values for the {split} part, and it has no "
                    "such place; give a smaller --horizon or --length, or more rows"
                )
        return windows

    def model(self) -> nn.Module:
        return Forecaster(self.recipe, self.facts)

    def epoch(self, number: int) -> Sequence[Batch]:
        recipe = self.recipe
        return Pass(self._windows, recipe.batch_size, recipe.seed, number)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Pinball loss of the quantiles 0.1, 0.5 and 0.9, in deviations of the training part."""
        assert isinstance(model, Forecaster)
        inputs, truth = batch
        if model.training and not model.get_buffer("fitted"):
            model.take_line(*fit_ground(self._windows))
        return pinball(model(inputs), truth)

    @property
    def row_axes(self) -> tuple[int, ...]:
        return 1, 1

    def weight(self, batch: Batch) -> float:
        """How many values are there."""
        return int(torch.isfinite(batch[1]).sum())

    def score(self, model: nn.Module, split: str) -> Score:
        assert isinstance(model, Forecaster)
        windows, origins = self._windows, self._windows.few(split)
        if split == "validation":  # the weights that are kept have the band of their validation
            model.get_buffer("wider").zero_()
            model.hold(forecast(model, windows, origins), windows.cut(origins)[1])
        answers = (forecast if split == "validation" else followed)(model, windows, origins)
        metrics = measure(windows, origins, answers)
        begins = dict(zip(("validation", "test"), self.facts.ends, strict=True))[split]
        where = (
            f"{split}: {len(origins)} windows of {self.options_given.horizon} steps from "
            f"{border(self.facts, begins)} on"
        )
        return Score(where, RULE, len(origins), metrics, self._examples(windows, origins, answers))

    def baselines(self, split: str) -> dict[str, dict[str, float]]:
        """Persistence, the season before, and a line through the lags."""
        return self._simple_on(self._windows, self._windows.few(split))

    def _simple_on(self, windows: Windows, origins: Tensor) -> dict[str, dict[str, float]]:
        past = windows.past(origins)
        return {
            name: measure(windows, origins, answer(past))
            for name, answer in self._baselines.items()
        }

    @cached_property
    def _baselines(self) -> dict[str, Any]:
        return dict(make_baselines(self._windows))

    def predict(self, model: nn.Module, table: DataTable) -> tuple[pl.DataFrame, list[str]]:
        return predict(model, table, self.facts, self.options_given.horizon)

    def measure_on(
        self, model: nn.Module, table: DataTable
    ) -> tuple[Score, dict[str, dict[str, float]]]:
        """On the windows of a table that no training saw; what `mase` divides by is as there."""
        facts, horizon = self.facts, self.options_given.horizon
        windows = Windows(series_like(table, facts), facts, horizon)
        origins, left = windows.unseen()
        if not len(origins):
            raise DataError(
                f"{table.name} must have {facts.length} steps and a horizon of {horizon} after "
                "them that the training did not see, and it has no such place; give later rows, "
                "or other series"
            )
        before = {one.name: naive for one, naive in
                  zip(self._windows.series, self._windows.naive, strict=True)}  # fmt: skip
        usual = self._windows.naive.mean(0)
        windows.naive = torch.stack([before.get(one.name, usual) for one in windows.series])
        answers = followed(model, windows, origins)
        metrics = measure(windows, origins, answers)
        where = f"{table.name}: {len(origins)} windows of {horizon} steps"
        where += f"; {left} before the end of the validation part are left out" if left else ""
        examples = self._examples(windows, origins, answers)
        notes = tuple(new_series(windows.series, facts))
        score = Score(where, RULE, len(origins), metrics, examples, notes)
        return score, self._simple_on(windows, origins)

    def pictures(self, model: nn.Module) -> list[Picture]:
        windows, origins = self._windows, self._windows.few("test")
        past = windows.past(origins)
        beside = {name: answer(past) for name, answer in self._baselines.items()}
        return make_pictures(windows, origins, followed(model, windows, origins), beside)

    def posed(self, model: nn.Module, batches: int, rows: int) -> Posed:
        drawn = self.epoch(0)
        few = [drawn[n] for n in range(min(batches, len(drawn)))]
        return Posed(model, [(x[:, :rows], y[:, :rows]) for x, y in few], pinball)

    def step_bytes(self) -> int:
        steps = self.facts.length + self.options_given.horizon
        return 4 * self.recipe.batch_size * steps * self.recipe.hidden * self.recipe.layers

    def _examples(self, windows: Windows, origins: Tensor, answers: Tensor) -> tuple[Example, ...]:
        """The last step ahead of windows at even distances."""
        chosen = range(0, len(origins), max(1, len(origins) // _EXAMPLES))
        return tuple(self._example(windows, origins[n : n + 1], answers[:, n]) for n in chosen)

    def _example(self, windows: Windows, origin: Tensor, answer: Tensor) -> Example:
        number = int(windows.series_of(origin))
        one, place = windows.series[number], int(origin) - int(windows.firsts[number])
        last = place + windows.horizon - 1
        mean, deviation = windows.means[number, 0], windows.deviations[number, 0]
        low, middle, high = (answer[-1, 0].double() * deviation + mean).tolist()
        truth = float(one.values[last, 0])
        given = f"{one.name} {written(float(one.times[last]), self.facts.form)}".strip()
        said = f"{middle:.4g} ({low:.4g} to {high:.4g})"
        return Example(given, said, f"{truth:.4g}", low <= truth <= high)
