"""The column of time: found, read as numbers, its step, and written again."""

from __future__ import annotations

from calendar import monthrange
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from throughtime.errors import DataError
from throughtime.tasks.recipe import short
from throughtime.tasks.tables.table import DataTable, Numbers

if TYPE_CHECKING:
    import polars as pl

_NAMES = ("time", "date", "datetime", "timestamp", "ds", "day", "month", "year", "t")
_FIGURES = ("%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%Y%m%d")
_SHORT = ("%d.%m.%y", "%d/%m/%y", "%m/%d/%y", "%d-%m-%y")
_WORDS = ("%d-%B-%Y", "%d %B %Y", "%B-%d-%Y", "%B %d %Y", "%B %d, %Y", "%d-%B-%y", "%d %B %y")
_DAYS = (*_FIGURES, *_SHORT, *_WORDS)
_YEARS, _DAY_NUMBERS = (1000, 3000), (18000101, 22001231)
_HOURS = (" %H:%M", " %H:%M:%S", "T%H:%M", "T%H:%M:%S", " %H:%M:%S%.f", "T%H:%M:%S%.f")
FORMS = [
    *_DAYS, "%Y-%m",
    *(day + hour + zone for day in _DAYS for hour in _HOURS for zone in ("", "%z")),
]  # fmt: skip
NUMBER, NATIVE, MONTHS = "a number", "dates", "months, day "
_UNITS = (("d", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0))


@dataclass(frozen=True)
class Times:
    """The times of all rows.

    Attributes:
        values: seconds since 1970; or months since the year 0, where each is the same day of a
            month; or the numbers of a column of numbers.
        form: how they are written: NUMBER, NATIVE (a type of the file's own), a format, or MONTHS
            with the day behind it.
    """

    values: Numbers
    form: str


def find_time(table: DataTable, given: str, taken: list[str]) -> str:
    """The column of time: as given, or the first that reads like one; "" for the order of rows."""
    if given:
        table.check_columns("time", [given])
        return given
    columns = [c for c in table.frame.columns if c not in taken]
    dates = [c for c in columns if _is_dates(table, c)]
    if dates:
        return min(dates, key=lambda c: c.casefold() not in _NAMES)
    numbers = [c for c in columns if c.casefold() in _NAMES and table.is_number(c)]
    return numbers[0] if numbers else ""


def _is_dates(table: DataTable, column: str) -> bool:
    values = table.frame[column]
    if values.dtype.is_temporal() or _is_day_numbers(table, column):
        return True
    if str(values.dtype) not in ("String", "Categorical") or values.null_count() == len(values):
        return False
    parsed, _ = _parsed(values.drop_nulls().head(100))
    return parsed.null_count() == 0


def _is_day_numbers(table: DataTable, column: str) -> bool:
    """Whether a column that is called a time holds days as numbers, 20240131."""
    values = table.frame[column]
    if column.casefold() not in _NAMES or not values.dtype.is_integer() or values.null_count():
        return False
    low, high = _DAY_NUMBERS
    if not len(values) or not bool(values.is_between(low, high).all()):
        return False
    return _by_form(values.cast(str), "%Y%m%d").null_count() == 0


def read_times(table: DataTable, column: str) -> Times:
    """The times in a column.

    Raises:
        DataError: one is missing or reads as no date; names its row.
    """
    import polars as pl

    values = table.frame[column]
    missing = values.is_null().arg_true()
    if len(missing):
        raise DataError(
            f"column {column} must have a time in every row, and {table.place(int(missing[0]))} "
            "has none; fill it in, or take the row out"
        )
    if table.is_number(column) and not _is_day_numbers(table, column):
        return Times(table.numbers(column), NUMBER)
    parsed, form = (values, NATIVE) if values.dtype.is_temporal() else _parsed(values)
    wrong = parsed.is_null().arg_true()
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"column {column} must hold dates of one form, and {table.place(row)} has "
            f"{short(values[row])}, which is none"
            + (f" of {form}" if len(wrong) < len(values) else "; name another with --time")
        )
    dates = parsed.cast(pl.Datetime("us"))
    return _months(dates) or Times(dates.dt.epoch("us").to_numpy().astype(np.float64) / 1e6, form)


