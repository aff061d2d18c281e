"""What a call gives its region, forward or backward: addresses by name, and what they point to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from throughtime.backends.call import Call
from throughtime.backends.cpu.inputs import input_lines
from throughtime.backends.cpu.restarts import Restarts
from throughtime.backends.cpu.rows import Rows
from throughtime.backends.cpu.words import RaggedWords, call_addresses, start_of
from throughtime.compiler.plan import Plan


class GivenWords:
    """The words that follow from a call's tensors; it must live until the region has run.

    Args:
        call: what is carried.
        found: its plan.
        rows: as the loops walk them.
        chunks: of them.
        packed: bytes from row to row of each packed tensor by name; empty for padded ones.
        d_initial: where gradients that resets carry to `initial` are added, in a backward pass.

    Attributes:
        addresses: by name.
    """

    def __init__(
        self, call: Call, found: Plan, rows: Rows, chunks: int, packed: Mapping[str, int],
        d_initial: Tensor | None = None,
    ) -> None:  # fmt: skip
        start, inputs = start_of(call), input_lines(call, found, rows)
        self.addresses = call_addresses(call, start, inputs)
        self._held: list[Any] = [start, inputs]
        if call.reset is not None:
            self._hold(Restarts(call, rows, d_initial))
        if rows.ragged:
            self._hold(RaggedWords(rows, chunks, packed))

    def _hold(self, words: Restarts | RaggedWords) -> None:
        self._held.append(words)
        self.addresses |= words.addresses
