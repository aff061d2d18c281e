"""Compiled objects on disk: a folder that only its user can write, one file an object.

A file is the magic word, the SHA-256 of key and object, and the object. What does not check is
deleted and compiled again. Every failure of the disk is the same as finding nothing there.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from throughtime import environment

# The bytes that all objects together may take; an object is some 10 to 100 thousand.
LIMIT_BYTES = 256 << 20

_MAGIC = b"throughtime object 1\n"
_OBJECT = ".object"
_HALF_WRITTEN = ".part"
# A file still half written after this many seconds belongs to a process that was killed.
_GIVEN_UP_AFTER = 3600.0


@dataclass(frozen=True)
class Contents:
    """What the cache holds.

    Attributes:
        folder: where the objects lie; None when nothing is kept on disk.
        refused: why the folder is not used, or None.
        files: how many objects there are.
        bytes: what they take together.
    """

    folder: Path | None
    refused: str | None
    files: int
    bytes: int


def read(key: str) -> bytes | None:
    """The object kept under `key`, whole and unchanged, or None; a damaged one is deleted."""
    place = _folder()
    if place is None or _refusal(place) is not None:
        return None
    file = place / (key + _OBJECT)
    with suppress(OSError):
        payload = _unsealed(key, file.read_bytes())
        if payload is None:
            file.unlink()
        elif os.access(file, os.W_OK):
            os.utime(file)  # what was used last is deleted last
        return payload
    return None


def write(key: str, payload: bytes) -> None:
    """Keeps an object under `key`, a name for a file. A folder that cannot take it goes without."""
    place = _folder()
    if place is None or not place.is_absolute():
        return
    with suppress(OSError):
        place.mkdir(0o700, parents=True, exist_ok=True)
        if _refusal(place) is None:
            _put(place / (key + _OBJECT), _sealed(key, payload))
            _keep_within_limit(place)


def show() -> Contents:
    """What the cache holds now."""
    place = _folder()
    refused = _refusal(place)
    found = [] if place is None or refused else [*_files(place, _OBJECT)]
    return Contents(place, refused, len(found), sum(status.st_size for _, status in found))


def clear() -> int:
    """Deletes every object, and returns how many.

    Raises:
        OSError: the folder lets nothing be deleted.
    """
    place = _folder()
    if place is None or _refusal(place) is not None:
        return 0
    for file, _ in _files(place, _HALF_WRITTEN):
        file.unlink(missing_ok=True)
    found = [file for file, _ in _files(place, _OBJECT)]
    for file in found:
        file.unlink(missing_ok=True)
    return len(found)


def _folder() -> Path | None:
    given = environment.cache()
    if given == "":
        return None
    if given is not None:
        return Path(given).absolute() / "objects"
    import platformdirs

    return platformdirs.user_cache_path("throughtime") / "objects"


def _refusal(place: Path | None) -> str | None:
    """Why a folder is not used, or None; one that is not there yet will be made."""
    if place is None:
        return "THROUGHTIME_CACHE is empty, so nothing is kept on disk"
    if not place.is_absolute():
        return "this user has no home folder; name a folder in THROUGHTIME_CACHE"
    try:
        status = place.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"it cannot be read ({error.strerror}); name another folder in THROUGHTIME_CACHE"
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISDIR(status.st_mode):
        return "it is not a folder; name another in THROUGHTIME_CACHE"
    if status.st_uid != os.getuid():
        return "it belongs to another user; name a folder of your own in THROUGHTIME_CACHE"
    if mode & 0o077:
        return f"its mode is {mode:o}, open to other users; close it with: chmod 700 {place}"
    return None


def _sealed(key: str, payload: bytes) -> bytes:
    return _MAGIC + hashlib.sha256(key.encode() + payload).digest() + payload


def _unsealed(key: str, content: bytes) -> bytes | None:
    """The payload of a file's content, or None when the content is not what was sealed."""
    payload = content[len(_MAGIC) + hashlib.sha256().digest_size :]
    return payload if content == _sealed(key, payload) else None


def _put(file: Path, content: bytes) -> None:
    """Writes a file at once: whoever reads sees all of it or what was there before."""
    handle, name = tempfile.mkstemp(dir=file.parent, suffix=_HALF_WRITTEN)
    try:
        with os.fdopen(handle, "wb") as half_written:
            half_written.write(content)
        os.replace(name, file)
    finally:
        with suppress(OSError):
            os.unlink(name)  # still there only when something went wrong


def _keep_within_limit(place: Path) -> None:
    for file, status in _files(place, _HALF_WRITTEN):
        if time.time() - status.st_mtime > _GIVEN_UP_AFTER:
            file.unlink(missing_ok=True)
    newest_first = sorted(_files(place, _OBJECT), key=lambda one: -one[1].st_mtime_ns)
    total = 0
    for file, status in newest_first:
        total += status.st_size
        if total > LIMIT_BYTES:
            file.unlink(missing_ok=True)


def _files(place: Path, suffix: str) -> Iterator[tuple[Path, os.stat_result]]:
    """The folder's files of one kind with their status; other processes may delete some."""
    try:
        found = sorted(place.glob("*" + suffix))
    except OSError:
        return
    for file in found:
        with suppress(FileNotFoundError):
            yield file, file.stat()
