"""Texts as tables: many rows in pieces, of which one is held at a time, and the UEA archive's."""

from __future__ import annotations

from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

import numpy as np
from numpy.typing import NDArray

from throughtime.errors import DataError
from throughtime.tasks.recipe import short

if TYPE_CHECKING:
    import polars as pl

MISSING = ("", "na", "n/a", "#n/a", "<na>", "nan", "null", "none", "?")
_PIECE = 1 << 24  # bytes
_OFTEN = 8  # repetitions from which texts are kept as numbers
_MARK, _END, _RETURN = b"\xef\xbb\xbf", b"\n", b"\r"
EMPTY, WHOLE, POINT, COMMA, TEXT = "empty", "whole", "point", "comma", "text"


class Quoted(Exception):
    """A text has quotes, so that a line may be no row."""


def read_pieces(
    path: str, delimiter: str, names: list[str], skipped: int
) -> tuple[pl.DataFrame, list[int]]:
    """The table in a text without quotes, with numbers where a column holds nothing else.

    Args:
        names: of its columns.
        skipped: lines before the first row.

    Returns:
        The table, and the numbers of the empty lines among its rows.

    Raises:
        Quoted: there are quotes.
        UnicodeDecodeError: it is not UTF-8.
        DataError: a line is longer or shorter than the first; names it.
    """
    import polars as pl

    parts: dict[str, list[pl.Series]] = {name: [] for name in names}
    kinds: dict[str, set[str]] = {name: set() for name in names}
    empty: list[int] = []
    for frame in read_text_pieces(path, delimiter, names, skipped, names, empty):
        for column in frame.get_columns():
            kind, values = find_kind(column)
            kinds[column.name].add(kind)
            parts[column.name].append(_shorten(values) if kind == TEXT else values)
    merged = {name: _merge_kinds(kinds[name]) for name in names}
    mixed = [name for name in names if merged[name] == TEXT and kinds[name] - {TEXT, EMPTY}]
    for name in mixed:
        parts[name] = []
    for frame in read_text_pieces(path, delimiter, names, skipped, mixed) if mixed else ():
        for column in frame.get_columns():
            parts[column.name].append(_strip(column))
    joined = [_join_parts(name, parts.pop(name), merged[name]) for name in names]
    return pl.DataFrame(joined), empty


def type_pieces(frames: Callable[[], Iterator[pl.DataFrame]]) -> Iterator[pl.DataFrame]:
    """Pieces of a table one by one, a column of text as numbers where all pieces have them.

    `frames` begins with the first piece whenever it is called, which is twice.
    """
    import polars as pl

    kinds: dict[str, set[str]] = {}
    for frame in frames():
        for column in frame.get_columns():
            if column.dtype == pl.String:
                kinds.setdefault(column.name, set()).add(find_kind(column)[0])
    merged = {name: _merge_kinds(every) for name, every in kinds.items()}
    for frame in frames():
        yield frame.with_columns(_take_kind(c, merged.get(c.name)) for c in frame.get_columns())


def _take_kind(column: pl.Series, kind: str | None) -> pl.Series:
    """A piece of a column of text as its kind; None is no text."""
    if kind is None:
        return _as_plain(column)
    values = find_kind(column)[1] if kind in (WHOLE, POINT) else _strip(column)
    return _join_parts(column.name, [values], kind)


def cut_blocks(
    pieces: Iterator[pl.DataFrame], series: str, together: int
) -> Iterator[tuple[int, pl.DataFrame]]:
    """Blocks of whole series and the number of their first row: a multiple of `together` of them.

    Args:
        pieces: the rows in their order.
        series: the column that names them; "": each row is one.
        together: so many series are computed side by side, block or not.

    Raises:
        DataError: the rows of a series do not follow each other.
    """
    import polars as pl

    rest: pl.DataFrame | None = None
    first, seen = 0, set[str]()
    for piece in pieces:
        rest = piece if rest is None else pl.concat([rest, piece])
        begins = _find_begins(rest, series, seen)
        count = (len(begins) - 1) // together * together
        if count > 0:
            end = int(begins[count])
            if series:
                seen |= set(rest[series][:end].cast(pl.String))
            yield first, rest[:end]
            first, rest = first + end, rest[end:]
    if rest is not None and len(rest):
        yield first, rest


def _find_begins(frame: pl.DataFrame, series: str, seen: set[str]) -> NDArray[np.int64]:
    """The rows at which series begin."""
    import polars as pl

    if not series:
        return np.arange(len(frame))
    names = frame[series].cast(pl.String).fill_null("")
    begins = np.flatnonzero((names != names.shift(1)).fill_null(True).to_numpy())
    firsts = names.gather(begins)
    twice = firsts.filter(firsts.is_duplicated() | firsts.is_in(list(seen)))
    if len(twice):
        raise DataError(
            f"rows of a series must follow each other to be read in blocks, and those of {series} "
            f"{twice[0]} do not; sort the file by {series}, or leave out --on"
        )
    return begins


