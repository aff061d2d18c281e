"""Files as tables: CSV and TSV, Parquet, JSON lines, read by polars."""

from __future__ import annotations

import csv
import glob
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from throughtime.errors import DataError
from throughtime.tasks.recipe import did_you_mean, short
from throughtime.tasks.tables import DataTable, join_tables
from throughtime.tasks.tables.pieces import (
    LABEL,
    MISSING,
    SERIES,
    Quoted,
    as_numbers,
    cut_blocks,
    encoding_error,
    open_text,
    ragged_error,
    read_archive,
    read_pieces,
    read_text_pieces,
    type_pieces,
)

if TYPE_CHECKING:
    import polars as pl

_DELIMITERS = (",", ";", "\t", "|")
_SNIFFED = 50  # lines by which delimiter and header are detected
TEXTS, LINES = (".csv", ".tsv", ".txt"), (".jsonl", ".ndjson")
TOKEN_FILES = (".conllu", ".conll", ".iob", ".bio")  # of files that hold tokens and nothing else
_ARCHIVE = ".ts"
_PIECE = 1 << 17  # rows of a Parquet file
_ENDINGS = (*TEXTS, ".parquet", *LINES, _ARCHIVE)


def read(path: str) -> DataTable:
    """The table in a file, by the ending of its name, or in several, one below the other.

    Args:
        path: of a file; `a*.csv` for those that match; `a.csv,b.csv` for these.

    Raises:
        DataError: it is empty, ragged, of another encoding or form, or files differ in their
            columns; names the line.
        OSError: it cannot be read.
    """
    return join_tables(path, [_read_one(file) for file in list_files(path)])


def list_files(path: str) -> list[str]:
    """The files that an option names: one, those that match `*`, or several with commas between.

    Raises:
        DataError: none matches.
    """
    if Path(path).exists():
        return [path]
    parts = [part.strip() for part in path.split(",") if part.strip()]
    if len(parts) > 1:
        return [file for part in parts for file in list_files(part)]
    matches = sorted(glob.glob(path, recursive=True))
    if glob.has_magic(path) and not matches:
        raise DataError(f"files that match {path} must be there, and none is")
    return matches or [path]


def find_ending(path: str, endings: Sequence[str]) -> str:
    """The ending of a file's name in small letters.

    Raises:
        DataError: it is none of these, or the file is empty.
        OSError: it cannot be read.
    """
    ending = Path(path).suffix.casefold()
    if ending not in endings:
        raise DataError(
            f"a file of data must end in {', '.join(endings)}, got {short(path)}"
            f"{did_you_mean(ending, endings)}"
        )
    with open(path, "rb") as file:
        if not file.read(1):
            raise DataError(f"{path} must hold rows, and it is empty (0 bytes)")
    return ending


