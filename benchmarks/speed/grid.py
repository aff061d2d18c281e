"""The shapes: the whole grid, and the part of it that `make bench` takes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product


@dataclass(frozen=True, order=True)
class Shape:
    """One layer's batch: B rows, T steps, H units, I inputs."""

    B: int
    T: int
    H: int
    I: int

    def __str__(self) -> str:
        inputs = "" if self.I == self.H else f" I {self.I}"
        return f"B {self.B} T {self.T} H {self.H}{inputs}"

    @property
    def key(self) -> str:
        """The shape as it stands in a row's key."""
        return f"{self.B}x{self.T}x{self.H}x{self.I}"


def shape(B: int, T: int, H: int, I: int | None = None) -> Shape:
    """I = H unless said: most layers stand behind others of their own width."""
    return Shape(B, T, H, H if I is None else I)


EVEN = tuple(
    shape(B, T, H) for T, B, H in product((50, 365), (1, 16, 64, 256), (32, 64, 128, 256, 512))
)
ODD = tuple(shape(B, T, H) for T, B, H in product((50, 365), (3, 7), (37, 100)))
GRID = (*EVEN, *ODD)

# What `make bench` takes: the corners that differ most in who wins, and odd sizes.
STATED = (
    *(shape(B, 50, H) for B, H in product((1, 16, 64), (32, 128, 512))),
    shape(256, 50, 128),
    shape(16, 365, 64),
    shape(3, 50, 37),
    shape(7, 50, 100),
)

LARGE = tuple(shape(128, 20, H) for H in (1024, 2048))
OWN = tuple(shape(16, 100, H) for H in (32, 128))


def recurrent(shapes: tuple[Shape, ...]) -> tuple[Shape, ...]:
    """The same shapes with one input: the input product is then 1/H of the recurrent one."""
    return tuple(shape(s.B, s.T, s.H, 1) for s in shapes)


# Where the share of the machine's peak is asked for.
PEAK = tuple(shape(B, 50, H) for B, H in product((16, 64, 256), (128, 256, 512)))
PEAK_STATED = tuple(shape(64, 50, H) for H in (128, 256, 512))


def busy(shapes: tuple[Shape, ...]) -> tuple[Shape, ...]:
    """Those with B H >= 2048, where a GRU must take less time than an LSTM."""
    return tuple(s for s in shapes if s.B * s.H >= 2048)