def _merge_kinds(kinds: set[str]) -> str:
    """Of a column, from those of its pieces."""
    filled = kinds - {EMPTY}
    if filled <= {WHOLE}:
        return WHOLE if filled else EMPTY
    return POINT if filled <= {WHOLE, POINT} or filled <= {WHOLE, COMMA} else TEXT


def _shorten(text: pl.Series) -> pl.Series:
    """Text that repeats itself, as numbers of its values."""
    import polars as pl

    return text.cast(pl.Categorical) if _OFTEN * text.n_unique() <= len(text) else text


def _join_parts(name: str, parts: list[pl.Series], kind: str) -> pl.Series:
    import polars as pl

    often = len(parts) > 1 and 2 * sum(one.dtype == pl.Categorical for one in parts) > len(parts)
    types = {WHOLE: pl.Int64, POINT: pl.Float64, TEXT: pl.Categorical if often else pl.String}
    made = [one.cast(types.get(kind, pl.String)) for one in parts]
    return pl.concat(made, rechunk=True).alias(name) if made else pl.Series(name, [], pl.String)


def find_kind(column: pl.Series) -> tuple[str, pl.Series]:
    """What a column of text holds, and it as that; what is missing is null."""
    import polars as pl

    for kind, dtype in ((WHOLE, pl.Int64), (POINT, pl.Float64)):  # most columns are plain
        numbers = column.cast(dtype, strict=False)
        whole = numbers.null_count() == column.null_count() < len(column)
        if whole and (kind == WHOLE or not numbers.is_nan().any()):
            return kind, numbers
    stripped = _strip(column)
    missing = stripped.null_count()
    if missing == len(stripped):
        return EMPTY, stripped
    points = stripped.str.replace(",", ".", literal=True)
    if bool(stripped.str.contains(".", literal=True).any()):
        points = stripped  # where there are points, a comma is no decimal one
    for kind, text, dtype in (
        (WHOLE, stripped, pl.Int64), (POINT, stripped, pl.Float64), (COMMA, points, pl.Float64)
    ):  # fmt: skip
        numbers = text.cast(dtype, strict=False)
        if numbers.null_count() == missing:
            return kind, numbers
    return TEXT, stripped


