"""The resets of a call as machine code reads them: for each step of a direction, some rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from throughtime.backends.call import Call
from throughtime.backends.cpu.look import seen
from throughtime.backends.cpu.rows import Rows
from throughtime.backends.cpu.sizes import part_address, whole_vectors
from throughtime.backends.cpu.widths import widths_for
from throughtime.compiler.llvm.block import RESTARTS


class Restarts:
    """The resets of a call, of which those behind a row's end are none.

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
        self.addresses = {f"restarts {d}": self._words(there, d) for d in range(call.directions)}

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
            "first": self._keep(first), "rows": self._keep(places % B),
            "initial": self._keep(initial),
            "d_initial": part_address(self._d_initial, d),
        }  # fmt: skip
        return self._keep([words[name] for name in RESTARTS])

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


def by_initial(call: Call, found: Tensor | None) -> tuple[Tensor, ...] | None:
    """What resets say of `initial`, for each state (D, H)."""
    if found is None:
        return None
    widths = call.cell.widths(call.hidden_size)
    return tuple(v[..., :w].sum(1) for v, w in zip(found.unbind(1), widths, strict=True))
