"""Tables whose cells are text, taken as they are: a token may be `?`, `NA` or a quotation mark.

Rows keep the numbers of their lines, so that errors name the line.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Literal, TypeVar

from throughtime.errors import DataError
from throughtime.tasks.recipe import FileRecipe, option, short
from throughtime.tasks.tables import DataTable
from throughtime.tasks.tables.pieces import open_text
from throughtime.tasks.tables.read import (
    LINES,
    TEXTS,
    TOKEN_FILES,
    check_names,
    find_ending,
    read_object,
    slice_parquet,
)  # fmt: skip
from throughtime.tasks.tables.task import BUILTIN

_WORDS = {"\t": "tab", " ": "space"}
_PARTS = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")
_SNIFFED = 200  # lines by which the form of a file is detected
T = TypeVar("T")
_BY_NAME = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";"}


@dataclass(frozen=True, kw_only=True)
class TextRecipe(FileRecipe):
    """A recipe of a table of text."""

    data: str = option(BUILTIN, "File to learn from; builtin: sentences made here")
    delimiter: str = option("", "Sign between the cells of a file of text; empty: found")
    header: Literal["found", "yes", "no"] = option(
        "found", "Whether a file of text begins with the names of its columns",
        choices=("found", "yes", "no"),
    )  # fmt: skip


def split_words(text: str) -> list[str]:
    """A text in words; marks are words of their own."""
    return _PARTS.findall(text)


def names_table(text: str) -> bool:
    """Whether what a user typed is the name of a file, there or not, and no text to be read."""
    endings = (*TEXTS, *LINES, *TOKEN_FILES, ".parquet")
    return text.casefold().endswith(endings) and not any(map(str.isspace, text))


def read_texts(path: str, recipe: TextRecipe, names: Sequence[str]) -> DataTable:
    """The table in a file, by the ending of its name.

    Args:
        path: the file.
        recipe: its delimiter and header, where given, go before those that are detected.
        names: that columns may have; a first line with one of them is a header.

    Raises:
        DataError: it is empty, ragged, of another encoding or form; names the line.
        OSError: it cannot be read.
    """
    return next(read_text_blocks(path, recipe, names, None))


def read_text_blocks(
    path: str, recipe: TextRecipe, names: Sequence[str], count: int | None
) -> Iterator[DataTable]:
    """As `read_texts`, so many rows at a time, none of which depends on another; None: all of them.

    Raises:
        DataError, OSError: as `read_texts`.
    """
    ending = find_ending(path, (*TEXTS, ".parquet", *LINES))
    if ending == ".parquet":
        tables = _parquet_blocks(path, count)
    elif ending in LINES:
        tables = _object_blocks(path, count)
    else:
        tables = _row_blocks(path, recipe, names, count)
    some = False
    for table in tables:
        some = some or len(table.frame) > 0
        if len(table.frame):
            yield table
    if not some:
        raise DataError(f"{path} must hold rows, and it has none")


def make_table(
    names: Sequence[str], rows: Sequence[Sequence[str]], path: str, form: str, lines: list[int]
) -> DataTable:
    """A table of rows; an empty cell is missing."""
    import polars as pl

    columns = zip(*rows, strict=True) if rows else [()] * len(names)
    cells = {n: [cell or None for cell in c] for n, c in zip(names, columns, strict=True)}
    schema = dict.fromkeys(names, pl.String)
    return DataTable(pl.DataFrame(cells, schema=schema), path, form, unit="line", lines=lines)


def _parquet_blocks(path: str, count: int | None) -> Iterator[DataTable]:
    first = 1
    for frame in slice_parquet(path, count):
        yield DataTable(frame, path, "Parquet", first)
        first += len(frame)


def _object_blocks(path: str, count: int | None) -> Iterator[DataTable]:
    """JSON lines; of an object within an object, `a.b` is the column."""
    kinds: dict[str, tuple[bool, int]] = {}  # whether a column holds lists, and since which line
    for part in _in_blocks(_objects(path, kinds), count):
        yield _of_objects(part, kinds, path)


def _objects(path: str, kinds: dict[str, tuple[bool, int]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The object of each line with its number; `kinds` grows with the columns."""
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            row = _flatten(read_object(line, path, number))
            for name, value in row.items():
                listed = isinstance(value, list)
                if value is None or kinds.setdefault(name, (listed, number))[0] == listed:
                    continue
                raise DataError(
                    f"column {name} of {path} must hold lists in every line or in none, and "
                    f"line {kinds[name][1]} and line {number} differ"
                )
            yield number, row


def _of_objects(
    part: list[tuple[int, dict[str, Any]]], kinds: dict[str, tuple[bool, int]], path: str
) -> DataTable:
    import polars as pl

    lines, rows = [number for number, _ in part], [row for _, row in part]
    schema = {n: pl.List(pl.String) if listed else pl.String for n, (listed, _) in kinds.items()}
    frame = pl.DataFrame(rows, schema=schema) if kinds else pl.DataFrame()
    return DataTable(frame, path, "JSON lines", unit="line", lines=lines)


