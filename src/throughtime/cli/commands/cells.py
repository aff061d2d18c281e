"""`throughtime cells`, `check` and `explain`: what cells there are, and the code they become.

And `throughtime cache`: that code, kept on disk.
"""

from __future__ import annotations

import inspect
import warnings
from typing import TYPE_CHECKING

import torch

from throughtime import Recurrent, check
from throughtime.cell.layout import find_fitting_size
from throughtime.cells import Cell, available
from throughtime.compiler.llvm.abi import WIDEST, Kind, most_rows
from throughtime.compiler.passes import NO_MASKS
from throughtime.compiler.plan import make_plan, why_unplanned
from throughtime.compiler.runtime import cache as objects
from throughtime.compiler.runtime import machine
from throughtime.errors import BackendError, DataError
from throughtime.tasks.recipe import build_cell, find_python_file, one_of, report_line

if TYPE_CHECKING:
    from throughtime.cli import Commands

DTYPES = {"float32": 4, "float64": 8}


def register(commands: Commands) -> None:
    """Adds the commands."""
    commands.add("cells", list_cells)
    checked, explained = commands.add("check", check_cell), commands.add("explain", explain)
    for parser in (checked, explained):
        parser.add_argument(
            "cell", metavar="CELL", help="A name of `throughtime cells`, or FILE.py:CLASS."
        )
    checked.add_number(
        "--seed", 0, "Where the random sizes, weights and inputs come from. Default: 0."
    )
    for option, text in (
        ("--llvm", "The LLVM text of its own function."),
        ("--assembly", "The assembly of its own function."),
        ("--backward", "Of the derivative instead."),
    ):
        explained.add_argument(option, action="store_true", help=text)
    explained.add_argument(
        "--dtype", metavar="NAME", default="float32", help="float32 or float64. Default: float32."
    )
    commands.add("cache", show_cache).add_argument(
        "--clear", action="store_true", help="Delete it; it is made anew when needed."
    )


def list_cells() -> None:
    """List the cells, each with the first line of its description."""
    for name, kind in available().items():
        print(f"{name:<20} {(inspect.getdoc(kind) or '').partition(chr(10))[0]}")


def check_cell(cell: str, seed: int) -> None:
    """Hold a cell against every law that cells must obey, by gradcheck and on every backend."""
    with report_line(find_python_file(cell)):
        print(check(build_cell(cell), seed=seed))


def explain(cell: str, llvm: bool, assembly: bool, backward: bool, dtype: str) -> None:
    """Tell who computes a cell and why not the others, its plan, the machine, and its code."""
    one_of("dtype", dtype, tuple(DTYPES))
    with report_line(find_python_file(cell)):
        built = build_cell(cell)
        if llvm or assembly:
            show_code(built, DTYPES[dtype], backward, llvm, assembly)
        else:
            show_choice(built, dtype)


def show_choice(cell: Cell, dtype: str) -> None:
    """Prints the backend for a plain call, the plan, and the machine with its tiles."""
    with warnings.catch_warnings():  # why a cell is not compiled is printed below
        warnings.filterwarnings("ignore", f"{type(cell).__name__} runs on the reference")
        layer = Recurrent(cell, 8, find_fitting_size(cell, 8), dtype=getattr(torch, dtype))
    choice = layer.explain()
    print(f"{cell!r}: {choice.removeprefix('layer 0: ')}")
    H, target = find_fitting_size(cell, 8), machine.host()
    if why_unplanned(cell, H) is None:
        print(f"\n{make_plan(cell, NO_MASKS, H)}")
    if target is not None:
        print(f"\n{describe_machine(target, dtype)}")


def describe_machine(target: machine.Machine, dtype: str) -> str:
    """The machine compiled for, its lanes, and the tiles that fill its registers."""
    heights = (f"{most_rows(target.registers, v)} x {v}" for v in range(1, WIDEST + 1))
    return (
        f"machine: {target.name}, {target.registers} registers of {target.bits} bits\n"
        f"lanes: {target.lanes(8 * DTYPES[dtype])} of {dtype}\n"
        f"highest tiles, rows x vectors: {', '.join(heights)}"
    )


def show_code(cell: Cell, bytes: int, backward: bool, llvm: bool, assembly: bool) -> None:
    """Prints the cell's own function; loops and tiles are the same for every cell."""
    H, target = find_fitting_size(cell, 8), machine.host()
    reason = why_unplanned(cell, H)
    if reason is not None or target is None:
        raise BackendError(f"there is no code to show: {reason or machine.reason()}")
    from throughtime.compiler.llvm import modules
    from throughtime.compiler.runtime import jit

    write = modules.backward_module if backward else modules.forward_module
    kind = Kind(bytes, target.lanes(8 * bytes))
    text = machine.text(write(kind, make_plan(cell, NO_MASKS, H)), target)
    if llvm:
        print(text)
    if assembly:
        print(jit.assembly(lambda: text, target))


def show_cache(clear: bool) -> None:
    """Show where compiled code is kept and how much there is, or delete it."""
    cleared = objects.clear() if clear else objects.Cleared(0, ())
    contents = objects.show()
    if contents.folder is not None:
        print(f"folder   {contents.folder}")
    if contents.refused is not None:
        print(f"not used: {contents.refused}")
        return
    if clear:
        print(f"deleted  {cleared.deleted}")
    print(f"objects  {contents.files}\nbytes    {contents.bytes}")
    if cleared.left:
        raise DataError(
            f"{contents.folder} has what cannot be deleted: {', '.join(cleared.left)}; "
            "remove it by hand"
        )
