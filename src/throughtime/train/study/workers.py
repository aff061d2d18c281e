"""Runs over worker processes: one that dies costs its run and no other.

A worker is a fresh process (a forked one could not compute with several threads). It ignores
Ctrl-C, which is the study's to handle, and ends when the study's own process does, however that
ends.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

import torch

from throughtime.tasks.recipe import Recipe
from throughtime.train.study.runs import Outcome, learn

Learn = Callable[[Recipe], Outcome]


@dataclass(frozen=True)
class Lost:
    """A run without an outcome, and why."""

    recipe: Recipe
    reason: str


def run_on_processes(
    recipes: Iterable[Recipe], jobs: int, threads: int, call: Learn = learn
) -> Generator[Outcome | Lost, None, None]:
    """The outcome of each run, in the order in which they end.

    Args:
        recipes: the runs; each is asked for when there is a worker for it.
        jobs: how many at the same time.
        threads: that torch computes with in each.
        call: what a run is; a function of a module, since it goes to other processes.
    """
    waiting, workers = iter(recipes), list[_Worker]()
    try:
        while True:
            free = [one for one in workers if not one.recipe]
            while len(workers) - len(free) < jobs and (recipe := next(waiting, None)):
                worker = free.pop() if free else _Worker(threads, call)
                if worker not in workers:
                    workers.append(worker)
                if not worker.process.is_alive():
                    workers[workers.index(worker)] = worker = _Worker(threads, call)
                worker.begin(recipe)
            busy = {one.connection: one for one in workers if one.recipe}
            if not busy:
                return
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                yield busy[connection].end()
    finally:
        for worker in workers:
            worker.process.terminate()
            worker.process.join()


class _Worker:
    """A process that does one run after another."""

    def __init__(self, threads: int, call: Learn) -> None:
        fresh = multiprocessing.get_context("spawn")
        self.connection, theirs = fresh.Pipe()
        self.process = fresh.Process(target=_serve, args=(theirs, threads, call), daemon=True)
        self.process.start()
        theirs.close()
        self.recipe: Recipe | None = None

    def begin(self, recipe: Recipe) -> None:
        self.recipe = recipe
        with contextlib.suppress(BrokenPipeError):  # then `end` finds that it died
            self.connection.send(recipe)

    def end(self) -> Outcome | Lost:
        """The outcome of the run; waits for it."""
        recipe, self.recipe = self.recipe, None
        assert recipe is not None
        try:
            outcome: Outcome | Lost = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            return Lost(recipe, f"its process ended with exit code {self.process.exitcode}")
        return outcome


def _serve(connection: Connection, threads: int, call: Learn) -> None:
    """A worker's life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    while True:
        recipe = connection.recv()
        try:
            connection.send(call(recipe))
        except (RuntimeError, MemoryError) as error:  # of torch: out of memory, say
            connection.send(Lost(recipe, f"{type(error).__name__}: {error}"))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
