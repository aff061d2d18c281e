"""Numbers of the argument block by name, in a function that is being written."""

from __future__ import annotations

from throughtime.compiler.llvm.block import COMMON, DIRECTION
from throughtime.compiler.llvm.emit import Emit
from throughtime.compiler.llvm.number import Num


class Frame:
    """Numbers of a block by name, in a function that is being written."""

    def __init__(self, e: Emit, address: Num, names: tuple[str, ...]) -> None:
        self._e, self._address = e, address
        self._index = {name: i for i, name in enumerate(names)}

    def __getitem__(self, name: str) -> Num:
        return self._e.word(self._address, self._index[name])


def common(e: Emit) -> Frame:
    """The common part, in a function whose first argument is `block`."""
    return Frame(e, e.given["block"], COMMON)


def direction(e: Emit, d: Num) -> Frame:
    """The part of one direction."""
    address = e.given["block"] + (d * len(DIRECTION) + len(COMMON)) * 8
    return Frame(e, address, DIRECTION)
