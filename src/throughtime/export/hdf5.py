"""A file of HDF5 as plain arrays and texts, read by a process of its own.

The library of HDF5 can hang or end its process at a file that was made for it; so this file is run
as a program, with limits of time and memory, and needs nothing of the package:

    python hdf5.py PATH|- < bytes > arrays.npz

`table` there is JSON: what each array is called, the texts of groups, and why something was left.
"""

from __future__ import annotations

import io
import json
import math
import resource
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np

SECONDS: Final = 10
"""Of computing, that reading a file may take; one more for each 16 MiB."""

SWELL: Final = 16
"""Numbers may take so many times the bytes of the file, which may be compressed."""

_LEAST_MEMORY: Final = 2 << 30
_MOST_OBJECTS, _DEEPEST = 100_000, 32
_TEXTS: Final = ("model_config", "layer_names", "weight_names")


class _Reader:
    """What is in a file of `size` bytes, inside of bounds; `package` is h5py."""

    def __init__(self, package: Any, size: int) -> None:
        self.package, self.size, self.count = package, size, 0
        self.arrays: list[Any] = []
        self.names: dict[str, int] = {}
        self.texts: dict[str, list[str]] = {}
        self.left: dict[str, str] = {}

    def walk(self, group: Any, path: str, depth: int = 0) -> None:
        """A group and all in it; links to elsewhere are named and not followed."""
        for key in group.attrs:
            if key.rstrip("0123456789") in _TEXTS:
                self.texts[f"{path}@{key}"] = self._read_words(group.attrs, key)
        for name in group:
            self.count += 1
            here = f"{path}/{name}".lstrip("/")
            if self.count > _MOST_OBJECTS or depth > _DEEPEST:
                raise ValueError("more parts, or groups in groups, than any model has")
            if not isinstance(group.get(name, getlink=True), self.package.HardLink):
                self.left[here] = "is a link to elsewhere, which is not followed"
                continue
            part = group.get(name)
            if isinstance(part, self.package.Group):
                self.walk(part, here, depth + 1)
            elif isinstance(part, self.package.Dataset):
                self._read_array(part, here)

    def _read_words(self, attributes: Any, key: str) -> list[str]:
        stored = attributes.get_id(key)
        if math.prod(stored.shape or ()) * stored.dtype.itemsize > self.size:
            raise ValueError(f"{key} is larger than the file")
        value = attributes[key]
        each = [value] if isinstance(value, str | bytes) else list(np.ravel(value))
        return [v.decode(errors="replace") if isinstance(v, bytes) else str(v) for v in each]

    def _read_array(self, dataset: Any, path: str) -> None:
        """The numbers of a dataset, or why there are none."""
        size = math.prod(dataset.shape or ()) * dataset.dtype.itemsize
        if dataset.external or dataset.is_virtual:
            self.left[path] = "lies in another file, which is not opened"
        elif dataset.dtype.kind != "f":
            self.left[path] = f"must be numbers, got {dataset.dtype}"
        elif size > SWELL * self.size or sum(v.nbytes for v in self.arrays) > SWELL * self.size:
            self.left[path] = f"says it is {list(dataset.shape)}, more than the file holds"
        else:
            self.names[path] = len(self.arrays)
            self.arrays.append(np.ascontiguousarray(dataset[()], np.float32))


def main(source: str) -> None:
    """Reads the file and writes what is in it."""
    import h5py

    content = sys.stdin.buffer.read() if source == "-" else None
    size = Path(source).stat().st_size if content is None else len(content)
    most = _LEAST_MEMORY + 4 * SWELL * size
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    seconds = SECONDS + (size >> 24)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    with h5py.File(source if content is None else io.BytesIO(content), "r") as file:
        read = _Reader(h5py, size)
        read.walk(file, "")
    table = json.dumps({"names": read.names, "texts": read.texts, "left": read.left})
    out = io.BytesIO()
    np.savez(out, *read.arrays, table=np.frombuffer(table.encode(), np.uint8))
    sys.stdout.buffer.write(out.getvalue())


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except Exception as error:
        sys.exit(" ".join(f"{error}".split())[:200])
