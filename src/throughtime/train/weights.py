"""The weights of a run: one safetensors file, whole, checked for damage and for NaN."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from throughtime.errors import RunError
from throughtime.train.files import write_whole
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
            f"end it with: throughtime train {run.recipe.task} --resume --out {run.folder}"
        )
    weights = _read(run)
    all_finite(weights, str(run.weights), _CURE)
    fit_into(model, weights, str(run.weights), "restore config.json and the weights together")


def _read(run: Run) -> dict[str, Tensor]:
    try:
        with safe_open(run.weights, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            written = (file.metadata() or {}).get("sha256")
    except (SafetensorError, OSError) as error:
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


def all_finite(weights: Mapping[str, Tensor], where: str, cure: str) -> None:
    """Raises RunError when a weight is NaN or infinite."""
    for name, value in weights.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise RunError(
                f"weights must be finite, and {name} in {where} has "
                f"{int((~value.isfinite()).sum())} values that are NaN or infinite; {cure}"
            )


def fit_into(model: nn.Module, weights: Mapping[str, Tensor], where: str, cure: str) -> None:
    """Loads weights into a model; raises RunError when names or shapes are another model's."""
    expected = model.state_dict()
    odd = sorted(set(expected) ^ set(weights))
    odd += [
        name
        for name in expected
        if name not in odd and _shape(expected, name) != _shape(weights, name)
    ]
    if odd:
        raise RunError(
            f"{where} must hold the weights of the model in config.json, and {odd[0]} does not "
            f"fit ({_shape(weights, odd[0])} for {_shape(expected, odd[0])}); {cure}"
        )
    model.load_state_dict(dict(weights))


def _shape(weights: Mapping[str, Tensor], name: str) -> str:
    return str(tuple(weights[name].shape)) if name in weights else "nothing"


def _digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(f"{name} {weights[name].dtype} {tuple(weights[name].shape)}\n".encode())
        digest.update(weights[name].detach().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()
