"""The sum of what several processes have made, by halves, so that its bits hang on the parts alone.

Each process makes some parts. What the others made it sees in memory that the processes of one
machine share, or is sent over the network; either way it adds up one slice of the sum for all.
"""

from __future__ import annotations

import mmap
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor

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

    Args:
        parts: of a batch; each process has as many as another, or one more or less.
        size: how many processes.
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
        own = [few for rank, few in self.sums if rank == self.rank]
        return [add_halves(few, make) for few in reversed(own)][::-1]

    def add(self, slices: Tensor) -> Tensor:
        """The slice of the whole sum, from that of each sum."""
        found = dict(zip((few for _, few in self.sums), slices, strict=True))
        return add_halves(self._parts, found.get)

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
