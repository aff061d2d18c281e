"""Tracing is cheap, and loads nothing of torch's compile stack."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.cells.table import CELLS
from throughtime.compiler import derivative, trace

FRESH = """
import json, sys, time
import torch
before = set(sys.modules)
from tests.cells.table import CELLS
from throughtime.compiler import derivative; from throughtime.compiler import trace

def seconds(work):
    started = time.process_time()
    for cell in cells:
        work(cell)
    return time.process_time() - started

cells = list({type(cell): cell for cell in CELLS}.values())
graphs = [trace(cell) for cell in cells]
print(json.dumps({
    "trace": min(seconds(trace) for _ in range(5)),
    "derive": min(seconds(lambda cell: derivative(trace(cell))) for _ in range(5)),
    "keys": [derivative(graph).key for graph in graphs],
    "loaded": [m for m in sys.modules if m not in before and m.startswith(("torch.", "sympy"))],
}))
"""


def test_tracing_every_cell_is_cheap_and_gives_the_same_keys_anywhere() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FRESH],
        env={
            "PYTHONPATH": ":".join([".", *sys.path]),
            "PYTHONHASHSEED": "1",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["loaded"] == []
    assert found["trace"] < 0.05, "tracing each cell once takes 5 to 10 ms of processor time"
    assert found["derive"] < 0.15
    graphs = [trace(cell) for cell in {type(cell): cell for cell in CELLS}.values()]
    assert found["keys"] == [derivative(graph).key for graph in graphs], "keys differ by process"
