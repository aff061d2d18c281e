"""The column of time: detected, read as numbers, its step, and written again.

A time may stand in several columns, a date and an hour, or a year and a quarter: they are named
together, `year,quarter`, and `merge_time` puts one column in their place.
"""

from __future__ import annotations

from calendar import monthrange
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from throughtime.errors import DataError
from throughtime.tasks.recipe import short
from throughtime.tasks.tables import DataTable, Numbers, split_names

if TYPE_CHECKING:
    import polars as pl

_NAMES = ("time", "date", "datetime", "timestamp", "ds", "day", "month", "year", "t")
_FIGURES = ("%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%Y%m%d")
_SHORT = ("%d.%m.%y", "%d/%m/%y", "%m/%d/%y", "%d-%m-%y")
_WORDS = ("%d-%B-%Y", "%d %B %Y", "%B-%d-%Y", "%B %d %Y", "%B %d, %Y", "%d-%B-%y", "%d %B %y")
_DAYS = (*_FIGURES, *_SHORT, *_WORDS)
_YEARS, _DAY_NUMBERS = (1000, 3000), (18000101, 22001231)
_HOURS = (" %H:%M", " %H:%M:%S", "T%H:%M", "T%H:%M:%S", " %H:%M:%S%.f", "T%H:%M:%S%.f")
_HALVES = (" %I:%M %p", " %I:%M:%S %p")
_BARE = {  # forms without a day: what is in the text, what makes a day of it, and the form then
    "%Y-%m": (r"^(\d{4}-\d{1,2})$", "${1}-01", "%Y-%m-%d"),
    "%m/%Y": (r"^(\d{1,2}/\d{4})$", "01/${1}", "%d/%m/%Y"),
    "%B %Y": (r"^([A-Za-z]+)[ -](\d{4})$", "1 ${1} ${2}", "%d %B %Y"),
    "%Y-W%V": (r"^(\d{4})-?W(\d{1,2})$", "${1}-${2}-1", "%G-%V-%u"),
    "%YQ%q": (r"^(\d{4})[ -]?Q([1-4])$", "${1}-${2}", "%Y-%q"),
}
FORMS = [
    *_DAYS, *_BARE,
    *(day + hour + zone for day in _DAYS for hour in _HOURS for zone in ("", "%z")),
    *(day + half for day in _DAYS for half in _HALVES),
]  # fmt: skip
NUMBER, NATIVE, MONTHS = "a number", "dates", "months, day "
_PARTS = {
    "year": "year", "yr": "year", "yyyy": "year", "quarter": "quarter", "qtr": "quarter",
    "month": "month", "mon": "month", "mm": "month", "week": "week", "wk": "week",
    "day": "day", "dd": "day", "hour": "hour", "hr": "hour", "hh": "hour",
    "minute": "minute", "min": "minute", "second": "second", "sec": "second",
}  # fmt: skip
"""What a column says of a time, by its name."""
_CHAINS = (("year", "month", "day", "hour", "minute", "second"), ("year", "quarter"),
           ("year", "week"))  # fmt: skip
_SPANS = {"hour": (3600, 24), "minute": (60, 59), "second": (1, 59)}  # seconds, the most
_CLOCKS = ("time", "clock", "hour", "hr", "hh", "time_of_day")
_CLOCK_FORMS = ("%H:%M", "%H:%M:%S", "%H:%M:%S%.f", "%H.%M.%S", "%I:%M %p", "%I:%M:%S %p")
_MONTH_NAMES = "jan feb mar apr may jun jul aug sep oct nov dec".split()
_UNITS = (("d", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0))


@dataclass(frozen=True)
class Times:
    """The times of all rows.

    Attributes:
        values: seconds since 1970; or months since the year 0, where each is the same day of a
            month; or the numbers of a column of numbers.
        form: how they are written: NUMBER, NATIVE (a type of the file's own), a format, or MONTHS
            followed by the day.
    """

    values: Numbers
    form: str


