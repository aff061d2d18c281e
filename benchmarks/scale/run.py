"""Measures how many more words a second two processes train than one, each of one thread.

    python -m benchmarks.scale.run [--task pronounce] [--turns 7] [--steps 12]

The task is as its preset has it. One process and two take turns on the same batches; a turn is some
training steps. First the bits are compared: those of one process that computes both parts, and of
two that have one each. Printed are rows a second of the best turn and of the middle one, and the
ratio. Each process needs a core that is free: the times of the processor, which others on the
machine disturb less, stand below.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import os
import statistics
import time
import warnings
from datetime import timedelta
from multiprocessing.connection import Connection

import torch
import torch.distributed

from throughtime.environment import ProcessPlace, for_process
from throughtime.tasks import find
from throughtime.train.launch import join
from throughtime.train.learner import Learner, begin_model
from throughtime.train.run import resolve
from throughtime.train.world import World

BAR = 1.7  # times the words a second


def serve(pipe: Connection, place: ProcessPlace | None, name: str, parts: int) -> None:
    """Trains as many steps as it is told, again and again; answers with seconds and the loss."""
    if place is None:
        learn(pipe, World(), name, parts)
        return
    os.environ.update(for_process(place, place.rank))
    with warnings.catch_warnings(action="ignore"), join() as world:
        learn(pipe, world, name, parts)


def learn(pipe: Connection, world: World, name: str, parts: int) -> None:
    torch.set_num_threads(1)
    task = find(name)(resolve(find(name), {"threads": 1, "parts": parts}))
    learner = Learner(task, begin_model(task), world=world)
    while steps := pipe.recv():
        wall, processor = time.perf_counter(), time.process_time()
        for _ in range(steps):
            learner.step()
        pipe.send((time.perf_counter() - wall, time.process_time() - processor, learner.loss))


def begin(name: str, size: int, parts: int, store: torch.distributed.TCPStore) -> list[Connection]:
    """So many processes that train together, by their pipes."""
    pipes = []
    for rank in range(size):
        here, there = mp.Pipe()
        place = ProcessPlace(rank, size, size, "127.0.0.1", store.port, hosted=True)
        mp.get_context("fork").Process(
            target=serve, args=(there, place if size > 1 else None, name, parts), daemon=True
        ).start()
        pipes.append(here)
    return pipes


def turn(pipes: list[Connection], steps: int) -> tuple[float, float, float]:
    """Seconds, of the clock and of the busiest process, and the loss after so many steps."""
    for pipe in pipes:
        pipe.send(steps)
    said = [pipe.recv() for pipe in pipes]
    return max(one[0] for one in said), max(one[1] for one in said), said[0][2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--task", default="pronounce")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    store = torch.distributed.TCPStore(
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60)
    )
    kinds = {"one": (1, 1), "one, 2 parts": (1, 2), "two": (2, 2)}
    every = {n: begin(options.task, *how, store) for n, how in kinds.items()}
    first = {name: turn(pipes, 3)[2] for name, pipes in every.items()}
    assert first["two"] == first["one, 2 parts"], "two processes have the bits of their parts"
    del every["one, 2 parts"]
    turns: dict[str, list[tuple[float, float]]] = {"one": [], "two": []}
    for _ in range(options.turns):
        for name, pipes in every.items():
            turns[name].append(turn(pipes, options.steps)[:2])
    report(turns, options.steps * resolve(find(options.task), {}).batch_size)


def report(turns: dict[str, list[tuple[float, float]]], rows: int) -> None:
    """Prints what the turns came to."""
    print(f"load {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores")
    for place, kind in enumerate(("clock", "processor")):
        one, two = ([each[place] for each in turns[name]] for name in ("one", "two"))
        for word, take in (("best", min), ("middle", statistics.median)):
            a, b = rows / take(one), rows / take(two)
            print(f"{kind:9} {word:6} one {a:7.0f} rows/s  two {b:7.0f}  {b / a:.2f} (bar {BAR})")


if __name__ == "__main__":
    main()
