"""How processes begin, meet and end: one command in several, with one sentence if one fails.

As torchrun does it, whose variables these processes find; but a run begins with no word on ports,
and of several nodes each begins its own with the same command. Lightning Fabric joins them,
configured by the environment of torchrun, of srun, or of our own `launch`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch

from throughtime.compiler.runtime.threads import usable
from throughtime.environment import ProcessPlace, for_process, launched, node, of_torchrun
from throughtime.errors import EndedElsewhere, OptionError, RunError, ThroughtimeError
from throughtime.train.world import (
    FAILURE,
    LAST_WORDS,
    RESUME,
    SILENCE,
    SUPERVISED,
    World,
    distributed,
    name_ranks,
    read_word,
)

WAIT = 120  # seconds, for the others to come
_CODE = (
    f"import sys; from {__name__} import serve; from throughtime import cli; "
    "sys.exit(serve(cli.main))"
)
_MOST = 1024
_LOOK = 0.05  # seconds between looks at the processes


def launch(words: Sequence[str], processes: int, nodes: int, wait: int) -> int | None:
    """Runs `throughtime` with these words in several processes, and waits for them.

    Args:
        words: of the command line.
        processes: on this machine.
        nodes: machines; each runs this command with its NODE_RANK.
        wait: seconds, for all to come.

    Returns:
        The exit code; None where there is one process alone, or a launcher began several.

    Raises:
        OptionError: the numbers, or the environment of a node, cannot be.
        RunError: a process failed; says why.
    """
    for name, count in (("processes", processes), ("nodes", nodes), ("wait", wait)):
        most = _MOST * (60 if name == "wait" else 1)
        if not 1 <= count <= most:
            raise OptionError(f"{name} must be a whole number of 1 to {most}, got {count}")
    if launcher := launched():
        if processes > 1 and launcher == "srun":
            raise OptionError(
                f"srun has begun the processes, got {processes} more for each; leave out "
                "--processes"
            )
        return None
    if processes == nodes == 1:
        return None
    number, place = _first_of_node(processes, nodes)
    with _start(words, number, place, wait) as (children, store):
        return _watch(children, store, number * processes)


def serve(command: Callable[[], int]) -> int:
    """The life of a process that was launched: the command, until its launcher ends."""
    threading.Thread(target=_end_with_launcher, daemon=True).start()
    if of_torchrun().rank:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first says how to go on
    return command()


def _end_with_launcher() -> None:
    """Its standard input ends when the launcher does, however that ends."""
    while os.read(0, 1):
        pass
    os._exit(1)


def _first_of_node(processes: int, nodes: int) -> tuple[int, ProcessPlace]:
    """The number of this node, and the place of its first process."""
    size = processes * nodes
    if nodes == 1:
        return 0, ProcessPlace(0, size, processes, "127.0.0.1", 0, hosted=True)
    try:
        here = node()
    except ValueError as error:
        raise OptionError(
            f"NODE_RANK must be a whole number, and MASTER_PORT one of 1 to 65535 ({error})"
        ) from error
    if here is None or not 0 <= here[0] < nodes:
        raise OptionError(
            f"each of {nodes} nodes must have NODE_RANK, 0 to {nodes - 1}, MASTER_ADDR, the "
            "address of node 0, and MASTER_PORT in its environment; or begin all with torchrun"
        )
    number, host, port = here
    return number, ProcessPlace(number * processes, size, processes, host, port, hosted=True)


@contextmanager
def _start(
    words: Sequence[str], number: int, place: ProcessPlace, wait: int
) -> Iterator[tuple[list[subprocess.Popen[bytes]], Any]]:
    """The processes of this node and the store where all meet; none outlives this."""
    store = meet(place, wait, here=number == 0)
    store.set(SUPERVISED, "")
    port = place.port or store.port
    children: list[subprocess.Popen[bytes]] = []
    try:
        for local in range(place.local):
            at = ProcessPlace(
                place.rank + local, place.size, place.local, place.host, port, hosted=True
            )
            children.append(
                subprocess.Popen(
                    [sys.executable, "-c", _CODE, *words], stdin=subprocess.PIPE,
                    start_new_session=True, env=for_process(at, local),
                )
            )  # fmt: skip
        yield children, store
    finally:
        for child in children:
            child.kill()
        for child in children:
            child.communicate()


def _watch(children: Sequence[subprocess.Popen[bytes]], store: Any, first: int) -> int:
    """Waits until all have ended, or one that must not have; raises RunError in its words."""
    while True:
        try:
            codes = [child.poll() for child in children]
            if all(code == 0 for code in codes):
                return 0
            if any(codes):
                break
            time.sleep(_LOOK)
        except KeyboardInterrupt:
            return _interrupted(children[0])
    died = next(n for n, code in enumerate(codes) if code)
    code = codes[died] or 0
    if code < 0:
        with contextlib.suppress(RuntimeError):
            text = f"process {first + died} was ended by {signal.Signals(-code).name}"
            store.compare_set(FAILURE, "", text)
    word = (
        read_word(store, FAILURE, LAST_WORDS)
        or f"process {first + died} ended with exit code {code}"
    )
    _wait(children, LAST_WORDS)
    raise RunError(word + _how_to_go_on(store) if code < 0 else word)


def _how_to_go_on(store: Any) -> str:
    """The command that resumes the run, where one had begun."""
    with contextlib.suppress(RuntimeError):
        if store.check([RESUME]):
            command = shlex.join(["throughtime", *store.get(RESUME).decode().split("\0")])
            return f"; the last checkpoint is kept: go on with: {command}"
    return ""


def _interrupted(first: subprocess.Popen[bytes]) -> int:
    """Lets the first process say how to go on."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        first.send_signal(signal.SIGINT)
        first.wait(LAST_WORDS)
    raise KeyboardInterrupt


