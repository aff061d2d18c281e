"""One command in several processes: begun together, ended together, with one sentence if one fails.

As torchrun does it, whose variables these processes find; but a run begins with no word on ports,
and of several nodes each begins its own with the same command.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from throughtime.environment import ProcessPlace, for_process, launched, node, of_torchrun
from throughtime.errors import OptionError, RunError
from throughtime.train.world import FAILURE, LAST_WORDS, SUPERVISED, meet, read_word

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
        _leave_word(store, f"process {first + died} was ended by {signal.Signals(-code).name}")
    word = (
        read_word(store, FAILURE, LAST_WORDS)
        or f"process {first + died} ended with exit code {code}"
    )
    _wait(children, LAST_WORDS)
    raise RunError(word + _how_to_go_on(store) if code < 0 else word)


def _leave_word(store: Any, text: str) -> None:
    with contextlib.suppress(RuntimeError):
        store.compare_set(FAILURE, "", text)


def _how_to_go_on(store: Any) -> str:
    """The command that resumes the run, where one had begun."""
    with contextlib.suppress(RuntimeError):
        if store.check(["resume"]):
            command = shlex.join(["throughtime", *store.get("resume").decode().split("\0")])
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
