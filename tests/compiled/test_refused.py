"""What compiled code refuses, it says; `auto` goes on, and a machine may be narrowed or missing."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from throughtime import Recurrent, cells
from throughtime.errors import BackendError


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": torch.bfloat16}, "computes in float32 and float64, and the input is bfloat16"),
        ({"device": "meta"}, "computes on the processor, and the input is on meta"),
    ],
    ids=["bfloat16", "meta"],
)
def test_numbers_and_devices_that_are_not_compiled(change: dict[str, Any], reason: str) -> None:
    x = torch.ones(3, 2, 4, **change)
    with pytest.raises(BackendError, match=reason):
        Recurrent(cells.GRU(), 4, 5, backend="cpu", **change)(x)
    assert Recurrent(cells.GRU(), 4, 5, **change)(x)[0].shape == (3, 2, 5)


def test_autocast_and_options_of_the_loop() -> None:
    x = torch.randn(3, 2, 4)
    with torch.autocast("cpu"), pytest.raises(BackendError, match="autocast rounds products"):
        Recurrent(cells.GRU(), 4, 5, backend="cpu")(x)
    with pytest.raises(BackendError, match="does not offer zoneout"):
        Recurrent(cells.GRU(), 4, 5, backend="cpu", zoneout=0.1)(x)
    with pytest.raises(BackendError, match="does not offer resets"):
        Recurrent(cells.GRU(), 4, 5, backend="cpu")(x, reset=torch.zeros(3, 2, dtype=torch.bool))


PROGRAM = """
import hashlib, torch
from throughtime import Recurrent, cells
from throughtime.compiler.llvm import machine
print(machine.host().name)
for cell in (cells.LSTM(), cells.GRU()):
    torch.manual_seed(3)
    for dtype in (torch.float32, torch.float64):
        layer = Recurrent(cell, 5, 37, bidirectional=True, backend="cpu", dtype=dtype)
        judge = Recurrent(cell, 5, 37, bidirectional=True, backend="reference", dtype=dtype)
        judge.load_state_dict(layer.state_dict())
        x = torch.randn(9, 7, 5, dtype=dtype)
        y, _ = layer(x, lengths=[9, 1, 0, 4, 9, 2, 7])
        y.square().sum().backward()
        expected, _ = judge(x, lengths=[9, 1, 0, 4, 9, 2, 7])
        expected.square().sum().backward()
        assert torch.allclose(y, expected, atol=1e-5)
        for a, b in zip(layer.parameters(), judge.parameters()):
            assert torch.allclose(a.grad, b.grad, atol=1e-3, rtol=1e-4)
        print(hashlib.sha256(y.detach().numpy().tobytes()).hexdigest())
"""


def _said(program: str, **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | environment, capture_output=True,
        text=True, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_narrower_machine_has_the_same_bits() -> None:
    widest, *bits = _said(PROGRAM, THROUGHTIME_MACHINE="")
    if widest != "avx512":
        pytest.skip(f"this processor is {widest}, which has no narrower machine to compare with")
    narrow, *same = _said(PROGRAM, THROUGHTIME_MACHINE="avx2")
    assert narrow == "avx2"
    assert same == bits


NO_LLVM = """
import sys, importlib.util, torch
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "llvmlite" else find(name, *a)
sys.modules["llvmlite"] = None
from throughtime import Recurrent, GRU, cells
print(GRU(3, 4).explain().replace(" ", "_"))
print(Recurrent(cells.IndRNN(), 3, 4)(torch.ones(2, 1, 3))[0].shape[-1])
"""


def test_without_llvm_the_next_backend_computes_and_says_why() -> None:
    chosen, reason, width = _said(NO_LLVM)[0], " ".join(_said(NO_LLVM)[1:-1]), _said(NO_LLVM)[-1]
    assert chosen == "layer_0:_torch"
    assert reason.replace("_", " ").strip().startswith("not cpu: llvmlite is not installed")
    assert width == "4"
