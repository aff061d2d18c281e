"""The same bits on every machine that this processor can stand for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.house.source import ROOT
from throughtime.compiler.runtime import machine

PROGRAM = """
import hashlib, torch
from tests.compiled.calls import *
from tests.compiled.fed import Turning
from tests.compiled.normed import NORMED
from tests.compiled.normed_widths import NORMED_WIDTHS
from throughtime import cells
from throughtime.compiler.runtime import machine
torch.manual_seed(1)
told = [machine.host().name]
for cell in (cells.LSTM(), cells.GRU(), cells.Elman("relu"), cells.LSTMPeephole(),
             cells.LSTMLayerNorm(), Turning(), *NORMED, *NORMED_WIDTHS[1::3]):
    for dtype in FLOATS:
        digest = hashlib.sha256()
        for sizes in (Sizes(7, 5, 3, 37, 2), Sizes(3, 1, 33, 64), Sizes(4, 17, 1, 5)):
            for form in ("state", "lengths"):
                call = random_call(cell, dtype, sizes, form)
                check_call(call)
                for v in results(call).values():
                    digest.update(v.detach().numpy().tobytes())
        told.append(f"{cell} {dtype} {digest.hexdigest()[:16]}")
print(*told, sep="\\n")
"""


def _told(name: str) -> list[str]:
    command = [sys.executable, "-c", PROGRAM]
    set_to = {**os.environ, "THROUGHTIME_MACHINE": name}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=set_to)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def test_narrower_vectors_give_the_same_bits() -> None:
    host = machine.host()
    if host is None or host.name != "avx512":
        pytest.skip("only a processor with AVX-512 stands for two machines")
    wide, narrow = _told("avx512"), _told("avx2")
    assert (wide[0], narrow[0]) == ("avx512", "avx2")
    assert narrow[1:] == wide[1:]
