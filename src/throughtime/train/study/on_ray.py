"""Runs, and blocks of a file for a model, as Ray tasks: on a Ray made here or one that is there.

Ray begins a worker that dies again. Outcomes go back to the study, which keeps them, so that no
folder need be shared.
"""

from __future__ import annotations

import gc
import logging
import os
import socket
from collections.abc import Generator, Iterable, Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from throughtime.errors import DataError, RunError, import_extra, missing_extra
from throughtime.tasks import Task
from throughtime.tasks.recipe import Recipe
from throughtime.tasks.tables import DataTable
from throughtime.tasks.tables.task import TableTask
from throughtime.train.result import load_trained
from throughtime.train.run import read
from throughtime.train.study import Learn, Lost, Outcome, learn

if TYPE_CHECKING:
    import polars as pl

_TRIES = 3  # of a run whose worker dies
_HELD = 4  # blocks of a file for each that is answered
_SOON = 10.0  # seconds, for a Ray that is there to answer
_PLACE, _GIVEN, _WRONG = "__place__", "given", "__wrong__"  # columns that go along


def run_on_ray(
    recipes: Iterable[Recipe], jobs: int, threads: int, address: str | None = None,
    call: Learn = learn,
) -> Generator[Outcome | Lost, None, None]:  # fmt: skip
    """The outcome of each run, in the order in which they end.

    Args:
        recipes: the runs; each is asked for when it may begin.
        jobs: how many at the same time.
        threads: that torch computes with in each; as many cores Ray gives it.
        address: of a Ray that is there; None: one of this machine, which ends with the study.
        call: what a run is; a function of a module, since it goes to other processes.

    Raises:
        MissingExtra: Ray is not installed.
        RunError: no Ray answers at the address.
    """
    ray = _start(jobs * threads, address)
    try:
        task = ray.remote(num_cpus=threads, max_retries=_TRIES)(_run)
        waiting, begun = iter(recipes), dict[Any, Recipe]()
        while True:
            while len(begun) < jobs and (recipe := next(waiting, None)):
                begun[task.remote(recipe, threads, call)] = recipe
            if not begun:
                return
            (ended, *_), _ = ray.wait(list(begun), num_returns=1)
            yield _read_outcome(ray, ended, begun.pop(ended))
    finally:
        ray.shutdown()


def answer_on_ray(
    folder: Path, blocks: Iterable[DataTable | list[str]], jobs: int, address: str | None = None
) -> Generator[pl.DataFrame, None, None]:
    """The answers of a run's model to each block, in order; a few blocks are held at a time.

    Args:
        folder: of the run, which all machines of a Ray must see.
        blocks: of a table whole series each; of a text the items that a user asks.
        jobs: blocks answered at the same time, one core each.
        address: as in `run_on_ray`.

    Raises:
        MissingExtra, RunError: as `run_on_ray`, or a worker is lost.
        DataError: a block cannot be taken.
    """
    ray = _start(jobs, address)
    try:
        data, waiting = _import_ray_data(), iter(blocks)
        while few := list(islice(waiting, _HELD * jobs)):
            yield from _answer_few(ray, data, str(folder.resolve()), few)
            gc.collect()  # reference cycles hold what ran, and its blocks
    except ray.exceptions.RayError as error:
        raise RunError(
            f"every block must be answered, and one was not: {_first_line(error)}"
        ) from error
    finally:
        ray.shutdown()


def _answer_few(
    ray: Any, data: Any, folder: str, few: list[DataTable | list[str]]
) -> Iterator[pl.DataFrame]:
    """The answers to some blocks, side by side."""
    words = {"folder": folder, "name": "", "unit": ""}
    if isinstance(few[0], DataTable):
        words |= {"name": few[0].name, "unit": few[0].unit}
    answers = data.from_arrow_refs([ray.put(_as_arrow(block)) for block in few]).map_batches(
        _answer, batch_size=None, batch_format="pyarrow", num_cpus=1, fn_kwargs=words
    )
    for part in answers.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield _check_answer(part)


def _import_ray_data() -> Any:
    """Ray Data, quiet, which keeps the order."""
    try:
        import ray.data
    except ImportError as error:
        raise missing_extra("pyarrow", "cluster") from error
    for name in ("ray.data", "ray.data._internal"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    return ray.data


def _as_arrow(block: DataTable | list[str]) -> Any:
    import polars as pl

    if not isinstance(block, DataTable):
        return pl.DataFrame({_GIVEN: block}).to_arrow()
    rows = (
        range(block.first, block.first + len(block.frame)) if block.lines is None else block.lines
    )
    return block.frame.with_columns(pl.Series(_PLACE, rows, pl.Int64)).to_arrow()


def _check_answer(part: Any) -> pl.DataFrame:
    import polars as pl

    frame = pl.DataFrame(pl.from_arrow(part))
    if _WRONG in frame.columns:
        raise DataError(frame[_WRONG][0])
    return frame


@lru_cache(maxsize=1)
def _open(folder: str) -> tuple[Task, nn.Module]:
    torch.set_num_threads(1)
    return load_trained(read(Path(folder)))


def _answer(part: Any, folder: str, name: str, unit: str) -> Any:
    """One block in a worker of Ray's."""
    import polars as pl

    task, model = _open(folder)
    frame = pl.DataFrame(pl.from_arrow(part))
    if not name:
        answers = task.answer(model, frame[_GIVEN].to_list())
        return frame.with_columns(pl.Series("answer", answers, pl.String)).to_arrow()
    assert isinstance(task, TableTask)
    places = frame[_PLACE].to_list()
    table = DataTable(frame.drop(_PLACE), name, "a block", unit=unit, lines=places)
    try:
        frame, _ = task.predict(model, table)
    except DataError as error:
        return pl.DataFrame({_WRONG: [str(error)]}).to_arrow()
    return frame.to_arrow()


def _start(cores: int, address: str | None) -> Any:
    """Ray, begun here or reached at an address."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would send them to its makers
    ray = import_extra("ray", "cluster")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        try:
            ray.init(num_cpus=cores, include_dashboard=False, **quiet)
        except Exception as error:  # Ray's own are of no other kind
            raise RunError(
                f"a Ray must begin on this machine, and it does not ({_first_line(error)}); see "
                "that it has processors and memory to spare, or name one with --address"
            ) from error
        return ray
    try:
        _await_answer(address)
        ray.init(address=address, **quiet)
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        raise RunError(
            f"a Ray must answer at {address}, and none does; begin one with `ray start --head`, or "
            "leave out --address"
        ) from error
    return ray


def _await_answer(address: str) -> None:
    """Raises OSError where nobody listens; Ray itself would look for a quarter of an hour."""
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")  # looks, where no Ray listens
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_SOON).close()


def _read_outcome(ray: Any, ended: Any, recipe: Recipe) -> Outcome | Lost:
    try:
        outcome: Outcome | Lost = ray.get(ended)
    except ray.exceptions.RayError as error:
        return Lost(recipe, _first_line(error))
    return outcome


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")


def _run(recipe: Recipe, threads: int, call: Learn) -> Outcome | Lost:
    """One run in a worker of Ray's."""
    torch.set_num_threads(threads)
    try:
        return call(recipe)
    except (RuntimeError, MemoryError) as error:  # of torch: out of memory, say
        return Lost(recipe, f"{type(error).__name__}: {error}")
