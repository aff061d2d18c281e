"""Layers in torch's graphs of a model: torch.fx, torch.jit.script, torch.onnx."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.fx import Proxy

from throughtime.errors import TransformError


def write_node(layer: nn.Module, x: Proxy, *arguments: Any, **keywords: Any) -> Proxy:
    """The call as one node of a graph of torch.fx, like those of torch.nn's layers."""
    tracer: Any = x.tracer
    if getattr(tracer, "root", None) is layer:
        raise TransformError(
            f"torch.fx writes a {type(layer).__name__} as one node of a model's graph and cannot "
            f"look inside it; trace a model that holds it: torch.nn.Sequential(layer)"
        )
    while arguments and arguments[-1] is None:
        arguments = arguments[:-1]
    options = {name: value for name, value in keywords.items() if value is not None}
    path = tracer.path_of_module(layer)
    node: Proxy = tracer.create_proxy("call_module", path, (x, *arguments), options)
    return node


def check_nothing_more(layer: nn.Module, values: tuple[Any, ...]) -> None:
    """After x and the state come keywords only; torch.onnx.export passes their None by position.

    Raises:
        TypeError: one of them is not None, in Python's own words.
    """
    if any(value is not None for value in values):
        raise TypeError(
            f"{type(layer).__name__}.forward() takes from 2 to 3 positional arguments but "
            f"{3 + len(values)} were given; give lengths, starts and reset by name"
        )


def script_error(layer: nn.Module) -> TransformError:
    """The error of torch.jit.script, which reads source and knows torch.nn's own layers."""
    return TransformError(
        f"torch.jit.script reads Python, and a {type(layer).__name__} of throughtime is made of "
        f"machine code; give it throughtime.to_torch(model), or use torch.jit.trace"
    )
