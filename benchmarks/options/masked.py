"""Layer norm, zoneout and recurrent dropout together, beside plain layers: ours and torch.nn's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.options.line import Line, Lines, Values, parity, train
from throughtime import Recurrent, cells

T = 100
SHAPES = ((16, 64), (16, 128), (64, 128))
CELLS = {"LSTM": cells.LSTMLayerNorm, "GRU": cells.GRULayerNorm}
TWICE: dict[str, Any] = {"num_layers": 2, "bidirectional": True}
MASKS: dict[str, Any] = {"zoneout": 0.1, "recurrent_dropout": 0.25}


def lines() -> Lines:
    """Two layers, both directions, a training step."""
    for B, H in SHAPES:
        for name in CELLS:
            yield from pair(name, T, B, H)


def pair(name: str, T: int, B: int, H: int) -> Lines:
    """One cell at one shape; the reference backend with the same masks is the judge."""
    cell, x, d_y = CELLS[name](), torch.randn(T, B, H), torch.randn(T, B, 2 * H)
    layer = Recurrent(cell, H, H, backend="cpu", **TWICE, **MASKS)
    judge = Recurrent(cell, H, H, backend="reference", **TWICE, **MASKS)
    judge.load_state_dict(layer.state_dict())
    ours = train(lambda x: layer(x)[0], x, d_y, layer)
    agreed = parity(seeded(ours), seeded(train(lambda x: judge(x)[0], x, d_y, judge)))
    text = f"layer norm, zoneout, recurrent dropout, {name} x 2 both ways, B {B} T {T} H {H}"
    plain = Recurrent(getattr(cells, name)(), H, H, backend="cpu", **TWICE)
    theirs: Any = getattr(nn, name)(H, H, **TWICE)
    for m, beside, goal in ((plain, "our plain layer", 1.6), (theirs, "torch.nn, plain", 1.0)):
        other = train(first_of(m), x, d_y, m)
        yield Line(text, beside, ours, other, agreed, goal, at_most=True)


def first_of(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    """The outputs alone."""
    return lambda x: layer(x)[0]  # type: ignore[no-any-return]


def seeded(step: Callable[[], Values]) -> Callable[[], Values]:
    """The step with the same masks each time."""

    def run() -> Values:
        torch.manual_seed(7)
        return step()

    return run
