"""Measures one step of our stream beside torch.nn and onnxruntime, and the bare step in a loop.

    python -m benchmarks.stream.run

One thread, one row, I = 16, a readout of 8, float32, NumPy in and out for us and onnxruntime and
tensors for torch. Contenders take turns; a turn is some calls, back to back or 2 ms apart, of which
the median counts; ratios are medians over the turns' ratios. All must agree on 20 steps first.
"""

from __future__ import annotations

import gc
import json
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
from benchmarks.stream.onnx_step import onnx_step

I, O, LOOPS, PAUSE = 16, 8, 100_000, 0.002
TURNS = 9
CALLS = {"back to back": 400, "2 ms apart": 40}
BARS = {64: (15.0, 2.5), 256: (5.0, 1.5)}  # times torch.nn, times onnxruntime
BARE = {8: 0.15, 16: 0.32, 32: 0.88, 64: 3.2}  # us a step, RTNeural's
NARROW = "ours, bfloat16 weights"
TOLERANCE = {NARROW: 2e-2}
RESULTS = Path(__file__).resolve().parent / "results"

Step = Callable[[Any], Any]


def torch_step(rnn: Any, readout: nn.Linear) -> Step:
    """torch.nn, one step a call; the state is handed on."""
    state: Any = None

    @torch.inference_mode()
    def step(x: Any) -> Any:
        nonlocal state
        y, state = rnn(x[None, None], state)
        return readout(y)[0, 0]

    return step


def contenders(cell: str, H: int, layers: int) -> dict[str, Step]:
    """Steps of the same weights, each with a state of its own."""
    rnn, readout = getattr(nn, cell)(I, H, layers), nn.Linear(H, O)
    model = nn.Sequential(throughtime.from_torch(rnn), throughtime.Readout(network=readout))
    stream = throughtime.Stream(model)
    assert stream.explain().startswith("compiled"), stream.explain()
    return {
        "ours": stream, "torch.nn": torch_step(rnn, readout),
        "onnxruntime": onnx_step(rnn, readout),
        NARROW: throughtime.Stream(model, weights=torch.bfloat16),
    }  # fmt: skip


def difference(steps: dict[str, Step]) -> dict[str, float]:
    """The largest of each contender from ours over 20 steps."""
    found = dict.fromkeys(steps, 0.0)
    for x in np.random.default_rng(1).standard_normal((20, I), np.float32):
        ours = steps["ours"](x)
        for name, step in steps.items():
            y = ours if name == "ours" else step(torch.from_numpy(x) if name == "torch.nn" else x)
            found[name] = max(found[name], float(abs(np.asarray(y) - ours).max()))
    return found


def turn(step: Step, x: Any, calls: int, pause: float) -> float:
    """Median microseconds of a call; behind it calls without a pause are timed together."""
    step(x)
    times = []
    for _ in range(calls):
        if pause:
            time.sleep(pause)
        start = time.perf_counter()
        step(x)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def measure(cell: str, H: int, layers: int) -> list[dict[str, Any]]:
    """A row for calls back to back, and one for calls apart."""
    steps, x = contenders(cell, H, layers), np.ones(I, np.float32)
    given = {name: torch.from_numpy(x) if name == "torch.nn" else x for name in steps}
    agreed, rows = difference(steps), []
    for name, most in agreed.items():
        assert most < TOLERANCE.get(name, 1e-5), f"{cell} {H} {layers}: {name} differs by {most}"
    for way, calls in CALLS.items():
        pause = PAUSE if way == "2 ms apart" else 0.0
        turns = [
            {n: turn(f, given[n], calls, pause) for n, f in steps.items()} for _ in range(TURNS)
        ]
        row: dict[str, Any] = {"cell": cell, "H": H, "layers": layers, "calls": way,
                               "difference": agreed}  # fmt: skip
        row["us"] = {n: statistics.median(t[n] for t in turns) for n in steps}
        for name, bar in zip(("torch.nn", "onnxruntime"), BARS[H], strict=True):
            ratio = statistics.median(t[name] / t["ours"] for t in turns)
            row[name] = {"times": ratio, "bar": bar, "met": ratio >= bar}
        rows.append(row)
        print(_line(row), flush=True)
    return rows


def _line(row: dict[str, Any]) -> str:
    ratios = ", ".join(
        f"{row[n]['times']:.1f} x {n} (bar {row[n]['bar']}: {'met' if row[n]['met'] else 'MISSED'})"
        for n in ("torch.nn", "onnxruntime")
    )
    name = f"{row['cell']} H {row['H']} x {row['layers']}, {row['calls']}"
    us = row["us"]
    return f"{name}: {us['ours']:.2f} us, {ratios}; bfloat16 weights: {us[NARROW]:.2f} us"


def bare(H: int) -> dict[str, Any]:
    """Microseconds of an LSTM's step with I = 1, in a loop of machine code."""
    stream = throughtime.LSTM(1, H).stream()
    stream(np.ones(1, np.float32))
    compiled, times = stream._compiled, []
    assert compiled is not None, stream.explain()
    for _ in range(7):
        start = time.perf_counter()
        compiled.repeat(LOOPS)
        times.append((time.perf_counter() - start) / LOOPS * 1e6)
    us = statistics.median(times)
    print(f"bare LSTM H {H}: {us:.3f} us (bar {BARE[H]}: {'met' if us <= BARE[H] else 'MISSED'})")
    return {"H": H, "us": us, "bar": BARE[H], "met": us <= BARE[H]}


def main() -> None:
    """One run and its JSON."""
    torch.set_num_threads(1)
    torch.manual_seed(20131)
    gc.disable()
    content: dict[str, Any] = {
        "date": date.today().isoformat(), "machine": describe_machine(),
        "versions": describe_versions(), "source": describe_source(),
    }  # fmt: skip
    content["bare"] = [bare(H) for H in BARE]
    content["rows"] = [
        row
        for H in BARS
        for cell in ("GRU", "LSTM")
        for layers in (1, 2)
        for row in measure(cell, H, layers)
    ]
    file = RESULTS / f"{content['date']}-{content['source']['commit']}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content, indent=1) + "\n")
    print(file)


if __name__ == "__main__":
    main()
