"""What both writers begin with: the model's program, and the answers that it is tested on."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import nn

from throughtime.export.pieces import pieces_of, program_of, taken
from throughtime.export.program import Program, Values
from throughtime.export.record import record
from throughtime.export.texts import check_name
from throughtime.export.weights import check_kind, round_weights


class Prepared(NamedTuple):
    """A program and its record.

    Attributes:
        program: what a step does.
        x, y: inputs (T, inputs) and the answers (T, outputs) of the model, its weights rounded.
    """

    program: Program
    x: Values
    y: Values


class Exported(NamedTuple):
    """What an export wrote.

    Attributes:
        folder: where.
        files: their names.
        code_bytes: of machine code; 0 for source.
        weight_bytes: of matrices, biases and vectors.
        state_bytes: of one state, which the caller keeps.
        work_bytes: that a step needs on the stack.
    """

    folder: Path
    files: tuple[str, ...]
    code_bytes: int
    weight_bytes: int
    state_bytes: int
    work_bytes: int


def prepare(model: nn.Module, name: str, weights: str) -> Prepared:
    """The program and the record of a model.

    Raises:
        OptionError: the name, the kind of weights or the model cannot be taken; says why.
    """
    check_name(name)
    check_kind(weights)
    copy = taken(model)
    round_weights(copy, weights)
    pieces = pieces_of(copy)
    program = program_of(pieces, name)
    return Prepared(program, *record(pieces, len(program.inputs), program.outputs))


def write_files(folder: Path, files: dict[str, str | bytes]) -> None:
    """Write them all into a folder, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if isinstance(content, str):
            (folder / name).write_text(content, encoding="utf-8")
        else:
            (folder / name).write_bytes(content)
