"""From a model to its program: the pieces of a plain stack, or why it is none, and its answers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import nn

from throughtime.cell.contract import activation_function
from throughtime.errors import NotFiniteError, OptionError
from throughtime.export.folder import Record, make_record
from throughtime.export.layer import (
    check_each_step,
    describe_call,
    list_input_labels,
    make_norm_function,
    write_layer,
    write_pointwise,
)
from throughtime.export.operators import Reversed
from throughtime.export.program import Place, Program, Writer, check_weights, round_weights
from throughtime.layers.drop_in.convert import from_torch
from throughtime.layers.layer import Passage
from throughtime.layers.options import Gate, Readout
from throughtime.layers.stream.frozen import copy_frozen
from throughtime.torch_private import on_processor


class Piece(NamedTuple):
    """A part of a plain stack: its path in the model, and the module or function of torch."""

    path: str
    module: nn.Module | Callable[..., Any]


def list_pieces(model: nn.Module, path: str = "") -> list[Piece]:
    """The pieces in order, sequences, readouts and plain stacks opened.

    Raises:
        OptionError: a part has code of its own or hooks.
    """
    place = path or "the model"
    if model._forward_hooks or not all(map(_is_run, model._forward_pre_hooks.values())):
        raise OptionError(f"{place} has hooks, which no exported program runs; remove them first")
    if type(model) is nn.Sequential:
        return _list_parts(path, list(model.named_children()))
    if type(model) is Readout:
        parts = list_pieces(model.network, f"{path}.network".strip("."))
        identity = model.activation is activation_function("identity")
        return parts if identity else [*parts, Piece(place, model.activation)]
    stack = getattr(model, "plain_stack", None)
    if stack is not None:
        return _list_parts(path, [(str(k), part) for k, part in enumerate(stack())])
    if type(model) in (nn.Dropout, nn.Identity):
        return []
    if isinstance(model, Passage) and _kind(model).__module__.partition(".")[0] != "throughtime":
        raise OptionError(
            f"{place} is a {type(model).__name__} with code of its own, which an export does not "
            f"follow; use the layer it is built on"
        )
    if isinstance(model, nn.LayerNorm | nn.RMSNorm) and len(model.normalized_shape) != 1:
        raise OptionError(f"{place} must normalise the units of a step alone, got {model!r}")
    if type(model) in (*_WRITERS, Reversed) or isinstance(model, Passage) or _is_activation(model):
        return [Piece(place, model)]
    raise OptionError(
        f"{place} is a {type(model).__name__} with code of its own, which an export does not "
        f"follow; build it of torch.nn.Sequential, or give it a method plain_stack() that returns "
        f"its parts in order"
    )


def _list_parts(path: str, parts: list[tuple[str, nn.Module]]) -> list[Piece]:
    return [p for name, part in parts for p in list_pieces(part, f"{path}.{name}".strip("."))]


def _is_run(hook: Any) -> bool:
    """Whether a hook is torch's own for a computed weight, which `copy_model` has run."""
    return type(hook).__module__.startswith("torch.nn.utils")


def _is_activation(model: nn.Module) -> bool:
    """One of torch's functions of each unit, which has no weights."""
    return type(model).__module__ == "torch.nn.modules.activation" and not [*model.parameters()]


def check_stack(pieces: list[Piece]) -> None:
    """Raises OptionError: there is no piece, or layers disagree on which dimension is time."""
    if not pieces:
        raise OptionError("a model to export must have at least one part, got an empty one")
    modules: list[Any] = [p.module for p in pieces]
    layers = [m.layer if isinstance(m, Reversed) else m for m in modules]
    if len({layer.batch_first for layer in layers if isinstance(layer, Passage)}) > 1:
        raise OptionError(
            "all layers of a model to export must have the same batch_first, got some with True "
            "and some with False"
        )


def write_program(pieces: list[Piece], name: str) -> Program:
    for piece in pieces:
        if isinstance(piece.module, Reversed):
            raise OptionError(f"{piece.path} reads backward, which no step at a time can")
    check_stack(pieces)
    writer = Writer(*_list_inputs(pieces[0]))
    for number, piece in enumerate(pieces):
        module = piece.module
        if isinstance(module, Passage):
            _write_recurrent(writer, module, piece.path, number)
        elif isinstance(module, nn.Embedding) and number:
            raise OptionError(
                f"{piece.path} is an embedding after other parts; an exported program looks up "
                f"its input alone, so it must come first"
            )
        else:
            _check_width(piece, writer.at.size)
            write = _WRITERS.get(type(module), _write_function)
            writer.end(f"{piece.path}: {describe_part(module)}", write(writer, module))
    return writer.finish(name)


def describe_part(module: Any) -> str:
    """A part as errors and titles name it."""
    name = getattr(module, "__name__", "function")
    return repr(module) if isinstance(module, nn.Module) else str(name)


def _list_inputs(first: Piece) -> tuple[tuple[str, ...], int]:
    """What each input number is, and how many of them the first piece reads as its x."""
    module: Any = first.module
    if isinstance(module, nn.Embedding):
        return (f"whole number from 0 to {module.num_embeddings - 1}",), 1
    if isinstance(module, Passage):
        width = module.input_size
        call = _list_calls(module, first.path)[0]
        return (*(f"x[{k}]" for k in range(width)), *list_input_labels(call)), width
    width = find_input_width(first)
    return tuple(f"x[{k}]" for k in range(width)), width


