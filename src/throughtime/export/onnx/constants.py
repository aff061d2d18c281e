"""Constants of a file of ONNX, and what is cut and joined of them, as exporters write weights.

Every size is checked before numbers are made: a file yields no more than it can hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np

from throughtime.errors import DataError
from throughtime.export.onnx.graph import onnx_package

_DEEPEST: Final = 32
_Array = np.ndarray[Any, Any]


class Made(NamedTuple):
    """A constant that a node makes of others, which were there before it."""

    node: Any
    constants: Mapping[str, Any]


def is_made(node: Any, constants: Mapping[str, Any]) -> bool:
    """Whether a node only cuts and joins constants."""
    there = bool(node.input) and all(i in constants for i in node.input if i)
    return node.op_type in _RULES and len(node.output) == 1 and there


class Initialisers:
    """Reads constants.

    Args:
        place: of the node that reads them, for errors.
        known: by name, tensors or what is made of them.
        size: bytes of the file.
    """

    def __init__(self, place: str, known: Mapping[str, Any], size: int) -> None:
        self.place, self.known, self.size = place, known, size
        self._made: dict[int, _Array] = {}  # each once, however often others are made of it

    def floats(self, key: str, name: str) -> _Array:
        """The float32 numbers of a constant; `key` is what it is to the node."""
        if name not in self.known:
            raise DataError(
                f"{self.place} must have its {key} as a constant of the file, got {name!r}, which "
                f"is computed or given"
            )
        found = self._value(key, self.known[name], 0)
        if found.dtype != np.float32:
            raise DataError(f"{self.place} must have float32 weights, got {found.dtype} for {key}")
        return np.ascontiguousarray(found)

    def _value(self, key: str, source: Any, depth: int) -> _Array:
        if id(source) not in self._made:
            made = isinstance(source, Made)
            self._made[id(source)] = (
                self._joined(key, source, depth) if made else self._tensor(key, source)
            )
        return self._made[id(source)]

    def _joined(self, key: str, source: Made, depth: int) -> _Array:
        if depth > _DEEPEST:
            raise DataError(f"{self.place} has a {key} that is made in more than {_DEEPEST} steps")
        node, known = source
        values = [self._value(key, known[i], depth + 1) if i else None for i in node.input]
        count = sum(v.size for v in values if v is not None)
        self._check_size(key, (count,))
        attributes = {a.name: onnx_package().helper.get_attribute_value(a) for a in node.attribute}
        try:
            return _RULES[node.op_type](attributes, *values)
        except (ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
            raise DataError(f"{self.place} has a {key} that cannot be made ({error})") from error

    def _check_size(self, key: str, dims: tuple[int, ...]) -> None:
        if any(n < 0 for n in dims) or math.prod(dims) * 4 > 4 * self.size:
            raise DataError(f"{self.place} says {key} is {list(dims)}, more than the file holds")

    def _tensor(self, key: str, tensor: Any) -> _Array:
        onnx = onnx_package()
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise DataError(
                f"{self.place} keeps {key} in another file, which is not opened; write the model "
                f"again with all weights inside"
            )
        self._check_size(key, tuple(tensor.dims))
        try:
            found: _Array = np.array(onnx.numpy_helper.to_array(tensor))
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{self.place} has a {key} that cannot be read ({error})") from error
        return found


def _axes(attributes: Mapping[str, Any], axes: _Array | None) -> tuple[int, ...]:
    given = attributes["axes"] if axes is None else axes.tolist()
    return tuple(int(a) for a in given)


def _slice(
    attributes: Mapping[str, Any], x: _Array, starts: Any = None, ends: Any = None,
    axes: Any = None, steps: Any = None,
) -> _Array:  # fmt: skip
    starts = attributes["starts"] if starts is None else starts.tolist()
    ends = attributes["ends"] if ends is None else ends.tolist()
    if axes is None:
        axes = attributes.get("axes", range(len(starts)))
    cut = [slice(None)] * x.ndim
    for k, axis in enumerate(axes):
        cut[int(axis)] = slice(
            int(starts[k]), int(ends[k]), None if steps is None else int(steps[k])
        )
    return x[tuple(cut)]


_RULES: Final[dict[str, Callable[..., _Array]]] = {
    "Identity": lambda attributes, x: x,
    "Unsqueeze": lambda attributes, x, axes=None: np.expand_dims(x, _axes(attributes, axes)),
    "Squeeze": lambda attributes, x, axes=None: np.squeeze(x, _axes(attributes, axes)),
    "Transpose": lambda attributes, x: np.transpose(x, attributes.get("perm")),
    "Concat": lambda attributes, *parts: np.concatenate(parts, attributes["axis"]),
    "Slice": _slice,
}
