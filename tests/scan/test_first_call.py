"""What the operator costs a fresh process: no compile stack, and few milliseconds."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys, time
import torch
from tests.scan.calls import make_call
from throughtime.scan import call_operator

def seconds(also):
    start = time.process_time()
    exec(also)
    result = call_operator(call, "reference")
    torch.autograd.backward(result.sequences[0].sum())
    return time.process_time() - start

call = make_call()
first, again = seconds(sys.argv[1]), min(seconds("pass") for _ in range(5))
loaded = [m for m in ("sympy", "torch._dynamo", "torch._inductor") if m in sys.modules]
print(first - again, *loaded)
"""


def first_call(also: str = "pass") -> tuple[float, list[str]]:
    """Seconds of the processor beside the arithmetic, and what of the compile stack is loaded."""
    command = [sys.executable, "-c", PROGRAM, also]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    cost, *loaded = run.stdout.split()
    return float(cost), loaded


def test_the_first_call_costs_at_most_20_ms_beside_the_arithmetic() -> None:
    costs = []
    for _ in range(5):  # the cheapest counts: what else runs can only make one dearer
        cost, loaded = first_call()
        assert loaded == [], "the first call loads the compile stack"
        costs.append(cost)
        if cost <= 0.02:
            return
    raise AssertionError(f"the first call costs {min(costs):.3f} s beside the arithmetic")


def test_a_first_call_that_does_more_is_seen() -> None:
    cost, loaded = first_call("import sympy; sum(range(20_000_000))")
    assert loaded == ["sympy"]
    assert cost > 0.02


BELOW = """
import torch, throughtime
from torch._subclasses.fake_tensor import FakeTensorMode

def fake(layer, x):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        layer(mode.from_tensor(x))

def compiled(layer, x):
    found = torch.compile(layer, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(found, layer(x))

for kind in ("RNNCell", "GRUCell", "LSTMCell"):
    {way}(getattr(throughtime, kind)(3, 4), torch.randn(2, 3))
"""


@pytest.mark.parametrize("way", ["fake", "compiled"])
def test_the_first_call_of_a_cell_may_stand_below_a_mode(way: str) -> None:
    program = BELOW.format(way=way)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
