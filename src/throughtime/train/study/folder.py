"""The folder of a study: what it is of, each finished run, and the report.

study.json   what all runs share, and at the end every outcome and the table
study.md     the report for people
runs/        one file a finished run, whole or not there, by which a study goes on
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from throughtime.errors import RunError
from throughtime.tasks.choices import short
from throughtime.tasks.recipe import Recipe
from throughtime.train.run import read_json, write_whole
from throughtime.train.study.grid import AXES
from throughtime.train.study.learn import Outcome

_FREE = (*AXES, "threads")
_BEGUN = {"study.json.draft"}  # what is left when it is killed in its first moment


class Folder:
    """A study's folder: made when it is not there, opened when it is of the same study.

    Args:
        path: where.
        shared: the recipe of all runs; the axes of the grid and the threads do not count.

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
        """Every finished run, whatever the grid that asked for it.

        Raises:
            RunError: a file is damaged.
        """
        return [_read(file) for file in sorted((self.path / "runs").glob("*.json"))]

    def keep(self, outcome: Outcome) -> None:
        """Writes one finished run."""
        name = f"{outcome.cell}-{outcome.start}-{outcome.length}-{outcome.seed}.json"
        (self.path / "runs").mkdir(exist_ok=True)
        write_whole(self.path / "runs" / name, _json(asdict(outcome)))

    def report(self, values: Mapping[str, Any], page: str) -> None:
        """Writes study.json, and study.md when there is one."""
        if page:
            write_whole(self.path / "study.md", page.encode())
        write_whole(self.path / "study.json", _json({"shared": self.shared, **values}))


def _read(file: Path) -> Outcome:
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


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=1) + "\n").encode()
