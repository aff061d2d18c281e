"""A program that trains in child processes and has them killed: `python -m tests.main_job.killed`.

Reads a list of runs, each a JSON object: its folder, its recipe, and the moments, one a child. A
moment is [call, count, part] and kills before (`part` 0) or after (1) the count-th call, `write` in
the middle of it; ["seconds", s, 0] kills from outside, s seconds after the child began to train.
The last child of a run is left alone. Prints the children's exit codes, a list a run.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.main_job.small import small_dictionary
from throughtime.tasks import find
from throughtime.tasks.recipe import Recipe
from throughtime.train.run import create, read

Moment = tuple[str, float, int]


def main() -> None:
    runs = json.load(sys.stdin)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("throughtime.train.loop")  # once, for all children
    with small_dictionary():
        find("pronounce")(Recipe()).epoch(0)  # the words too
        print(json.dumps([train(**run) for run in runs]))


def train(folder: str, recipe: dict[str, Any], moments: list[Moment]) -> list[int]:
    """Trains one run, killed at each moment in turn, then to its end; the exit codes."""
    path = Path(folder)
    if not path.exists():
        create(path, Recipe(**recipe))
    return [train_until(path, moment) for moment in [*moments, None]]


def train_until(folder: Path, moment: Moment | None) -> int:
    """Trains in a child process until the moment; its exit code, -9 when it was killed."""
    if child := os.fork():
        if moment and moment[0] == "seconds":
            time.sleep(moment[1])
            os.kill(child, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        if moment and moment[0] != "seconds":
            set_trap(moment)
        from throughtime.train.loop import fit

        fit(read(folder))
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(1)


def set_trap(moment: Moment) -> None:
    """Makes one call deadly."""
    from throughtime.train.learner import Learner

    name, count, part = moment
    owners: dict[str, tuple[Any, str]] = {
        "step": (Learner, "step"),
        "validation": (Learner, "score"),
        "replace": (os, "replace"),
        "fsync": (os, "fsync"),
    }
    if name == "write":
        _trap_write(int(count))
        return
    owner, attribute = owners[name]
    setattr(owner, attribute, _deadly(getattr(owner, attribute), int(count), part))


def _deadly(call: Callable[..., Any], count: int, part: int) -> Callable[..., Any]:
    calls = 0

    def trapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count and part == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        result = call(*args, **kwargs)
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return trapped


def _trap_write(count: int) -> None:
    """Kills when half of the count-th checkpoint is in its file."""
    from throughtime.train import storage

    whole, calls = storage.write_draft, 0

    def half(path: Path, content: bytes) -> Path:
        nonlocal calls
        calls += 1
        if calls < count:
            return whole(path, content)
        whole(path, content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
        return path

    storage.write_draft = half  # type: ignore[assignment]


if __name__ == "__main__":
    main()