def find_input_width(first: Piece) -> int:
    """How many numbers the first piece takes.

    Raises:
        OptionError: it takes any number.
    """
    takes = _find_width(first.module)
    if takes is None:
        raise OptionError(
            f"{first.path} comes first and does not say how many numbers it takes; let a layer or "
            f"a linear part come first"
        )
    return takes


def _find_width(module: Any) -> int | None:
    """How many numbers a piece takes; None for one that takes any."""
    if isinstance(module, nn.Linear):
        return module.in_features
    if isinstance(module, Passage):
        return module.input_size
    return module.normalized_shape[0] if isinstance(module, nn.LayerNorm | nn.RMSNorm) else None


def _check_width(piece: Piece, width: int) -> None:
    takes = _find_width(piece.module)
    if takes is not None and takes != width:
        raise OptionError(
            f"{piece.path} takes {takes} numbers, and the part before it gives {width}"
        )


def _list_calls(layer: Passage, path: str) -> list[Any]:
    """A call of one step for each layer."""
    if layer.directions == 2:
        raise OptionError(
            f"{path} is bidirectional and needs the whole sequence, and an exported program has "
            f"one step at a time; build it with bidirectional=False"
        )
    if set(layer.dilations) != {1}:
        raise OptionError(
            f"{path} is dilated and keeps no old states, so no exported program can run it; "
            f"use dilation=1"
        )
    make: Any = layer
    return [make._example(i) for i in range(len(layer.widths))]


def _kind(layer: Passage) -> type:
    """The layer's class; not the one that torch's parametrisation puts in its place."""
    classes = type(layer).__mro__
    return classes[1] if "parametrizations" in layer._modules else classes[0]


def _write_recurrent(writer: Writer, layer: Passage, path: str, number: int) -> None:
    calls = _list_calls(layer, path)
    _check_width(Piece(path, layer), writer.at.size)
    for k, call in enumerate(calls):
        if (number or k) and call.cell.layout.inputs:
            raise OptionError(f"{path} reads direct inputs, so it must be the model's first layer")
        title = path if len(calls) == 1 else f"{path}, layer {k}"
        before = writer.at
        out = write_layer(writer, call, title)
        if k and layer.options.residual:
            out = write_pointwise(writer, torch.add, {"h": before, "below": out}, {}, "sum")
        writer.end(f"{title}: {describe_call(call)}", out)


def _write_linear(writer: Writer, part: Any) -> Place:
    out = writer.work("y", part.out_features)
    bias = None if part.bias is None else part.bias.numpy()
    writer.product(writer.at, part.weight.numpy(), bias, out, "W")
    return out


def _write_gate(writer: Writer, part: Any) -> Place:
    """x sigmoid(network(x))."""
    x = writer.at
    for piece in list_pieces(part.network):
        _check_width(piece, writer.at.size)
        writer.at = _WRITERS.get(type(piece.module), _write_function)(writer, piece.module)
    if writer.at.size != x.size:
        raise OptionError(f"a gate's network must give {x.size} numbers, got {writer.at.size}")
    values = {"x": x, "z": writer.at}
    return write_pointwise(writer, lambda x, z: x * torch.sigmoid(z), values, {}, "gated")


def _write_embedding(writer: Writer, part: Any) -> Place:
    out = writer.work("e", part.embedding_dim)
    writer.lookup(part.weight.numpy(), writer.at, out)
    return out


def _write_norm(writer: Writer, part: Any) -> Place:
    function, vectors = make_norm_function(part)
    return write_pointwise(writer, function, {"x": writer.at}, vectors, "normed")


def _write_function(writer: Writer, part: Any) -> Place:
    function = part.forward if isinstance(part, nn.Module) else part
    try:
        check_each_step(function, writer.at.size)
        return write_pointwise(writer, function, {"x": writer.at}, {}, "y")
    except OptionError as error:
        raise OptionError(f"{describe_part(part)} cannot be exported: {error}") from error


_WRITERS: dict[Any, Callable[[Writer, Any], Place]] = {
    nn.Linear: _write_linear,
    nn.Embedding: _write_embedding,
    nn.LayerNorm: _write_norm,
    nn.RMSNorm: _write_norm,
    Gate: _write_gate,
}


_LONGEST = 4096  # steps of a block, whose products lie on the stack


class Prepared(NamedTuple):
    """A program, and a record of the model with its weights rounded."""

    program: Program
    record: Record


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
        OptionError: the name, the kind of weights or the model cannot be exported; says why.
    """
    check_name(name)
    check_weights(weights)
    with on_processor():
        copy = copy_model(model)
        round_weights(copy, weights)
        pieces = list_pieces(copy)
        program = write_program(pieces, name)
        record = make_record([p.module for p in pieces], len(program.inputs), program.outputs)
        if not np.isfinite(record.y).all():
            raise NotFiniteError("answers to normal numbers must be finite, so that an export can "
                                 "be tested on them, got NaN or infinity", "output")  # fmt: skip
        return Prepared(program, record)


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
        if type(module) is nn.Embedding and module.max_norm is not None:
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