def _months(dates: pl.Series) -> Times | None:
    """The dates as months, where all are the same day of one, or its last."""
    days, last = dates.dt.day(), dates.dt.month_end().dt.day()
    same = days.n_unique() == 1 or bool((days == last).all())
    if not same or not bool((dates.dt.truncate("1d") == dates).all()):
        return None
    months = (dates.dt.year().cast(int) * 12 + dates.dt.month().cast(int) - 1).to_numpy()
    if len(np.unique(months)) < 2:
        return None
    return Times(months.astype(np.float64), f"{MONTHS}{max(days.to_list())}")


def _parsed(values: pl.Series) -> tuple[pl.Series, str]:
    """The dates by the form that reads most of them, of several the one with fewest steps."""
    text = values.str.strip_chars() if str(values.dtype) == "String" else values.cast(str)
    few = text.head(1000)
    forms = [(form, _by_form(few, form)) for form in FORMS]
    _, form = min(
        ((dates.null_count(), _different_steps(dates)), form) for form, dates in forms
    )  # fmt: skip
    return _by_form(text, form), form


def _by_form(text: pl.Series, form: str) -> pl.Series:
    import polars as pl

    if form.endswith("z"):
        dates = text.str.replace(r"Z$", "+0000").str.to_datetime(
            form, strict=False, time_unit="us", time_zone="UTC"
        )
        return dates.dt.replace_time_zone(None)
    if form == "%Y-%m":
        text, form = text + "-01", "%Y-%m-%d"
    if "%H" not in form:
        dates = text.str.to_date(form, strict=False).cast(pl.Datetime("us"))
    else:
        dates = text.str.to_datetime(form, strict=False, time_unit="us")
    usual = dates.dt.year().is_between(*_YEARS)  # `03` is no year of four figures
    return pl.select(pl.when(usual).then(dates)).to_series()


def _different_steps(dates: pl.Series) -> int:
    return int(dates.drop_nulls().unique().sort().diff().n_unique())


def written(value: float, form: str) -> str | float:
    """A time as people read it: a date in the ISO form, a number as it is."""
    if form in (NUMBER, ""):
        return int(value) if value == int(value) else value
    if form.startswith(MONTHS):
        year, month = divmod(round(value), 12)
        day = min(int(form.removeprefix(MONTHS)), monthrange(year, month + 1)[1])
        return f"{year:04}-{month + 1:02}-{day:02}"
    date = datetime.fromtimestamp(round(value, 6), UTC).replace(tzinfo=None)
    whole = value % 86400 == 0
    return date.date().isoformat() if whole else date.isoformat(sep=" ")


def said_step(step: float, form: str) -> str:
    """A step in words."""
    if form in (NUMBER, ""):
        return f"{step:g}"
    if form.startswith(MONTHS):
        return f"{step:g} months"
    for unit, seconds in _UNITS:
        if step >= seconds:
            return f"{step / seconds:g} {unit}"
    return f"{step:g} s"


def find_step(differences: Numbers) -> tuple[float, bool]:
    """The step that stands most often, and whether all are whole multiples of it.

    Where they are not, the middle one.

    Args:
        differences: between times that follow each other in one series, all above 0.
    """
    if not len(differences):
        return 1.0, True
    values, counts = np.unique(np.round(differences, 6), return_counts=True)
    step = float(values[counts.argmax()])
    multiples = differences / step
    even = bool(np.all(np.abs(multiples - np.round(multiples)) < 1e-3))
    even = even and bool(multiples.mean() < 20)
    return (step, True) if even else (float(np.median(differences)), False)
