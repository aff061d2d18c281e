"""Compiled code reads and writes inside its tensors only; beside them lie protected pages."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.house.source import ROOT

every_side = pytest.mark.parametrize("side", ["before", "behind"])


def _program(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.compiled.guarded", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@every_side
@pytest.mark.timeout(400)  # a minute on a free core
def test_nothing_is_touched_outside_a_tensor(side: str) -> None:
    done = _program(side)
    last = (done.stdout.splitlines() or ["nothing"])[-1]
    died = f"died of signal {-done.returncode}" if done.returncode < 0 else done.stderr[-2000:]
    assert done.returncode == 0, f"with pages {side} every tensor, at {last}: {died}"
    assert int(last.removeprefix("unharmed: ")) > 5000


@every_side
def test_a_number_read_outside_is_seen(side: str) -> None:
    assert _program(side, "planted").returncode == -signal.SIGSEGV
