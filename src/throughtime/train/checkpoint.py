"""Checkpoints: written whole, the one before kept, sealed, read without running code."""

from __future__ import annotations

import io
import os
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from throughtime.errors import RunError
from throughtime.train.files import seal, sync_folder, unseal, write_draft
from throughtime.train.run import Run
from throughtime.train.weights import all_finite

State = dict[str, Any]

KEYS = ("recipe", "step", "model", "optimizer", "stopping", "best", "journal", "finished")


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
    """The newest checkpoint of a run; None when it was killed before its first.

    Raises:
        RunError: it is damaged, not finite, or of another recipe than config.json.
    """
    path = run.checkpoint if run.checkpoint.exists() else run.previous
    if not path.exists():
        return None
    cure = _cure(run, path)
    state = _load(unseal(_bytes(path), path, cure), path, cure)
    for name, value in asdict(run.recipe).items():
        if state["recipe"].get(name) != value:
            raise RunError(
                f"config.json and {path} must be of one run, and {name} is {value!r} in the one "
                f"and {state['recipe'].get(name)!r} in the other; restore config.json"
            )
    all_finite(state["model"], str(path), cure)
    return state


def _cure(run: Run, path: Path) -> str:
    if path == run.checkpoint and run.previous.exists():
        return f"delete it to go on from {run.previous.name}, which gives the same weights"
    return "delete it to begin the run again, which gives the same weights"


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunError(f"{path} must be readable, and it is not ({error.strerror})") from error


def _load(content: bytes, path: Path, cure: str) -> State:
    try:
        state = torch.load(io.BytesIO(content), weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise RunError(
            f"{path} must be a checkpoint of this program, and it is not; {cure}"
        ) from error
    if not isinstance(state, dict) or set(state) != set(KEYS):
        raise RunError(f"{path} must hold {', '.join(KEYS)}, and it does not; {cure}")
    return state
