"""Files `.ts` of the UEA and UCR archive: sequences of several dimensions, and their classes.

@classLabel true one two
@data
1.0,2.0,?:5.0,6.0,7.0:one            dimension : dimension : class
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from throughtime.errors import DataError
from throughtime.tasks.recipe import short
from throughtime.tasks.tables import DataTable

if TYPE_CHECKING:
    import polars as pl

LABEL, SERIES = "class", "series"
_MISSING = ("?", "nan", "")


def read_archive(path: str, file: Iterable[str]) -> DataTable:
    """Each step of each sequence as a row: its sequence, its class, and `x1`, `x2`, ...

    Args:
        path: what errors call the file.
        file: its lines.

    Raises:
        DataError: there are no classes or no sequences, or one is of another form; names the line.
    """
    import polars as pl

    parts: list[pl.DataFrame] = []
    lines: list[int] = []
    width, began = 0, False
    for number, line in enumerate(file, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if not began:
            began = _is_data(text, path, number)
            continue
        *dimensions, label = text.split(":")
        width = width or len(dimensions)
        if not dimensions or len(dimensions) != width:
            raise DataError(
                f"every sequence of {path} must have {max(width, 1)} dimensions and a class, "
                f"apart by ':', and line {number} has {len(dimensions)}"
            )
        parts.append(_sequence(dimensions, label.strip(), path, number, len(parts)))
        lines += [number] * len(parts[-1])
    if not parts:
        raise DataError(f"{path} must hold sequences behind a line @data, and it has none")
    return DataTable(pl.concat(parts), path, "a .ts of the UEA archive", unit="line", lines=lines,
                     roles={"label": LABEL, "series": SERIES})  # fmt: skip


def _is_data(text: str, path: str, number: int) -> bool:
    """Whether a line of the head is the last; the head must promise classes and no time stamps."""
    words = text.casefold().split()
    if not words[0].startswith("@"):
        raise DataError(
            f"line {number} of {path} must begin with @, as a head does, got {short(text)}"
        )
    promised = {"@classlabel": "true", "@timestamps": "false"}
    if words[0] in promised and words[1:2] != [promised[words[0]]]:
        raise DataError(
            f"{path} must have {words[0]} {promised[words[0]]}, and line {number} is {short(text)}"
        )
    return words[0] == "@data"


def _sequence(dimensions: list[str], label: str, path: str, line: int, number: int) -> pl.DataFrame:
    import polars as pl

    columns: dict[str, list[float | None]] = {}
    for place, dimension in enumerate(dimensions, start=1):
        cells = [cell.strip() for cell in dimension.split(",")]
        try:
            values = [None if c.casefold() in _MISSING else float(c) for c in cells]
        except ValueError as error:
            raise DataError(
                f"dimension {place} in line {line} of {path} must hold numbers, and it does not "
                f"({error})"
            ) from error
        columns[f"x{place}"] = values
    steps = max(map(len, columns.values()))
    padded = {n: v + [None] * (steps - len(v)) for n, v in columns.items()}
    names = {SERIES: [str(number + 1)] * steps, LABEL: [label] * steps}
    schema = {n: pl.Float64 for n in padded} | {n: pl.String for n in names}
    return pl.DataFrame(names | padded, schema={n: schema[n] for n in (*names, *padded)})
