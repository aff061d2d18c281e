"""Floating-point formats: how numbers lie in their bits."""

from __future__ import annotations

import math
import struct
from typing import Final, NamedTuple


class Format(NamedTuple):
    """A floating-point format: bits in all and of the fraction, and the exponent's offset."""

    bits: int
    fraction: int
    offset: int

    @property
    def integer(self) -> float:
        """Added to a small number and taken away again, it rounds to a whole number.

        What stands in the sum's lowest bits is that whole number.
        """
        return math.ldexp(1.5, self.fraction)

    def rounded(self, number: float) -> float:
        """The nearest number of this format."""
        if self.bits == 64 or not math.isfinite(number):
            return number
        try:
            return float(struct.unpack("f", struct.pack("f", number))[0])
        except OverflowError:
            return math.copysign(math.inf, number)

    def pattern(self, number: float) -> int:
        """The bits of a number, as a whole number."""
        codes = ("f", "I") if self.bits == 32 else ("d", "Q")
        return int(struct.unpack(codes[1], struct.pack(codes[0], number))[0])


SINGLE: Final = Format(32, 23, 127)
DOUBLE: Final = Format(64, 52, 1023)
