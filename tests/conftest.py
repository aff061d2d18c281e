"""What holds for every test: one thread, a seed and a cache of its own, no mark left behind."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import Any

# Before torch is imported; also for the programs that tests start. A test about threads sets more.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

# The same examples on every machine and in every run; a shared machine makes no test slow.
settings.register_profile("house", derandomize=True, deadline=None, database=None)
settings.load_profile("house")


def pytest_configure(config: pytest.Config) -> None:
    """Keeps the user's cache out of it: the whole suite, its workers too, shares a folder."""
    if not hasattr(config, "workerinput"):
        folder = os.environ["THROUGHTIME_CACHE"] = tempfile.mkdtemp(prefix="throughtime-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


@pytest.fixture(autouse=True)
def seed(request: pytest.FixtureRequest) -> int:
    """Seeds torch from the test's own name: alone, in any order and in any worker the same."""
    value = zlib.crc32(request.node.nodeid.encode())
    torch.manual_seed(value)
    return value


@pytest.fixture(autouse=True)
def process_state() -> Iterator[None]:
    """Fails the test that leaves one of torch's process-wide settings changed, and restores it."""
    before = {name: read() for name, (read, _) in SETTINGS.items()}
    yield
    changed = [name for name, (read, _) in SETTINGS.items() if read() != before[name]]
    for name in changed:
        SETTINGS[name][1](before[name])
    assert not changed, f"the test left changed: {', '.join(changed)}"


# How to read and how to write each setting; writing some loads the compile stack, for seconds.
SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "threads": (torch.get_num_threads, torch.set_num_threads),
    "gradients": (torch.is_grad_enabled, torch.set_grad_enabled),
    "deterministic": (
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
}


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """torch's compiler may warn about itself, and keeps nothing for the next test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch._dynamo.reset()