def as_numbers(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with numbers where a column of text holds nothing else."""
    columns = frame.get_columns()
    return frame.with_columns(
        [find_kind(c)[1] if str(c.dtype) == "String" else _as_plain(c) for c in columns]
    )


def _as_plain(column: pl.Series) -> pl.Series:
    """A column of no text: durations are seconds, decimals are floats, NaN is missing."""
    import polars as pl

    if column.dtype == pl.Duration:
        return column.dt.total_microseconds(fractional=True) / 1e6
    column = column.cast(pl.Float64) if column.dtype.is_decimal() else column
    return column.fill_nan(None) if column.dtype.is_float() else column


def _strip(column: pl.Series) -> pl.Series:
    """Without spaces around, and null where a word means a missing value."""
    import polars as pl

    stripped = column.str.strip_chars()
    missing = stripped.str.to_lowercase().is_in(MISSING)
    return pl.select(pl.when(missing).then(None).otherwise(stripped)).to_series().alias(column.name)


def read_text_pieces(
    path: str, delimiter: str, names: list[str], skipped: int, wanted: list[str],
    empty: list[int] | None = None,
) -> Iterator[pl.DataFrame]:  # fmt: skip
    """The rows as text, piece by piece; an empty line is none, where there are several columns.

    The numbers of empty lines are added to `empty`.
    """
    import polars as pl

    first, several, empty = 1, len(names) > 1, [] if empty is None else empty
    for rows in _read_pieces(path):
        while first <= skipped and rows:
            _, _, rows = rows.partition(_END)
            first += 1
        line, first = first, _check_lines(rows, path, delimiter, len(names), first)
        if not rows.strip():
            empty += range(line, first)
            continue
        if several:  # polars would take an empty first line for a table of one column
            bare = rows.lstrip(_RETURN + _END)
            begin = line + rows.count(_END, 0, len(rows) - len(bare))
            empty += range(line, begin)
            rows, line = bare, begin
        frame = pl.read_csv(
            rows, separator=delimiter, has_header=False, infer_schema=False, new_columns=names,
            quote_char=None,
        )  # fmt: skip
        if several:
            nulls = frame.select(pl.all_horizontal(pl.all().is_null())).to_series()
            empty += (nulls.arg_true() + line).to_list()
            frame = frame.filter(~nulls)
        yield frame.select(wanted)


def _read_pieces(path: str) -> Iterator[bytes]:
    """The content in whole lines."""
    rest = b""
    with open(path, "rb") as file:
        first = file.read(_PIECE).removeprefix(_MARK)
        while first:
            piece, end, after = (rest + first).rpartition(_END)
            rest, first = after, file.read(_PIECE)
            if end:
                yield piece + end
        if rest:
            yield rest


def _check_lines(piece: bytes, path: str, delimiter: str, width: int, line: int) -> int:
    """The number of the line after a piece, all of whose lines have as many cells."""
    if not piece:
        return line
    if b'"' in piece or piece.count(_RETURN) != piece.count(_RETURN + _END):
        raise Quoted
    if not piece.isascii():
        piece.decode("utf-8")
    signs = np.frombuffer(piece, np.uint8)
    ends = np.flatnonzero(signs == _END[0])
    if not piece.endswith(_END):
        ends = np.append(ends, len(piece))
    begins = np.concatenate([[0], ends[:-1] + 1])
    between = np.flatnonzero(signs == ord(delimiter))
    cells = np.diff(np.searchsorted(between, ends), prepend=0) + 1
    odd = cells != width
    if odd.any():
        bare = ends - begins - (signs[np.maximum(ends - 1, 0)] == _RETURN[0])
        for place in np.flatnonzero(odd & (bare > 0)):
            raise ragged_error(path, width, line + int(place), int(cells[place]))
    return line + len(ends)


def ragged_error(path: str, width: int, line: int, cells: int) -> DataError:
    """The error of a line that is longer or shorter than the first."""
    return DataError(
        f"every line of {path} must have {width} cells, as its first has, and "
        f"line {line} has {cells}"
    )


@contextmanager
def open_text(path: str) -> Iterator[TextIO]:
    """A file of text, opened; raises DataError where it is not UTF-8, with the line."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        raise encoding_error(path) from error


def encoding_error(path: str) -> DataError:
    """The error of a file that is not UTF-8."""
    with open(path, "rb") as file:
        wide = file.peek(2)[:2] in (BOM_UTF16_LE, BOM_UTF16_BE)
        lines = enumerate(file, start=1)
        bad = (n for n, line in lines if line.decode("utf-8", "ignore").encode() != line)
        number = next(bad, 1)
    return DataError(
        f"{path} must be UTF-8, and line {number} is not; convert it, say with "
        f"iconv -f {'utf-16' if wide else 'latin1'} -t utf-8"
    )


LABEL, SERIES = "class", "series"
_ABSENT = ("?", "nan", "")


def read_archive(path: str) -> tuple[pl.DataFrame, list[int]]:
    """A file `.ts` of the UEA and UCR archive: sequences of several dimensions, and their classes.

        @classLabel true one two
        @data
        1.0,2.0,?:5.0,6.0,7.0:one            dimension : dimension : class

    Returns:
        Each step of each sequence as a row: its sequence, class, `x1`, `x2`, ...; and its line.

    Raises:
        DataError: there are no classes or no sequences, or one is of another form; names the line.
    """
    import polars as pl

    parts: list[pl.DataFrame] = []
    lines: list[int] = []
    width, began = 0, False
    with open_text(path) as file:
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
            parts.append(_read_sequence(dimensions, label.strip(), path, number, len(parts)))
            lines += [number] * len(parts[-1])
    if not parts:
        raise DataError(f"{path} must hold sequences after a line @data, and it has none")
    return pl.concat(parts), lines


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


def _read_sequence(
    dimensions: list[str], label: str, path: str, line: int, number: int
) -> pl.DataFrame:
    import polars as pl

    columns: dict[str, list[float | None]] = {}
    for place, dimension in enumerate(dimensions, start=1):
        cells = [cell.strip() for cell in dimension.split(",")]
        try:
            values = [None if c.casefold() in _ABSENT else float(c) for c in cells]
        except ValueError as error:
            raise DataError(
                f"dimension {place} in line {line} of {path} must hold numbers, and it does not "
                f"({error})"
            ) from error
        columns[f"x{place}"] = values
    steps = max(map(len, columns.values()))
    padded = {n: v + [None] * (steps - len(v)) for n, v in columns.items()}
    names = {SERIES: [str(number + 1)] * steps, LABEL: [label] * steps}
    schema = dict.fromkeys(names, pl.String) | dict.fromkeys(padded, pl.Float64)
    return pl.DataFrame(names | padded, schema=schema)
