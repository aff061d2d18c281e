"""The backward pass of a call in one region of machine code."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from throughtime.backends.call import Call, Gradients
from throughtime.backends.cpu.active_rows import Rows, rows_of
from throughtime.backends.cpu.block import (
    Arena,
    CallAddress,
    Queue,
    Template,
    Word,
    carry,
    common_words,
    direction_words,
    set_steps,
    shared_lists,
)
from throughtime.backends.cpu.gradients import (
    GradientSums,
    Room,
    by_inputs,
    by_weights,
    by_x,
    give_norms,
    room_for,
)
from throughtime.backends.cpu.look import check_input, checked, checked_lines
from throughtime.backends.cpu.operands import GivenWords, Traces, by_initial
from throughtime.backends.cpu.products import (
    lies_backward,
    lying_panels,
    packed_backward,
    runs_backward,
    set_runs,
    threads_apart,
)
from throughtime.backends.cpu.schedule import (
    FAR_BYTES,
    backward_team,
    part_address,
    plan_of,
    steps_in_block,
    strides_of,
    target,
)
from throughtime.backends.cpu.shape import Key, Shape, key_of, shape_of
from throughtime.compiler.llvm.abi import COLUMN_ROWS, OWN, WIDEST, part_sizes
from throughtime.compiler.llvm.library import backward_code
from throughtime.compiler.plan import Plan, make_plan
from throughtime.compiler.sweeps import lines_backward


class Asked(NamedTuple):
    """What the words of a call's backward pass follow from, besides its key.

    Attributes:
        d_y: of the gradient by y, bytes from step to step and from row to row.
        d_y_first: bytes from one direction to the next.
        x, weights, start: whether their gradients are wanted.
        adds: whether those by weights are added to others.
    """

    d_y: tuple[int, int]
    d_y_first: int
    x: bool
    weights: bool
    start: bool
    adds: bool

    @property
    def wanted(self) -> dict[str, int]:
        """Words that say what is asked for."""
        wants = {"wants_x": self.x, "wants_weights": self.weights, "wants_start": self.start}
        return {name: int(v) for name, v in (wants | {"adds": self.adds}).items()}

    @property
    def given(self) -> tuple[str, ...]:
        """Words of a direction that are addresses of what the call makes."""
        chains = ("d_bias",) if self.adds else ()
        return ("d_x", "d_inputs", "norms", *chains)


LEAST_ROWS, LEAST_ROWS_FAR = 128, 384
"""Rows of a block, so that sums over them are worth reading and writing the weight gradients; and
where no second-level cache holds these."""


def run(
    call: Call, kept: Sequence[Tensor], d_results: Sequence[Tensor | None], wants_x: bool,
    wants_weights: bool, sums: GradientSums | None = None, d_x: Tensor | None = None,
    queue: Queue | None = None,
) -> Gradients:  # fmt: skip
    """Gradients by x, by the weights where they are wanted, and by the state at the start.

    With a queue only those by the state at the start are given, and there once the queue has run.
    """
    call = check_input(call)
    if call.clip is not None:
        call = call._replace(clip=checked("clip", call.clip, (), call.x.dtype))
    plan, rows = plan_of(call), rows_of(call)
    room = room_for(call, plan, rows, wants_x, wants_weights, sums, d_x)

    def finish() -> Tensor | None:
        give_norms(call, rows, room.norms)
        x = by_x(call, rows, room.x)
        return x if x is None or d_x is None or room.x_is(d_x) else d_x.copy_(x)

    if rows.B:
        done = room.norms is None and (room.x is None or room.x_is(d_x))
        last = None if queue is None or done else finish
        _carry(call, plan, rows, kept, d_results, room, queue, last)
    if queue is not None:
        return Gradients(None, (), {}, tuple(room.start))
    weights = tuple(by_weights(call, room, d) for d in range(call.directions))
    inputs, initial = by_inputs(call, plan, rows, room.inputs), by_initial(call, room.initial)
    return Gradients(finish(), weights, inputs, tuple(room.start), initial)


def _carry(
    call: Call, plan: Plan, rows: Rows, kept: Sequence[Tensor],
    d_results: Sequence[Tensor | None], room: Room, queue: Queue | None,
    finish: Callable[[], object] | None,
) -> None:  # fmt: skip
    y, saved = kept
    widths, D, dtype = call.cell.widths(call.hidden_size), call.directions, call.x.dtype
    y = checked_lines("y", y, (*call.x.shape[:-1], D, widths[0]), dtype)
    (d_y, *d_traces), finals = _gradients(y, len(widths), d_results)
    packed = call.batch_sizes is not None
    team = backward_team(plan, call, rows.N, rows.B)
    strides = (0, 0) if d_y is None else strides_of(d_y, packed)
    first = 0 if d_y is None else d_y.stride(-2) * d_y.element_size()
    wanted = room.x is not None, bool(room.W), True
    asked = Asked(strides, first, *wanted, room.chains is not None)
    template, shape = template_for(key_of(call, rows, team, y), asked)
    N = len(call.x) if packed else rows.T * rows.B
    saved = checked("what the forward pass kept", saved, (D, N, *shape.saved), dtype)
    packed_rows = shape.packed_rows(d_y=strides[1])
    given = GivenWords(call, shape, rows, packed_rows, room.initial)
    traces = Traces(d_traces, call.directions, packed)
    addresses = given.addresses | traces.addresses | _addresses(call, shape, y, saved, finals, room)
    addresses["d_y"] = int(template.word("zeros")) if d_y is None else d_y.data_ptr()
    held = call, y, saved, d_y, finals, room, given, traces
    carry(queue, template, shape.code.region, team, addresses, finish, *held)


def _gradients(
    y: Tensor, states: int, d_results: Sequence[Tensor | None]
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Those by sequences, of which each line's units lie side by side, and by final states."""
    grads, dtype, count = list(d_results), y.dtype, len(d_results) - states
    for i, v in enumerate(d_results):
        if v is not None:
            check = checked_lines if i < count else checked
            grads[i] = check("a gradient", v, None, dtype)  # autograd has seen to its shape
    return grads[:count], grads[count:]


