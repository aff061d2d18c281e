"""What a call gives, as machine code reads it: weights, inputs, masks, starts, resets, traces.

A cell that multiplies by one matrix several times is given the same weights for each product.

A row of a step has a line of units for each input; of one number a row, each of hidden_size units
has the same. Masks, which each direction has of its own, are lines after those. Rows lie one after
the other over all steps, in the order in which both directions walk them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from throughtime.backends.call import Call, Gradients
from throughtime.backends.cpu.active_rows import ROW_WORDS, Rows
from throughtime.backends.cpu.look import check_layer, checked, readable, take_weights
from throughtime.backends.cpu.memory import lend
from throughtime.backends.cpu.schedule import (
    masks_of,
    part_address,
    strides_of,
    target,
    whole_vectors,
    widths_for,
)
from throughtime.backends.cpu.shape import Shape
from throughtime.compiler.llvm.abi import RESETS, TRACE
from throughtime.compiler.passes import DROPOUT, Unshared, unshare
from throughtime.compiler.plan import Plan

_OF_GATES = ("weight_hh", "bias_hh")


def unshare_call(call: Call) -> Call:
    """The call with weights for every product of a step; itself, if it has them."""
    cell = unshare(call.cell, call.hidden_size)
    if cell is call.cell or not isinstance(cell, Unshared):
        return call
    lines = len(call.cell.layout.recurrent_gates) * call.hidden_size
    shapes = ((lines, call.cell.widths(call.hidden_size)[0]), (lines,))
    for name, shape in zip(_OF_GATES, shapes, strict=True):
        if any(name in w and w[name].shape != shape for w in call.weights):
            check_layer(call, call.x.shape[-1])  # says which weight it is
    weights = tuple(_copied_weights(cell, w) for w in call.weights)
    return call._replace(cell=cell, weights=weights)


def unshare_cell(call: Call) -> Call:
    """The call with that cell and the weights it had, for shapes that follow from no weight."""
    return call._replace(cell=unshare(call.cell, call.hidden_size))


def join_gradients(cell: object, grads: Gradients) -> Gradients:
    """Gradients of such a call, those of equal weights added up."""
    if not isinstance(cell, Unshared):
        return grads
    return grads._replace(weights=tuple(_joined(cell, w) for w in grads.weights))


def _sources(cell: Unshared) -> list[int]:
    """Numbers of the gates that the added ones are the same as."""
    gates = cell.cell.layout.recurrent_gates
    return [gates.index(cell.copies[g]) for g in cell.layout.recurrent_gates[len(gates) :]]


def _products(cell: Unshared) -> list[tuple[str, str]]:
    """Names of added matrices, and of those that they are the same as."""
    own = [p for p in cell.layout.products if p in cell.copies]
    return [(f"weight_{p}", f"weight_{cell.copies[p]}") for p in own]


def _by_gates(v: Tensor, gates: int) -> Tensor:
    """(G H, ...) as (G, H, ...)."""
    return v.reshape(gates, len(v) // gates, *v.shape[1:])


def _copied_weights(cell: Unshared, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named, sources = dict(weights), _sources(cell)
    gates = len(cell.cell.layout.recurrent_gates)
    for name in _OF_GATES if sources else ():
        if name in weights:
            v = _by_gates(weights[name], gates)
            named[name] = torch.cat([v, v[sources]]).flatten(0, 1)
    return named | {copy: weights[name] for copy, name in _products(cell)}


def _joined(cell: Unshared, grads: Mapping[str, Tensor]) -> dict[str, Tensor]:
    together, sources = dict(grads), _sources(cell)
    if not together:
        return together
    gates = len(cell.cell.layout.recurrent_gates)
    for name in _OF_GATES if sources else ():
        if name in grads:
            v = _by_gates(grads[name], gates + len(sources))
            places = torch.tensor(sources, device=v.device)
            together[name] = v[:gates].index_add(0, places, v[gates:]).flatten(0, 1)
    for copy, name in _products(cell):
        together[name] = together[name] + together.pop(copy)
    return together


def input_lines(call: Call, plan: Plan, rows: Rows) -> Tensor | None:
    """(D, N, inputs and masks, H padded to whole vectors); None without any."""
    if not plan.lines:
        return None
    D, lanes = call.directions, target().lanes(8 * call.x.element_size())
    widths = widths_for(call.cell, call.hidden_size, masks_of(call))
    line = whole_vectors(widths.line, lanes)
    own = D if plan.masks else 1
    lines = lend(call.x, (own, rows.N, len(plan.lines), line))
    if {line} != set(widths.units):  # units after the last are zeros
        lines.zero_()
    for k, (name, units) in enumerate(input_units(call, plan).items()):
        v = (call.inputs or {})[name]
        width = call.cell.width(call.cell.inputs[name], call.hidden_size)
        v = readable(f"input {name}", v, (*call.x.shape[:-1], width), call.x.dtype)
        lines[:, :, k, :units] = _walked(call, rows, v)
    write_masks(call, plan, rows, lines)
    return lines.expand(D, -1, -1, -1)


def input_units(call: Call, plan: Plan) -> dict[str, int]:
    """How many units the line of each input has."""
    widths = widths_for(call.cell, call.hidden_size, masks_of(call))
    units = dict(zip(plan.widths.names, widths.units, strict=True))
    nodes = zip(plan.input_names, plan.inputs, strict=True)
    return {name: units[plan.widths.of[node]] for name, node in nodes}


def _walked(call: Call, rows: Rows, v: Tensor) -> Tensor:
    """The call's rows and steps to (N, width); padding is never looked at."""
    if call.batch_sizes is not None:
        return v
    if call.lengths is None:
        return v.reshape(rows.N, v.shape[-1])
    return v.reshape(-1, v.shape[-1])[torch.from_numpy(rows.lines)]


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
        there = checked("reset", call.reset, (rows.T, rows.B), torch.bool).numpy()
        if rows.N < rows.T * rows.B:
            there = there[:, rows.order] & rows.there
        self._initial = () if call.initial is None else _checked("initial", call, call.initial)
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


