"""Bits of compiled cells, here or on an emulated AArch64.

    python -m tests.aarch64.calls OUT here|guest LEVEL [FIRST:STEP]

Writes a tensor of outputs and gradients by name. LEVEL is `short` (each cell once) or `long`.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from tests.compiled.calls import (
    CELLS,
    FLOATS,
    Sizes,
    gradients,
    leaves,
    random_call,
    random_gradients,
    results,
)
from throughtime import cells
from throughtime.cells import Cell

BUILT_IN = set(cells.available().values())

CASES: dict[str, list[tuple[Sizes, str]]] = {
    "short": [(Sizes(3, 5, 3, 21, 2), "lengths")],
    "long": [
        (Sizes(3, 5, 3, 21, 2), "lengths"), (Sizes(2, 13, 5, 33), "state"),
        (Sizes(4, 1, 17, 64), "plain"), (Sizes(5, 7, 1, 5, 2), "reset_both"),
    ],
}  # fmt: skip


def cells_of(level: str) -> list[Cell]:
    """Each cell of the package once; the long form has every cell of the tests."""
    if level == "long":
        return CELLS
    found = {type(cell): cell for cell in reversed(CELLS) if type(cell) in BUILT_IN}
    return list(found.values())[::-1]


def values(level: str, part: slice) -> Iterator[tuple[str, Tensor]]:
    """Outputs and gradients by names that say of what."""
    for index, cell in list(enumerate(cells_of(level)))[part]:
        for dtype in FLOATS:
            for number, (sizes, form) in enumerate(CASES[level]):
                torch.manual_seed(100 * index + number)
                call = random_call(cell, dtype, sizes, form)
                found = results(call)
                every = found | gradients(found, leaves(call), random_gradients(found))
                for name, v in every.items():
                    yield f"{cell!r} {dtype} {form} {name}", v.detach()


def main(out: str, where: str, level: str, first: str = "0", step: str = "1") -> None:
    """Write the values."""
    torch.set_num_threads(1)
    part = slice(int(first), None, int(step))
    if where == "here":
        torch.save(dict(values(level, part)), out)
        return
    from tests.aarch64.elsewhere import compile_for
    from tests.aarch64.guest import Guest

    with tempfile.TemporaryDirectory() as folder:
        guest = Guest(Path(folder))
        compile_for(guest)
        torch.save(dict(values(level, part)), out)
        guest.close()
        print(f"{guest.calls} calls, {guest.pages} pages")


if __name__ == "__main__":
    main(*sys.argv[1:])