def _read_one(path: str) -> DataTable:
    ending = find_ending(path, _ENDINGS)
    if ending == _ARCHIVE:
        frame, lines = read_archive(path)
        table = DataTable(frame, path, "a .ts of the UEA archive", unit="line", lines=lines,
                          roles={"label": LABEL, "series": SERIES})  # fmt: skip
    else:
        kind = _read_text if ending in TEXTS else _read_lines if ending in LINES else _read_parquet
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
        DataError: as `read`, or its cells have quotes, or rows of a series are apart.
        OSError: it cannot be read.
    """
    ending = Path(path).suffix.casefold()
    if ending not in (*TEXTS, ".parquet"):
        raise DataError(f"a file read in blocks must be CSV or Parquet, got {short(path)}")
    if ending == ".parquet":
        pieces, form, first, unit = (
            type_pieces(lambda: slice_parquet(path, _PIECE)),
            "Parquet",
            1,
            "row",
        )
    else:
        delimiter = "\t" if ending == ".tsv" else _find_delimiter(path)
        head = _read_head(path, delimiter)
        names, lines = head.names, head.lines
        pieces = type_pieces(lambda: read_text_pieces(path, delimiter, names, lines, names))
        form, first, unit = "text", 1 + head.lines, "line"
    try:
        for row, frame in cut_blocks(pieces, series, together):
            yield DataTable(frame, path, form, first + row, unit)
    except Quoted as error:
        raise DataError(
            f"cells of a text read in blocks must have no quotes, and some of {path} have; write "
            "it as Parquet, or leave out --on"
        ) from error
    except UnicodeDecodeError as error:
        raise encoding_error(path) from error


def slice_parquet(path: str, count: int | None) -> Iterator[pl.DataFrame]:
    """The rows of a Parquet file, so many at a time; None: all of them."""
    import polars as pl

    with explain_polars(path, "a Parquet file"):
        whole = pl.scan_parquet(path)
        rows = int(whole.select(pl.len()).collect().item())
        for first in range(0, rows, count or max(1, rows)):
            yield whole.slice(first, count).collect()


def hash_files(path: str) -> str:
    """SHA-256 of a file's content; of several, of theirs."""
    digests = []
    for one in list_files(path):
        with open(one, "rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    one, *more = digests
    return hashlib.sha256(" ".join(digests).encode()).hexdigest() if more else one


def _read_parquet(path: str) -> DataTable:
    import polars as pl

    with explain_polars(path, "a Parquet file"):
        return DataTable(as_numbers(pl.read_parquet(path)), path, "Parquet")


def _read_lines(path: str) -> DataTable:
    import polars as pl

    lines = []
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                read_object(line, path, number)
                lines.append(number)
    with explain_polars(path, "a file of JSON lines"):
        frame = pl.read_ndjson(path, infer_schema_length=None)
    return DataTable(as_numbers(frame), path, "JSON lines", unit="line", lines=lines)


def read_object(line: str, path: str, number: int) -> dict[str, Any]:
    """The JSON object in a line; raises DataError where it is none."""
    odd: list[str] = []
    try:
        value = json.loads(line, parse_constant=odd.append)
    except (ValueError, RecursionError):
        value = None
    if odd or not isinstance(value, dict):
        what = (
            f"has {odd[0]}, which JSON has not; write null" if odd else f"is {short(line.strip())}"
        )
        raise DataError(f"every line of {path} must be a JSON object, and line {number} {what}")
    return value


@contextmanager
def explain_polars(path: str, form: str) -> Iterator[None]:
    from polars.exceptions import PolarsError

    try:
        yield
    except PolarsError as error:
        words = str(error).partition("\n")[0]
        raise DataError(f"{path} must be {form}, and polars cannot read it: {words}") from error


def _read_text(path: str) -> DataTable:
    delimiter = "\t" if path.casefold().endswith(".tsv") else _find_delimiter(path)
    head = _read_head(path, delimiter)
    try:
        frame, empty = read_pieces(path, delimiter, head.names, head.lines)
    except Quoted:
        empty = []
        frame = as_numbers(_read_quoted(path, delimiter, head))
    except UnicodeDecodeError as error:
        raise encoding_error(path) from error
    if not len(frame):
        raise DataError(f"{path} must hold rows, and it has none after its column names")
    word = "tab" if delimiter == "\t" else f"'{delimiter}'"
    form = f"text, delimiter {word}, {head.words}"
    first = 1 + head.lines
    lines = None
    if empty and empty[0] < first + len(frame):  # rows after it do not follow those before
        every = sorted({*range(first, first + len(frame) + len(empty))} - {*empty})
        lines = every[: len(frame)]
    return DataTable(frame, path, form, first, "line", lines)


def _read_quoted(path: str, delimiter: str, head: Head) -> pl.DataFrame:
    """A text whose cells may hold delimiters and ends of lines, all of it at once, as text."""
    import polars as pl

    names = head.names
    _check_rows(path, delimiter, head)
    with explain_polars(path, "a table of text"):
        frame = pl.read_csv(
            path, separator=delimiter, has_header=False, skip_lines=head.lines,
            infer_schema=False, new_columns=names,
        )  # fmt: skip
    # an empty line is no row
    return frame if len(names) == 1 else frame.filter(~pl.all_horizontal(pl.all().is_null()))


def _find_delimiter(path: str) -> str:
    """The delimiter that cuts most of the first lines into equally many cells."""
    fits = {delimiter: fit for delimiter, fit in _measure_fits(path).items() if fit[1] > 1}
    return max(fits, key=fits.__getitem__) if fits else ","


def is_plain(path: str) -> bool:
    """Whether a text is no table: no delimiter cuts all of its first lines into as many cells."""
    return not any(share == 1 and width > 1 for share, width in _measure_fits(path).values())


def _measure_fits(path: str) -> dict[str, tuple[float, int]]:
    """By delimiter: the share of the first lines with as many cells as the first, and how many."""
    lines = _first_lines(path)
    lines = [line for line in lines[_count_remarks(lines) :] if line.strip()]
    fits = {}
    for delimiter in _DELIMITERS:
        widths = [len(row) for row in csv.reader(lines, delimiter=delimiter)] or [1]
        fits[delimiter] = widths.count(widths[0]) / len(widths), widths[0]
    return fits


@dataclass(frozen=True)
class Head:
    """What precedes the rows of a text.

    Attributes:
        names: of the columns.
        lines: how many lines of the file it takes.
        words: the same in words.
    """

    names: list[str]
    lines: int
    words: str


def _read_head(path: str, delimiter: str) -> Head:
    """Remarks, and the names of the columns or a line that is neither names nor a row.

    Raises:
        DataError: a name occurs twice.
    """
    lines = _first_lines(path)
    remarks = _count_remarks(lines)
    rows = list(csv.reader(lines[remarks:], delimiter=delimiter)) or [[]]
    first, words = rows[0], f"{remarks} lines of remarks, " if remarks else ""
    if remarks and (names := _names_in_remark(lines[remarks - 1], rows, delimiter)):
        return Head(check_names(names, path), remarks, f"{words}the last with the names of columns")
    if not any(cell.strip() for cell in first):
        raise DataError(
            f"line {remarks + 1} of {path} must hold column names or values, and it is empty"
        )
    kind = _kind_of_line(first, rows[1:])
    names = [
        cell.strip() if kind == "names" and cell.strip() else f"column_{n}"
        for n, cell in enumerate(first, start=1)
    ]
    if kind == "neither":
        words += f"line {remarks + 1} is left out, which is neither names nor a row, "
    words += f"{'with' if kind == 'names' else 'without'} a header"
    return Head(check_names(names, path), remarks + (kind != "row"), words)


def _first_lines(path: str) -> list[str]:
    with open_text(path) as file:
        return [line for line, _ in zip(file, range(_SNIFFED), strict=False)]


def _count_remarks(lines: Sequence[str]) -> int:
    """How many lines before the first row begin with # or are empty; none if all do."""
    marked = 0
    for number, line in enumerate(lines, start=1):
        if line.lstrip().startswith("#") or (marked and not line.strip()):
            marked = number
        elif line.strip():
            return marked
    return 0


def _names_in_remark(line: str, rows: Sequence[Sequence[str]], delimiter: str) -> list[str]:
    """The names in a remark above rows of numbers that has as many cells as they."""
    cells = next(csv.reader([line.lstrip().lstrip("#")], delimiter=delimiter), [])
    names = [cell.strip() for cell in cells]
    fits = len(names) == len(rows[0]) > 1 and all(names) and not any(map(_is_number, names))
    return names if fits and any(map(_is_number, rows[0])) else []


def _kind_of_line(first: Sequence[str], below: Sequence[Sequence[str]]) -> str:
    """Whether a line above others is "names", a "row", or "neither".

    Names are text, or numbers that count, 0, 1, 2 or years, next to text above numbers. A line with
    other numbers and text above numbers is neither.
    """
    values = [cell for cell in first if _is_value(cell)]
    if not values:
        return "names"
    columns = zip(*(row for row in below if len(row) == len(first)), strict=True)
    above = [
        cell for cell, column in zip(first, columns, strict=False)
        if re.search(r"[^\W\d_]", cell) and not _is_value(cell) and not _is_missing(cell)
        and all(_is_number(one) or _is_missing(one) for one in column)
        and any(map(_is_number, column))
    ]  # fmt: skip
    counts = [cell.strip() for cell in values if cell.strip().isdecimal()]
    numbers = [int(cell) for cell in counts]
    counted = len(counts) == len(values) and numbers == list(range(numbers[0], numbers[-1] + 1))
    if counted and (above or (len(numbers) > 2 and numbers[0] == 0 and len(below) > 1)):
        return "names"
    return "neither" if len(above) > 1 else "row"


def check_names(names: list[str], path: str) -> list[str]:
    """The names of columns; raises DataError where one occurs twice."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"every column of {path} must have its own name, got {twice[0]!r} twice")
    return names


def _check_rows(path: str, delimiter: str, head: Head) -> None:
    """Raises DataError where a row is longer or shorter than the first."""
    width = len(head.names)
    with open_text(path) as file:
        rows = csv.reader(islice(file, head.lines, None), delimiter=delimiter)
        for row in rows:
            if row and len(row) != width:
                raise ragged_error(path, width, head.lines + rows.line_num, len(row))


def _is_number(cell: str) -> bool:
    try:
        float(cell.replace(",", "."))
    except ValueError:
        return False
    return True


def _is_value(cell: str) -> bool:
    """Whether it is a number or a date."""
    return _is_number(cell) or bool(re.match(r"\s*\d{1,4}[-./]\d{1,2}[-./]\d{1,4}", cell))


def _is_missing(cell: str) -> bool:
    return cell.strip().casefold() in MISSING
