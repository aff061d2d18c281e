"""Runs over worker processes, or as tasks of a SLURM array.

A worker is a fresh process (a forked one could not compute with several threads). One that dies
costs its run and no other. It ignores Ctrl-C, which is the study's to handle, and ends when the
study's own process does, however that ends.

Each task of an array does one run of the grid and keeps it in the shared folder; the same command
without `--on` then goes on where they were, or reports when all are there.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch

from throughtime.errors import OptionError, RunError
from throughtime.tasks.recipe import Recipe
from throughtime.train.study import Outcome, learn

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
        self.connection, other = fresh.Pipe()
        self.process = fresh.Process(target=_serve, args=(other, threads, call), daemon=True)
        self.process.start()
        other.close()
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


_LARGEST = 1000  # number of a task that every SLURM takes


def write_script(
    words: Sequence[str], runs: Sequence[int], jobs: int, threads: int, folder: Path
) -> str:
    """The script that `sbatch` takes; OptionError where the grid has more runs than an array.

    Args:
        words: of the study's command line, without where it runs.
        runs: the numbers of the grid's runs that have no file yet.
        jobs: how many tasks at the same time, of so many threads.
        folder: of the study, which all machines share.
    """
    if max(runs) > _LARGEST:
        raise OptionError(
            f"an array's tasks have numbers of at most {_LARGEST}, and the grid has "
            f"{max(runs) + 1} runs; give fewer --cells, --init, --length or --seeds at a time"
        )
    command = shlex.join([sys.executable, "-c", _PROGRAM, *words])
    return f"""#!/bin/bash
#SBATCH --job-name=throughtime-study
#SBATCH --array={_format_spans(runs)}%{jobs}
#SBATCH --ntasks=1
#SBATCH --cpus-per-task={threads}
#SBATCH --output={shlex.quote(str(folder.resolve() / "slurm-%a.log"))}
cd {shlex.quote(str(Path.cwd()))}
exec {command} --run $SLURM_ARRAY_TASK_ID
"""


_PROGRAM = "import sys; from throughtime import cli; sys.exit(cli.main())"


def _format_spans(numbers: Sequence[int]) -> str:
    """Numbers as an array has them: `0-3,7`."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


def submit(script: str) -> str:
    """Hands the script to SLURM, where it is and takes it; its answer has the number of the job."""
    if shutil.which("sbatch") is None:
        raise RunError(
            "SLURM's sbatch must be there to take a study, and this machine has none; print the "
            "script with --dry-run and hand it in where it is"
        )
    done = subprocess.run(["sbatch"], input=script, capture_output=True, text=True)
    if done.returncode:
        raise RunError(f"SLURM must take the study, and it refuses: {done.stderr.strip()}")
    return done.stdout.strip()
