"""Measures what a stream would take on the forward region, beside its own executor.

    python -m benchmarks.stream.region

One row, one thread, float32, GRU and LSTM with as many inputs as units. The region is that of a
call of one step, called with nothing but its block, its packed weights kept: what it takes longer
than the stream's own code is what a step would. Both give the same bits, or nothing is measured.
A turn is some calls of processor time, of which the median of turns counts.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import throughtime
from throughtime.backends.cpu.memory import take
from throughtime.backends.cpu.stream.stream import CompiledStream
from throughtime.compiler.llvm.abi import COMMON

SIZES, CALLS, TURNS = (16, 64, 128, 256), 2000, 7
KINDS = (throughtime.GRU, throughtime.LSTM)


def region_of(layer: Any, x: torch.Tensor) -> tuple[Callable[[], None], torch.Tensor]:
    """What calls the region of one step with packed weights that are kept, and its output."""
    layer(x)
    (call,) = (call for call in layer._short.calls.values() if call is not None)
    (way,) = call.ways
    y, final = x.new_empty(way.y), [x.new_empty(s) for s in way.finals or call.finals]
    region = way.region
    ready = region._new()
    ready.work_in(region._template, take(region._template.arena_bytes))
    region._ready[:], region._keeps = [ready], True
    region.run((x, y, *layer.parameters(), *final))
    ready.words[COMMON.index("packed")] = 1
    ready.hold((x, y, final))

    def run() -> None:
        for place in region._counters:
            ready.words[place] = 0
        region._function(ready.address)

    return run, y


def microseconds(call: Callable[[], Any]) -> float:
    """Of processor time a call."""
    start = time.process_time()
    for _ in range(CALLS):
        call()
    return (time.process_time() - start) / CALLS * 1e6


def measure(kind: Any, H: int) -> dict[str, Any]:
    """A step of a stream, the part of it that is machine code, and the region."""
    torch.manual_seed(0)
    layer, x = kind(H, H), torch.randn(1, 1, H)
    layer.backend = "cpu"
    stream, row = throughtime.Stream(layer), x[0].numpy()
    region, y = region_of(layer, x)
    region()
    assert np.array_equal(np.asarray(stream.step(row)).ravel(), y.numpy().ravel())
    compiled = stream._compiled
    assert isinstance(compiled, CompiledStream)
    calls = {
        "step": lambda: stream.step(row),
        "code": lambda: compiled._call(compiled._address),
        "region": region,
    }
    turns = [[microseconds(call) for call in calls.values()] for _ in range(TURNS)]
    times = dict(zip(calls, map(statistics.median, zip(*turns, strict=True)), strict=True))
    on_region = times["step"] - times["code"] + times["region"]
    return {"kind": kind.__name__, "H": H, **times, "ratio": on_region / times["step"]}


def main() -> None:
    """Print a line for each layer: a step on the region over a step of the stream."""
    torch.set_num_threads(1)
    with torch.no_grad():
        for kind in KINDS:
            for H in SIZES:
                print(json.dumps(measure(kind, H)))


if __name__ == "__main__":
    main()
