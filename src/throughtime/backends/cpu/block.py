"""The argument block of a call: worked out once a shape, then only addresses are written in.

Regions run at once, or wait for each other in a queue: all are prepared first, then run back to
back. A region of some milliseconds leaves the caches full of its own numbers, and Python that
prepares the next one then takes several times as long as right after the preparation of another.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from throughtime.backends.cpu.active_rows import ROW_WORDS, Extent, full_rows
from throughtime.backends.cpu.memory import Slab, give_back, take
from throughtime.backends.cpu.schedule import Team, zeros
from throughtime.backends.cpu.shape import Shape
from throughtime.compiler.llvm.abi import COMMON, DIRECTION
from throughtime.compiler.runtime import threads

KEPT_BYTES: Final = 128 * 1024
"""The largest arena that only calls of its shape use."""


class InArena(int):
    """A place in the arena, counted from its start."""


class InBlock(int):
    """A place in the block itself, counted from its start."""


class CallAddress(str):
    """A word that each call writes: the address of one of its tensors, by name."""


Word = int | InArena | InBlock | CallAddress


class Arena:
    """Memory that machine code works in, laid out before it is taken."""

    def __init__(self) -> None:
        self.bytes = 0

    def reserve(self, bytes: int) -> InArena:
        """A place for so many bytes."""
        place = InArena(self.bytes)
        self.bytes += -(-bytes // 64) * 64
        return place

    def reserve_all(self, sizes: Mapping[str, int]) -> dict[str, Word]:
        """A place for each name."""
        return {name: self.reserve(bytes) for name, bytes in sizes.items()}


class CallBlock:
    """The words of one call, and the arena whose addresses are in them.

    Attributes:
        words: the block.
        address: of it.
        arena: what the call works in, if it has one now.
        weights: addresses of weights that are among the words, if some stay there.
    """

    def __init__(self, template: Template) -> None:
        self.weights: list[int] = []
        self.words = array("q", template.words)
        self.address = self.words.buffer_info()[0]
        for place in template.in_block:
            self.words[place] += self.address
        self.arena: Slab | None = None
        self._start = 0
        self._held: list[Any] = []

    def hold(self, read: Any) -> None:
        """Keep alive what words point to, as long as these are."""
        self._held.append(read)

    def work_in(self, template: Template, arena: Slab) -> None:
        """Have this arena; its addresses are there already if it is the one of the last call."""
        self.arena, start = arena, arena.address
        if start != self._start:
            for place in template.in_arena:
                self.words[place] += start - self._start
            self._start = start


class Template:
    """The words of every call of one shape.

    Words are used again by the next call of the shape, and so is small memory: to take it and to
    write the words anew costs more than a small layer computes.

    Attributes:
        arena_bytes: of the memory that a call takes.
        words: as they are before a call.
        in_arena: places of words that count from the arena's start.
        in_block: places of words that count from the block's start.
        counters: places of words that are 0 before each call.
    """

    def __init__(self, arena: Arena, common: Mapping[str, Word], D: int) -> None:
        self.arena_bytes = arena.bytes
        self.words = array("q", bytes(8 * (len(COMMON) + D * len(DIRECTION))))
        self.in_arena: list[int] = []
        self.in_block: list[int] = []
        self._given: list[tuple[int, str]] = []
        self._held: list[Any] = []
        self._blocks: list[CallBlock] = []
        self._caller: Callable[[int], None] | None = None
        self.counters = range(0)
        assert common.keys() <= set(COMMON), common.keys() - set(COMMON)
        for i, name in enumerate(COMMON):
            self._set(i, common.get(name, 0))

    def _set(self, place: int, word: Word) -> None:
        if isinstance(word, CallAddress):
            self._given.append((place, word))
            return
        self.words[place] = word
        if isinstance(word, InArena):
            self.in_arena.append(place)
        elif isinstance(word, InBlock):
            self.in_block.append(place)

    def set_direction(self, d: int, values: Mapping[str, Word]) -> None:
        """The part of one direction; what is not named is 0."""
        assert values.keys() <= set(DIRECTION), values.keys() - set(DIRECTION)
        for i, name in enumerate(DIRECTION):
            self._set(len(COMMON) + d * len(DIRECTION) + i, values.get(name, 0))

    def set_common(self, name: str, word: Word) -> None:
        """One word of the common part."""
        self._set(COMMON.index(name), word)

    def hold(self, read: Any) -> None:
        """Keep alive what words point to, as long as the template is."""
        self._held.append(read)

    def set_counters(self, count: int) -> None:
        """The barriers' counters, each in a line of the cache; every call begins them at zero."""
        self.counters = range(len(self.words), len(self.words) + count * 8, 8)
        self.set_common("counter", self.list_of([0] * (8 * count)))

    def places(self) -> dict[str, int]:
        """Where each word stands that a call writes, by name."""
        return {name: place for place, name in self._given}

    def word(self, name: str) -> int:
        """A word of the common part that is the same for every call."""
        return self.words[COMMON.index(name)]

    def list_of(self, values: Sequence[Word]) -> InBlock:
        """Numbers that a word points to."""
        place = len(self.words)
        self.words.extend([0] * max(1, len(values)))
        for i, value in enumerate(values):
            self._set(place + i, value)
        return InBlock(8 * place)

    def caller(self, region: int, team: Team) -> Callable[[int], None]:
        """What calls the region; it and its team are those of the template's shape."""
        if self._caller is None:
            self._caller = threads.caller(region, *team.how)
        return self._caller

    def run(self, region: int, team: Team, addresses: Mapping[str, int]) -> None:
        """Call the region with these tensors."""
        try:
            block = self._blocks.pop()
        except IndexError:  # the first call, or others are using what there is
            block = CallBlock(self)
        if block.arena is None:
            block.work_in(self, take(self.arena_bytes))
        self.write(block, addresses)
        self.caller(region, team)(block.address)
        if block.arena is not None and (self.arena_bytes > KEPT_BYTES or self._blocks):
            give_back(block.arena)
            block.arena = None
        if not self._blocks:
            self._blocks.append(block)

    def write(self, block: CallBlock, addresses: Mapping[str, int]) -> None:
        """Put the addresses of a call's tensors into its words."""
        words = block.words
        for place, name in self._given:
            words[place] = addresses[name]
        for place in self.counters:
            words[place] = 0


