"""Users' tables: the files and frames they are read from, and their columns as numbers and text."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from throughtime.errors import DataError, OptionError
from throughtime.tasks.recipe import did_you_mean, short
from throughtime.tasks.tables.pieces import as_numbers

if TYPE_CHECKING:
    import polars as pl


Numbers = NDArray[np.float64]
_MOST = 1e100  # whose squares float64 can sum
T = TypeVar("T")


@dataclass(frozen=True)
class DataTable:
    """The rows of a file.

    Attributes:
        frame: its columns; a column of text that holds numbers alone is one of numbers.
        name: what errors call it.
        form: how it was read, in words.
        first: the number people give its first row: 2 after a header.
        unit: what they count, "line" or "row".
        lines: the numbers of all rows, where they do not follow each other.
        roles: option -> column, where the form of the file says so.
        parts: of several files, how many rows each has, its name, its `first` and its `lines`.
    """

    frame: pl.DataFrame
    name: str
    form: str
    first: int = 1
    unit: str = "row"
    lines: list[int] | None = None
    roles: dict[str, str] = field(default_factory=dict)
    parts: tuple[tuple[int, str, int, list[int] | None], ...] = ()

    def place(self, row: int) -> str:
        """The place of row 0, 1, ...: `line 7 of sales.csv`."""
        name, first, lines = self.name, self.first, self.lines
        for part in self.parts:
            if row < part[0]:
                _, name, first, lines = part
                break
            row -= part[0]
        return f"{self.unit} {first + row if lines is None else lines[row]} of {name}"

    @property
    def shown_columns(self) -> str:
        """Its columns as errors name them, the first twenty."""
        return ", ".join(self.frame.columns[:20])

    def check_columns(self, option: str, columns: list[str]) -> None:
        """Raises DataError where a column that an option names is not there."""
        for column in columns:
            if column not in self.frame.columns:
                hint = did_you_mean(column, self.frame.columns)
                raise DataError(
                    f"--{option} must name a column of {self.name}, which has "
                    f"{self.shown_columns}, got {short(column)}{hint}"
                )

    def require(self, columns: Iterable[str], reason: str) -> None:
        """Raises DataError where one of these columns, "" aside, is not there; says why it must."""
        for column in columns:
            if column and column not in self.frame.columns:
                hint = did_you_mean(column, self.frame.columns)
                raise DataError(
                    f"{self.name} must have the column {column}{reason}, and it has "
                    f"{self.shown_columns}{hint}"
                )

    def check_role(self, who: str, option: str, column: str) -> None:
        """Raises DataError where no column is known for the role that an option names."""
        if not column:
            raise DataError(
                f"{who} --{option}, a column of {self.name}, which has {self.shown_columns}"
            )

    def is_number(self, column: str) -> bool:
        """Whether a column holds numbers alone, or truth values."""
        dtype = self.frame[column].dtype
        return bool(dtype.is_numeric()) or str(dtype) == "Boolean"

    def numbers(self, column: str) -> Numbers:
        """A column as numbers, NaN where a value is missing.

        Raises:
            DataError: a value is no number; names its row.
        """
        import polars as pl

        values = self.frame[column]
        if values.dtype in (pl.Categorical, pl.Enum):
            values = values.cast(pl.String)
        cast = pl.Series([None] * len(values), dtype=pl.Float64)
        if self.is_number(column) or values.dtype in (pl.String, pl.Null):
            cast = values.cast(pl.Float64, strict=False)
        wrong = (cast.is_null() & values.is_not_null()).arg_true()
        if len(wrong):
            raise DataError(
                f"column {column} must hold numbers, and {self._show_cell(column, int(wrong[0]))}; "
                "mend that value, or leave it empty"
            )
        numbers = cast.to_numpy().astype(np.float64)
        wild = (np.abs(numbers) > _MOST).nonzero()[0]
        if len(wild):
            raise DataError(
                f"column {column} must hold finite numbers of at most {_MOST:g} in size, and "
                f"{self._show_cell(column, int(wild[0]))}; mend that value, or leave it empty"
            )
        return numbers

    def groups(self, column: str) -> tuple[list[str], NDArray[np.int64]]:
        """The values of a column in the order of their first rows, and the number of each row's.

        Raises:
            DataError: a value is missing; names its row.
        """
        import polars as pl

        values = self._take_words(column)
        if values.dtype != pl.Categorical:
            values = values.cast(pl.String).cast(pl.Categorical)
        firsts = values.to_physical().to_numpy()
        _, at, numbers = np.unique(firsts, return_index=True, return_inverse=True)
        order = np.argsort(at)
        places = np.empty(len(at), np.int64)
        places[order] = np.arange(len(at))
        return values[at[order]].cast(pl.String).to_list(), places[numbers]

    def texts(self, column: str) -> list[str]:
        """A column as text, as groups and labels are compared.

        Raises:
            DataError: a value is missing; names its row.
        """
        import polars as pl

        return self._take_words(column).cast(pl.String).to_list()

    def _take_words(self, column: str) -> pl.Series:
        """A column that has in every row what may be written as one word.

        Raises:
            DataError: one has none, or a list or an object; names its row.
        """
        values = self.take_filled(column)
        if values.dtype.is_nested() or str(values.dtype) == "Object":
            raise DataError(
                f"column {column} must hold one text or number a row, and "
                f"{self._show_cell(column, 0)}; name another"
            )
        return values

    def _show_cell(self, column: str, row: int) -> str:
        """Where a value stands and what it is, `line 7 of sales.csv has 'x'`."""
        (value,) = self.frame[column].slice(row, 1).to_list()
        return f"{self.place(row)} has {short(value)}"

    def take_filled(self, column: str, what: str = "value") -> pl.Series:
        """A column that has a value in every row.

        Raises:
            DataError: one is missing; names its row.
        """
        values = self.frame[column]
        missing = values.is_null().arg_true()
        if len(missing):
            raise DataError(
                f"column {column} must have a {what} in every row, and "
                f"{self.place(int(missing[0]))} has none; fill it in, or take the row out"
            )
        return values


def join_tables(name: str, tables: list[DataTable]) -> DataTable:
    """Several tables, one below the other, in the order of the first one's columns.

    Raises:
        DataError: one has other columns than the first, or text where the first has numbers.
    """
    import polars as pl

    first = tables[0]
    if len(tables) == 1:
        return first
    columns = first.frame.columns
    for one in tables[1:]:
        _check_alike(first, one)
    frames = [one.frame.select(columns) for one in tables]
    form = f"{len(tables)} files, {first.form}"
    parts = tuple((len(one.frame), one.name, one.first, one.lines) for one in tables)
    joined = pl.concat(frames, how="vertical_relaxed")
    return DataTable(joined, name, form, first.first, first.unit, None, first.roles, parts)


def _check_alike(first: DataTable, one: DataTable) -> None:
    lacking = [name for name in first.frame.columns if name not in one.frame.columns]
    more = [name for name in one.frame.columns if name not in first.frame.columns]
    if lacking or more:
        odd = f"no column {lacking[0]}" if lacking else f"a column {more[0]} beside them"
        raise DataError(
            f"{one.name} must have the columns of {first.name}, "
            f"{first.shown_columns}, and its {one.unit} 1 has {odd}"
        )
    for name in first.frame.columns:
        for numbers, text in ((first, one), (one, first)):
            if numbers.is_number(name) and str(text.frame[name].dtype) == "String":
                row = _first_text(text.frame[name])
                if row is not None:
                    raise DataError(
                        f"column {name} must hold numbers in every file, as in {numbers.name}, "
                        f"and {text.place(row)} has {short(text.frame[name][row])}"
                    )


def _first_text(column: pl.Series) -> int | None:
    """The first row that holds no number."""
    numbers = column.str.replace(",", ".", literal=True).cast(float, strict=False)
    odd = (numbers.is_null() & column.is_not_null()).arg_true()
    return int(odd[0]) if len(odd) else None


def take(items: T, numbers: Iterable[int]) -> T:
    """Some items of a dataclass that has a list of all of them in each field."""
    chosen = list(numbers)
    lists = {f.name: getattr(items, f.name) for f in fields(cast(Any, items))}
    return type(items)(**{name: [one[n] for n in chosen] for name, one in lists.items()})


def fill_forward(values: Numbers) -> Numbers:
    """(n, width) with the last value before in place of a missing one; 0, the mean, before all."""
    rows = np.where(np.isfinite(values), np.arange(len(values))[:, None], -1)
    last = np.maximum.accumulate(rows, 0) if len(values) else rows
    taken = np.take_along_axis(values, np.maximum(last, 0), 0)
    return np.where(last >= 0, taken, 0.0)


def log_gaps(times: Numbers, seen: NDArray[np.bool_], step: float) -> Numbers:
    """log(1 + g) - log 2, (n, 1), g the steps since something was seen before; 0 at the first."""
    last = np.maximum.accumulate(np.where(seen, times, -np.inf))
    before = np.concatenate([[-np.inf], last[:-1]])
    steps = np.where(np.isfinite(before), (times - before) / step, 1.0)
    return np.asarray((np.log1p(steps) - np.log(2))[:, None])


def split_names(text: str) -> list[str]:
    """The columns that an option names, `a,b` say."""
    return [name.strip() for name in text.split(",") if name.strip()]


def check_roles(roles: Sequence[tuple[str, list[str]]]) -> None:
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


def is_frame(data: object) -> bool:
    """Whether it is a frame of polars or pandas; neither is imported for it."""
    return type(data).__name__ in ("DataFrame", "LazyFrame") and _package_of(data) in (
        "polars", "pandas",
    )  # fmt: skip


def make_table(
    data: Any, read: Callable[[str], DataTable] | None = None, as_text: bool = False
) -> DataTable:
    """The table in a file or a frame.

    Args:
        data: the file or the frame.
        read: how a file is read; None takes frames alone.
        as_text: whether a frame's text stays text where it looks like numbers.

    Raises:
        DataError: it has no rows, or a column cannot be taken.
        OptionError: it is neither.
    """
    if read is not None and isinstance(data, str | PathLike):
        return read(str(data))
    if not is_frame(data):
        raise OptionError(f"data must be a file or a frame of polars or pandas, got {short(data)}")
    frame = _as_polars(data) if as_text else as_numbers(_as_polars(data))
    return DataTable(frame, "the frame", f"a frame of {_package_of(data)}")


def write_file(data: Any, folder: Path) -> tuple[Path, bool]:
    """A frame kept as a Parquet file in a folder, called by its content; and whether it is new.

    Raises:
        DataError: it has no rows, or a column cannot be taken.
        OSError: the folder cannot be written.
    """
    content = BytesIO()
    _as_polars(data).write_parquet(content)
    digest = hashlib.sha256(content.getvalue()).hexdigest()
    path = folder / f"frame-{digest[:16]}.parquet"
    if path.exists():
        return path, False
    folder.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")  # a file of its name is whole, whatever ends this
    try:
        draft.write_bytes(content.getvalue())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path, True


def give_back(frame: pl.DataFrame, like: Any) -> Any:
    """The frame, as one of pandas where that kind was given."""
    if not is_frame(like) or _package_of(like) != "pandas":
        return frame
    return type(like)(frame.to_dict(as_series=False))


def _package_of(data: object) -> str:
    return type(data).__module__.partition(".")[0]


def _as_polars(data: Any) -> pl.DataFrame:
    import polars as pl

    if _package_of(data) == "polars":
        frame = data.collect() if isinstance(data, pl.LazyFrame) else data
    else:
        frame = _from_pandas(data)
    if not len(frame) or not frame.width:
        raise DataError(f"a frame must hold rows and columns, got {len(frame)} x {frame.width}")
    return frame


def _from_pandas(data: Any) -> pl.DataFrame:
    """Column by column, so that nothing but numpy is needed; an index with a name, or of
    dates, is a column too."""
    import polars as pl

    index = data.index
    if index.name is not None or index.dtype.kind == "M":
        data = data.reset_index(names=str(index.name or "time"))
    columns: dict[str, Any] = {}
    for name in data.columns:
        column = data[name]
        kind = getattr(column.dtype, "kind", "O")
        if getattr(column.dtype, "tz", None) is not None:
            column, kind = column.dt.tz_convert("UTC").dt.tz_localize(None), "M"
        if kind in "biufmM" and hasattr(column.dtype, "itemsize") and not _is_nullable(column):
            columns[str(name)] = column.to_numpy()
        else:
            gone = column.isna().to_list()
            pairs = zip(column, gone, strict=True)
            columns[str(name)] = [None if missing else one for one, missing in pairs]
    made = [pl.Series(n, v, strict=False, nan_to_null=True) for n, v in columns.items()]
    odd = [one.name for one in made if one.dtype == pl.Object]
    if odd:
        raise DataError(
            "a frame of pandas must have columns of numbers, texts or dates, and column "
            f"{odd[0]} is none of them; convert it"
        )
    return pl.DataFrame(made)


def _is_nullable(column: Any) -> bool:
    """A type of pandas' own, Int64 say, whose missing values numpy has not."""
    return type(column.dtype).__module__.partition(".")[0] == "pandas"
