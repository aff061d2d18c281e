"""What compiled code does not take is refused with its reason, and "auto" goes on."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from tests.compiled.calls import Sizes, changed, random_call
from tests.compiled.fed import Decaying
from tests.house.source import ROOT
from throughtime import Recurrent, cells
from throughtime.backends import choose, explain
from throughtime.backends.call import Call
from throughtime.errors import BackendError
from throughtime.scan import scan

SIZES = Sizes(3, 2, 4, 5)
MASK = torch.ones(1, 2, 5, requires_grad=True)
ZONES = torch.zeros(1, 3, 2, 5).double()

CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "mask": ({"recurrent_mask": MASK}, "has no gradient by masks"),
    "zoneout": ({"zoneout": (ZONES,)}, "states, inputs and masks must be float32"),
    "state": ({"state": (ZONES[:, 0],)}, "states, inputs and masks must be float32"),
    "mixed": ({"x": torch.zeros(3, 2, 4).double()}, "must be float64 on cpu like the input"),
}  # fmt: skip


@pytest.mark.parametrize(("given", "reason"), CALLS.values(), ids=CALLS)
def test_a_call_is_refused_with_its_reason(given: dict[str, Any], reason: str) -> None:
    call = random_call(cells.GRU(), torch.float32, SIZES, grad=False)
    _refused(call._replace(**given), reason)


def test_direct_inputs_of_another_precision_are_refused() -> None:
    call = random_call(Decaying(), torch.float32, SIZES, grad=False)
    assert call.inputs is not None
    inputs = {n: v.double() for n, v in call.inputs.items()}
    _refused(call._replace(inputs=inputs), "weights, states, inputs and masks must be float32")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (torch.bfloat16, "computes in float32 and float64, and the input is bfloat16"),
        (torch.float16, "computes in float32 and float64, and the input is float16"),
        ("meta", "computes on the processor, and the input is on meta"),
    ],
    ids=str,
)
def test_numbers_and_devices_that_it_has_no_code_for(kind: Any, reason: str) -> None:
    call = random_call(cells.GRU(), torch.float32, SIZES, "state", grad=False)
    _refused(changed(call, lambda v: v.to(kind)), reason)


def _refused(call: Call, reason: str) -> None:
    with pytest.raises(BackendError, match=f"backend 'cpu' cannot run this call: .*{reason}"):
        scan(call, "cpu")
    assert reason in choose(call).refused["cpu"]
    assert choose(call).name != "cpu"
    assert reason in explain(call, "cpu")


def test_bfloat16_layers_and_autocast_go_on() -> None:
    x = torch.randn(3, 2, 4)
    layer = Recurrent(cells.GRU(), 4, 5, backend="cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(BackendError, match="autocast rounds products"):
            layer(x)
        layer.backend = "auto"
        assert layer(x)[0].isfinite().all()
    narrow = Recurrent(cells.GRU(), 4, 5, dtype=torch.bfloat16)
    assert narrow(x.bfloat16())[0].dtype == torch.bfloat16


WITHOUT = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "llvmlite" else find(name, *a)
class Blocked:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "llvmlite":
            raise ModuleNotFoundError(f"No module named {name!r}", name="llvmlite")
sys.meta_path.insert(0, Blocked())
import torch
from throughtime import Recurrent, cells
layer = Recurrent(cells.LSTMPeephole(), 3, 4)
x = torch.randn(3, 2, 3)
layer(x)[0].sum().backward()
print(layer.explain())
layer.backend = "cpu"
try:
    layer(x)
except RuntimeError as error:
    print(error)
"""


def test_without_llvmlite_auto_goes_on_and_says_why() -> None:
    command = [sys.executable, "-c", WITHOUT]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1500:]
    told, error = done.stdout.rsplit("\n", 2)[:2]
    assert "reference" in told and "not cpu: llvmlite is not installed" in told
    assert "backend 'cpu' cannot run this call: llvmlite is not installed; install it with" in error
