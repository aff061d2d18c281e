"""Files as tables: CSV and TSV, Parquet, JSON lines, read by polars."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from throughtime.errors import DataError
from throughtime.tasks.recipe import did_you_mean, short
from throughtime.tasks.tables.archive import read_archive
from throughtime.tasks.tables.table import DataTable

if TYPE_CHECKING:
    import polars as pl

_MISSING = ("", "na", "n/a", "nan", "null", "none", "?")
_DELIMITERS = (",", ";", "\t", "|")
_SNIFFED = 50  # lines that delimiter and header are told by
_TEXT, _LINES = (".csv", ".tsv", ".txt"), (".jsonl", ".ndjson")
_ARCHIVE = ".ts"
_ENDINGS = (*_TEXT, ".parquet", *_LINES, _ARCHIVE)


def read(path: str) -> DataTable:
    """The table in a file, by the ending of its name.

    Raises:
        DataError: it is empty, ragged, of another encoding or form; names the line.
        OSError: it cannot be read.
    """
    ending = Path(path).suffix.casefold()
    if ending not in _ENDINGS:
        raise DataError(
            f"a file of data must end in {', '.join(_ENDINGS)}, got {short(path)}"
            f"{did_you_mean(ending, _ENDINGS)}"
        )
    with open(path, "rb") as file:
        if not file.read(1):
            raise DataError(f"{path} must hold rows, and it is empty (0 bytes)")
    if ending == _ARCHIVE:
        with open_text(path) as file:
            table = read_archive(path, file)
    else:
        kind = _read_text if ending in _TEXT else _read_lines if ending in _LINES else _read_parquet
        table = kind(path)
    if not len(table.frame):
        raise DataError(f"{path} must hold rows, and it has none")
    return table


def digest(path: str) -> str:
    """SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_parquet(path: str) -> DataTable:
    import polars as pl

    with told_by_polars(path, "a Parquet file"):
        return DataTable(as_numbers(pl.read_parquet(path)), path, "Parquet")


def _read_lines(path: str) -> DataTable:
    import polars as pl

    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip() and not _is_object(line):
                raise DataError(
                    f"every line of {path} must be a JSON object, and line {number} is "
                    f"{short(line.strip())}"
                )
    with told_by_polars(path, "a file of JSON lines"):
        frame = pl.read_ndjson(path, infer_schema_length=None)
    return DataTable(as_numbers(frame), path, "JSON lines", 1, "line")


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


@contextmanager
def told_by_polars(path: str, form: str) -> Iterator[None]:
    from polars.exceptions import PolarsError

    try:
        yield
    except PolarsError as error:
        words = str(error).partition("\n")[0]
        raise DataError(f"{path} must be {form}, and polars cannot read it: {words}") from error


