"""What some laws of compiled code ask for: all threads at work, however small it is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from throughtime.backends.cpu import schedule


@pytest.fixture
def whole_teams(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small work runs on all threads too, which share the units where there are few rows."""
    monkeypatch.setattr(schedule, "PARALLEL_US", 0)
    monkeypatch.setattr(schedule, "SHARED_BYTES", 0)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
