"""Small plain calls as a node of torch's own, which runs forward and back without Python.

A function in Python costs more in autograd than a small cell computes. torch has a node for a
recurrent layer, that of its operator `miopen_rnn`: it saves the input, the weights and the states,
and calls the operator's gradient. Where torch is not built for AMD's cards nobody else has kernels
for it, so the compiled ones stand there (compiler/llvm/kernels.py): they work off a program of the
call.

Comes here what they leave to Python: a gradient that is to be differentiated again, or is seen by
modes or transforms of torch, or is the first of its kind.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from throughtime.backends.call import is_watched
from throughtime.backends.cpu.schedule import is_shared
from throughtime.backends.cpu.short import BatchForm, ShortLayer, ShortRegion, Way, find_way
from throughtime.backends.cpu.short_backward import Back
from throughtime.backends.torch_kernels import TorchStep
from throughtime.compiler.llvm.abi import GRADIENT_STACK, MAGIC, MOST_TENSORS, PROGRAM
from throughtime.scan.kernels import number_of, register
from throughtime.scan.short import Part, Recorded, RecordedStack
from throughtime.torch_private import has_saving_hooks

MOST_BYTES: Final = 1 << 16
"""Of the outputs of a call that goes this way: they are copied, since a user may change them."""

KINDS: Final = 64
"""Of backward passes: which of four gradients are wanted, and which of two are given."""

_NONE: Final = torch.empty(0, device="cpu")
"""A state that is not given."""

_past: weakref.WeakValueDictionary[int, Recorded] = weakref.WeakValueDictionary()
_numbers = itertools.count(1)
"""Calls that have a program, by a number that torch's node keeps, and the numbers to come."""


