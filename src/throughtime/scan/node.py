"""Small plain calls as a node of torch's own, which runs forward and back without Python.

A function in Python costs more in autograd than a small cell computes. torch has a node for a
recurrent layer, that of its operator `miopen_rnn`: it saves the input, the weights and the states,
and calls the operator's gradient. Where torch is not built for AMD's cards nobody else has kernels
for it, so the compiled ones stand there (compiler/llvm/kernels.py): they work off a program of the
call.

Calls without a gradient need no node: a built-in function of Python works off the program of each.

Comes here what kernels leave to Python: a gradient that is to be differentiated again, or is seen
by modes or transforms of torch, or is the first of its kind.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from throughtime.backends.call import is_watched
from throughtime.backends.cpu.look import find_extent
from throughtime.backends.cpu.short import BatchForm, ShortLayer, Way, find_way
from throughtime.backends.cpu.short_backward import Back
from throughtime.compiler.llvm.abi import GRADIENT_STACK, MOST_TENSORS, PROGRAM
from throughtime.scan.kernels import (
    CallProgram,
    Carry,
    Strided,
    function_of,
    number_of,
    register,
    write_program,
)
from throughtime.scan.short import Part, Recorded, RecordedStack, carry_regions, look_first
from throughtime.torch_private import has_saving_hooks

MOST_BYTES: Final = 1 << 19
"""Of the outputs of a call that goes this way: they are copied, since a user may change them."""

MOST_KEPT: Final = 1 << 21
"""Of what its forward pass keeps: larger memory is worth keeping from call to call."""

KINDS: Final = 64
"""Of backward passes: which of four gradients are wanted, and which of two are given."""

_NONE: Final = torch.empty(0, device="cpu")
"""A state that is not given."""

_past: weakref.WeakValueDictionary[int, Recorded] = weakref.WeakValueDictionary()
_numbers = itertools.count(1)
"""Calls that have a program, by a number that torch's node keeps, and the numbers to come."""


class TorchNode:
    """Plain calls of one layer and shape, recorded by torch's node.

    The program is written at the second call: many a shape comes once.

    Args:
        recorded: the same calls, recorded by a function in Python.
        carry: looks at tensors, and lets that record.
        again: whether the first call is the second one of its shape.
    """

    def __init__(self, recorded: Recorded, carry: Carry, again: bool = False) -> None:
        self._carry = carry
        self._recorded, self._count = recorded, len(recorded.way.layer.parameters)
        self._program: Tensor | None = None
        self._again, self._number, way = again, next(_numbers), recorded.way
        self._two = len(way.finals) == 2
        self._packed = len(way.layout.lead) == 1 and bool(way.layout.rows)
        self._last = way.layout.B if self._packed else 1  # lines of y that are its last step

    def carry(self, x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...] | None:
        """A `Carry`."""
        if self._again and not has_saving_hooks():  # hooks may hand out a copy of the program
            count, program = self._count, self._program
            if program is None:
                program = self._program = self._written(x, len(tensors) > count)
            hx, cx = (*tensors[count:], None, None)[:2]
            _, y, final, *_ = torch.miopen_rnn(
                x, tensors[:count], 0, _NONE if hx is None else hx, cx,
                self._number, 0, 1, False, 0.0, True, False, (), program,
            )  # fmt: skip
            return None if y is None else self._results(y, final)
        self._again = True
        return self._carry(x, *tensors)

    def _results(self, y: Tensor, final: Tensor | None) -> tuple[Tensor, ...]:
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
        carry: the same calls, recorded by a function in Python.
        nodes: of the layers.
        parts: of each, as `RecordedStack` has them.
        joined: whether final states are given as one tensor.
    """

    def __init__(
        self, carry: Carry, nodes: Sequence[TorchNode], parts: Sequence[Part], joined: bool
    ) -> None:
        self._carry, self._again = carry, False
        self._nodes, self._joined = tuple(zip(nodes, parts, strict=True)), joined

    def carry(self, x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...] | None:
        """A `Carry`."""
        if not self._again or has_saving_hooks():
            self._again = True
            return self._carry(x, *tensors)
        finals = []
        for node, (weights, states) in self._nodes:
            result = node.carry(x, *tensors[weights], *tensors[states])
            if result is None:
                return None
            x, *final = result
            finals.append(final)
        if self._joined:
            return (x, *(torch.cat(states) for states in zip(*finals, strict=True)))
        return (x, *(v for final in finals for v in final))


def carriers_of(
    layers: Sequence[ShortLayer], layout: BatchForm, x: Tensor, keep: bool,
    state: Sequence[Tensor], parts: Sequence[Part], finals: tuple[tuple[int, ...], ...], own: bool,
) -> tuple[Sequence[Way], Carry] | None:  # fmt: skip
    """The forward pass of each layer, and what carries them; None: a layer has no short way.

    Args:
        layers: that read each other, the first of them x, which lies as `layout` says.
        keep: whether a backward pass may follow.
        state: where they start, if it is given.
        parts, finals: as `RecordedStack` has them.
        own: whether each layer has tensors of states of its own.
    """
    given = bool(state)
    ways = _ways(layers, layout, x, keep, given, own)
    if ways is None:
        return None
    seen = partial(look_first, list(map(find_extent, (x, *state))))
    if not keep:
        functions = _functions(ways, x, given, own)
        if functions is None:
            return ways, partial(seen, partial(carry_regions, ways, parts, finals))
        whole = functions[0], partial(_carry_all, tuple(zip(functions, parts, strict=True)), own)
        return ways, whole[len(functions) > 1]
    if len(ways) == 1:
        recorded = Recorded(ways[0])
        carry = partial(seen, recorded.record)
        return ways, TorchNode(recorded, carry).carry if _suits(ways[0]) else carry
    carry = partial(seen, RecordedStack(ways, parts, finals).record)
    if (own or not given) and all(map(_suits, ways)):
        alone = ways if own else _ways(layers, layout, x, keep, given, True)
        if alone is not None:
            each = [Recorded(way) for way in alone]
            nodes = [TorchNode(one, one.record, again=True) for one in each]
            return ways, NodeStack(carry, nodes, parts, not own).carry
    return ways, carry


def _carry_all(
    layers: Sequence[tuple[Carry, Part]], own: bool, x: Tensor, *tensors: Tensor
) -> tuple[Tensor, ...] | None:
    """Layers that read each other, each by its function; those that share states write to them."""
    finals: list[Tensor] = []
    for function, (weights, states) in layers:
        result = function(x, *tensors[weights], *tensors[states], *(() if own else finals))
        if result is None:
            return None
        x, *final = result
        finals += final
    return (x, *finals)


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


def _suits(way: Way) -> bool:
    """Whether torch's node may carry a call: plain, small, of two states at most."""
    layer, layout = way.layer, way.layout
    if layer.D > 1 or layout.sizes is not None:
        return False
    few = len(layer.widths) < 3 and 2 * len(layer.parameters) + 16 < MOST_TENSORS
    rooms = (way.y, MOST_BYTES), (way.saved, MOST_KEPT)
    small = all(torch.Size(shape).numel() * layer.bytes <= most for shape, most in rooms)
    return few and small and register(gradients_of)


