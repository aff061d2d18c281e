"""Compiled code in forked processes, in many Python threads, and between changes of the team."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.compiled.calls import Sizes, assert_same, gradients, leaves, random_call, results
from tests.house.source import fresh
from throughtime import cells
from throughtime.backends.call import Call
from throughtime.backends.cpu import schedule as cutting

FORK = """
import os, signal, torch
from tests.compiled.calls import *
from throughtime import cells
from throughtime.backends.cpu import schedule as sizes
from throughtime.compiler.runtime import threads
from tests.compiler import still
threads.usable, threads.runtime = lambda: 64, still.runtime
sizes.PARALLEL_US = sizes.STEP_US = sizes.SHARED_BYTES = 0
torch.set_num_threads(2)
torch.manual_seed(1)
calls = [random_call(cells.LSTM(), torch.float32, Sizes(9, B, 5, 37, 2), "state") for B in (1, 7)]
def everything():
    found = []
    for call in calls:
        values = results(call)
        d = {n: torch.ones_like(v) for n, v in values.items()}
        found += [*values.values(), *gradients(values, leaves(call), d).values()]
    return found
wanted = everything()
def same():
    return all(map(torch.equal, everything(), wanted))
unseen = random_call(cells.GRU(), torch.float64, Sizes(9, 3, 5, 7), "state", grad=False)
plain = results(unseen, "reference")["y"]  # torch's own products would hang in the child
child = os.fork()
if not child:
    signal.alarm(60)  # so that what hangs dies
    right = torch.allclose(results(unseen)["y"], plain)
    grandchild = os.fork()
    if not grandchild:
        signal.alarm(60)
        os._exit(not same())
    os._exit(os.waitpid(grandchild, 0)[1] or not (same() and right))
print(os.waitpid(child, 0)[1], same())
"""


@pytest.fixture
def whole_teams(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small work runs on all threads too."""
    for name in ("PARALLEL_US", "STEP_US"):
        monkeypatch.setattr(cutting, name, 0)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _everything(call: Call) -> list[Tensor]:
    values = results(call)
    d = {n: torch.ones_like(v) for n, v in values.items()}
    return [*values.values(), *gradients(values, leaves(call), d).values()]


def test_forked_processes_have_the_same_bits() -> None:
    assert fresh(FORK).split() == ["0", "True"]


@pytest.mark.parametrize("threads", [1, 2])
def test_eight_python_threads_at_once(threads: int, whole_teams: None) -> None:
    torch.set_num_threads(threads)
    sizes = [Sizes(5, 3, 5, 17), Sizes(40, 17, 5, 64), Sizes(1, 1, 1, 1), Sizes(9, 2, 3, 100, 2)]
    calls = [random_call(cells.LSTM(), torch.float32, s, "state") for s in sizes]
    wanted = [_everything(call) for call in calls]
    wrong: list[str] = []

    def work(number: int) -> None:
        torch.set_num_threads(threads)  # a thread's own setting
        for turn in range(20):
            i = 0 if number < 4 else (number + turn) % len(calls)  # four with one size
            try:
                assert_same(_everything(calls[i]), wanted[i], f"thread {number} turn {turn}")
            except Exception as error:  # an error in a thread would pass unseen
                wrong.append(repr(error))

    at_once = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for one in at_once:
        one.start()
    for one in at_once:
        one.join()
    assert wrong == []


def test_the_team_may_change_between_forward_and_backward(whole_teams: None) -> None:
    for form in ("state", "lengths", "packed"):
        call = random_call(cells.GRU(), torch.float32, Sizes(9, 7, 5, 17, 2), form)
        wanted: list[Tensor] = []
        for first, second in ((1, 1), (1, 4), (4, 1), (2, 3)):
            torch.set_num_threads(first)
            values = results(call)
            torch.set_num_threads(second)
            d = {n: torch.ones_like(v) for n, v in values.items()}
            found = [*values.values(), *gradients(values, leaves(call), d).values()]
            wanted = wanted or found
            assert_same(found, wanted, f"{first} threads, then {second}")


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_anomaly_mode_has_the_same_bits() -> None:
    call = random_call(cells.LSTM(), torch.float32, Sizes(5, 3, 5, 17, 2), "state")
    wanted = _everything(call)
    with torch.autograd.detect_anomaly():
        assert_same(_everything(call), wanted)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_anomaly_mode_tells_of_nan() -> None:
    call = random_call(cells.LSTM(), torch.float32, Sizes(5, 3, 5, 17))
    with torch.autograd.detect_anomaly():
        y = results(call)["y"]
        with pytest.raises(RuntimeError, match="'DirectBackward' returned nan values"):
            y.backward(torch.full_like(y, torch.nan))
