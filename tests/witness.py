"""One hash of the bits of a table of calls, to hold against each other before and after a change.

    python -m tests.witness            one line a group, and one of all
    python -m tests.witness --each     a line a call, to find which one moved

Every compiled cell forward and backward in both dtypes, with lengths, resets, masks, two
directions, packed rows, several layers, dilation, segments, records, streams, and the drop-ins, by
one thread and by two. The bits are those of one machine kind and one version of torch, so nothing
is compared with a kept value.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import throughtime
from tests.compiled.calls import CELLS
from throughtime import Recurrent
from throughtime.cell.layout import find_fitting_size
from throughtime.errors import ThroughtimeError

T, B, I, H = 9, 5, 3, 7
LENGTHS = [4, 9, 0, 7, 1]

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two directions": {"bidirectional": True, "merge": "sum"},
    "segments": {"checkpoint_every": 4},
    "clipped": {"clip_gradient": 0.3},
    "started": {"learn_initial": True},
    "masks": {"recurrent_dropout": 0.3, "zoneout": 0.2, "weight_dropout": 0.1},
    "deep": {"num_layers": 2, "bidirectional": True, "dropout": 0.2},
    "dilated": {"dilation": 2},
}
"""Options of `Recurrent`; one that a cell does not take is passed over, and said so."""

CALLS: dict[str, dict[str, Any]] = {
    "whole": {},
    "lengths": {"lengths": LENGTHS},
    "resets": {"reset": True, "lengths": LENGTHS},
    "one step": {"steps": 1},
}


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in tuples, lists, dicts and packed sequences, in order."""
    if isinstance(value, PackedSequence):
        yield value.data
    elif isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for v in value.values():
            yield from tensors(v)
    elif isinstance(value, tuple | list):
        for v in value:
            yield from tensors(v)


def digest(values: Any) -> str:
    """A hash of the bits of all tensors."""
    total = hashlib.sha256()
    for v in tensors(values):
        total.update(str((tuple(v.shape), v.dtype)).encode())
        total.update(v.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:16]


def call(
    layer: Recurrent, dtype: torch.dtype, steps: int = T, reset: bool = False, **more: Any
) -> Any:
    """Outputs, last states and all gradients of one call."""
    x = torch.randn(steps, B, I, dtype=dtype, requires_grad=True)
    widths = {n: layer.cell.width(w, H) for n, w in layer.cell.inputs.items()}
    inputs = {
        n: torch.rand(steps, B, w, dtype=dtype, requires_grad=True) for n, w in widths.items()
    }
    if inputs:
        more["inputs"] = inputs
    if reset:
        more["reset"] = torch.rand(steps, B) < 0.3
    y, state = layer(x, **more)
    weights = [torch.randn_like(v) for v in tensors((y, state))]
    loss = sum((v * w).sum() for v, w in zip(tensors((y, state)), weights, strict=True))
    leaves = [x, *inputs.values(), *layer.parameters()]
    return y, state, torch.autograd.grad(loss, leaves, allow_unused=True)


def rows() -> Iterator[tuple[str, str, Any]]:
    """Group, name and values of every call."""
    for index, cell in enumerate(CELLS):
        for dtype in (torch.float32, torch.float64):
            for option, given in OPTIONS.items():
                for name, more in CALLS.items():
                    torch.manual_seed(index)
                    what = f"{cell!r} {dtype} {option} {name}"
                    try:
                        layer = Recurrent(cell, I, find_fitting_size(cell, H), dtype=dtype, **given)
                        values = call(layer, dtype, **dict(more))
                    except ThroughtimeError as error:
                        values = (torch.tensor(list(type(error).__name__.encode())),)
                    yield option, what, [v for v in tensors(values) if v is not None]
    yield from large()
    yield from streams()
    yield from drop_ins()


def large() -> Iterator[tuple[str, str, Any]]:
    """So much work that threads share it."""
    for index, cell in enumerate(CELLS):
        torch.manual_seed(index)
        layer = Recurrent(cell, 33, find_fitting_size(cell, 70), bidirectional=True)
        x = torch.randn(40, 13, 33, requires_grad=True)
        widths = {n: cell.width(w, 70) for n, w in cell.inputs.items()}
        inputs = {n: torch.rand(40, 13, w) for n, w in widths.items()}
        y, state = layer(x, lengths=range(28, 41), **({"inputs": inputs} if inputs else {}))
        gradients = torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])
        yield "large", repr(cell), (y, state, gradients)


def streams() -> Iterator[tuple[str, str, Any]]:
    """Steps of streams, and records."""
    for index, cell in enumerate(CELLS):
        for dtype in (torch.float32, torch.float64):
            if cell.inputs:
                continue
            torch.manual_seed(index)
            size = find_fitting_size(cell, H)
            layer = Recurrent(cell, I, size, num_layers=2, dtype=dtype, return_state=False)
            stream, x = layer.stream(B), torch.randn(T, B, I, dtype=dtype)
            steps = [stream(v) for v in x]
            yield "streams", f"{cell!r} {dtype}", (steps, stream.state)
            yield "records", f"{cell!r} {dtype}", layer.trace(x)


def drop_ins() -> Iterator[tuple[str, str, Any]]:
    """Layers and single-step cells in place of torch's."""
    for kind in ("RNN", "LSTM", "GRU"):
        for dtype in (torch.float32, torch.float64):
            for packed in (False, True):
                torch.manual_seed(3)
                layer = getattr(throughtime, kind)(I, H, 2, bidirectional=True, dtype=dtype)
                x: Any = torch.randn(T, 4, I, dtype=dtype, requires_grad=True)
                given = pack_padded_sequence(x, [9, 7, 7, 2]) if packed else x
                y, state = layer(given)
                loss = sum(v.square().sum() for v in tensors((y, state)))
                gradients = torch.autograd.grad(loss, [x, *layer.parameters()])
                yield "drop-ins", f"{kind} {dtype} packed={packed}", (y, state, gradients)


def main() -> None:
    """Print the hashes."""
    each, groups, total = "--each" in sys.argv, {}, hashlib.sha256()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for group, name, values in rows():
            bits = digest(values)
            if each:
                print(bits, f"threads={threads}", group, name)
            groups.setdefault(group, hashlib.sha256()).update(bits.encode())
            total.update(bits.encode())
    for group, hashed in groups.items():
        print(hashed.hexdigest()[:16], group)
    print(total.hexdigest()[:16], "all")


if __name__ == "__main__":
    main()
