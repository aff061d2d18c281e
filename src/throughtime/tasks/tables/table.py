"""A table as it was read, and its columns as numbers and as text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from throughtime.errors import DataError
from throughtime.tasks.recipe import did_you_mean, short

if TYPE_CHECKING:
    import polars as pl

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class DataTable:
    """The rows of a file.

    Attributes:
        frame: its columns; a column of text that holds numbers alone is one of numbers.
        name: what errors call it.
        form: how it was read, in words.
        first: the number people give its first row: 2 behind a header.
        unit: what they count, "line" or "row".
        lines: the numbers of all rows, where they do not follow each other.
        roles: option -> column, where the form of the file says so.
    """

    frame: pl.DataFrame
    name: str
    form: str
    first: int = 1
    unit: str = "row"
    lines: list[int] | None = None
    roles: dict[str, str] = field(default_factory=dict)

    def place(self, row: int) -> str:
        """Where row 0, 1, ... stands: `line 7 of sales.csv`."""
        number = self.first + row if self.lines is None else self.lines[row]
        return f"{self.unit} {number} of {self.name}"

    def check_columns(self, option: str, columns: list[str]) -> None:
        """Raises DataError where a column that an option names is not there."""
        for column in columns:
            if column not in self.frame.columns:
                hint = did_you_mean(column, self.frame.columns)
                raise DataError(
                    f"--{option} must name a column of {self.name}, which has "
                    f"{', '.join(self.frame.columns[:20])}, got {short(column)}{hint}"
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
        cast = values.cast(pl.Float64, strict=False)
        wrong = (cast.is_null() & values.is_not_null()).arg_true()
        if len(wrong):
            row = int(wrong[0])
            raise DataError(
                f"column {column} must hold numbers, and {self.place(row)} has "
                f"{short(values[row])}; mend that value, or leave it empty"
            )
        numbers = cast.to_numpy().astype(np.float64)
        infinite = np.isinf(numbers).nonzero()[0]
        if len(infinite):
            raise DataError(
                f"column {column} must hold finite numbers, and {self.place(int(infinite[0]))} "
                f"has {numbers[infinite[0]]}; mend that value, or leave it empty"
            )
        return numbers

    def texts(self, column: str) -> list[str]:
        """A column as text, as groups and labels are compared.

        Raises:
            DataError: a value is missing; names its row.
        """
        import polars as pl

        values = self.frame[column].cast(pl.String)
        missing = values.is_null().arg_true()
        if len(missing):
            raise DataError(
                f"column {column} must have a value in every row, and "
                f"{self.place(int(missing[0]))} has none; fill it in, or take the row out"
            )
        return values.to_list()


def filled(values: Numbers) -> Numbers:
    """(n, width) with the last value before in place of a missing one; 0, the mean, before all."""
    rows = np.where(np.isfinite(values), np.arange(len(values))[:, None], -1)
    last = np.maximum.accumulate(rows, 0) if len(values) else rows
    taken = np.take_along_axis(values, np.maximum(last, 0), 0)
    return np.where(last >= 0, taken, 0.0)


def gaps_of(times: Numbers, seen: NDArray[np.bool_], step: float) -> Numbers:
    """log(1 + g) - log 2, (n, 1), g the steps since something was seen before; 0 at the first."""
    last = np.maximum.accumulate(np.where(seen, times, -np.inf))
    before = np.concatenate([[-np.inf], last[:-1]])
    steps = np.where(np.isfinite(before), (times - before) / step, 1.0)
    return np.asarray((np.log1p(steps) - np.log(2))[:, None])
