"""to_keras: a plain stack as a saved model of Keras."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from torch import Tensor, nn
from torch.nn import functional

from throughtime.cell.contract import ACTIVATIONS
from throughtime.environment import __version__
from throughtime.errors import OptionError
from throughtime.export.keras import MERGES, ORDERS, PARTS, SIMPLE, to_snake_case
from throughtime.export.operators import Operator, find_operator, import_package, order_weights
from throughtime.export.pieces import Piece, check_stack, copy_model, find_input_width, list_pieces
from throughtime.export.program import Values
from throughtime.layers.layer import Passage


class Layer(NamedTuple):
    """A layer of Keras.

    Attributes:
        kind: its class.
        config: what it is built with, less its name.
        weights: of the layer itself, by Keras's names, in order.
        sides: of a recurrent layer the weights of each direction, in the order of PARTS.
    """

    kind: str
    config: dict[str, Any]
    weights: dict[str, Values]
    sides: tuple[list[Values], ...] = ()


def to_keras(model: nn.Module, file: str | os.PathLike[str]) -> Path:
    """Write a plain stack as a Sequential model that `keras.saving.load_model` reads.

    Args:
        model: layers whose cells Keras has (LSTM, GRU with its reset gate before or after the
            product, RNN), of one direction or two, linear parts, activations, layer norms, an
            embedding first. It takes (B, T, I), whatever the layers' own order.
        file: name.keras, or name.h5 for Keras 2.

    Raises:
        OptionError: Keras has no layer for a part, or the file's name ends otherwise.
        MissingExtra: h5py is not installed.
        OSError: the file cannot be written.
    """
    path, pieces = Path(file), list_pieces(copy_model(model))
    if path.suffix not in (".keras", ".h5"):
        raise OptionError(f"file must end in .keras or .h5, got {path.name!r}")
    check_stack(pieces)
    layers = [layer for piece in pieces for layer in _make_layers(piece)]
    names, count = list[str](), Counter[str]()
    for layer in layers:
        word = to_snake_case(layer.kind)
        names.append(f"{word}_{count[word]}" if count[word] else word)
        count[word] += 1
    config = _describe(pieces[0], layers, names)
    if path.suffix == ".keras":
        _write_archive(path, config, layers, names)
    else:
        _write_hdf5(path, config, layers, names)
    return path


def _make_layers(piece: Piece) -> list[Layer]:
    """The layers of Keras that a piece is."""
    module: Any = piece.module
    if isinstance(module, Passage):
        return _make_recurrent(piece.path, module)
    if isinstance(module, nn.Linear):
        weights = {"kernel": module.weight.numpy().T}
        if module.bias is not None:
            weights["bias"] = module.bias.numpy()
        sizes: dict[str, Any] = {"units": module.out_features, "use_bias": "bias" in weights}
        return [Layer("Dense", sizes, weights)]
    if isinstance(module, nn.Embedding):
        sizes = {"input_dim": module.num_embeddings, "output_dim": module.embedding_dim}
        return [Layer("Embedding", sizes, {"embeddings": module.weight.numpy()})]
    if isinstance(module, nn.LayerNorm):
        config: dict[str, Any] = {"epsilon": module.eps, "scale": module.weight is not None,
                  "center": module.bias is not None}  # fmt: skip
        vectors = {"gamma": module.weight, "beta": module.bias}
        weights = {n: v.numpy() for n, v in vectors.items() if v is not None}
        return [Layer("LayerNormalization", config, weights)]
    return [Layer("Activation", {"activation": _name_activation(piece)}, {})]


def _name_activation(piece: Piece) -> str:
    module: Any = piece.module
    for kind, name in _ACTIVATIONS.items():
        if type(module) is kind and _is_plain(module) or module is _FUNCTIONS.get(name):
            return name
    kind = type(module) if isinstance(module, nn.Module) else module
    raise OptionError(f"{piece.path} is a {kind.__name__}, which no layer of Keras is")


_ACTIVATIONS: Final = {
    nn.Tanh: "tanh", nn.ReLU: "relu", nn.Sigmoid: "sigmoid", nn.SiLU: "silu", nn.SELU: "selu",
    nn.Softsign: "softsign", nn.Softplus: "softplus", nn.ELU: "elu", nn.Softmax: "softmax",
}  # fmt: skip
_FUNCTIONS: Final = {**ACTIVATIONS, "softsign": functional.softsign}


def _is_plain(module: Any) -> bool:
    """Whether an activation has the numbers that Keras's has."""
    usual = {"alpha": 1.0, "beta": 1.0, "threshold": 20.0, "dim": -1}
    return all(getattr(module, name, value) == value for name, value in usual.items())


