"""Runs as Ray tasks: on a Ray of this machine, or on one that is there already.

A worker that dies is begun again by Ray; what a run came to goes back to the study, which keeps it,
so that no folder need be shared.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from typing import Any

import torch

from throughtime.errors import RunError, missing_extra
from throughtime.tasks.recipe import Recipe
from throughtime.train.study.learn import Outcome, learn
from throughtime.train.study.workers import Learn, Lost

_TRIES = 3  # of a run whose worker dies


def over_ray(
    recipes: Iterable[Recipe], jobs: int, threads: int, address: str | None = None,
    call: Learn = learn,
) -> Generator[Outcome | Lost, None, None]:  # fmt: skip
    """What each run came to, in the order in which they end.

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
    ray = _started(jobs * threads, address)
    try:
        task = ray.remote(num_cpus=threads, max_retries=_TRIES)(_run)
        waiting, begun = iter(recipes), dict[Any, Recipe]()
        while True:
            while len(begun) < jobs and (recipe := next(waiting, None)):
                begun[task.remote(recipe, threads, call)] = recipe
            if not begun:
                return
            (ended, *_), _ = ray.wait(list(begun), num_returns=1)
            yield _come_to(ray, ended, begun.pop(ended))
    finally:
        ray.shutdown()


def _started(cores: int, address: str | None) -> Any:
    """Ray, begun or found."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would send them to its makers
    try:
        import ray
    except ModuleNotFoundError as error:
        raise missing_extra("ray", "cluster") from error
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        ray.init(num_cpus=cores, include_dashboard=False, **quiet)
        return ray
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise RunError(
            f"a Ray must answer at {address}, and none does; begin one with `ray start --head`, or "
            "leave out --address"
        ) from error
    return ray


def _come_to(ray: Any, ended: Any, recipe: Recipe) -> Outcome | Lost:
    try:
        found: Outcome | Lost = ray.get(ended)
    except ray.exceptions.RayError as error:
        return Lost(recipe, str(error).strip().partition("\n")[0])
    return found


def _run(recipe: Recipe, threads: int, call: Learn) -> Outcome | Lost:
    """One run in a worker of Ray's."""
    torch.set_num_threads(threads)
    try:
        return call(recipe)
    except (RuntimeError, MemoryError) as error:  # of torch: out of memory, say
        return Lost(recipe, f"{type(error).__name__}: {error}")