def _checked(what: str, call: Call, states: Sequence[Tensor], *rows: int) -> tuple[Tensor, ...]:
    """Each state (D, width), or with rows (D, B, width), in whole lines."""
    names, widths = call.cell.state_names, call.cell.widths(call.hidden_size)
    shapes = [(call.directions, *rows, w) for w in widths]
    each = zip(names, states, shapes, strict=True)
    return tuple(checked(f"{what} {n}", v, shape, call.x.dtype) for n, v, shape in each)


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
            where there is none, as for a gradient that is zero. Lines of units lie side by side.
        directions: D.
        packed: whether they hold the rows of all steps one after the other.

    Attributes:
        addresses: by name; none where there are no tensors.
    """

    def __init__(self, tensors: Sequence[Tensor | None], directions: int, packed: bool) -> None:
        self.addresses: dict[str, int] = {}
        self._held = tensors
        if any(v is not None for v in tensors):
            words = [[self._words(v, d, packed) for v in tensors] for d in range(directions)]
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


class RaggedWords:
    """What of a ragged call's words follows from its lengths; lives as long as the call.

    Args:
        rows: of the call.
        chunks: of them.
        packed: bytes from row to row of each packed tensor by name; empty for padded ones.
    """

    def __init__(self, rows: Rows, chunks: int, packed: Mapping[str, int]) -> None:
        self._rows = rows  # its arrays are read, and nothing else may hold it
        self._steps = {f"{name}_steps": rows.offset * row for name, row in packed.items()}
        self.addresses = dict(zip(ROW_WORDS, rows.addresses, strict=True))
        self.addresses["bounds"] = rows.bounds(chunks).buffer_info()[0]
        self.addresses |= {name: v.ctypes.data for name, v in self._steps.items()}


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
        given = call.state is not None or call.initial is not None  # else it starts at zero
        start = _checked("state", call, call.start(), rows.B) if given else ()
        inputs = input_lines(call, shape.plan, rows)
        self.addresses = addresses = shape.nothing | weights
        addresses["x"] = call.x.data_ptr()
        for d in range(shape.D if inputs is not None else 0):
            addresses[f"inputs {d}"] = part_address(inputs, d)
        for s, v in enumerate(start):
            for d in range(shape.D):
                addresses[f"start{s} {d}"] = part_address(v, d)
        self._held: list[Any] = [call, start, inputs]
        if call.reset is not None:
            self._hold(Resets(call, rows, d_initial))
        if rows.ragged:
            self._hold(RaggedWords(rows, shape.team.chunks, packed))

    def _hold(self, words: Resets | RaggedWords) -> None:
        self._held.append(words)
        self.addresses |= words.addresses
