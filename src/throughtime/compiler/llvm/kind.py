"""The numbers that code computes with, and how many of them a vector holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """The numbers a function computes with.

    Attributes:
        bytes: of one number, 4 or 8.
        lanes: numbers in a vector.
    """

    bytes: int
    lanes: int

    @property
    def real(self) -> Any:
        """One number, as LLVM has it."""
        from llvmlite import ir

        return ir.FloatType() if self.bytes == 4 else ir.DoubleType()

    @property
    def vector(self) -> Any:
        """As many as a register holds."""
        from llvmlite import ir

        return ir.VectorType(self.real, self.lanes)

    @property
    def size(self) -> int:
        """Bytes of a vector."""
        return self.bytes * self.lanes
