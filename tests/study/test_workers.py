"""Worker processes: a run that dies is one row, and no worker outlives its study."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time

from tests.house.source import ROOT
from tests.study.small import learn_or_die, recipe
from throughtime.train.study import Lost, Outcome, learn, run_on_processes


def test_one_that_dies_and_one_that_fails_cost_no_other_run() -> None:
    wanted = [recipe(cell="rnn", steps=2, seed=seed) for seed in range(5)]
    found = list(run_on_processes(wanted, 2, 1, learn_or_die))
    lost = {one.recipe.seed: one.reason for one in found if isinstance(one, Lost)}
    assert lost == {
        1: "its process ended with exit code -9",
        2: "RuntimeError: not enough memory",
    }
    done = {one.seed: one for one in found if isinstance(one, Outcome)}
    assert sorted(done) == [0, 3, 4] and len(found) == 5
    assert done[3].validations == learn(wanted[3]).validations, "as in this process"
    assert multiprocessing.active_children() == []


def test_no_run_needs_no_worker() -> None:
    assert list(run_on_processes([], 2, 1)) == []


def test_workers_end_when_their_study_is_killed() -> None:
    code = (
        "from tests.study.small import recipe\n"
        "from throughtime.train.study import run_on_processes\n"
        "import multiprocessing\n"
        "runs = run_on_processes([recipe(steps=1), recipe(length=500, steps=10**6)], 1, 1)\n"
        "next(runs)\n"
        "print(multiprocessing.active_children()[0].pid, flush=True)\n"
        "next(runs)\n"
    )
    command = [sys.executable, "-c", code]
    study = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert study.stdout is not None
    worker = int(study.stdout.readline())
    study.kill()
    study.communicate()
    for _ in range(300):
        if not alive(worker):
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    raise AssertionError("the worker went on by itself")


def alive(process: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
