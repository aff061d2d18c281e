"""Many calls of changing shapes; as a program of its own, what memory each lot of them keeps.

    python -m tests.layers.many_calls KEPT...

For each KEPT, CALLS calls that leave as many small tensors behind each: prints by how many bytes
the process grew. A first lot, which is not counted, warms up.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from throughtime import Recurrent, cells

CALLS = 1000


def caller() -> Callable[[int], None]:
    """The i-th call: a layer and its backward, a step of a stream, at times a new cell."""
    layers = [Recurrent(cells.GRU(), 6, 8, backend=name) for name in ("auto", "reference")]
    stream = layers[0].stream()

    def call(i: int) -> None:
        T, B = 1 + i % 4, 1 + i % 11
        lengths = [T] * B if i % 3 else None
        y, _ = layers[i % 2](torch.randn(T, B, 6), lengths=lengths)
        y.sum().backward()
        stream(torch.randn(6))
        if i % 10 == 0:
            Recurrent(cells.Skip(2 + i % 3), 2, 3)(torch.randn(2, 2, 2))

    return call


def resident() -> int:
    """Bytes of memory this process holds."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main(lots: list[int]) -> None:
    call, kept = caller(), list[Tensor]()
    for number, left in enumerate([0, *lots]):
        before = resident()
        for i in range(CALLS):
            call(i)
            kept.extend(torch.randn(6) for _ in range(left))
        if number:
            print(resident() - before)


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]])
