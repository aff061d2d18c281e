"""Files that are whole or not there at all, and that know when they were damaged."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from throughtime.errors import RunError

_SEAL = b"throughtime sealed 1 "
_LENGTHS = len(_SEAL) + 64 + 1


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that a reader, or a kill at any moment, finds the old one or the new one."""
    draft = write_draft(path, content)
    os.replace(draft, path)
    sync_folder(path.parent)


def write_draft(path: Path, content: bytes) -> Path:
    """Writes beside `path` and waits until the disk has it; the caller renames."""
    draft = path.with_name(path.name + ".draft")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return draft


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
