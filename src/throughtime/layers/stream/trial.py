"""Random inputs that try a model, and the comparison of its steps with the whole sequence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor, nn

from throughtime.backends.cpu.stream.stack import Stack
from throughtime.backends.cpu.stream.stream import CompiledStream
from throughtime.layers.batch import States
from throughtime.layers.layer import Passage
from throughtime.layers.stream.parts import list_tensors

STEPS: Final = (33, 5)
"""Numbers of steps to try; the second where a model takes no more."""

ROWS: Final = 3
"""The most rows to try."""

RAISED: Final = (
    TypeError, ValueError, RuntimeError, LookupError, AttributeError, AssertionError,
    ArithmeticError, NotImplementedError,
)  # fmt: skip
"""What a model may raise on an input of the wrong form."""


def make_inputs(
    model: nn.Module, batch_first: bool, rows: int, steps: int, like: Tensor | None = None
) -> Iterator[Tensor]:
    """Sequences that the model may take."""
    if like is not None:
        time = int(batch_first)
        shape = list(like.shape)
        shape[time] = steps
        if like.is_floating_point():
            yield torch.randn(shape, dtype=like.dtype, device=like.device)
        else:
            yield torch.randint(int(like.max()) + 1, shape, dtype=like.dtype, device=like.device)
        return
    shape = [rows, steps] if batch_first else [steps, rows]
    seen = set()
    for module in model.modules():
        weight = next(module.parameters(recurse=False), None)
        width = _width(module)
        if weight is None or width is None or (type(module) is nn.Embedding, width) in seen:
            continue
        seen.add((type(module) is nn.Embedding, width))
        if type(module) is nn.Embedding:
            yield torch.randint(width, shape, device=weight.device)
        elif weight.is_floating_point():
            yield torch.randn(*shape, width, dtype=weight.dtype, device=weight.device)


def _width(module: nn.Module) -> int | None:
    """A part's input width, if it has an attribute for it."""
    if isinstance(module, Passage):
        return module.input_size
    names = ("num_embeddings", "in_features", "in_channels", "num_features", "embed_dim")
    width = next((getattr(module, n) for n in names if hasattr(module, n)), None)
    if width is None and isinstance(shape := getattr(module, "normalized_shape", None), tuple):
        width = shape[-1]
    return width if isinstance(width, int) else None


@torch.no_grad()
def agrees(model: nn.Module, layers: list[Passage], stack: Stack) -> bool:
    """Whether a stack's random steps equal the model's whole sequence; False if it takes none."""
    batch_first = bool(layers[0].batch_first)
    with torch.random.fork_rng(devices=[]):
        for x in make_inputs(model, batch_first, ROWS, STEPS[-1]):
            try:
                y = model(x.clone())
            except RAISED:
                continue
            first: list[States] = [layer.initial_state(ROWS) for layer in layers]
            stream = CompiledStream(stack, ROWS)
            stream.write([s for state in first for s in state])
            steps = [stream.step(v.squeeze(int(batch_first)), None, {}) for v in
                     x.split(1, int(batch_first))]  # fmt: skip
            whole = next(list_tensors(y), None)
            return (
                whole is not None
                and all(v is not None for v in steps)
                and is_close(whole, torch.stack(steps, int(batch_first)))
            )
    return False


def is_close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point():
        return a.numel() == 0 or float((a != b).float().mean()) < 0.1
    tolerance = 1e-3 if a.dtype in (torch.float32, torch.float64) else 0.05
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance * _size(a), equal_nan=True)


def _size(v: Tensor) -> float:
    finite = v[v.isfinite()].abs()
    return float(finite.max()) if finite.numel() else 1.0
