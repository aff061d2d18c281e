"""`throughtime explain CELL`: who computes a cell, and the code it becomes."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from throughtime.cells import Cell
    from throughtime.cli import Commands
    from throughtime.compiler.runtime.machine import Machine


DTYPES = {"float32": 4, "float64": 8}


def register(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add("explain", explain)
    parser.add_argument(
        "cell", metavar="CELL", help="A name of `throughtime cells`, or FILE.py:CLASS."
    )
    for option, text in (
        ("--llvm", "The LLVM text of its own function."),
        ("--assembly", "The assembly of its own function."),
        ("--backward", "Of the derivative instead."),
    ):
        parser.add_argument(option, action="store_true", help=text)
    parser.add_argument(
        "--dtype", metavar="NAME", default="float32", help="float32 or float64. Default: float32."
    )


def explain(cell: str, llvm: bool, assembly: bool, backward: bool, dtype: str) -> None:
    """Tell who computes a cell and why not the others, its plan, the machine, and its code."""
    from throughtime.tasks.layers import build_cell, find_python_file, report_line
    from throughtime.tasks.recipe import one_of

    one_of("dtype", dtype, tuple(DTYPES))
    with report_line(find_python_file(cell)):
        built = build_cell(cell)
        if llvm or assembly:
            show_code(built, DTYPES[dtype], backward, llvm, assembly)
        else:
            show_choice(built, dtype)


def show_choice(cell: Cell, dtype: str) -> None:
    """Prints the backend for a plain call, the plan, and the machine with its tiles."""
    import torch

    from throughtime import Recurrent
    from throughtime.cell.layout import find_fitting_size
    from throughtime.compiler.passes import NO_MASKS
    from throughtime.compiler.plan import make_plan, why_unplanned
    from throughtime.compiler.runtime import machine

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


def describe_machine(target: Machine, dtype: str) -> str:
    """The machine compiled for, its lanes, and the tiles that fill its registers."""
    from throughtime.compiler.llvm.abi import WIDEST, most_rows

    heights = (f"{most_rows(target.registers, v)} x {v}" for v in range(1, WIDEST + 1))
    return (
        f"machine: {target.name}, {target.registers} registers of {target.bits} bits\n"
        f"lanes: {target.lanes(8 * DTYPES[dtype])} of {dtype}\n"
        f"highest tiles, rows x vectors: {', '.join(heights)}"
    )


def show_code(cell: Cell, bytes: int, backward: bool, llvm: bool, assembly: bool) -> None:
    """Prints the cell's own function; loops and tiles are the same for every cell."""
    from throughtime.cell.layout import find_fitting_size
    from throughtime.compiler.passes import NO_MASKS
    from throughtime.compiler.plan import make_plan, why_unplanned
    from throughtime.compiler.runtime import machine
    from throughtime.errors import BackendError

    H, target = find_fitting_size(cell, 8), machine.host()
    reason = why_unplanned(cell, H)
    if reason is not None or target is None:
        raise BackendError(f"there is no code to show: {reason or machine.reason()}")
    from throughtime.compiler.llvm import modules
    from throughtime.compiler.llvm.abi import Kind
    from throughtime.compiler.runtime import jit

    write = modules.backward_module if backward else modules.forward_module
    kind = Kind(bytes, target.lanes(8 * bytes))
    text = machine.text(write(kind, make_plan(cell, NO_MASKS, H)), target)
    if llvm:
        print(text)
    if assembly:
        print(jit.assembly(lambda: text, target))
