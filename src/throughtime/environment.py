"""The version, and what it runs in: Pythons and torches that it takes, environment variables.

The version stands here and nowhere else; pyproject.toml reads it from this file. README.md and
docs/scale.md list the variables.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from dataclasses import dataclass

from throughtime.errors import VersionError

__version__ = "0.1.0"

OLDEST_PYTHON = (3, 11)
OLDEST_TORCH = (2, 9)

TRIED = ("2.9", "2.13", "2.14", "2.15")
"""The minors of torch that tests were run with; docs/support.md says which tests."""


def check_python(version: tuple[int, ...]) -> None:
    """Raises VersionError for a Python that is too old."""
    if version[:2] < OLDEST_PYTHON:
        oldest, got = _dotted(OLDEST_PYTHON), _dotted(version[:3])
        raise VersionError(
            f"throughtime needs Python {oldest} or newer, got {got}; make an environment with a "
            f"newer one: python{oldest} -m venv .venv"
        )


def check_torch(version: str) -> None:
    """Raises VersionError for a torch that is too old."""
    if _minor(version) < OLDEST_TORCH:
        raise VersionError(
            f"throughtime needs torch {_dotted(OLDEST_TORCH)} or newer, got {version}; "
            f"upgrade it: pip install --upgrade torch"
        )


def warn_of_untried(version: str, lost: tuple[str, ...]) -> None:
    """One warning of a torch that was never tried, or that lacks what this package uses of it."""
    if lost:
        names = ", ".join(f"torch.{name}" for name in lost)
        warnings.warn(
            f"torch {version} lacks {names}, which throughtime uses, so some calls are slower and "
            f"some refused; throughtime was tried with torch {', '.join(TRIED)}",
            stacklevel=3,
        )
    elif _dotted(_minor(version)) not in TRIED:
        warnings.warn(
            f"throughtime was tried with torch {', '.join(TRIED)}, not with {version}; "
            f"throughtime.check(cell) holds a cell to its laws here",
            stacklevel=3,
        )


def _minor(version: str) -> tuple[int, ...]:
    """(2, 13) of 2.13.0+cpu; a version without numbers is taken for one that will do."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return tuple(map(int, numbers.groups())) if numbers else OLDEST_TORCH


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


def _check_here() -> None:
    """The same of what runs now."""
    check_python(tuple(sys.version_info[:3]))
    import torch

    check_torch(torch.__version__)
    from throughtime.torch_private import LOST  # which an older torch could trip over

    warn_of_untried(torch.__version__, LOST)


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


_check_here()  # before what an older one could trip over is imported
