"""From a model to its program: the pieces of a plain stack in order, or why it is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from throughtime.cell.contract import activation_function
from throughtime.compiler import sweeps
from throughtime.compiler.graph import Builder, Graph, Line
from throughtime.compiler.passes import HIDDEN, REDUCTIONS, expand
from throughtime.compiler.symbols import Symbol, lift
from throughtime.errors import OptionError, ThroughtimeError
from throughtime.export.layer import describe_call, input_labels, write_layer
from throughtime.export.operators import Reversed
from throughtime.export.program import Place, Program, Walk, Writer
from throughtime.layers.layer import Passage
from throughtime.layers.readout import Gate, Readout

_NOT_FOLLOWED = (TypeError, ValueError, AttributeError, RuntimeError, IndexError)


def trace_function(
    function: Callable[..., Any], names: tuple[str, ...], vectors: tuple[str, ...]
) -> Graph:
    """The graph of a function of vectors of one width.

    Args:
        function: of the values, then the vectors.
        names: of the values, nodes `a`.
        vectors: of constants of one number a unit, nodes `p`.

    Raises:
        OptionError: an operation has no rule.
    """
    builder = Builder(end=trace_function.__code__)
    values = [Symbol(builder, builder.node("a", (), (n,), ("B", HIDDEN))) for n in names]
    values += [Symbol(builder, builder.node("p", (), (n,), (HIDDEN,))) for n in vectors]
    try:
        result = lift(builder, function(*values))
    except ThroughtimeError:
        raise
    except _NOT_FOLLOWED as error:
        raise OptionError(f"it cannot be followed ({error})") from error
    graph = builder.finish("", [("y", result.index)], [])
    if graph.unsupported:
        raise OptionError(f"{graph.unsupported[0].operation} has no rule")
    if result.symbolic_shape != ("B", HIDDEN) or result.is_boolean:
        raise OptionError("it changes the shape of what it takes")
    whole = expand(graph, graph)[1]
    nodes = tuple(replace(n, line=None) if _is_here(n.line) else n for n in whole.nodes)
    return replace(whole, nodes=nodes, forward=len(nodes))


def _is_here(line: Line | None) -> bool:
    """Whether a line is of `trace_function` itself, as that of a function of torch is."""
    numbers = (number for _, _, number in trace_function.__code__.co_lines())
    return line is not None and line.file == __file__ and line.number in numbers


def write_pointwise(
    writer: Writer, function: Callable[..., Any], values: dict[str, Place],
    vectors: dict[str, Any], name: str,
) -> Place:  # fmt: skip
    """Write y = function(values, vectors) as an operation; returns where y lies."""
    graph = trace_function(function, tuple(values), tuple(vectors))
    size = next(iter(values.values())).size
    places = {n: Place(writer.constant(n, v), size) for n, v in vectors.items()}
    loads: dict[int, Place | float] = {
        i: (values if node.op == "a" else places)[str(node.constants[0])]
        for i, node in enumerate(graph.nodes)
        if node.op in ("a", "p")
    }
    out = writer.work(name, size)
    ends = ((graph.outputs[0][1], out),)
    writer.stage(graph, loads, {HIDDEN: size}, _list_walks(writer, graph, size, ends))
    return out


def _list_walks(
    writer: Writer, graph: Graph, size: int, stores: tuple[tuple[int, Place], ...]
) -> list[Walk]:
    """The walks over units of one width that lead to what is stored."""
    if not any(node.op in REDUCTIONS for node in graph.nodes):
        return [Walk(size, (), (), (), stores)]
    walks = []
    for sweep in sweeps.find_sweeps(graph, set(), tuple(i for i, _ in stores)):
        lines = tuple((i, writer.work("line", size)) for i in sweep.lines)
        last = () if sweep.reductions else stores
        walks.append(Walk(size, sweep.numbers, lines, sweep.reductions, last))
    return walks


class Piece(NamedTuple):
    """A part of a plain stack.

    Attributes:
        path: where it stands in the model.
        module: a module, or a function of torch.
    """

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
    is_torchs = type(model).__module__ == "torch.nn.modules.activation"
    return is_torchs and not any(True for _ in model.parameters())


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


@torch.no_grad()
def check_each_step(function: Callable[..., Any], width: int) -> None:
    """Raises OptionError: a function computes something else of a row alone than in a sequence."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, width, generator=draw, dtype=torch.float32, device="cpu")
    try:
        whole, alone = function(x), torch.stack([function(v) for v in x.flatten(0, 1).split(1)])
    except _NOT_FOLLOWED:
        return  # following it says why
    if whole.shape != x.shape or not torch.allclose(whole.flatten(0, 1), alone[:, 0], atol=1e-5):
        raise OptionError(
            "it mixes steps or rows of a batch, or changes their shape; dimensions must be counted "
            "from the end, as in dim=-1"
        )


