"""Packed weights that wait for the next call with the same parameters, for calls without gradient.

Beside them lies a copy of the weights that they were packed from. At every call the region compares
the weights with that copy, bit by bit, and packs what differs, so it matters to no result what
waits here, nor how weights were changed meanwhile. One parameter's pack is used by one call at a
time; another call that comes meanwhile packs anew.

It pays for few rows, and where weights have left the near caches: packing takes as long as some ten
rows do, and comparing reads where packing writes. A pack dies with its parameter, and is none of a
layer's own: copies and pickles of a layer carry none.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np
import torch
from torch import Tensor

from throughtime.backends.call import Call
from throughtime.backends.cpu.memory import fresh
from throughtime.backends.cpu.runs import packed_forward
from throughtime.backends.cpu.shape import Key, Shape
from throughtime.backends.cpu.template import Arena

PACKED: Final = ("W_pack", "U_pack", "U_early")
"""What weights are packed to, of one direction."""

MOST_ROWS: Final = 512
"""Rows over all steps up to which packing is more than a hundredth of a call."""

LEAST_NUMBERS: Final = 1 << 16
"""Weights of a direction from which packing takes longer than finding what waits."""

MOST_BYTES: Final = 256 << 20
"""Of all packs that wait, copies of weights included; who finds no room packs at every call."""


@dataclass(frozen=True)
class Layout:
    """How packed weights lie in memory.

    Attributes:
        key: what it follows from; equal keys, equal places.
        places: name -> bytes from the start.
        bytes: of them all; a copy of the weights, as long, lies behind.
    """

    key: Hashable
    places: Mapping[str, int]
    bytes: int


def layout_of(key: Key, shape: Shape) -> Layout:
    """Of the packed weights of all directions, where they are kept from call to call."""
    arena, sizes = Arena(), packed_sizes(shape)
    places = {f"{n} {d}": arena.reserve(sizes[n]) for d in range(shape.D) for n in PACKED}
    return Layout((key.cell, key.masks, key.bytes, key.sizes, shape.panel), places, arena.bytes)


def packed_sizes(shape: Shape) -> dict[str, int]:
    """Bytes of each packed array of one direction."""
    plan, H_row = shape.plan, shape.H_row
    sizes = len(plan.with_a) * H_row * shape.I, len(plan.last) * H_row * shape.H
    return dict(zip(PACKED, (*sizes, packed_forward(shape)), strict=True))


@dataclass(frozen=True)
class _Pack:
    owner: weakref.ref[Tensor]
    key: Hashable
    memory: np.ndarray


_waiting: dict[int, _Pack] = {}  # by the parameter's id


def owner_of(call: Call, rows: int) -> Tensor | None:
    """The parameter whose pack a call of so many rows over all steps uses; None: it packs alone."""
    weights = call.weights[0].values()
    first = next(iter(weights), None)
    if rows > MOST_ROWS or not isinstance(first, torch.nn.Parameter):
        return None
    return first if sum(v.numel() for v in weights) >= LEAST_NUMBERS else None


def has_room(owner: Tensor, layout: Layout) -> bool:
    """Whether a pack of this parameter may wait: one does already, or there is room for it."""
    return id(owner) in _waiting or waiting_bytes() + 2 * layout.bytes <= MOST_BYTES


@contextmanager
def packed(owner: Tensor, layout: Layout) -> Iterator[dict[str, int]]:
    """The words of one region's packed weights; behind it they wait for the next.

    Args:
        owner: the parameter they belong to.
        layout: how they lie.
    """
    old = _waiting.pop(id(owner), None)
    found = old if old is not None and old.owner() is owner else None
    if found is None or found.memory.nbytes < 2 * layout.bytes:
        known = weakref.ref(owner, partial(_forget, id(owner)))
        found = _Pack(known, None, fresh(2 * layout.bytes))
    trusted, found = found.key == layout.key, replace(found, key=layout.key)
    start = found.memory.ctypes.data
    yield {name: start + place for name, place in layout.places.items()} | {"trusted": int(trusted)}
    if waiting_bytes() + found.memory.nbytes <= MOST_BYTES:
        _waiting[id(owner)] = found


def waiting_bytes() -> int:
    """Of all packs that wait."""
    return sum(pack.memory.nbytes for pack in list(_waiting.values()))


def _forget(place: int, owner: weakref.ref[Tensor]) -> None:
    """The owner is dead; its id may be another's by now."""
    found = _waiting.get(place)
    if found is not None and found.owner is owner:
        _waiting.pop(place, None)
