"""The folder of a study: what it is of, its finished runs, what they mean; and a search in it.

study.json      what all runs share, and at the end every outcome and the table
study.md        the report for people
runs/           one file a finished run, whole or not there, by which a study goes on
search.journal  of a search alone, by Optuna, which draws each trial by the outcomes of those
                before it, or at random; a trial's number is its seed, and one that has no file
                is begun again
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from throughtime.errors import OptionError, RunError, import_extra
from throughtime.tasks.recipe import Recipe, one_of, short
from throughtime.train.storage import read_json, write_json, write_whole
from throughtime.train.study import AXES, Outcome

_FREE = (*AXES, "threads", "parts")
_BEGUN = {"study.json.draft"}  # what is left when it is killed in its first moment


class Folder:
    """A study's folder: made when it is not there, opened when it is of the same study.

    Args:
        path: where.
        shared: the recipe of all runs; the axes of the grid, threads and parts do not count.

    Raises:
        RunError: something else is there, a study of other options, or it cannot be written.
    """

    def __init__(self, path: Path, shared: Recipe) -> None:
        self.path = path
        self.shared = {n: v for n, v in asdict(shared).items() if n not in _FREE}
        if not path.exists() or (path.is_dir() and {p.name for p in path.iterdir()} <= _BEGUN):
            self._make()
        before = self._read_shared()
        for name in {**before, **self.shared}:
            old, new = before.get(name), self.shared.get(name)
            if type(old) is not type(new) or old != new:
                raise RunError(
                    f"a study goes on with the options it began with, and {name} is {short(old)} "
                    f"in {path}, got {short(new)}; name another folder with --out"
                )

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.report({}, "")
        except OSError as error:
            raise RunError(
                f"the study's folder {self.path} must be writable, and it is not "
                f"({error.strerror}); name another folder with --out"
            ) from error

    def _read_shared(self) -> dict[str, Any]:
        try:
            values = read_json(self.path / "study.json")["shared"]
            return dict(values.items())
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise RunError(
                f"{self.path} must be the folder of a study, or empty, or not there yet, and its "
                "study.json is not what a study wrote; name another folder with --out"
            ) from error

    def outcomes(self) -> list[Outcome]:
        """Every finished run, whatever the grid that asked for it; RunError for a damaged file."""
        return [_read_outcome(file) for file in sorted((self.path / "runs").glob("*.json"))]

    def keep(self, outcome: Outcome) -> None:
        """Writes one finished run."""
        name = f"{outcome.cell}-{outcome.start}-{outcome.length}-{outcome.seed}.json"
        (self.path / "runs").mkdir(exist_ok=True)
        write_json(self.path / "runs" / name, asdict(outcome), 1)

    def report(self, values: Mapping[str, Any], page: str) -> None:
        """Writes study.json, and study.md when there is one."""
        if page:
            write_whole(self.path / "study.md", page.encode())
        write_json(self.path / "study.json", {"shared": self.shared, **values}, 1)


def _read_outcome(file: Path) -> Outcome:
    try:
        values = read_json(file)
        kinds = {f.name: str(f.type) for f in fields(Outcome)}
        if not isinstance(values, dict) or set(values) != set(kinds):
            raise ValueError("it has other names in it")
        for name, kind in kinds.items():
            if not _fits(values[name], kind):
                raise ValueError(f"{name} in it is {short(values[name])}")
    except (OSError, ValueError) as error:
        raise RunError(
            f"{file} must be what a study wrote, and it is not ({error}); delete it to do the run "
            "again"
        ) from error
    return Outcome(**values)


def _fits(value: Any, kind: str) -> bool:
    """Whether a value of a JSON file is of a field's kind, as it is annotated."""
    number = type(value) is int and abs(value) < 2**63
    rules = {
        "str": type(value) is str,
        "int": number and value >= 0,
        "float": number or type(value) is float,
        "bool": type(value) is bool,
        "list[tuple[int, float]]": type(value) is list and all(map(_is_pair, value)),
    }
    return rules[kind.removesuffix(" | None")] or (value is None and kind.endswith("None"))