class Strided(NamedTuple):
    """How a tensor lies: its sizes, and from number to number along each, in numbers."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def like(cls, v: Tensor) -> Strided:
        """As this one does."""
        return cls(tuple(v.shape), v.stride())

    @classmethod
    def contiguous(cls, sizes: Sequence[int]) -> Strided:
        """One number behind the other."""
        strides: list[int] = []
        step = 1
        for size in reversed(sizes):
            strides.insert(0, step)
            step *= size
        return cls(tuple(sizes), tuple(strides))

    def spec(self, bytes: int) -> list[int]:
        """As kernels read it, in numbers of so many bytes."""
        steps = zip(self.sizes, self.strides, strict=True)
        extent = 1 + sum((size - 1) * step for size, step in steps)
        rest = [0] * (3 - len(self.sizes))
        extent = 0 if 0 in self.sizes else extent * bytes
        return [len(self.sizes), *self.sizes, *rest, *self.strides, *rest, extent]


class CallProgram(np.ndarray):
    """The program of a call; a subclass, to hold what it needs."""

    held: Any = None


def write_program(
    region: ShortRegion, number: Callable[[int], int], inputs: Sequence[Strided],
    outputs: Sequence[Strided], head: Mapping[str, int], kinds: int = 0,
) -> CallProgram:  # fmt: skip
    """The program of a region's call.

    Args:
        region: to be called.
        number: that of a tensor, inputs first, by its number among those that the region takes.
        inputs, outputs: how each lies.
        head: more numbers of the head, `bytes` of one number among them.
        kinds: room for so many programs of backward passes.
    """
    parts = region.parts()
    bytes = head["bytes"]
    lists = {
        "words": parts.words,
        "in_arena": parts.in_arena,
        "in_block": parts.in_block,
        "places": [v for place, i, first in parts.places for v in (place, number(i), first)],
        "inputs": [v for one in inputs for v in one.spec(bytes)],
        "outputs": [v for one in outputs for v in one.spec(bytes)],
        "backward": [0] * kinds,
    }
    whole = dict.fromkeys(PROGRAM, 0) | dict.fromkeys(("d_x", "d_hx", "d_cx", "d_weights"), -1)
    whole |= {name: len(lists[name]) for name in ("words", "in_arena", "in_block")}
    whole |= {"places": len(parts.places), "inputs": len(inputs), "outputs": len(outputs)}
    whole |= {"magic": MAGIC, "region": parts.function, "arena": parts.arena, **head}
    numbers = [0] * len(PROGRAM)
    for name, values in lists.items():
        whole[f"{name}_at"] = len(numbers)
        numbers += values
    program = np.array(numbers, np.int64).view(CallProgram)
    whole["self"] = int(program.ctypes.data)
    program[: len(PROGRAM)] = [whole[name] for name in PROGRAM]
    program.held = region
    return program


class TorchNode:
    """Plain calls of one layer and shape, recorded by torch's node.

    The program is written at the second call: many a shape comes once.

    Args:
        recorded: the same calls, recorded by a function in Python.
        again: whether the first call is the second one of its shape.
    """

    def __init__(self, recorded: Recorded, again: bool = False) -> None:
        self._recorded, self._count = recorded, len(recorded.way.layer.parameters)
        self._program: Tensor | None = None
        self._again, self._number, way = again, next(_numbers), recorded.way
        self._two = len(way.finals) == 2
        self._packed = len(way.layout.lead) == 1 and bool(way.layout.rows)
        self._last = way.layout.B if self._packed else 1  # lines of y that are its last step

    def record(self, x: Tensor, *tensors: Tensor) -> Sequence[Tensor]:
        """As that of `Recorded`."""
        if self._again and not has_saving_hooks():  # hooks may hand out a copy of the program
            count, program = self._count, self._program
            if program is None:
                program = self._program = self._written(x, len(tensors) > count)
            hx, cx = (*tensors[count:], None, None)[:2]
            _, y, final, *_ = torch.miopen_rnn(
                x, tensors[:count], 0, _NONE if hx is None else hx, cx,
                self._number, 0, 1, False, 0.0, True, False, (), program,
            )  # fmt: skip
            if y is not None:
                return self._results(y, final)
        self._again = True
        return self._recorded.record(x, *tensors)  # type: ignore[no-any-return]

    def _results(self, y: Tensor, final: Tensor | None) -> Sequence[Tensor]:
        """Outputs and final states, of the two results that a call has at most."""
        if final is None:
            return (y,)
        if not self._two:
            return y, final
        # The output is the first state, and so is its last step; what is given may be changed.
        first = y[-self._last :].clone()
        return y, first.unsqueeze(0) if self._packed else first, final

    def _written(self, x: Tensor, given: bool) -> Tensor:
        """The program; `given`: states to start from are."""
        program = _forward(self._recorded, x, given)
        program.held = self._recorded  # and nothing that holds the tensor, which would hold itself
        _past[self._number] = self._recorded
        return torch.from_numpy(program)


class NodeStack:
    """Plain calls of layers that read each other, a node each.

    Args:
        recorded: the same calls, recorded by a function in Python.
        nodes: of the layers.
        parts: of each, as `RecordedStack` has them.
        joined: whether final states are given as one tensor.
    """

    def __init__(
        self, recorded: RecordedStack, nodes: Sequence[TorchNode], parts: Sequence[Part],
        joined: bool,
    ) -> None:  # fmt: skip
        self._recorded, self._again = recorded, False
        self._nodes, self._joined = tuple(zip(nodes, parts, strict=True)), joined

    def record(self, x: Tensor, *tensors: Tensor) -> Sequence[Tensor]:
        """As that of `RecordedStack`."""
        if not self._again or has_saving_hooks():
            self._again = True
            return self._recorded.record(x, *tensors)  # type: ignore[no-any-return]
        finals = []
        for node, (weights, states) in self._nodes:
            x, *final = node.record(x, *tensors[weights], *tensors[states])
            finals.append(final)
        if self._joined:
            return (x, *(torch.cat(states) for states in zip(*finals, strict=True)))
        return (x, *(v for final in finals for v in final))


Recording = TorchNode | NodeStack | Recorded | RecordedStack | TorchStep
Carriers = tuple[Sequence[Way], Recording | None]


def carriers_of(
    layers: Sequence[ShortLayer], layout: BatchForm, x: Tensor, keep: bool, given: bool,
    parts: Sequence[Part], finals: tuple[tuple[int, ...], ...], own: bool,
) -> Carriers | None:  # fmt: skip
    """The forward pass of each layer, and what records them; None: a layer has no short way.

    Args:
        layers: that read each other, the first of them x, which lies as `layout` says.
        keep: whether a backward pass may follow.
        given: whether states to start from are.
        parts, finals: as `RecordedStack` has them.
        own: whether each layer has tensors of states of its own.
    """
    ways = _ways(layers, layout, x, keep, given, own)
    if ways is None or not keep:
        return None if ways is None else (ways, None)
    if len(ways) == 1:
        recorded = Recorded(ways[0])
        return ways, TorchNode(recorded) if _suits(ways[0], x) else recorded
    recorded_stack = RecordedStack(ways, parts, finals)
    inputs = [x, *(x.new_empty(way.y) for way in ways[:-1])]
    if (own or not given) and all(map(_suits, ways, inputs)):
        alone = ways if own else _ways(layers, layout, x, keep, given, True)
        if alone is not None:
            nodes = [TorchNode(Recorded(way), again=True) for way in alone]
            return ways, NodeStack(recorded_stack, nodes, parts, not own)
    return ways, recorded_stack


def _ways(
    layers: Sequence[ShortLayer], layout: BatchForm, x: Tensor, keep: bool, given: bool, own: bool
) -> list[Way] | None:
    """Of each layer; `own`: with tensors of states of its own. None: one has no short way."""
    ways = []
    for i, layer in enumerate(layers):
        place, count = (0, 1) if own else (i, len(layers))
        way = find_way(layer, layout, x, keep, given, place, count)
        if way is None:
            return None
        ways.append(way)
        layout = layout._replace(turned=False)
        x = x.new_empty((*layout.lead, layer.D * layer.widths[0]))
    return ways


def _suits(way: Way, x: Tensor) -> bool:
    """Whether torch's node may carry a call: plain, small, on one thread, of two states at most."""
    layer, layout = way.layer, way.layout
    if layer.D > 1 or layout.sizes is not None or is_shared(2 * layer.work(layout, x)):
        return False
    few = len(layer.widths) < 3 and 2 * len(layer.parameters) + 16 < MOST_TENSORS
    small = torch.Size(way.y).numel() * layer.bytes <= MOST_BYTES
    return few and small and way.small and register(gradients_of)