def find_time(table: DataTable, option: str, taken: list[str]) -> str:
    """The column of time, or several by comma: the option's, or the first that reads like one.

    Returns:
        Its name; "" for the order of rows.
    """
    if option:
        table.check_columns("time", time_columns(table, option))
        return option
    columns = [c for c in table.frame.columns if c not in taken]
    dates = [c for c in columns if _holds_dates(table, c)]
    if dates:
        date = min(dates, key=lambda c: c.casefold() not in _NAMES)
        return ",".join([date, *_find_clock(table, date, columns)])
    parts = _find_year_parts(table, columns)
    if parts:
        return ",".join(parts)
    numbers = [c for c in columns if c.casefold() in _NAMES and table.is_number(c)]
    return numbers[0] if numbers else ""


def time_columns(table: DataTable, time: str) -> list[str]:
    """The columns that a time stands in: one, none, or several by comma."""
    if time in table.frame.columns:
        return [time]
    return split_names(time)


def merge_time(table: DataTable, time: str) -> DataTable:
    """The table with one column of dates, called `time`, in place of the several that it names.

    Raises:
        DataError: a column is not there or says nothing of a time, or a row makes no time.
    """
    columns = time_columns(table, time)
    if len(columns) < 2:
        return table
    table.require(columns, f" of the time {time}")
    times = _merge_columns(table, columns)
    wrong = times.is_null().arg_true()
    if len(wrong):
        row = int(wrong[0])
        cells = ", ".join(str(table.frame[column][row]) for column in columns)
        raise DataError(
            f"columns {time} must make a time in every row, and {table.place(row)} has {cells}; "
            "mend it, or name others with --time"
        )
    place = table.frame.columns.index(columns[0])
    frame = table.frame.clone().insert_column(place, times.alias(time))
    return replace(table, frame=frame.drop(columns))


def _find_clock(table: DataTable, date: str, columns: list[str]) -> list[str]:
    """The column of the time of day for one of dates that repeat, or none."""
    clocks = [c for c in columns if c != date and c.casefold() in _CLOCKS]
    if not clocks or not table.frame[date].is_duplicated().any():
        return []
    dates = _parse_dates(table, date)[0]
    if not bool((dates.dt.truncate("1d") == dates).all()):
        return []
    return [c for c in clocks if not _parse_seconds(table, c).has_nulls()][:1]


def _find_year_parts(table: DataTable, columns: list[str]) -> list[str]:
    """The columns of a year and its parts, as fine as they are there without a gap."""
    by_part = {_PARTS[c.casefold()]: c for c in reversed(columns) if c.casefold() in _PARTS}
    chains = []
    for chain in _CHAINS:
        lacking = [part not in by_part for part in chain]
        chains.append(chain[: lacking.index(True)] if any(lacking) else chain)
    names = [by_part[part] for part in max(chains, key=len)]
    return names if len(names) > 1 and not _merge_columns(table, names).has_nulls() else []


def _merge_columns(table: DataTable, columns: list[str]) -> pl.Series:
    """The times that some columns make together; null where they make none.

    Raises:
        DataError: a column is no part of a time.
    """
    import polars as pl

    dates = [column for column in columns if _holds_dates(table, column)]
    if dates:
        times, rest = _parse_dates(table, dates[0])[0], [c for c in columns if c != dates[0]]
    else:
        parts = {_PARTS.get(column.casefold(), ""): column for column in columns}
        if "year" not in parts:
            raise DataError(
                f"--time of several columns must name a date and a time of day, or year with its "
                f"quarter, month, week, day, hour, minute, second, got {', '.join(columns)}"
            )
        times = _day_of_parts({part: _parse_numbers(table, c) for part, c in parts.items() if part})
        rest = [c for c in columns if _PARTS.get(c.casefold()) not in _CHAINS[0][:3]]
        rest = [c for c in rest if _PARTS.get(c.casefold()) not in ("quarter", "week")]
    for column in rest:
        times = times + (_parse_seconds(table, column) * 1_000_000).cast(pl.Duration("us"))
    return times.cast(pl.Datetime("us"))


