"""from_keras: the recurrent layers of a model of Keras as layers of ours."""

from __future__ import annotations

import io
import json
import lzma
import os
import re
import subprocess
import sys
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from torch import nn

from throughtime.errors import DataError
from throughtime.export import hdf5
from throughtime.export.operators import Side, fill_side, import_package, make_cell
from throughtime.export.program import Values
from throughtime.layers import Recurrent

ORDERS: Final = {"LSTM": ("i", "f", "g", "o"), "GRU": ("z", "r", "n"), "SimpleRNN": ("h",)}
"""By the layer's class: our gates as Keras has them, side by side."""

SIMPLE: Final = {"tanh": "Tanh", "relu": "Relu", "sigmoid": "Sigmoid"}
"""Activations of a SimpleRNN that a cell of ours has."""

MERGES: Final = {"concat": "concat", "sum": "sum", "mul": "mul", "ave": "mean"}
"""How Bidirectional joins its directions, and how that is called here."""

PARTS: Final = ("kernel", "recurrent_kernel", "bias")
"""Weights of a direction, in order."""

_DEEPEST: Final = 16
_LARGEST: Final = 1 << 24
"""Bytes of a model's description."""

_SWELL: Final = 64
"""A part of an archive may be so many times as large as the archive."""

_NO_ARCHIVE: Final = (
    KeyError, ValueError, OSError, NotImplementedError, RuntimeError, EOFError, zipfile.BadZipFile,
    zlib.error, lzma.LZMAError,
)  # fmt: skip
"""What a damaged archive raises."""

Config = Mapping[str, Any]
Reader = Callable[[str, str], Values | None]


class _KerasLayer(NamedTuple):
    """A recurrent layer of a file.

    Attributes:
        name: its own.
        kind: its class.
        config: of the layer, or of the forward layer.
        two_way: whether it is Bidirectional.
        merge: Keras's word for how its directions are joined.
        read: gives a weight by the direction ("", "forward" or "backward") and its name.
    """

    name: str
    kind: str
    config: Config
    two_way: bool
    merge: Any
    read: Reader


def from_keras(file: str | os.PathLike[str]) -> dict[str, nn.Module]:
    """Every LSTM, GRU and SimpleRNN of a saved model, by the layer's name; two-way ones whole.

    Layers take x (B, T, I), as Keras's do, and give (outputs, state).

    Args:
        file: of `model.save`, .keras or .h5; its code (Lambda and the like) is never run. Of a .h5
            of `save_weights` the shapes say what a layer is, with a warning.

    Raises:
        DataError: the file is none of Keras, has no recurrent layer, or one that no cell of ours
            computes; says why.
        MissingExtra: h5py is not installed.
    """
    path, layers = Path(file), dict[str, nn.Module]()
    if zipfile.is_zipfile(path):
        config, weights = _unpack(path)
        parts = _read_archive(Arrays(f"{path}, its weights,", weights), config, "")
    else:
        path.stat()  # which says where there is no file
        arrays = Arrays(str(path), path)
        text = "".join(arrays.words("", "model_config"))
        parts = _read_hdf5(arrays, _parse(str(path), text)) if text else _read_weights(arrays)
    for part in parts:
        name = part.name
        while name in layers:
            name += "_"
        layers[name] = _make_layer(str(path), part)
    if not layers:
        raise DataError(f"{path} must hold an LSTM, GRU or SimpleRNN of Keras, and it has none")
    return layers


class Arrays:
    """What is in a file of HDF5, read by a process of its own.

    Args:
        place: what it is called in errors.
        source: its path, or its bytes.

    Raises:
        DataError: it cannot be read.
        MissingExtra: h5py is not installed.
    """

    def __init__(self, place: str, source: Path | bytes) -> None:
        import_package("h5py")
        self.place, content = place, source if isinstance(source, bytes) else None
        command = [sys.executable, "-P", hdf5.__file__, "-" if content is not None else str(source)]
        paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(command, input=content, capture_output=True, env=paths)
        if done.returncode:
            errors = done.stderr.decode(errors="replace").strip().splitlines()
            reason = errors[-1] if errors else "it breaks what reads it"
            raise DataError(f"{place} must be a file of HDF5, and it is not ({reason})")
        self._arrays = np.load(io.BytesIO(done.stdout), allow_pickle=False)
        table = json.loads(bytes(self._arrays["table"]))
        self._names, self._texts, self._left = (table[n] for n in ("names", "texts", "left"))

    def read(self, path: str) -> Values | None:
        """A float32 array; None where there is none.

        Raises:
            DataError: it lies elsewhere, is of another kind, or larger than the file holds.
        """
        parts = path.split("/")
        for above in ("/".join(parts[:k]) for k in range(1, len(parts) + 1)):
            if above in self._left:
                raise DataError(f"{self.place} has {above!r}, which {self._left[above]}")
        return self._arrays[f"arr_{self._names[path]}"] if path in self._names else None

    def words(self, path: str, name: str) -> list[str]:
        """Texts that stand at a group under a name, in one piece or in numbered ones."""
        keys = (f"{path}@{name}", *(f"{path}@{name}{k}" for k in range(64)))
        return [word for key in keys for word in self._texts.get(key, [])]


