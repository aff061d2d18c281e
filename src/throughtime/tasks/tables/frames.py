"""Frames of polars and pandas in the place of files: read, saved, and answered in their kind."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from throughtime.errors import DataError, OptionError
from throughtime.tasks.recipe import short
from throughtime.tasks.tables import DataTable
from throughtime.tasks.tables.read import as_numbers, read

if TYPE_CHECKING:
    import polars as pl

_NAME = "the frame"


def is_frame(data: object) -> bool:
    """Whether it is a frame of polars or pandas; neither is imported for it."""
    return type(data).__name__ in ("DataFrame", "LazyFrame") and _package_of(data) in (
        "polars", "pandas",
    )  # fmt: skip


def make_table(
    data: Any, from_file: Callable[[str], DataTable] = read, as_text: bool = False
) -> DataTable:
    """The table in a file or a frame.

    Args:
        data: the file or the frame.
        from_file: how a file is read.
        as_text: whether a frame's text stays text where it looks like numbers.

    Raises:
        DataError: it has no rows, or a column cannot be taken.
        OptionError: it is neither.
    """
    if isinstance(data, str | PathLike):
        return from_file(str(data))
    if not is_frame(data):
        raise OptionError(f"data must be a file or a frame of polars or pandas, got {short(data)}")
    frame = _as_polars(data) if as_text else as_numbers(_as_polars(data))
    return DataTable(frame, _NAME, f"a frame of {_package_of(data)}")


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
            columns[str(name)] = [
                None if missing else one for one, missing in zip(column, gone, strict=True)
            ]
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