def common_words(shape: Shape, **more: Word) -> dict[str, Word]:
    """The common part of the block."""
    plan, code, rows = shape.plan, shape.code, shape.rows
    tiles, heights, columns = (
        v.buffer_info()[0] for v in (code.tiles.rows, code.tiles.heights, code.tiles.columns)
    )
    words: dict[str, Word] = {
        "tiles": tiles, "heights": heights, "columns": columns,
        "column_widest": code.tiles.column_widest,
        "line_tiles": code.tiles.lines.buffer_info()[0], "D": shape.D, "T": rows.T, "H": shape.H,
        "I": shape.I, "H_row": shape.H_row, "I_row": shape.I_row, "sums": len(plan.sums),
        "out": shape.widths.out, "with_a": len(plan.with_a), "last_u": len(plan.last),
        "operand_plane": rows.B * shape.H_row,
        "states": len(plan.state_names), "unit_parameters": len(plan.vectors),
        "panel": shape.panel, "widest": shape.widest,
        "chunks": shape.team.chunks, "most_members": shape.team.members,
        "zeros": zeros(max(shape.H_row, shape.I_row)),
        "saved_row": plan.saved_size(shape.units) * shape.H_row,
        "state_plane": rows.B * shape.H_row,
        "x": CallAddress("x"), "y": CallAddress("y"),
        "inputs_row": len(plan.lines) * shape.H_row,
    }  # fmt: skip
    return words | _team_words(shape.team) | more


def _team_words(team: Team) -> dict[str, Word]:
    """What threads need to know of each other."""
    runtime = threads.runtime() if team.threads > 1 else None
    if runtime is None:
        return {}
    return {
        "thread_number": runtime.omp_get_thread_num,
        "team_size": runtime.omp_get_num_threads,
        "yield": runtime.sched_yield,
        "sleep": runtime.usleep,
        "processor": runtime.sched_getcpu,
        "get_affinity": runtime.sched_getaffinity,
        "set_affinity": runtime.sched_setaffinity,
    }


