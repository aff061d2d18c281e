"""Ctrl-C in the middle of a long call, and a fork after use: both end well."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

LONG = """
import signal, sys, torch, throughtime
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
torch.manual_seed(0)
layer, x = throughtime.GRU(64, 256), torch.randn(20_000, 4, 64)
short = x[:50].clone().requires_grad_()

def results():
    y, h = layer(short)
    return [y, h, *torch.autograd.grad(y.square().sum(), (short, *layer.parameters()))]

def call():
    if sys.argv[1] == "forward":
        with torch.no_grad():
            layer(x)
    else:
        layer(x)[0].sum().backward()

expected = results()
print("begun", flush=True)
count = 0
try:
    while True:
        call()
        count += 1
except KeyboardInterrupt:
    print("interrupted", count, flush=True)
for found, one in zip(results(), expected, strict=True):
    assert torch.equal(found, one)
print("right", flush=True)
"""


@pytest.mark.parametrize("way", ["forward", "backward"])
def test_ctrl_c_ends_a_call_of_seconds_and_leaves_all_as_it_was(way: str) -> None:
    command = [sys.executable, "-c", LONG, way]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None and run.stdout.readline() == "begun\n"
        time.sleep(0.7)  # in the middle of a call
        run.send_signal(signal.SIGINT)
        said, error = run.communicate(timeout=120)
    assert run.returncode == 0, error
    assert said.startswith("interrupted") and said.endswith("right\n")


FORK = """
import os, sys, torch, throughtime
torch.set_num_threads(2)
torch.manual_seed(0)
layer, x, d = throughtime.GRU(32, 128), torch.randn(60, 24, 32), torch.randn(60, 24, 128)

def results():
    y, h = layer(x)
    return [y, h, *torch.autograd.grad(y, list(layer.parameters()), d)]

def same(found, expected):  # torch's own parallel operations, equal among them, hang in a child
    return all(
        a.detach().numpy().tobytes() == b.detach().numpy().tobytes()
        for a, b in zip(found, expected, strict=True)
    )

expected = results()
stream = layer.stream(24)
steps = [stream(v).clone() for v in x]
child = os.fork()
if child == 0:
    try:
        assert same(results(), expected)
        again = layer.stream(24)
        assert same([again(v).clone() for v in x], steps)
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
assert same(results(), expected)
_, status = os.waitpid(child, 0)
assert status == 0, status
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_fork_after_use_computes_the_same_in_both_processes() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK], capture_output=True, text=True, timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