def _head(way: Way, states: int) -> dict[str, int]:
    layer = way.layer
    head = {"dtype": number_of(layer.dtype), "bytes": layer.bytes, "states": states}
    return head | {"weights": len(layer.parameters)}


def _forward(recorded: Recorded, x: Tensor, given: bool) -> CallProgram:
    """The program of the forward pass: outputs are y, its copy, what is kept, and states,
    of which the last is given: the first of two is the last step of y."""
    way = recorded.way
    layer, y = way.layer, Strided.contiguous(way.y)
    states = [way.layout.state(1, w) for w in layer.widths] if given else []
    inputs = [Strided.like(x), *map(Strided.contiguous, [*layer.wanted, *states])]
    kept = Strided.contiguous((torch.Size(way.saved).numel(),))
    finals = list(map(Strided.contiguous, way.finals))
    outputs = [y, y, kept, *finals[::-1]]
    count, kept_at = len(inputs), len(inputs) + 1 + len(finals)

    def number(i: int) -> int:
        # The region takes x, y, the weights, the start, the other results and what is kept.
        if i == 1:
            return count
        if i <= count:
            return max(0, i - 1)
        return count + 2 + (kept_at - i)

    copied = torch.Size(way.y).numel() * layer.bytes
    return write_program(
        way.region, number, inputs, outputs, _head(way, len(states)) | {"copied": copied}, KINDS
    )


