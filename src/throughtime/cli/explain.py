"""`throughtime explain CELL`: who computes a cell, and the code it becomes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from throughtime.cells import Cell
    from throughtime.compiler.llvm.machine import Machine

DTYPES = {"float32": 4, "float64": 8}


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("explain")(explain)


def explain(
    cell: Annotated[str, typer.Argument(help="A name of `throughtime cells`, or FILE.py:Class.")],
    llvm: Annotated[
        bool, typer.Option("--llvm", metavar=" ", help="The LLVM text of its own function.")
    ] = False,
    assembly: Annotated[
        bool, typer.Option("--assembly", metavar=" ", help="The assembly of its own function.")
    ] = False,
    backward: Annotated[
        bool, typer.Option("--backward", metavar=" ", help="Of the derivative instead.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
) -> None:
    """Tell who computes a cell and why not the others, its plan, the machine, and its code."""
    from throughtime.cli.named_cell import named_cell
    from throughtime.tasks.choices import one_of

    one_of("dtype", dtype, tuple(DTYPES))
    found = named_cell(cell)
    if llvm or assembly:
        show_code(found, DTYPES[dtype], backward, llvm, assembly)
    else:
        show_choice(found, dtype)


def show_choice(cell: Cell, dtype: str) -> None:
    """Prints the backend for a plain call, the plan, and the machine with its tiles."""
    import torch

    from throughtime import Recurrent
    from throughtime.compiler.llvm import machine
    from throughtime.compiler.plan import plan

    told = Recurrent(cell, 8, 8, dtype=getattr(torch, dtype)).explain()
    typer.echo(f"{cell!r}: {told.removeprefix('layer 0: ')}")
    found, target = plan(cell), machine.host()
    if not isinstance(found, str):
        typer.echo(f"\n{found}")
    if target is not None:
        typer.echo(f"\n{machine_told(target, dtype)}")


def machine_told(target: Machine, dtype: str) -> str:
    """The machine compiled for, its lanes, and the tiles that fill its registers."""
    from throughtime.compiler.llvm.tile_sizes import WIDEST, most_rows

    heights = (f"{most_rows(target.registers, v)} x {v}" for v in range(1, WIDEST + 1))
    return (
        f"machine: {target.name}, {target.registers} registers of {target.bits} bits\n"
        f"lanes: {target.lanes(8 * DTYPES[dtype])} of {dtype}\n"
        f"highest tiles, rows x vectors: {', '.join(heights)}"
    )


def show_code(cell: Cell, bytes: int, backward: bool, llvm: bool, assembly: bool) -> None:
    """Prints the cell's own function; loops and tiles are the same for every cell."""
    from throughtime.compiler.llvm import machine
    from throughtime.compiler.plan import plan
    from throughtime.errors import BackendError

    found, target = plan(cell), machine.host()
    if isinstance(found, str) or target is None:
        reason = found if isinstance(found, str) else machine.reason()
        raise BackendError(f"there is no code to show: {reason}")
    from throughtime.compiler.llvm import build, jit
    from throughtime.compiler.llvm.kind import Kind

    write = build.backward_module if backward else build.forward_module
    text = machine.text(write(Kind(bytes, target.lanes(8 * bytes)), found), target)
    if llvm:
        typer.echo(text)
    if assembly:
        typer.echo(jit.assembly(lambda: text, target))
