"""The files of a run, whole or not there: sealed, checked for damage, read without running code."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import pickle
import stat
import struct
import tarfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from throughtime.errors import RunError
from throughtime.tasks.recipe import Recipe, short
from throughtime.train.learner import make_optimizer

if TYPE_CHECKING:
    from throughtime.train.run import Run

_SEAL = b"throughtime sealed 1 "
_LENGTHS = len(_SEAL) + 64 + 1


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that a reader, or a kill at any moment, finds the old one or the new one.

    Raises:
        OSError: the disk is full, say; names `path`, and no draft is left.
    """
    draft = write_draft(path, content)
    with _delete_on_failure(draft, path):
        os.replace(draft, path)
    sync_folder(path.parent)


def write_draft(path: Path, content: bytes) -> Path:
    """Writes a draft next to `path` and waits until the disk has it; the caller renames."""
    draft = path.with_name(path.name + ".draft")
    with _delete_on_failure(draft, path), draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return draft


@contextlib.contextmanager
def _delete_on_failure(draft: Path, path: Path) -> Iterator[None]:
    """Deletes a draft that could not become `path`."""
    try:
        yield
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from error


def read_whole(path: Path) -> bytes:
    """The content of a file; of a pipe, which would be waited for, there is none: OSError."""
    kind = os.stat(path).st_mode
    if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
        raise OSError(errno.EINVAL, "it is no plain file", str(path))
    return path.read_bytes()


def read_json(path: Path) -> Any:
    """The content of a JSON file; ValueError where it is no JSON text."""
    try:
        return json.loads(read_whole(path))
    except (ValueError, RecursionError) as error:
        raise ValueError("it is no JSON text") from error


def write_json(path: Path, values: Mapping[str, Any], indent: int = 2) -> None:
    """Writes a JSON file, as `write_whole`."""
    write_whole(path, (json.dumps(values, indent=indent) + "\n").encode())


def sync_folder(folder: Path) -> None:
    """Waits until the disk knows the names in a folder."""
    with contextlib.suppress(PermissionError):  # Windows opens no folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def seal(content: bytes) -> bytes:
    """The content after a line with its SHA-256."""
    return _SEAL + hashlib.sha256(content).hexdigest().encode() + b"\n" + content


def unseal(sealed: bytes, path: Path, cure: str) -> bytes:
    """The content of a sealed file; RunError where it was cut short or changed."""
    head, content = sealed[:_LENGTHS], sealed[_LENGTHS:]
    if not head.startswith(_SEAL) or seal(content)[:_LENGTHS] != head:
        raise RunError(
            f"{path} must have the content its checksum was made from, and it is truncated or "
            f"was changed ({len(sealed)} bytes); {cure}"
        )
    return content


_CURE = "restore the file, or write it again with --resume while the checkpoint is there"


def write_weights(run: Run, weights: Mapping[str, Tensor]) -> None:
    """Writes the weights of a finished run."""
    from safetensors.torch import save

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
    load_into(model, weights, str(run.weights))
    check_finite(weights, str(run.weights), _CURE)


def _read(run: Run) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    content = _read_bytes(run.weights, _CURE)
    try:
        weights, written = load(content), _read_checksum(content)
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


