"""The command line in processes of its own, several of which may be one run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.house.source import ROOT
from throughtime.environment import ProcessPlace, for_process

LIMIT = 100  # seconds; a test hangs no longer
CODE = "import sys; from throughtime.cli import main; sys.exit(main())"
SMALL = (
    "train adding --length 12 --hidden 6 --batch-size 8 --steps 24 --validate-every 8 --warmup 2 "
    "--checkpoint-every 3 --log-every 1 --threads 1"
).split()


def begin(
    *words: object, code: str = CODE, environment: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """A command that has begun."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)], cwd=ROOT, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, **(environment or {})}, preexec_fn=_heed_interrupts,
    )  # fmt: skip


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Its exit code and what it said on its error channel; one that hangs is killed and fails."""
    try:
        _, said = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        _, said = process.communicate()
        raise AssertionError(f"it hung; {said}") from None
    return process.returncode, said


def train(out: Path, *words: object, **how: Any) -> list[float]:
    """Trains in small to the end; the loss of every step."""
    code, said = end(begin(*SMALL, "--out", out, *words, **how))
    assert code == 0, said
    return losses(out)


def losses(folder: Path) -> list[float]:
    """The loss of every step of a run."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def refusal(said: str) -> str:
    """The one sentence of a command that failed, whatever it had logged before."""
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in said, said
    return errors[0]


def by_torchrun(rank: int, size: int, port: int) -> dict[str, str]:
    """The environment of one of several processes on this machine, as torchrun sets it."""
    variables = for_process(ProcessPlace(rank, size, size, "127.0.0.1", port, hosted=False), rank)
    return {n: v for n, v in variables.items() if os.environ.get(n) != v}
