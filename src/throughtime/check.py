"""check(cell): every law, gradcheck and every backend, over random sizes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch

from throughtime.cells import Cell
from throughtime.cells.layout import fitting
from throughtime.compiler.apart import why_not
from throughtime.compiler.trace import trace
from throughtime.errors import LawError, OptionError
from throughtime.laws import LAWS
from throughtime.layers.recurrent import Recurrent


@dataclass(frozen=True)
class Checked:
    """What `check` found.

    Attributes:
        cell: the cell.
        laws: the laws that held.
        uncompiled: operations without a rule, with their lines; they keep the cell on the
            reference.
        skipped: parts of the laws that the cell has no use for.
    """

    cell: Cell
    laws: tuple[str, ...]
    uncompiled: tuple[str, ...]
    skipped: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.cell!r}: {len(self.laws)} laws hold", *(f"  {law}" for law in self.laws)]
        lines += [f"  not held: {part}" for part in self.skipped]
        lines += [f"  stays uncompiled: {reason}" for reason in self.uncompiled]
        return "\n".join(lines)


FIXED: Final = {
    "batch_first": False, "return_state": True, "backend": "auto", "device": None, "dtype": None,
}  # fmt: skip
"""Options that change no equation; the laws set them, or count on them."""


def _check_options(options: dict[str, Any]) -> None:
    for name, value in options.items():
        if name in FIXED and value != FIXED[name]:
            raise OptionError(
                f"check takes options that change what a layer computes, and holds the laws in "
                f"float64 on every backend; leave {name} out, got {value!r}"
            )


def maker(cell: Cell, seed: int, **options: Any) -> Callable[..., Recurrent]:
    """How the laws build their layers: random odd sizes that fit, random weights, float64."""

    def make(**forced: Any) -> Recurrent:
        torch.manual_seed(seed)
        sizes = torch.randint(1, 6, (2,)).tolist()
        given = {"hidden_size": sizes[1], "dtype": torch.float64, **options, **forced}
        asked = given.pop("hidden_size")
        several = isinstance(asked, list | tuple)
        sizes_of = [fitting(cell, h) for h in (asked if several else [asked])]
        layer = Recurrent(cell, sizes[0], sizes_of if several else sizes_of[0], **given)
        with torch.no_grad():
            for weight in layer.parameters():
                weight.add_(torch.randn_like(weight), alpha=0.3)
        return layer.eval()

    return make


def check(cell: Cell, *, seed: int = 0, **options: Any) -> Checked:
    """Hold a cell against every law, by gradcheck and on every backend that takes it.

    A cell that declares `inputs` is given random ones, from 0.1 to 1.

    Args:
        cell: an instance of a `Cell`, of this package or your own.
        seed: where the random sizes, weights and inputs come from.
        options: of `Recurrent`, to hold the laws with them: those that change what is computed.

    Returns:
        What was checked.

    Raises:
        OptionError: an option that a layer does not take, or that changes no equation.
        CellError: this is no cell, or its equations cannot be taken; names the line.
        LawError: laws that do not hold, each with its number.
    """
    _check_options(options)
    trace(cell)  # refuses what is no cell
    why = why_not(cell, fitting(cell, 4))
    unsupported = () if why is None else (why,)
    held, broken = [], []
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", f"{type(cell).__name__} runs on the reference")
        for name, law in LAWS.items():
            torch.manual_seed(seed)
            try:
                law(maker(cell, seed, **options))
            except (AssertionError, RuntimeError) as error:
                broken.append(f"{name} ({(law.__doc__ or '').strip()}): {error}")
            else:
                held.append(name)
    if broken:
        raise LawError(f"{cell!r} breaks {len(broken)} of {len(LAWS)} laws:\n" + "\n".join(broken))
    uncompiled = tuple(f"{what}: {line}" for what, line in unsupported)
    skipped = ("packed, since a PackedSequence takes no direct inputs",)
    return Checked(cell, tuple(held), uncompiled, skipped if cell.layout.inputs else ())
