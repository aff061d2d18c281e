"""Forecast: the next steps of the users' own series, with their uncertainty, and its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from throughtime.errors import DataError
from throughtime.tasks.forecast.ahead import (
    RULE,
    describe_new_series,
    find_inside,
    forecast,
    forecast_adaptive,
    measure,
    predict,
    series_like,
)
from throughtime.tasks.forecast.find import find_facts, format_border, read_series
from throughtime.tasks.forecast.model import (
    MEDIAN,
    Forecaster,
    fit_linear_part,
    make_baselines,
    pinball,
)
from throughtime.tasks.forecast.windows import Facts, ForecastRecipe, Pass, Windows
from throughtime.tasks.picture import Curve, Picture, Plot
from throughtime.tasks.tables import DataTable
from throughtime.tasks.tables.clock import format_time
from throughtime.tasks.tables.task import TableTask
from throughtime.tasks.task import Batch, DiagnosisInput, Example, Score

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

    def describe_data(self) -> list[tuple[str, str]]:
        rows = super().describe_data()
        counts = ", ".join(f"{name} {len(at)}" for name, at in self._windows.origins.items())
        dropped = self._windows.dropped
        return [*rows, ("windows", f"{counts}; {dropped} that cross a border are left out")]

    @cached_property
    def _windows(self) -> Windows:
        """Every window of the file, which is as it was when the run began.

        Raises:
            DataError: it is another one, or a split has no window.
        """
        recipe, facts = self.recipe, self.facts
        series = read_series(recipe, facts)
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
            model.set_line(*fit_linear_part(self._windows))
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
        if split == "validation":  # the best weights are saved with the band of their validation
            model.get_buffer("wider").zero_()
            model.calibrate_band(forecast(model, windows, origins), windows.cut(origins)[1])
        ask = forecast if split == "validation" else forecast_adaptive
        answers = ask(model, windows, origins)
        metrics = measure(windows, origins, answers)
        begins = dict(zip(("validation", "test"), self.facts.ends, strict=True))[split]
        where = f"{split}: {len(origins)} windows of {self.recipe.horizon} steps from "
        where += f"{format_border(self.facts, begins)} on"
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
        return predict(model, table, self.facts, self.recipe.horizon)

    def measure_on(
        self, model: nn.Module, table: DataTable
    ) -> tuple[Score, dict[str, dict[str, float]]]:
        """On the windows of a table that no training saw; `mase` divides by what it did there."""
        facts, horizon = self.facts, self.recipe.horizon
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
        answers = forecast_adaptive(model, windows, origins)
        metrics = measure(windows, origins, answers)
        where = f"{table.name}: {len(origins)} windows of {horizon} steps"
        where += f"; {left} before the end of the validation part are left out" if left else ""
        examples = self._examples(windows, origins, answers)
        notes = tuple(describe_new_series(windows.series, facts))
        score = Score(where, RULE, len(origins), metrics, examples, notes)
        return score, self._simple_on(windows, origins)

    def pictures(self, model: nn.Module) -> list[Picture]:
        windows, origins = self._windows, self._windows.few("test")
        past = windows.past(origins)
        baselines = {name: answer(past) for name, answer in self._baselines.items()}
        answers = forecast_adaptive(model, windows, origins)
        return [
            _draw_forecasts(windows, origins, answers),
            *_draw_by_step(windows, origins, {"net": answers, **baselines}),
        ]

    def prepare_diagnosis(self, model: nn.Module, batches: int, rows: int) -> DiagnosisInput:
        drawn = self.epoch(0)
        few = [drawn[n] for n in range(min(batches, len(drawn)))]
        return DiagnosisInput(model, [(x[:, :rows], y[:, :rows]) for x, y in few], pinball)

    def step_bytes(self) -> int:
        steps = self.facts.length + self.recipe.horizon
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
        when = f"{one.name} {format_time(float(one.times[last]), self.facts.form)}".strip()
        words = f"{middle:.4g} ({low:.4g} to {high:.4g})"
        return Example(when, words, f"{truth:.4g}", low <= truth <= high)


_SERIES, _BEFORE = 3, 2  # series that are drawn, and horizons of history before a forecast


def _draw_forecasts(windows: Windows, origins: Tensor, answers: Tensor) -> Picture:
    """The last window of each of some series: the history, the forecast, the truth."""
    numbers = windows.series_of(origins)
    chosen = [int((numbers == n).nonzero()[-1]) for n in numbers.unique()[:_SERIES]]
    return Picture(
        title="What does it forecast?",
        lead="The last window of the test part of each series: what came before, the median with "
        "the band from the quantile 0.1 to 0.9, and what came; 8 of 10 points belong in the band.",
        plots=tuple(_plot_forecast(windows, int(origins[n]), answers[:, n]) for n in chosen),
    )


def _plot_forecast(windows: Windows, origin: int, answer: Tensor) -> Plot:
    number = int(windows.series_of(torch.tensor([origin])))
    one, horizon = windows.series[number], windows.horizon
    place = origin - int(windows.firsts[number])
    first = max(0, place - min(windows.length, _BEFORE * horizon))
    mean, deviation = windows.means[number, 0], windows.deviations[number, 0]
    low, middle, high = (answer[:, 0].double() * deviation + mean).T.tolist()
    ahead = list(range(1, horizon + 1))
    begin = str(format_time(float(one.times[place]), windows.facts.form))
    target = windows.facts.targets[0]
    return Plot(
        f"forecast of {target} against what came", f"steps from {begin} on", target,
        (
            Curve("0.1 to 0.9", ahead, low, "band", high),
            Curve("median", ahead, middle),
            Curve("what was and came", list(range(first - place + 1, horizon + 1)),
                  one.values[first : place + horizon, 0].tolist(), beside=True),
        ),
        of=one.name,
    )  # fmt: skip


def _draw_by_step(
    windows: Windows, origins: Tensor, answers: Mapping[str, Tensor]
) -> list[Picture]:
    """The errors and the coverage of the net's quantiles, and the baselines' errors."""
    truth = windows.cut(origins)[1].double()
    deviations = windows.deviations[windows.series_of(origins)]
    distances = {name: (truth - one[..., MEDIAN].double()).abs() for name, one in answers.items()}
    errors = {n: (d * deviations).flatten(1).nanmean(1).tolist() for n, d in distances.items()}
    held = find_inside(answers["net"], truth).flatten(1).nanmean(1).tolist()
    return [_draw_errors(errors), _draw_coverage(held)]


def _draw_errors(errors: Mapping[str, list[float]]) -> Picture:
    net = errors["net"]
    ahead = list(range(1, len(net) + 1))
    curves = tuple(Curve(name, ahead, values) for name, values in errors.items())
    return Picture(
        title="How does the error grow?",
        lead="The error of the median, in the target's units, beside the baselines.",
        says=(f"At the first step {net[0]:.4g}, at the last {net[-1]:.4g}.",),
        plots=(Plot("error by steps ahead", "steps ahead", "mean absolute error", curves),),
        head=("steps ahead", *errors),
        table=tuple(zip(ahead, *errors.values(), strict=True)),
    )


def _draw_coverage(held: list[float]) -> Picture:
    ahead = list(range(1, len(held) + 1))
    curve = Curve("coverage", ahead, held)
    return Picture(
        title="Does the band hold what it says?",
        lead="The share of the truth between the quantiles 0.1 and 0.9, by steps ahead.",
        plots=(
            Plot("coverage by steps ahead", "steps ahead", "share inside", (curve,),
                 line=(0.8, "0.8")),
        ),
        head=("steps ahead", "share inside"),
        table=tuple(zip(ahead, held, strict=True)),
    )  # fmt: skip
