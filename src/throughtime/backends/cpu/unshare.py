"""Calls of cells that multiply by one matrix several times: the same weights for each product."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from throughtime.backends.call import Call, Gradients
from throughtime.backends.cpu.look import see_layer
from throughtime.compiler.passes import Apart, apart

_OF_GATES = ("weight_hh", "bias_hh")


def call_apart(call: Call) -> Call:
    """The call with weights for every product of a step; itself, if it has them."""
    cell = apart(call.cell, call.hidden_size)
    if cell is call.cell or not isinstance(cell, Apart):
        return call
    lines = len(call.cell.layout.recurrent_gates) * call.hidden_size
    shapes = ((lines, call.cell.widths(call.hidden_size)[0]), (lines,))
    for name, shape in zip(_OF_GATES, shapes, strict=True):
        if any(name in w and w[name].shape != shape for w in call.weights):
            see_layer(call, call.x.shape[-1])  # says which weight it is
    weights = tuple(_apart(cell, w) for w in call.weights)
    return call._replace(cell=cell, weights=weights)


def cell_apart(call: Call) -> Call:
    """The call with that cell and the weights it had, for shapes that follow from no weight."""
    return call._replace(cell=apart(call.cell, call.hidden_size))


def gradients_together(cell: object, grads: Gradients) -> Gradients:
    """Gradients of such a call, those of equal weights added up."""
    if not isinstance(cell, Apart):
        return grads
    return grads._replace(weights=tuple(_together(cell, w) for w in grads.weights))


def _sources(cell: Apart) -> list[int]:
    """Numbers of the gates that the added ones are the same as."""
    gates = cell.cell.layout.recurrent_gates
    return [gates.index(cell.copies[g]) for g in cell.layout.recurrent_gates[len(gates) :]]


def _products(cell: Apart) -> list[tuple[str, str]]:
    """Names of added matrices, and of those that they are the same as."""
    own = [p for p in cell.layout.products if p in cell.copies]
    return [(f"weight_{p}", f"weight_{cell.copies[p]}") for p in own]


def _by_gates(v: Tensor, gates: int) -> Tensor:
    """(G H, ...) as (G, H, ...)."""
    return v.reshape(gates, len(v) // gates, *v.shape[1:])


def _apart(cell: Apart, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named, sources = dict(weights), _sources(cell)
    gates = len(cell.cell.layout.recurrent_gates)
    for name in _OF_GATES if sources else ():
        if name in weights:
            v = _by_gates(weights[name], gates)
            named[name] = torch.cat([v, v[sources]]).flatten(0, 1)
    return named | {copy: weights[name] for copy, name in _products(cell)}


def _together(cell: Apart, grads: Mapping[str, Tensor]) -> dict[str, Tensor]:
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