def _functions(ways: Sequence[Way], x: Tensor, given: bool, own: bool) -> list[Carry] | None:
    """A function of each layer for calls without a gradient; None: Python calls their regions."""
    if not all(way.region.is_brief for way in ways) or not register(gradients_of):
        return None
    functions, lies = [], Strided.like(x)
    for i, way in enumerate(ways):
        program = _inference(way, lies, given, 1 if own else len(ways), bool(i) and not own)
        if program is None:
            return None
        functions.append(function_of(program))
        lies = Strided.contiguous(way.y)
    return functions


def _inference(way: Way, x: Strided, given: bool, layers: int, others: bool) -> CallProgram | None:
    """The program of a call without a gradient; None: it has too many tensors.

    Args:
        way: of a layer.
        x: how its input lies.
        given: whether states to start from are.
        layers: how many share the tensors of states.
        others: whether another layer makes those.
    """
    layer = way.layer
    states = [way.layout.state(layers * layer.D, w) for w in layer.widths] if given else []
    finals = list(map(Strided.contiguous, way.finals))
    inputs = [x, *map(Strided.contiguous, [*layer.wanted, *states]), *finals * others]
    outputs = [Strided.contiguous(way.y), *finals * (not others)]
    count = len(inputs)
    if count + len(outputs) > MOST_TENSORS:
        return None

    def number(i: int) -> int:
        # The region takes x, y, the weights, the start, and the other results.
        if i == 1:
            return count
        return i - (1 < i <= count)

    head = {"dtype": number_of(layer.dtype), "bytes": layer.bytes}
    head["releases"] = int(way.region.releases)
    return write_program(way.region, number, inputs, outputs, head)


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
    if back is None or program[1] != program.ctypes.data:
        return
    given = [v for v in d_results if v is not None]
    states = len(needs) - 1 - len(recorded.way.layer.parameters)
    part = _backward(recorded.way, back, saved, given, states)
    recorded.programs.append(part)  # at most one of each kind
    kind = sum(1 << i for i, bit in enumerate(bits) if bit)
    program[program[PROGRAM.index("backward_at")] + kind] = part.ctypes.data
