"""What both writers begin with: the model's program, and the answers that it is tested on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from throughtime.errors import OptionError
from throughtime.export.pieces import Piece, pieces_of, program_of, taken
from throughtime.export.program import Program, Values
from throughtime.export.texts import check_name
from throughtime.export.weights import check_kind, round_weights
from throughtime.layers.layer import Passage

STEPS = 1000
_MOST = 200_000
"""Numbers of a record, so that its source stays small: wide models are recorded for fewer steps."""

_LONGEST = 4096
"""Steps of a block, whose products lie on the stack."""


@torch.no_grad()
def record(pieces: list[Piece], inputs: int, outputs: int, seed: int = 0) -> tuple[Values, Values]:
    """Inputs (T, inputs) and the outputs (T, outputs) of the pieces, one behind the other.

    Inputs are normal numbers; direct inputs lie between 0 and 1, and whole numbers in the range
    of an embedding.
    """
    steps = max(20, min(STEPS, _MOST // (inputs + outputs)))
    draw = torch.Generator().manual_seed(seed)
    first: Any = pieces[0].module
    if isinstance(first, nn.Embedding):
        index = torch.randint(first.num_embeddings, (steps, 1), generator=draw)
        return index.float().numpy(), _through(pieces, index, {}).numpy()
    x = torch.randn(steps, inputs, generator=draw)
    given: dict[str, Tensor] = {}
    if isinstance(first, Passage) and first.cell.layout.inputs:
        offset = first.input_size
        x[:, offset:] = torch.rand(steps, inputs - offset, generator=draw)
        for name in first.cell.layout.inputs:
            width = first.cell.width(first.cell.inputs[name], first.hidden_sizes[0])
            given[name] = x[:, offset : offset + width].unsqueeze(1)
            offset += width
        return x.numpy(), _through(pieces, x[:, None, : first.input_size], given).numpy()
    return x.numpy(), _through(pieces, x.unsqueeze(1), {}).numpy()


def _through(pieces: list[Piece], v: Tensor, given: dict[str, Tensor]) -> Tensor:
    """(T, 1, width) through all pieces: (T, width)."""
    for piece in pieces:
        module: Any = piece.module
        if isinstance(module, Passage):
            v = _through_layer(module, v, given)
            given = {}
        else:
            v = module(v)
    return v.squeeze(1)


def _through_layer(layer: Any, v: Tensor, given: dict[str, Tensor]) -> Tensor:
    if layer.batch_first:
        v, given = v.transpose(0, 1), {n: w.transpose(0, 1) for n, w in given.items()}
    found = layer(v, inputs=given) if given else layer(v)
    y: Tensor = found[0] if isinstance(found, tuple) else found
    return y.transpose(0, 1) if layer.batch_first else y


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


def check_block(block: object) -> None:
    """Raises OptionError: so many steps are no block."""
    if isinstance(block, bool) or not isinstance(block, int) or not 1 <= block <= _LONGEST:
        raise OptionError(f"block must be a whole number from 1 to {_LONGEST}, got {block!r}")


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
