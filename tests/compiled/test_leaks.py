"""Thousands of calls with changing shapes hold no memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.house.source import ROOT

# Shapes are drawn anew all the time; what is kept for each is bounded, so after the warm-up the
# process stays as it is, give or take what the C library does not return.
PROGRAM = """
import gc, random, sys
import torch
from throughtime import Recurrent, cells

calls, planted = int(sys.argv[1]), sys.argv[2] == "planted"
torch.set_num_threads(1)
layers = [Recurrent(c, 5, 16, bidirectional=True) for c in (cells.LSTM(), cells.GRU())]
random.seed(1)
leak = []

def megabytes():
    gc.collect()
    for line in open("/proc/self/status"):
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024

def call(i):
    T, B = random.randint(0, 40), random.randint(1, 12)
    layer, x = layers[i % 2], torch.randn(T, B, 5)
    given = {}
    if i % 3 == 1:
        given["lengths"] = torch.randint(0, T + 1, (B,))
    if i % 5 == 4:
        with torch.no_grad():
            layer(x, **given)
    elif i % 7 == 3:
        layer(x, **given)  # a graph that is never walked
    else:
        y = layer(x, **given)[0].sum()
        if y.requires_grad:
            y.backward()
    if planted:
        leak.append(torch.zeros(12_000))

for i in range(2500):  # until a layer has as many shapes as it keeps
    call(i)
before = megabytes()
for i in range(calls):
    call(i)
print(megabytes() - before)
"""

ALLOWED_MB = 15.0


def _growth(calls: int, kind: str = "clean") -> float:
    command = [sys.executable, "-c", PROGRAM, str(calls), kind]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1500:]
    return float(done.stdout)


def test_calls_hold_no_memory() -> None:
    assert _growth(1500) <= ALLOWED_MB


def test_a_leak_would_be_seen() -> None:
    assert _growth(1500, "planted") > ALLOWED_MB


@pytest.mark.soak
def test_many_calls_hold_no_memory() -> None:
    assert _growth(10_000) <= ALLOWED_MB