def write_program(pieces: list[Piece], name: str) -> Program:
    """The program of a plain stack."""
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
    return (
        repr(module) if isinstance(module, nn.Module) else getattr(module, "__name__", "function")
    )


def _list_inputs(first: Piece) -> tuple[tuple[str, ...], int]:
    """What each input number is, and how many of them the first piece reads as its x."""
    module: Any = first.module
    if isinstance(module, nn.Embedding):
        return (f"whole number from 0 to {module.num_embeddings - 1}",), 1
    if isinstance(module, Passage):
        width = module.input_size
        call = _calls(module, first.path)[0]
        return (*(f"x[{k}]" for k in range(width)), *input_labels(call)), width
    width = input_width(first)
    return tuple(f"x[{k}]" for k in range(width)), width


def input_width(first: Piece) -> int:
    """How many numbers the first piece takes.

    Raises:
        OptionError: it takes any number.
    """
    takes = _takes(first.module)
    if takes is None:
        raise OptionError(
            f"{first.path} comes first and says not how many numbers it takes; let a layer or a "
            f"linear part come first"
        )
    return takes


def _takes(module: Any) -> int | None:
    """How many numbers a piece takes; None for one that takes any."""
    if isinstance(module, nn.Linear):
        return module.in_features
    if isinstance(module, Passage):
        return module.input_size
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return module.normalized_shape[0]
    return None


def _check_width(piece: Piece, width: int) -> None:
    takes = _takes(piece.module)
    if takes is not None and takes != width:
        raise OptionError(
            f"{piece.path} takes {takes} numbers, and the part before it gives {width}"
        )


def _calls(layer: Passage, path: str) -> list[Any]:
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
    return [make._example(i, 1, 1, False, False, False) for i in range(len(layer.widths))]


def _kind(layer: Passage) -> type:
    """The layer's class; not the one that torch's parametrisation puts in its place."""

    classes = type(layer).__mro__
    return classes[1] if "parametrizations" in layer._modules else classes[0]


def _write_recurrent(writer: Writer, layer: Passage, path: str, number: int) -> None:
    calls = _calls(layer, path)
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
    function, vectors = norm_function(part)
    return write_pointwise(writer, function, {"x": writer.at}, vectors, "normed")


def norm_function(part: Any) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Layer norm or RMS norm over the units, as a function of x and of the vectors by name."""
    parameters = (("gain", part.weight), ("shift", getattr(part, "bias", None)))
    vectors = {n: v.numpy() for n, v in parameters if v is not None}
    eps = part.eps if part.eps is not None else torch.finfo(torch.float32).eps

    def layer_norm(x: Any, gain: Any = None, shift: Any = None) -> Any:
        return functional.layer_norm(x, x.shape[-1:], gain, shift, eps)

    def rms_norm(x: Any, gain: Any = None) -> Any:
        return functional.rms_norm(x, x.shape[-1:], gain, eps)

    return layer_norm if isinstance(part, nn.LayerNorm) else rms_norm, vectors


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
