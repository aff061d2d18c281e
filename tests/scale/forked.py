"""A program that trains in several processes: `python -m tests.scale.forked`.

Reads a list of jobs, each a JSON object: the run's folder, its recipe, how many processes, and who
is killed when, [rank, call, count, part]: before (`part` 0) or after (1) the count-th call;
[rank, "seconds", s, 0] kills from outside, all of them where rank is -1; [rank, "data"] sees other
data. A job may be of several recipes instead, of which each process learns some steps and writes
the bits into a file of its own. Forks what it has imported once, for all jobs. Prints the exit
codes and last words, a list a job.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from tests.main_job.killed import set_trap
from tests.main_job.small import small_dictionary
from throughtime.environment import ProcessPlace, for_process
from throughtime.errors import EndedElsewhere
from throughtime.tasks import find
from throughtime.tasks.memory import Adding
from throughtime.tasks.recipe import recipe_from
from throughtime.train.launch import join
from throughtime.train.learner import Learner, begin_model
from throughtime.train.loop import fit, follow
from throughtime.train.run import create, read
from throughtime.train.world import FAILURE, Messages, SharedMemory, World


def main() -> None:
    jobs = json.load(sys.stdin)
    with warnings.catch_warnings(action="ignore"):
        import lightning_fabric.strategies.ddp  # noqa: F401  # once, for all
    print(json.dumps([(learn if "recipes" in job else train)(**job) for job in jobs]))


def learn(
    folder: str, recipes: list[dict[str, Any]], size: int, steps: int, small: bool, apart: bool
) -> list[Any]:
    """Takes some steps of each recipe in `size` processes; exit codes, and what was said.

    Where they are `apart`, each is as on a machine of its own.
    """
    bits: dict[str, list[str]] = {}

    def take(world: World) -> None:
        with small_dictionary() if small else nullcontext():
            for one in recipes:
                bits[one["task"]] = bits_of(one, world, steps)
                assert size == 1 or type(world._exchange) is (Messages if apart else SharedMemory)
                Path(folder, f"{world.rank}.json").write_text(json.dumps(bits))

    Path(folder).mkdir()
    return in_processes(size, [take] * size, local=1 if apart else size)


def bits_of(recipe: dict[str, Any], world: World, steps: int) -> list[str]:
    """The loss of each of some steps, and a hash of the weights after them."""
    torch.set_num_threads(recipe["threads"])
    task = find(recipe["task"])(recipe_from(recipe, find(recipe["task"]).options))
    learner = Learner(task, begin_model(task), world=world)
    learner.check_world()
    losses = []
    for _ in range(steps):
        learner.step()
        losses.append(learner.loss.hex())
    digest = hashlib.sha256()
    for parameter in learner.model.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    return [*losses, digest.hexdigest()]


def train(folder: str, recipe: dict[str, Any], size: int, kill: list[Any] | None) -> list[Any]:
    """Trains one run in `size` processes; their exit codes, and what was said at the end."""
    path = Path(folder)
    if not path.exists():
        create(path, recipe_from(recipe, find(recipe["task"]).options))

    def part(rank: int) -> Callable[[World], None]:
        def fit_or_follow(world: World) -> None:
            if kill and kill[0] == rank:
                if kill[1] == "data":
                    see_other_data()
                elif kill[1] != "seconds":
                    set_trap((kill[1], kill[2], kill[3]))
            if rank:
                follow(world)
            else:
                fit(read(path), world=world)

        return fit_or_follow

    outside = kill if kill and kill[1] == "seconds" else None
    return in_processes(size, [part(rank) for rank in range(size)], outside)


def in_processes(
    size: int, calls: Sequence[Callable[[World], None]], kill: list[Any] | None = None,
    local: int | None = None,
) -> list[Any]:  # fmt: skip
    """Calls one function a process, together; exit codes, and what was said at the end.

    The store comes last: its thread may hold a lock of the C library, which a child would inherit.
    """
    ports, port = os.pipe()
    places = [
        ProcessPlace(n, size, local or size, "127.0.0.1", 0, hosted=True) for n in range(size)
    ]
    children = [begin(call, place, ports) for call, place in zip(calls, places, strict=True)]
    store = torch.distributed.TCPStore(
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60)
    )
    os.write(port, size * store.port.to_bytes(2, "big"))
    for end in (ports, port):
        os.close(end)
    if kill:
        time.sleep(kill[2])
        for child in children if kill[0] < 0 else [children[kill[0]]]:
            os.kill(child, signal.SIGKILL)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return [*codes, store.get(FAILURE).decode() if store.check([FAILURE]) else ""]


def begin(call: Callable[[World], None], place: ProcessPlace, ports: int) -> int:
    """Forks one process of several, which reads from a pipe at which port they meet."""
    if child := os.fork():
        return child
    code = 1
    try:
        place = replace(place, port=int.from_bytes(os.read(ports, 2), "big"))
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        os.environ.update(for_process(place, place.rank % place.local))
        with join(60) as world:
            call(world)
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