def _unpack(path: Path) -> tuple[Config, bytes]:
    """The description and the weights of an archive."""
    parts = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in ("config.json", "model.weights.h5"):
                size = archive.getinfo(name).file_size
                if size > _SWELL * path.stat().st_size:
                    raise DataError(f"{path} says {name} is {size} bytes, more than it can hold")
                with archive.open(name) as part:
                    parts[name] = part.read(size)
    except DataError:
        raise
    except _NO_ARCHIVE as error:
        raise DataError(f"{path} must be an archive of Keras, and it is not ({error})") from error
    text = parts["config.json"].decode(errors="replace")
    return _parse(str(path), text), parts["model.weights.h5"]


def _parse(place: str, text: str) -> Config:
    if len(text) > _LARGEST:
        raise DataError(f"{place} has a description of {len(text)} bytes, more than {_LARGEST}")
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place} has a description that cannot be read ({error})") from error
    if not isinstance(config, dict):
        raise DataError(f"{place} must describe a model, got {type(config).__name__}")
    return config


def _list_entries(config: Config, depth: int = 0) -> list[Config]:
    """The layers of a model; none of what is no model."""
    inner = config.get("config")
    layers = inner.get("layers") if isinstance(inner, dict) else inner
    if not isinstance(layers, list) or depth > _DEEPEST:
        return []
    return [one for one in layers if isinstance(one, dict)]


def _read_archive(
    arrays: Arrays, config: Config, group: str, depth: int = 0
) -> Iterator[_KerasLayer]:
    """The recurrent layers; archives name the weights' groups by class, numbered in order."""
    count: Counter[str] = Counter()
    for entry in _list_entries(config, depth):
        word = to_snake_case(str(entry.get("class_name")))
        here = f"{group}layers/{word}{f'_{count[word]}' if count[word] else ''}/"
        count[word] += 1
        yield from _read_archive(arrays, entry, here, depth + 1)

        def read(side: str, part: str, here: str = here) -> Values | None:
            inner = f"{side}_layer/" if side else ""
            return arrays.read(f"{here}{inner}cell/vars/{PARTS.index(part)}")

        yield from _find_recurrent(entry, read)


