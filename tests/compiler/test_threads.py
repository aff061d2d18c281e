"""Compiled code on torch's own threads: as many as torch says, none where they would hang."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from llvmlite import ir

from tests.compiler.by_hand import WAIT, host, said
from throughtime.compiler.llvm.abi import COMMON, Kind
from throughtime.compiler.llvm.library import team_caller
from throughtime.compiler.llvm.loops.team import (
    LONGEST,
    LONGEST_PAUSE,
    MOST_KEPT,
    write_move_apart,
)
from throughtime.compiler.llvm.writer import Emit
from throughtime.compiler.runtime import jit, machine, threads

BLOCK = """
import ctypes, os, threading, torch
from tests.compiler import still
from throughtime.compiler.llvm.library import team_caller
from throughtime.compiler.runtime import jit; from throughtime.compiler.runtime import threads
threads.usable = lambda: 64
on_team = team_caller(host())
threads.runtime, found = still.runtime, still.runtime()
record = jit.load("record", lambda: RECORD, host()).address("record")
def team(asked, release_gil=True):
    block = (ctypes.c_int64 * 19)(found.omp_get_thread_num, found.omp_get_num_threads)
    threads.caller(record, asked, release_gil, 1e6, on_team)(ctypes.addressof(block))
    return block[2], *(n for n in block[3:] if n)
"""


@pytest.fixture
def two_threads() -> Iterator[None]:
    """torch with two threads, and afterwards as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("release_gil", [False, True])
def test_a_region_runs_once_on_every_thread(release_gil: bool) -> None:
    code = f"torch.set_num_threads(3); print([team(n, {release_gil}) for n in (1, 2, 3, 1)])"
    assert said(BLOCK + code).strip() == "[(1, 1), (2, 2, 2), (3, 3, 3, 3), (1, 1)]"


def test_set_num_threads_is_obeyed_at_every_call() -> None:
    code = """
for n in (2, 1, 3):
    torch.set_num_threads(n)
    print(threads.available(), *team(threads.available()))
"""
    lines = said(BLOCK + code).splitlines()
    assert lines == ["2 2 2 2", "1 1 1", "3 3 3 3 3"]


def test_there_are_no_more_threads_than_cores_that_may_be_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, two_threads: None
) -> None:
    assert threads.usable() <= len(os.sched_getaffinity(0))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    (tmp_path / "outer" / "own").mkdir(parents=True)
    monkeypatch.setattr(
        threads, "_groups", lambda: [tmp_path / "outer/own", tmp_path / "outer", tmp_path]
    )
    for outer, own, wanted in (
        ("max 100000", "max 100000", 8),
        ("max 100000", "350000 100000", 3),
        ("150000 100000", "350000 100000", 1),
        ("50000 100000", "max 100000", 1),
        ("broken", "200000 100000", 2),
    ):
        (tmp_path / "outer" / "cpu.max").write_text(outer + "\n")
        (tmp_path / "outer" / "own" / "cpu.max").write_text(own + "\n")
        threads._quota.cache_clear()
        assert threads.usable() == wanted
        assert threads.available() == min(2, wanted)
    threads._quota.cache_clear()


class Calls:
    """Calls of a function on a team, where the clock shows what is said.

    Attributes:
        clock: seconds.
        takes: seconds that a team takes, and that the function takes alone.
        asked: for how many threads, call by call.
        free, forked, inside: what is said of the process.
        shared: what is called.
        gain: what is known of all teams.
    """

    def __init__(self, predicted_us: float) -> None:
        self.clock, self.takes, self.asked = 10.0, (0.001, 0.0015), list[int]()
        self.free, self.forked, self.inside = 2, False, False
        self.shared = threads.Shared(0, 2, False, predicted_us, team_caller(host()))
        self.gain = array("q", threads.GAIN.values())
        whole, address, number = ctypes.c_int, ctypes.c_int64, ctypes.c_uint
        self._held = {
            "function": ctypes.CFUNCTYPE(None, address)(lambda _: self._take(1)),
            "GOMP_parallel": ctypes.CFUNCTYPE(None, address, address, number, number)(
                lambda *given: self._take(given[2])
            ),
            "omp_get_max_threads": ctypes.CFUNCTYPE(whole)(lambda: self.free),
            "omp_in_parallel": ctypes.CFUNCTYPE(whole)(lambda: int(self.inside)),
            "getpid": ctypes.CFUNCTYPE(whole)(lambda: os.getpid() + self.forked),
            "clock_gettime": ctypes.CFUNCTYPE(whole, whole, address)(self._tell),
        }
        words = {name: address_of(function) for name, function in self._held.items()}
        for name, word in {**words, "gain": self.gain.buffer_info()[0]}.items():
            self.shared._words[threads.CALL.index(name)] = word

    def _take(self, count: int) -> None:
        self.asked.append(count)
        self.clock += self.takes[count == 1]

    def _tell(self, clock: int, to: int) -> int:
        assert clock == time.CLOCK_MONOTONIC
        seconds = (ctypes.c_int64 * 2).from_address(to)
        seconds[0], seconds[1] = divmod(round(self.clock * 1e9), 10**9)
        return 0

    def add(self, seconds: float) -> None:
        """A call by a team that gains so much, or loses it."""
        self.shared._words[threads.CALL.index("best")] = threads.EVER
        self.shared._words[threads.CALL.index("best_alone")] = 10**11
        self.takes = (100.0 - seconds, 1e-3)
        self.shared(0)
        self.clock -= self.takes[0]
        assert self.asked[-1] == 2

    def pause(self) -> int:
        """Milliseconds of calls that go alone, in calls of one each."""
        self.takes, self.asked[:] = (0.0, 1e-3), []
        begun = self.clock
        while True:
            self.shared(0)
            self.clock = begun
            if self.asked[-1] > 1:
                return len(self.asked) - 1


