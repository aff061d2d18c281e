"""`throughtime data FILE`: what training would read of a file; nothing is trained."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from throughtime.cli.app import Commands
    from throughtime.tasks.tables import DataTable

_COLUMNS = (".conllu", ".conll", ".iob", ".bio")  # files that hold tokens and nothing else


def register(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add("data", data)
    parser.add_argument("file", metavar="FILE", help="As `throughtime train` takes it in --data.")
    parser.add_argument("--time", metavar="COL", default="", help="Column of time. Default: found.")
    parser.add_argument(
        "--series", metavar="COL", default="",
        help="Column that tells series apart. Default: found.",
    )  # fmt: skip
    parser.add_argument(
        "--target", metavar="COL,..", default="", help="Also what a forecast of these would read."
    )
    parser.add_argument(
        "--label", metavar="COL", default="", help="Also what classes by this would be made from."
    )
    parser.add_argument(
        "--token", metavar="COL", default="",
        help="Only what tags of these tokens would be made from, by --label or a column found.",
    )  # fmt: skip
    parser.add_argument(
        "--source", metavar="COL", default="",
        help="Only what translations of this would be made from, into --target or the other one.",
    )  # fmt: skip


def data(
    file: str, time: str, series: str, target: str, label: str, token: str, source: str
) -> None:
    """Show what would be read: columns, types, steps, gaps, series, splits. Trains nothing."""
    from throughtime.tasks.tables.describe import describe_columns, describe_rows
    from throughtime.tasks.tables.read import is_plain, read

    if token or file.casefold().endswith(_COLUMNS):
        _print_read("tag", {"data": file, "token": token, "label": label, "series": series})
        return
    if source:
        _print_read("translate", {"data": file, "source": source, "target": target})
        return
    named = time or series or target or label
    if file.casefold().endswith(".txt") and not named and is_plain(file):
        _print_read("language", {"data": file})
        print(f"\ntry: throughtime train language --data {shlex.quote(file)}")
        return
    table = read(file)
    _print(describe_columns(table, time), "column", "type", "missing", "values")
    # A file of classes need have no even time; what is wrong there is told by its own task.
    if not label or time or target:
        _print(describe_rows(table, time, series))
    given = {"data": file, "time": time, "series": series}
    if target:
        _print_read("forecast", given | {"target": target})
    if label:
        _print_read("classify", given | {"label": label})
    if not target and not label:
        print(f"\n{_advice(table, file, time, series)}")


def _print_read(task: str, given: dict[str, str]) -> None:
    from throughtime.tasks import find
    from throughtime.train.begin import resolve

    kind = find(task)
    print(f"\n{task}:")
    made = kind(resolve(kind, {name: value for name, value in given.items() if value}))
    _print(made.read())


def _print(rows: Sequence[tuple[str, ...]], *heads: str) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table(*heads, show_header=bool(heads), box=None, pad_edge=False)
    for row in rows:
        shown.add_row(*row)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print()
    console.print(shown)


def _advice(table: DataTable, file: str, time: str, series: str) -> str:
    """A command that trains on the file, by what its columns look like."""
    from throughtime.tasks.forecast.series import find_series
    from throughtime.tasks.tables.clock import find_time, time_columns, with_time

    time = find_time(table, time, [series] if series else [])
    parts = time_columns(table, time)
    series = series or find_series(with_time(table, time), time, [])
    others = [name for name in table.frame.columns if name not in (*parts, series)]
    numbers = [name for name in others if table.is_number(name)]
    few = [name for name in others if _is_class(table, name) and {*numbers} - {name}]
    label = table.roles.get("label") or ("" if time or not few else few[-1])
    target = next((name for name in numbers if table.frame[name].dtype.is_float()), "")
    if label:
        task, flag, column = "classify", "--label", label
    elif numbers:
        task, flag, column = "forecast", "--target", target or numbers[0]
    else:
        task, flag, column = "translate", "--source", (others or table.frame.columns)[0]
    words = ["throughtime", "train", task, "--data", file, flag, column]
    return f"try: {shlex.join(words)}"


def _is_class(table: DataTable, name: str) -> bool:
    """Whether a column has few values that stand often, as classes do."""
    values = table.frame[name].drop_nulls()
    if values.dtype.is_float() or values.dtype.is_temporal():
        return False
    return 2 <= values.n_unique() <= min(30, len(values) // 5)
