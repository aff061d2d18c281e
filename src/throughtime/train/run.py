"""A run folder: what it holds, how it is made, and reading it back without Lightning.

config.json          the recipe
metrics.jsonl        a row every few steps and every validation
log.txt              the same for people
checkpoint.pt        where to go on, sealed; the one before it as checkpoint-previous.pt
weights.safetensors  the best weights, when training has ended
results.json         the figures on held-out items, when training has ended
report.json          how far back the model learned, and report.html the same as a page
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from throughtime.errors import RunError
from throughtime.tasks import find
from throughtime.tasks.choices import short
from throughtime.tasks.recipe import Recipe, recipe_from
from throughtime.train.files import read_json, write_whole


@dataclass(frozen=True)
class Run:
    """A run folder that exists, with the recipe in it."""

    folder: Path
    recipe: Recipe

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    @property
    def previous(self) -> Path:
        return self.folder / "checkpoint-previous.pt"

    @property
    def weights(self) -> Path:
        return self.folder / "weights.safetensors"

    @property
    def results(self) -> Path:
        return self.folder / "results.json"

    @property
    def resume(self) -> str:
        """The command that goes on with it."""
        return (
            f"throughtime train {self.recipe.task} --resume --out {shlex.quote(str(self.folder))}"
        )

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Keeps the figures of a finished run."""
        write_whole(self.results, _json(results))


def create(folder: Path, recipe: Recipe) -> Run:
    """Makes a run folder: complete with its recipe, or not at all.

    Raises:
        RunError: something is there already, or the folder cannot be written.
    """
    there = folder.exists() or folder.is_symlink()
    if there and not (folder.is_dir() and not any(folder.iterdir())):
        raise RunError(
            f"a new run needs a folder that is not there yet or empty, and {folder} is neither; "
            "go on with what is there with --resume, or name another folder with --out"
        )
    draft = folder if there else folder.with_name(f".{folder.name[:40]}.draft-{os.getpid()}")
    try:
        if not there:
            folder.parent.mkdir(parents=True, exist_ok=True)
            draft.mkdir()
        write_whole(draft / "config.json", _json(asdict(recipe)))
        if not there:
            draft.rename(folder)
    except OSError as error:
        if not there:
            shutil.rmtree(draft, ignore_errors=True)
        raise RunError(
            f"the run folder {folder} must be writable, and it is not ({error.strerror}); "
            "name another folder with --out"
        ) from error
    return Run(folder, recipe)


def keep_recipe(run: Run, recipe: Recipe) -> Run:
    """The same run with another recipe, in its config.json too."""
    write_whole(run.folder / "config.json", _json(asdict(recipe)))
    return Run(run.folder, recipe)


def read(folder: Path) -> Run:
    """Opens a run folder.

    Raises:
        RunError: there is none, or its config.json is missing, damaged or outside the rules.
    """
    path = folder / "config.json"
    try:
        values = read_json(path)
        if not isinstance(values, dict):
            raise ValueError(f"it holds no object but {short(values)}")
        recipe = recipe_from(values)
        missing = [f.name for f in fields(Recipe) if f.name not in values]
        if missing:
            raise ValueError(f"it does not say {', '.join(missing)}")
        find(recipe.task)(recipe)
    except OSError as error:
        raise RunError(
            f"a run is a folder with a config.json, and {path} cannot be read ({error.strerror}); "
            "name the folder that `throughtime train` printed"
        ) from error
    except ValueError as error:
        raise RunError(
            f"{path} must be what this version of throughtime writes, and {error}; restore the "
            "file, or train again in another folder"
        ) from error
    return Run(folder, recipe)


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a run folder for one process; a killed process lets go by itself.

    Raises:
        RunError: another process trains there, or the folder cannot be written.
    """
    try:
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise RunError(
            f"the run folder {folder} must be writable, and it is not ({error.strerror}); "
            "copy it to a place that is and resume there"
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise RunError(
            f"one process at a time trains in a folder, and another one does in {folder}; "
            "wait for it, or name another folder with --out"
        ) from error
    finally:
        os.close(handle)
