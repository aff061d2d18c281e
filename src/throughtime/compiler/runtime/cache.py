"""Compiled objects on disk: a folder that only its user can write, one file an object.

A file is the magic word, the SHA-256 of key and object, and the object. What is read becomes code
of this process, so a file must be the user's own, as its folder is: both are asked once they are
open, where no other process can put another in their place. What does not check is deleted and
compiled again. Every failure of the disk is the same as finding nothing there.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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

# What a mode lets other users do.
_OTHERS, _OTHERS_WRITE = 0o077, 0o022

# Neither follows a link, and neither waits for a writer where somebody put a pipe.
# Windows has none of these words, and no cache, as it has no compiled code.
_POSIX = hasattr(os, "O_DIRECTORY")
_NO_LINK = os.O_NOFOLLOW | os.O_CLOEXEC if _POSIX else 0
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | _NO_LINK if _POSIX else 0
_OPEN_FILE = os.O_RDONLY | os.O_NONBLOCK | _NO_LINK if _POSIX else 0
_MAKE_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK


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


@dataclass(frozen=True)
class Cleared:
    """What became of the cache when it was cleared.

    Attributes:
        deleted: how many objects are gone.
        left: the names of those that could not be deleted, each with the reason.
    """

    deleted: int
    left: tuple[str, ...]


class _Refused(Exception):
    """The folder is not used; says why."""


def read(key: str) -> bytes | None:
    """The object kept under `key`, whole and unchanged, or None; a damaged one is deleted."""
    with suppress(OSError, _Refused), _open_folder() as folder:
        name = key + _OBJECT
        content = _read_own(name, folder)
        payload = content[len(_MAGIC) + hashlib.sha256().digest_size :]
        if content == _sealed(key, payload):
            return payload
        os.unlink(name, dir_fd=folder)
    return None


def write(key: str, payload: bytes) -> None:
    """Keeps an object under `key`, a name for a file. A folder that cannot take it goes without."""
    with suppress(OSError, _Refused):
        _place().mkdir(0o700, parents=True, exist_ok=True)
        with _open_folder() as folder:
            _put(key + _OBJECT, _sealed(key, payload), folder)
            _keep_within_limit(folder)


def show() -> Contents:
    place, refused, sizes = None, None, []
    try:
        place = _place()
        with _open_folder() as folder:
            sizes = [status.st_size for _, status in _files(folder, _OBJECT)]
    except FileNotFoundError:
        pass  # it will be made
    except _Refused as error:
        refused = str(error)
    except OSError as error:
        refused = f"it cannot be read ({error.strerror}); name another folder in THROUGHTIME_CACHE"
    return Contents(place, refused, len(sizes), sum(sizes))


def clear() -> Cleared:
    """Deletes every object, and closes the user's own folder where it was open to others."""
    deleted, left = 0, []
    with suppress(OSError, _Refused), _open_folder(trusted=False) as folder:
        for name, _ in _files(folder, _HALF_WRITTEN, _OBJECT, folders=True):
            try:
                os.unlink(name, dir_fd=folder)
            except FileNotFoundError:
                continue  # another process was faster
            except OSError as error:
                left.append(f"{name} ({error.strerror})")
            else:
                deleted += name.endswith(_OBJECT)
        with suppress(OSError):
            os.fchmod(folder, stat.S_IMODE(os.fstat(folder).st_mode) & ~_OTHERS)
    return Cleared(deleted, tuple(left))


def _place() -> Path:
    """Where the folder is or would be.

    Raises:
        _Refused: there is none for this user.
    """
    if not _POSIX:
        raise _Refused("nothing is compiled on this system, so nothing is kept on disk")
    variable = environment.cache()
    if variable == "":
        raise _Refused("THROUGHTIME_CACHE is empty, so nothing is kept on disk")
    if variable is not None and not variable.startswith("~"):
        return Path(variable).absolute() / "objects"
    import platformdirs

    try:
        home = variable and Path(variable).expanduser()
        place = (home or platformdirs.user_cache_path("throughtime")) / "objects"
    except RuntimeError:  # what pathlib and platformdirs raise where there is no home
        place = Path()
    if not place.is_absolute():
        raise _Refused("this user has no home folder; name a folder in THROUGHTIME_CACHE in full")
    return place


@contextmanager
def _open_folder(trusted: bool = True) -> Iterator[int]:
    """The folder's descriptor; `trusted`: only while no other user could have written in it.

    Raises:
        _Refused: there is none, or it may not be used.
        OSError: it cannot be opened; FileNotFoundError when it is not there yet.
    """
    place = _place()
    try:
        folder = os.open(place, _OPEN_FOLDER)
    except NotADirectoryError as error:
        if place.parent.is_dir():
            reason = "it is a file or a link, and no folder; name another in THROUGHTIME_CACHE"
            raise _Refused(reason) from error
        raise
    try:
        status = os.fstat(folder)
        if status.st_uid != os.geteuid():
            raise _Refused(
                "it belongs to another user; name a folder of your own in THROUGHTIME_CACHE"
            )
        if trusted and (mode := stat.S_IMODE(status.st_mode)) & _OTHERS:
            raise _Refused(
                f"its mode is {mode:o}, open to other users, who may have left code in it; "
                "empty and close it with: throughtime cache --clear; or name another folder in "
                "THROUGHTIME_CACHE"
            )
        yield folder
    finally:
        os.close(folder)


def _read_own(name: str, folder: int) -> bytes:
    """A file's content, and nothing when another user can have written it."""
    handle = os.open(name, _OPEN_FILE, dir_fd=folder)
    try:
        status = os.fstat(handle)
        # A file with a second name may lie in a folder that another user can write.
        alone = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
        closed = status.st_uid in (os.geteuid(), 0) and not status.st_mode & _OTHERS_WRITE
        if not (alone and closed and status.st_size <= LIMIT_BYTES):
            return b""
        with suppress(OSError):
            os.utime(handle)  # what was used last is deleted last
        with open(handle, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(handle)


def _sealed(key: str, payload: bytes) -> bytes:
    return _MAGIC + hashlib.sha256(key.encode() + payload).digest() + payload


def _put(name: str, content: bytes, folder: int) -> None:
    """Writes a file at once: whoever reads sees all of it or what was there before."""
    draft = secrets.token_hex(16) + _HALF_WRITTEN
    handle = os.open(draft, _MAKE_FILE, 0o600, dir_fd=folder)
    try:
        with os.fdopen(handle, "wb") as half_written:
            half_written.write(content)
        os.replace(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        with suppress(OSError):
            os.unlink(draft, dir_fd=folder)  # still there only when something went wrong


def _keep_within_limit(folder: int) -> None:
    half_written = _files(folder, _HALF_WRITTEN)
    given_up = [n for n, s in half_written if time.time() - s.st_mtime > _GIVEN_UP_AFTER]
    total = 0
    for name, status in sorted(_files(folder, _OBJECT), key=lambda one: -one[1].st_mtime_ns):
        total += status.st_size
        if total > LIMIT_BYTES:
            given_up.append(name)
    for name in given_up:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)


def _files(
    folder: int, *suffixes: str, folders: bool = False
) -> Iterator[tuple[str, os.stat_result]]:
    """The folder's files of some kinds with their status; other processes may delete some."""
    for name in sorted(os.listdir(folder)):
        if name.endswith(suffixes):
            with suppress(FileNotFoundError):
                status = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if folders or not stat.S_ISDIR(status.st_mode):
                    yield name, status
