"""The environment variables of the package, all of them; README.md and docs/scale.md list them."""

from __future__ import annotations

import os
from dataclasses import dataclass


def machine() -> str | None:
    """`THROUGHTIME_MACHINE`: the machine to compile for, by name; None: the one this runs on."""
    return os.environ.get("THROUGHTIME_MACHINE") or None


def cache() -> str | None:
    """`THROUGHTIME_CACHE`: the cache's folder; empty: none on disk; None: the platform's."""
    return os.environ.get("THROUGHTIME_CACHE")


@dataclass(frozen=True)
class ProcessPlace:
    """Which process of how many this is, as a launcher says.

    Attributes:
        rank, size: number among all processes, and how many they are.
        local: how many of them this machine has.
        host, port: where they meet.
        hosted: whether the launcher answers there itself; else the process of rank 0 does.
    """

    rank: int
    size: int
    local: int
    host: str
    port: int
    hosted: bool


def launched() -> str | None:
    """The launcher whose variables there are: `torchrun` (or ours, which sets the same), `srun`."""
    if {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= set(os.environ):
        return "torchrun"
    by_hand = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    tasks = os.environ.get("SLURM_NTASKS", "1")
    return "srun" if "SLURM_PROCID" in os.environ and tasks != "1" and not by_hand else None


def of_torchrun() -> ProcessPlace:
    """`RANK`, `WORLD_SIZE`, `LOCAL_WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT`.

    Raises:
        ValueError: one of them is no number, or none that it can be.
    """
    values = os.environ
    rank, size = int(values["RANK"]), int(values["WORLD_SIZE"])
    local = int(values.get("LOCAL_WORLD_SIZE", size))
    if not (0 <= rank < size and 1 <= local <= size):
        raise ValueError(f"RANK is {rank}, WORLD_SIZE {size}, LOCAL_WORLD_SIZE {local}")
    return ProcessPlace(
        rank, size, local, values["MASTER_ADDR"], _port(values["MASTER_PORT"]),
        values.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )  # fmt: skip


def node() -> tuple[int, str, int] | None:
    """`NODE_RANK`, `MASTER_ADDR` and `MASTER_PORT`: of one node of several; None: not all there.

    Raises:
        ValueError: a number is none, or no port.
    """
    try:
        named = (os.environ[n] for n in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT"))
        rank, host, port = named
    except KeyError:
        return None
    return int(rank), host, _port(port)


def _port(text: str) -> int:
    if not 1 <= (port := int(text)) <= 65535:
        raise ValueError(f"MASTER_PORT is {port}")
    return port


def for_process(place: ProcessPlace, local_rank: int) -> dict[str, str]:
    """The environment of a process that is to be at a place."""
    alone = place.size == place.local and "GLOO_SOCKET_IFNAME" not in os.environ
    return {
        **os.environ,
        **({"GLOO_SOCKET_IFNAME": "lo"} if alone else {}),  # not by a name that may lead nowhere
        "RANK": str(place.rank), "LOCAL_RANK": str(local_rank), "WORLD_SIZE": str(place.size),
        "LOCAL_WORLD_SIZE": str(place.local), "MASTER_ADDR": place.host,
        "MASTER_PORT": str(place.port), "TORCHELASTIC_USE_AGENT_STORE": str(place.hosted),
    }  # fmt: skip
