"""What the words of a region's argument block are: from shapes, and from a call's tensors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from throughtime.backends.call import Call
from throughtime.backends.cpu.look import seen
from throughtime.backends.cpu.rows import Extent, Rows, full_rows
from throughtime.backends.cpu.shape import Shape
from throughtime.backends.cpu.sizes import zeros
from throughtime.backends.cpu.template import Given, Template, Word
from throughtime.compiler.llvm import threads

ROW_WORDS = ("rows", "offset", "order")
"""In the order of `Rows.addresses`."""


def common_words(shape: Shape, **more: Word) -> dict[str, Word]:
    """The common part of the block."""
    plan, code, rows = shape.plan, shape.code, shape.rows
    runtime = threads.runtime() if shape.team.threads > 1 else None
    tiles, heights, columns = (
        v.buffer_info()[0] for v in (code.tiles.rows, code.tiles.heights, code.tiles.columns)
    )
    found: dict[str, Word] = {
        "tiles": tiles, "heights": heights, "columns": columns,
        "column_widest": code.tiles.column_widest, "D": shape.D, "T": rows.T, "H": shape.H,
        "I": shape.I, "H_row": shape.H_row, "I_row": shape.I_row, "sums": len(plan.sums),
        "out": shape.widths.out, "with_a": len(plan.with_a), "last_u": len(plan.last),
        "own_plane": rows.B * shape.H_row,
        "states": len(plan.state_names), "vectors": len(plan.vectors), "panel": shape.panel,
        "chunks": shape.team.chunks, "members": shape.team.members,
        "zeros": zeros(max(shape.H_row, shape.I_row)),
        "saved_row": plan.saved_size(shape.units) * shape.H_row,
        "state_plane": rows.B * shape.H_row,
        "x": Given("x"), "y": Given("y"),
        "inputs_row": len(plan.lines) * shape.H_row,
    }  # fmt: skip
    if runtime:
        found |= {
            "thread": runtime.omp_get_thread_num,
            "team": runtime.omp_get_num_threads,
            "yield": runtime.sched_yield,
            "sleep": runtime.usleep,
        }
    return found | more


def direction_words(template: Template, shape: Shape, d: int) -> dict[str, Word]:
    """What forward and backward have in common of one direction."""
    plan = shape.plan
    names = {"W": "weight_ih", "W_bias": "bias_ih", "U_bias": "bias_hh"}
    matrices = range(len(shape.widths.shapes))
    states = range(len(plan.state_names))
    return {
        **{word: Given(f"{name} {d}") for word, name in names.items()},
        "reverse": d,
        "y_first": d * shape.widths.out * shape.code.kind.bytes,
        "matrices": template.list_of([Given(f"matrix{m} {d}") for m in matrices]),
        "own": template.list_of([Given(f"{name} {d}") for name in plan.vectors]),
        "gate_a": template.list_of(shape.gates[0]),
        "gate_u": template.list_of(shape.gates[1]),
        "start": template.list_of([Given(f"start{s} {d}") for s in states]),
        "saved": Given(f"saved {d}"),
        "inputs": Given(f"inputs {d}"),
        "restarts": Given(f"restarts {d}"),
        "records": Given(f"records {d}"),
    }


def shared_lists(template: Template, shape: Shape) -> None:
    """Lists that the common part points to."""
    size = shape.code.kind.size
    template.set_common("state_widths", template.list_of(shape.widths.states))
    template.set_common("unit_widths", template.list_of(shape.widths.units))
    template.set_common("flat", template.list_of([v * size for v in range(8)]))
    _set_rows(template, shape.rows, shape.team.chunks)
    template.set_counters(1 + shape.D * shape.team.chunks)
    set_steps(template, "x", shape, shape.x)
    set_steps(template, "y", shape, shape.y)


def _set_rows(template: Template, rows: Extent, chunks: int) -> None:
    """Which rows each step and each chunk has; of ragged ones, each call says."""
    if rows.ragged:
        for name in (*ROW_WORDS, "bounds"):
            template.set_common(name, Given(name))
        return
    found = full_rows(rows.T, rows.B)
    template.hold(found)
    for name, address in zip(ROW_WORDS, found.addresses, strict=True):
        template.set_common(name, address)
    template.set_common("bounds", template.list_of(found.bounds(chunks)))


def set_steps(template: Template, name: str, shape: Shape, strides: tuple[int, int]) -> None:
    """Bytes to each step of a tensor, and from row to row; of packed rows, each call says."""
    if shape.packed:
        template.set_common(f"{name}_steps", Given(f"{name}_steps"))
    else:
        steps = np.arange(shape.rows.T, dtype=np.int64) * strides[0]
        template.set_array(f"{name}_steps", steps)
    template.set_common(f"{name}_row", strides[1])


class RaggedWords:
    """What of a ragged call's words follows from its lengths; lives as long as the call.

    Args:
        rows: of the call.
        chunks: of them.
        packed: bytes from row to row of each packed tensor by name; empty for padded ones.
    """

    def __init__(self, rows: Rows, chunks: int, packed: Mapping[str, int]) -> None:
        self._rows = rows  # its arrays are read, and nobody else may hold it
        self._steps = {f"{name}_steps": rows.offset * row for name, row in packed.items()}
        self.addresses = dict(zip(ROW_WORDS, rows.addresses, strict=True))
        self.addresses["bounds"] = rows.bounds(chunks).buffer_info()[0]
        self.addresses |= {name: v.ctypes.data for name, v in self._steps.items()}


def start_of(call: Call) -> tuple[Tensor, ...] | None:
    """Where the call starts, whole lines each; None for zeros."""
    if call.state is None and call.initial is None:
        return None
    D, B, dtype = call.directions, call.rows, call.x.dtype
    names, widths = call.cell.state_names, call.cell.widths(call.hidden_size)
    given = zip(names, call.start(), widths, strict=True)
    return tuple(seen(f"state {name}", v, (D, B, w), dtype) for name, v, w in given)
