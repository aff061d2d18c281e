"""A stack of layers and its readout, one time step a call: one call of machine code.

Weights are packed when it is made. The state lies in its own memory, which each step overwrites, so
two threads must not step the same stream at once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from throughtime.backends.cpu.apart import call_apart
from throughtime.backends.cpu.look import see_layer, see_product
from throughtime.backends.cpu.sizes import FLOPS_PER_US, target
from throughtime.backends.cpu.stream_inputs import StreamInputs
from throughtime.backends.cpu.stream_layer import Part, Product, Residual, StreamLayer, linear
from throughtime.backends.cpu.stream_memory import Array, Program, Rows
from throughtime.compiler.llvm import threads
from throughtime.compiler.llvm.code import stream_region
from throughtime.compiler.llvm.kind import Kind

States = Sequence[Sequence[Tensor]]

_any_autocast = torch._C._is_any_autocast_enabled
"""Asked first: it is told no device, whose name takes long to read when caches are cold."""


class CompiledStream:
    """The steps of a stack.

    Args:
        parts: in order, calls of one step (their weights, no state), residuals behind them and
            linear parts, which fit each other in width and numbers.
        batch: B.
        narrow: keep the matrices, of bfloat16 values in float32, as bfloat16.

    Attributes:
        states: over layers, of each state (B, width): views of the memory that steps overwrite.
    """

    def __init__(self, parts: Sequence[Part], batch: int, narrow: bool) -> None:
        first = parts[0]
        assert not isinstance(first, Residual)
        like = first.weight if isinstance(first, Product) else first.x
        I = like.shape[-1]
        kind = Kind(like.element_size(), target().lanes(8 * like.element_size()))
        self._program = program = Program(kind, target(), batch, narrow)
        places = [program.rows(batch, program.padded(I))]
        self.states: list[list[Tensor]] = []
        self._inputs = StreamInputs(batch)
        self._width = I
        for part in parts:
            places.append(self._add(part, places))
        self._reads_inputs = bool(self._inputs)
        self._open(places[0].array[:, :I], places[-1].array[:, : self._width])
        self._begin(kind)

    def _add(self, part: Part, places: list[Rows]) -> Rows:
        """What a part gives, from what the parts before it gave."""
        if isinstance(part, Residual):
            return self._program.sum(places[-2], places[-1], self._width)
        if isinstance(part, Product):
            see_product(part.weight, part.bias, self._width)
            self._width = len(part.weight)
            return linear(self._program, part, places[-1])
        call = see_layer(call_apart(part), self._width)
        layer = StreamLayer(self._program, call, places[-1])
        self._width = layer.width
        self.states.append(layer.states)
        self._inputs.add(part, layer.inputs)
        return layer.output

    def _open(self, x: Array, y: Array) -> None:
        """What callers may give, by its shape: where it goes and where the result lies."""
        self._arrays = {x.shape: (x, y)}
        if len(x) == 1:
            self._arrays[x.shape[1:]] = x[0], y[0]
        self._tensors = {
            shape: (torch.from_numpy(a), torch.from_numpy(b))
            for shape, (a, b) in self._arrays.items()
        }
        self._numbers, self._dtype = x.dtype, self._tensors[x.shape][0].dtype

    def _begin(self, kind: Kind) -> None:
        release = threads.worth_releasing(self._program.flops / FLOPS_PER_US)
        make = ctypes.CFUNCTYPE if release else ctypes.PYFUNCTYPE
        self._call = make(None, ctypes.c_void_p)(stream_region(kind, target()))
        self._address = ctypes.c_void_p(self._program.address())

    def step(self, x: Any, out: Any, given: Mapping[str, Any]) -> Any:
        """One step on (B, I), or with one row (I,); None where x is not plainly what it takes.

        The result is a copy of its own, or goes into `out` where that is plainly what it takes.
        `given` is what the call was given beside them: direct inputs, where the cells read such.
        """
        if _any_autocast() and torch.is_autocast_enabled("cpu"):
            return None
        if given or self._reads_inputs:
            if not self._inputs.take(given, self._dtype):
                return None
        if type(x) is np.ndarray:
            places = self._arrays.get(x.shape)
            dtype = x.dtype
            if places is None or (dtype is not self._numbers and dtype != self._numbers):
                return None
            if out is not None and not self._fits(out, places[1]):
                return None
            places[0][...] = x
            self._call(self._address)
            if out is None:
                return places[1].copy()
            out[...] = places[1]
            return out
        return self._tensor_step(x, out) if type(x) is Tensor else None

    def _tensor_step(self, x: Tensor, out: Any) -> Tensor | None:
        found = self._tensors.get(x.shape)
        if found is None or x.dtype != self._dtype or not x.is_cpu or x.layout != torch.strided:
            return None
        if torch._C._functorch.get_dynamic_layer_stack_depth():
            return None
        if out is not None and (not self._fits(out, found[1]) or out.requires_grad):
            return None
        found[0].copy_(x.detach())
        self._call(self._address)
        if out is None:
            return found[1].clone(memory_format=torch.contiguous_format)
        out.copy_(found[1])
        return out  # type: ignore[no-any-return]

    @staticmethod
    def _fits(out: Any, y: Any) -> bool:
        return type(out) is type(y) and out.shape == y.shape and out.dtype == y.dtype

    def repeat(self, times: int) -> None:
        """Run the step so often on the last x, in one call: what it costs without Python."""
        self._program.repeat(times)
        self._call(self._address)
        self._program.repeat(1)

    def read(self) -> list[tuple[Tensor, ...]]:
        """A copy of the state: over layers, of each state (1, B, H)."""
        return [tuple(v.clone().unsqueeze(0) for v in layer) for layer in self.states]

    def write(self, states: States) -> None:
        """Go on from these."""
        for layer, values in zip(self.states, states, strict=True):
            for place, value in zip(layer, values, strict=True):
                place.copy_(value[0])
