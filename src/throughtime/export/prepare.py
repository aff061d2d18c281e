"""A model to export: its program, and the answers that the program is tested on."""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from throughtime.errors import NotFiniteError, OptionError
from throughtime.export.pieces import Piece, list_pieces, write_program
from throughtime.export.program import Program, Values
from throughtime.export.weights import check_kind, round_weights
from throughtime.layers.drop_in.convert import from_torch
from throughtime.layers.layer import Passage
from throughtime.layers.stream.frozen import copy_frozen
from throughtime.torch_private import on_processor

STEPS = 1000
_MOST = 200_000
"""Numbers of a record, so that its source stays small: wide models are recorded for fewer steps."""

_LONGEST = 4096
"""Steps of a block, whose products lie on the stack."""


class Prepared(NamedTuple):
    """A program and its record.

    Attributes:
        program: what a step does.
        x, y: inputs (T, inputs) and the answers (T, outputs) of the model, its weights rounded.
    """

    program: Program
    x: Values
    y: Values


_WORDS: Final = frozenset(
    """
    alignas alignof and and_eq asm auto bitand bitor bool break case catch char class compl concept
    const constexpr const_cast continue decltype default delete do double dynamic_cast else enum
    explicit export extern false float for friend goto if inline int long mutable namespace new
    noexcept not not_eq nullptr operator or or_eq private protected public register restrict
    reinterpret_cast requires return short signed sizeof static static_assert static_cast struct
    switch template this thread_local throw true try typedef typeid typename typeof union unsigned
    using virtual void volatile wchar_t while xor xor_eq main
    """.split()
)


def check_name(name: str) -> None:
    """Raises OptionError: the name is no identifier of C and C++."""
    right = isinstance(name, str) and re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,39}", name)
    if not right or name in _WORDS or "__" in name:
        raise OptionError(
            f"name must be an identifier of C and C++ (letters, digits and _, a letter first, at "
            f"most 40, no word of the languages), got {name!r}; say, net"
        )


def check_block(block: object) -> None:
    """Raises OptionError: so many steps are no block."""
    if isinstance(block, bool) or not isinstance(block, int) or not 1 <= block <= _LONGEST:
        raise OptionError(f"block must be a whole number from 1 to {_LONGEST}, got {block!r}")


def prepare(model: nn.Module, name: str, weights: str) -> Prepared:
    """The program and the record of a model.

    Raises:
        OptionError: the name, the kind of weights or the model cannot be copy_model; says why.
    """
    check_name(name)
    check_kind(weights)
    with on_processor():
        copy = copy_model(model)
        round_weights(copy, weights)
        pieces = list_pieces(copy)
        program = write_program(pieces, name)
        return Prepared(program, *record(pieces, len(program.inputs), program.outputs))


@torch.no_grad()
def copy_model(model: nn.Module) -> nn.Module:
    """A frozen copy with layers of ours in the place of torch.nn's, its weights checked.

    Raises:
        OptionError: a weight is not float32, or not finite.
    """
    if not isinstance(model, nn.Module):
        raise OptionError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for name, v in (*model.named_parameters(), *model.named_buffers()):
        if v.is_meta:
            raise OptionError(
                f"a model to export must have its numbers, and {name} is on the device meta; load "
                f"its weights first"
            )

    copy = copy_frozen(from_torch(model)).cpu()
    for module in copy.modules():
        if (
            type(module) is nn.Embedding
            and module.max_norm is not None
            and not module.weight.is_meta
        ):
            module(torch.arange(module.num_embeddings, device="cpu"))  # shortens every line
    for name, v in (*copy.named_parameters(), *copy.named_buffers()):
        if v.is_floating_point() and v.dtype != torch.float32:
            raise OptionError(
                f"exported programs compute in float32, got {v.dtype} in {name}; "
                f"convert the model with model.float()"
            )
        if not bool(torch.isfinite(v).all()):
            raise NotFiniteError(f"{name} must be finite numbers, got NaN or infinity", "parameter",
                                 name)  # fmt: skip
    return copy


@torch.no_grad()
def record(pieces: list[Piece], inputs: int, outputs: int) -> tuple[Values, Values]:
    """Inputs (T, inputs) and the outputs (T, outputs) of the pieces, run one after the other.

    Inputs are normal numbers; direct inputs lie between 0 and 1, and whole numbers in the range
    of an embedding.
    """
    steps = max(20, min(STEPS, _MOST // (inputs + outputs)))
    draw = torch.Generator().manual_seed(0)
    first: Any = pieces[0].module
    direct: dict[str, Tensor] = {}
    if isinstance(first, nn.Embedding):
        x = v = torch.randint(first.num_embeddings, (steps, 1), generator=draw)
        return x.float().numpy(), run_pieces(pieces, v, direct).numpy()
    x = torch.randn(steps, inputs, generator=draw, dtype=torch.float32)
    v = x.unsqueeze(1)
    if isinstance(first, Passage) and first.cell.layout.inputs:
        v, offset = v[:, :, : first.input_size], first.input_size
        rest = torch.rand(steps, inputs - offset, generator=draw, dtype=torch.float32)
        x[:, offset:] = rest
        for name in first.cell.layout.inputs:
            width = first.cell.width(first.cell.inputs[name], first.hidden_sizes[0])
            direct[name] = x[:, None, offset : offset + width]
            offset += width
    return x.numpy(), run_pieces(pieces, v, direct).numpy()


def run_pieces(pieces: list[Piece], v: Tensor, direct: dict[str, Tensor]) -> Tensor:
    """(T, 1, width) through all pieces, the first one with its direct inputs: (T, width)."""
    for piece in pieces:
        module: Any = piece.module
        if isinstance(module, Passage):
            v, direct = _run_layer(module, v, direct), {}
        else:
            v = module(v)
    return v.squeeze(1)


def _run_layer(layer: Any, v: Tensor, direct: dict[str, Tensor]) -> Tensor:
    if layer.batch_first:
        v, direct = v.transpose(0, 1), {n: w.transpose(0, 1) for n, w in direct.items()}
    result = layer(v, inputs=direct) if direct else layer(v)
    y: Tensor = result[0] if isinstance(result, tuple) else result
    return y.transpose(0, 1) if layer.batch_first else y
