"""What a call gives its region, forward or backward: addresses by name, and what they point to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from throughtime.backends.call import Call
from throughtime.backends.cpu.inputs import input_lines
from throughtime.backends.cpu.look import take_weights
from throughtime.backends.cpu.restarts import Restarts
from throughtime.backends.cpu.rows import Rows
from throughtime.backends.cpu.shape import Shape
from throughtime.backends.cpu.sizes import part_address
from throughtime.backends.cpu.words import RaggedWords, start_of


class GivenWords:
    """The words that follow from a call's tensors; it must live until the region has run.

    Args:
        call: what is carried.
        shape: of it.
        rows: as the loops walk them.
        packed: bytes from row to row of each packed tensor by name; empty for padded ones.
        d_initial: where gradients that resets carry to `initial` are added, in a backward pass.

    Attributes:
        addresses: by name; 0 for what is not given.
    """

    def __init__(
        self, call: Call, shape: Shape, rows: Rows, packed: Mapping[str, int],
        d_initial: Tensor | None = None,
    ) -> None:  # fmt: skip
        call, weights = take_weights(call, shape.parameters)
        start, inputs = start_of(call), input_lines(call, shape.plan, rows)
        self.addresses = found = shape.nothing | weights
        found["x"] = call.x.data_ptr()
        for d in range(shape.D if inputs is not None else 0):
            found[f"inputs {d}"] = part_address(inputs, d)
        for s, v in enumerate(start or ()):
            for d in range(shape.D):
                found[f"start{s} {d}"] = part_address(v, d)
        self._held: list[Any] = [call, start, inputs]
        if call.reset is not None:
            self._hold(Restarts(call, rows, d_initial))
        if rows.ragged:
            self._hold(RaggedWords(rows, shape.team.chunks, packed))

    def _hold(self, words: Restarts | RaggedWords) -> None:
        self._held.append(words)
        self.addresses |= words.addresses
