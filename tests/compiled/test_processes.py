"""Compiled code in forked children, in several threads at once, and over many calls."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from throughtime import Recurrent, cells

FORKED = """
import hashlib, os, sys, torch
from throughtime import Recurrent, cells
from throughtime.backends.cpu import sizes
sizes.PARALLEL_US = 0
torch.set_num_threads(2)
torch.manual_seed(0)
layer = Recurrent(cells.LSTM(), 9, 70, bidirectional=True, backend="cpu")
x = torch.randn(12, 12, 9)  # from 32768 numbers on, torch's own operations hang in a child

def bits():
    layer.zero_grad()
    y, _ = layer(x)
    y.square().sum().backward()
    data = [y.detach(), *(p.grad for p in layer.parameters())]
    return hashlib.sha256(b"".join(v.numpy().tobytes() for v in data)).hexdigest()

own = bits()
child = os.fork()
if child == 0:
    os._exit(0 if bits() == own else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_computes_the_same_bits() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], timeout=100, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_eight_threads_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("throughtime.backends.cpu.sizes.PARALLEL_US", 0)
    torch.manual_seed(1)
    layers = [
        Recurrent(cell, 5, H, backend="cpu")
        for cell, H in ((cells.LSTM(), 33), (cells.GRU(), 64), (cells.Elman(), 17))
    ]
    work = [(layers[i % 3], torch.randn(6 + i % 4, 1 + i % 5, 5)) for i in range(48)]

    def once(job: tuple[Recurrent, Tensor]) -> list[Tensor]:
        layer, x = job
        x = x.clone().requires_grad_()
        y, _ = layer(x)
        return [y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])]

    alone = [once(job) for job in work]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            for found, expected in zip(pool.map(once, work), alone, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_threads_may_change_between_forward_and_backward() -> None:
    layer, x = Recurrent(cells.GRU(), 16, 96, backend="cpu"), torch.randn(40, 32, 16)
    before, found = torch.get_num_threads(), []
    try:
        for first, second in ((1, 1), (1, 2), (2, 1), (2, 3)):
            torch.set_num_threads(first)
            y, _ = layer(x)
            torch.set_num_threads(second)
            found.append([y, *torch.autograd.grad(y.square().sum(), list(layer.parameters()))])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, found[0], strict=True))


MANY = """
import sys, resource, torch
from throughtime import Recurrent, cells
calls, planted = int(sys.argv[1]), sys.argv[2] == "leak"
layers = [Recurrent(c, 7, H, backend="cpu") for c in (cells.LSTM(), cells.GRU()) for H in (5, 20)]
kept = []

def run(n, shapes):
    for i in range(n):
        T, B = 1 + i % shapes, 1 + i * 7 % shapes
        y, _ = layers[i % 4](torch.randn(T, B, 7), lengths=[1 + j % T for j in range(B)] if i % 3
                             else None)
        y.sum().backward()
        if planted:
            kept.append(torch.ones(2000))

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

run(calls, 20)
before = resident()
run(calls, 20)
print((resident() - before) // calls)
"""


def _bytes_a_call(calls: int, what: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", MANY, str(calls), what], capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is read from /proc")
@pytest.mark.parametrize("calls", [1500, pytest.param(10_000, marks=pytest.mark.soak)])
def test_calls_of_changing_shapes_hold_no_memory(calls: int) -> None:
    assert _bytes_a_call(calls, "leak") > 6000, "a leak of one tensor a call must be seen"
    assert _bytes_a_call(calls, "none") < 1500