def direction_words(template: Template, shape: Shape, d: int) -> dict[str, Word]:
    """What forward and backward have in common of one direction."""
    plan = shape.plan
    names = {"W": "weight_ih", "W_bias": "bias_ih", "U_bias": "bias_hh"}
    matrices = range(len(shape.widths.shapes))
    states = range(len(plan.state_names))
    return {
        **{word: CallAddress(f"{name} {d}") for word, name in names.items()},
        "reverse": d,
        "y_first": d * shape.widths.out * shape.code.kind.bytes,
        "matrices": template.list_of([CallAddress(f"matrix{m} {d}") for m in matrices]),
        "unit_parameters_at": template.list_of(
            [CallAddress(f"{name} {d}") for name in plan.vectors]
        ),
        "gate_a": template.list_of(shape.gates[0]),
        "gate_u": template.list_of(shape.gates[1]),
        "start": template.list_of([CallAddress(f"start{s} {d}") for s in states]),
        "saved": CallAddress(f"saved {d}"),
        "inputs": CallAddress(f"inputs {d}"),
        "resets": CallAddress(f"resets {d}"),
        "traces": CallAddress(f"traces {d}"),
    }


def shared_lists(template: Template, shape: Shape) -> None:
    """Lists that the common part points to."""
    size, words = shape.code.kind.size, shape.widths.units + shape.numbers
    template.set_common("state_widths", template.list_of(shape.widths.states))
    template.set_common("unit_widths", template.list_of(words))
    template.set_common("flat", template.list_of([v * size for v in range(8)]))
    _set_rows(template, shape.rows, shape.team.chunks)
    seats = shape.team.threads if shape.team.threads > 1 else 0
    template.set_counters(1 + shape.D * shape.team.chunks + seats)
    set_steps(template, "x", shape, shape.x)
    set_steps(template, "y", shape, shape.y)


def _set_rows(template: Template, rows: Extent, chunks: int) -> None:
    """Which rows each step and each chunk has; of ragged ones, each call says."""
    if rows.ragged:
        for name in (*ROW_WORDS, "bounds"):
            template.set_common(name, CallAddress(name))
        return
    all_rows = full_rows(rows.T, rows.B)
    template.hold(all_rows)
    for name, address in zip(ROW_WORDS, all_rows.addresses, strict=True):
        template.set_common(name, address)
    template.set_common("bounds", template.list_of(all_rows.bounds(chunks)))


def set_steps(template: Template, name: str, shape: Shape, strides: tuple[int, int]) -> None:
    """Bytes to each step of a tensor, and from row to row; of packed rows, each call says."""
    if shape.packed:
        template.set_common(f"{name}_steps", CallAddress(f"{name}_steps"))
    else:
        steps = np.arange(shape.rows.T, dtype=np.int64) * strides[0]
        template.hold(steps)
        template.set_common(f"{name}_steps", steps.ctypes.data)
    template.set_common(f"{name}_row", strides[1])


_Finish = Callable[[], object] | None

MOST: Final = 64
"""Regions that wait, each with some kilobytes of words and what it holds."""


class Queue:
    """Regions of segments of one call, in the order in which they were put.

    Those of one template work in the same arena, where the first of them packs the weights for all.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[Callable[[int], None], CallBlock, _Finish, Any]] = []
        self._arenas: dict[Template, Slab] = {}

    def put(
        self, template: Template, region: int, team: Team, addresses: Mapping[str, int],
        finish: _Finish, held: Any,
    ) -> None:  # fmt: skip
        """Let a region wait.

        Args:
            template: of its words.
            region, team, addresses: as `Template.run` takes them.
            finish: called after the region.
            held: what must live until then.
        """
        block = CallBlock(template)
        if template in self._arenas:
            block.words[COMMON.index("packed")] = 1
        else:
            self._arenas[template] = take(template.arena_bytes)
        block.work_in(template, self._arenas[template])
        template.write(block, addresses)
        self._waiting.append((template.caller(region, team), block, finish, held))
        if len(self._waiting) >= MOST:
            self.run()

    def run(self) -> None:
        """Run all that waits."""
        waiting, self._waiting = self._waiting, []
        for call, block, finish, _ in waiting:
            call(block.address)
            if finish is not None:
                finish()
        while self._arenas:
            give_back(self._arenas.popitem()[1])


def carry(
    queue: Queue | None, template: Template, region: int, team: Team,
    addresses: Mapping[str, int], finish: _Finish = None, *held: Any,
) -> None:  # fmt: skip
    """Run a region, or let it wait where there is a queue; arguments as `Queue.put` has them."""
    if queue is not None:
        queue.put(template, region, team, addresses, finish, held)
        return
    template.run(region, team, addresses)
    if finish is not None:
        finish()
