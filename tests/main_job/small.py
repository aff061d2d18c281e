"""A dictionary and a recipe small enough for tests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from throughtime.tasks import pronounce

TINY: dict[str, Any] = {
    "hidden": 6,
    "steps": 24,
    "batch_size": 16,
    "lr": 0.02,
    "warmup": 5,
    "dropout": 0.3,
    "validate_every": 8,
    "checkpoint_every": 3,
    "log_every": 5,
    "threads": 1,
}

CACHES = (pronounce.read_dictionary, pronounce._read_side)


@contextmanager
def small_dictionary() -> Iterator[None]:
    """Inside, the task reads every fortieth line of the dictionary."""
    if pronounce.parse_dictionary is _parse_few:
        yield
        return
    pronounce.parse_dictionary = _parse_few
    _forget()
    try:
        yield
    finally:
        pronounce.parse_dictionary = _PARSE
        _forget()


_PARSE = pronounce.parse_dictionary


def _parse_few(lines: Iterable[str]) -> pronounce.Entries:
    return _PARSE(list(lines)[::40])


def _forget() -> None:
    for cached in CACHES:
        cached.cache_clear()