def _backward(
    way: Way, back: Back, saved: Sequence[Tensor], given: Sequence[Tensor], states: int
) -> CallProgram:
    """The program of a backward pass.

    Args:
        way: of the forward pass.
        back: the same, prepared for Python.
        saved: x, the weights, the start, y and what was kept.
        given: gradients.
        states: how many are given to start from.
    """
    weights = len(way.layer.parameters)
    inputs = [Strided.like(v) for v in (*saved[:-1], saved[-1].view(-1), *given)]
    outputs = [Strided.contiguous(shape) for shape in back.rooms]
    d_x, d_weights, *d_states = (back.order[0], back.order[1], *back.order[1 + weights :])
    head = _head(way, states) | {"d_x": d_x, "d_weights": d_weights}
    head |= zip(("d_hx", "d_cx"), d_states, strict=False)
    if back.width:  # the first output has longer lines
        bytes = way.layer.bytes
        head |= {"d_x": len(outputs), "cut_lines": way.layout.lines}
        head |= {"cut_line": back.width * bytes, "cut_row": back.rooms[0][-1] * bytes}
        outputs.append(outputs[0])
    if d_x >= 0:
        outputs[head["d_x"]] = _as_lines(way, saved[0])
    return write_program(back.region, lambda i: i, inputs, outputs, head)


def _as_lines(way: Way, x: Tensor) -> Strided:
    """How the gradient by x lies, whose lines are written step by step."""
    lies = Strided.contiguous(x.shape)
    if not way.layout.turned:
        return lies
    B, T, I = lies.sizes
    return Strided((B, T, I), (I, B * I, 1))


def gradients_of(*arguments: Any) -> tuple[Any, ...]:
    """What torch's operator for the gradient gives: by x, both states and the weights.

    Args:
        arguments: those of the operator.

    Raises:
        RuntimeError: they are not what a layer's call has saved.
    """
    a = dict(zip(GRADIENT_STACK, arguments, strict=True))
    recorded = _past.get(a["mode"])
    if recorded is None:
        raise RuntimeError(
            "aten::miopen_rnn_backward carries what throughtime's layers have saved for it, and "
            "nothing else; call backward() on their results"
        )
    way, wants = recorded.way, a["output_mask"]
    weights = len(way.layer.parameters)
    states = [v for v in (a["hx"], a["cx"]) if v is not None and v.numel()]
    d_results = [a["grad_hy"], *[None] * (len(way.finals) - 1), a["grad_cy"]]
    d_results = d_results[: 1 + len(way.finals)]
    needs = wants[0], *[wants[3]] * weights, *wants[1 : 1 + len(states)]
    saved = a["input"], *a["weight"], *states, a["output"], a["reserve"].view(way.saved)
    plain = not (torch.is_grad_enabled() or is_watched())
    if plain:
        d_results = [None if v is None else v.contiguous() for v in d_results]
    d_x, *others = recorded.back(saved, d_results, needs)
    if plain and a["dropout_state"] is not None:
        bits = *wants, a["grad_hy"] is not None, a["grad_cy"] is not None
        _learn(recorded, a["dropout_state"].numpy(), bits, saved, d_results, needs)
    d_hx, d_cx = (*others[weights:], None, None)[:2]
    return d_x, d_hx, d_cx, others[:weights] if wants[3] else []


def _learn(
    recorded: Recorded, program: Any, bits: Sequence[bool], saved: Sequence[Tensor],
    d_results: Sequence[Tensor | None], needs: tuple[bool, ...],
) -> None:  # fmt: skip
    """Let the kernel carry backward passes like one that Python has just carried."""
    back = recorded.backward.prepared(d_results, needs)
    if back is None or back.shared or program[1] != program.ctypes.data:
        return
    given = [v for v in d_results if v is not None]
    states = len(needs) - 1 - len(recorded.way.layer.parameters)
    part = _backward(recorded.way, back, saved, given, states)
    recorded.programs.append(part)  # at most one of each kind
    kind = sum(1 << i for i, bit in enumerate(bits) if bit)
    program[program[PROGRAM.index("backward_at")] + kind] = part.ctypes.data
