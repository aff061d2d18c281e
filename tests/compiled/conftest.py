"""What some laws of compiled code ask for: all threads at work, however small it is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.compiler import still
from throughtime.backends.cpu import schedule
from throughtime.compiler.runtime import threads


@pytest.fixture(autouse=True)
def as_many_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Teams are of the size that torch says, however few cores there are and however busy."""
    monkeypatch.setattr(threads, "usable", lambda: 64)
    monkeypatch.setattr(threads, "runtime", still.runtime)


@pytest.fixture
def whole_teams(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small work runs on all threads too, which share the units where there are few rows."""
    for name in ("PARALLEL_US", "STEP_US"):
        monkeypatch.setattr(schedule, name, 0)
    monkeypatch.setattr(schedule, "SHARED_BYTES", 0)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
