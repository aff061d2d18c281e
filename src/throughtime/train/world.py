"""The processes that train one run together: what they share, and the sums they make of it.

Each has every weight and computes its parts of every batch. The results are added up by halves, so
that the bits of a sum hang on the parts alone, and any number of processes gives the same. What the
others made a process sees in memory that those of one machine share, or is sent over the network;
either way it adds up one slice of the sum for all. One process alone needs none of it.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import secrets
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

from throughtime.errors import EndedElsewhere, RunError, ThroughtimeError
from throughtime.tasks.task import Batch

distributed: Any = torch.distributed  # it exports little to type checkers

_SOON = 10.0  # seconds, for processes that are there already


def add_halves(parts: range, made: Callable[[range], Tensor | None]) -> Tensor:
    """The sum of all parts by halves, (0 + 1) + (2 + 3).

    These sums are the same whoever made some of them before, and so are their bits.

    Args:
        parts: their numbers.
        made: the sum of some that follow each other, where it is there or can be made; always
            that of one alone. The first part is asked for last.
    """
    whole = made(parts)
    if whole is not None:
        return whole
    left, right = _halves(parts)
    right_sum = add_halves(right, made)
    return add_halves(left, made) + right_sum


def share_out(parts: range, size: int) -> list[tuple[int, range]]:
    """The largest of those sums that one process makes alone, with its number, in their order.

    Each of `size` processes has as many parts of a batch as another, or one more or less.
    """

    def cover(few: range) -> list[tuple[int, range]]:
        first, last = (one * size // len(parts) for one in (few[0], few[-1]))
        if first == last:
            return [(first, few)]
        left, right = _halves(few)
        return cover(left) + cover(right)

    return cover(parts)


def _halves(parts: range) -> tuple[range, range]:
    middle = len(parts) // 2
    return parts[:middle], parts[middle:]


class Exchange(ABC):
    """What makes the sums of each process the whole sum, in all of them.

    Args:
        parts: of the sum.
        rank, size: number of this process, and how many there are.
        empty: of the form of a sum, a row of as many numbers for each process.
    """

    def __init__(self, parts: int, rank: int, size: int, empty: Tensor) -> None:
        self.rank, self.size, self.empty = rank, size, empty
        self.sums = share_out(range(parts), size)
        self.form = parts, empty.shape, empty.dtype
        self._parts = range(parts)

    def add_up(self, make: Callable[[range], Tensor | None]) -> list[Tensor]:
        """The sums that this process makes alone; `make` is as in `add_halves`."""
        sums = [few for rank, few in self.sums if rank == self.rank]
        return [add_halves(few, make) for few in reversed(sums)][::-1]

    def add(self, slices: Tensor) -> Tensor:
        """The slice of the whole sum, from that of each sum."""
        by_parts = dict(zip((few for _, few in self.sums), slices, strict=True))
        return add_halves(self._parts, by_parts.get)

    @abstractmethod
    def whole(self, made: Sequence[Tensor]) -> Tensor:
        """The whole sum, from what this process has made and the others have.

        It may be written to, until the next.

        Raises:
            RuntimeError: another process is gone.
        """

    def close(self) -> None:  # noqa: B027  # most have nothing to close
        """Leaves the others, who see it."""


class Messages(Exchange):
    """Sums that are sent: each process gets a slice of all of them, and sends the sum of those."""

    def whole(self, made: Sequence[Tensor]) -> Tensor:
        size, width = self.size, len(self.empty) // self.size
        rows = [one.view(size, 1, width) for one in made] or [self.empty.new_empty(size, 0, width)]
        sent = torch.cat(rows, 1) if len(rows) > 1 else rows[0]  # one is not copied
        counts = [sum(rank == other for other, _ in self.sums) for rank in range(size)]
        slices = self.empty.new_empty(len(self.sums), width)
        distributed.all_to_all_single(
            slices, sent.flatten(0, 1), output_split_sizes=counts,
            input_split_sizes=[len(made)] * size,
        )  # fmt: skip
        whole: Tensor = self.empty.new_empty(size, width)
        distributed.all_gather([*whole], self.add(slices))
        return whole.flatten()


class SharedMemory(Exchange):
    """Sums in memory that all processes see: a row each, and one for the whole.

    Processes meet when all rows are there, and when all slices are; so nothing is written that
    another one still reads.

    Args:
        form: of an `Exchange`.
        memory: the rows.
        others: a connection to each other process.
    """

    def __init__(self, *form: Any, memory: Tensor, others: Sequence[socket.socket]) -> None:
        super().__init__(*form)
        self._others, self._whole, self._copy = others, memory[-1], memory[-1].clone()
        numbered = zip(memory[:-1], self.sums, strict=True)
        self._rows = [row for row, (rank, _) in numbered if rank == self.rank]
        self._slices = memory[:-1].tensor_split(self.size, 1)[self.rank]
        self._slice = self._whole.tensor_split(self.size)[self.rank]

    def whole(self, made: Sequence[Tensor]) -> Tensor:
        for row, one in zip(self._rows, made, strict=True):
            row.copy_(one)
        self._meet()
        self._slice.copy_(self.add(self._slices))
        self._meet()
        return self._copy.copy_(self._whole)

    def _meet(self) -> None:
        """Waits for the others; a word from each is quicker than what gloo has."""
        try:
            for other in self._others:
                other.send(b".")
            here = [other.recv(1) for other in self._others]
        except OSError as error:
            raise RuntimeError("a process is gone") from error
        if not all(here):
            raise RuntimeError("a process is gone")

    def close(self) -> None:
        for other in self._others:
            other.close()


def open_exchange(
    parts: int, rank: int, size: int, empty: Tensor, name: str, silence: float
) -> Exchange:
    """Over shared memory, or messages where the system has none; all processes call it together.

    Args:
        parts, rank, size, empty: as of an `Exchange`.
        name: that no other exchange of this machine has.
        silence: seconds to wait for another process.
    """
    shape = len(share_out(range(parts), size)) + 1, len(empty)
    with ExitStack() as opened:
        others, memory = list[socket.socket](), None
        with suppress(OSError, AttributeError):  # other systems have no such names
            others = _connect(rank, size, name, opened)
            memory = _share(rank, others, shape[0] * empty.nbytes)
        seen = torch.tensor(memory is not None, dtype=torch.int)
        distributed.all_reduce(seen)
        if memory is None or seen < size:
            return Messages(parts, rank, size, empty)
        opened.pop_all()
    for other in others:
        other.settimeout(silence)
    rows = torch.frombuffer(memory, dtype=empty.dtype).view(shape)
    return SharedMemory(parts, rank, size, empty, memory=rows, others=others)


def _connect(rank: int, size: int, name: str, opened: ExitStack) -> list[socket.socket]:
    """A connection to each other process of this machine, in their order."""
    server = socket.socket(socket.AF_UNIX)
    with server:
        server.settimeout(_SOON)
        try:
            server.bind(f"\0{name}-{rank}")
            server.listen(size)
        finally:  # the others wait here, whatever happened
            distributed.barrier()
        places: dict[int, socket.socket] = {}
        for other in range(rank):
            places[other] = opened.enter_context(socket.socket(socket.AF_UNIX))
            places[other].settimeout(_SOON)
            places[other].connect(f"\0{name}-{other}")
            places[other].send(rank.to_bytes(4, "big"))
        for _ in range(rank + 1, size):
            one = opened.enter_context(server.accept()[0])
            one.settimeout(_SOON)
            places[int.from_bytes(one.recv(4), "big")] = one
    return [places[other] for other in sorted(places)]


def _share(rank: int, others: Sequence[socket.socket], size: int) -> mmap.mmap:
    """Memory of so many bytes, without a name, which the first process makes."""
    if rank == 0:
        handle = os.memfd_create("throughtime")
        os.ftruncate(handle, size)
        for other in others:
            socket.send_fds(other, [b"."], [handle])
    else:
        handles = socket.recv_fds(others[0], 1, 1)[1]
        if not handles:
            raise OSError("the first process is gone")
        handle = handles[0]
    try:
        return mmap.mmap(handle, size)
    finally:
        os.close(handle)


SILENCE = timedelta(minutes=30)  # the first process may score as long as this
LAST_WORDS = 5.0  # seconds, for one that failed to say why
FAILURE, SUPERVISED, RESUME, _TOLD = "failure", "supervised", "resume", "told"

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
                self._exchange = open_exchange(*form, name, SILENCE.total_seconds())
        return self._exchange

    def agree(self, batches: Sequence[Batch]) -> None:
        """Raises RunError in all processes where one sees other data than the first."""
        if self.size == 1:
            return
        each = torch.zeros(self.size, dtype=torch.int64)
        each[self.rank] = _digest(batches)
        with self._told_when_lost():
            each = self._fabric.all_reduce(each, reduce_op="sum")
        others = [str(rank) for rank, one in enumerate(each.tolist()) if one != each[0]]
        if others:
            raise RunError(
                f"all processes must see the same data, and {name_ranks(others)} not see what "
                "process 0 does; give all of them the same files and versions"
            )

    def leave_resume(self, words: Sequence[str]) -> None:
        """Leaves the process that launched these, if one did, the command line that goes on."""
        if self._store is not None:
            self._store.set(RESUME, "\0".join(words))

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


def name_ranks(ranks: Sequence[str]) -> str:
    if len(ranks) == 1:
        return f"process {ranks[0]} does"
    return f"processes {', '.join(ranks[:-1])} and {ranks[-1]} do"


def _digest(batches: Sequence[Batch]) -> int:
    """63 bits of a hash over tensors."""
    digest = hashlib.sha256()
    for tensor in (tensor for batch in batches for tensor in batch):
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return int.from_bytes(digest.digest()[:8], "big") >> 1
