"""A gate that reaches no new state is refused or right; its gradient is zero."""

from __future__ import annotations

import subprocess
import sys

from tests.house.source import ROOT


def test_gates_that_reach_nothing_are_refused_or_right() -> None:
    command = [sys.executable, "-m", "tests.compiled.dead_ends"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    last = (done.stdout.splitlines() or ["nothing"])[-1]
    assert last == "all right", f"at {last}: {done.returncode}, {done.stderr[-1500:]}"
