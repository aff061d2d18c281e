"""A stack of layers and its readout, one time step a call: one call of machine code.

The states of all rows lie in memory of the stream's own. A few rows are stepped where they lie; of
many, or of some among them, so many as a program takes are brought to it and back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from throughtime.backends.cpu.stream.layer import direct_inputs, is_plain
from throughtime.backends.cpu.stream.memory import Array
from throughtime.backends.cpu.stream.stack import MOST_ROWS, Region, Stack, lookup
from throughtime.torch_private import any_autocast, transform_depth

States = Sequence[Sequence[Tensor]]

SIZES: Final = (1, 4, 16, MOST_ROWS)
"""Rows of the programs that some rows of a stream are brought to."""


class CompiledStream:
    """The steps of a stack.

    Args:
        stack: what is stepped.
        batch: B.

    Attributes:
        states: over layers and states (B, padded), of all rows.
    """

    def __init__(self, stack: Stack, batch: int) -> None:
        self.stack = stack
        self._batch = batch
        self._regions: dict[int, Region] = {}
        self._numbers = np.dtype(np.float32 if stack.kind.bytes == 4 else np.float64)
        self._arrays: dict[tuple[int, ...], tuple[Array, Array]] = {}
        self._tensors: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
        self._all: Region | None = None
        if batch > MOST_ROWS:
            lines = (s.shape[1] for s in self._region(MOST_ROWS).states)
            self.states = [np.zeros((batch, line), self._numbers) for line in lines]
        else:
            self._all = Region(stack, batch)
            self.states = self._all.states
            self._open(self._all)

    def _open(self, region: Region) -> None:
        """What callers may give for all rows, by its shape: where it goes and comes from."""
        x, y = region.x, region.y
        self._call, self._address = region.call, region.address
        if self.stack.table is None and not self.stack.inputs:
            self._arrays = {x.shape: (x, y)}
            if len(x) == 1:
                self._arrays[x.shape[1:]] = x[0], y[0]
            self._tensors = {
                shape: (torch.from_numpy(a), torch.from_numpy(b))
                for shape, (a, b) in self._arrays.items()
            }

    def step(self, x: Any, out: Any, given: Mapping[str, Any], rows: Array | None = None) -> Any:
        """One step on (B, I), or with one row (I,); None where x is not plainly what it takes.

        Args:
            x: a tensor or array.
            out: where the result goes, if that is plainly what it takes; None: into a new one.
            given: what the call was given besides them: direct inputs, where cells read such.
            rows: numbers of the rows that x is for; None for all.
        """
        # Asked first: it needs no device, whose name takes long to read when caches are cold.
        if any_autocast() and torch.is_autocast_enabled("cpu"):
            return None
        if rows is not None or given or not self._arrays:
            return self._some(x, out, given, rows)
        if type(x) is np.ndarray:
            places = self._arrays.get(x.shape)
            dtype = x.dtype
            if places is None or (dtype is not self._numbers and dtype != self._numbers):
                return None
            if out is None:
                places[0][...] = x
                self._call(self._address)
                return places[1].copy()
            return self._into_array(places, x, out)
        return self._tensor_step(x, out) if type(x) is Tensor else None

    def _into_array(self, places: tuple[Array, Array], x: Array, out: Any) -> Any:
        if not _fits(out, places[1]):
            return None
        places[0][...] = x
        out[...] = places[1]  # raises, if it cannot be written, before the state moves
        self._call(self._address)
        out[...] = places[1]
        return out

    def _tensor_step(self, x: Tensor, out: Any) -> Tensor | None:
        tensors = self._tensors.get(x.shape)
        if tensors is None or not is_plain(x, self.stack.dtype) or transform_depth():
            return None
        if out is not None and (not _fits(out, tensors[1]) or out.requires_grad):
            return None
        tensors[0].copy_(x.detach())
        if out is not None:
            out.copy_(tensors[1])  # raises, if it cannot be written, before the state moves
        self._call(self._address)
        if out is None:
            return tensors[1].clone(memory_format=torch.contiguous_format)
        out.copy_(tensors[1])
        return out  # type: ignore[no-any-return]

    def _some(self, x: Any, out: Any, given: Mapping[str, Any], rows: Array | None) -> Any:
        """A step that more has to be brought to than x alone."""
        count = self._batch if rows is None else len(rows)
        numbers = self._entered(x, count)
        inputs = direct_inputs(given, self.stack.inputs, count, self.stack.dtype)
        if numbers is None or inputs is None:
            return None
        flat = count == 1 and numbers.ndim == (0 if self.stack.table is not None else 1)
        y = np.empty((count, self.stack.output), self._numbers)
        result: Any = y[0] if flat else y
        result = torch.from_numpy(result) if type(x) is Tensor else result
        if self.stack.table is not None:
            numbers = lookup(self.stack.table, numbers.reshape(count))
        if out is not None:
            if not _fits(out, result) or (type(out) is Tensor and out.requires_grad):
                return None
            numbers = numbers.copy()  # x may lie where out does
            out[...] = result  # raises, if it cannot be written, before the state moves
        self._walk(numbers.reshape(count, self.stack.width), y, inputs, rows)
        if out is None:
            return result
        out[...] = result
        return out

    def _walk(self, x: Array, y: Array, inputs: Mapping[str, Tensor], rows: Array | None) -> None:
        """Bring rows to programs and back, as many at a time as a program takes."""
        for part, region in self._portions(len(x), rows):
            region.x[: part.stop - part.start] = x[part]
            region.give(inputs, part)
            if region is self._all:
                region.call(region.address)
                y[part] = region.y
                continue
            count = part.stop - part.start
            where: Any = part if rows is None else rows[part]
            for near, far in zip(region.states, self.states, strict=True):
                near[:count] = far[where]
            region.call(region.address)
            for near, far in zip(region.states, self.states, strict=True):
                far[where] = near[:count]
            y[part] = region.y[:count]

    def _portions(self, count: int, rows: Array | None) -> Iterator[tuple[slice, Region]]:
        """Which rows step together, and where; a program may have some rows to spare."""
        if rows is None and self._all is not None:
            yield slice(0, count), self._all
            return
        first = 0
        while first < count:
            left = count - first
            size = next((s for s in SIZES if left <= s and 2 * left > s), 0)
            size = size or max(s for s in SIZES if s <= left)
            taken = min(size, left)
            yield slice(first, first + taken), self._region(size)
            first += taken

    def _region(self, rows: int) -> Region:
        if rows not in self._regions:
            self._regions[rows] = Region(self.stack, rows)
        return self._regions[rows]

    def _entered(self, x: Any, count: int) -> Array | None:
        """A plain x as an array of one step of so many rows, or None."""
        if type(x) is Tensor:
            if not is_plain(x, x.dtype) or transform_depth():
                return None
            x = x.detach().resolve_conj().resolve_neg().numpy()
        if type(x) is not np.ndarray:
            return None
        if self.stack.table is not None:
            shapes: tuple[tuple[int, ...], ...] = ((count,), (count, 1), *([()] * (count == 1)))
            return x if x.dtype.kind in "iu" and x.shape in shapes else None
        row = (self.stack.width,)
        shapes = ((count, *row), row) if count == 1 else ((count, *row),)
        return x if x.dtype == self._numbers and x.shape in shapes else None

    def repeat(self, times: int) -> None:
        """Run the step so often on the last x, in one call: what it costs without Python."""
        assert self._all is not None
        self._all.repeat(times)

    def read(self, rows: Any = slice(None)) -> list[tuple[Tensor, ...]]:
        """A copy of the state of all rows, or some: over layers, of each state (1, B, H)."""
        lines = iter(self.states)
        return [
            tuple(torch.from_numpy(next(lines)[rows, :w].copy()).unsqueeze(0) for w in widths)
            for widths in self.stack.states
        ]

    def write(self, states: States, rows: Any = slice(None)) -> None:
        """Let all rows, or some, go on from these."""
        flat = [v for state in states for v in state]
        for line, value in zip(self.states, flat, strict=True):
            line[rows, : value.shape[-1]] = value[0].detach().numpy()

    def save(self, rows: Any = slice(None)) -> list[Array]:
        """What `restore` takes."""
        return [line[rows].copy() for line in self.states]

    def restore(self, kept: list[Array], rows: Any = slice(None)) -> None:
        """The state of these rows as it was."""
        for line, value in zip(self.states, kept, strict=True):
            line[rows] = value

    def resized(self, rows: Sequence[int], first: States) -> CompiledStream:
        """A stream of these rows, and after them new ones that begin with a first state."""
        stream = CompiledStream(self.stack, first[0][0].shape[1])
        stream._regions = self._regions
        stream.write(first)
        stream.restore(self.save(rows), slice(0, len(rows)))
        return stream


def _fits(out: Any, y: Any) -> bool:
    return type(out) is type(y) and out.shape == y.shape and out.dtype == y.dtype
