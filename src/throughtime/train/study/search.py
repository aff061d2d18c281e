"""A study that searches: each trial is drawn by the outcomes of those before it, or at random.

Optuna draws, and keeps a journal in the study's folder. The outcome of a trial is a file like
those of a grid, with the trial's number as its seed. A trial that has no file is begun again.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from throughtime.errors import OptionError, RunError, import_extra
from throughtime.tasks.recipe import Recipe, one_of
from throughtime.train.study import Outcome
from throughtime.train.study.folder import Folder

JOURNAL = "search.journal"
KINDS = ("random", "tpe")
_RATES, _UNITS = (1e-4, 3e-2), (8, 128)


class Search:
    """The trials of a study's folder.

    Args:
        kind: `random`, or `tpe`: where earlier trials did well.
        folder: of the study.
        shared: the recipe of all trials but for cell, start, lr and hidden.
        pairs: (cell, start) that go together.
        trials: how many there shall be in the folder.

    Raises:
        MissingExtra: Optuna is not installed.
        OptionError: kind or number cannot be.
        RunError: the folder is of another study.
    """

    def __init__(
        self, kind: str, folder: Folder, shared: Recipe, pairs: Sequence[tuple[str, str]],
        trials: int,
    ) -> None:  # fmt: skip
        one_of("search", kind, KINDS)
        if not 1 <= trials <= 10_000:
            raise OptionError(
                f"trials must be a whole number of at least 1 and at most 10000, got {trials}"
            )
        self._optuna = _import_optuna()
        self._folder, self._shared, self._trials = folder, shared, trials
        self._choices = sorted(" from ".join(pair) for pair in pairs)
        self._study = self._open(kind, folder.path / JOURNAL)

    def _open(self, kind: str, journal: Path) -> Any:
        optuna = self._optuna
        if not journal.exists() and self._folder.outcomes():
            raise RunError(
                f"{self._folder.path} must be the folder of a search, or empty, and it has the "
                "runs of a grid; name another with --out"
            )
        samplers = optuna.samplers
        seed = len(self._folder.outcomes())  # other draws when it goes on
        sampler = samplers.TPESampler(seed=seed) if kind == "tpe" else samplers.RandomSampler(seed)
        backend = optuna.storages.journal.JournalFileBackend(str(journal))
        storage = optuna.storages.JournalStorage(backend)
        study = optuna.create_study(
            storage=storage, sampler=sampler, study_name="search", load_if_exists=True
        )
        begun = study.user_attrs.get("choices", self._choices)
        if begun != self._choices:
            raise RunError(
                f"a search goes on with the cells and starts it began with, {', '.join(begun)}, "
                f"got {', '.join(self._choices)}; name another folder with --out"
            )
        study.set_user_attr("choices", begun)
        return study

    def recipes(self) -> Iterator[Recipe]:
        """The trials that are missing: those begun before, then new ones, drawn when asked for."""
        done = {one.seed: one for one in self._folder.outcomes()}
        for trial in self._study.get_trials(deepcopy=False):
            if trial.state.is_finished():
                continue
            if trial.number in done:
                self.tell(done[trial.number])
            elif set(trial.params) == {"model", "lr", "hidden"}:
                yield self._recipe(trial.number, trial.params)
            else:
                self._study.tell(trial.number, state=self._optuna.trial.TrialState.FAIL)
        while len(self._study.get_trials(deepcopy=False)) < self._trials:
            trial = self._study.ask()
            trial.suggest_categorical("model", self._choices)
            trial.suggest_float("lr", *_RATES, log=True)
            trial.suggest_int("hidden", *_UNITS, log=True)
            yield self._recipe(trial.number, trial.params)

    def _recipe(self, number: int, params: Mapping[str, Any]) -> Recipe:
        cell, start = params["model"].split(" from ")
        return replace(self._shared, cell=cell, start=start, seed=number, lr=params["lr"],
                       hidden=params["hidden"])  # fmt: skip

    def tell(self, one: Outcome) -> None:
        """Reports a trial to Optuna: its best validation; nothing where it failed."""
        lowest = min((value for _, value in one.validations), default=math.nan)
        states = self._optuna.trial.TrialState
        failed = one.failed is not None or not math.isfinite(lowest)
        self._study.tell(
            one.seed, None if failed else lowest, states.FAIL if failed else states.COMPLETE,
            skip_if_finished=True,
        )  # fmt: skip

    def count(self) -> tuple[int, int]:
        """How many trials there shall be, and how many have ended."""
        ended = sum(t.state.is_finished() for t in self._study.get_trials(deepcopy=False))
        return max(self._trials, ended), ended

    def best(self) -> list[dict[str, Any]]:
        """The ten best trials: number, figure, and what was drawn."""
        ended = [t for t in self._study.get_trials(deepcopy=False) if t.value is not None]
        ended.sort(key=lambda trial: (trial.value, trial.number))
        return [{"trial": t.number, "figure": t.value, **t.params} for t in ended[:10]]


def _import_optuna() -> Any:
    with warnings.catch_warnings(action="ignore"):
        optuna = import_extra("optuna", "cluster")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
