"""What the operator costs a fresh process: no compile stack, and few milliseconds."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys, time
import torch
from tests.scan.calls import make_call
from throughtime.scan.dispatch import operator

def seconds(also):
    start = time.process_time()
    exec(also)
    result = operator(call, "reference")
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