def _in_blocks(items: Iterator[T], count: int | None) -> Iterator[list[T]]:
    """So many items at a time; None: all of them."""
    while part := list(islice(items, count)):
        yield part


def _flatten(value: dict[str, Any]) -> dict[str, Any]:
    """Its cells as text; of an object within it, a cell each."""
    flat: dict[str, Any] = {}
    for name, one in value.items():
        flat |= {f"{name}.{n}": v for n, v in one.items()} if isinstance(one, dict) else {name: one}
    return {name: _as_text(one) for name, one in flat.items()}


def _as_text(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_text(one) if not isinstance(one, list) else str(one) for one in value]
    return value if value is None or isinstance(value, str) else str(value)


def _row_blocks(
    path: str, recipe: TextRecipe, names: Sequence[str], count: int | None
) -> Iterator[DataTable]:
    """Rows of cells, all as long as the first."""
    delimiter = _BY_NAME.get(recipe.delimiter, recipe.delimiter) or _find_delimiter(path)
    if len(delimiter) != 1:
        raise DataError(f"--delimiter must be one sign, or tab, got {short(delimiter)}")
    rows = _full_rows(path, delimiter)
    begin = list(islice(rows, _SNIFFED))
    if not begin:
        raise DataError(f"{path} must hold rows, and all of its lines are empty")
    cells = [row for _, row in begin]
    header = recipe.header == "yes" or (recipe.header == "found" and _has_header(cells, names))
    if header and len(begin) == 1:
        raise DataError(f"{path} must hold rows, and it has none after its column names")
    columns = _name_columns(cells[0] if header else [""] * len(cells[0]), path)
    word = _WORDS.get(delimiter, f"'{delimiter}'")
    form = f"text, delimiter {word}, {'with' if header else 'without'} a header"
    for part in _in_blocks(chain(begin[header:], rows), count):
        yield make_table(columns, [row for _, row in part], path, form, [line for line, _ in part])


def _full_rows(path: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not empty, with the numbers of their lines."""
    first: tuple[int, int] | None = None  # line and cells
    for number, row in _rows(path, delimiter, _is_quoted(path, delimiter)):
        if not any(cell.strip() for cell in row):
            continue
        first = first or (number, len(row))
        if len(row) != first[1]:
            raise DataError(
                f"every line of {path} must have {first[1]} cells, as line {first[0]} has, "
                f"and line {number} has {len(row)}"
            )
        yield number, [cell.strip() for cell in row]


def _rows(path: str, delimiter: str, quoted: bool) -> Iterator[tuple[int, list[str]]]:
    """The rows of a file with the number of the line that each ends in."""
    mark = '"' if quoted else None
    with open_text(path) as file:
        rows = csv.reader(
            file, delimiter=delimiter, quotechar=mark,
            quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        )  # fmt: skip
        try:
            for row in rows:
                yield rows.line_num, row
        except csv.Error as error:
            raise DataError(
                f"{path} must be rows of cells, and line {rows.line_num} is not: {error}"
            ) from error


def _is_quoted(path: str, delimiter: str) -> bool:
    """Whether quotation marks hold cells together; between tabs they often are text."""
    if delimiter != "\t":
        return True
    with open_text(path) as file:
        return not any(line.count('"') % 2 for line in file)


def _find_delimiter(path: str) -> str:
    """The delimiter that cuts most of the first lines into equally many cells."""
    with open_text(path) as file:
        lines = [line for line in islice(file, _SNIFFED) if line.strip()]
    best, most = "\t" if path.casefold().endswith(".tsv") else ",", 0
    for delimiter in "\t,;|":
        widths = [len(row) for row in csv.reader(lines, delimiter=delimiter)] or [1]
        if widths[0] > 1 and widths.count(widths[0]) > most:
            best, most = delimiter, widths.count(widths[0])
    return best


def _has_header(rows: list[list[str]], names: Sequence[str]) -> bool:
    """Whether the first row names columns: by a known name, or as words above sentences."""
    first, rest = rows[0], rows[1:_SNIFFED]
    if {cell.casefold() for cell in first} & {name.casefold() for name in names}:
        return True
    longer = sum(any(" " in cell for cell in row) for row in rest)
    bare = all(cell.replace("_", "").isalnum() for cell in first)
    return bare and longer > len(rest) / 2


def _name_columns(first: list[str], path: str) -> list[str]:
    return check_names([cell or f"column_{n}" for n, cell in enumerate(first, start=1)], path)


def find_role(
    table: DataTable, option: str, column: str, usual: Sequence[str], taken: Sequence[str] = ()
) -> str:
    """The column of a role: the one that its option names, or one with a usual name; or none.

    Raises:
        DataError: the option names a column that is not there.
    """
    if column:
        table.check_columns(option, [column])
        return column
    by_name = {name.casefold(): name for name in table.frame.columns if name not in taken}
    return next((by_name[name] for name in usual if name in by_name), "")
