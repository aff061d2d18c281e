"""What a run reached: scored, kept next to its weights, and given to Python as a `TrainedRun`."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from throughtime.errors import OptionError, RunError
from throughtime.tasks import Task, find
from throughtime.tasks.recipe import Recipe, short
from throughtime.tasks.tables import DataTable, give_back, is_frame, make_table, write_file
from throughtime.tasks.tables.task import TableTask
from throughtime.tasks.tables.text import names_table
from throughtime.tasks.task import Score
from throughtime.train.run import RUNS, Run, begin, check_memory, go_on, read
from throughtime.train.storage import load_weights, read_json, read_whole

Place = str | PathLike[str]


def load_trained(run: Run) -> tuple[Task, nn.Module]:
    """The task of a finished run and its model in eval mode.

    Raises:
        RunError: the run has no weights, or they are damaged.
        OptionError: its model is too large for this machine.
    """
    task = find(run.recipe.task)(run.recipe)
    check_memory(task, training=False)
    with torch.random.fork_rng():
        model = task.model()
    load_weights(run, model)
    return task, model.eval()


def score_and_keep(run: Run, task: Task, model: nn.Module) -> tuple[Score, dict[str, Any]]:
    """Scores a model on the test split; keeps figures and findings in results.json."""
    score = task.score(model, "test")
    row, findings = _last_row(run), task.findings(model)
    parameters = sum(p.numel() for p in model.parameters())
    figures = {"parameters": parameters, "steps": row.pop("step"), **row}
    head = {"task": task.name, "metrics": score.metrics, "baselines": task.baselines("test"),
            "split": score.split, "seconds": row["wall_seconds"]}  # fmt: skip
    last = {"test": asdict(score), "chance": task.chance("test")}
    run.write_results(head | figures | findings | last)
    return score, figures | {"findings": findings}


def _last_row(run: Run) -> dict[str, Any]:
    """The last row of metrics.jsonl: a run that has ended has one with the steps and seconds."""
    try:
        row = json.loads(read_whole(run.metrics).splitlines()[-1])
        return {name: row[name] for name in ("step", "wall_seconds", "cpu_seconds")}
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise RunError(
            f"{run.metrics} must end with the last row that training wrote, and it does not; "
            "restore it, or train again in another folder"
        ) from error


class TrainedRun:
    """A run folder whose training has ended.

    Attributes:
        folder: where it is.
        recipe: what it was made from.
        task: with its data, read when they are asked for.
        model: with the best weights, in eval mode.
    """

    def __init__(self, run: Run, task: Task, model: nn.Module) -> None:
        self.folder: Path = run.folder
        self.recipe: Recipe = run.recipe
        self.task = task
        self.model = model
        self._results = run.results

    def __repr__(self) -> str:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in self.scores.items())
        return f"<run of {self.task.name} in {self.folder}: {figures}>"

    @cached_property
    def results(self) -> dict[str, Any]:
        """All of results.json.

        Raises:
            RunError: it is not there or damaged.
        """
        try:
            results: dict[str, Any] = read_json(self._results)
            results["metrics"], results["baselines"]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise RunError(
                f"{self._results} must hold the figures of the run, and it does not ({error}); "
                "write it again with --resume"
            ) from error
        return results

    @property
    def scores(self) -> dict[str, float]:
        """The figures on the held-out part by their names; the headline figure first."""
        return dict(self.results["metrics"])

    @property
    def baselines(self) -> dict[str, dict[str, float]]:
        """The same figures of each baseline."""
        return dict(self.results["baselines"])

    def evaluate(self, data: Any) -> dict[str, dict[str, float]]:
        """The figures of the model, under "model", and of the baselines on new data with the truth.

        What the training saw of them is left out; what it did not know is warned of.

        Args:
            data: a file, or for a run on a table a frame.

        Raises:
            DataError: the data are not as those of the training.
        """
        if isinstance(self.task, TableTask):
            score, baselines = self.task.measure_on(self.model, self._table(self.task, data))
        else:
            score, baselines = self.task.evaluate(self.model, str(data))
        self._warn(score.notes)
        return {"model": score.metrics, **baselines}

    def generate(
        self, prompt: str = "", length: int = 500, temperature: float = 1.0, seed: int = 0
    ) -> str:
        """Text that a model of language writes after a prompt.

        Args:
            prompt: what it goes on from; "" for the beginning of a line.
            length: characters or words.
            temperature: below 1 it writes what is likelier; 0: always the likeliest.
            seed: of what is drawn.

        Raises:
            OptionError: the task writes no text, or a number is outside its rule.
        """
        if prompt:
            self.task.check_item(prompt)
        self._warn(self.task.describe_unseen([prompt]))
        return "".join(self.task.write(self.model, prompt, length, temperature, seed))

    def predict(self, data: Any) -> Any:
        """The model's answers to new data; what it did not know is warned of.

        Args:
            data: a file or a frame, for a run on a table; else a list of items, or one, which
                runs on sentences take too.

        Returns:
            A frame of polars, or of pandas where one was given; the answers to items, as a list.

        Raises:
            DataError: the data are not as those of the training.
        """
        if isinstance(self.task, TableTask) and not self._are_items(self.task, data):
            frame, notes = self.task.predict(self.model, self._table(self.task, data))
            self._warn(notes)
            return give_back(frame, data)
        items = [data] if isinstance(data, str) else list(data)
        for item in items:
            self.task.check_item(item)
        self._warn(self.task.describe_unseen(items))
        return self.task.answer(self.model, items)

    @staticmethod
    def _warn(notes: Iterable[str]) -> None:
        for note in notes:
            warnings.warn(note, stacklevel=3)

    @staticmethod
    def _table(task: TableTask[Any, Any], data: Any) -> DataTable:
        return make_table(data, task.table, as_text=task.lines)

    @staticmethod
    def _are_items(task: TableTask[Any, Any], data: Any) -> bool:
        """Whether data are lines of text: a list, or a text that is no file."""
        alone = isinstance(data, str) and not (os.path.exists(data) or names_table(data))
        return task.lines and (alone or isinstance(data, list | tuple))


def open_run(folder: Place) -> TrainedRun:
    """The run in a folder."""
    run = read(Path(folder))
    return TrainedRun(run, *load_trained(run))


def train_task(
    task: str, data: Any, out: Place | None, resume: bool, options: Mapping[str, Any]
) -> TrainedRun:
    """As `throughtime.train`."""
    kind, folder = find(task), None if out is None else Path(out)
    values = {name: _join_columns(value) for name, value in options.items()}
    if data is None:
        return _train_to_its_end(kind, folder, resume, values)
    if not is_frame(data):
        if not isinstance(data, str | PathLike):
            raise OptionError(
                f"data must be a file or a frame of polars or pandas, got {short(data)}"
            )
        return _train_to_its_end(kind, folder, resume, values | {"data": str(data)})
    file, is_new = write_file(data, (folder or RUNS / "x").resolve().parent)
    try:
        return _train_to_its_end(kind, folder, resume, values | {"data": str(file)})
    except (ValueError, TypeError):
        if is_new:
            file.unlink(missing_ok=True)
        raise


def _train_to_its_end(
    kind: type[Task], folder: Path | None, resume: bool, options: Mapping[str, Any]
) -> TrainedRun:
    from throughtime.train.loop import fit

    def end(run: Run) -> TrainedRun:
        model, task = fit(run), find(run.recipe.task)(run.recipe)
        score_and_keep(run, task, model)
        return TrainedRun(run, task, model)

    if resume:
        return end(go_on(kind, folder, options))
    with begin(kind, folder, options) as run:
        return end(run)


def _join_columns(value: Any) -> Any:
    """A list of columns as the command line has it."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value