@contextmanager
def open_text(path: str) -> Iterator[TextIO]:
    """A file of text, opened.

    Raises:
        DataError: it is not UTF-8; names the line.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        line = _undecodable_line(path)
        raise DataError(
            f"{path} must be UTF-8, and line {line} is not; convert it, say with "
            f"iconv -f latin1 -t utf-8"
        ) from error


def _undecodable_line(path: str) -> int:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return 1


def _read_text(path: str) -> DataTable:
    import polars as pl

    delimiter = "\t" if path.casefold().endswith(".tsv") else _delimiter(path)
    names, header = _check_rows(path, delimiter)
    with told_by_polars(path, "a table of text"):
        frame = pl.read_csv(
            path, separator=delimiter, has_header=False, skip_rows=int(header), infer_schema=False,
            new_columns=names,
        )  # fmt: skip
    if len(names) > 1:  # an empty line is no row
        frame = frame.filter(~pl.all_horizontal(pl.all().is_null()))
    word = "tab" if delimiter == "\t" else f"'{delimiter}'"
    form = f"text, delimiter {word}, {'with' if header else 'without'} a header"
    return DataTable(as_numbers(frame), path, form, 1 + header, "line")


def _delimiter(path: str) -> str:
    """The delimiter that cuts most of the first lines into equally many cells."""
    fits = {delimiter: fit for delimiter, fit in _fits(path).items() if fit[1] > 1}
    return max(fits, key=fits.__getitem__) if fits else ","


def is_plain(path: str) -> bool:
    """Whether a text is no table: no delimiter cuts all of its first lines into as many cells."""
    return not any(share == 1 and width > 1 for share, width in _fits(path).values())


def _fits(path: str) -> dict[str, tuple[float, int]]:
    """By delimiter: the share of the first lines with as many cells as the first, and how many."""
    with open_text(path) as file:
        lines = [line for line, _ in zip(file, range(_SNIFFED), strict=False) if line.strip()]
    found = {}
    for delimiter in _DELIMITERS:
        widths = [len(row) for row in csv.reader(lines, delimiter=delimiter)] or [1]
        found[delimiter] = widths.count(widths[0]) / len(widths), widths[0]
    return found


def _check_rows(path: str, delimiter: str) -> tuple[list[str], bool]:
    """The columns' names, and whether the file has them; all rows are as long.

    Raises:
        DataError: a row is longer or shorter, or a name stands twice.
    """
    with open_text(path) as file:
        rows = csv.reader(file, delimiter=delimiter)
        first = next(rows, [])
        if not any(cell.strip() for cell in first):
            raise DataError(f"line 1 of {path} must hold column names or values, and it is empty")
        count = 0
        for row in rows:
            count += 1
            if row and len(row) != len(first):
                raise DataError(
                    f"every line of {path} must have {len(first)} cells, as its first has, and "
                    f"line {rows.line_num} has {len(row)}"
                )
    header = not any(_is_number(cell) or _is_date(cell) for cell in first)
    if header and not count:
        raise DataError(f"{path} must hold rows, and it has none behind its column names")
    names = [
        cell.strip() if header and cell.strip() else f"column_{n}"
        for n, cell in enumerate(first, start=1)
    ]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"every column of {path} must have its own name, got {twice[0]!r} twice")
    return names, header


def _is_number(cell: str) -> bool:
    try:
        float(cell.replace(",", "."))
    except ValueError:
        return False
    return True


def _is_date(cell: str) -> bool:
    return bool(re.match(r"\s*\d{1,4}[-./]\d{1,2}[-./]\d{1,4}", cell))


def as_numbers(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with numbers where a column of text holds nothing else."""
    return frame.with_columns([_one_as_numbers(column) for column in frame.get_columns()])


def _one_as_numbers(column: pl.Series) -> pl.Series:
    import polars as pl

    if column.dtype != pl.String:
        return column.fill_nan(None) if column.dtype.is_float() else column
    stripped = column.str.strip_chars()
    missing = stripped.str.to_lowercase().is_in(_MISSING)
    stripped = pl.select(pl.when(missing).then(None).otherwise(stripped)).to_series()
    stripped = stripped.alias(column.name)
    whole = stripped.cast(pl.Int64, strict=False)
    for candidate in (whole, *(_floats(stripped, sign) for sign in (".", ","))):
        if candidate.null_count() == stripped.null_count() < len(stripped):
            return candidate
    return stripped


def _floats(column: pl.Series, sign: str) -> pl.Series:
    """The column as numbers with this decimal sign; null where a text is none."""
    import polars as pl

    points = column if sign == "." else column.str.replace(sign, ".", literal=True)
    numbers: pl.Series = points.cast(pl.Float64, strict=False)
    return numbers


def names_in(text: str) -> list[str]:
    """The columns that an option names, `a,b` say."""
    return [name.strip() for name in text.split(",") if name.strip()]


def check_apart(roles: Sequence[tuple[str, list[str]]]) -> None:
    """Raises DataError where two options name one column."""
    seen: dict[str, str] = {}
    for option, columns in roles:
        for column in columns:
            if column in seen:
                raise DataError(
                    f"a column must have one role, and {column!r} is named by --{seen[column]} "
                    f"and --{option}; take it out of one"
                )
            seen[column] = option