def _make_recurrent(path: str, layer: Any) -> list[Layer]:
    """One layer of Keras for each layer of ours."""
    if set(layer.dilations) != {1} or (len(layer.widths) > 1 and layer.options.residual):
        raise OptionError(f"{path} is dilated or residual, which no layer of Keras is")
    merges = {ours: theirs for theirs, ours in MERGES.items()}
    written = []
    for i in range(len(layer.widths)):
        call = layer._example(i)
        operator = find_operator(call)
        other = operator is None or operator.peepholes or "input_forget" in operator.attributes
        if operator is None or other or call.initial is not None:
            raise OptionError(f"{path} is a {call.cell!r} for which Keras has no layer")
        kind = "SimpleRNN" if operator.op == "RNN" else operator.op
        bias = "bias_ih" in call.weights[0] or "bias_hh" in call.weights[0]
        config: dict[str, Any] = {
            "units": call.hidden_size, "use_bias": bias, "return_sequences": True,
        }  # fmt: skip
        if kind == "SimpleRNN":
            theirs = {ours: name for name, ours in SIMPLE.items()}
            config["activation"] = theirs[operator.attributes["activations"]]
        if kind == "GRU":
            config["reset_after"] = bool(operator.attributes["linear_before_reset"])
        sides = tuple(_list_weights(call, operator, d, kind, bias) for d in range(call.directions))
        if call.directions == 2:
            merge = layer.options.merge
            if merge not in merges:
                raise OptionError(f"{path} has a merge of its own, which no layer of Keras has")
            config = {"layer": config, "merge_mode": merges[merge], "class": kind}
            kind = "Bidirectional"
        written.append(Layer(kind, config, {}, sides))
    return written


def _list_weights(call: Any, operator: Operator, d: int, kind: str, bias: bool) -> list[Values]:
    """kernel, recurrent kernel and bias of a direction."""
    W, R, B, _ = (v if v is None else v[d] for v in order_weights(call, operator))
    H = call.hidden_size

    def order_gates(v: Tensor) -> Values:
        blocks = v.detach().numpy().reshape(len(operator.gates), H, -1)
        order = [operator.gates.index(g) for g in ORDERS[kind]]
        return np.ascontiguousarray(blocks[order].reshape(len(order) * H, -1))

    assert W is not None and R is not None and B is not None
    parts = [order_gates(W).T, order_gates(R).T]
    if not bias:
        return parts
    both = [order_gates(b)[:, 0] for b in B.chunk(2)]
    two = kind == "GRU" and operator.attributes["linear_before_reset"]
    return [*parts, np.stack(both) if two else both[0] + both[1]]


def _describe(first: Piece, layers: list[Layer], names: list[str]) -> dict[str, Any]:
    width = [] if isinstance(first.module, nn.Embedding) else [find_input_width(first)]
    entries = [_entry("InputLayer", {"batch_shape": [None, None, *width], "name": "input"})]
    for layer, name in zip(layers, names, strict=True):
        config = {**layer.config, "name": name}
        if layer.kind == "Bidirectional":
            kind = config.pop("class")
            inner = {**config["layer"], "name": f"forward_{to_snake_case(kind)}"}
            other = {**inner, "name": inner["name"].replace("for", "back", 1),
                     "go_backwards": True}  # fmt: skip
            config["layer"] = _entry(kind, inner)
            config["backward_layer"] = _entry(kind, other)
        entries.append(_entry(layer.kind, config))
    config = {"name": "throughtime", "layers": entries}
    return {"module": "keras", "class_name": "Sequential", "config": config}


def _entry(kind: str, config: dict[str, Any]) -> dict[str, Any]:
    return {"module": "keras.layers", "class_name": kind, "config": config}


def _write_archive(
    path: Path, config: dict[str, Any], layers: list[Layer], names: list[str]
) -> None:
    buffer = io.BytesIO()
    with import_package("h5py").File(buffer, "w") as arrays:
        for layer, name in zip(layers, names, strict=True):
            groups = {"": list(layer.weights.values())}
            words = ("forward_layer/", "backward_layer/") if len(layer.sides) == 2 else ("",)
            groups |= {f"{w}cell/": v for w, v in zip(words, layer.sides, strict=False)}
            for inner, values in groups.items():
                group = arrays.require_group(f"layers/{name}/{inner}vars")
                for k, v in enumerate(values):
                    group.create_dataset(str(k), data=v)
    about = {"keras_version": "3.0.0", "date_saved": f"by throughtime {__version__}"}
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in (("metadata.json", about), ("config.json", config)):
            archive.writestr(name, json.dumps(text))
        archive.writestr("model.weights.h5", buffer.getvalue())


def _write_hdf5(path: Path, config: dict[str, Any], layers: list[Layer], names: list[str]) -> None:
    """A .h5 file, as of Keras 2."""
    with import_package("h5py").File(path, "w") as arrays:
        arrays.attrs["keras_version"] = "2.15.0"
        arrays.attrs["backend"] = "tensorflow"
        arrays.attrs["model_config"] = json.dumps(config)
        weights = arrays.create_group("model_weights")
        weights.attrs["layer_names"] = [n.encode() for n in names]
        for layer, name in zip(layers, names, strict=True):
            group = weights.create_group(name)
            values = {f"{name}/{n}:0": v for n, v in layer.weights.items()}
            words = ("forward_", "backward_") if len(layer.sides) == 2 else ("",)
            for word, side in zip(words, layer.sides, strict=False):
                inner = f"{name}/{word}cell"
                values |= {f"{inner}/{n}:0": v for n, v in zip(PARTS, side, strict=False)}
            group.attrs["weight_names"] = [n.encode() for n in values] or np.zeros(0, "S1")
            for key, v in values.items():
                group.create_dataset(key, data=v)