def _wait(children: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    """Gives all of them some time to end by themselves."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(child.poll() is None for child in children):
        time.sleep(_LOOK)


@contextmanager
def join(wait: int = WAIT) -> Iterator[World]:
    """The processes that a launcher began, this one included; alone where there is no launcher.

    Threads become the cores of this machine over its processes: torchrun leaves one.

    Args:
        wait: seconds, for all to come.

    Raises:
        RunError: they cannot meet, or not all of them come.
    """
    place = find_place()
    if place is None:
        yield World()
        return
    torch.set_num_threads(max(1, usable() // place.local))
    store = meet(place, wait)
    _check_in(place, store, wait)
    world = World(_launch(place, store), store, place.local == place.size)
    try:
        yield world
    except BaseException as error:
        world.end(error)
        raise
    world.end(None)


def find_place() -> ProcessPlace | None:
    """Which process this is of several, or None; OptionError where the environment cannot be."""
    launcher = launched()
    try:
        place = {"torchrun": of_torchrun, "srun": _read_srun}[launcher]() if launcher else None
    except (ValueError, RuntimeError) as error:
        raise OptionError(
            f"the environment of {launcher} must say how many processes there are and which this "
            f"is, and it does not ({error}); see docs/scale.md"
        ) from error
    if place and place.size % place.local:
        raise OptionError(
            f"every machine must have as many processes as this one, {place.local}, and all have "
            f"{place.size}; begin as many on each"
        )
    return place if place and place.size > 1 else None


def _read_srun() -> ProcessPlace:
    """As Fabric reads srun's environment."""
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

    here = SLURMEnvironment()
    local = int(os.environ["SLURM_NTASKS_PER_NODE"])
    return ProcessPlace(
        here.global_rank(), here.world_size(), local, here.main_address, here.main_port,
        hosted=False,
    )  # fmt: skip


def meet(place: ProcessPlace, wait: int, here: bool | None = None) -> Any:
    """The store of all processes, hosted `here`, or as the place says.

    Raises:
        RunError: its port is taken here, or nobody answers there within `wait` seconds.
    """
    master = place.rank == 0 and not place.hosted if here is None else here
    at, end = f"{place.host}:{place.port}", time.monotonic() + wait
    try:
        if master:
            socket.getaddrinfo(place.host, place.port)
        else:
            _await_answer(place, end)
        return _open_store(place, master, max(1, end - time.monotonic()))
    except (OSError, RuntimeError) as error:
        if master:
            raise RunError(
                f"the processes meet at {at}, and that cannot be had here (in use, or not of this "
                "machine); name another with MASTER_ADDR and MASTER_PORT"
            ) from error
        raise RunError(
            f"process 0 must answer at {at}, and it did not within {wait} s; see that it runs and "
            "can be reached, or wait longer with --wait"
        ) from error


def _await_answer(place: ProcessPlace, end: float) -> None:
    """Waits until somebody answers where the processes meet; torch would print pages meanwhile."""
    while True:
        left = max(1, end - time.monotonic())
        try:
            socket.create_connection((place.host, place.port), timeout=left).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
        time.sleep(0.05)


def _open_store(place: ProcessPlace, master: bool, wait: float) -> Any:
    """Torch's; in a thread, since torch waits without an end for words of what is no store."""
    opened: list[Any] = []

    def open_it() -> None:
        try:
            opened.append(
                distributed.TCPStore(
                    place.host, place.port, is_master=master, wait_for_workers=False,
                    timeout=timedelta(seconds=wait),
                )
            )  # fmt: skip
        except RuntimeError as error:  # of torch.distributed: DistNetworkError, DistStoreError
            opened.append(error)

    thread = threading.Thread(target=open_it, daemon=True)
    thread.start()
    thread.join(wait)
    if not opened:
        raise TimeoutError
    if isinstance(opened[0], RuntimeError):
        raise opened[0]
    return opened[0]


def _check_in(place: ProcessPlace, store: Any, wait: int) -> None:
    """Waits until all are there; raises RunError that names who did not come."""
    store.set(f"here/{place.rank}", "")
    names = [f"here/{rank}" for rank in range(place.size)]
    end = time.monotonic() + wait
    with _end_without_store():
        while not store.check(names):
            if store.check([FAILURE]):
                raise _choose_error(place, store, store.get(FAILURE).decode())
            if time.monotonic() > end:
                missing = [str(r) for r, name in enumerate(names) if not store.check([name])]
                word = (
                    f"all {place.size} processes must come within {wait} s, and "
                    f"{name_ranks(missing)} not; begin them, or wait longer with --wait"
                )
                store.compare_set(FAILURE, "", word)
                raise _choose_error(place, store, word)
            time.sleep(0.05)


def _choose_error(place: ProcessPlace, store: Any, word: str) -> ThroughtimeError:
    """The error of one process: the launcher, or else the first process, reports it."""
    if place.rank or store.check([SUPERVISED]):
        return EndedElsewhere()
    return RunError(word)


@contextmanager
def _end_without_store() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, ThroughtimeError):
            raise
        raise EndedElsewhere from error


def _launch(place: ProcessPlace, store: Any) -> Any:
    """Fabric over the processes that met."""
    distributed.init_process_group(
        "gloo", store=distributed.PrefixStore("gloo", store), rank=place.rank,
        world_size=place.size, timeout=SILENCE,
    )  # fmt: skip
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"):  # its own at its import
        from lightning_fabric import Fabric
        from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
        from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
        from lightning_fabric.strategies.ddp import DDPStrategy

        kind = SLURMEnvironment if launched() == "srun" else TorchElasticEnvironment
        fabric = Fabric(
            accelerator="cpu", devices=place.local, num_nodes=place.size // place.local,
            strategy=DDPStrategy(process_group_backend="gloo"), plugins=[kind()],
        )  # fmt: skip
        fabric.launch()
    return fabric
