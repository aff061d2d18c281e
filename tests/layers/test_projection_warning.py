"""torch warns once a process that oneDNN has no projections: told where torch.nn tells it."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import warnings
import torch
import throughtime
from throughtime import LSTM, Recurrent, cells
x = torch.randn(5, 2, 3)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    {call}(x)
print(*[w.message for w in caught])
"""
QUIET = [
    "Recurrent(cells.LSTMProjected(2), 3, 4)",
    "Recurrent(cells.LSTMProjected(7), 3, 4)",
    "LSTM(3, (4, 2))",
    "LSTM(3, 4, proj_size=2)",
    "throughtime.compat.LSTM(3, (4, 7), 2)",
]
AS_TORCH = ["LSTM(3, 4, proj_size=2, backend='torch')", "torch.nn.LSTM(3, 4, proj_size=2)"]


def told(call: str) -> str:
    command = [sys.executable, "-c", PROGRAM.format(call=call)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("call", QUIET)
def test_compiled_code_does_not_warn(call: str) -> None:
    assert told(call).strip() == ""


@pytest.mark.parametrize("call", AS_TORCH)
def test_torchs_kernel_warns_as_torch(call: str) -> None:
    assert "LSTM with projections is not supported with oneDNN" in told(call)
