"""The shapes of a layer that are prepared: not too many, and none in vain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, TypeVar

MOST_SHAPES: Final = 32
"""Shapes of a layer that are prepared for a forward, and as many for a backward pass."""

Value = TypeVar("Value")


class Shapes(Generic[Value]):
    """What is prepared, by shape.

    Where as many as may be are there, one that comes anew goes the long way, and takes the place of
    the oldest when it comes twice in a row: so shapes that change at each call cost nothing here.
    """

    def __init__(self) -> None:
        self.known: dict[tuple[int, ...], Value | None] = {}
        self._missed: tuple[int, ...] = ()

    def add(self, key: tuple[int, ...], make: Callable[[], Value | None]) -> Value | None:
        """What is made for a shape that is not known; None: it goes the long way."""
        if len(self.known) >= MOST_SHAPES:
            if key != self._missed:
                self._missed = key
                return None
            self.known.pop(next(iter(self.known)), None)
        self.known[key] = found = make()
        return found
