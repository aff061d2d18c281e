"""Masks, resets and traced states of a call, as machine code reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from throughtime.backends.call import Call
from throughtime.backends.cpu.active_rows import Rows
from throughtime.backends.cpu.look import readable, seen
from throughtime.backends.cpu.schedule import part_address, strides_of, whole_vectors, widths_for
from throughtime.compiler.llvm.abi import RESETS, TRACE
from throughtime.compiler.passes import DROPOUT, NO_MASKS, Masks
from throughtime.compiler.plan import Plan, make_plan


def masks_of(call: Call) -> Masks:
    """Which masks a call has; most have none, and ask several times."""
    if call.recurrent_mask is None and call.zoneout is None:
        return NO_MASKS
    return Masks(call.recurrent_mask is not None, call.zoneout is not None)


def plan_of(call: Call) -> Plan:
    """The plan of a call that was not refused."""
    return make_plan(call.cell, masks_of(call), call.hidden_size)


def write_masks(call: Call, plan: Plan, rows: Rows, lines: Tensor) -> None:
    """The masks into (D, N, inputs and masks, units padded), in the order in which rows lie."""
    for k, name in enumerate(plan.mask_names, len(plan.inputs)):
        mask = _mask(call, name, rows)
        units = mask.shape[-1]
        if rows.N == rows.T * rows.B:
            lines.unflatten(1, (rows.T, rows.B))[:, :, :, k, :units] = mask
        else:  # after a row's end nothing is read
            places = torch.from_numpy(rows.lines)
            steps = places // rows.B if name != DROPOUT else torch.zeros_like(places)
            lines[:, :, k, :units] = mask[:, steps, places % rows.B]


def _mask(call: Call, name: str, rows: Rows) -> Tensor:
    """(D, T, B, units), of recurrent dropout (D, 1, B, units)."""
    D, B, dtype = call.directions, rows.B, call.x.dtype
    widths = call.cell.widths(call.hidden_size)
    if name == DROPOUT:
        assert call.recurrent_mask is not None
        return readable(name, call.recurrent_mask, (D, B, widths[0]), dtype).unsqueeze(1)
    assert call.zoneout is not None
    k = call.cell.state_names.index(name)
    mask = call.zoneout[k]
    dtype = torch.int16 if mask.dtype == torch.int16 else dtype
    return readable(f"zoneout of {name}", mask, (D, rows.T, B, widths[k]), dtype)


class Resets:
    """The resets of a call, of which those after a row's end are none.

    Args:
        call: with resets.
        rows: as the loops walk them.
        d_initial: (D, states, B, padded H) zeros, to which gradients there are added; or None.
    """

    def __init__(self, call: Call, rows: Rows, d_initial: Tensor | None = None) -> None:
        assert call.reset is not None
        there = seen("reset", call.reset, (rows.T, rows.B), torch.bool).numpy()
        if rows.N < rows.T * rows.B:
            there = there[:, rows.order] & rows.there
        self._initial = _initial(call)
        self._states = len(call.cell.state_names)
        self._d_initial = d_initial
        self._held: list[Any] = []
        self.addresses = {f"resets {d}": self._words(there, d) for d in range(call.directions)}

    def _words(self, there: np.ndarray, d: int) -> int:
        """The address of one direction's words."""
        T, B = there.shape
        before = np.zeros((T + 1, B), bool)
        if d:  # between t and t - 1: before the step that follows t in this direction
            before[1:-1] = there[:0:-1]
        else:
            before[:-1] = there
        places = np.flatnonzero(before)
        first = places.searchsorted(np.arange(T + 2) * B)
        initial = [part_address(v, d) for v in self._initial] or [0] * self._states
        words = {
            "first": self._keep(first), "reset_rows": self._keep(places % B),
            "initial": self._keep(initial),
            "d_initial": part_address(self._d_initial, d),
        }  # fmt: skip
        return self._keep([words[name] for name in RESETS])

    def _keep(self, numbers: Any) -> int:
        """The address of whole numbers, which live as long as this."""
        self._held.append(np.array(numbers, np.int64))
        return int(self._held[-1].ctypes.data)


def _initial(call: Call) -> tuple[Tensor, ...]:
    """Where resets go, whole lines each; none for zeros."""
    if call.initial is None:
        return ()
    D, names, widths = call.directions, call.cell.state_names, call.cell.widths(call.hidden_size)
    given = zip(names, call.initial, widths, strict=True)
    return tuple(seen(f"initial {n}", v, (D, w), call.x.dtype) for n, v, w in given)


def sums_by_initial(call: Call, lanes: int) -> Tensor | None:
    """Room for the gradients that resets carry to `initial`; None where there is none to carry."""
    if call.reset is None or call.initial is None:
        return None
    units = whole_vectors(widths_for(call.cell, call.hidden_size).line, lanes)
    return call.x.new_zeros((call.directions, len(call.cell.state_names), call.rows, units))


def by_initial(call: Call, sums: Tensor | None) -> tuple[Tensor, ...] | None:
    """What resets say of `initial`, for each state (D, H)."""
    if sums is None:
        return None
    widths = call.cell.widths(call.hidden_size)
    return tuple(v[..., :w].sum(1) for v, w in zip(sums.unbind(1), widths, strict=True))


class Traces:
    """The words of each direction's traces; they must live until the region has run.

    Args:
        tensors: for each state besides the output (T, B, D, width), packed (N, D, width); None
            where there is none, as for a gradient that is zero.
        directions: D.
        packed: whether they hold the rows of all steps one after the other.

    Attributes:
        addresses: by name; none where there are no tensors.
    """

    def __init__(self, tensors: Sequence[Tensor | None], directions: int, packed: bool) -> None:
        self.addresses: dict[str, int] = {}
        self._held = [lines(v) for v in tensors]
        if any(v is not None for v in self._held):
            words = [[self._words(v, d, packed) for v in self._held] for d in range(directions)]
            self._all = np.array(words, np.int64)
            for d, one in enumerate(self._all):
                self.addresses[f"traces {d}"] = one.ctypes.data

    def _words(self, v: Tensor | None, d: int, packed: bool) -> list[int]:
        if v is None:
            return [0] * len(TRACE)
        step, row = strides_of(v, packed)
        first = v.data_ptr() + d * v.stride(-2) * v.element_size()
        words = {"tensor": first, "step": step, "before": row if packed else 0, "row": row}
        return [words[name] for name in TRACE]


def lines(v: Tensor | None) -> Tensor | None:
    """A tensor whose lines of units lie side by side."""
    return v if v is None or v.stride(-1) == 1 or v.shape[-1] < 2 else v.contiguous()