def _day_of_parts(parts: dict[str, pl.Series]) -> pl.Series:
    """The day that a year and its quarter, week, or month and day begin with."""
    import polars as pl

    year, month, day = parts["year"], parts.get("month", pl.lit(1)), parts.get("day", pl.lit(1))
    text, form = pl.format("{}-{}-{}", year, month, day), "%Y-%m-%d"
    if "quarter" in parts:
        inside = pl.when(parts["quarter"].is_between(1, 4)).then(3 * parts["quarter"] - 2)
        text = pl.format("{}-{}-1", year, inside)
    elif "week" in parts:
        text, form = pl.format("{}-{}-1", year, parts["week"]), "%G-%V-%u"
    return pl.select(text.str.to_date(form, strict=False)).to_series().cast(pl.Datetime("us"))


def _parse_numbers(table: DataTable, column: str) -> pl.Series:
    """The numbers in a column: 3, 3.0, Q3, M03 and the names of months; null where none is."""
    import polars as pl

    text = table.frame[column].cast(pl.String).str.strip_chars()
    numbers = text.str.extract(r"^[A-Za-z]?(\d+)(?:\.0*)?$").cast(pl.Int64, strict=False)
    if not numbers.has_nulls():
        return numbers
    months = {name: number for number, name in enumerate(_MONTH_NAMES, start=1)}
    named = text.str.to_lowercase().str.slice(0, 3)
    by_name = named.replace_strict(months, default=None, return_dtype=pl.Int64)
    return pl.select(pl.coalesce(numbers, by_name)).to_series()


def _parse_seconds(table: DataTable, column: str) -> pl.Series:
    """Seconds of the day in a column, 13:30, 1:30 PM or an hour; null where it says none."""
    import polars as pl

    values, span = table.frame[column], _SPANS.get(_PARTS.get(column.casefold(), ""))
    if values.dtype == pl.Time:
        return values.cast(pl.Int64) // 1_000_000_000
    whole = _parse_numbers(table, column)
    if span is not None and not whole.has_nulls():
        inside = pl.when(whole.is_between(0, span[1])).then(whole * span[0])
        return pl.select(inside).to_series()
    if values.dtype.is_numeric():
        return pl.Series([None] * len(values), dtype=pl.Int64)
    text = values.cast(pl.String).str.strip_chars()
    read = [text.str.to_time(form, strict=False) for form in _CLOCK_FORMS]
    best = min(read, key=lambda one: one.null_count())
    return best.cast(pl.Int64) // 1_000_000_000


def _holds_dates(table: DataTable, column: str) -> bool:
    values = table.frame[column]
    if _is_native(values) or _holds_day_numbers(table, column):
        return True
    if str(values.dtype) not in ("String", "Categorical") or values.null_count() == len(values):
        return False
    parsed, _ = _parse_best(values.drop_nulls().head(100))
    return parsed.null_count() == 0


def _is_native(values: pl.Series) -> bool:
    """Whether the file itself says that they are dates; a time of the day alone is none."""
    return str(values.dtype).startswith("Date")


def _holds_day_numbers(table: DataTable, column: str) -> bool:
    """Whether a column that is called a time holds days as numbers, 20240131."""
    values = table.frame[column]
    if column.casefold() not in _NAMES or not values.dtype.is_integer() or values.null_count():
        return False
    low, high = _DAY_NUMBERS
    if not len(values) or not bool(values.is_between(low, high).all()):
        return False
    return _parse_form(values.cast(str), "%Y%m%d").null_count() == 0


def read_times(table: DataTable, column: str) -> Times:
    """The times in a column.

    Raises:
        DataError: one is missing or reads as no date; names its row.
    """
    values = table.take_filled(column, "time")
    if table.is_number(column) and not _holds_day_numbers(table, column):
        return Times(table.numbers(column), NUMBER)
    dates, form = _parse_dates(table, column)
    wrong = dates.is_null().arg_true()
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"column {column} must hold dates of one form, and {table.place(row)} has "
            f"{short(values[row])}, which is none"
            + (f" of {form}" if len(wrong) < len(values) else "; name another with --time")
        )
    seconds = dates.dt.epoch("us").to_numpy().astype(np.float64) / 1e6
    return _count_months(dates) or Times(seconds, form)


