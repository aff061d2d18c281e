"""Files that are whole or not there at all, and that know when they were damaged."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from throughtime.errors import RunError

_SEAL = b"throughtime sealed 1 "
_LENGTHS = len(_SEAL) + 64 + 1


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that a reader, or a kill at any moment, finds the old one or the new one.

    Raises:
        OSError: the disk is full, say; names `path`, and nothing is left beside it.
    """
    draft = write_draft(path, content)
    with _undone(draft, path):
        os.replace(draft, path)
    sync_folder(path.parent)


def write_draft(path: Path, content: bytes) -> Path:
    """Writes beside `path` and waits until the disk has it; the caller renames.

    Raises:
        OSError: as `write_whole`.
    """
    draft = path.with_name(path.name + ".draft")
    with _undone(draft, path), draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return draft


@contextlib.contextmanager
def _undone(draft: Path, path: Path) -> Iterator[None]:
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
    """What a JSON file says.

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
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def seal(content: bytes) -> bytes:
    """The content behind a line with its SHA-256."""
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


def remove(path: Path) -> None:
    """Removes a file that may not be there."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
