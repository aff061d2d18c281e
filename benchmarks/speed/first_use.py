"""The first use of a new cell: processor time until the first result, in fresh processes.

The process has imported torch, llvmlite and throughtime and has run one small layer of torch
forward and backward (torch starts its threads there). Then the clock starts: a layer of the
user's own cell is built and called on a small batch. With an empty cache folder everything is
generated and compiled; with a warm one it is read. torch has one thread here: its others, which
wait busily, would be counted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.speed.machine import ROOT
from benchmarks.speed.row import Row
from benchmarks.speed.spread import quartiles

CACHE = "THROUGHTIME_CACHE"  # names the folder that compiled code is kept in
WORKS = ("forward", "forward and backward")
CACHES = ("empty", "warm")

PROGRAM = """
import json, sys, time
begun = time.process_time()
import torch
try:
    import llvmlite.binding
except ImportError:
    pass
layer = torch.nn.Linear(2, 2)
layer(torch.randn(3, 2)).sum().backward()
imported = time.process_time()
import throughtime
from benchmarks.speed.own_cell import CoupledPeephole
ready = time.process_time()
layer = throughtime.Recurrent(CoupledPeephole(), 16, 32, backend=sys.argv[1])
x = torch.zeros(5, 4, 16)
if sys.argv[2] == "forward":
    with torch.inference_mode():
        layer(x)
else:
    layer(x)[0].sum().backward()
done = time.process_time()
print(json.dumps({"torch": imported - begun, "import": ready - imported, "use": done - ready}))
"""


def key(work: str, cache: str) -> str:
    """The row's key."""
    return f"first/{work}/{cache}"


def measure_first_use(work: str, cache: str, repeats: int, backend: str) -> Row:
    """Median over fresh processes; each with a folder of its own for an empty cache."""
    with tempfile.TemporaryDirectory() as scratch:
        if cache == "warm":
            fresh_process(work, backend, Path(scratch))
        found = []
        for i in range(repeats):
            folder = Path(scratch) if cache == "warm" else Path(scratch) / str(i)
            found.append(fresh_process(work, backend, folder))
    return {
        "key": key(work, cache),
        "work": "first",
        "what": work,
        "cache": cache,
        "repeats": repeats,
        "cpu_s": quartiles([times["use"] for times in found]),
        "import_cpu_s": quartiles([times["import"] for times in found]),
    }


def fresh_process(work: str, backend: str, cache: Path) -> dict[str, float]:
    """Processor seconds of one process: of torch's import, of ours, and of the first use."""
    cache.mkdir(exist_ok=True)
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, backend, work],
        env={**os.environ, CACHE: str(cache), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"the first use failed: {done.stderr}")
    times: dict[str, Any] = json.loads(done.stdout)
    return times
