"""The processes that train one run together: where they meet, what they share, what ends them all.

Each has every weight and computes its parts of every batch; the results are added up in one order,
so that any number of processes gives the same bits. Lightning Fabric joins them, configured by
the environment of torchrun, of srun, or of our own `launch`. One process alone needs none of it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

from throughtime.compiler.runtime.threads import usable
from throughtime.environment import ProcessPlace, launched, of_torchrun
from throughtime.errors import EndedElsewhere, OptionError, RunError, ThroughtimeError
from throughtime.tasks.task import Batch
from throughtime.train.exchange import Exchange, Messages, add_halves, distributed, open_exchange

WAIT = 120  # seconds, for the others to come
_SILENCE = timedelta(minutes=30)  # the first may score as long as this
LAST_WORDS = 5.0  # seconds, for one that failed to say why
FAILURE, SUPERVISED, _TOLD = "failure", "supervised", "told"

T = TypeVar("T")


class World:
    """The processes of a run; this one alone where nothing is given.

    Args:
        fabric: Lightning's, launched.
        store: where the processes leave each other words.
        together: whether all are on this machine.

    Attributes:
        rank, size: number among all processes, and how many there are.
    """

    def __init__(self, fabric: Any = None, store: Any = None, together: bool = False) -> None:
        self.rank: int = fabric.global_rank if fabric else 0
        self.size: int = fabric.world_size if fabric else 1
        self._fabric, self._store, self._together = fabric, store, together
        self._exchange: Exchange | None = None

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns in the first process, which alone calls it."""
        value = make() if self.rank == 0 else None
        if self.size > 1:
            with self._told_when_lost():
                value = self._fabric.broadcast(value)
        return value  # type: ignore[return-value]

    def room(self, count: int) -> int:
        """At least so many numbers, as many for each process to add."""
        return -(-count // self.size) * self.size

    def add_up(self, parts: int, make: Callable[[int], Tensor], empty: Tensor) -> Tensor:
        """The sum over all parts of a batch, each computed by one process.

        Args:
            parts: how many.
            make: computes one in this process, by its number.
            empty: of the form of all of them, a row of `room` numbers.

        Returns:
            The sum by halves, whose bits depend on the parts and not on the processes.
        """

        def alone(few: range) -> Tensor | None:
            return make(few[0]) if len(few) == 1 else None

        if self.size == 1:
            return add_halves(range(parts), alone)
        exchange = self._opened(parts, empty)
        made = exchange.add_up(alone)
        with self._told_when_lost():
            return exchange.whole(made)

    def _opened(self, parts: int, empty: Tensor) -> Exchange:
        """What sums of this form go through, opened by all processes at their first."""
        if self._exchange is None or self._exchange.form != (parts, empty.shape, empty.dtype):
            form = parts, self.rank, self.size, empty
            if not self._together:
                self._exchange = Messages(*form)
                return self._exchange
            name = self.from_first(lambda: f"throughtime-{secrets.token_hex(8)}")
            with self._told_when_lost():
                self._exchange = open_exchange(*form, name, _SILENCE.total_seconds())
        return self._exchange

    def agree(self, what: str, batches: Sequence[Batch], cure: str) -> None:
        """Compares what each process sees.

        Raises:
            RunError: one sees another thing than the first; in all of them.
        """
        if self.size == 1:
            return
        each = torch.zeros(self.size, dtype=torch.int64)
        each[self.rank] = _digest(batches)
        with self._told_when_lost():
            each = self._fabric.all_reduce(each, reduce_op="sum")
        others = [str(rank) for rank, one in enumerate(each.tolist()) if one != each[0]]
        if others:
            raise RunError(
                f"all processes must see the same {what}, and {_name_ranks(others)} not see what "
                f"process 0 does; {cure}"
            )

    def leave_word(self, name: str, text: str) -> None:
        """Leaves a word for the process that launched these, if one did."""
        if self._store is not None:
            self._store.set(name, text)

    @contextmanager
    def _told_when_lost(self) -> Iterator[None]:
        """Torch's error when another process has ended becomes the reason that one gave."""
        try:
            yield
        except RuntimeError as error:
            word = read_word(self._store, FAILURE, LAST_WORDS) or (
                "every process must stay until the last step, and one ended without a word "
                "(killed, or out of memory); the last checkpoint is kept: go on with --resume"
            )
            raise RunError(word) from error

    def end(self, error: BaseException | None) -> None:
        """Leaves, with a reason for the others, one of which reports it.

        Raises:
            EndedElsewhere: that is not this process.
        """
        if self.size == 1:
            return
        if isinstance(error, ThroughtimeError | OSError | MemoryError | RuntimeError):
            with suppress(RuntimeError):
                self._store.compare_set(FAILURE, "", str(error))
        if self._exchange is not None:
            self._exchange.close()
        distributed.destroy_process_group()
        if error is None or isinstance(error, KeyboardInterrupt | GeneratorExit):
            return
        with suppress(RuntimeError):
            if self.rank == 0 and not self._store.check([SUPERVISED]):
                self._store.set(_TOLD, "")
                return
            if self.rank:
                read_word(self._store, _TOLD, LAST_WORDS)
        raise EndedElsewhere from error


def read_word(store: Any, name: str, seconds: float) -> str:
    """What a process has stored under a name within some seconds; or nothing."""
    end = time.monotonic() + seconds
    with suppress(RuntimeError):  # the store has ended too
        while time.monotonic() < end:
            if store.check([name]):
                return str(store.get(name).decode())
            time.sleep(0.05)
    return ""


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
    """Which process this is of several, or None.

    Raises:
        OptionError: the launcher's environment cannot be.
    """
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
    """The store of all processes.

    Args:
        place: of this one.
        wait: seconds, for who hosts it to answer.
        here: whether this process hosts it; None: as its place says.

    Raises:
        RunError: its port is taken here, or nobody answers there.
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
                    f"{_name_ranks(missing)} not; begin them, or wait longer with --wait"
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
        world_size=place.size, timeout=_SILENCE,
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


def _name_ranks(ranks: Sequence[str]) -> str:
    if len(ranks) == 1:
        return f"process {ranks[0]} does"
    return f"processes {', '.join(ranks[:-1])} and {ranks[-1]} do"


def _digest(batches: Sequence[Batch]) -> int:
    """63 bits of a hash over tensors."""
    digest = hashlib.sha256()
    for tensor in (tensor for batch in batches for tensor in batch):
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(_tensor_bytes(tensor))
    return int.from_bytes(digest.digest()[:8], "big") >> 1


def _tensor_bytes(tensor: Tensor) -> bytes:
    content: bytes = tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return content
