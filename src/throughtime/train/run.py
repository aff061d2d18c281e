"""A run folder: its files, whole or not there at all, and reading it back.

config.json          the recipe
metrics.jsonl        a row every few steps and every validation
log.txt              the same for people
checkpoint.pt        where to go on, sealed; the one before it as checkpoint-previous.pt
weights.safetensors  the best weights, when training has ended
results.json         the figures on held-out items, when training has ended
report.json          how far back the model learned, and report.html the same as a page
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shlex
import shutil
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from throughtime.errors import RunError
from throughtime.tasks import available, find
from throughtime.tasks.recipe import Recipe, recipe_from, short

_SEAL = b"throughtime sealed 1 "
_LENGTHS = len(_SEAL) + 64 + 1


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that a reader, or a kill at any moment, finds the old one or the new one.

    Raises:
        OSError: the disk is full, say; names `path`, and no draft is left.
    """
    draft = write_draft(path, content)
    with _delete_on_failure(draft, path):
        os.replace(draft, path)
    sync_folder(path.parent)


def write_draft(path: Path, content: bytes) -> Path:
    """Writes a draft next to `path` and waits until the disk has it; the caller renames.

    Raises:
        OSError: as `write_whole`.
    """
    draft = path.with_name(path.name + ".draft")
    with _delete_on_failure(draft, path), draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return draft


@contextlib.contextmanager
def _delete_on_failure(draft: Path, path: Path) -> Iterator[None]:
    """Deletes a draft that could not become `path`."""
    try:
        yield
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from error


def read_whole(path: Path) -> bytes:
    """The content of a file; of a pipe, which would be waited for, there is none.

    Raises:
        OSError: it cannot be read.
    """
    kind = os.stat(path).st_mode
    if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
        raise OSError(errno.EINVAL, "it is no plain file", str(path))
    return path.read_bytes()


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON text.
    """
    try:
        return json.loads(read_whole(path))
    except (ValueError, RecursionError) as error:
        raise ValueError("it is no JSON text") from error


def sync_folder(folder: Path) -> None:
    """Waits until the disk knows the names in a folder."""
    with contextlib.suppress(PermissionError):  # Windows opens no folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def seal(content: bytes) -> bytes:
    """The content after a line with its SHA-256."""
    return _SEAL + hashlib.sha256(content).hexdigest().encode() + b"\n" + content


def unseal(sealed: bytes, path: Path, cure: str) -> bytes:
    """The content of a sealed file.

    Raises:
        RunError: the file was cut short or changed.
    """
    head, content = sealed[:_LENGTHS], sealed[_LENGTHS:]
    if not head.startswith(_SEAL) or seal(content)[:_LENGTHS] != head:
        raise RunError(
            f"{path} must have the content its checksum was made from, and it is truncated or "
            f"was changed ({len(sealed)} bytes); {cure}"
        )
    return content


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
        write_whole(self.results, _encode_json(results))


def create(folder: Path, recipe: Recipe) -> Run:
    """Makes a run folder: complete with its recipe, or not at all.

    Raises:
        RunError: something is there already, or the folder cannot be written.
    """
    exists = folder.exists() or folder.is_symlink()
    if exists and not (folder.is_dir() and not any(folder.iterdir())):
        raise RunError(
            f"a new run needs a folder that is not there yet or empty, and {folder} is neither; "
            "go on with what is there with --resume, or name another folder with --out"
        )
    draft = folder if exists else folder.with_name(f".{folder.name[:40]}.draft-{os.getpid()}")
    try:
        if not exists:
            folder.parent.mkdir(parents=True, exist_ok=True)
            draft.mkdir()
        write_whole(draft / "config.json", _encode_json(asdict(recipe)))
        if not exists:
            draft.rename(folder)
    except OSError as error:
        if not exists:
            shutil.rmtree(draft, ignore_errors=True)
        raise RunError(
            f"the run folder {folder} must be writable, and it is not ({error.strerror}); "
            "name another folder with --out"
        ) from error
    return Run(folder, recipe)


def replace_recipe(run: Run, recipe: Recipe) -> Run:
    """The same run with another recipe, in its config.json too."""
    write_whole(run.folder / "config.json", _encode_json(asdict(recipe)))
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
        kind = _find_options(values)
        recipe = recipe_from(values, kind)
        missing = [f.name for f in fields(kind) if f.name not in values]
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


def _find_options(values: Mapping[str, Any]) -> type[Recipe]:
    """The kind of recipe that values are of: the task's, where they name one."""
    task = values.get("task")
    return available()[task].options if task in tuple(available()) else Recipe


def _encode_json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()


def _lock(handle: int) -> None:
    """Raises: BlockingIOError: another process holds the file."""
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError from error
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def lock(folder: Path) -> Iterator[None]:
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
        _lock(handle)
        yield
    except BlockingIOError as error:
        raise RunError(
            f"one process at a time trains in a folder, and another one does in {folder}; "
            "wait for it, or name another folder with --out"
        ) from error
    finally:
        os.close(handle)
