"""Arrays of an HDF5 file by name, each looked at before it is read."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any, Final

import numpy as np

from throughtime.errors import DataError, missing_extra
from throughtime.export.program import Values

_SWELL: Final = 16
"""Numbers may take so many times the bytes of the file, which may be compressed."""


def hdf5_package() -> Any:
    """The package h5py.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise missing_extra("h5py", "export") from error
    return h5py


class Arrays:
    """An open file.

    Args:
        place: what it is called in errors.
        source: its path, or its bytes.
    """

    def __init__(self, place: str, source: Path | bytes) -> None:
        self.place, self._package = place, hdf5_package()
        self._size = len(source) if isinstance(source, bytes) else source.stat().st_size
        try:
            opened = io.BytesIO(source) if isinstance(source, bytes) else source
            self._file = self._package.File(opened, "r")
        except OSError as error:
            raise DataError(f"{place} must be a file of HDF5, and it is not ({error})") from error

    def __enter__(self) -> Arrays:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _at(self, path: str) -> Any:
        """What lies at a path inside this file; None where there is nothing."""
        found: Any = self._file
        for part in filter(None, path.split("/")):
            if not isinstance(found, self._package.Group):
                return None
            link = found.get(part, getlink=True)
            if link is None:
                return None
            if not isinstance(link, self._package.HardLink):
                raise DataError(
                    f"{self.place} has {path!r} as a link to elsewhere, which is not followed; "
                    f"write the model again as one file"
                )
            found = found.get(part)
        return found

    def read(self, path: str) -> Values | None:
        """A float32 array; None where there is none.

        Raises:
            DataError: it lies in another file, is of another kind, or larger than this file holds.
        """
        found = self._at(path)
        if not isinstance(found, self._package.Dataset):
            return None
        if found.external or found.is_virtual:
            raise DataError(
                f"{self.place} keeps {path!r} in another file, which is not opened; write the "
                f"model again as one file"
            )
        if found.dtype.kind != "f" or found.ndim > 3:
            raise DataError(f"{self.place} must have numbers as {path!r}, got {found.dtype}")
        if math.prod(found.shape) * found.dtype.itemsize > _SWELL * self._size:
            raise DataError(
                f"{self.place} says {path!r} is {list(found.shape)}, more than the file holds"
            )
        try:
            return np.ascontiguousarray(found[()], np.float32)
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{self.place} has {path!r} damaged ({error})") from error

    def words(self, path: str, name: str) -> list[str]:
        """Texts that stand at a group under a name, in one piece or in numbered ones."""
        found = self._at(path)
        if found is None:
            return []
        texts: list[str] = []
        for key in (name, *(f"{name}{k}" for k in range(64))):
            if key not in found.attrs:
                continue
            own = found.attrs.get_id(key)
            if math.prod(own.shape or ()) * own.dtype.itemsize > self._size:
                raise DataError(f"{self.place} says {key} is larger than the file holds")
            value = found.attrs[key]
            each = [value] if isinstance(value, str | bytes) else list(np.ravel(value))
            texts += [v.decode(errors="replace") if isinstance(v, bytes) else str(v) for v in each]
        return texts
