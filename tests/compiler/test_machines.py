"""One generator, three machines: every module is written and assembled for each of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from throughtime import cells
from throughtime.compiler.llvm import modules
from throughtime.compiler.llvm.abi import WIDEST, Kind, column_widest
from throughtime.compiler.plan import make_plan
from throughtime.compiler.runtime import jit
from throughtime.compiler.runtime.machine import MACHINES, Machine, text

MULTIPLY_ADD = {
    "avx512": r"vfmadd\d+p[sd]\t.*%zmm",
    "avx2": r"vfmadd\d+p[sd]\t.*%ymm",
    "neon": r"fmla\tv\d+\.(4s|2d)",
}
FOREIGN = {"avx2": r"%zmm|%k[1-7]|%ymm(1[6-9]|2\d)", "neon": r"%[xyz]mm"}


def assembled(module: Callable[[Kind], Any], machine: Machine, bytes: int) -> str:
    """The assembly of a module for a machine, in numbers of so many bytes."""
    kind = Kind(bytes, machine.lanes(8 * bytes))
    return jit.assembly(lambda: text(module(kind), machine), machine)


@pytest.mark.parametrize("bytes", [4, 8])
@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_every_tile_multiplies_and_adds_in_whole_vectors(machine: Machine, bytes: int) -> None:
    registers = machine.registers
    for v in range(1, WIDEST + 1):
        found = assembled(
            lambda kind, v=v: modules.tiles_module(kind, registers, v), machine, bytes
        )
        assert re.search(MULTIPLY_ADD[machine.name], found)
        assert not _spills(found), f"a tile of {v} vectors keeps no chain in memory"
    for v in range(1, column_widest(registers) + 1):
        found = assembled(lambda kind, v=v: modules.columns_module(kind, v), machine, bytes)
        assert re.search(MULTIPLY_ADD[machine.name], found)


def _spills(assembly: str) -> bool:
    """Whether a vector is stored on the stack inside a loop of multiplications."""
    loops = re.findall(r"(?ms)^\.LBB\d+_\d+:.*?(?=^\.LBB|\Z)", assembly)
    inner = [body for body in loops if "fma" in body or "fmla" in body]
    return any(re.search(r"mov\w*ps\t%[yz]mm\d+, .*\(%rsp\)|str\tq\d+, \[sp", b) for b in inner)


@pytest.mark.parametrize("cell", [cells.LSTM(), cells.GRU(), cells.Elman()], ids=repr)
@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_loops_and_cells_are_assembled(machine: Machine, cell: Any) -> None:
    found = make_plan(cell)
    for module in (
        lambda kind: modules.loops_module(kind, machine, False),
        lambda kind: modules.loops_module(kind, machine, True),
        lambda kind: modules.forward_module(kind, found),
        lambda kind: modules.backward_module(kind, found),
    ):
        written = assembled(module, machine, 4)
        if machine.name in FOREIGN:
            assert not re.search(FOREIGN[machine.name], written)
        assert needs(module, machine) <= {"memcpy", "memset", "memmove"}


def needs(module: Callable[[Kind], Any], machine: Machine) -> set[str]:
    """The symbols that a module's object leaves to others."""
    kind = Kind(4, machine.lanes(32))
    parsed, target = jit._module(lambda: text(module(kind), machine), machine)
    return jit._needs(target.emit_object(parsed))
