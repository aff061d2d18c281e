"""Imported layers as a folder: their weights as arrays, and a file of Python that builds them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from throughtime.export.onnx.operators import Reversed

_HEAD = '''"""Layers that were read from {source}; each is a name of this file."""

from pathlib import Path

import numpy
import torch

from throughtime import Recurrent, cells

_WEIGHTS = numpy.load(Path(__file__).with_name("weights.npz"), allow_pickle=False)


def _filled(name, layer):
    weights = {{k: torch.from_numpy(_WEIGHTS[f"{{name}}.{{k}}"]) for k in layer.state_dict()}}
    layer.load_state_dict(weights)
    return layer.eval()


'''


def write_layers(
    layers: dict[str, nn.Module], out: str | os.PathLike[str], source: str
) -> dict[str, str]:
    """Write layers into a folder: `layers.py` and `weights.npz`.

    Args:
        layers: by name, as `from_onnx` gives them.
        out: the folder, which is made if need be.
        source: where they are from, as it is told in the file.

    Returns:
        For each layer its name in `layers.py`.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    names: dict[str, str] = {}
    lines, weights = list[str](), dict[str, Any]()
    for word, layer in layers.items():
        name = f"{'' if word[:1].isalpha() else 'layer_'}{re.sub(r'[^A-Za-z0-9]+', '_', word)}"
        name = name.strip("_").lower()
        while name in names.values():
            name += "_"
        names[word] = name
        inner: Any = layer.layer if isinstance(layer, Reversed) else layer
        built = f"_filled({name!r}, Recurrent(cells.{inner.cell!r}, {_sizes(inner)}))"
        if isinstance(layer, Reversed):
            built += "  # the file reads it backward"
        lines.append(f"{name} = {built}")
        for key, v in inner.state_dict().items():
            weights[f"{name}.{key}"] = v.numpy()
    np.savez(folder / "weights.npz", **weights)
    text = _HEAD.format(source=re.sub(r'[\\"\n]', "_", source)) + "\n".join(lines) + "\n"
    (folder / "layers.py").write_text(text, encoding="utf-8")
    return names


def _sizes(layer: Any) -> str:
    words = [str(layer.input_size), str(layer.hidden_sizes[0])]
    words += [f"num_layers={len(layer.widths)}"] * (len(layer.widths) > 1)
    words += ["bias=False"] * (not any(n.startswith("bias_") for n in layer.state_dict()))
    if layer.directions == 2:
        merge = layer.options.merge
        words += ["bidirectional=True", *([f"merge={merge!r}"] if merge != "concat" else [])]
    words += ["batch_first=True"] * layer.batch_first
    return ", ".join(words)