def _read_checksum(content: bytes) -> object:
    """The checksum that a safetensors file carries; `load` has checked its header."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]).get("__metadata__", {}).get("sha256")


def check_finite(weights: Mapping[str, Tensor], where: str, cure: str) -> None:
    """Raises RunError when a weight is NaN or infinite."""
    for name, value in weights.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise RunError(
                f"weights must be finite, and {name} in {where} has "
                f"{int((~value.isfinite()).sum())} values that are NaN or infinite; {cure}"
            )


def load_into(model: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Loads weights into a model; raises RunError when names, shapes or dtypes are another's."""
    expected = model.state_dict()
    for name in [*expected, *sorted(set(weights) - set(expected))]:
        if _form(expected, name) != _form(weights, name):
            raise RunError(
                f"{where} must hold the weights of the model in config.json, and {name} does not "
                f"fit ({_form(weights, name)} for {_form(expected, name)}); restore config.json "
                "and the weights together"
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


State = dict[str, Any]

KEYS = ("recipe", "step", "model", "optimizer", "stopping", "best", "journal", "finished")

MAY_GROW = ("steps", "patience", "parts")
"""Fields of the recipe of which a resumed run may have more than it began with."""

# What torch.load raises for a file that another program wrote, pickle's errors among them.
_UNREADABLE = (
    RuntimeError, pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, ImportError,
    AttributeError, ArithmeticError, AssertionError, MemoryError, struct.error, tarfile.TarError,
)  # fmt: skip


def write_checkpoint(run: Run, state: State) -> None:
    """Writes a checkpoint; a kill at any moment leaves this one, or the one before it."""
    assert set(state) == {*KEYS} - {"recipe"}
    buffer = io.BytesIO()
    torch.save(state | {"recipe": asdict(run.recipe)}, buffer)
    draft = write_draft(run.checkpoint, seal(buffer.getvalue()))
    if run.checkpoint.exists():
        os.replace(run.checkpoint, run.previous)
    os.replace(draft, run.checkpoint)
    sync_folder(run.folder)


def read_checkpoint(run: Run) -> State | None:
    """The newest checkpoint of a run, its parts not looked at; None when it has none yet.

    The run may have more steps, patience or parts than when the checkpoint was written.

    Raises:
        RunError: it is damaged, or of another recipe than config.json.
    """
    path = _find_newest(run)
    if path is None:
        return None
    cure = _cure(run, path)
    state = _load(unseal(_read_bytes(path, cure), path, cure), path, cure)
    recipe, expected = state["recipe"], asdict(run.recipe)
    if not isinstance(recipe, dict) or set(recipe) != set(expected):
        raise RunError(f"{path} must be of this version of throughtime, and it is not; {cure}")
    for name, value in expected.items():
        written = recipe[name]
        grown = name in MAY_GROW and type(written) is int and 0 < written < value
        if not grown and (type(written) is not type(value) or written != value):
            raise RunError(
                f"config.json and {path} must be of one run, and {name} is {short(value)} in the "
                f"one and {short(written)} in the other; restore config.json"
            )
    return state


def check_checkpoint(run: Run, state: State, model: nn.Module) -> None:
    """Refuses a checkpoint of which a part has another form than this run writes.

    Raises:
        RunError: names that part, or the weight that is not finite.
    """
    path = _find_newest(run) or run.checkpoint
    odd = _find_mismatch(state, _expected_form(run.recipe, state, model), "")
    if odd:
        raise RunError(
            f"{path} must hold what this run and this version write, and {odd}; {_cure(run, path)}"
        )


def has_ended(recipe: Recipe, state: State) -> bool:
    """Whether a run of this recipe is over at a checkpoint: no step is left, or no patience."""
    return bool(state["step"] >= recipe.steps or state["stopping"]["waited"] >= recipe.patience)


def _find_newest(run: Run) -> Path | None:
    existing = (path for path in (run.checkpoint, run.previous) if os.path.lexists(path))
    return next(existing, None)


def _cure(run: Run, path: Path) -> str:
    if path == run.checkpoint and run.previous.exists():
        return f"delete it to go on from {run.previous.name}, which gives the same weights"
    return "delete it to begin the run again, which gives the same weights"


def _read_bytes(path: Path, cure: str) -> bytes:
    try:
        return read_whole(path)
    except OSError as error:
        raise RunError(
            f"{path} must be readable, and it is not ({error.strerror}); {cure}"
        ) from error


def _load(content: bytes, path: Path, cure: str) -> State:
    try:
        with warnings.catch_warnings(action="ignore"):  # of what another program wrote
            state = torch.load(io.BytesIO(content), weights_only=True)
    except _UNREADABLE as error:
        raise RunError(
            f"{path} must be a checkpoint of this program, and it is not; {cure}"
        ) from error
    if not isinstance(state, dict) or set(state) != set(KEYS):
        raise RunError(f"{path} must hold {', '.join(KEYS)}, and it does not; {cure}")
    return state


def _expected_form(recipe: Recipe, state: State, model: nn.Module) -> State:
    """What each part of a checkpoint must be like.

    A tensor stands for those of its shape and dtype, a function for what it accepts, all else
    for itself. An optimizer's parts are those of a fresh one that took a step; the learning rate
    in it is set anew at every step.
    """
    weights = model.state_dict()
    parts = _after_a_step(recipe, model)
    parts["param_groups"] = [group | {"lr": _is_number} for group in parts["param_groups"]]
    best = state["best"]
    unvalidated = isinstance(best, dict) and best.get("weights") == {} and not state["finished"]
    window = {"steps": _is_count, "clipped": _is_count, "loss": _is_number, "norm": _is_number}
    return {
        "recipe": lambda value: True,  # compared with config.json before
        "step": lambda value: _is_count(value) and value <= recipe.steps,
        "model": weights,
        "optimizer": parts,
        "stopping": {"waited": _is_count, "lowest": _is_bound},
        "best": {"value": _is_bound, "step": _is_count, "weights": {} if unvalidated else weights},
        "journal": {"bytes": _is_count, "window": window, "wall": _is_number, "cpu": _is_number},
        "finished": lambda value: isinstance(value, bool),
    }


def _after_a_step(recipe: Recipe, model: nn.Module) -> State:
    """The state of a fresh optimizer after a step that changed nothing of the model."""
    copies = [nn.Parameter(p.detach().clone()) for p in model.parameters()]
    for copy in copies:
        copy.grad = torch.zeros_like(copy)
    fresh = make_optimizer(recipe, copies)
    fresh.step()
    return fresh.state_dict()


def _find_mismatch(value: Any, form: Any, name: str) -> str:
    """The first part that is not of its form, in words; nothing when all are."""
    if callable(form) and not isinstance(form, Tensor):
        return "" if form(value) else f"{name} is {_describe(value)}"
    if isinstance(form, Tensor):
        fits = _is_plain(value) and _describe(value) == _describe(form)
        if fits and not value.isfinite().all():
            return f"{name} has values that are NaN or infinite"
        return "" if fits else f"{name} is {_describe(value)} in place of {_describe(form)}"
    if isinstance(form, dict):
        if not isinstance(value, dict) or set(value) != set(form):
            return f"{name} has other parts"
        pairs = [(value[key], form[key], f"{name}.{key}".strip(".")) for key in form]
    elif isinstance(form, list | tuple):
        if type(value) is not type(form) or len(value) != len(form):
            return f"{name} has other parts"
        pairs = [(*pair, f"{name}.{n}") for n, pair in enumerate(zip(value, form, strict=True))]
    else:
        fits = type(value) is type(form) and value == form
        return "" if fits else f"{name} is {_describe(value)} in place of {form!r}"
    return next((odd for pair in pairs if (odd := _find_mismatch(*pair))), "")


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    plain = isinstance(value, int | float | str | None)
    return short(value) if plain else f"of type {type(value).__name__}"


def _is_plain(value: Any) -> bool:
    """Whether it is a tensor of numbers in this machine's memory."""
    plain = isinstance(value, Tensor) and value.layout is torch.strided
    return plain and value.device.type == "cpu"


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_bound(value: Any) -> bool:
    """A figure to be lower than; infinity before the first."""
    return type(value) is float and not math.isnan(value)


def _is_number(value: Any) -> bool:
    return _is_bound(value) and math.isfinite(value)