def _parse_dates(table: DataTable, column: str) -> tuple[pl.Series, str]:
    """The dates in a column, null where there is none, and their form."""
    import polars as pl

    values = table.frame[column]
    parsed, form = (values, NATIVE) if _is_native(values) else _parse_best(values)
    return parsed.cast(pl.Datetime("us")), form


def _count_months(dates: pl.Series) -> Times | None:
    """The dates as months, where all are the same day of one, or its last."""
    days, last = dates.dt.day(), dates.dt.month_end().dt.day()
    same = days.n_unique() == 1 or bool((days == last).all())
    if not same or not bool((dates.dt.truncate("1d") == dates).all()):
        return None
    months = (dates.dt.year().cast(int) * 12 + dates.dt.month().cast(int) - 1).to_numpy()
    if len(np.unique(months)) < 2:
        return None
    return Times(months.astype(np.float64), f"{MONTHS}{max(days.to_list())}")


def _parse_best(values: pl.Series) -> tuple[pl.Series, str]:
    """The dates by the form that reads most of them, of several the one with fewest steps."""
    text = values.str.strip_chars() if str(values.dtype) == "String" else values.cast(str)
    few = text.head(1000)
    forms = [(form, _parse_form(few, form)) for form in FORMS]
    *_, form = min((dates.null_count(), _count_steps(dates), form) for form, dates in forms)
    return _parse_form(text, form), form


def _parse_form(text: pl.Series, form: str) -> pl.Series:
    import polars as pl

    if form.endswith("z"):  # Z, UTC, +02, +0200, +02:00, with a space before it or without
        whole = text.str.replace(r" ?(?:Z|UTC|GMT)$", "+00")
        dates = whole.str.replace(r" ?([+-]\d{2})(?::?00)?$", "${1}00").str.to_datetime(
            form, strict=False, time_unit="us", time_zone="UTC"
        )
        return dates.dt.replace_time_zone(None)
    if form in _BARE:
        text, form = _add_day(text, form)
    if "%H" not in form and "%I" not in form:
        dates = text.str.to_date(form, strict=False).cast(pl.Datetime("us"))
    else:
        dates = text.str.to_datetime(form, strict=False, time_unit="us")
    usual = dates.dt.year().is_between(*_YEARS)  # `03` is no year of four figures
    return pl.select(pl.when(usual).then(dates)).to_series()


def _add_day(text: pl.Series, form: str) -> tuple[pl.Series, str]:
    """The first days of months, weeks or quarters that are written without a day, and their form;
    null where it is written otherwise."""
    import polars as pl

    pattern, day, whole = _BARE[form]
    fits = text.str.contains(pattern)
    text = pl.select(pl.when(fits).then(text.str.replace(pattern, day))).to_series()
    if whole.endswith("%q"):
        months = {f"-{quarter}": f"-{3 * quarter - 2}-1" for quarter in range(1, 5)}
        parts = text.str.slice(4).replace_strict(months, default=None, return_dtype=pl.String)
        return text.str.slice(0, 4) + parts, "%Y-%m-%d"
    return text, whole


def _count_steps(dates: pl.Series) -> int:
    return int(dates.drop_nulls().unique().sort().diff().n_unique())


def format_time(value: float, form: str) -> str | float:
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


def describe_step(step: float, form: str) -> str:
    """A step in words."""
    if form in (NUMBER, ""):
        return f"{step:g}"
    if form.startswith(MONTHS):
        return f"{step:g} month" + ("s" if step != 1 else "")
    for unit, seconds in _UNITS:
        if step >= seconds:
            return f"{step / seconds:g} {unit}"
    return f"{step:g} s"


def find_step(differences: Numbers) -> tuple[float, bool]:
    """The step that occurs most often, and whether all are whole multiples of it.

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
