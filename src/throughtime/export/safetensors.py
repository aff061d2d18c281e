"""from_safetensors: the recurrent layers of a state_dict that was written as safetensors."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from throughtime.errors import DataError, missing_extra
from throughtime.export.operators import cell_of
from throughtime.layers.recurrent import Recurrent

_OPERATORS: Final = {4: "LSTM", 3: "GRU", 1: "RNN"}
"""By how many gates there are in torch's matrices."""

_LAYER: Final = re.compile(r"^(?:(.*)\.)?weight_hh(?:_l0)?$")


def from_safetensors(file: str | os.PathLike[str]) -> dict[str, nn.Module]:
    """Every layer and cell by torch.nn's names (`weight_ih_l0`, `weight_ih`), by its path.

    How many gates its matrices have says what it is: LSTM, GRU, or RNN with tanh.

    Raises:
        DataError: the file is no safetensors, or holds no such layer, or one that is not whole.
        MissingExtra: safetensors is not installed.
    """
    path = Path(file)
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        raise missing_extra("safetensors", "train") from error
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise DataError(f"{path} must be a file of safetensors, and it is not ({error})") from error
    prefixes = [m[1] or "" for m in map(_LAYER.match, tensors) if m]
    if not prefixes:
        raise DataError(
            f"{path} must hold a layer or cell by torch.nn's names (weight_hh_l0, weight_hh), and "
            f"it has none"
        )
    return {p or "layer": _make_layer(f"{path}, layer {p!r},", p, tensors) for p in prefixes}


def _make_layer(place: str, prefix: str, tensors: Mapping[str, Tensor]) -> nn.Module:
    head = f"{prefix}." if prefix else ""
    names = {n: n[len(head) :] for n in tensors if n.startswith(head)}
    weights = {short if "_l" in short else f"{short}_l0": tensors[n] for n, short in names.items()
           if re.fullmatch(r"(weight|bias)_(ih|hh|hr)(_l\d+(_reverse)?)?", short)}  # fmt: skip
    W, R = weights.get("weight_ih_l0"), weights["weight_hh_l0"]
    gates = R.shape[0] // R.shape[-1] if R.dim() == 2 and R.shape[-1] else 0
    if W is None or W.dim() != 2 or gates not in _OPERATORS or gates * R.shape[1] != R.shape[0]:
        raise DataError(
            f"{place} must have matrices of 4, 3 or 1 gates, got {list(R.shape)} as weight_hh_l0"
        )

    numbers = {int(n) for name in weights for n in re.findall(r"_l(\d+)", name)}
    if numbers != set(range(len(numbers))):
        raise DataError(f"{place} must have all layers from 0 on, got {sorted(numbers)}")
    layer = Recurrent(
        cell_of(_OPERATORS[gates])[0], W.shape[1], R.shape[1], num_layers=len(numbers),
        bias="bias_ih_l0" in weights, bidirectional="weight_ih_l0_reverse" in weights,
    )  # fmt: skip
    try:
        layer.load_state_dict({n: v.to(torch.float32) for n, v in weights.items()})
    except RuntimeError as error:
        words = " ".join(str(error).split())
        raise DataError(f"{place} must be whole, and it is not ({words})") from error
    return layer
