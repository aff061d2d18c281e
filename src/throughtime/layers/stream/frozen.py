"""A frozen copy of a model and its packed weights, shared by all streams of the model."""

from __future__ import annotations

import io
import pickle
import weakref
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from throughtime.backends.cpu.stream.stack import Stack
from throughtime.layers.layer import Passage
from throughtime.layers.stream.chain import Parts
from throughtime.layers.stream.model import check_streamable, copy_frozen, round_matrices
from throughtime.layers.stream.parts import find_parts
from throughtime.layers.stream.trial import agrees


class Frozen:
    """A copy of a model in eval mode, which many streams read and none changes.

    Args:
        model: the copy.
        narrow: whether its matrices hold bfloat16 values in float32.

    Attributes:
        model, narrow: as above.
        layers: its recurrent layers.
        batch_first: of all of them.
        parts: the parts of one call of compiled code, or why there are none.
    """

    def __init__(self, model: nn.Module, narrow: bool) -> None:
        self.model, self.narrow = model, narrow
        self.layers = [m for m in model.modules() if isinstance(m, Passage)]
        self.batch_first = bool(self.layers[0].batch_first)
        self.parts: Parts | str
        self.parts, self._followed = find_parts(model)

    @cached_property
    def stack(self) -> Stack | None:
        """The whole model as one call, or None where compiled code does not take it."""
        if isinstance(self.parts, str):
            return None
        stack = Stack(self.parts, self.narrow)
        if self._followed and not agrees(self.model, self.layers, stack):
            name = type(self.model).__name__
            self.parts = f"the model holds a {name}, whose forward does more than call its parts"
            return None
        return stack

    @cached_property
    def stacks(self) -> list[Stack | None]:
        """Each of its layers as one call, or None where compiled code does not take it."""
        parts = [find_parts(layer)[0] for layer in self.layers]
        return [None if isinstance(p, str) else Stack(p, self.narrow) for p in parts]

    def __reduce__(self) -> tuple[Any, ...]:
        return Frozen, (self.model, self.narrow)


class _Cached:
    """A frozen model, as long as a stream reads it, and the source it was made of.

    Args:
        frozen: the frozen model.
        outline: the source in bytes, without its tensors.
        values: constant copies of these; they live as long as the frozen model.
    """

    def __init__(self, frozen: Frozen, outline: bytes, values: list[Tensor]) -> None:
        self.frozen = weakref.ref(frozen)
        self._outline = outline
        self._values: list[Callable[[], Tensor | None]] = [
            partial(_same, v) if frozen.narrow else weakref.ref(v) for v in values
        ]

    def fits(self, outline: bytes, tensors: list[Tensor]) -> bool:
        """Whether a model is unchanged since it was frozen."""
        if outline != self._outline or len(tensors) != len(self._values):
            return False
        for value, v in zip(self._values, tensors, strict=True):
            old = value()
            if old is None or old.dtype != v.dtype or old.device != v.device:
                return False
            if old.shape != v.shape or not _equal(old, v):
                return False
        return True


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether the bits are equal; without torch's threads, which hang in a forked process."""
    if not one.is_cpu:
        return torch.equal(one, other)
    a, b = (v.detach().reshape(-1).view(torch.uint8).numpy() for v in (one, other))
    return np.array_equal(a, b)


def _same(value: Tensor) -> Tensor:
    return value


_CACHE: Final[weakref.WeakKeyDictionary[nn.Module, dict[Any, _Cached]]] = (
    weakref.WeakKeyDictionary()
)


def freeze(source: nn.Module, weights: torch.dtype | None) -> Frozen:
    """The frozen copy of a model: that of another stream, if the model is unchanged since."""
    outline, tensors = _outline(source)
    cached = _CACHE.get(source, {}).get(weights)
    shared = cached.frozen() if cached is not None else None
    if shared is not None and cached is not None and outline is not None:
        if cached.fits(outline, tensors):
            return shared
    check_streamable(source)
    copies: dict[int, Any] = {}
    model = copy_frozen(source, copies)
    values = [copies.get(id(v), v) for v in tensors]
    if weights is not None:
        values = [v.detach().clone() for v in values]
    round_matrices(model, weights)
    frozen = Frozen(model, weights is not None)
    if outline is not None:
        _CACHE.setdefault(source, {})[weights] = _Cached(frozen, outline, values)
    return frozen


class _Outline(pickle.Pickler):
    """Writes a model without its tensors, which it collects."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []

    def persistent_id(self, value: Any) -> Any:
        """A tensor's number."""
        if not isinstance(value, Tensor):
            return None
        self.tensors.append(value)
        return type(value).__name__, len(self.tensors)


def _outline(model: nn.Module) -> tuple[bytes | None, list[Tensor]]:
    """A model in bytes, without its tensors; None where it cannot be pickled or compared."""
    file = io.BytesIO()
    writer = _Outline(file)
    try:
        writer.dump(model)
    except (pickle.PicklingError, TypeError, ValueError, AttributeError, RuntimeError, OSError):
        return None, []
    plain = all(
        type(v) in (Tensor, nn.Parameter) and v.layout == torch.strided and v.device.type != "meta"
        for v in writer.tensors
    )
    return (file.getvalue() if plain else None), writer.tensors