def _addresses(
    call: Call, shape: Shape, y: Tensor, saved: Tensor, finals: Sequence[Tensor | None], room: Room
) -> dict[str, int]:
    """Addresses of what the backward pass reads and writes besides the call's own tensors."""
    addresses = {"y": y.data_ptr(), "clip": 0 if call.clip is None else call.clip.data_ptr()}
    tensors = saved, room.x, room.inputs, room.chains, room.norms, *finals, *room.start
    for d, words in enumerate(shape.gradient_words):
        addresses |= words.nothing
        addresses |= zip(words.tensors, [part_address(v, d) for v in tensors], strict=True)
        if room.W:
            matrices = room.W[d], *room.U[d]
            addresses |= zip(words.matrices, [v.data_ptr() for v in matrices], strict=True)
            for name, v in room.others[d].items():
                addresses[words.others[name]] = v.data_ptr()
    return addresses


@functools.lru_cache(maxsize=128)
def template_for(key: Key, asked: Asked) -> tuple[Template, Shape]:
    """The words of a call, and its shape."""
    plan = make_plan(key.cell, key.masks)
    shape = shape_of(key, backward_code(plan, key.bytes, target()))
    lies = lies_backward(shape)
    _need_tiles(shape, asked, lies)
    arena = Arena()
    block, sizes = _blocks(shape, asked.x, lies)
    unpadded = block >= shape.rows.T and not asked.adds
    padded = _padded_matrices(shape, unpadded) if asked.weights and not asked.adds else {}
    copies = 1 if asked.adds else threads_apart(shape, lies, asked.x, asked.start)
    places, own_size = _reserve(arena, sizes | padded, shape.D, copies)
    side = _side(shape, block, lies)
    common = common_words(
        shape, block_steps=block, operand_block_plane=block * shape.rows.B * shape.H_row,
        scratch_size=side, scratch=arena.reserve(shape.team.threads * side),
        d_y=CallAddress("d_y"), reads_y=int(plan.reads_output), unpadded=int(unpadded),
        clip=CallAddress("clip"), own_size=own_size, **asked.wanted, **lies,
    )  # fmt: skip
    template = Template(arena, common, max(shape.D, copies))
    shared_lists(template, shape)
    set_runs(template, runs_backward(shape))
    set_steps(template, "d_y", shape, asked.d_y)
    for d in range(shape.D):
        growing = {name: places[d].pop(name) for name in padded}
        words = direction_words(template, shape, d) | places[d]
        words |= _direction(template, shape, d, growing)
        words["d_y_first"] = d * asked.d_y_first
        words |= {name: CallAddress(f"{name} {d}") for name in asked.given}
        template.set_direction(d, words)
    return template, shape


def _reserve(
    arena: Arena, sizes: Mapping[str, int], D: int, copies: int
) -> tuple[list[dict[str, Word]], int]:
    """Places of each direction, and bytes from one copy of those in OWN to the next, if any."""
    own = {name: sizes[name] for name in OWN}
    shared = {name: bytes for name, bytes in sizes.items() if name not in own}
    places = [arena.reserve_all(shared) for _ in range(D)]
    begin = arena.bytes
    places = [one | arena.reserve_all(own) for one in places]
    size = arena.bytes - begin
    arena.reserve((copies - 1) * size)
    return places, size if copies > 1 else 0


