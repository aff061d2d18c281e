"""A program that trains in several processes: `python -m tests.scale.forked`.

Reads a list of jobs, each a JSON object: the run's folder, its recipe, how many processes, and who
is killed when, [rank, call, count, part]: before (`part` 0) or after (1) the count-th call;
[rank, "seconds", s, 0] kills from outside, all of them where rank is -1; [rank, "data"] sees other
data. Forks what it has imported once, for all jobs. Prints the exit
codes and last words, a list a job.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed

from tests.main_job.killed import set_trap
from throughtime.environment import ProcessPlace, for_process
from throughtime.errors import EndedElsewhere
from throughtime.tasks import find
from throughtime.tasks.adding import Adding
from throughtime.tasks.recipe import recipe_from
from throughtime.train.loop import fit, follow
from throughtime.train.run import create, read
from throughtime.train.world import FAILURE, join


def main() -> None:
    jobs = json.load(sys.stdin)
    with warnings.catch_warnings(action="ignore"):
        import lightning_fabric.strategies.ddp  # noqa: F401  # once, for all
    print(json.dumps([train(**job) for job in jobs]))


def train(folder: str, recipe: dict[str, Any], size: int, kill: list[Any] | None) -> list[Any]:
    """Trains one run in `size` processes; their exit codes, and what was said at the end."""
    path = Path(folder)
    if not path.exists():
        create(path, recipe_from(recipe, find(recipe["task"]).options))
    store = torch.distributed.TCPStore(
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60)
    )
    places = [
        ProcessPlace(n, size, size, "127.0.0.1", store.port, hosted=True) for n in range(size)
    ]
    children = [begin(path, place, kill) for place in places]
    if kill and kill[1] == "seconds":
        time.sleep(kill[2])
        for child in children if kill[0] < 0 else [children[kill[0]]]:
            os.kill(child, signal.SIGKILL)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return [*codes, store.get(FAILURE).decode() if store.check([FAILURE]) else ""]


def begin(folder: Path, place: ProcessPlace, kill: list[Any] | None) -> int:
    """Forks one process of a run."""
    if child := os.fork():
        return child
    code = 1
    try:
        os.environ.update(for_process(place, place.rank))
        if kill and kill[0] == place.rank:
            if kill[1] == "data":
                see_other_data()
            elif kill[1] != "seconds":
                set_trap((kill[1], kill[2], kill[3]))
        with join(60) as world:
            if place.rank:
                follow(world)
            else:
                fit(read(folder), world=world)
        code = 0
    except (EndedElsewhere, ValueError):
        code = 2
    finally:
        os._exit(code)


def see_other_data() -> None:
    draw = Adding.draw
    Adding.draw = lambda *given: tuple(2 * x for x in draw(*given))  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