def to_snake_case(name: str) -> str:
    """A class's name as Keras calls its layers."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _read_hdf5(arrays: Arrays, config: Config) -> Iterator[_KerasLayer]:
    """The recurrent layers; each part of the model names its weights, of all that is in it."""
    for entry in _list_entries(config):
        name = str(_config(entry).get("name"))
        group = f"model_weights/{name}"
        yield from _read_part(arrays, entry, group, arrays.words(group, "weight_names"))


def _read_part(
    arrays: Arrays, entry: Config, group: str, names: list[str], depth: int = 0
) -> Iterator[_KerasLayer]:
    for inner in _list_entries(entry, depth):
        yield from _read_part(arrays, inner, group, names, depth + 1)
    word = str(_config(entry).get("name"))
    names_here = [n for n in names if word in n.split("/")] if depth else names

    def read(side: str, part: str) -> Values | None:
        for name in names_here:
            *above, last = name.split("/")
            if last.partition(":")[0] == part and (
                not side or any(word.startswith(f"{side}_") for word in above)
            ):
                return arrays.read(f"{group}/{name}")
        return None

    yield from _find_recurrent(entry, read)


def _read_weights(arrays: Arrays) -> Iterator[_KerasLayer]:
    """The recurrent layers of a file of `save_weights`, which does not say what they are."""
    for group in arrays.words("", "layer_names"):
        names = arrays.words(group, "weight_names")
        ends = [n for n in names if n.rpartition("/")[2].partition(":")[0] == PARTS[1]]
        kernels = [arrays.read(f"{group}/{n}") for n in ends]
        if not kernels or len(kernels) > 2:
            continue

        def read(side: str, part: str, group: str = group, ends: list[str] = ends) -> Any:
            for name in ends[1:] if side == "backward" else ends[:1]:
                above, _, last = name.rpartition("/")
                return arrays.read(f"{group}/{above}/{last.replace(PARTS[1], part)}")

        R, bias = kernels[0], read("", "bias")
        gates = R.shape[1] // R.shape[0] if R is not None and R.ndim == 2 and len(R) else 0
        kind = next((k for k, order in ORDERS.items() if len(order) == gates), None)
        if kind is None:
            continue
        warnings.warn(
            f"{arrays.place} has weights alone and does not say how {group!r} is computed; a "
            f"{kind} of Keras's usual activations is assumed, sigmoid and tanh",
            stacklevel=2,
        )
        config = {"use_bias": bias is not None, "reset_after": bias is not None and bias.ndim == 2}
        yield _KerasLayer(group, kind, config, len(kernels) == 2, "concat", read)


def _config(entry: Any) -> Config:
    config = entry.get("config") if isinstance(entry, dict) else None
    return config if isinstance(config, dict) else {}


def _find_recurrent(entry: Config, read: Reader) -> Iterator[_KerasLayer]:
    """A layer of the file, where it is recurrent."""
    kind, config = str(entry.get("class_name")), _config(entry)
    name = str(config.get("name"))
    if kind in ORDERS:
        yield _KerasLayer(name, kind, config, False, None, read)
    elif kind == "Bidirectional":
        inner = config.get("layer")
        inner_kind = str(inner.get("class_name")) if isinstance(inner, dict) else ""
        if inner_kind in ORDERS:
            merge = config.get("merge_mode", "concat")
            yield _KerasLayer(name, inner_kind, _config(inner), True, merge, read)


def _make_layer(place: str, part: _KerasLayer) -> nn.Module:
    place = f"{place}, layer {part.name!r},"
    merge: Any = "concat"
    if part.two_way:
        if not isinstance(part.merge, str) or part.merge not in MERGES:
            raise DataError(f"{place} has merge_mode {part.merge!r}, which no layer here has")
        merge = MERGES[part.merge]
    elif part.config.get("go_backwards"):
        raise DataError(
            f"{place} goes backwards and gives its outputs from the last step to the first, which "
            f"no layer here does"
        )
    sides = ("forward", "backward") if part.two_way else ("",)
    after = bool(part.config.get("reset_after", False))
    weights = [_read_side(place, part, side, after) for side in sides]
    op = "RNN" if part.kind == "SimpleRNN" else part.kind
    cell, _ = make_cell(op, _find_activation(place, part), after)
    H, I = weights[0].R.shape[1], weights[0].W.shape[1]
    layer = Recurrent(
        cell, I, H, bidirectional=part.two_way, merge=merge, batch_first=True,
        bias=weights[0].biases[0] is not None,
    )  # fmt: skip
    for d, side in enumerate(weights):
        fill_side(layer, d, side)
    return layer


def _find_activation(place: str, part: _KerasLayer) -> str:
    """The activation of a SimpleRNN; that of the others must be the usual one."""
    wanted = {"activation": "tanh", "recurrent_activation": "sigmoid"}
    if part.kind == "SimpleRNN":
        name = part.config.get("activation", "tanh")
        if isinstance(name, str) and name in SIMPLE:
            return SIMPLE[name]
        raise DataError(f"{place} has activation {name!r}, which no cell of ours has")
    for key, usual in wanted.items():
        if part.config.get(key, usual) != usual:
            raise DataError(f"{place} has {key} {part.config[key]!r}, which no cell of ours has")
    return "Tanh"


def _read_side(place: str, part: _KerasLayer, side: str, after: bool) -> Side:
    """The weights of a direction, transposed to (gates H, inputs)."""
    order = ORDERS[part.kind]
    W, R, b = (part.read(side, name) for name in PARTS)
    if W is None or R is None or W.ndim != 2 or R.ndim != 2:
        raise DataError(f"{place} must have a kernel and a recurrent_kernel, and it has not")
    G, H = len(order), R.shape[0]
    two = part.kind == "GRU" and after
    shape = (2, G * H) if two else (G * H,)
    if R.shape[1] != G * H or W.shape[1] != G * H or not H or not W.shape[0]:
        raise DataError(f"{place} must have kernels for {G} gates, got {W.shape} and {R.shape}")
    if b is not None and b.shape != shape:
        raise DataError(f"{place} must have a bias of shape {shape}, got {b.shape}")
    if b is None and part.config.get("use_bias", True):
        raise DataError(f"{place} must have a bias, and it has none")
    biases = (None, None) if b is None else (b[0], b[1]) if two else (b, None)
    return Side(order, W.T, R.T, biases)