FIRST = threads.GAIN["kept"] / 1e9


def test_teams_that_lose_are_not_asked_for_a_while() -> None:
    calls = Calls(100)
    calls.add(FIRST / 2)
    calls.add(-FIRST)  # one call that waited
    assert calls.gain[0] == pytest.approx(1e9 * FIRST / 2, abs=1e3)
    pauses = []
    for _ in range(10):
        calls.add(-2 * FIRST)  # one is enough after a pause
        begun = calls.clock
        pauses.append(calls.pause())
        calls.clock = begun + 100.0
        calls.gain[0] = 0
    assert pauses[0] == pytest.approx(2e4 * FIRST, abs=1) and pauses == sorted(pauses)
    assert pauses[-1] == pytest.approx(LONGEST_PAUSE / 1e6, abs=1)
    calls.add(1.0)  # what is gained is kept up to a bound, and makes pauses short again
    assert calls.gain[0] == MOST_KEPT
    calls.add(-1.01 * MOST_KEPT / 1e9)
    assert calls.pause() == pytest.approx(1e4 * 1.01 * MOST_KEPT / 1e9, abs=1)
    assert calls.gain[1] == 2 * threads.GAIN["pause"]


def test_a_pause_of_rare_calls_ends_by_the_clock() -> None:
    calls = Calls(100)
    calls.add(-2 * FIRST)
    longest, begun = LONGEST * 20 * FIRST, calls.clock + 100 + 2 * FIRST
    for share, wanted in ((0.99, 1), (1.01, 2)):
        calls.clock, calls.takes = begun + share * longest, (0.0, 0.0)
        calls.shared(0)
        assert calls.asked[-1] == wanted


def test_while_teams_lose_a_call_goes_alone() -> None:
    calls = Calls(2000)
    for wait, share in ((0.001, 0), (0.008, 0.9), (0.001, 0)):
        calls.takes, calls.asked[:] = (wait, 0.0015), []
        for _ in range(2000):
            calls.shared(0)
        assert abs(calls.asked[1000:].count(1) / 1000 - share) <= 0.1


def test_a_wrong_prediction_costs_one_call_alone() -> None:
    calls = Calls(1000)  # a millisecond, it says
    calls.takes = (0.1, 0.15)
    for _ in range(100):
        calls.shared(0)
    assert calls.asked == [2, 1, *[2] * 98]


def test_there_is_no_team_where_it_would_hang_and_none_larger_than_torch_says() -> None:
    calls = Calls(1000)
    for change, wanted in (
        ({}, 2), ({"free": 1}, 1), ({"free": 64}, 2), ({"inside": True}, 1), ({"forked": True}, 1),
    ):  # fmt: skip
        vars(calls).update({"free": 2, "inside": False, "forked": False} | change)
        calls.shared(0)
        assert calls.asked[-1] == wanted, change


def test_the_threads_are_those_that_torch_has() -> None:
    code = """
torch.set_num_threads(2)
torch.ones(1 << 20).exp_()
before = os.listdir("/proc/self/task")
team(2)
print(len(before), before == os.listdir("/proc/self/task"))
"""
    number, same = said(BLOCK + code, OMP_NUM_THREADS="2").split()
    assert int(number) >= 2
    assert same == "True"


def test_after_a_fork_there_is_one_thread_and_nothing_hangs() -> None:
    code = """
torch.set_num_threads(2)
torch.ones(1 << 20).exp_()
assert team(threads.available()) == (2, 2, 2)
def in_child():
    torch.set_num_threads(2)
    return threads.available() == 1 and team(threads.available()) == (1, 1)
child = os.fork()
if not child:
    grandchild = os.fork()
    if not grandchild:
        os._exit(not in_child())
    os._exit(os.waitpid(grandchild, 0)[1] or not in_child())
print(os.waitpid(child, 0)[1], *team(threads.available()))
"""
    assert said(BLOCK + code).strip() == "0 2 2 2"