def _side(shape: Shape, block: int, lies: Mapping[str, int]) -> int:
    """Bytes that a thread works in: a tile's rows side by side, or a panel, read from any of its
    columns on."""
    rows, size = shape.rows.B, shape.code.kind.size
    beside = block * rows * max(COLUMN_ROWS[0] * shape.code.kind.bytes, size)
    return max(beside, (rows * max(lying_panels(shape, lies), default=0) + 1) * size)


def _padded_matrices(shape: Shape, unpadded: bool) -> dict[str, int]:
    """Bytes of the matrices' gradients whose lines do not end with a vector, by name; `unpadded`:
    but for those of several panels."""
    most = shape.code.tiles.column_widest * shape.code.kind.lanes
    gates = 1 + max(shape.gates[0], default=-1)
    sizes = {"d_W": (gates * shape.H, shape.I)}
    sizes |= {f"d_matrix{m}": size for m, size in enumerate(shape.widths.shapes)}
    rows = {name: (lines, shape.row(K)) for name, (lines, K) in sizes.items()}
    plain = {name: K * shape.code.kind.bytes for name, (_, K) in sizes.items()}
    return {
        name: n * row
        for name, (n, row) in rows.items()
        if row != plain[name] and not (unpadded and sizes[name][1] > most)
    }


def _direction(
    template: Template, shape: Shape, d: int, growing: Mapping[str, Word]
) -> dict[str, Word]:
    """Where the gradients of one direction go, and where those by its states come from.

    Args:
        template, shape, d: of the call, and which direction.
        growing: where a padded gradient by a matrix grows before it goes there, by name.
    """
    plan = shape.plan
    biases = {"d_W_bias": f"d_bias_ih {d}", "d_U_bias": f"d_bias_hh {d}"}
    words: dict[str, Word] = {word: CallAddress(name) for word, name in biases.items()}
    parameters = [CallAddress(f"d_{name} {d}") for name in plan.vectors]
    words["d_unit_parameters_at"] = template.list_of(parameters)
    names = ["d_W", *(f"d_matrix{m}" for m in range(len(shape.widths.shapes)))]
    wanted = {name: CallAddress(f"{name} {d}") for name in names}
    grow = [growing.get(name, wanted[name]) for name in names]
    cut = [wanted[name] if name in growing else 0 for name in names]
    words |= {"d_W": grow[0], "d_matrices": template.list_of(grow[1:])}
    words |= {"d_W_cut": cut[0], "d_matrices_cut": template.list_of(cut[1:])}
    for name in ("d_final", "d_start"):
        lists = [CallAddress(f"{name}{s} {d}") for s in range(len(plan.state_names))]
        words[name] = template.list_of(lists)
    return words


def _need_tiles(shape: Shape, asked: Asked, lies: Mapping[str, int]) -> None:
    """Tiles for U^T and W^T, and for the sums over rows."""
    size, tiles = shape.code.kind.size, shape.code.tiles
    units = {shape.row(w) // size for w in (shape.widths.out, *shape.widths.sources)}
    inputs = shape.I_row // size
    every = units | {inputs} if asked.x else units
    rows = [part_sizes(n, WIDEST) for n in every]
    rows.append(lying_panels(shape, lies))
    columns = [part_sizes(n, tiles.column_widest) for n in units | {inputs}]
    tiles.need(set().union(*rows), set().union(*columns) if asked.weights else ())


def _blocks(shape: Shape, wants_x: bool, lies: Mapping[str, int]) -> tuple[int, dict[str, int]]:
    """Steps of a block, and bytes of what one direction works in."""
    plan, rows, H_row, I_row = shape.plan, shape.rows, shape.H_row, shape.I_row
    line = (len(plan.sums) + len(plan.vectors)) * H_row + shape.code.kind.size
    matrices = len(plan.with_a) * shape.H * I_row + shape.widths.recurrent * shape.code.kind.bytes
    least = LEAST_ROWS_FAR if matrices > FAR_BYTES else LEAST_ROWS
    block = steps_in_block(rows.T, rows.B * shape.D, line + I_row + 3 * H_row, least)
    count = block * rows.B
    return block, {
        "U_back": 0 if lies["U_lies"] else packed_backward(shape),
        "W_back": len(plan.with_a) * shape.H * I_row if wants_x and not lies["W_lies"] else 0,
        "unit_values": len(plan.vectors) * H_row,
        "d_state": len(plan.state_names) * rows.B * H_row,
        "direct": rows.B * H_row,
        "x_block": count * I_row,
        "old_block": count * H_row,
        "operand_block": len(plan.computed) * count * H_row,
        "d_operand_rows": (len(plan.computed) + lines_backward(plan)) * rows.B * H_row,
        "y_block": count * H_row if plan.reads_output else 0,
        "d_y_block": count * H_row,
        "d_sums": count * line,
        "d_bias": line,
    }
