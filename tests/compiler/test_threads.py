"""Compiled code on torch's own threads: as many as torch says, none where they would hang."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from tests.compiler.by_hand import WAIT, host, said
from throughtime.compiler.runtime import jit, threads

BLOCK = """
import ctypes, os, threading, torch
from throughtime.compiler.runtime import jit; from throughtime.compiler.runtime import threads
found = threads.runtime()
record = jit.load("record", lambda: RECORD, host()).address("record")
def team(asked, release_gil=True):
    block = (ctypes.c_int64 * 19)(found.omp_get_thread_num, found.omp_get_num_threads)
    threads.call(record, ctypes.addressof(block), asked, release_gil)
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
    code = f"print([team(n, {release_gil}) for n in (1, 2, 3, 1)])"
    assert said(BLOCK + code).strip() == "[(1, 1), (2, 2, 2), (3, 3, 3, 3), (1, 1)]"


def test_set_num_threads_is_obeyed_at_every_call() -> None:
    code = """
for n in (2, 1, 3):
    torch.set_num_threads(n)
    print(threads.available(), *team(threads.available()))
"""
    lines = said(BLOCK + code).splitlines()
    assert lines == ["2 2 2 2", "1 1 1", "3 3 3 3 3"]


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
threads.call(ctypes.cast(function, ctypes.c_void_p).value, 0, 2, True)
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
    threads.call(wait, ctypes.addressof(block), 1, release_gil)
    other.join()
    assert block[2] == release_gil


def test_the_gil_is_released_above_fifty_microseconds() -> None:
    assert [threads.worth_releasing(us) for us in (1, 50, 50.5, 1e6)] == [False, False, True, True]