def test_workers_of_a_data_loader_do_not_hang() -> None:
    code = """
torch.set_num_threads(2)
team(2)
class Data(torch.utils.data.Dataset):
    def __len__(self): return 4
    def __getitem__(self, i): return team(threads.available())[0]
loader = torch.utils.data.DataLoader(Data(), num_workers=2, multiprocessing_context="fork")
print([n.item() for n in loader])
"""
    assert said(BLOCK + code).strip() == "[1, 1, 1, 1]"


def test_eight_python_threads_at_once() -> None:
    code = """
torch.set_num_threads(2)
wrong = []
def work():
    for turn in range(100):
        if team(threads.available(), turn % 2 == 0) != (2, 2, 2):
            wrong.append(turn)
at_once = [threading.Thread(target=work) for _ in range(8)]
for one in at_once: one.start()
for one in at_once: one.join()
print(wrong)
"""
    assert said(BLOCK + code).strip() == "[]"


def test_inside_a_region_there_is_one_thread() -> None:
    code = """
torch.set_num_threads(2)
seen = []
function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: seen.append(threads.available()))
threads.caller(ctypes.cast(function, ctypes.c_void_p).value, 2, True, 1e6, on_team)(0)
print(seen, threads.available())
"""
    assert said(BLOCK + code).strip() == "[1, 1] 2"


def test_a_torch_without_openmp_gives_one_thread(
    monkeypatch: pytest.MonkeyPatch, two_threads: None
) -> None:
    def not_loaded(name: str | None, mode: int) -> None:
        raise OSError(name)

    assert threads.available() == 2
    monkeypatch.setattr(ctypes, "CDLL", not_loaded)
    monkeypatch.setattr(threads, "runtime", threads.runtime.__wrapped__)
    assert threads.runtime() is None
    assert threads.available() == 1


@pytest.mark.parametrize("release_gil", [False, True])
def test_other_python_threads_run_when_the_gil_is_released(release_gil: bool) -> None:
    wait = jit.load("wait", lambda: WAIT, host()).address("wait")
    block = (ctypes.c_int64 * 3)()

    def answer() -> None:
        while not block[0]:
            time.sleep(0)
        block[1] = 1

    other = threading.Thread(target=answer)
    other.start()
    threads.caller(wait, 1, release_gil, 0)(ctypes.addressof(block))
    other.join()
    assert block[2] == release_gil


def test_the_gil_is_released_above_fifty_microseconds() -> None:
    assert [threads.worth_releasing(us) for us in (1, 50, 50.5, 1e6)] == [False, False, True, True]


def waiter() -> tuple[int, array[int], array[int]]:
    """What a thread of number 1 calls when it waits, its block, and the lines of its counters."""
    kind, module = Kind(4, 4), ir.Module("waits")
    apart = write_move_apart(module, kind)
    wait = Emit(module, "wait", kind, ("block",))
    wait.call(apart, block=wait.args["block"])
    wait.done()
    code = jit.load("a test waits", lambda: machine.text(module, host()), host())
    found, lines = threads.runtime(), array("q", [0] * 8 * 4)
    assert found is not None
    words = {"thread_number": address_of(one), "team_size": address_of(two), "D": 1, "chunks": 1,
             "yield": found.sched_yield, "processor": found.sched_getcpu,
             "get_affinity": found.sched_getaffinity, "set_affinity": found.sched_setaffinity,
             "counter": lines.buffer_info()[0]}  # fmt: skip
    return code.address("wait"), array("q", [words.get(name, 0) for name in COMMON]), lines


@ctypes.CFUNCTYPE(ctypes.c_int)
def one() -> int:
    return 1


@ctypes.CFUNCTYPE(ctypes.c_int)
def two() -> int:
    return 2


def address_of(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


@pytest.mark.skipif(threads.usable() < 2, reason="needs two cores")
def test_who_waits_on_the_processor_of_another_goes_to_a_free_one() -> None:
    function, words, lines = waiter()
    wait = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function)
    libc, before = ctypes.CDLL(None), os.sched_getaffinity(0)
    here, seats = min(before), {False: [0, 0, 0], True: [0, 0, 0]}
    try:
        for shared in seats:
            for turn in range(3):  # the system may move a thread at any time, but rarely does
                os.sched_setaffinity(0, {here})
                os.sched_setaffinity(0, before)
                lines[2 * 8] = here + 1 if shared else 0
                wait(words.buffer_info()[0])
                seats[shared][turn] = libc.sched_getcpu()
                assert os.sched_getaffinity(0) == before
                assert lines[3 * 8] == here + 1
    finally:
        os.sched_setaffinity(0, before)
    assert here in seats[False] and seats[True] != [here] * 3
