"""The weights of a run: one safetensors file, whole, checked for damage and for NaN."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from throughtime.errors import RunError
from throughtime.train.files import read_whole, write_whole
from throughtime.train.run import Run

_CURE = "restore the file, or write it again with --resume while the checkpoint is there"


def write_weights(run: Run, weights: Mapping[str, Tensor]) -> None:
    """Writes the weights of a finished run."""
    content = {name: value.contiguous() for name, value in weights.items()}
    write_whole(run.weights, save(content, metadata={"sha256": _digest(content)}))


def load_weights(run: Run, model: nn.Module) -> None:
    """Puts the weights of a run into its model.

    Raises:
        RunError: there are none yet, or they are damaged, not finite or of another model.
    """
    if not run.weights.exists():
        raise RunError(
            f"a run has weights when its training has ended, and {run.folder} has none; "
            f"end it with: {run.resume}"
        )
    weights = _read(run)
    fit_into(model, weights, str(run.weights), "restore config.json and the weights together")
    all_finite(weights, str(run.weights), _CURE)


def _read(run: Run) -> dict[str, Tensor]:
    try:
        content = read_whole(run.weights)
    except OSError as error:
        raise RunError(
            f"{run.weights} must be readable, and it is not ({error.strerror}); {_CURE}"
        ) from error
    try:
        weights, written = load(content), _written(content)
    # A header of another's making may be anything, and safetensors reads it as it is.
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise RunError(
            f"{run.weights} must be a whole safetensors file, and it is truncated or damaged "
            f"({error}); {_CURE}"
        ) from error
    if _digest(weights) != written:
        raise RunError(
            f"{run.weights} must have the content its checksum was made from, and it was changed; "
            f"{_CURE}"
        )
    return weights


def _written(content: bytes) -> object:
    """The checksum that a safetensors file carries; `load` has found its header whole."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]).get("__metadata__", {}).get("sha256")


def all_finite(weights: Mapping[str, Tensor], where: str, cure: str) -> None:
    """Raises RunError when a weight is NaN or infinite."""
    for name, value in weights.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise RunError(
                f"weights must be finite, and {name} in {where} has "
                f"{int((~value.isfinite()).sum())} values that are NaN or infinite; {cure}"
            )


def fit_into(model: nn.Module, weights: Mapping[str, Tensor], where: str, cure: str) -> None:
    """Loads weights into a model; raises RunError when names, shapes or dtypes are another's."""
    expected = model.state_dict()
    for name in [*expected, *sorted(set(weights) - set(expected))]:
        if _form(expected, name) != _form(weights, name):
            raise RunError(
                f"{where} must hold the weights of the model in config.json, and {name} does not "
                f"fit ({_form(weights, name)} for {_form(expected, name)}); {cure}"
            )
    model.load_state_dict(dict(weights))


def _form(weights: Mapping[str, Tensor], name: str) -> str:
    """Shape and dtype of a weight in words."""
    if name not in weights:
        return "nothing"
    return f"{tuple(weights[name].shape)} {str(weights[name].dtype).removeprefix('torch.')}"


def _digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        bytes = weights[name].detach().contiguous().flatten().view(torch.uint8)
        digest.update(f"{name} {weights[name].dtype} {tuple(weights[name].shape)}\n".encode())
        digest.update(bytes.numpy().tobytes())
    return digest.hexdigest()