def _is_pair(value: Any) -> bool:
    """A step and the figure of its validation."""
    right = type(value) is list and len(value) == 2
    return right and _fits(value[0], "int") and _fits(value[1], "float")


HEADINGS = (
    "cell", "start", "length", "solved", "steps", "seconds", "metric", "parameters", "ms a step",
)  # fmt: skip


@dataclass(frozen=True)
class StudyRow:
    """All seeds of one cell, start and length.

    Attributes:
        cell, start, length: which; the length in steps.
        seeds: how many runs ended.
        solved: how many of them solved the task.
        steps, seconds: medians, over those that did, until the first validation that shows it.
        metric: median over the runs that did not fail, on the test split.
        parameters: how many numbers are trained.
        step_milliseconds: of the processor; median of a training step.
        failed: the reasons of runs that ended before their time.
    """

    cell: str
    start: str
    length: int
    seeds: int
    solved: int
    steps: float | None
    seconds: float | None
    metric: float | None
    parameters: int
    step_milliseconds: float
    failed: tuple[str, ...]

    def cells(self) -> tuple[str, ...]:
        """As text, under HEADINGS."""
        return (
            self.cell, self.start, str(self.length), f"{self.solved} of {self.seeds}",
            _format(self.steps, ".0f"), _format(self.seconds, ".1f"), _format(self.metric, ".3g"),
            str(self.parameters), f"{self.step_milliseconds:.2f}",
        )  # fmt: skip


def make_rows(outcomes: Iterable[Outcome]) -> list[StudyRow]:
    """One row each, by length, cell and start."""
    groups: dict[tuple[int, str, str], list[Outcome]] = {}
    for one in outcomes:
        groups.setdefault((one.length, one.cell, one.start), []).append(one)
    return [_make_row(group) for _, group in sorted(groups.items())]


def _make_row(group: list[Outcome]) -> StudyRow:
    group = sorted(group, key=lambda one: one.seed)
    first, solved = group[0], [one for one in group if one.solved]
    return StudyRow(
        first.cell, first.start, first.length, len(group), len(solved),
        _median([one.solved_at_step for one in solved]),
        _median([one.solved_at_seconds for one in solved]),
        _median([one.metric for one in group]),
        first.parameters,
        statistics.median(one.step_milliseconds for one in group),
        tuple(f"seed {one.seed}: {one.failed}" for one in group if one.failed),
    )  # fmt: skip


def find_longest_solved(table: Sequence[StudyRow]) -> tuple[list[str], list[list[str]]]:
    """The longest length that most seeds solved, a line a cell and a column a start.

    `-` where there is none, nothing where nothing was run.
    """
    starts = list(dict.fromkeys(row.start for row in table))
    lines = []
    for cell in dict.fromkeys(row.cell for row in table):
        parts = {
            start: [r for r in table if (r.cell, r.start) == (cell, start)] for start in starts
        }
        lines.append([cell, *(_longest(part) for part in parts.values())])
    return ["cell", *starts], lines


def _longest(table: Sequence[StudyRow]) -> str:
    solved = [row.length for row in table if 2 * row.solved > row.seeds]
    return str(max(solved)) if solved else "-" * bool(table)


def list_failures(table: Sequence[StudyRow]) -> list[str]:
    """A line for each run that ended before its time."""
    return [f"{r.cell} from {r.start} over {r.length}, {why}" for r in table for why in r.failed]


def make_page(title: str, table: Sequence[StudyRow], remarks: Sequence[str]) -> str:
    """The report in Markdown."""
    parts = [
        f"# {title}",
        "The longest length, in steps, that most seeds solved:",
        _markdown(*find_longest_solved(table)),
        "Every cell, start and length; steps and seconds until it is solved are medians over the "
        "seeds that solve it, the metric is the median on the test split:",
        _markdown(HEADINGS, [row.cells() for row in table]),
        "\n".join(f"- {line}" for line in [*list_failures(table), *remarks]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    every = [headings, ["---"] * len(headings), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in every)


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _format(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


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
