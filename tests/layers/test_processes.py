"""Threads, forked children, several processes that train together, and memory over many calls."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.house.source import ROOT
from tests.layers.many_calls import CALLS, caller
from tests.layers.plain import agree, build, gru, lstm, plain, random
from throughtime import Recurrent, cell, cells

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


def in_children(
    work: Callable[..., None], *args: Any, count: int = 1, how: str = "fork", seconds: int = 60
) -> None:
    """Runs `work(number, *args)` in children; fails if one does or does not end."""
    context: Any = multiprocessing.get_context(how)
    children = [context.Process(target=work, args=(i, *args)) for i in range(count)]
    for child in children:
        child.start()
    for child in children:
        child.join(seconds)
        if child.exitcode is None:
            child.kill()
    assert [child.exitcode for child in children] == [0] * count


def run_and_save(number: int, layer: Recurrent, x: Tensor, path: Path) -> None:
    y, state = layer(x, lengths=[5, 0, 3])
    y.sum().backward()
    stream = layer.stream(3)
    torch.save([y, *(v.grad for v in layer.parameters()), stream(x[0])], path)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_forked_child_runs(backend: str, tmp_path: Path) -> None:
    layer, x = build(cells.GRU(), 3, [4, 2], backend=backend), random(5, 3, 3).detach()
    layer(x)[0].sum().backward()  # whatever a first call sets up, the child inherits
    layer.zero_grad()
    in_children(run_and_save, layer, x, tmp_path / "found.pt")
    y = plain(layer, gru, x, lengths=[5, 0, 3])[0]
    wanted = [
        y,
        *torch.autograd.grad(y.sum(), list(layer.parameters())),
        plain(layer, gru, x)[0][0],
    ]
    agree(torch.load(tmp_path / "found.pt"), wanted)


def train(model: Any, x: Tensor, lengths: list[int], steps: int = 3) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        y, state = model(x, lengths=lengths)
        loss = y.square().sum(2).sum(0).mean() + state[1][0].sum(2).mean()
        loss.backward()
        optimizer.step()


def train_half(rank: int, layer: Recurrent, x: Tensor, lengths: list[int], folder: Path) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2
    )
    layer = copy.deepcopy(layer)  # what came from another process is shared with it
    rows = slice(0, 2) if rank == 0 else slice(2, 4)
    model = torch.nn.parallel.DistributedDataParallel(layer)
    train(model, x[:, rows], lengths[rows])
    torch.save(layer.state_dict(), folder / f"{rank}.pt")
    torch.distributed.barrier()  # neither leaves while the other still talks to it
    torch.distributed.destroy_process_group()


def test_two_processes_train_as_one_with_the_joined_batch(tmp_path: Path) -> None:
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("this build of torch has no gloo")
    options: Any = {"bidirectional": True, "learn_initial": True}
    layer, lengths = build(cells.LSTM(), 3, [4, 2], **options), [5, 2, 0, 4]
    one = build(cells.LSTM(), 3, [4, 2], **options)
    one.load_state_dict(layer.state_dict())
    x = random(5, 4, 3).detach()
    # Not forked: gloo's threads may inherit a lock that a thread of this process held.
    in_children(train_half, layer, x, lengths, tmp_path, count=2, how="spawn")
    train(one, x, lengths)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt")
        for name, value in one.state_dict().items():
            assert not torch.equal(value, layer.state_dict()[name]), f"{name} was not trained"
            torch.testing.assert_close(found[name], value, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_eight_threads_at_once(backend: str) -> None:
    layer = build(cells.LSTM(), 3, [4, 2], backend=backend)
    parameters = list(layer.parameters())
    batches = [random(2 + i, 1 + i % 3, 3) for i in range(8)]

    def work(x: Tensor) -> list[list[Tensor]]:
        found = []
        for _ in range(2):
            y, _ = layer(x, lengths=[len(x) - 1] * x.shape[1])
            own = build(cells.GRU(), 3, 2)  # building is safe beside running
            assert own(x)[0].shape == (*x.shape[:2], 2)
            steps = layer.stream(x.shape[1])
            grads = torch.autograd.grad(y.square().sum(), [x, *parameters])
            found.append([y, *grads, torch.stack([steps(v) for v in x.detach()])])
        return found

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, batches))
    for x, found in zip(batches, results, strict=True):
        y = plain(layer, lstm, x, lengths=[len(x) - 1] * x.shape[1])[0]
        grads = torch.autograd.grad(y.square().sum(), [x, *parameters])
        for once in found:
            agree(once, [y, *grads, plain(layer, lstm, x)[0]])


def tensors() -> int:
    gc.collect()
    return sum(issubclass(type(v), Tensor) for v in gc.get_objects())


def test_many_calls_of_changing_shapes_keep_no_objects() -> None:
    call = caller()
    for i in range(264):  # its shapes come round after 132, and keep a program from the second time
        call(i)
    held, living, meant = tensors(), len(cell._LIVING), len(cell._DEFINITIONS)
    for i in range(200):
        call(i)
    assert tensors() <= held
    assert len(cell._LIVING) <= living
    assert len(cell._DEFINITIONS) <= meant


def growths(*kept: int) -> list[int]:
    """Bytes that a fresh process grows by, for each lot of calls that keep so many tensors each.

    In a process that has run other tests the allocator still moves, by more than a leak.
    """
    command = [sys.executable, "-m", "tests.layers.many_calls", *map(str, kept)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.splitlines()]


def leaks(lot: int, larger: int) -> bool:
    """Whether a lot of calls keeps half a small tensor each, beside a lot that keeps one more.

    With L bytes kept and P for the tensor, 3 L > L + P says 2 L > P.
    """
    return 3 * lot > larger


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_many_calls_of_changing_shapes_hold_no_memory() -> None:
    clean, one, two = growths(0, 1, 2)
    assert not leaks(clean, one), (clean, one)
    assert one > 24 * CALLS and leaks(one, two), ("one tensor a call must be seen", one, two)


def test_a_layer_dies_with_its_last_name() -> None:
    gc.collect()
    gc.disable()
    try:
        layer = build(cells.LSTM(), 3, 4, bidirectional=True)
        layer(random(3, 2, 3))[0].sum().backward()
        layer.trace(random(3, 2, 3))
        seen = weakref.ref(layer)
        del layer
        assert seen() is None, "a cycle holds the layer until the next collection"
    finally:
        gc.enable()
