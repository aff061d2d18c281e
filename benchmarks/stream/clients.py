"""Measures many clients in one stream, and as many streams of one row each.

    python -m benchmarks.stream.clients

One thread, float32, NumPy in and out. 2,000 rows of GRU 64 with I = 16 and a readout of 8: all at a
time, and some drawn at random, whose numbers are given. A turn is some calls, of which the median
counts, and of the turns the median again. Memory is what a client's state takes, and what a stream
of one row takes beside the model, as the process grows.
"""

from __future__ import annotations

import json
import resource
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import throughtime
from benchmarks.speed.machine import describe_machine, describe_source, describe_versions

I, H, O, CLIENTS = 16, 64, 8, 2000
DRAWN = (1, 16, 200)
TIMES = 20
"""Streams of all clients whose memory is measured, since one may find memory that waits."""

TURNS, BAR_US, BAR_BYTES = 9, 1.0, 2000
RESULTS = Path(__file__).resolve().parent / "results"


def model() -> nn.Module:
    """A layer and its readout."""
    layer = throughtime.Recurrent(throughtime.cells.GRU(), I, H, return_state=False)
    return nn.Sequential(layer, nn.Linear(H, O))


def check(net: nn.Module) -> None:
    """A client has the bits of a stream of its own, or nothing is measured."""
    x = np.random.default_rng(0).standard_normal((4, CLIENTS, I), np.float32)
    stream, one = throughtime.Stream(net, CLIENTS), throughtime.Stream(net)
    for step in x:
        found = stream(step)[1234]
        assert (found == one(step[1234])).all()


def median(call: Callable[[], Any], calls: int) -> float:
    """Microseconds of a call."""
    turns = []
    for _ in range(TURNS):
        times = []
        for _ in range(calls):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        turns.append(statistics.median(times))
    return statistics.median(turns) * 1e6


def steps(net: nn.Module) -> list[dict[str, Any]]:
    """Microseconds a row and step: of all rows at a time, and of some."""
    stream, random = throughtime.Stream(net, CLIENTS), np.random.default_rng(1)
    x = random.standard_normal((CLIENTS, I), np.float32)
    us = median(lambda: stream(x), 20) / CLIENTS
    found: list[dict[str, Any]] = [{"rows": CLIENTS, "us": us, "bar": BAR_US, "met": us <= BAR_US}]
    for count in DRAWN:
        rows = random.permutation(CLIENTS)[:count]
        some = x[:count]
        us = median(lambda some=some, rows=rows: stream.step(some, rows=rows), 100) / count
        found.append({"rows": count, "us": us})
    return found


def memory(net: nn.Module) -> dict[str, Any]:
    """Bytes of a client in one stream, and of a stream of its own; and microseconds to make it."""
    found = {}
    for name, make in {
        "client": lambda: [throughtime.Stream(net, CLIENTS) for _ in range(TIMES)],
        "stream": lambda: [throughtime.Stream(net) for _ in range(CLIENTS)],
    }.items():
        count = CLIENTS * (TIMES if name == "client" else 1)
        before, start = _resident(), time.perf_counter()
        held = make()
        found[f"{name}_us"] = (time.perf_counter() - start) / count * 1e6
        found[f"{name}_bytes"] = (_resident() - before) / count
        del held
    return found | {"bar": BAR_BYTES, "met": found["client_bytes"] <= BAR_BYTES}


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def main() -> None:
    """One run and its JSON."""
    torch.set_num_threads(1)
    torch.manual_seed(20131)
    net = model()
    check(net)
    content: dict[str, Any] = {
        "date": date.today().isoformat(), "machine": describe_machine(),
        "versions": describe_versions(), "source": describe_source(),
    }  # fmt: skip
    content["memory"] = memory(net)  # first, before memory waits to be used again
    content["steps"] = steps(net)
    for row in content["steps"]:
        bar = f" (bar {row['bar']}: {'met' if row['met'] else 'MISSED'})" if "bar" in row else ""
        print(f"{row['rows']} of {CLIENTS} rows: {row['us']:.3f} us a row and step{bar}")
    found = content["memory"]
    print(
        f"a client {found['client_bytes']:.0f} bytes (bar {BAR_BYTES}: "
        f"{'met' if found['met'] else 'MISSED'}); a stream of its own {found['stream_bytes']:.0f} "
        f"bytes and {found['stream_us']:.0f} us"
    )
    file = RESULTS / f"clients-{content['date']}-{content['source']['commit']}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content, indent=1) + "\n")
    print(file)


if __name__ == "__main__":
    main()
