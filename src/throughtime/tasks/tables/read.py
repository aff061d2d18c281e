"""Files as tables: CSV and TSV, Parquet, JSON lines, read by polars."""

from __future__ import annotations

import csv
import glob
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
from throughtime.tasks.tables.pieces import (
    Quoted,
    cut_blocks,
    kinds_of,
    ragged,
    read_pieces,
    text_pieces,
    typed_pieces,
)
from throughtime.tasks.tables.table import DataTable, join_tables

if TYPE_CHECKING:
    import polars as pl

_DELIMITERS = (",", ";", "\t", "|")
_SNIFFED = 50  # lines that delimiter and header are told by
_TEXT, _LINES = (".csv", ".tsv", ".txt"), (".jsonl", ".ndjson")
_ARCHIVE = ".ts"
_PIECE = 1 << 17  # rows of a Parquet file
_ENDINGS = (*_TEXT, ".parquet", *_LINES, _ARCHIVE)


def read(path: str) -> DataTable:
    """The table in a file, by the ending of its name, or in several, one below the other.

    Args:
        path: of a file; `a*.csv` for those that match; `a.csv,b.csv` for these.

    Raises:
        DataError: it is empty, ragged, of another encoding or form, or files differ in their
            columns; names the line.
        OSError: it cannot be read.
    """
    return join_tables(path, [_read_one(file) for file in files_of(path)])


def files_of(path: str) -> list[str]:
    """The files that an option names: one, those that match `*`, or several with commas between.

    Raises:
        DataError: none matches.
    """
    if Path(path).exists():
        return [path]
    parts = [part.strip() for part in path.split(",") if part.strip()]
    if len(parts) > 1:
        return [file for part in parts for file in files_of(part)]
    found = sorted(glob.glob(path, recursive=True))
    if glob.has_magic(path) and not found:
        raise DataError(f"files that match {path} must be there, and none is")
    return found or [path]


def _read_one(path: str) -> DataTable:
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


def read_blocks(path: str, series: str, together: int) -> Iterator[DataTable]:
    """The table in a CSV or Parquet file, some whole series at a time; the kinds are those of all.

    Args:
        path: of one file.
        series, together: as in `cut_blocks`.

    Raises:
        DataError: as `read`, or its cells have quotes, or the rows of a series stand apart.
        OSError: it cannot be read.
    """
    ending = Path(path).suffix.casefold()
    if ending not in (*_TEXT, ".parquet"):
        raise DataError(f"a file read in blocks must be CSV or Parquet, got {short(path)}")
    if ending == ".parquet":
        pieces, form, first, unit = _parquet_pieces(path), "Parquet", 1, "row"
    else:
        delimiter = "\t" if ending == ".tsv" else _delimiter(path)
        names, header = _first_row(path, delimiter)
        pieces = typed_pieces(lambda: text_pieces(path, delimiter, names, header, names))
        form, first, unit = "text", 1 + header, "line"
    try:
        for row, frame in cut_blocks(pieces, series, together):
            yield DataTable(frame, path, form, first + row, unit)
    except Quoted as error:
        raise DataError(
            f"cells of a text read in blocks must have no quotes, and some of {path} have; write "
            "it as Parquet, or leave out --on"
        ) from error
    except UnicodeDecodeError as error:
        raise _not_decoded(path) from error


def _parquet_pieces(path: str) -> Iterator[pl.DataFrame]:
    import polars as pl

    with told_by_polars(path, "a Parquet file"):
        whole = pl.scan_parquet(path)
        count = int(whole.select(pl.len()).collect().item())
    yield from typed_pieces(
        lambda: (whole.slice(row, _PIECE).collect() for row in range(0, count, _PIECE))
    )


def digest(path: str) -> str:
    """SHA-256 of a file's content; of several, of theirs."""
    found = []
    for one in files_of(path):
        with open(one, "rb") as file:
            found.append(hashlib.file_digest(file, "sha256").hexdigest())
    return found[0] if len(found) == 1 else hashlib.sha256(" ".join(found).encode()).hexdigest()


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
        raise _not_decoded(path) from error


def _not_decoded(path: str) -> DataError:
    return DataError(
        f"{path} must be UTF-8, and line {_undecodable_line(path)} is not; convert it, say with "
        f"iconv -f latin1 -t utf-8"
    )


def _undecodable_line(path: str) -> int:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return 1


def _read_text(path: str) -> DataTable:
    delimiter = "\t" if path.casefold().endswith(".tsv") else _delimiter(path)
    names, header = _first_row(path, delimiter)
    try:
        frame = read_pieces(path, delimiter, names, header)
    except Quoted:
        frame = as_numbers(_read_quoted(path, delimiter, names, header))
    except UnicodeDecodeError as error:
        raise _not_decoded(path) from error
    if not len(frame):
        raise DataError(f"{path} must hold rows, and it has none behind its column names")
    word = "tab" if delimiter == "\t" else f"'{delimiter}'"
    form = f"text, delimiter {word}, {'with' if header else 'without'} a header"
    return DataTable(frame, path, form, 1 + header, "line")


def _read_quoted(path: str, delimiter: str, names: list[str], header: bool) -> pl.DataFrame:
    """A text whose cells may hold delimiters and ends of lines, all of it at once, as text."""
    import polars as pl

    _check_rows(path, delimiter, len(names))
    with told_by_polars(path, "a table of text"):
        frame = pl.read_csv(
            path, separator=delimiter, has_header=False, skip_rows=int(header), infer_schema=False,
            new_columns=names,
        )  # fmt: skip
    # an empty line is no row
    return frame if len(names) == 1 else frame.filter(~pl.all_horizontal(pl.all().is_null()))


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


def _first_row(path: str, delimiter: str) -> tuple[list[str], bool]:
    """The columns' names, and whether the file has them.

    Raises:
        DataError: a name stands twice.
    """
    with open_text(path) as file:
        first = next(csv.reader(file, delimiter=delimiter), [])
    if not any(cell.strip() for cell in first):
        raise DataError(f"line 1 of {path} must hold column names or values, and it is empty")
    header = not any(_is_number(cell) or _is_date(cell) for cell in first)
    names = [
        cell.strip() if header and cell.strip() else f"column_{n}"
        for n, cell in enumerate(first, start=1)
    ]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"every column of {path} must have its own name, got {twice[0]!r} twice")
    return names, header


def _check_rows(path: str, delimiter: str, width: int) -> None:
    """Raises DataError where a row is longer or shorter than the first."""
    with open_text(path) as file:
        rows = csv.reader(file, delimiter=delimiter)
        for row in rows:
            if row and len(row) != width:
                raise ragged(path, width, rows.line_num, len(row))


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
    return kinds_of(column)[1]


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
