"""Times several contenders in turns: A B C A B C, so that what slows the machine slows all."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

Clock = Literal["wall", "cpu"]

REPEAT = 0.005  # seconds: a repeat is as many calls as take about that long, at least one
WARM = 0.05  # seconds: calls shorter than this are called once, untimed, before each repeat
PAUSE = 0.005  # seconds of sleep before each, and again until the process stands still
PATIENCE = 0.2  # seconds of that at most


@dataclass(frozen=True)
class Effort:
    """How long one case is measured.

    Attributes:
        seconds: turns go on until this much time has gone by, and
        least: at least so many turns were made,
        most: at most so many.
    """

    seconds: float
    least: int = 5
    most: int = 101


@dataclass
class Timing:
    """One contender's repeats, each in seconds a call.

    Attributes:
        calls: calls in one repeat.
        wall: time on the clock.
        cpu: processor time of all threads, those that wait busily among them.
    """

    calls: int
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def by(self, clock: Clock) -> list[float]:
        """The repeats by the clock named."""
        return self.wall if clock == "wall" else self.cpu


def interleave(runs: dict[str, Callable[[], object]], effort: Effort) -> dict[str, Timing]:
    """Repeats of every run in turns; each was called before, so that nothing is built in here."""
    firsts = {name: min(_repeat(run, 1)[0] for _ in range(2)) for name, run in runs.items()}
    found = {name: Timing(max(1, math.ceil(REPEAT / t))) for name, t in firsts.items()}
    end = time.perf_counter() + effort.seconds
    gc.collect()
    gc.disable()
    try:
        for turn in range(effort.most):
            if turn >= effort.least and time.perf_counter() > end:
                break
            for name, run in runs.items():
                _take_turn(run, found[name], firsts[name] < WARM)
    finally:
        gc.enable()
    return found


def _take_turn(run: Callable[[], object], timing: Timing, warm: bool) -> None:
    settle()
    if warm:
        run()
    wall, cpu = _repeat(run, timing.calls)
    timing.wall.append(wall)
    timing.cpu.append(cpu)


def settle() -> None:
    """Sleep until the threads of the contender before have stopped waiting busily for more work.

    They may go on for tens of milliseconds, on cores that the next contender needs.
    """
    end = time.perf_counter() + PATIENCE
    spun = PAUSE
    while spun > PAUSE / 5 and time.perf_counter() < end:
        before = time.process_time()
        time.sleep(PAUSE)
        spun = time.process_time() - before


def _repeat(run: Callable[[], object], calls: int) -> tuple[float, float]:
    """Wall and processor seconds a call."""
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(calls):
        run()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return wall / calls, cpu / calls
